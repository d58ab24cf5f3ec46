"""The command line: what is understood, and what is refused with exit code 100."""

import errno
import io
import json
import os
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest

import maildirqmtp
from maildirqmtp.cli import main as cli
from maildirqmtp.errors import ConfigError, LocalError
from maildirqmtp.forwarder import batch
from maildirqmtp.forwarder.report import Report
from maildirqmtp.forwarder.route import Route
from maildirqmtp.settings.config import Config
from maildirqmtp.settings.flags_and_keys import Values
from maildirqmtp.transport.endpoint import TcpEndpoint
from tests.helpers import add_message

Out = pytest.CaptureFixture[str]


class Flushed:
    """What `flush` was called with, and what it is to return."""

    def __init__(self) -> None:
        self.route: Route | None = None
        self.report: Report | None = None
        self.result: int | Exception = 0

    def __call__(self, chosen: Route, report: Report) -> int:
        self.route, self.report = chosen, report
        if isinstance(self.result, Exception):
            raise self.result
        return self.result


@pytest.fixture
def flushed(monkeypatch: pytest.MonkeyPatch) -> Flushed:
    """Nothing is sent; it is only noted what would have been."""
    made = Flushed()
    monkeypatch.setattr(batch, "flush", made)
    return made


def chosen(flushed: Flushed, *arguments: str) -> Route:
    """Run the command line and return the route that it makes."""
    assert cli.main(arguments) == 0
    assert flushed.route is not None
    return flushed.route


def refused(capsys: Out, *arguments: str) -> str:
    """Run a command line that is wrong; return what is said."""
    with pytest.raises(SystemExit) as raised:
        cli.main(arguments)
    assert raised.value.code == 100
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("maildirqmtp: ")
    (line,) = captured.err.splitlines()
    assert line.endswith("; try maildirqmtp --help")
    return line


# What is understood


def test_two_arguments(flushed: Flushed) -> None:
    """DIR SERVER, and the defaults."""
    made = chosen(flushed, "Maildir", "mail.example.org")
    assert made.maildir == b"Maildir"
    assert made.server == TcpEndpoint("mail.example.org", 209)
    assert (made.prefix, made.sender, made.recipients) == (b"", None, ())
    assert (made.sent, made.failed, made.include_cur) == (None, None, False)
    assert (made.window_messages, made.window_bytes) == (4096, 32 << 20)
    assert made.lifetime_s == 14 * 86_400
    assert made.connect_timeout_s == 60
    assert made.write_timeout_s == 73
    assert made.response_timeout_s == 3600
    assert (made.grace_s, made.session_s) == (10, 3000)


def test_serialmails_three_arguments(flushed: Flushed) -> None:
    """An old script goes on working."""
    made = chosen(flushed, "Maildir", "alias-ppp-", "mail.example.org:2009")
    assert (made.maildir, made.prefix) == (b"Maildir", b"alias-ppp-")
    assert made.server == TcpEndpoint("mail.example.org", 2009)


def test_every_option(flushed: Flushed, tmp_path: Path) -> None:
    """In any place between the arguments."""
    made = chosen(
        flushed,
        "--port=2009",
        "Maildir",
        "--window=100,1M",
        "--connect-timeout=5s",
        "--write-timeout=1m",
        "--response-timeout=2h",
        "--lifetime=3d",
        "p-",
        f"--sent={tmp_path}/Sent",
        f"--failed={tmp_path}/Failed",
        "--sender=s@x",
        "--recipient=a@y",
        "--recipient=b@y",
        "--cur",
        "mail.example.org",
    )
    assert (made.maildir, made.prefix) == (b"Maildir", b"p-")
    assert made.server == TcpEndpoint("mail.example.org", 2009)
    assert (made.window_messages, made.window_bytes) == (100, 1 << 20)
    times = (made.connect_timeout_s, made.write_timeout_s, made.response_timeout_s)
    assert times == (5, 60, 7200)
    assert made.lifetime_s == 3 * 86_400
    assert made.sent == os.fsencode(tmp_path / "Sent")
    assert made.failed == os.fsencode(tmp_path / "Failed")
    assert (made.sender, made.recipients) == (b"s@x", (b"a@y", b"b@y"))
    assert made.include_cur


