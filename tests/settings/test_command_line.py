"""Options: what a route is made of, and what is refused before anything is sent."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from maildirqmtp.errors import ConfigError
from maildirqmtp.forwarder.route import BounceMethod, BounceVia, Route
from maildirqmtp.settings.command_line import check_together, make_route, parse


def route(*words: str) -> Route:
    """Make the route of a command line."""
    return make_route(parse(list(words)))


@pytest.mark.parametrize(
    ("words", "bounces"),
    [
        (("M", "server"), False),
        (("M", "pre-", "server"), True),
        (("M", "", "server"), True),
        (("--bounce", "M", "server"), True),
        (("--no-bounce", "M", "pre-", "server"), False),
        (("--no-bounce", "--bounce", "M", "server"), True),
    ],
)
def test_serialmails_form_bounces_and_the_short_one_does_not(
    words: tuple[str, ...], bounces: bool
) -> None:
    """An old script's senders go on being told; a first try tells nobody."""
    assert route(*words).bounce is bounces


@pytest.mark.parametrize(
    ("words", "takes"),
    [
        (("M", "server"), False),
        (("M", "pre-", "server"), True),
        (("M", "", "server"), True),
        (("--cur", "M", "server"), True),
        (("--no-cur", "M", "pre-", "server"), False),
    ],
)
def test_serialmails_form_takes_read_mail(words: tuple[str, ...], takes: bool) -> None:
    """Else what a mail reader has looked at stays behind for ever."""
    assert route(*words).include_cur is takes


def test_defaults() -> None:
    """As serialmail, but not without limit."""
    made = route("M", "server")
    assert made.bounce_via == BounceVia(BounceMethod.SENDMAIL, None)
    assert (made.sendmail, made.max_bounces) == ((b"/usr/sbin/sendmail",), 100)


@pytest.mark.parametrize(
    ("how", "via"),
    [
        ("sendmail", BounceVia(BounceMethod.SENDMAIL)),
        ("server", BounceVia(BounceMethod.SERVER)),
        ("maildir:B", BounceVia(BounceMethod.MAILDIR, b"B")),
        ("maildir:/a:b", BounceVia(BounceMethod.MAILDIR, b"/a:b")),
    ],
)
def test_ways_for_a_bounce(how: str, via: BounceVia) -> None:
    """A maildir's name may have a colon in it."""
    assert route("--bounce-via", how, "M", "server").bounce_via == via


def test_a_bounce_into_the_home_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    """No shell expands a ~ behind a colon; a folder of that name was asked for."""
    monkeypatch.setenv("HOME", "/home/ann")
    made = route("--bounce-via", "maildir:~/bounces", "M", "server")
    assert made.bounce_via == BounceVia(BounceMethod.MAILDIR, b"/home/ann/bounces")
    with pytest.raises(ConfigError, match=r"--bounce-via: '~nobody-here/b': no such user"):
        route("--bounce-via", "maildir:~nobody-here/b", "M", "server")


@pytest.mark.parametrize(
    "how", ["", "maildir", "maildir:", "smtp", "Server", "server:x", "sendmail:"]
)
def test_no_other_ways(how: str) -> None:
    """A typing error must not send bounces some other way than was meant."""
    with pytest.raises(ConfigError, match="--bounce-via: sendmail, server or maildir:DIR"):
        route("--bounce-via", how, "M", "server")


def test_bounces_cannot_go_where_they_would_be_forwarded(tmp_path: Path) -> None:
    """With PREFIX they would lie there unseen; --bounce-via server is what is meant."""
    (tmp_path / "M").mkdir()
    (tmp_path / "link").symlink_to("M")
    with pytest.raises(ConfigError, match=r"--bounce-via: .* is the maildir that is forwarded"):
        route(f"--bounce-via=maildir:{tmp_path}/link", f"{tmp_path}/M", "server")


def test_how_long_mail_is_kept() -> None:
    """Never removed where nothing is said; a bare number is seconds, and rarely meant so."""
    assert (route("M", "h").keep_sent_s, route("M", "h").keep_failed_s) == (None, None)
    made = route("--sent=S", "--keep-sent=36h", "--keep-failed=1d", "M", "h")
    assert (made.keep_sent_s, made.keep_failed_s) == (36 * 3_600.0, 86_400.0)
    with pytest.raises(ConfigError, match=r"^--keep-failed: at least 1d is needed, not '90'"):
        route("--keep-failed=90", "M", "h")
    with pytest.raises(ConfigError, match=r"^--keep-sent: accepted messages are removed at once"):
        route("--keep-sent=30d", "M", "h")


