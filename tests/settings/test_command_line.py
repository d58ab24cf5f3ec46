"""Options: what a route is made of, and what is refused before anything is sent."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from maildirqmtp.errors import ConfigError
from maildirqmtp.forwarder.route import MAX_BOUNCES, SENDMAIL, Route
from maildirqmtp.settings import table
from maildirqmtp.settings.command_line import check_together, make_route, parse, plain
from maildirqmtp.settings.parser import make_parser


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


def test_defaults() -> None:
    """As serialmail, but not without limit."""
    made = route("M", "server")
    assert (made.bounce_via, made.sendmail, made.max_bounces) == ("sendmail", SENDMAIL, MAX_BOUNCES)
    assert SENDMAIL == (b"/usr/sbin/sendmail",)
    assert MAX_BOUNCES == 100


@pytest.mark.parametrize("how", ["sendmail", "server", "maildir:B", "maildir:/a:b"])
def test_ways_for_a_bounce(how: str) -> None:
    """Exactly as they were given."""
    assert route("--bounce-via", how, "M", "server").bounce_via == how


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
    """None of these is refused."""
    check_together(parse(line.split()))


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
        ("--rescan 5 M h", "--rescan is for those who stay; write it with --watch"),
        ("--idle-timeout 5 M h", "--idle-timeout is for those who stay"),
        ("--metrics-file F M h", "--metrics-file is for those who stay"),
        ("--metrics-listen localhost:1 --status M", "--metrics-listen is for those who stay"),
    ],
)
def test_what_does_not(line: str, said: str) -> None:
    """With what to write instead; half of what was meant must not be done in silence."""
    with pytest.raises(ConfigError) as raised:
        check_together(parse(line.split()))
    assert said in str(raised.value)


# Read without argparse: the same, or not at all

FLAGS = [*table.SHORT, *(f"--{setting.key}" for setting in table.FLAGS)]
ODD = [
    "",
    "-",
    "--",
    "-x",
    "-1",
    "-vq",
    "- x",
    "--no-bounce",
    "--bounc",
    "--version",
    "-h",
    "=",
    "a b",
]
VALUES = ["", "x", "a=b", "5", "~", "--cur", "é"]
WORDS = st.one_of(
    st.sampled_from(FLAGS),
    st.sampled_from(VALUES),
    st.builds("{}={}".format, st.sampled_from(FLAGS), st.sampled_from(VALUES)),
    st.sampled_from(ODD),
)


def by_argparse(words: list[str]) -> dict[str, object] | None:
    """What argparse makes of a command line; None where it refuses, or shows help."""
    try:
        return vars(make_parser().parse_intermixed_args(words, table.Options()))
    except SystemExit:
        return None


@given(words=st.lists(WORDS, max_size=6))
@example(words=["--recipient=a", "M", "--recipient", "b", "-v", "h", "--window=5,1M", "--json"])
@example(words=["--sender=", "M", "", "h", "--sender", "x"])
@example(words=["--cur=1", "M", "h"])
@example(words=["M", "h", "--port"])
def test_a_plain_command_line_is_read_as_argparse_reads_it(words: list[str]) -> None:
    """Two ways to read it that differ would be two programs."""
    found = plain(words)
    if found is not None:
        assert vars(found) == by_argparse(words)


@pytest.mark.parametrize(
    "line",
    [
        "M h",
        "M pre- h",
        "M -",
        "-v -q M h",
        "--window 5 --sent=S --cur M h --recipient a --recipient b",
        *(f"--{s.key}" + ("" if s.switch else " x") for s in table.FLAGS),
    ],
)
def test_what_people_write_is_plain(line: str) -> None:
    """Else argparse would be loaded for it, and an empty maildir take half as long again."""
    assert plain(line.split()) is not None


@pytest.mark.parametrize("word", ["--no-bounce", "-vq", "--version", "--help", "--cur=1", "-x"])
def test_what_is_not_plain_is_argparses(word: str) -> None:
    """It knows better how to say what is wrong."""
    assert plain([word, "M", "h"]) is None
    assert plain(["M", "h", "--port", word]) is None


def test_what_follows_two_dashes_are_arguments() -> None:
    """A maildir may be named -v."""
    assert parse(["-q", "--", "-v", "--"]).arguments == ["-v", "--"]
    assert parse(["--no-bounce", "M", "--", "-v"]).arguments == ["M", "-v"]


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
