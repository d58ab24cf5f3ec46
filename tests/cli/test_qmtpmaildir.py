"""The receiver's command line: what an administrator types, and what comes of it."""

import contextlib
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import syslog
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from maildirqmtp import __version__
from maildirqmtp.cli import qmtpmaildir as qmtpmaildir
from maildirqmtp.cli import syslog_stderr
from maildirqmtp.cli.qmtpmaildir import main, make_parser, stderr_log
from maildirqmtp.cli.receiver_options import open_listeners, parse_listen
from maildirqmtp.errors import ConfigError
from maildirqmtp.qmtp.protocol import ResponseReader, package_head, package_tail
from maildirqmtp.receiver.listener import where
from maildirqmtp.receiver.policy import Severity
from maildirqmtp.receiver.streams import StdioStream
from tests.helpers import DEADLINE_S, closed_port, command, names

COMMAND = [sys.executable, "-bb", "-W", "error", "-m", "maildirqmtp.cli.qmtpmaildir"]
PACKAGE = package_head(3) + b"hi\n" + package_tail(b"a@b", (b"c@example.org",))
OUTSIDE = package_head(3) + b"hi\n" + package_tail(b"a@b", (b"c@example.net",))


def stdio(arguments: list[str], data: bytes) -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run(
        [*COMMAND, "--stdio", *arguments],
        input=data,
        capture_output=True,
        timeout=DEADLINE_S,
        check=False,
    )


@contextlib.contextmanager
def server(
    *arguments: str, wrapper: Sequence[str] = ()
) -> Iterator[tuple["subprocess.Popen[str]", tuple[str, int]]]:
    """A receiver in a process of its own, and where it listens; `wrapper` is what starts it."""
    argv = [*wrapper, *COMMAND, "--listen", "127.0.0.1:0", *arguments]
    with subprocess.Popen(argv, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            match = re.fullmatch(
                r"qmtpmaildir: listening on (127\.0\.0\.1):(\d+)\n", process.stderr.readline()
            )
            assert match is not None
            yield process, (match[1], int(match[2]))
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "required: one of DIR"),
        (["--no-such-option", "DIR"], "--no-such-option"),
        (["--dom", "x", "DIR"], "--dom"),
        (["DIR", "another"], "another"),
        (["--listen", "0.0.0.0:0", "DIR"], "--domain"),
        (["--listen", "[::]:0", "DIR"], "--domain"),
        (["--listen", "127.0.0.1:65536", "DIR"], "127.0.0.1:65536"),
        (["--listen", "127.0.0.1:x", "DIR"], "HOST:PORT"),
        (["--listen", ":209", "DIR"], "HOST:PORT"),
        (["--listen", "2209", "DIR"], "that is a port; write 127.0.0.1:2209"),
        (["--listen", "", "DIR"], "HOST:PORT"),
        (["--listen=--", "DIR"], "--listen=--: -- ends the options"),
        (["--listen", "unix:", "DIR"], "a path is needed"),
        (["--listen", "unix:/tmp/", "DIR"], "a path is needed"),
        (["--tls-key", "k.pem", "DIR"], "--tls-key: for TLS, --tls-cert is needed"),
        (["--tls-client-ca", "c.pem", "DIR"], "--tls-client-ca: for TLS, --tls-cert is needed"),
        (["--tls-client-name", "n", "DIR"], "--tls-client-name: for TLS, --tls-cert is needed"),
        (["--tls-cert", "c.pem", "--tls-client-name", "n", "DIR"], "without --tls-client-ca"),
        (["--tls-cert", "c.pem", "--stdio", "DIR"], "TLS is for TCP"),
        (["--tls-cert", "c.pem", "--listen", "unix:/x", "DIR"], "TLS is for TCP"),
        (["--stdio", "--listen", "127.0.0.1:0", "DIR"], "--stdio and --listen"),
        (["--domain", "", "DIR"], "--domain"),
        (["--domain", "a@b", "DIR"], "'a@b'"),
        (["--domain", "a\x1bb c", "DIR"], "'a?b c'"),
        (["--max-size", "0", "DIR"], "--max-size"),
        (["--max-size", "much", "DIR"], "--max-size"),
        (["--max-connections", "0", "DIR"], "--max-connections"),
        (["--max-connections", "many", "DIR"], "--max-connections"),
        (["--timeout", "0", "DIR"], "--timeout"),
        (["--timeout", "soon", "DIR"], "--timeout"),
        # As of a variable that is not set; with --deliver-ca every authority would be trusted.
        ([""], "DIR: a path is needed"),
        (["--queue", ""], "--queue: a path is needed"),
        (["--deliver", "smtp:h", "--deliver-ca", ""], "--deliver-ca: a path is needed"),
        (["--once", "1d", "--once-file", "", "DIR"], "--once-file: a path is needed"),
        (["--tls-cert", "", "DIR"], "--tls-cert: a path is needed"),
        (["--tls-cert", "c.pem", "--tls-key=", "DIR"], "--tls-key: a path is needed"),
        (["--tls-cert", "c.pem", "--tls-client-ca", "", "DIR"], "--tls-client-ca: a path is"),
    ],
)
def test_wrong_usage_is_100(
    arguments: list[str],
    complaint: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """And it says what is wrong, on stderr, in one line."""
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 100
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("qmtpmaildir: ")
    assert complaint in output.err
    assert output.err.count("\n") == 1


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    for option, text in (("--version", f"qmtpmaildir {__version__}\n"), ("--help", "--max-size")):
        with pytest.raises(SystemExit) as caught:
            main([option])
        assert caught.value.code == 0
        assert text in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:209", ("127.0.0.1", 209)),
        ("127.0.0.1:0", ("127.0.0.1", 0)),
        ("localhost", ("localhost", 209)),
        ("[::1]:0", ("::1", 0)),
        ("[::1]:10209", ("::1", 10_209)),
        ("[::1]", ("::1", 209)),
        ("::1", ("::1", 209)),
        ("fe80::1:0", ("fe80::1:0", 209)),
    ],
)
def test_where_to_listen(text: str, address: tuple[str, int]) -> None:
    assert parse_listen(text) == address


