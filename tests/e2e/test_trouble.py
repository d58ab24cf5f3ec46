"""When this machine, the network or the command line is the trouble.

Each says what is wrong, with its name, and has the right exit code; nothing is
lost, and nothing changes.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.daemons import is_connecting
from tests.helpers import (
    DEADLINE_S,
    Package,
    Peer,
    add_message,
    add_sidecar,
    answer_all,
    command,
    make_maildir,
    names,
    run,
    serving,
    sidecar,
    snapshot,
    start,
    wait_until,
)


@pytest.fixture
def maildir(path: Path) -> Path:
    """A maildir with three messages, one of them with a sidecar and one large."""
    add_message(path, "1.m", b"one\n")
    add_message(path, "2.m", b"two\n")
    add_sidecar(path, "2.m", "s@x", "a@y")
    add_message(path, "3.m", b"x" * 2_000_000)
    return path


class Immutable:
    """A directory in which nothing can be made and nothing removed, not even by root."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.frozen = False

    def freeze(self) -> None:
        """Begin; where that does not work, the test is skipped."""
        if os.geteuid() == 0:
            if not self._chattr("+i"):
                pytest.skip("NOT TESTED: as root, this needs chattr +i on this file system")
        else:
            self.path.chmod(0o500)
        self.frozen = True

    def thaw(self) -> None:
        """End; harmless twice."""
        if self.frozen:
            if os.geteuid() == 0:
                assert self._chattr("-i")
            else:
                self.path.chmod(0o700)
            self.frozen = False

    def _chattr(self, flag: str) -> bool:
        if not shutil.which("chattr"):
            return False
        done = subprocess.run(["chattr", flag, self.path], capture_output=True, check=False)
        return done.returncode == 0


@pytest.fixture
def new(maildir: Path) -> Iterator[Immutable]:
    """The maildir's new/, which can be made immutable; it is no longer at the end."""
    directory = Immutable(maildir / "new")
    directory.freeze()  # skips here, not in the middle of a story
    directory.thaw()
    yield directory
    directory.thaw()


# The network


@pytest.mark.parametrize("flags", [(), ("-q",)])
@pytest.mark.parametrize(
    ("host", "what"),
    [
        ("127.0.0.1:{port}", "cannot connect to 127.0.0.1:{port}: 127.0.0.1: Connection refused"),
        ("qmtp://[::1]:{port}", "cannot connect to [::1]:{port}: ::1: "),
        ("nosuch.invalid", "cannot find the host nosuch.invalid: "),
        ("nosuch.invalid:{port}", "cannot find the host nosuch.invalid: "),
    ],
)
def test_unreachable_server(maildir: Path, host: str, what: str, flags: tuple[str, ...]) -> None:
    """The network is down: cron tries again later, and no message has come to harm."""
    before = snapshot(maildir)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and not listening: nobody else can
        port = taken.getsockname()[1]
        # Old enough to be given up on, if this counted as a deferral.
        result = run(*flags, "--lifetime", "0", maildir, host.format(port=port))
    assert result.returncode == 111
    assert snapshot(maildir) == before
    line, *rest = result.stderr.splitlines()
    assert line.startswith(f"maildirqmtp: {what.format(port=port)}")
    assert line.endswith("; nothing has happened to the messages that are left (3 left)")
    assert len(rest) == (0 if flags else 1)
    assert result.stdout == ""


def test_server_that_goes_away_for_good(maildir: Path) -> None:
    """What it has taken is settled; the rest is as it was."""
    before = snapshot(maildir)

    def script(peer: Peer) -> None:
        peer.read_package()
        peer.server.stop_listening()
        peer.respond(b"Kok")

    with serving(script) as server:
        result = run("--window", "1", maildir, server.address)
    assert result.returncode == 111
    before.pop("new/1.m")
    assert snapshot(maildir) == before
    assert f"cannot connect to {server.address}" in result.stderr
    assert "1 accepted, 0 deferred, 0 failed, 0 held, " in result.stderr
    assert "2 left" in result.stderr