def test_the_command_is_split_as_a_shell_does() -> None:
    """With its own options, and blanks in its name; nothing is run by a shell."""
    made = route("--sendmail", "'/opt/my mta/send' -C x;y \udce4", "M", "server")
    assert made.sendmail == (b"/opt/my mta/send", b"-C", b"x;y", os.fsencode("\udce4"))


@pytest.mark.parametrize("command", ["", "  ", "'"])
def test_a_command_that_is_none(command: str) -> None:
    """Found out at once, not with the first failure weeks later."""
    with pytest.raises(ConfigError, match="--sendmail: "):
        route("--sendmail", command, "M", "server")


def test_max_bounces() -> None:
    """0 is allowed, and means none."""
    assert route("--max-bounces", "0", "M", "server").max_bounces == 0
    assert route("--max-bounces", "5000", "M", "server").max_bounces == 5000


@pytest.mark.parametrize("number", ["", "-1", "many", "1.5", "\u0661", "\u00b2", "1" * 10, " 1"])
def test_max_bounces_is_a_number(number: str) -> None:
    """And not an endless one."""
    with pytest.raises(ConfigError, match="--max-bounces: a number is needed"):
        route(f"--max-bounces={number}", "M", "server")


# The daemon's


def test_times_of_the_daemon() -> None:
    """More than nothing, else it would never sleep."""
    made = route("--rescan=2m", "--idle-timeout=1.5", "M", "server")
    assert (made.rescan_s, made.idle_s) == (120, 1.5)
    for flag in ("--rescan", "--idle-timeout"):
        with pytest.raises(ConfigError, match=f"^{flag}: more than 0 seconds are needed"):
            route(f"{flag}=0", "M", "server")


@pytest.mark.parametrize(
    "line",
    [
        "M h",
        "--dry-run M h",
        "--watch M h",
        "--watch M p- h --rescan 5 --metrics-file m --metrics-listen localhost:1",
        "--config F",
        "--config F --check-config",
        "--config F --status --json",
        "--config F --rescan 5 --idle-timeout 5 -v --sent S",
        "--status M",
        "--status M --json",
        "--demo",
        "--enqueue M",
    ],
)
def test_what_goes_together(line: str) -> None:
    """None of these is refused, nor changed by the check."""
    options = parse(line.split())
    check_together(options)
    assert vars(options) == vars(parse(line.split()))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("--watch --config F", "--config watches all its routes; write it without --watch"),
        ("--config F M h", "--config: maildir and server stand in the file; 'M' is too much"),
        ("--check-config", "--check-config checks a file; write --config FILE --check-config"),
        ("--check-config M h", "write --config FILE --check-config"),
        ("--check-config --watch M h", "write --config FILE --check-config"),
        ("--config F --check-config --status", "write one of them"),
        ("--status", "--status needs DIR, without SERVER, or --config FILE"),
        ("--status M h", "--status needs DIR, without SERVER, or --config FILE"),
        ("--status --config F M", "'M' is too much"),
        ("--status --watch M", "write --status DIR, without --watch"),
        ("--watch --dry-run M h", "--dry-run does its work and exits; write it without --watch"),
        ("--config F --dry-run", "--dry-run does its work and exits; write it without --config"),
        ("--config F --demo", "--demo does its work and exits; write it without --config"),
        ("--enqueue M --status", "--enqueue does its work and exits; write it without --status"),
        ("--dry-run --enqueue M", "--dry-run does its work and exits; write it without --enqueue"),
        ("--enqueue M --demo", "--enqueue does its work and exits; write it without --demo"),
        ("--demo --dry-run", "--dry-run does its work and exits; write it without --demo"),
        ("--rescan 5 M h", "--rescan only makes sense with --watch or --config; add"),
        ("--idle-timeout 5 M h", "--idle-timeout only makes sense with --watch or --config"),
        ("--metrics-file F M h", "--metrics-file only makes sense with --watch or --config"),
        (
            "--metrics-listen localhost:1 --status M",
            "--metrics-listen only makes sense with --watch or --config",
        ),
        ("--log-format json M h", "--log-format only makes sense with --watch or --config; add"),
        ("--health-listen [::]:1 M h", "--health-listen only makes sense with --watch or --config"),
    ],
)
def test_what_does_not(line: str, said: str) -> None:
    """With what to write instead; half of what was meant must not be done in silence."""
    with pytest.raises(ConfigError) as raised:
        check_together(parse(line.split()))
    assert said in str(raised.value)