def test_listening_on_a_unix_socket() -> None:
    """A path is bytes, whatever they are."""
    assert parse_listen("unix:/run/q.sock") == b"/run/q.sock"
    assert parse_listen("unix:\udcff") == b"\xff"


def test_listen_without_a_host() -> None:
    with pytest.raises(ConfigError, match=r"--listen ':0'.*HOST:PORT"):
        parse_listen(":0")


def test_trouble_is_111(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A port in use, a file in the maildir's place: a line each, no traceback."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["--listen", f"127.0.0.1:{port}", str(tmp_path / "Maildir")]) == 111
    assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert main(["--listen", "127.0.0.1:0", str(tmp_path / "file")]) == 111
    assert "file: Not a directory" in capsys.readouterr().err


def test_interrupted_before_it_began(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(qmtpmaildir, "Server", interrupt)
    assert main(["--listen", "127.0.0.1:0", str(tmp_path)]) == 0


def test_stdio(tmp_path: Path) -> None:
    """What `exec:ssh mx qmtpmaildir --stdio Maildir` runs; stdout has responses only."""
    done = stdio(
        ["-v", "--domain", "Example.org", str(tmp_path / "M")], PACKAGE + OUTSIDE + PACKAGE
    )
    assert re.fullmatch(rb"\d+:Kok [^,]*,\d+:D553 [^,]*,\d+:Kok [^,]*,", done.stdout)
    assert done.returncode == 0
    assert done.stderr.count(b"accepted") == 2
    assert done.stderr.count(b"refused") == 1
    assert len(list((tmp_path / "M" / "new").iterdir())) == 2


@pytest.mark.parametrize(
    ("option", "accepted", "refused"), [("-v", True, True), ("", False, True), ("-q", False, False)]
)
def test_how_much_is_logged(tmp_path: Path, option: str, accepted: bool, refused: bool) -> None:
    options = ["--domain", "example.org", *filter(None, [option])]
    done = stdio([*options, str(tmp_path / "M")], PACKAGE + OUTSIDE)
    assert (b"accepted" in done.stderr) is accepted
    assert (b"refused" in done.stderr) is refused


@pytest.mark.parametrize("data", [b"EHLO\r\n", PACKAGE[:-1], PACKAGE + b"1"])
def test_stdio_session_that_ends_badly(tmp_path: Path, data: bytes) -> None:
    done = stdio([str(tmp_path / "M")], data)
    assert done.returncode == 111
    assert done.stderr.count(b"\n") == 1
    assert done.stdout.count(b"K") == data.count(PACKAGE)


def test_stdio_from_a_file_to_a_file(tmp_path: Path) -> None:
    """A session kept in a file can be played back."""
    (tmp_path / "in").write_bytes(PACKAGE)
    with (tmp_path / "in").open("rb") as stdin, (tmp_path / "out").open("wb") as stdout:
        code = subprocess.call(
            [*COMMAND, "--stdio", str(tmp_path / "M")],
            stdin=stdin,
            stdout=stdout,
            timeout=DEADLINE_S,
        )
    assert code == 0
    assert b":Kok " in (tmp_path / "out").read_bytes()


@pytest.mark.parametrize(("redirection", "name"), [("<&-", "input"), (">&-", "output")])
def test_stdio_that_is_closed(tmp_path: Path, redirection: str, name: str) -> None:
    """Else the maildir's own descriptor would be taken for the client."""
    done = subprocess.run(
        ["sh", "-c", f'exec "$@" {redirection}', "sh", *COMMAND, "--stdio", str(tmp_path / "M")],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        timeout=DEADLINE_S,
        check=False,
    )
    assert done.returncode == 100
    assert f"standard {name} is closed".encode() in done.stderr


@pytest.mark.parametrize("redirection", ["2>&-", "2>/dev/full"])
def test_mail_goes_on_without_a_log(tmp_path: Path, redirection: str) -> None:
    """A full disk under the log must not stop the mail."""
    done = subprocess.run(
        ["sh", "-c", f'exec "$@" {redirection}', "sh", *COMMAND, "--stdio", "-v", str(tmp_path)],
        input=PACKAGE,
        stdout=subprocess.PIPE,
        timeout=DEADLINE_S,
        check=False,
    )
    assert b":Kok " in done.stdout
    # Python's own flush at exit may still complain with its 120; the mail is in all the same.
    assert done.returncode in (0, 120)


def test_no_stderr_at_all(tmp_path: Path) -> None:
    """A daemon that was started with its descriptors closed still takes mail."""
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" 2>&-', "sh", *command("qmtpmaildir"), "--stdio", tmp_path / "M"],
        input=PACKAGE,
        stdout=subprocess.PIPE,
        timeout=DEADLINE_S,
        check=False,
    )
    assert b":Kok " in done.stdout
    assert len(names(tmp_path / "M" / "new")) == 1


def test_a_log_without_stderr_says_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Python sets `sys.stderr` to None where descriptor 2 was closed."""
    monkeypatch.setattr(sys, "stderr", None)
    stderr_log(Severity.INFO)(Severity.ERROR, "nobody hears")
    assert capsys.readouterr().out == ""


def test_sigterm(tmp_path: Path) -> None:
    """What systemd sends: what was complete is answered, and the exit code is 0."""
    with server(str(tmp_path / "M")) as (process, address):
        with socket.create_connection(address, DEADLINE_S) as client:
            client.sendall(PACKAGE + PACKAGE[:9])
            answer = client.recv(1_000)
            process.send_signal(signal.SIGTERM)
            while data := client.recv(1_000):
                answer += data
        assert process.wait(DEADLINE_S) == 0
        assert answer.count(b"K") == 1
        assert process.stderr is not None
        assert process.stderr.read() == "qmtpmaildir: stopping\n"
    assert len(list((tmp_path / "M" / "new").iterdir())) == 1
    assert list((tmp_path / "M" / "tmp").iterdir()) == []


@pytest.mark.usefixtures("hang_up")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_what_is_handed_on_at_the_stop_is_answered(tmp_path: Path, number: signal.Signals) -> None:
    """Also where the terminal is gone: without an answer it is sent again, and comes twice."""
    began, go_on = tmp_path / "began", tmp_path / "go on"
    for fifo in (began, go_on):
        os.mkfifo(fifo)
    words = ["sh", "-c", 'echo "$1" >"$2"; read _ <"$3"', "sh", "{recipient}", began, go_on]
    with server("--deliver", "exec:" + shlex.join(map(str, words))) as (process, address):
        with socket.create_connection(address, DEADLINE_S) as client:
            client.sendall(PACKAGE)
            assert began.read_text() == "c@example.org\n"
            process.send_signal(number)
            assert process.stderr is not None
            assert process.stderr.readline() == "qmtpmaildir: stopping\n"
            go_on.write_text("\n")
            assert b"Kok" in client.recv(1_000)
        assert process.wait(DEADLINE_S) == 0


def test_it_goes_on_without_its_terminal_under_nohup(tmp_path: Path) -> None:
    """Its caller ignores SIGHUP, and so does it."""
    ignoring = ("sh", "-c", 'trap "" HUP && exec "$@"', "sh")
    with (
        server(str(tmp_path / "M"), wrapper=ignoring) as (process, address),
        socket.create_connection(address, DEADLINE_S) as client,
    ):
        process.send_signal(signal.SIGHUP)
        client.sendall(PACKAGE)
        assert b"Kok" in client.recv(1_000)


@pytest.mark.parametrize("order", [1, -1])
def test_both_wildcards_at_one_port(order: int) -> None:
    """As other servers take them; [::] alone takes IPv4 as well."""
    if not socket.has_dualstack_ipv6():
        pytest.skip("no IPv6 here")
    port = closed_port()
    listen = [f"0.0.0.0:{port}", f"[::]:{port}"][::order]
    options = make_parser().parse_args([f"--listen={place}" for place in listen])
    with open_listeners(options) as listeners:
        assert [where(listener) for listener in listeners] == listen
        for address in ("127.0.0.1", "::1"):
            socket.create_connection((address, port), DEADLINE_S).close()
    options = make_parser().parse_args([f"--listen=[::]:{port}"])
    with open_listeners(options):
        socket.create_connection(("127.0.0.1", port), DEADLINE_S).close()


def test_sigkill_amid_a_large_package(tmp_path: Path) -> None:
    """Nothing is left for anybody to clean up, or to take for mail."""
    with (
        server(str(tmp_path / "M")) as (process, address),
        socket.create_connection(address, DEADLINE_S) as client,
    ):
        client.sendall(PACKAGE + package_head(2_000_000) + b"x" * 1_000_000)
        assert client.recv(3) != b""
        process.kill()
        process.wait(DEADLINE_S)
    assert len(list((tmp_path / "M" / "new").iterdir())) == 1
    assert list((tmp_path / "M" / "tmp").iterdir()) == []


def test_as_many_clients_as_it_was_told(tmp_path: Path) -> None:
    """A shell's limit, usually of 1,024 descriptors, is not that of --max-connections."""
    many = ("--max-connections", "200", "--max-per-client", "200")
    limited = ("sh", "-c", 'ulimit -Sn 64 && exec "$@"', "sh")
    with contextlib.ExitStack() as stack:
        _, address = stack.enter_context(server(*many, str(tmp_path / "M"), wrapper=limited))
        for _ in range(100):
            client = stack.enter_context(socket.create_connection(address, DEADLINE_S))
            client.sendall(PACKAGE)
            assert b"K" in client.recv(1_000)


def test_sigint_in_this_process(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Control-C is a clean stop as well, and the caller's own handlers come back."""
    before = signal.getsignal(signal.SIGINT)
    listening = threading.Event()

    class Stderr:
        def write(self, text: str) -> int:
            if "listening on" in text:
                listening.set()
            return len(text)

        def flush(self) -> None:
            pass

    def interrupt() -> None:
        listening.wait(DEADLINE_S)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with contextlib.redirect_stderr(Stderr()):
        assert main(["--listen", "127.0.0.1:0", str(tmp_path / "M")]) == 0
    thread.join()
    assert signal.getsignal(signal.SIGINT) is before


def under_inetd(arguments: list[str], data: bytes) -> bytes:
    """Run it with the client's socket on all three descriptors; return what the client gets."""
    ours, theirs = socket.socketpair()
    with ours:
        ours.settimeout(DEADLINE_S)
        with theirs:
            fd = theirs.fileno()
            process = subprocess.Popen([*COMMAND, *arguments], stdin=fd, stdout=fd, stderr=fd)
        with process:
            ours.sendall(data)
            ours.shutdown(socket.SHUT_WR)
            got = b""
            while more := ours.recv(1_000):
                got += more
    return got


def test_under_inetd_no_line_of_the_log_gets_between_the_answers(tmp_path: Path) -> None:
    """The client would take it for a broken server, and send again what was accepted, each time."""
    options = ["--stdio", "-v", "--domain", "example.org", str(tmp_path / "M")]
    reader = ResponseReader()
    reader.feed(under_inetd(options, OUTSIDE + PACKAGE))
    answers = [reader.next(), reader.next()]
    assert [str(answer)[0] for answer in answers] == ["D", "K"]
    assert not reader.pending


@pytest.mark.parametrize("options", [["--stdio"], ["--stdio", "--no-such-option"]])
def test_under_inetd_wrong_usage_is_not_told_to_the_client(options: list[str]) -> None:
    """It is nothing that it could read, and none of its business."""
    assert under_inetd(options, b"") == b""


def test_what_inetd_has_no_place_for_is_in_syslog(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line each, for mail.*; else nobody would know why mail is refused."""
    said: list[tuple[int, str]] = []
    monkeypatch.setattr(syslog, "syslog", lambda *line: said.append(line))
    monkeypatch.setattr(sys, "stderr", syslog_stderr._SyslogStderr("qmtpmaildir"))
    stderr_log(Severity.NOTICE)(Severity.NOTICE, "one")
    stderr_log(Severity.NOTICE)(Severity.INFO, "left out")
    sys.stderr.write("two\nthree\n")
    assert [line for _, line in said] == ["one", "two", "three"]


def test_stdio_in_this_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        stream = StdioStream(ours.fileno(), ours.fileno())
        monkeypatch.setattr(qmtpmaildir, "StdioStream", lambda: stream)
        theirs.sendall(PACKAGE + b"x")
        theirs.shutdown(socket.SHUT_WR)
        assert main(["--stdio", "-q", "--domain", "example.org", str(tmp_path / "M")]) == 111
        assert b"Kok" in theirs.recv(1_000)


def test_closed_stdin_in_this_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.fstat

    def fstat(fd: int) -> os.stat_result:
        if fd == 1:
            raise OSError
        return real(fd)

    monkeypatch.setattr(os, "fstat", fstat)
    assert main(["--stdio", str(tmp_path / "M")]) == 100