def test_server_that_resets_each_connection(maildir: Path) -> None:
    """As a firewall does: what was not answered is kept, and the run ends by itself."""
    before = snapshot(maildir)

    def script(peer: Peer) -> None:
        assert peer.read_package()
        # Linger for no time: the kernel sends a reset instead of an orderly end.
        peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    with serving(script) as server:
        result = run(maildir, server.address)
    assert result.returncode == 111
    assert snapshot(maildir) == before
    assert f"connection to {server.address} broke while reading: Connection reset" in result.stderr
    assert "maildirqmtp: 0 accepted, " in result.stderr


# The maildir


@pytest.mark.parametrize(
    ("broken", "instead", "why"),
    [
        ("", "", "No such file or directory; check the path"),
        ("new", "", "No such file or directory; is it a maildir?"),
        ("cur", "", "No such file or directory; is it a maildir?"),
        ("tmp", "", "No such file or directory; is it a maildir?"),
        ("", "file", "Not a directory; check the path"),
        ("new", "link", "it is a symbolic link, which is not followed; is it a maildir?"),
        ("envelope", "file", "Not a directory; is it a maildir?"),
    ],
)
@pytest.mark.parametrize("flags", [(), ("-q",), ("--dry-run",)])
def test_what_is_no_maildir(
    maildir: Path, broken: str, instead: str, why: str, flags: tuple[str, ...]
) -> None:
    """A typing error in a crontab is told as what it is; nothing is made in its place."""
    path = maildir / broken if broken else maildir
    shutil.rmtree(path)
    if instead == "file":
        path.touch()
    elif instead == "link":
        path.symlink_to("cur")
    before = snapshot(maildir.parent)
    with serving(answer_all()) as server:
        result = run(*flags, maildir, server.address)
    assert server.connections == 0
    assert result.returncode == 111
    assert f"cannot open the maildir directory {path}: {why}" in result.stderr
    assert snapshot(maildir.parent) == before
    assert result.stdout == ""


def test_a_maildir_that_cannot_be_changed_sends_nothing(maildir: Path, new: Immutable) -> None:
    """What could not be removed would be sent again by each run, for ever."""
    before = snapshot(maildir)
    new.freeze()
    with serving(answer_all()) as server:
        result = run(maildir, server.address)
    new.thaw()
    assert server.connections == 0
    assert result.returncode == 111
    assert snapshot(maildir) == before
    assert f"cannot change {maildir}/new: " in result.stderr
    assert "nothing was sent" in result.stderr


def test_nothing_of_ours_in_a_maildir_that_cannot_be_changed(maildir: Path, new: Immutable) -> None:
    """Where there is nothing to forward, there is nothing to complain about."""
    new.freeze()
    with serving(answer_all()) as server:
        result = run(maildir, "pre-", server.address)
    assert server.connections == 0
    assert result.returncode == 0


def test_a_removal_that_fails_is_tried_again_and_nothing_sent_twice(
    maildir: Path, new: Immutable
) -> None:
    """The file system turns read-only for a moment, just as the server has taken a message."""
    add_message(maildir, "4.m", b"four\n")
    lines: list[str] = []

    def script(peer: Peer) -> None:
        peer.read_package()
        peer.respond(b"Kok")
        for _ in range(3):
            assert peer.read_package()
        new.freeze()
        peer.respond(b"Kok")
        wait_until(lambda: any("cannot remove" in line for line in lines), "the client's trouble")
        new.thaw()
        peer.respond(b"Kok", b"Kok")
        assert peer.read_package() is None

    with serving(script) as server, start(maildir, server.address) as process:
        assert process.stderr is not None
        for line in process.stderr:
            lines.append(line)
        assert process.wait(DEADLINE_S) == 111
    assert len(server.packages) == 4
    assert names(maildir / "new") == []
    assert f"cannot remove {maildir}/new/2.m: " in lines[0]
    assert lines[0].endswith("; nothing more is taken from this maildir\n")


