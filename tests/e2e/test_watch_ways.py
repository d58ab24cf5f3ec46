"""The daemon over TLS, commands and Unix sockets: idle ends, restarts, and being told to stop."""

from __future__ import annotations

import contextlib
import shlex
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.certificates import Authority, Identity, over_tls
from tests.e2e.daemons import deliver, watching
from tests.helpers import Peer, command, names, runs, serving, wait_until
from tests.receiving import delivered, receiver

# Of use where other tests have taken all inotify instances of the machine.
OFTEN = ("--rescan", "1")
RECEIVER = shlex.join(command("qmtpmaildir"))


def empties(maildir: Path) -> None:
    """Wait until all is sent."""
    wait_until(lambda: not names(maildir / "new"), "the maildir to be empty")


@pytest.mark.parametrize("way", ["qmtps", "unix", "exec"])
def test_it_connects_again_after_an_idle_end(
    maildir: Path, tmp_path: Path, authority: Authority, identity: Identity, way: str
) -> None:
    """Each message is there once, whether the connection was still open for it or not."""
    there = tmp_path / "there"
    flags = ["--idle-timeout", "0.05"]
    with contextlib.ExitStack() as stack:
        if way == "exec":
            server = f"exec:{RECEIVER} --stdio {shlex.quote(str(there))}"
        elif way == "unix":
            listen = ("--listen", f"unix:{tmp_path}/socket")
            _, server = stack.enter_context(receiver(there, *listen))
        else:
            secured = ("--tls-cert", identity.cert, "--tls-key", identity.key)
            _, address = stack.enter_context(receiver(there, *secured))
            server = f"qmtps://{address}"
            flags += ["--tls-ca", authority.file]
        daemon = stack.enter_context(watching("--watch", "-v", maildir, server, *flags, *OFTEN))
        for number in range(4):
            deliver(maildir, f"{number}.x", b"%d\n" % number)
            empties(maildir)
            if number == 1:
                wait_until(lambda: no_connection(daemon.process.pid), "the idle end")
        assert daemon.stop() == 0
        assert daemon.log.count(f"connected to {server}") >= 2
        assert "Traceback" not in daemon.log
    assert delivered(there) == [b"%d\n" % number for number in range(4)]


def no_connection(pid: int) -> bool:
    """Say whether a process has no connected socket, and no child."""
    process = Path(f"/proc/{pid}")
    try:
        children = "".join((task / "children").read_text() for task in (process / "task").iterdir())
        links = [str(fd.readlink()) for fd in (process / "fd").iterdir()]
    except FileNotFoundError:  # one of them was closed, or ended, while we looked
        return False
    return not children.split() and not any(link.startswith("socket:") for link in links)


def test_idle_ends_without_farewell_are_no_trouble(
    maildir: Path, authority: Authority, identity: Identity
) -> None:
    """Many servers just close; nothing was under way, so nothing is lost, doubled or delayed."""

    def one_each(peer: Peer) -> None:
        if peer.read_package() is not None:
            peer.respond(b"Kok")

    flags = ["--tls-ca", authority.file, *OFTEN]
    with (
        serving(over_tls(identity.context(), one_each, farewell=False)) as server,
        watching("--watch", maildir, f"qmtps://{server.address}", *flags) as daemon,
    ):
        for number in range(5):
            deliver(maildir, f"{number}.x")
            empties(maildir)
        assert len(server.packages) == 5
        assert daemon.stop() == 0
        assert "in doubt" not in daemon.log.replace("0 in doubt", "")
        assert "next try" not in daemon.log


def test_a_server_that_comes_back_with_another_certificate(
    maildir: Path, tmp_path: Path, authority: Authority, identity: Identity
) -> None:
    """Nothing goes to it, nothing bounces; all goes once the right one is there again."""
    stranger = Authority(tmp_path, "stranger").issue("127.0.0.1")
    shown = [stranger]

    def script(peer: Peer) -> None:
        def answer(peer: Peer) -> None:
            while peer.read_package() is not None:
                peer.respond(b"Kok")

        over_tls(shown[0].context(), answer)(peer)

    flags = ["--tls-ca", authority.file, "--lifetime", "0s", "--bounce", *OFTEN]
    flags += ["--bounce-via", f"maildir:{tmp_path}/bounces"]
    with (
        serving(script) as server,
        watching("--watch", maildir, f"qmtps://{server.address}", *flags) as daemon,
    ):
        for number in range(3):
            deliver(maildir, f"{number}.x")
        daemon.wait_for("certificate is not trusted")
        assert len(names(maildir / "new")) == 3
        assert not server.packages
        shown[0] = identity
        daemon.send(signal.SIGALRM)
        empties(maildir)
        assert len(server.packages) == 3
        assert daemon.stop() == 0
    assert names(tmp_path / "bounces") == []


def test_a_command_that_dies_is_started_again(maildir: Path, tmp_path: Path) -> None:
    """After a back-off; what it said is in the log, and no process is left of it."""
    broken = tmp_path / "broken"
    broken.touch()
    there = shlex.quote(str(tmp_path / "there"))
    script = f"if test -e {broken}; then echo no route >&2; exit 255; fi; exec {RECEIVER} --stdio "
    with watching(
        "--watch", maildir, f"exec:sh -c {shlex.quote(script + there)}", *OFTEN
    ) as daemon:
        deliver(maildir, "1.x")
        daemon.wait_for("sh: no route")
        daemon.wait_for("sh exited with status 255; what is left stays as it is; 1 waiting")
        assert names(maildir / "new") == ["1.x"]
        broken.unlink()
        daemon.send(signal.SIGALRM)
        empties(maildir)
        assert daemon.stop() == 0
    assert len(delivered(tmp_path / "there")) == 1


@contextlib.contextmanager
def silent() -> Iterator[tuple[str, threading.Event]]:
    """Run a server that takes connections, and what comes, and says nothing."""
    came = threading.Event()

    def script(peer: Peer) -> None:
        while peer.socket.recv(1 << 16):
            came.set()

    with serving(script) as server:
        yield server.address, came


@pytest.mark.parametrize("watch", [True, False], ids=["daemon", "batch"])
def test_term_in_a_handshake_ends_it_at_once(maildir: Path, watch: bool) -> None:
    """Nothing is in flight before it is known who the server is."""
    deliver(maildir, "1.x")
    mode = ["--watch", *OFTEN] if watch else []
    with silent() as (server, came), watching(*mode, maildir, f"qmtps://{server}") as process:
        assert came.wait(30)  # our half of the handshake
        process.send(signal.SIGTERM)
        assert process.process.wait(15) == (0 if watch else 111)
        assert "Traceback" not in process.log
    assert names(maildir / "new") == ["1.x"]


def test_two_terms_leave_no_command_behind(maildir: Path, tmp_path: Path) -> None:
    """One that hangs has a message in flight, for which the first one waits."""
    deliver(maildir, "1.x")
    script = f"head -c 1 >/dev/null; echo $$ >{tmp_path}/part; mv {tmp_path}/part {tmp_path}/pid; "
    script += "sleep 1000; true"
    with watching("--watch", maildir, f"exec:sh -c {shlex.quote(script)}", *OFTEN) as daemon:
        wait_until(lambda: (tmp_path / "pid").exists(), "the command to have read of the message")
        pid = int((tmp_path / "pid").read_text())
        daemon.send(signal.SIGTERM)
        daemon.wait_for("stopping")
        assert runs(pid)
        daemon.send(signal.SIGTERM)
        assert daemon.process.wait(15) == 111
    wait_until(lambda: not runs(pid), "the command to end")
    assert names(maildir / "new") == ["1.x"]
