"""Many routes in one process, end to end: what they share, and that none starves."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.certificates import Authority, Identity, over_tls
from tests.e2e.daemons import deliver, empties, now_name, supervisor, watching
from tests.helpers import (
    Peer,
    Script,
    ScriptedServer,
    add_message,
    answer_all,
    make_maildir,
    serving,
    wait_until,
)


def configure(
    tmp_path: Path, count: int, server: str, defaults: str = ""
) -> tuple[Path, list[Path]]:
    """Write a configuration of so many routes to a server; return it, and their maildirs."""
    maildirs = [make_maildir(tmp_path / f"m{number}") for number in range(count)]
    config = tmp_path / "config.toml"
    routes = [f'[[route]]\nmaildir = "{path}"\nserver = "{server}"\n' for path in maildirs]
    config.write_text("\n".join(["[defaults]", defaults, *routes]))
    return config, maildirs


class Limited:
    """A script of a server that reads from so many connections at a time: `tcpserver -c`."""

    def __init__(
        self,
        at_once: int,
        pause_s: float = 0.0,
        *,
        refuses: bool = False,
        within: Callable[[Script], Script] = lambda script: script,
    ) -> None:
        self._turn = threading.Semaphore(at_once)
        self._within = within
        self._refuses = refuses
        self._pause_s = pause_s

    def __call__(self, peer: Peer) -> None:
        """Serve a connection when it is its turn; or hang up where that is not now."""
        if self._turn.acquire(blocking=not self._refuses):
            try:
                self._within(self._answer)(peer)
            finally:
                self._turn.release()

    def _answer(self, peer: Peer) -> None:
        while (package := peer.read_package()) is not None:
            threading.Event().wait(self._pause_s)  # a slow server
            peer.respond(*[b"Kok"] * len(package.recipients))


def received(server: ScriptedServer) -> int:
    """Count the different texts that a server got."""
    return len({package.text for package in server.packages})


@pytest.mark.parametrize("refuses", [False, True])
def test_a_server_that_takes_two_connections(tmp_path: Path, refuses: bool) -> None:
    """Twelve routes to it, with the settings that come with it: all mail goes, once."""
    script = Limited(2, refuses=refuses)
    with serving(script) as server:
        config, maildirs = configure(tmp_path, 12, server.address)
        for number, maildir in enumerate(maildirs):
            for message in range(3):
                add_message(maildir, f"1.{message}", b"%d %d\n" % (number, message))
        with watching("--config", config) as daemon:
            wait_until(lambda: received(server) == 36, "all messages")
            for maildir in maildirs:
                empties(maildir)
            if not refuses:
                assert len(server.packages) == 36
                assert daemon.log.count("seems to take") >= 1
            assert daemon.stop() == 0, daemon.log


def test_one_message_beside_a_busy_route(tmp_path: Path) -> None:
    """`-c 1`: a route with thousands of messages leaves the connection to others in turn."""
    with serving(Limited(1, 0.005)) as server:
        config, (busy, quiet) = configure(tmp_path, 2, server.address)
        for number in range(6_000):
            add_message(busy, f"1.{number:05}", b"busy %d\n" % number)
        with watching("--config", config, "-q") as daemon:
            wait_until(lambda: len(server.packages) > 10, "the busy route at work")
            deliver(quiet, now_name(1), b"quiet\n")
            wait_until(lambda: any(b"quiet" in p.text for p in server.packages), "the quiet one")
            assert received(server) < 6_001, "it had to wait for all of the busy route's"
            assert daemon.stop() == 0, daemon.log


def test_no_more_connections_than_configured(tmp_path: Path) -> None:
    """A server that bans who opens too many at once: all routes together keep to the number."""
    answers = threading.Event()

    def late(peer: Peer) -> None:
        answers.wait(60)
        answer_all()(peer)

    with serving(late) as server:
        config, maildirs = configure(tmp_path, 12, server.address, "server-connections = 3")
        for number, maildir in enumerate(maildirs):
            add_message(maildir, "1.x", b"%d\n" % number)
        with watching("--config", config) as daemon:
            wait_until(lambda: server.connections == 3, "three connections")

            def waiting() -> bool:
                daemon.send(signal.SIGUSR1)
                return daemon.log.rpartition("watching")[2].count("1 waiting; waiting for a") >= 9

            wait_until(waiting, "the others in line")
            assert server.connections == 3
            answers.set()
            for maildir in maildirs:
                empties(maildir)
            assert daemon.stop() == 0, daemon.log


def test_idle_connections_are_kept_while_nobody_waits(tmp_path: Path) -> None:
    """Each message on a new connection would cost a round trip more."""
    with serving(answer_all()) as server:
        config, maildirs = configure(tmp_path, 5, server.address)
        with watching("--config", config) as daemon:
            for number in range(4):
                for maildir in maildirs:
                    deliver(maildir, now_name(number))
                    empties(maildir)
            assert server.connections == 5
            assert daemon.stop() == 0, daemon.log


def test_a_tls_server_that_takes_one_connection(
    tmp_path: Path, authority: Authority, identity: Identity
) -> None:
    """Its backlog answers no handshake either: making the connection is what waits."""
    with serving(Limited(1, within=partial(over_tls, identity.context()))) as server:
        config, maildirs = configure(
            tmp_path, 4, f"qmtps://{server.address}", f'tls-ca = "{authority.file}"'
        )
        for number, maildir in enumerate(maildirs):
            add_message(maildir, "1.x", b"%d\n" % number)
        with watching("--config", config) as daemon:
            for maildir in maildirs:
                empties(maildir)
            assert daemon.stop() == 0, daemon.log


def proc(pid: int, what: str) -> list[str]:
    """List a directory of a process (proc(5))."""
    return os.listdir(f"/proc/{pid}/{what}")


def inotify_instances(pid: int) -> int:
    """Count a process's inotify instances."""
    found = 0
    for fd in proc(pid, "fd"):
        with contextlib.suppress(FileNotFoundError):
            found += os.readlink(f"/proc/{pid}/fd/{fd}") == "anon_inode:inotify"
    return found