def test_a_removal_that_fails_for_good_is_said(maildir: Path, new: Immutable) -> None:
    """The administrator has to know which message the server has already."""

    def script(peer: Peer) -> None:
        peer.read_package()
        new.freeze()
        peer.respond(b"Kok")
        assert peer.read_package() is None

    before = snapshot(maildir)
    with serving(script) as server:
        result = run("-q", "--window", "1", maildir, server.address)
    new.thaw()
    assert result.returncode == 111
    assert snapshot(maildir) == before
    assert "the server has taken 1.m, but cannot remove " in result.stderr
    assert "remove it by hand, or it will be sent again" in result.stderr


@pytest.mark.parametrize("flag", ["--sent", "--failed"])
def test_a_target_that_cannot_be_made(maildir: Path, tmp_path: Path, flag: str) -> None:
    """A wrong path must not have the same mail sent again by each run."""
    before = snapshot(maildir)
    target = tmp_path / "missing" / "target"
    answer = b"Kok" if flag == "--sent" else b"Dno"
    with serving(answer_all(lambda package, recipient: answer)) as server:
        result = run(flag, target, maildir, server.address)
    assert result.returncode == 111
    assert snapshot(maildir) == before
    assert f"cannot make the directory {target}: No such file or directory" in result.stderr
    if flag == "--sent":
        assert server.packages == []


def test_accepted_recipients_are_noted_although_failed_ones_cannot_be(
    maildir: Path, tmp_path: Path
) -> None:
    """A wrong --failed must not send the message again to those who have it, at each run."""
    (maildir / "new" / "2.m").unlink()
    (maildir / "new" / "3.m").unlink()
    content = (maildir / "new" / "1.m").read_bytes()

    def answer(package: Package, recipient: bytes) -> bytes:
        return b"Kok" if recipient == b"k@y" else b"Dno"

    flags = ("--failed", tmp_path / "missing" / "target", "--recipient", "k@y")
    with serving(answer_all(answer)) as server:
        result = run(*flags, "--recipient", "d@y", maildir, server.address)
        assert result.returncode == 111
        assert sidecar(maildir, "1.m")["recipients"] == ["d@y"]
        run(*flags, maildir, server.address)
    assert [p.recipients for p in server.packages] == [(b"k@y", b"d@y"), (b"d@y",)]
    assert (maildir / "new" / "1.m").read_bytes() == content


def test_a_sent_maildir_that_cannot_be_changed_sends_nothing(
    maildir: Path, tmp_path: Path, new: Immutable
) -> None:
    """What could not be moved there would be sent again by each run."""
    before = snapshot(maildir)
    sent = make_maildir(tmp_path / "sent")
    directory = Immutable(sent / "new")
    directory.freeze()
    try:
        with serving(answer_all()) as server:
            result = run("--sent", sent, maildir, server.address)
    finally:
        directory.thaw()
    assert server.packages == []
    assert result.returncode == 111
    assert snapshot(maildir) == before
    assert str(sent) in result.stderr


def test_tmp_is_cleaned_of_what_nobody_touched_for_36_hours(maildir: Path) -> None:
    """Rubbish of crashed writers goes (maildir(5)); mail that is being written does not."""
    hours = {"fresh": 0.0, "young": 35.9, "old": 36.1, "ancient": 9999.0}
    for name, age_h in hours.items():
        (maildir / "tmp" / name).write_bytes(b"half a mess")
        then = time.time() - age_h * 3600
        os.utime(maildir / "tmp" / name, (then, then))
    with serving(answer_all()) as server:
        assert run(maildir, server.address).returncode == 0
    assert names(maildir / "tmp") == ["fresh", "young"]


# Two at once


def test_a_second_forwarder_is_told_who_is_at_work(maildir: Path) -> None:
    """Two cron jobs that overlap would send everything twice."""
    asked = threading.Event()

    def script(peer: Peer) -> None:
        assert peer.read_package()
        asked.set()
        second.wait(DEADLINE_S)
        peer.respond(b"Kok")
        answer_all()(peer)

    second = threading.Event()
    with serving(script) as server, start(maildir, server.address) as first:
        assert asked.wait(DEADLINE_S)
        before = snapshot(maildir)
        result = run(maildir, server.address)
        assert snapshot(maildir) == before
        second.set()
        assert first.wait(DEADLINE_S) == 0
    assert result.returncode == 111
    assert f"{maildir} is locked by process {first.pid}; " in result.stderr
    assert server.connections == 1
    assert len(server.packages) == 3