# `--`


@pytest.mark.parametrize(
    ("line", "arguments"),
    [
        ("-q -- -v --", ["-v", "--"]),
        ("--no-bounce M -- -v", ["M", "-v"]),
        ("-- -M -p- h", ["-M", "-p-", "h"]),
        ("-q -- --watch --cur h", ["--watch", "--cur", "h"]),
        ("M -- -p- h", ["M", "-p-", "h"]),
        ("M h --", ["M", "h"]),
        ("-- -1 -", ["-1", "-"]),
        ("--", []),
    ],
)
def test_what_follows_two_dashes_are_arguments(line: str, arguments: list[str]) -> None:
    """A maildir may be named -v, and a prefix --watch."""
    found = parse(line.split())
    assert found.arguments == arguments
    assert not found.watch


def test_options_may_stand_anywhere_before_them() -> None:
    """As with every program that argparse reads for."""
    line = parse(["-v", "M", "--cur", "p-", "--window", "5,1M", "h", "--json"])
    assert line.arguments == ["M", "p-", "h"]
    assert (line.include_cur, line.window, line.json, line.verbose) == (True, (5, 1 << 20), True, 1)


@pytest.mark.parametrize("flag", ["sender", "recipient", "failed", "port"])
@pytest.mark.parametrize("more", [[], ["--no-bounce"]])
def test_two_dashes_are_no_value(
    capsys: pytest.CaptureFixture[str], flag: str, more: list[str]
) -> None:
    """For argparse it was no value, or a list; the flag went unheeded, or ended in a traceback."""
    with pytest.raises(SystemExit) as caught:
        parse([f"--{flag}=--", *more, "M", "h"])
    assert caught.value.code == 100
    assert f"--{flag}=--: -- ends the options, and is no value" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["sent", "failed"])
def test_an_empty_path_is_none(flag: str) -> None:
    """A variable that is not set: each run would send a refused message again, without a word."""
    with pytest.raises(ConfigError, match=f"--{flag}: a path is needed"):
        parse([f"--{flag}", "", "M", "h"])


def test_a_maildir_without_a_name_is_wrong_usage() -> None:
    """`maildirqmtp "$UNSET" HOST` was tried again for ever, and was to be mended in this folder."""
    with pytest.raises(ConfigError, match=r"^DIR: a path is needed"):
        route("", "h")


# Several servers


def test_several_servers_on_the_command_line() -> None:
    """In both forms; `--port` is for each of them that has none."""
    made = route("--port=2009", "M", "mx1,mx2:1,qmtp://mx3")
    assert [server.text for server in made.servers] == ["mx1:2009", "mx2:1", "mx3:2009"]
    assert [s.text for s in route("M", "pre-", "a,b").servers] == ["a:209", "b:209"]
    assert route("M", "exec:a,b").servers == (route("M", "exec:a,b").server,)
    assert route("--in-doubt-wait=0", "M", "a,b").in_doubt_wait_s == 0


@pytest.mark.parametrize(
    ("server", "says"),
    [
        ("a,unix:/x", "an array in a configuration file"),
        ("qmtps://a,b", "would go there in plain text"),
        ("a,a", "twice"),
        ("a,", "no host name"),
        ("a,-", "not in a list"),
    ],
)
def test_a_list_of_servers_that_makes_no_sense(server: str, says: str) -> None:
    """Wrong usage, before anything is sent."""
    with pytest.raises(ConfigError, match=says):
        route("M", server)


def test_tls_options_are_for_those_of_a_list_that_have_tls() -> None:
    """They are an error only where none has it: then they would silently do nothing."""
    made = route("--tls-ca=ca.pem", "M", "localhost:1,qmtps://b")
    assert made.tls is not None
    with pytest.raises(ConfigError, match="write qmtps://NAME"):
        route("--tls-ca=ca.pem", "M", "a,b")