def test_two_hundred_routes(tmp_path: Path) -> None:
    """Ten messages each, within a user's limits; one inotify instance, one page of status."""
    count, notify = 200, str(tmp_path / "notify")
    low = "import os, resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, (256, 4096)); "
    prelude = (sys.executable, "-c", low + "os.execv(sys.argv[1], sys.argv[1:])")
    with serving(answer_all()) as server, supervisor(notify) as systemd:
        config, maildirs = configure(tmp_path, count, server.address, 'rescan = "1h"')
        told = {"NOTIFY_SOCKET": notify}
        with watching("--config", config, "-q", environment=told, prelude=prelude) as daemon:
            pid = daemon.process.pid
            systemd.wait_for("READY=1")
            assert inotify_instances(pid) == 1
            for number in range(10):
                for maildir in maildirs:
                    deliver(maildir, now_name(number), b"%b %d\n" % (bytes(maildir), number))
            wait_until(lambda: received(server) == 10 * count, "all messages")
            for maildir in maildirs:
                empties(maildir)
            assert len(server.packages) == 10 * count
            assert len(proc(pid, "fd")) <= 9 * count
            # For a moment, a route's removals are made durable in a thread of their own.
            wait_until(lambda: len(proc(pid, "task")) <= count + 5, "one thread for each route")
            daemon.send(signal.SIGHUP)
            systemd.wait_for("READY=1", 2)
            deliver(maildirs[-1], now_name(10), b"after HUP\n")
            empties(maildirs[-1])
            assert daemon.stop() == 0, daemon.log
            assert daemon.log == ""
        assert max(len(said) for said in systemd.said) < 4_096
        assert any(said.startswith(f"STATUS={count} routes: ") for said in systemd.said)


def test_descriptors_that_run_out(tmp_path: Path) -> None:
    """The log says the limit and what to set, once for each route; and the daemon stays."""
    low = "import os, resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64)); "
    prelude = (sys.executable, "-c", low + "os.execv(sys.argv[1], sys.argv[1:])")
    config, _ = configure(tmp_path, 30, "127.0.0.1:9", 'rescan = "0.3s"')
    with watching("--config", config, prelude=prelude) as daemon:
        daemon.wait_for("Too many open files; this process may have 64: raise LimitNOFILE=")
        assert daemon.stop() == 0, daemon.log