def test_the_lock_goes_with_the_process(maildir: Path) -> None:
    """No lock file is left that would stop all later runs after a crash."""
    fd = os.open(maildir, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    with serving(answer_all()) as server:
        assert run(maildir, server.address).returncode == 111
        assert run("--dry-run", maildir, server.address).returncode == 0
        os.close(fd)
        assert run(maildir, server.address).returncode == 0


# Wrong usage

USAGE = [
    ((), "DIR and SERVER"),
    (("DIR",), "DIR and SERVER"),
    (("DIR", "pre-", "host", "more"), "DIR and SERVER"),
    (("DIR", "host:0"), "a port is a number from 1 to 65535"),
    (("DIR", "host:65536"), "a port is a number from 1 to 65535"),
    (("DIR", "host:smtp"), "a port is a number from 1 to 65535"),
    (("DIR", "host:"), "a port is a number from 1 to 65535"),
    (("--port", "x", "DIR", "host"), "--port: a port is a number"),
    (("DIR", ""), "no host name"),
    (("DIR", "a@b"), "no host name"),
    (("DIR", "[::1"), "[::1]:PORT"),
    (("DIR", "host:209:"), "no IPv6 address"),
    (("DIR", "unix:"), "a socket's path is needed"),
    (("DIR", "exec:ssh 'mx"), "No closing quotation"),
    (("DIR", "smtp://host"), "this way is not known"),
    (("--tls-ca", "/ca.pem", "DIR", "host"), "write qmtps://NAME"),
    (("--nosuch", "DIR", "host"), "--nosuch"),
    (("--jso", "DIR", "host"), "--jso"),
    (("--window",), "--window"),
    (("--window", "0", "DIR", "host"), "--window"),
    (("--window", "1,x", "DIR", "host"), "--window"),
    (("--lifetime", "soon", "DIR", "host"), "--lifetime: a time is a number"),
    (("--lifetime", "-1", "DIR", "host"), "--lifetime"),
    (("--connect-timeout", "0", "DIR", "host"), "--connect-timeout: more than 0 seconds"),
    (("--write-timeout", "1x", "DIR", "host"), "--write-timeout: a time is a number"),
    (("--response-timeout", "", "DIR", "host"), "--response-timeout: a time is a number"),
    (("--sent", "DIR", "DIR", "host"), "--sent: DIR is the maildir that is forwarded"),
    (("--sent", "DIR/../DIR/", "DIR", "host"), "--sent: "),
    (("--failed", "DIR", "DIR", "host"), "--failed: DIR is the maildir that is forwarded"),
    (("--recipient", "", "DIR", "host"), "--recipient: "),
    (("--recipient", "a\nb", "DIR", "host"), "--recipient: "),
    (("--sender", "a" * 1000, "DIR", "host"), "--sender: sender of 1000 bytes"),
    (("--demo", "DIR", "host"), "--demo"),
]


@pytest.mark.parametrize(("arguments", "what"), USAGE, ids=[" ".join(u[0])[:40] for u in USAGE])
def test_wrong_usage(
    maildir: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], what: str
) -> None:
    """Exit code 100 means to whoever calls us: do not try again, mend the command line."""
    monkeypatch.chdir(maildir.parent)
    maildir.rename("DIR")
    before = snapshot(maildir.parent)
    result = run(*arguments)
    assert result.returncode == 100
    assert snapshot(maildir.parent) == before
    (line,) = result.stderr.splitlines()
    assert line.startswith("maildirqmtp: ")
    assert line.endswith("; try maildirqmtp --help")
    assert what in line
    assert result.stdout == ""


@pytest.mark.parametrize("flag", ["--help", "--version"])
def test_help_and_version_are_no_error(flag: str) -> None:
    """They are what was asked for: standard output, exit code 0."""
    result = run(flag)
    assert result.returncode == 0
    assert result.stdout.startswith({"--help": "usage: ", "--version": "maildirqmtp "}[flag])
    assert result.stderr == ""


