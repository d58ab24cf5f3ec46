"""A day in the life of a daemon, in the time of a clock of our own: it does not grow.

86,400 seconds of traffic: a message every thirty, some of them deferred or refused, a
server that hangs up every hour, is away for a while each few hours, and names that
come and go. What it holds at the end is what it held after the first hours.
"""

from __future__ import annotations

import gc
import io
import os
import random
import selectors
import shutil
import threading
import time
import tracemalloc
from pathlib import Path

import pytest

import maildirqmtp
from maildirqmtp.daemon import worker as daemon_module
from maildirqmtp.daemon.reservations import MaildirLocks
from maildirqmtp.daemon.worker import Worker
from maildirqmtp.errors import ConnectError
from maildirqmtp.forwarder.report import Report
from maildirqmtp.forwarder.route import Route
from maildirqmtp.transport.endpoint import TcpEndpoint
from tests.fakes import FakeServer, broken
from tests.helpers import DEADLINE_S, Package, add_message, make_maildir, names

DAY_S = 86_400
#: Where the daemon's code is, and how many frames of each allocation are looked at for it.
PACKAGE = Path(maildirqmtp.__file__).parent
FRAMES = 5
#: Seconds from one message to the next, and how many that are in an hour.
EVERY_S = 30
PER_HOUR = 3_600 // EVERY_S


class Time:
    """Seconds that pass when everybody waits, and what happens meanwhile."""

    def __init__(self) -> None:
        self.now = 1_000_000_000.0
        self.began = self.now
        self.next_at = self.now
        self.events = 0

    def __call__(self) -> float:
        return self.now


class Day:
    """The maildir, the server and the daemon of such a day."""

    def __init__(self, path: Path) -> None:
        self.path = make_maildir(path)
        self.time = Time()
        self.chance = random.Random(86_400)
        self.server: FakeServer | None = None
        self.connections = 0
        self.generous = False
        self.taken = 0
        self.added = 0
        self.measures: list[tuple[int, int, int]] = []
        self.log = io.StringIO()
        report = Report(self.log, verbosity=-1, attempts=True, wall_clock=self.time)
        self.daemon = Worker(
            Route(os.fsencode(self.path), TcpEndpoint("mail.example.org"), rescan_s=30.0),
            report,
            MaildirLocks(self.time, self.time),
            lambda snapshot: None,
            connector=self.connect,
            clock=self.time,
            wall_clock=self.time,
            random=self.chance.random,
        )

    @property
    def hour(self) -> int:
        """Hours since it began."""
        return int((self.time.now - self.time.began) // 3_600)

    def connect(self, server: object, timeout_s: float) -> FakeServer:
        """Reach the server; it is away in every fourth hour for ten minutes."""
        if self.hour % 4 == 3 and (self.time.now - self.time.began) % 3_600 < 600:
            raise ConnectError(111, "connection refused")
        self.connections += 1
        self.server = FakeServer(self.answer)
        return self.server

    def answer(self, line: FakeServer, package: Package) -> None:
        """Mostly accept; forget at once what came."""
        line.received.clear()
        line.sent.clear()
        lot = 1.0 if self.generous else self.chance.random()
        if lot < 0.02:
            line.say(broken())
        elif lot < 0.07:
            line.respond(b"Zlater")
        elif lot < 0.10:
            line.respond(b"Dnever")
        else:
            self.taken += 1
            line.respond(b"Kok")

    def happen(self) -> None:
        """Let what is due by now happen, and measure once an hour."""
        while self.time.next_at <= self.time.now:
            self.time.next_at += EVERY_S
            self.time.events += 1
            self.added += 1
            name = f"{int(self.time.now)}.M{self.added}.day"
            add_message(self.path, name, b"text\n" * 20, folder="tmp")
            os.utime(self.path / "tmp" / name, (self.time.now, self.time.now))
            os.rename(self.path / "tmp" / name, self.path / "new" / name)
            if self.daemon._queue is not None:
                self.daemon._queue.look_again()
            if self.time.events % PER_HOUR == PER_HOUR - 4:
                # So that what is measured does not hang on how many happen to wait.
                self.generous = True
                self.daemon.try_all()
            if self.time.events % PER_HOUR == 0:
                self.hourly()
                self.generous = False

    def hourly(self) -> None:
        """The server hangs up; failed mail is cleared away; what there is, is counted."""
        if self.server is not None and not self.server.closed:
            self.server.say(b"")
        for part in ("new", "envelope"):
            for name in names(self.path / ".Failed" / part):
                os.unlink(self.path / ".Failed" / part / name)
        self.log.truncate(0)
        self.log.seek(0)
        # One may be waiting for the disk, which does not go by the test's clock.
        for thread in threading.enumerate():
            if thread.name == "sync":
                thread.join(DEADLINE_S)
        gc.collect()
        # What the daemon's code has asked for, itself or by what it calls: what else is in this
        # process, and hands out the tests, may need memory at any moment.
        ours = [tracemalloc.Filter(True, f"{PACKAGE}/*", all_frames=True)]
        traces = tracemalloc.take_snapshot().filter_traces(ours).statistics("filename")
        memory = sum(trace.size for trace in traces)
        self.measures.append((memory, len(os.listdir("/proc/self/fd")), threading.active_count()))
        if self.time.now - self.time.began >= DAY_S:
            self.daemon.stop()


class NoWatch:
    """Events are the test's own."""

    def __init__(self, *_: object) -> None:
        pass

    def check(self) -> None:
        """See `watch.Watch`."""

    def close(self) -> None:
        """See `watch.Watch`."""


@pytest.mark.timeout(300)
def test_a_day_leaves_no_trace(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A daemon that runs for a year is never larger, has no more descriptors, no more threads."""
    memory = Path("/dev/shm")
    path = memory / f"day-{os.getpid()}" if os.access(memory, os.W_OK) else tmp_path / "day"
    day = Day(path)

    class Selector(selectors.PollSelector):
        """Never waits: the clock goes on instead, to the next thing that happens."""

        def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
            day.happen()
            ready = super().select(0)
            if not ready:
                assert timeout is not None
                day.time.now = min(day.time.now + max(timeout, 0.001), day.time.next_at)
                day.happen()
            return ready

    monkeypatch.setattr(selectors, "PollSelector", Selector)
    monkeypatch.setattr(daemon_module, "Watch", NoWatch)
    tracemalloc.start(FRAMES)
    began = time.monotonic()
    try:
        day.daemon.run()
        assert day.connections > 24
        assert day.taken > 0.85 * day.added
        early, late = day.measures[3:8], day.measures[-5:]
        grown = min(m for m, _, _ in late) - max(m for m, _, _ in early)
        print(f"grew by {grown} bytes in {time.monotonic() - began:.0f} s: {day.measures}")
        assert grown < 20_000
        assert max(fds for _, fds, _ in late) <= max(fds for _, fds, _ in early)
        assert {threads for _, _, threads in late} == {threads for _, _, threads in early}
        waiting = day.daemon._queue
        assert waiting is not None
        assert waiting.size <= len(names(path / "new")) + 5
    finally:
        tracemalloc.stop()
        shutil.rmtree(path, ignore_errors=True)
