"""Many routes in one process, end to end: what they share, and that none starves."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.certificates import Authority, Identity, over_tls
from tests.e2e.daemons import deliver, empties, now_name, watching
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
            assert daemon.stop() == 0


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
            assert daemon.stop() == 0


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
            assert daemon.stop() == 0


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
            assert daemon.stop() == 0


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
            assert daemon.stop() == 0