# Output that goes nowhere


@pytest.mark.parametrize("where", ["full", "closed"])
def test_output_that_cannot_be_written_stops_no_mail(maildir: Path, where: str) -> None:
    """The disk of the log is full, or cron closed it: what was accepted is removed all the same."""
    with serving(answer_all()) as server:
        result = _with_output(where, ">", "2>", "-v", "--json", maildir, server.address)
    assert len(server.packages) == 3
    assert names(maildir / "new") == []
    assert result.returncode == (111 if where == "full" else 0)


@pytest.mark.parametrize(
    ("where", "code", "said"),
    [("full", 111, "maildirqmtp: standard output: No space left on device\n"), ("closed", 0, "")],
)
def test_listing_that_cannot_be_written(
    maildir: Path, monkeypatch: pytest.MonkeyPatch, where: str, code: int, said: str
) -> None:
    """A listing that is not complete must not look as if it were."""
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    result = _with_output(where, ">", "", "--dry-run", maildir, "host")
    assert (result.returncode, result.stderr) == (code, said)


@pytest.mark.parametrize("where", ["full", "closed"])
def test_a_complaint_that_cannot_be_written_costs_no_listing(
    maildir: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """What can be sent is listed all the same; the exit code says that it is not all."""
    (maildir / "new" / "0.m").write_bytes(b"no envelope\n")
    for unbuffered in (False, True):
        if unbuffered:
            monkeypatch.setenv("PYTHONUNBUFFERED", "1")
        else:
            monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
        result = _with_output(where, "", "2>", "--dry-run", maildir, "host")
        assert (result.returncode, len(result.stdout.splitlines())) == (111, 3)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--dry-run", "/nonexistent", "host"], 111),
        (["--config", "/nonexistent"], 100),
        (["--enqueue", "/nonexistent", "--sender=a@b", "--recipient=c@d"], 111),
    ],
)
def test_an_error_that_cannot_be_written_is_an_exit_code(arguments: list[str], code: int) -> None:
    """One of ours, and not what Python makes of it."""
    assert _with_output("full", "", "2>", *arguments).returncode == code


def test_a_demo_that_nobody_could_see() -> None:
    """Whoever tries it in a script is told that there was nothing to be read."""
    result = _with_output("full", ">", "", "--demo")
    assert result.returncode == 111
    assert result.stderr.endswith("maildirqmtp: standard output: No space left on device\n")


@pytest.mark.parametrize("what", ["list", "show"])
def test_a_list_that_nobody_could_see(maildir: Path, what: str) -> None:
    """A report on a full disk: an exit code without a word leaves the administrator guessing."""
    add_message(maildir, "1.m")
    result = _with_output("full", ">", "", what, maildir, "1.m", program="qmtpq")
    assert result.returncode == 111
    assert result.stderr == "qmtpq: standard output: No space left on device\n"


def _with_output(
    where: str, stdout: str, stderr: str, *arguments: str | Path, program: str = "maildirqmtp"
) -> subprocess.CompletedProcess[str]:
    """Run a program with these streams redirected by a shell, to /dev/full or closed."""
    if not Path("/dev/full").exists():
        pytest.skip("NOT TESTED: there is no /dev/full")
    target = {"full": "/dev/full", "closed": "&-"}[where]
    redirections = " ".join(stream + target for stream in (stdout, stderr) if stream)
    return subprocess.run(
        ["/bin/sh", "-c", f'exec "$@" {redirections}', "sh", *command(program), *arguments],
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )


