"""A day in the life of many routes: three servers that differ, and mail that comes all the time.

One server is slow to answer, one serves two connections at a time and lets the others wait, one is
down for a third of the time. Nothing is lost, no route is starved while its server is up, and the
daemon does not grow.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.e2e.daemons import Running, deliver, watching
from tests.faults.disk import in_memory
from tests.faults.ledger import note_figures
from tests.faults.test_soak import GROWTH_KB, sample
from tests.helpers import (
    DEADLINE_S,
    Peer,
    ScriptedServer,
    closed_port,
    make_maildir,
    names,
    wait_until,
)

#: Seconds that no route may go without an answer while it has mail and its server is up.
STARVED_S = 60.0
#: Messages in flight on a connection, and connections to a server, as the routes are told.
WINDOW = 20
SLOTS = 10
#: Seconds that the slow server takes for each message.
SLOW_S = 0.02
#: Connections that the small server serves at a time.
SERVES = 2
#: Parts of the way at which the memory is looked at.
_LOOKS = 10
LONG = [pytest.mark.long, pytest.mark.timeout(2_400)]


@dataclass
class Times:
    """When each message was delivered, for which route, and when it was accepted."""

    delivered: dict[bytes, tuple[int, float]] = field(default_factory=dict)
    accepted: dict[bytes, float] = field(default_factory=dict)
    copies: Counter[bytes] = field(default_factory=Counter)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def accept(self, text: bytes) -> None:
        """Note that a server has taken a message."""
        with self._lock:
            self.copies[text] += 1
            self.accepted.setdefault(text, time.monotonic())

    def starved_s(self, route: int, server: Server) -> float:
        """Return for how long at most a route with mail had no answer, its server being up."""
        steps = []
        for text, (of, at) in self.delivered.items():
            if of == route:
                # A file is there a moment before its delivery is noted.
                steps += [(at, 1), (max(at, self.accepted[text]), -1)]
        waiting, since, longest_s = 0, 0.0, 0.0
        for at, change in sorted(steps, key=lambda step: (step[0], -step[1])):
            if waiting and change < 0:
                longest_s = max(longest_s, server.up_s(since, at))
            if not waiting or change < 0:
                since = at
            waiting += change
        return longest_s


class Server:
    """A server that can be told to go and to come back; `outages` are its times away."""

    def __init__(self, times: Times, serves: int = 64, answer_s: float = 0.0) -> None:
        self.outages: list[tuple[float, float]] = []
        self._times = times
        self._places = threading.Semaphore(serves)
        self._answer_s = answer_s
        self._went = 0.0
        self._server = ScriptedServer(self._talk, listen_on=closed_port())
        self.address = self._server.address

    def _talk(self, peer: Peer) -> None:
        with self._places:
            while (package := peer.read_package()) is not None:
                time.sleep(self._answer_s)  # what makes it slow
                self._times.accept(package.text)
                peer.respond(b"Kok")

    def go(self) -> None:
        """Cut all connections, and refuse new ones."""
        self._went = time.monotonic()
        self._server.close()

    def come_back(self) -> None:
        """Listen again, at the same address."""
        self._server = ScriptedServer(self._talk, listen_on=self._server.port)
        self.outages.append((self._went, time.monotonic()))

    def close(self) -> None:
        """End it."""
        self._server.close()

    def up_s(self, since: float, until: float) -> float:
        """Return the seconds between two times in which it was not away."""
        away_s = sum(max(0.0, min(until, b) - max(since, a)) for a, b in self.outages)
        return until - since - away_s


def come_and_go(server: Server, cycle_s: float, over: threading.Event) -> None:
    """Have a server be away for a third of the time; it is there in the end."""
    while not over.wait(cycle_s * 2 / 3):
        server.go()
        over.wait(cycle_s / 3)
        server.come_back()


def live(
    daemon: Running, maildirs: list[Path], times: Times, messages: int, length_s: float
) -> list[int]:
    """Deliver so many messages over so many seconds; return what memory it takes meanwhile."""
    rng = random.Random(200)
    began, memory_kb = time.monotonic(), []
    for number in range(messages):
        time.sleep(max(0.0, began + number * length_s / messages - time.monotonic()))
        route = rng.randrange(len(maildirs))
        text = b"Subject: %d\n\n" % number + b"x" * rng.randrange(2_000) + b"\n"
        # Before it is there: the server may have it in the same moment.
        times.delivered[text] = route, time.monotonic()
        deliver(maildirs[route], f"{int(time.time())}.M{number}.day", text)
        if number % (messages // _LOOKS) == 0:
            assert daemon.process.poll() is None, daemon.log
            memory_kb.append(sample(daemon.process.pid).memory_kb)
    return memory_kb


@pytest.mark.parametrize(
    ("routes", "messages", "length_s", "cycle_s", "growth_kb"),
    [
        pytest.param(20, 1_000, 6.0, 3.0, 2 * GROWTH_KB, id="some"),
        pytest.param(
            200,
            50_000,
            900.0,
            60.0,
            GROWTH_KB,
            id="many",
            marks=[pytest.mark.long, pytest.mark.timeout(2_400)],
        ),
    ],
)
def test_a_day_of_many_routes(
    tmp_path: Path, routes: int, messages: int, length_s: float, cycle_s: float, growth_kb: int
) -> None:
    """What one server does is no trouble of the routes to another, and none is forgotten."""
    times, over = Times(), threading.Event()
    slow, small, weak = Server(times, answer_s=SLOW_S), Server(times, serves=SERVES), Server(times)
    servers = (slow, small, weak)
    weather = threading.Thread(target=come_and_go, args=(weak, cycle_s, over))
    with in_memory(tmp_path) as directory:
        maildirs = [make_maildir(directory / f"m{number}") for number in range(routes)]
        config = tmp_path / "routes.toml"
        config.write_text(
            f"[defaults]\nwindow = {WINDOW}\nserver-connections = {SLOTS}\n"
            + "".join(
                f'[[route]]\nmaildir = "{maildir}"\nserver = "{servers[number % 3].address}"\n'
                for number, maildir in enumerate(maildirs)
            )
        )
        weather.start()
        try:
            with watching("--quiet", "--config", config) as daemon:
                memory_kb = live(daemon, maildirs, times, messages, length_s)
                wait_until(
                    lambda: not any(names(maildir / "new") for maildir in maildirs),
                    "all of it to be sent",
                    STARVED_S + DEADLINE_S * 4,
                )
                memory_kb.append(sample(daemon.process.pid).memory_kb)
                assert daemon.stop() == 0
        finally:
            over.set()
            weather.join()
            for server in servers:
                server.close()
    assert times.copies.keys() == times.delivered.keys(), "lost"
    duplicates = times.copies.total() - messages
    assert duplicates <= len(weak.outages) * SLOTS * WINDOW
    starved_s = max(times.starved_s(route, servers[route % 3]) for route in range(routes))
    grown_kb = memory_kb[-1] - max(memory_kb[: _LOOKS // 2])
    note_figures(
        "day-of-routes",
        routes=routes,
        messages=messages,
        outages=len(weak.outages),
        duplicates=duplicates,
        starved_s=round(starved_s, 1),
        grown_kb=grown_kb,
    )
    assert starved_s < STARVED_S
    assert grown_kb < growth_kb