def test_a_port_of_the_servers_own_beats_the_option(flushed: Flushed) -> None:
    """The option is only for where SERVER has none."""
    assert chosen(flushed, "--port=5", "M", "h:6").server == TcpEndpoint("h", 6)
    assert chosen(flushed, "M", "[::1]:7").server == TcpEndpoint("::1", 7)


def test_the_null_sender_can_be_given(flushed: Flushed) -> None:
    """And is not the same as none given."""
    assert chosen(flushed, "--sender=", "M", "h").sender == b""


def test_a_lifetime_of_nothing(flushed: Flushed) -> None:
    """Every deferral is a failure; somebody may want that."""
    assert chosen(flushed, "--lifetime=0", "M", "h").lifetime_s == 0


def test_names_that_are_no_utf8(flushed: Flushed) -> None:
    """Paths and prefixes are bytes."""
    made = chosen(flushed, "M\udcff", "p\udcfe-", "h")
    assert (made.maildir, made.prefix) == (b"M\xff", b"p\xfe-")


def test_a_prefix_with_a_dash_in_front(flushed: Flushed) -> None:
    """After --, as everywhere."""
    assert chosen(flushed, "--", "M", "-p-", "h").prefix == b"-p-"


# What is refused


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "DIR and SERVER"),
        (["M"], "DIR and SERVER"),
        (["M", "p-", "h", "more"], "DIR and SERVER"),
        (["M", "h", "209"], "'209' is a port, no server; write h:209 as one word"),
        (["M", "p-", "h", "6209"], "'6209' is a port, no server; write h:6209 as one word"),
        (["M", "209"], "'209' is a port, no server; write HOST:209 as one word"),
        (["M", ""], "no host name"),
        (["M", "h:0"], "1 to 65535"),
        (["M", "h:x"], "1 to 65535"),
        (["M", "unix:"], "a socket's path is needed"),
        (["M", "exec:"], "a command is needed"),
        (["M", "smtp://h"], "this way is not known"),
        (["--watch", "M", "-"], "cannot be used with --watch"),
        (["--tls-ca=ca.pem", "M", "h"], "TLS options with the server h:209: write qmtps://NAME"),
        (["--tls-key=k.pem", "M", "qmtps://h"], "--tls-key: its certificate is needed"),
        (["--tls-ca=", "M", "qmtps://h"], "--tls-ca: a path is needed"),
        (["--tls-pin=x", "M", "qmtps://h"], "--tls-pin: sha256: and the digest"),
        (["--port=0", "M", "h"], "--port: a port"),
        (["--port=99999", "M", "h"], "--port: a port"),
        (["--window=0", "M", "h"], "--window: MESSAGES"),
        (["--window=1,0", "M", "h"], "--window: at least one byte"),
        (["--window=x", "M", "h"], "--window"),
        (["--lifetime=x", "M", "h"], "--lifetime: a time"),
        (["--connect-timeout=0", "M", "h"], "--connect-timeout: more than 0 seconds"),
        (["--write-timeout=0s", "M", "h"], "--write-timeout: more than 0 seconds"),
        (["--response-timeout=0", "M", "h"], "--response-timeout: more than 0 seconds"),
        (["--response-timeout=-1", "M", "h"], "--response-timeout: a time"),
        (["--sender=a\nb", "M", "h"], "--sender: sender a?b has a LF"),
        ([f"--sender={'x' * 1000}", "M", "h"], "--sender: sender of 1000 bytes"),
        (["--recipient=", "M", "h"], "--recipient: a recipient must not be empty"),
        ([f"--recipient={'x' * 1000}", "M", "h"], "--recipient: recipient of 1000 bytes"),
        (["--sent=M", "M", "h"], "--sent: M is the maildir that is forwarded"),
        (["--failed=./M/", "M", "h"], "--failed: ./M/ is the maildir that is forwarded"),
        (["--what", "M", "h"], "--what"),
        (["--verb", "M", "h"], "--verb"),
        (["--port", "M", "--cur"], "--port: a port is a number"),
        (["M", "h", "--port"], "--port: expected one argument"),
        (["--demo", "M"], "--demo takes no maildir"),
    ],
)
def test_wrong_usage(
    capsys: Out, flushed: Flushed, arguments: list[str], said: str, tmp_path: Path
) -> None:
    """Exit 100, the reason in one line; nothing is sent."""
    assert said in refused(capsys, *arguments)
    assert flushed.route is None