def test_a_terminal_that_cannot_show_an_address(
    maildir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In an old locale, an address in UTF-8 must not end the listing."""
    add_message(maildir, "1.m", recipient="ü@y".encode())
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    result = run("--dry-run", maildir, "host")
    assert result.stdout.startswith("1.m: <sender@example.org> to \\xfc@y, ")
    assert len(result.stdout.splitlines()) == 3
    assert result.returncode == 0


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Let what a test starts obey SIGINT: in the background of a shell it would be ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_interrupting_a_listing(maildir: Path) -> None:
    """Control-C is no reason for a traceback."""
    for number in range(2_000):
        add_message(maildir, f"{number}.more", recipient=b"a-long-recipient@example.net")
    with start("--dry-run", maildir, "host") as process:
        assert process.stdout is not None
        pipe = process.stdout.fileno()
        # It has begun, and cannot end: all of it is more than a pipe holds.
        wait_until(lambda: _waiting_bytes(pipe) > 0, "the listing to begin")
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 111
    assert stderr == ""


def _waiting_bytes(pipe: int) -> int:
    return int.from_bytes(fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)), sys.byteorder)


# Told to stop


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_settles_what_is_in_flight(tmp_path: Path, number: signal.Signals) -> None:
    """A shutdown: what the server still answers is taken in, and nothing more is sent."""
    maildir = make_maildir(tmp_path / "maildir")
    for message in range(10):
        add_message(maildir, f"{message}.m", b"%d\n" % message)

    def script(peer: Peer) -> None:
        peer.read_package()
        peer.respond(b"Kok")
        for _ in range(4):
            assert peer.read_package()
        process.send_signal(number)
        peer.respond(b"Kok")
        peer.respond(b"Zbusy")
        peer.respond(b"Dno")
        peer.respond(b"Kok")
        assert peer.read_package() is None

    with serving(script) as server, start("--window", "4", maildir, server.address) as process:
        stdout, stderr = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 111
    assert len(server.packages) == 5
    assert names(maildir / "new") == ["2.m", *(f"{n}.m" for n in range(5, 10))]
    assert names(maildir / ".Failed" / "new") == ["3.m"]
    assert "stopped before the end (5 left)" in stderr
    assert "3 accepted, 1 deferred, 1 failed, 0 held, 0 in doubt, 5 left, " in stderr
    assert stdout == ""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_when_all_is_in_flight_and_taken_exits_0(
    maildir: Path, number: signal.Signals
) -> None:
    """Nothing is left: to be told to stop is then no trouble."""

    def script(peer: Peer) -> None:
        peer.read_package()
        peer.respond(b"Kok")
        assert peer.read_package()
        assert peer.read_package()
        process.send_signal(number)
        peer.respond(b"Kok", b"Kok")
        assert peer.read_package() is None

    with serving(script) as server, start(maildir, server.address) as process:
        _, stderr = process.communicate(timeout=DEADLINE_S)
    assert (process.returncode, names(maildir / "new")) == (0, []), stderr
    assert "3 accepted, " in stderr


def test_a_signal_and_a_server_that_hangs_up(maildir: Path) -> None:
    """What was not answered is kept, said to be in doubt, and not sent by this run again."""
    before = snapshot(maildir)

    def script(peer: Peer) -> None:
        peer.read_package()
        peer.respond(b"Kok")
        assert peer.read_package()
        assert peer.read_package()
        process.send_signal(signal.SIGTERM)
        peer.respond(b"Kok")

    with serving(script) as server, start(maildir, server.address) as process:
        _, stderr = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 111
    assert server.connections == 1
    assert snapshot(maildir) == {"new/3.m": before["new/3.m"]}
    assert "3.m: recipient@example.net: in-doubt: not answered; it may have been taken" in stderr
    assert "2 accepted, 0 deferred, 0 failed, 0 held, 1 in doubt, 1 left, " in stderr


def test_a_signal_while_connecting(maildir: Path) -> None:
    """Nothing is in flight then, and nobody waits a minute for a host that does not answer."""
    if not Path("/proc/net/tcp").exists():
        pytest.skip("NOT TESTED: there is no /proc/net/tcp")
    before = snapshot(maildir)
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        host, port = full.getsockname()
        # A full queue of connections: the kernel lets whoever comes now wait.
        with (
            socket.create_connection((host, port)),
            start(maildir, f"{host}:{port}") as process,
        ):
            wait_until(lambda: is_connecting(process.pid), "the client to connect")
            process.terminate()
            _, stderr = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 111
    assert snapshot(maildir) == before
    assert "told to stop while connecting" in stderr
    assert "(3 left)" in stderr
    assert "Traceback" not in stderr