def test_help_names_every_option_and_exit_code(capsys: Out) -> None:
    """On standard output, where a pager finds it."""
    with pytest.raises(SystemExit) as raised:
        cli.main(["--help"])
    assert raised.value.code == 0
    shown = capsys.readouterr().out
    for option in ("--port", "--window", "--sent", "--failed", "--lifetime", "--recipient"):
        assert option in shown
    for option in ("--cur", "--dry-run", "--json", "--verbose", "--quiet", "--demo"):
        assert option in shown
    for title in ("options:", "messages:", "failures and bounces:", "the server:", "TLS:"):
        assert f"\n{title}\n" in shown
    assert "\nExamples:\n" in shown
    assert "Exit codes: 0 nothing of ours is left; 111" in shown
    assert max(map(len, shown.splitlines())) <= 80


def test_version(capsys: Out) -> None:
    """What a bug report begins with."""
    with pytest.raises(SystemExit) as raised:
        cli.main(["--version"])
    assert raised.value.code == 0
    assert capsys.readouterr().out == f"maildirqmtp {maildirqmtp.__version__}\n"


def test_the_arguments_are_the_processes_own(
    flushed: Flushed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the installed command calls it."""
    monkeypatch.setattr(sys, "argv", ["maildirqmtp", "M", "h"])
    assert cli.main() == 0
    assert flushed.route is not None


# What follows from it


def test_the_exit_code_is_the_runs(flushed: Flushed) -> None:
    """111 means that something is left."""
    flushed.result = 111
    assert cli.main(["M", "h"]) == 111


def test_local_trouble_is_111_and_a_line(flushed: Flushed, capsys: Out) -> None:
    """Never a traceback."""
    flushed.result = LocalError("cannot open it")
    assert cli.main(["M", "h"]) == 111
    assert capsys.readouterr().err == "maildirqmtp: cannot open it\n"


def test_a_reader_that_goes_away_is_111(flushed: Flushed) -> None:
    """`| head -1` is not worth a traceback."""
    flushed.result = BrokenPipeError()
    assert cli.main(["M", "h"]) == 111


def test_output_left_unflushed_goes_quietly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python would end with exit code 120 and a complaint."""

    def flush(chosen: Route, report: Report) -> int:
        sys.stdout.write("x")
        return 111

    monkeypatch.setattr(batch, "flush", flush)
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as broken:
        monkeypatch.setattr(sys, "stdout", broken)
        assert cli.main(["M", "h"]) == 111
        broken.write("y")
        broken.flush()
        monkeypatch.undo()


def test_a_full_disk_under_the_output_is_told(flushed: Flushed, capsys: Out) -> None:
    """As for `--dry-run > list`."""
    flushed.result = OSError(errno.ENOSPC, "No space left on device")
    assert cli.main(["M", "h"]) == 111
    assert capsys.readouterr().err == "maildirqmtp: standard output: No space left on device\n"


def test_an_interrupt_is_111(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the run takes the signal itself."""

    def flush(chosen: Route, report: Report) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(batch, "flush", flush)
    assert cli.main(["M", "h"]) == 111


def test_closed_output_stops_nothing(flushed: Flushed, monkeypatch: pytest.MonkeyPatch) -> None:
    """Started with >&- as by some init scripts."""
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    assert cli.main(["--json", "M", "h"]) == 0
    report = flushed.report
    assert report is not None
    report.problem("trouble")
    streams = sys.stdout, sys.stderr
    monkeypatch.undo()
    for stream in streams:
        stream.close()


def test_an_address_the_terminal_cannot_show_stops_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a locale without it."""
    add_message(path, "1.a", b"x\n", b"s@x", "r@\u00fc".encode())
    raw = io.BytesIO()
    with io.TextIOWrapper(raw, "ascii") as narrow:
        monkeypatch.setattr(sys, "stdout", narrow)
        assert cli.main(["--dry-run", str(path), "h"]) == 0
        assert raw.getvalue() == b"1.a: <s@x> to r@\\xfc, 2 bytes\n"
        monkeypatch.undo()


def told(flushed: Flushed, capsys: Out, *options: str) -> tuple[str, str]:
    """Run, and tell something of each importance through the report."""
    assert cli.main([*options, "M", "h"]) == 0
    report = flushed.report
    assert report is not None
    report.connected("h")
    report.note("a note")
    report.problem("trouble")
    captured = capsys.readouterr()
    return captured.out, captured.err


def test_verbosity(flushed: Flushed, capsys: Out) -> None:
    """Data on standard output only, everything for people on standard error."""
    assert told(flushed, capsys) == ("", "maildirqmtp: a note\nmaildirqmtp: trouble\n")
    assert told(flushed, capsys, "-q") == ("", "maildirqmtp: trouble\n")
    assert told(flushed, capsys, "-v")[1].startswith("maildirqmtp: connected to h\n")
    out, err = told(flushed, capsys, "--json", "--quiet")
    assert [json.loads(line)["event"] for line in out.splitlines()] == [
        "connected",
        "note",
        "trouble",
    ]
    assert err == "maildirqmtp: trouble\n"


@pytest.mark.parametrize(
    ("options", "terminal", "bar"),
    [
        ([], True, True),
        ([], False, False),
        (["-v"], True, False),
        (["-q"], True, False),
        (["--json"], True, False),
    ],
)
def test_a_bar_only_on_a_terminal_and_alone(
    flushed: Flushed,
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    terminal: bool,
    bar: bool,
) -> None:
    """Between other lines it would be a mess."""
    from maildirqmtp.forwarder import progress

    made: list[object] = []
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    monkeypatch.setattr(progress, "make", lambda stream: made.append(stream))
    assert cli.main([*options, "M", "h"]) == 0
    assert bool(made) is bar


def test_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is handed over to, with its exit code."""
    demo = types.ModuleType("maildirqmtp.cli.demo")
    demo.run = lambda: 7  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "maildirqmtp.cli.demo", demo)
    monkeypatch.setattr(maildirqmtp.cli, "demo", demo, raising=False)
    assert cli.main(["--demo"]) == 7


# --watch, --config, --status


class Stayed:
    """What the daemon and the status were called with."""

    def __init__(self) -> None:
        self.config: Config | None = None
        self.reload: Callable[[], Config] | None = None
        self.shown: tuple[tuple[Route, ...], bool] | None = None
        self.shown_maildir: tuple[bytes, Values, bool] | None = None

    def run(self, config: Config, reload: Callable[[], Config] | None) -> int:
        """Stand in for the daemon."""
        self.config, self.reload = config, reload
        return 7

    def show(self, routes: tuple[Route, ...], as_json: bool, limit: int | None) -> int:
        """Stand in for the status."""
        self.shown = routes, as_json
        self.limit = limit
        return 8

    def show_maildir(
        self,
        path: bytes,
        given: Values,
        as_json: bool,
        limit: int | None,
    ) -> int:
        """See `status.show_maildir`."""
        self.shown_maildir = path, given, as_json
        self.limit = limit
        return 9


@pytest.fixture
def stayed(monkeypatch: pytest.MonkeyPatch) -> Stayed:
    """Nothing is watched; it is only noted what would have been."""
    made = Stayed()
    for name, functions in (
        ("maildirqmtp.daemon.supervisor", [made.run]),
        ("maildirqmtp.cli.status", [made.show, made.show_maildir]),
    ):
        module = types.ModuleType(name)
        for function in functions:
            setattr(module, function.__name__, function)
        monkeypatch.setitem(sys.modules, name, module)
    return made


def test_watch(stayed: Stayed) -> None:
    """One route, and no file to read again."""
    assert cli.main(["--watch", "M", "h", "--rescan=5"]) == 7
    assert stayed.config == Config((Route(b"M", TcpEndpoint("h"), rescan_s=5),))
    assert stayed.reload is None


def test_config(stayed: Stayed, tmp_path: Path) -> None:
    """What is read again is read with the flags of the start."""
    file = tmp_path / "m.toml"
    file.write_text('[[route]]\nmaildir = "M"\nserver = "h"\n')
    assert cli.main(["--config", str(file), "--json", "--sent=S"]) == 7
    route = Route(b"M", TcpEndpoint("h"), sent=b"S")
    assert stayed.config == Config((route,), json=True, path=str(file))
    assert stayed.reload is not None
    assert stayed.reload() == stayed.config
    file.write_text('[[route]]\nmaildir = "M2"\nserver = "h"\n')
    assert [(r.maildir, r.sent) for r in stayed.reload().routes] == [(b"M2", b"S")]
    file.write_text("x = 1\n")
    with pytest.raises(ConfigError, match="line 1: unknown key 'x'"):
        stayed.reload()


def test_a_wrong_file_is_100_and_a_line(stayed: Stayed, tmp_path: Path, capsys: Out) -> None:
    """The usage of the command line would only hide what is wrong."""
    file = tmp_path / "m.toml"
    file.write_text("x = 1\n")
    for flags in ([], ["--check-config"], ["--status"]):
        assert cli.main(["--config", str(file), *flags]) == 100
        expected = f"maildirqmtp: {file}, line 1: unknown key 'x' at the top\n"
        assert capsys.readouterr() == ("", expected)
    assert stayed.config is None
    assert stayed.shown is None


def test_check_config(stayed: Stayed, tmp_path: Path, capsys: Out) -> None:
    """What it comes to is shown, as a file of the same kind, and nothing is done."""
    file = tmp_path / "m.toml"
    file.write_text('[[route]]\nmaildir = "M"\nserver = "h"\nwindow = 5\n')
    assert cli.main(["--config", str(file), "--check-config", "--cur"]) == 0
    shown, errors = capsys.readouterr()
    assert errors == ""
    assert 'server = "h:209"\nwindow = "5,32M"\n' in shown
    assert "\ncur = true\n" in shown
    assert stayed.config is None
    file.write_text(shown)
    assert cli.main(["--config", str(file), "--check-config"]) == 0
    assert capsys.readouterr() == (shown, "")


def test_check_config_tells_what_may_not_be_looked_at(
    tmp_path: Path, capsys: Out, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An administrator checks the file as himself; the maildirs are others'."""
    real = os.stat

    def stat(path: str | bytes, **more: bool) -> os.stat_result:
        if os.fsencode(path).endswith(b"/theirs/new/"):
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(path, **more)

    (tmp_path / "c.toml").write_text(f'[[route]]\nmaildir = "{tmp_path}/theirs"\nserver = "h"\n')
    monkeypatch.setattr(os, "stat", stat)
    assert cli.main(["--config", str(tmp_path / "c.toml"), "--check-config"]) == 0
    shown = capsys.readouterr().out
    assert f"# {tmp_path}/theirs: it cannot be looked at: Permission denied\n" in shown
    assert "no such maildir" not in shown


def test_check_config_says_what_is_missing(tmp_path: Path, capsys: Out) -> None:
    """A slip in a path, or a host without sendmail, would be noticed when mail waits for it."""
    file, there = tmp_path / "m.toml", tmp_path / "there"
    for name in ("new", "cur", "tmp"):
        (there / name).mkdir(parents=True)
    routes = (
        f'[[route]]\nmaildir = "{there}"\n',
        f'[[route]]\nmaildir = "{tmp_path}/slip"\nbounce = true\n',
        f'[[route]]\nmaildir = "{tmp_path}/slip"\nprefix = "a-"\nwarn-after = "4h"\n',
        f'[[route]]\nmaildir = "{there}"\nprefix = "b-"\nbounce = true\nbounce-via = "server"\n',
    )
    no_sendmail = f'[defaults]\nserver = "h"\nsendmail = "{tmp_path}/mailer"\n'
    file.write_text(no_sendmail + "".join(routes))
    assert cli.main(["--config", str(file), "--check-config"]) == 0
    shown, errors = capsys.readouterr()
    assert errors == ""
    assert shown.partition("\nlog-format")[0].split("\n") == [
        f"# {tmp_path}/slip: there is no such maildir yet; the daemon waits for it",
        f"# {tmp_path}/mailer: there is no such program here; bounces need it, or another "
        f"bounce-via",
    ]
    file.write_text(shown)
    assert cli.main(["--config", str(file), "--check-config"]) == 0
    assert capsys.readouterr() == (shown, "")
    file.write_text(no_sendmail + routes[0] + routes[3])
    assert cli.main(["--config", str(file), "--check-config"]) == 0
    assert not capsys.readouterr().out.startswith("#")
    (tmp_path / "mailer").symlink_to("/bin/true")
    file.write_text(no_sendmail + routes[0] + "bounce = true\n")
    assert cli.main(["--config", str(file), "--check-config"]) == 0
    assert not capsys.readouterr().out.startswith("#")


def test_check_config_is_utf8_in_any_locale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As TOML has to be; an escape of the terminal's would be another path."""
    file = tmp_path / "m.toml"
    file.write_text('[[route]]\nmaildir = "/\u00fc"\nserver = "h"\n', encoding="utf-8")
    raw = io.BytesIO()
    with io.TextIOWrapper(raw, "ascii") as narrow:
        monkeypatch.setattr(sys, "stdout", narrow)
        assert cli.main(["--config", str(file), "--check-config"]) == 0
        assert 'maildir = "/\u00fc"' in raw.getvalue().decode()
        monkeypatch.undo()


def test_status(stayed: Stayed, tmp_path: Path) -> None:
    """Of one maildir, or of all in a file; each with its prefix and all its settings."""
    words: list[str]
    for words, given, as_json in (
        ([], {}, False),
        (["--cur", "--json"], {"include_cur": True}, True),
    ):
        assert cli.main(["--status", "M", *words]) == 9
        assert stayed.shown_maildir == (b"M", given, as_json)
    file = tmp_path / "m.toml"
    routes = ['[[route]]\nmaildir = "A"\nserver = "h"\n', 'prefix = "p-"\n']
    file.write_text("".join(["json = true\n", *routes, routes[0].replace("A", "B")]))
    assert cli.main(["--status", "--config", str(file)]) == 8
    first = Route(b"A", TcpEndpoint("h"), prefix=b"p-", bounce=True, include_cur=True)
    both: tuple[Route, ...] = (first, Route(b"B", TcpEndpoint("h")))
    assert stayed.shown == (both, True)


@pytest.mark.parametrize("words", [["--status", ""], ["--enqueue", ""], ["--config", ""]])
def test_a_path_without_a_name_is_wrong_usage(words: list[str], capsys: Out) -> None:
    """As of "$UNSET" in a script; nothing is looked for in the current folder."""
    code: object
    try:
        code = cli.main(words)
    except SystemExit as stop:
        code = stop.code
    assert code == 100
    assert "is needed" in capsys.readouterr().err


# The whole program


@pytest.mark.parametrize(
    ("words", "code", "out", "err"),
    [
        (["Maildir", "h", "--json"], 0, '"event": "summary"', "0 accepted"),
        (["Maildir", "h", "--dry-run"], 0, "", ""),
        (["--status", "Maildir"], 0, "Maildir", ""),
        (["missing", "h"], 111, "", "cannot open the maildir"),
        (["Maildir"], 100, "", "are needed; try maildirqmtp --help"),
        (["--version"], 0, maildirqmtp.__version__, ""),
    ],
)
def test_all_of_it_comes_out_and_the_exit_code_too(
    path: Path, words: list[str], code: int, out: str, err: str
) -> None:
    """It leaves without taking the interpreter to pieces; what was said must be out by then."""
    done = subprocess.run(
        [sys.executable, "-m", "maildirqmtp", *words],
        cwd=path.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stderr
    assert out in done.stdout
    assert err in done.stderr


def test_who_waits_for_the_end_is_told_of_it(path: Path) -> None:
    """What `atexit` has to do, as for a profiler, is done; and what it says is not lost."""
    code = (
        "import atexit, sys, threading; atexit.register(print, 'the end');"
        f"sys.argv = ['maildirqmtp', '-q', {str(path)!r}, 'h'];"
        "from maildirqmtp.__main__ import run; run()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "the end\n"


def test_how_many_status_lists(stayed: Stayed) -> None:
    """A number, and only where there is something to list."""
    assert cli.main(["--status", "M"]) == 9
    assert stayed.limit is None
    assert cli.main(["--status", "--limit", "7", "M"]) == 9
    assert stayed.limit == 7


@pytest.mark.parametrize("words", [["--limit", "7", "M", "h"], ["--status", "--limit", "x", "M"]])
def test_a_limit_that_makes_no_sense(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """It is refused, not ignored."""
    with pytest.raises(SystemExit) as exited:
        cli.main(words)
    assert exited.value.code == 100
    assert "--limit" in capsys.readouterr().err
