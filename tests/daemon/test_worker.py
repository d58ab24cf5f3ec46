"""One route in watch mode, in time that passes only when nothing happens."""

from __future__ import annotations

import errno
import io
import json
import os
import selectors
import socket
import threading
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from maildirqmtp.daemon import chores
from maildirqmtp.daemon import worker as daemon_module
from maildirqmtp.daemon.chores import CLEAN_S
from maildirqmtp.daemon.queue import WatchQueue
from maildirqmtp.daemon.reservations import MaildirLocks
from maildirqmtp.daemon.snapshot import Snapshot
from maildirqmtp.daemon.worker import MOST_SHOWN, PUBLISH_S, Worker
from maildirqmtp.errors import ConnectError, ConnectTimeout, LocalError, LockedError
from maildirqmtp.forwarder.forwarder import SLACK_S, Forwarder
from maildirqmtp.forwarder.report import Report
from maildirqmtp.forwarder.route import BounceMethod, BounceVia, Route
from maildirqmtp.forwarder.stop import STOP_S
from maildirqmtp.maildir import expiry, holds, state, writing
from maildirqmtp.maildir.files import Message
from maildirqmtp.maildir.maildir import Maildir, Removal
from maildirqmtp.maildir.shard import Shard
from maildirqmtp.transport.endpoint import Endpoint, TcpEndpoint
from tests.fakes import (
    FakeClock,
    FakeScript,
    FakeServer,
    FileSystem,
    PatientPoll,
    ServersInTurn,
    accept,
)
from tests.helpers import (
    Package,
    add_message,
    add_sidecar,
    make_maildir,
    names,
    open_descriptors,
)

NOW = 1_800_000_000.0
RESCAN_S = 30.0
SERVER = TcpEndpoint("mail.example.org")
REFUSED = ConnectError(errno.ECONNREFUSED, "cannot connect to mail.example.org:209: refused")


def defer(server: FakeServer, package: Package) -> None:
    """Answer Z for each recipient."""
    server.respond(*[b"Zlater"] * len(package.recipients))


class Clock(FakeClock):
    """A clock that asks, each time it has gone on, whether all is still well."""

    check: Callable[[], None] = staticmethod(lambda: None)

    def advance(self, seconds: float) -> None:
        """See `FakeClock`."""
        super().advance(seconds)
        self.check()


def wait_in(monkeypatch: pytest.MonkeyPatch, clock: FakeClock) -> None:
    """Wait in the clock's time, as long as was asked for unless somebody wakes the sleeper."""

    class Selector(PatientPoll):
        def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
            assert timeout is not None, "this would wait for ever"
            end = self.clock.now + timeout
            while True:
                ready = super().select(max(0.0, end - self.clock.now))
                if ready or self.clock.now >= end - 1e-6:
                    return ready

    Selector.clock = clock
    monkeypatch.setattr(selectors, "PollSelector", Selector)


class FakeWatch:
    """A watch that never hears anything but what a test says."""

    def __init__(
        self, directory: bytes, hint: Callable[..., None], say: object, watcher: object
    ) -> None:
        self.directory, self.hint = directory, hint
        self.checks = 0
        self.closed = False

    def check(self) -> None:
        """See `watch.Watch`."""
        assert not self.closed
        self.checks += 1

    def close(self) -> None:
        """See `watch.Watch`."""
        self.closed = True


class Nudge:
    """An event that is waited for in the clock's time."""

    def __init__(self, clock: FakeClock) -> None:
        self._clock = clock
        self._is_set = False
        self._waits = 0

    def set(self) -> None:
        """See `threading.Event`."""
        self._is_set = True

    def clear(self) -> None:
        """See `threading.Event`."""
        self._is_set = False

    def wait(self, seconds: float) -> None:
        """See `threading.Event`."""
        assert seconds <= threading.TIMEOUT_MAX
        self._waits += 1
        assert self._waits < 1_000, "this goes round in circles"
        end = self._clock.now + seconds
        while not self._is_set and self._clock.now < end:
            # Until the next thing that a test has planned.
            planned = [when for when, _ in self._clock._planned if when <= end]
            self._clock.advance(min(planned, default=end) - self._clock.now)


class Run(ServersInTurn):
    """A daemon, its maildir, its servers in turn, and what it published."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
        super().__init__()
        self.path = make_maildir(path)
        self.clock = Clock()
        self.wall_s = NOW - self.clock.now
        self.connects: list[float] = []
        self.got: list[tuple[float, bytes]] = []
        self.log = io.StringIO()
        self.report = Report(self.log, None, 0, None, self.clock, wall_clock=self.wall)
        self.locks = MaildirLocks(self.clock, self.wall)
        self.watches: list[FakeWatch] = []
        self.published: list[tuple[float, Snapshot]] = []
        wait_in(monkeypatch, self.clock)
        monkeypatch.setattr(daemon_module, "Watch", self._watch)
        self.worker: Worker

    def wall(self) -> float:
        """Return seconds of the epoch."""
        return self.wall_s + self.clock.now

    def _watch(
        self, directory: bytes, hint: Callable[..., None], say: object, watcher: object
    ) -> FakeWatch:
        self.watches.append(FakeWatch(directory, hint, say, watcher))
        return self.watches[-1]

    def connect(self, server: Endpoint, timeout_s: float) -> FakeServer:
        """Reach the next server."""
        self.connects.append(self.clock.now - 1_000.0)
        script = self.next_script()

        def on_package(server: FakeServer, package: Package) -> None:
            self.got.append((self.clock.now - 1_000.0, package.recipients[0]))
            script(server, package)

        made = FakeServer(on_package)
        self.servers.append(made)
        return made

    def make(self, **options: object) -> Worker:
        """Make the daemon."""
        route = Route(
            os.fsencode(self.path),
            **({"server": SERVER, "rescan_s": RESCAN_S} | options),  # type: ignore[arg-type]
        )
        worker = self.worker = Worker(
            route,
            self.report,
            self.locks,
            lambda snapshot: self.published.append((self.clock.now - 1_000.0, snapshot)),
            connector=self.connect,
            clock=self.clock,
            wall_clock=self.wall,
            random=lambda: 0.0,
        )
        worker._interrupt = Nudge(self.clock)  # type: ignore[assignment]

        def check() -> None:
            assert self.clock.now <= worker.watchdog_deadline, (
                "a supervisor would think that it hangs"
            )

        self.clock.check = check
        return worker

    def at(self, seconds: float, action: Callable[[], object]) -> None:
        """Plan something for so many seconds after the start."""
        self.clock.at(1_000.0 + seconds, lambda: (action(), None)[1])

    def go(self, until: float, **options: object) -> None:
        """Run the daemon, and stop it after so many seconds."""
        worker = self.make(**options)
        self.at(until, worker.stop)
        self.run()

    def run(self) -> None:
        """Run the daemon; nothing may be left open."""
        before, held = open_descriptors(), self.locks._held.copy()
        try:
            self.worker.run()
        finally:
            assert all(server.closed for server in self.servers)
            assert all(watch.closed for watch in self.watches)
            assert open_descriptors() == before, "descriptors are left open"
            assert self.locks._held == held

    def add(self, number: int, recipient: bytes | None = None) -> None:
        """Put a message N.a with the recipient rN@y into new/, as old as the clock says."""
        name = f"{int(self.wall())}.{number}"
        add_message(self.path, name, b"text\n", b"s@x", recipient or b"r%d@y" % number)
        os.utime(self.path / "new" / name, (self.wall(), self.wall()))

    def come(self, number: int) -> None:
        """The same, and an event tells of it."""
        self.add(number)
        self.watches[-1].hint()

    @property
    def lines(self) -> list[str]:
        """What was logged."""
        return [line.removeprefix("maildirqmtp: ") for line in self.log.getvalue().splitlines()]

    def said(self, text: str) -> int:
        """How many lines have this text."""
        return sum(text in line for line in self.lines)

    @property
    def states(self) -> list[str]:
        """The states that were published, each once in a row."""
        states = [snapshot.state for _, snapshot in self.published]
        return [s for number, s in enumerate(states) if not number or states[number - 1] != s]

    @property
    def new(self) -> list[str]:
        """What is left."""
        return names(self.path / "new")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """An empty maildir and a server that accepts."""
    return Run(monkeypatch, tmp_path / "Maildir")


# Mail comes


def test_what_an_event_tells_of_goes_at_once(run: Run) -> None:
    """Not with the next rescan."""
    for number in (5, 6, 40):
        run.at(number, lambda number=number: run.come(number))  # type: ignore[misc]
    run.go(50)
    assert run.got == [(5.0, b"r5@y"), (6.0, b"r6@y"), (40.0, b"r40@y")]
    assert run.connects == [5.0]
    assert run.new == []


def test_without_any_event_all_goes_with_the_rescan(run: Run) -> None:
    """Events are hints, the scan is the truth."""
    run.at(5, lambda: run.add(1))
    run.at(45, lambda: run.add(2))
    run.go(100)
    assert run.got == [(30.0, b"r1@y"), (60.0, b"r2@y")]


def test_it_is_watched_before_the_first_look(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes between the two would wait for a rescan."""
    order: list[str] = []
    scan, check = Maildir.scan, FakeWatch.check

    def new_scan(self: Maildir, *arguments: object) -> object:
        order.append("scan")
        return scan(self, *arguments)  # type: ignore[arg-type]

    def new_check(self: FakeWatch) -> None:
        order.append("check")
        check(self)

    monkeypatch.setattr(Maildir, "scan", new_scan)
    monkeypatch.setattr(FakeWatch, "check", new_check)
    run.go(65)
    assert order == ["check", "scan"] * 3


def test_after_each_connection_it_looks_around(run: Run) -> None:
    """What came meanwhile, and nobody told of, goes with the next one."""
    run.add(1)
    run.at(5, lambda: run.add(2))
    run.at(10, lambda: run.servers[-1].hang_up())
    run.go(20)
    assert run.got == [(0.0, b"r1@y"), (10.0, b"r2@y")]


def test_an_idle_connection_is_closed(run: Run) -> None:
    """After its time, and opened again on demand."""
    run.at(5, lambda: run.come(1))
    run.at(14, lambda: run.come(2))
    run.at(30, lambda: run.come(3))
    run.go(50, idle_s=10.0)
    assert run.connects == [5.0, 30.0]
    assert run.states == ["idle", "connected", "idle", "connected", "idle", "stopped"]


def test_what_crashes_left_behind_is_cleaned_from_time_to_time(run: Run) -> None:
    """A year of half-written files fills a disk."""
    old = run.path / "tmp" / "1.old"

    def leave() -> None:
        old.write_bytes(b"")
        os.utime(old, (1.0, 1.0))

    leave()
    run.at(1, leave)
    run.at(CLEAN_S - 60, lambda: seen.append(old.exists()))
    run.at(CLEAN_S + 60, lambda: seen.append(old.exists()))
    seen: list[bool] = []
    run.go(CLEAN_S + 100)
    assert seen == [True, False]


def test_what_cannot_be_cleaned_is_said_and_stops_nothing(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mail goes on."""

    def fail(*_: object) -> int:
        raise LocalError("cannot clean up x")

    monkeypatch.setattr(chores, "clean", fail)
    run.add(1)
    run.go(100)
    assert run.said("cannot clean up x") == 1
    assert run.got == [(0.0, b"r1@y")]


def never_was(server: FakeServer, package: Package) -> None:
    """Turn out never to have been reached, as ssh does that cannot connect."""
    server.say(ConnectError("ssh: exit status 255"))


def hang_up(server: FakeServer, package: Package) -> None:
    """Close instead of answering."""
    server.hang_up()


@pytest.mark.parametrize(
    ("script", "is_full"),
    [
        (ConnectError(socket.EAI_AGAIN, "cannot find the host"), False),
        (ConnectError(errno.ENETUNREACH, "no network"), False),
        (ConnectTimeout(None, "no answer in 60 s"), False),
        (never_was, False),
        (REFUSED, True),
        (ConnectError(errno.ECONNRESET, "reset in the handshake of TLS"), True),
        (hang_up, True),
    ],
)
def test_a_link_that_is_down_is_no_limit_of_the_servers(
    run: Run, script: FakeScript | Exception, is_full: bool
) -> None:
    """While another route had a connection, the routes then took turns, and the log said why."""
    run.scripts = [script]
    run.add(1)
    worker = run.make()
    other = worker._servers.join(SERVER, 20, threading.Event())  # type: ignore[arg-type]
    assert other.take()
    other.live, other.silent = 1, ()
    run.at(5.0, worker.stop)
    run.run()
    assert (other._server.room == 1) is is_full


@pytest.mark.parametrize("script", [REFUSED, defer], ids=["unreachable", "deferred"])
def test_senders_are_told_of_delays_once(run: Run, script: FakeScript | Exception) -> None:
    """Also of what could never be tried; and mail that goes at once is nobody's business."""
    run.scripts = [accept, script]
    told = run.path.parent / "told"
    via = BounceVia(BounceMethod.MAILDIR, os.fsencode(told))
    seen: list[int] = []
    run.add(1)
    for number in range(2, 5):
        run.at(100, lambda number=number: run.come(number))  # type: ignore[misc]
    run.at(3_690, lambda: seen.append(len(names(told / "new"))))
    run.at(4_500, lambda: seen.append(len(names(told / "new"))))
    run.go(9_000, bounce=True, bounce_via=via, warn_after_s=3_600.0)
    assert seen == [0, 3]
    assert len(names(told / "new")) == run.said("has been told that it waits") == 3
    assert len(names(run.path / "new")) == 3


def test_the_daemon_floods_nobody(run: Run) -> None:
    """As with bounces: `max_bounces` in an hour; the others are told in the next ones."""
    run.scripts = [REFUSED]
    told = run.path.parent / "told"
    via = BounceVia(BounceMethod.MAILDIR, os.fsencode(told))
    seen: list[int] = []
    for number in range(5):
        run.add(number)
    for hour in range(1, 4):
        run.at(hour * 3_600 + 1_800, lambda: seen.append(len(names(told / "new"))))
    run.go(4 * 3_600, bounce=True, bounce_via=via, warn_after_s=3_600.0, max_bounces=2)
    assert seen == [2, 4, 5]


class SlowMailer:
    """Takes warnings, each after so long that a supervisor might think that the route hangs."""

    def __init__(self, clock: FakeClock, takes_s: float = 0.0) -> None:
        self._clock = clock
        self._takes_s = takes_s
        self.told: list[bytes] = []

    def can_reach(self, recipient: bytes) -> bool:
        """See `mailers.Mailer`."""
        return True

    def send(self, bounce: bytes, recipient: bytes, identifier: str) -> bytes | None:
        """See `mailers.Mailer`."""
        (line,) = [line for line in bounce.splitlines() if line.startswith(b"Final-Recipient")]
        self.told.append(line.rpartition(b" ")[2])
        until = self._clock.now + self._takes_s
        while self._clock.now < until:
            self._clock.advance(until - self._clock.now)
        return None


def mail_by(run: Run, monkeypatch: pytest.MonkeyPatch, takes_s: float = 0.0) -> SlowMailer:
    """Have warnings go to a mailer that takes so long."""
    mailer = SlowMailer(run.clock, takes_s)
    monkeypatch.setattr("maildirqmtp.forwarder.bounces.make_mailer", lambda *_: mailer)
    return mailer


def test_a_slow_mailer_is_no_hanging_route(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """systemd would kill the daemon over each warning, and no warning were ever sent."""
    run.scripts = [REFUSED]
    mailer = mail_by(run, monkeypatch, takes_s=300.0)
    for number in range(4):
        run.add(number)
    run.go(2_000, bounce=True, warn_after_s=10.0, connect_timeout_s=1.0)
    assert len(mailer.told) == 4


def silent(server: FakeServer, package: Package) -> None:
    """Answer nothing."""


def test_a_slow_link_is_told_of_and_what_is_in_flight_is_not(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A backlog that is nearly always connected is what senders wait for longest."""
    run.scripts = [silent]
    mailer = mail_by(run, monkeypatch)
    for number in range(5):
        run.add(number)
    run.go(100, bounce=True, warn_after_s=60.0, window_messages=1)
    assert b"r4@y" in mailer.told
    assert b"r0@y" not in mailer.told


def test_no_warning_is_begun_on_the_way_out(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mailer may take minutes, and what the server accepts meanwhile is sent again."""
    run.scripts = [silent]
    mailer = mail_by(run, monkeypatch)
    for number in range(5):
        run.add(number)
    run.go(50, bounce=True, warn_after_s=60.0, window_messages=1)
    assert run.clock.now > 1_000.0 + 60.0
    assert mailer.told == []


def test_what_is_accepted_and_cannot_be_removed_is_not_late(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its sender would send it again."""
    FileSystem(monkeypatch, run.path).always_fail("unlink new/1", errno.EROFS)
    mailer = mail_by(run, monkeypatch)
    run.add(1)
    run.go(200, bounce=True, warn_after_s=60.0)
    assert run.worker.stuck
    assert mailer.told == []


@pytest.mark.parametrize("stops", [False, True])
def test_old_mail_goes_while_nothing_is_sent(
    run: Run, monkeypatch: pytest.MonkeyPatch, stops: bool
) -> None:
    """One portion after the other; a route that ends amid them leaves nothing open."""
    failed = make_maildir(run.path / ".Failed")
    for number in range(3):
        add_message(failed, f"1.{number}")
    run.wall_s = time.time() + 2 * 86_400.0 - run.clock.now
    monkeypatch.setattr(expiry, "PORTION_FILES", 1)
    real = Maildir.remove

    def remove(maildir: Maildir, message: Message) -> Removal:
        if stops:
            run.worker.stop()
        return real(maildir, message)

    monkeypatch.setattr(Maildir, "remove", remove)
    run.go(RESCAN_S - 1, keep_failed_s=86_400.0)
    assert len(names(failed / "new")) == (2 if stops else 0)
    assert run.said(f"keep-failed: {1 if stops else 3} removed from {failed}") == 1


def test_old_mail_goes_while_the_maildir_cannot_be_changed(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a full disk it makes the room that everything else waits for."""
    failed = make_maildir(run.path / ".Failed")
    for number in range(3):
        add_message(failed, f"1.{number}")
    run.wall_s = time.time() + 2 * 86_400.0 - run.clock.now
    monkeypatch.setattr(expiry, "PORTION_FILES", 1)
    FileSystem(monkeypatch, run.path).always_fail("unlink new", errno.ENOSPC)
    run.add(1)
    run.go(RESCAN_S - 1, keep_failed_s=86_400.0)
    assert run.states == ["idle", "stuck"]
    assert names(failed / "new") == []


# The maildir goes, and comes back


def test_a_maildir_that_goes_and_comes_back(run: Run) -> None:
    """A disk that is unmounted: said once, waited for, and then as if nothing had been."""
    away = run.path.with_name("away")
    run.at(1, lambda: run.come(1))
    run.at(100, lambda: run.path.rename(away))
    run.at(400, lambda: away.rename(run.path))
    run.at(405, lambda: run.add(2))
    run.go(600)
    assert [recipient for _, recipient in run.got] == [b"r1@y", b"r2@y"]
    assert run.said("opening it anew") == 1
    assert run.said("cannot open the maildir directory") == 1
    assert run.said("trying again every 30 s") == 1
    assert run.said("in order again") == 1
    assert len(run.watches) == 2


def test_a_maildir_that_is_back_is_no_trouble_any_more(run: Run) -> None:
    """An alert that goes on after the cause has gone is one that nobody looks at the next time."""
    away = run.path.with_name("away")
    run.at(100, lambda: run.path.rename(away))
    run.at(400, lambda: away.rename(run.path))
    run.go(600)
    assert run.states == ["idle", "no maildir", "idle", "stopped"]


@pytest.mark.parametrize("part", ["new", "cur", "tmp"])
def test_a_directory_that_is_replaced_is_opened_anew(run: Run, part: str) -> None:
    """The old one says for ever that nothing comes."""

    def replace() -> None:
        (run.path / part).rename(run.path / f"old-{part}")
        (run.path / part).mkdir()
        run.add(1)

    run.at(5, replace)
    run.go(100)
    assert run.got == [(30.0, b"r1@y")]
    assert len(run.watches) == 2
    assert run.watches[0].closed
    assert run.said("opening it anew") == 1


def test_the_whole_maildir_replaced(run: Run) -> None:
    """The lock is then on the new one."""

    def replace() -> None:
        run.path.rename(run.path.with_name("old"))
        make_maildir(run.path)
        run.add(1)

    run.at(5, replace)
    run.at(50, lambda: held.append([inode for (_, inode), _ in run.locks._held]))
    held: list[list[int]] = []
    run.go(100)
    assert held == [[run.path.stat().st_ino]]
    assert [recipient for _, recipient in run.got] == [b"r1@y"]


def test_a_maildir_that_is_not_there_at_the_start(run: Run) -> None:
    """A disk may be mounted later than the daemon starts; and it is said what is waited for."""
    run.path.rename(run.path.with_name("away"))
    run.at(100, lambda: make_maildir(run.path))
    run.at(101, lambda: run.add(1))
    run.go(200)
    assert [recipient for _, recipient in run.got] == [b"r1@y"]
    assert run.said("cannot open the maildir directory") == 1
    assert run.said("trying again every 30 s") == 1


def test_one_that_was_there_is_waited_for(run: Run) -> None:
    """A daemon does not die of a disk that is unmounted."""
    away = run.path.with_name("away")
    run.at(10, lambda: run.path.rename(away))
    run.go(200)
    assert run.states[-1:] == ["no maildir"]
    assert run.worker.snapshot.state == "stopped"


def test_one_that_another_process_has(run: Run) -> None:
    """Until that ends; it is said who it is."""
    other = Maildir(os.fsencode(run.path))
    other.lock()
    run.add(1)
    run.at(70, other.close)
    worker = run.make()
    run.at(200, worker.stop)
    worker.run()
    assert run.said("is locked by process") == 1
    assert run.got == [(90.0, b"r1@y")]


def test_one_that_another_process_has_until_the_end(run: Run) -> None:
    """The status file in it is that other daemon's; see `Supervisor._published`."""
    other = Maildir(os.fsencode(run.path))
    other.lock()
    run.go(200)
    assert set(run.states) == {"no maildir"}
    assert run.worker.snapshot.state == "stopped"
    other.close()


def test_the_end_is_told_while_the_maildir_is_locked(run: Run) -> None:
    """After it, the next daemon has written a status file of its own."""
    locked = []

    def on_publish(snapshot: Snapshot) -> None:
        with Maildir(os.fsencode(run.path)) as maildir:
            try:
                maildir.lock()
            except LockedError:
                locked.append(snapshot.state)

    run.add(1)
    worker = run.make()
    worker._on_publish = on_publish
    run.at(10, worker.stop)
    run.run()
    assert locked[-1] == "stopped"


def test_the_end_of_one_is_not_that_of_another_by_another_path(run: Run) -> None:
    """A link was left where the maildir was; `qmtpq flush` then knew of no daemon."""
    run.add(1)
    worker = run.make()
    run.at(10, worker.stop)
    with Maildir(os.fsencode(run.path)) as maildir, run.locks.hold(maildir, worker.route.prefix):
        run.run()
    assert worker.snapshot.state == "stopped"
    assert run.states == ["idle", "connected"]


def test_a_maildir_that_cannot_be_listed_is_said_once(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not with each rescan, and not that all is well in between."""
    scan = Maildir.scan

    def failing(self: Maildir, *arguments: object) -> object:
        if 20 <= run.clock.now - 1_000.0 < 500:
            raise LocalError("cannot list new/: Too many open files")
        return scan(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Maildir, "scan", failing)
    run.at(50, lambda: run.add(1))
    run.go(700)
    assert run.said("cannot list new/") == 1
    assert run.said("in order again") == 1
    assert len(run.got) == 1


def test_a_rescan_of_a_month_is_no_more_than_can_be_waited(run: Run) -> None:
    """epoll and threading refuse it with an OverflowError: the daemon would die."""
    run.path.rename(run.path.with_name("away"))
    run.at(100, lambda: make_maildir(run.path))
    run.go(40 * 86_400.0, rescan_s=30 * 86_400.0)
    assert run.states == ["no maildir", "idle", "stopped"]


def test_an_engine_waits_no_longer_than_epoll_can(tmp_path: Path) -> None:
    """24 days are the most; `--rescan 30d` is more."""
    path = os.fsencode(make_maildir(tmp_path / "Maildir"))
    route = Route(path, TcpEndpoint("mail.example.org"))
    clock = FakeClock()
    with Maildir(path) as maildir:
        queue = WatchQueue(maildir, False, 60 * 86_400.0, clock, clock)
        report = Report(io.StringIO())
        forwarder = Forwarder(route, maildir, report, clock=clock, wall_clock=clock, queue=queue)
        queue.scan()
        forwarder.wake.set()
        forwarder.rest(clock() + 30 * 86_400.0)
        assert not forwarder.wake._is_set, "it was not woken"
        forwarder.close()


def test_a_file_that_an_event_names_goes_at_once(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a scan, also over a connection that is there already; the scan comes in its time."""
    scans: list[float] = []
    real = Maildir.scan

    def scan(self: Maildir, *args: Any) -> Any:
        scans.append(run.clock.now - 1_000.0)
        return real(self, *args)

    def come(number: int) -> None:
        before = set(run.new)
        run.add(number)
        (name,) = set(run.new) - before
        run.watches[-1].hint(os.fsencode(name))

    monkeypatch.setattr(Maildir, "scan", scan)
    run.at(5, lambda: come(1))
    run.at(7, lambda: come(2))
    run.go(40)
    assert run.got == [(5.0, b"r1@y"), (7.0, b"r2@y")]
    assert len(run.connects) == 1
    assert scans == [0.0, 30.0]


# The server


def test_backoff_doubles_and_begins_anew_after_an_answer(run: Run) -> None:
    """One line for each step; a server that is back counts as new."""
    run.scripts = [*[REFUSED] * 4, accept]
    run.add(1)

    def down() -> None:
        run.servers[-1].hang_up()
        run.scripts = [REFUSED, accept]

    run.at(50, down)
    run.at(51, lambda: run.come(2))
    run.go(100)
    assert run.connects == [0.0, 1.0, 3.0, 7.0, 15.0, 51.0, 52.0]
    tries = [line for line in run.lines if "next try in" in line]
    assert [line.split("next try in ")[1] for line in tries] == [
        "1.0 s",
        "2.0 s",
        "4.0 s",
        "8.0 s",
        "1.0 s",
    ]
    assert all("refused" in line and "1 waiting" in line for line in tries)
    assert run.new == []


def test_backoff_begins_anew_though_the_clock_was_set_back(run: Run) -> None:
    """A laptop's clock was years ahead: that must not make it call every five minutes for years."""
    run.add(1)

    def down() -> None:
        run.wall_s -= 1e8
        run.scripts = [*[REFUSED] * 3, accept]
        run.servers[-1].hang_up()

    run.at(10, down)
    run.at(11, lambda: run.come(2))
    again: list[float] = []

    def down_again() -> None:
        again.append(len(run.connects))
        run.scripts = [REFUSED, accept]
        run.servers[-1].hang_up()

    run.at(30, down_again)
    run.at(31, lambda: run.come(3))
    run.go(60)
    assert run.connects == [0.0, 11.0, 12.0, 14.0, 18.0, 31.0, 32.0]


def test_while_it_backs_off_new_mail_waits(run: Run) -> None:
    """An event is no reason to call a server that is down again and again."""
    run.scripts = [REFUSED]
    run.add(1)
    for number in range(50):
        run.at(8 + number / 10, lambda number=number: run.come(number + 2))  # type: ignore[misc]
    run.go(14)
    assert run.connects == [0.0, 1.0, 3.0, 7.0]
    assert run.states == ["idle", "backing off", "stopped"]
    (_, last) = [p for p in run.published if p[1].state == "backing off"][-1]
    assert last.messages == 51
    assert "refused" in last.stop_reason
    assert last.connect_at_s == pytest.approx(NOW + 15.0)
    assert last.line().startswith("51 waiting; backing off; cannot connect")


def test_try_all_means_now(run: Run) -> None:
    """An ifup hook says that the link is there: what waits, and who waits, is tried."""
    run.scripts = [*[REFUSED] * 8, defer, accept]
    run.add(1)
    worker = run.make()
    run.at(128, worker.try_all)
    run.at(130, worker.try_all)
    run.at(133, lambda: run.servers[-1].hang_up())
    run.at(140, worker.try_all)
    run.at(150, worker.stop)
    run.run()
    assert run.connects[:8] == [0.0, 1.0, 3.0, 7.0, 15.0, 31.0, 63.0, 127.0]
    assert run.connects[8:] == [128.0, 140.0]
    assert [when for when, _ in run.got] == [128.0, 130.0, 140.0]
    assert run.new == []


def test_try_all_resets_the_backoff(run: Run) -> None:
    """If the link was not there after all, the next tries come soon again."""
    run.scripts = [REFUSED]
    run.add(1)
    worker = run.make()
    run.at(20, worker.try_all)
    run.at(28, worker.stop)
    run.run()
    assert run.connects == [0.0, 1.0, 3.0, 7.0, 15.0, 20.0, 21.0, 23.0, 27.0]


def test_try_all_looks_for_a_maildir_that_was_not_there(run: Run) -> None:
    """A disk was mounted, and its mount hook says so."""
    run.path.rename(run.path.with_name("away"))

    def mount() -> None:
        run.path.with_name("away").rename(run.path)
        run.add(1)
        worker.try_all()

    worker = run.make()
    run.at(10, mount)
    run.at(20, worker.stop)
    run.run()
    assert run.got == [(10.0, b"r1@y")]


def test_try_all_does_not_make_it_busy(run: Run) -> None:
    """One look for a maildir that is still not there; then it waits again."""
    run.path.rename(run.path.with_name("away"))
    worker = run.make()
    run.at(10, worker.try_all)
    run.at(80, worker.stop)
    run.run()
    looks = [when for when, snapshot in run.published if snapshot.state == "no maildir"]
    assert looks == [0.0, 10.0, 40.0, 70.0]


def test_a_deferred_message_is_tried_on_its_schedule(run: Run) -> None:
    """At birth + 400, 1,600, 3,600 s."""
    run.scripts = [defer]
    run.add(1)
    run.go(4_000, idle_s=10.0)
    assert [round(when, 3) for when, _ in run.got] == [0.0, 400.0, 1600.0, 3600.0]
    (_, snapshot) = run.published[-1]
    (waiter,) = snapshot.waiters
    assert (waiter.tries, waiter.reason) == (4, "later")
    assert waiter.next_s == pytest.approx(NOW + 6_400.0)
    assert snapshot.oldest_s == NOW
    assert snapshot.answered_s == pytest.approx(NOW + 3_600.0)


def test_the_last_answer_is_told_while_the_connection_is_still_there(run: Run) -> None:
    """A busy daemon never lets go of it: who looks for silence would be alarmed for ever."""
    run.add(1)
    run.at(5, lambda: run.add(1))
    run.go(40, idle_s=100.0)
    told = [s.answered_s for _, s in run.published if s.state == "connected"]
    assert told[-1] == pytest.approx(NOW + RESCAN_S)


# Another route on the same maildir


def test_a_message_that_another_route_has_is_sent_when_that_lets_go_of_it(run: Run) -> None:
    """At once: nobody tells us of it but that route, whose own sleep is as long as ours."""
    run.add(1)
    (name,) = run.new
    other = Maildir(os.fsencode(run.path))
    holding = run.locks.hold(other)
    reservations = holding.__enter__().reservations

    class Other:
        def look_again(self) -> None:
            raise AssertionError("it was not refused")

    assert reservations.take(os.fsencode(name), Other())

    def end() -> None:
        worker.stop()
        holding.__exit__(None, None, None)
        other.close()

    worker = run.make()
    run.at(7, lambda: reservations.release(os.fsencode(name)))
    run.at(20, end)
    worker.run()
    assert run.got == [(7.0, b"r1@y")]


def test_what_is_done_with_is_let_go_of(run: Run) -> None:
    """Accepted, deferred, held, not ours, or cut off: the other route can have it."""
    run.scripts = [lambda server, package: server.hang_up(), defer, accept]
    run.add(1, b"p-1@y")
    run.add(2, b"q-2@y")
    add_message(run.path, "1.held", b"\n", None, None)
    free: list[bool] = []

    class Other:
        def look_again(self) -> None:
            raise AssertionError("it was not refused")

    def look() -> None:
        ((_, shared),) = run.locks._held.values()
        free.extend(shared.reservations.take(os.fsencode(name), Other()) for name in run.new)

    run.at(100, look)
    run.go(110, prefix=b"p-", idle_s=1.0)
    assert free == [True, True, True]


def test_what_is_released_goes_with_the_next_look(run: Run) -> None:
    """Who may not send the daemon a signal may release: it waited for its next try, for hours."""
    name = f"{int(run.wall()) - 86_400}.1"
    add_message(run.path, name, b"text\n", b"s@x", b"r1@y")
    os.utime(run.path / "new" / name, (run.wall() - 86_400, run.wall() - 86_400))

    def hold(held: bool) -> None:
        with Maildir(os.fsencode(run.path)) as maildir:
            names_of = [os.fsencode(name)]
            holds.change(
                maildir.root,
                state.NAME,
                state.MAX_BYTES,
                hold=names_of if held else [],
                release=[] if held else names_of,
            )

    hold(True)
    run.at(100, lambda: hold(False))
    run.go(300)
    assert [recipient for _, recipient in run.got] == [b"r1@y"]
    assert run.got[0][0] <= 100 + RESCAN_S


@pytest.mark.parametrize("idle_s", [60.0, 1_800.0])
def test_what_further_connections_come_to_keeps_no_mail_from_the_first(
    run: Run, idle_s: float
) -> None:
    """The server takes one connection at a time from us, and hangs up on each second one."""

    def soon(server: FakeServer, package: Package) -> None:
        run.clock.at(run.clock() + 0.1, lambda: server.respond(b"Kok"))

    run.scripts = [soon]
    connect, came = run.connect, {}

    def one_only(server: Endpoint, timeout_s: float) -> FakeServer:
        is_second = any(not one.closed for one in run.servers)
        made = connect(server, timeout_s)
        if is_second:
            run.clock.at(run.clock() + 0.2, made.hang_up)
        return made

    run.connect = one_only  # type: ignore[method-assign]
    for number in range(1, 41):
        came[b"r%d@y" % number] = at = 10.0 + 40 * number
        run.at(at, lambda number=number: run.come(number))  # type: ignore[misc]
    run.go(2_000.0, connections=2, idle_s=idle_s)
    assert len(run.got) == len(came)
    assert len(run.connects) > 16
    assert max(at - came[recipient] for at, recipient in run.got) < 1.0


# Stopping


def test_told_to_stop_before_it_began(run: Run) -> None:
    """TERM right after the start."""
    run.add(1)
    run.make().stop()
    run.run()
    assert (run.got, run.states) == ([], [])
    assert run.worker.snapshot.state == "stopped"


def test_told_to_stop_between_the_maildir_and_the_engine(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There was no forwarder to tell yet; without another look it would go on for ever."""
    hold = MaildirLocks.hold

    def stopping(self: MaildirLocks, maildir: Maildir, prefix: bytes) -> object:
        run.worker._stopping.set()
        return hold(self, maildir, prefix)

    monkeypatch.setattr(MaildirLocks, "hold", stopping)
    run.add(1)
    run.make()
    run.run()
    assert run.got == []


def test_told_to_stop_while_the_maildir_is_not_there(run: Run) -> None:
    """At once, not after the rescan."""
    run.path.rename(run.path.with_name("away"))
    run.go(40)
    assert run.clock.now == 1_040.0
    assert run.states == ["no maildir"]
    assert run.worker.snapshot.state == "stopped"


@pytest.mark.parametrize("scripts", [[accept], [REFUSED]], ids=["connected", "backing off"])
def test_told_to_stop_while_nothing_is_in_flight(run: Run, scripts: list[FakeScript]) -> None:
    """At once."""
    run.scripts = list(scripts)
    run.add(1)
    run.go(12.5)
    assert run.clock.now == 1_012.5
    assert run.states[-1] == "stopped"


def test_told_to_stop_while_it_connects(run: Run) -> None:
    """What is reached then is not used."""

    def connect(server: Endpoint, timeout_s: float) -> FakeServer:
        seen.append(run.worker.connecting)
        run.worker.stop()
        return run.connect(server, timeout_s)

    seen: list[bool] = []
    run.add(1)
    worker = run.make()
    worker._connector = connect
    run.run()
    assert seen == [True]
    assert not worker.connecting
    assert (run.got, len(run.new)) == ([], 1)


def test_told_to_stop_with_a_message_in_flight(run: Run) -> None:
    """Its answer is waited for and carried out; nothing more is taken."""

    def late(server: FakeServer, package: Package) -> None:
        run.clock.at(1_020.0, lambda: server.respond(b"Kok"))

    run.scripts = [late]
    run.add(1)
    run.at(10, lambda: run.come(2))
    run.go(10, window_messages=1)
    assert run.clock.now == 1_020.0
    assert len(run.got) == 1
    assert len(run.new) == 1


def test_a_server_that_never_answers_delays_the_end_by_half_a_minute(run: Run) -> None:
    """And the message is still there."""
    run.scripts = [lambda server, package: None]
    run.add(1)
    run.go(10)
    assert run.clock.now == 1_010.0 + STOP_S
    assert len(run.new) == 1
    assert run.report.counters.in_doubt == 1


# What cannot be removed


def test_stuck_and_mended(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server has it and it cannot be removed: never sent again, nothing more is taken."""
    files = FileSystem(monkeypatch, run.path)
    files.always_fail("unlink new/1", errno.EROFS)
    run.add(1)
    run.at(5, lambda: run.come(2))
    run.at(100, files.heal)
    run.go(200)
    assert [recipient for _, recipient in run.got] == [b"r1@y", b"r2@y"]
    assert run.got[1][0] == 120.0
    assert run.new == []
    assert run.said("going on") == 1
    assert run.states == ["idle", "stuck", "idle", "connected", "idle", "stopped"]
    assert not run.worker.stuck


def test_mail_that_comes_while_stuck_makes_no_work(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each message would have all that is stuck tried again: copied to a full disk, say."""
    files = FileSystem(monkeypatch, run.path)
    files.always_fail("unlink new/1", errno.EROFS)
    run.add(1)
    for number in range(2, 22):
        run.at(number, lambda number=number: run.come(number))  # type: ignore[misc]
    tried = []
    mend = Forwarder.mend

    def note(self: Forwarder) -> bool:
        tried.append(run.clock.now - 1_000.0)
        return mend(self)

    monkeypatch.setattr(Forwarder, "mend", note)
    run.at(70, lambda: run.worker.try_all())
    run.go(80)
    assert tried == [30.0, 60.0, 70.0], "with each rescan, and when the administrator asks for it"
    assert len(run.published) < 30


def test_mended_without_more_mail_is_no_trouble_any_more(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The metric, and the exit code, are of what is the case now."""
    files = FileSystem(monkeypatch, run.path)
    files.always_fail("unlink new/1", errno.EROFS)
    run.add(1)
    run.at(100, files.heal)
    run.go(125)
    assert run.states == ["idle", "stuck", "idle", "stopped"]


@pytest.mark.parametrize("when", [1.5, 20.0, 35.0, 95.0])
def test_stopped_while_stuck_says_so_to_the_end(
    run: Run, monkeypatch: pytest.MonkeyPatch, when: float
) -> None:
    """Exit code 0 would tell an administrator that nothing will be sent again."""
    FileSystem(monkeypatch, run.path).always_fail("unlink new/1", errno.EROFS)
    run.add(1)
    run.go(when)
    assert run.worker.stuck
    assert run.states == ["idle", "stuck"]
    assert run.said("remove it by hand") == 1
    assert len(run.got) == 1


def test_an_outage_of_the_disk_sends_nothing_twice(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A moment of EIO is no other maildir: what the server has taken is known when it is over."""
    files = FileSystem(monkeypatch, run.path)
    stat = os.stat

    def failing(path: Any, **options: Any) -> os.stat_result:
        if 3 <= run.clock.now - 1_000.0 < 100:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return stat(path, **options)

    monkeypatch.setattr(os, "stat", failing)
    files.always_fail("unlink new/1", errno.EIO)
    run.add(1)
    run.at(100, files.heal)
    run.at(200, lambda: run.come(2))
    run.go(300)
    assert [recipient for _, recipient in run.got] == [b"r1@y", b"r2@y"]
    assert run.new == []
    assert run.said("opening it anew") == 0


def test_what_was_taken_is_known_when_the_maildir_is_back(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that is unmounted and mounted again has the message still, and the server as well."""
    files, away = FileSystem(monkeypatch, run.path), run.path.with_name("away")
    for path in ("new/1", f"{away}/new/1"):
        files.always_fail(f"unlink {path}", errno.EIO)
    run.add(1)
    run.at(10, lambda: run.path.rename(away))
    run.at(200, lambda: away.rename(run.path))
    run.at(400, files.heal)
    run.at(500, lambda: run.come(2))
    run.go(600)
    assert [recipient for _, recipient in run.got] == [b"r1@y", b"r2@y"]
    assert run.new == []
    assert run.states[-3:] == ["connected", "idle", "stopped"]
    assert not run.worker.stuck


def test_what_was_taken_is_known_to_the_route_after_it(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """HUP with another option makes a new route; the server must not get the message from it."""
    files = FileSystem(monkeypatch, run.path)
    files.always_fail("unlink new/1", errno.EROFS)
    run.add(1)
    run.go(20)
    assert run.worker.stuck
    run.at(100, files.heal)
    run.go(200, idle_s=7.0)
    assert [recipient for _, recipient in run.got] == [b"r1@y"]
    assert run.new == []
    assert not run.worker.stuck
    assert run.locks._kept == {}


class OtherRoute:
    """The queue of another route of the maildir."""

    told = 0

    def look_again(self) -> None:
        """See `RouteQueue`."""
        self.told += 1


def test_what_was_taken_is_no_other_routes_until_it_can_be_removed(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would rewrite the sidecar, and those who have the message would get it once more."""
    files, other = FileSystem(monkeypatch, run.path), OtherRoute()
    files.always_fail("unlink new/1", errno.EROFS)
    run.add(1)
    name = os.fsencode(run.new[0])
    with Maildir(os.fsencode(run.path)) as maildir, run.locks.hold(maildir) as shared:
        run.at(10, lambda: seen.append(shared.reservations.take(name, other)))
        run.at(100, files.heal)
        seen: list[bool] = []
        run.go(200)
        assert seen == [False]
        assert other.told == 1
        assert shared.reservations.take(name, other)


@pytest.mark.parametrize("back_s", [0, 50])
def test_a_slow_disk_for_sent_mail_is_no_thread_that_hangs(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, back_s: int
) -> None:
    """A full window was accepted at once; systemd killed the process, and all of it went again.

    The same where that disk was away for a moment.
    """

    def answer_all(server: FakeServer, package: Package) -> None:
        if len(run.got) == 5:
            server.respond(*[b"Kok"] * 5)

    def slow(*arguments: object) -> None:
        if run.clock.now < 1_000 + back_s:
            raise LocalError("the disk is away")
        run.clock.advance(10.0)
        adopt(*arguments)  # type: ignore[arg-type]

    adopt = writing.adopt
    monkeypatch.setattr(writing, "adopt", slow)
    run.scripts = [answer_all]
    for number in range(5):
        run.add(number)
    run.go(150, sent=os.fsencode(tmp_path / "Sent"))
    assert len(names(tmp_path / "Sent" / "new")) == 5
    assert len(run.got) == 5


def test_what_some_have_is_no_other_routes_though_the_connection_broke(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others of its recipients have no answer; the first would get it once more."""

    def half(server: FakeServer, package: Package) -> None:
        files.always_fail("rename tmp/* -> envelope", errno.EROFS)
        server.respond(b"Kok")
        server.hang_up()

    files, other = FileSystem(monkeypatch, run.path), OtherRoute()
    run.scripts = [half, accept]
    run.add(1)
    add_sidecar(run.path, run.new[0], "s@x", "a@y", "b@y")
    name = os.fsencode(run.new[0])
    with Maildir(os.fsencode(run.path)) as maildir, run.locks.hold(maildir) as shared:
        run.at(10, lambda: seen.append(shared.reservations.take(name, other)))
        run.at(100, files.heal)
        seen: list[bool] = []
        run.go(4_000)
    assert seen == [False]
    assert other.told == 1
    assert [recipient for _, recipient in run.got] == [b"a@y", b"b@y"]
    assert run.new == []


def test_what_was_taken_is_known_though_another_route_has_it_in_hand(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After HUP, that one came first, and its own route sent it again."""
    FileSystem(monkeypatch, run.path).always_fail("unlink new/1", errno.EROFS)
    run.add(1, b"a-x@y")
    with Maildir(os.fsencode(run.path)) as other, run.locks.hold(other) as shared:
        run.go(20, prefix=b"a-")
        assert len(shared.stuck.take()) == 1
        run.go(200, prefix=b"a-", idle_s=7.0)
    assert [recipient for _, recipient in run.got] == [b"x@y"]


def test_what_a_removed_route_has_left_is_removed_by_another(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody else would, and it would stay reserved for as long as the daemon lives."""
    files = FileSystem(monkeypatch, run.path)
    files.always_fail("unlink new/1", errno.EROFS)
    run.add(1, b"a-x@y")
    with Maildir(os.fsencode(run.path)) as other, run.locks.hold(other) as shared:
        run.go(20, prefix=b"a-")
        left = shared.stuck.take()
        files.heal()
        run.at(45, lambda: shared.stuck.put(left))
        run.go(100, prefix=b"b-")
        assert run.new == []
        assert shared.reservations.keys() == []


@pytest.mark.parametrize("shard", [None, Shard(1, 2)])
def test_what_was_taken_is_known_to_a_route_with_another_shard(
    run: Run, monkeypatch: pytest.MonkeyPatch, shard: Shard | None
) -> None:
    """HUP changes that like any option."""
    files = FileSystem(monkeypatch, run.path)
    files.always_fail("unlink new/1", errno.EROFS)
    run.add(1)
    run.go(20, shard=Shard(0, 1))
    run.at(100, files.heal)
    run.go(200, shard=shard)
    assert [recipient for _, recipient in run.got] == [b"r1@y"]
    assert run.new == []
    assert run.locks._kept == {}


def test_stuck_in_the_last_moment_is_no_success(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit code 0 beside "it will be sent again" tells nobody to remove it by hand."""

    def late(server: FakeServer, package: Package) -> None:
        run.clock.at(1_000.5, lambda: server.respond(b"Kok"))

    FileSystem(monkeypatch, run.path).always_fail("unlink new/1", errno.EROFS)
    run.scripts = [late]
    run.add(1)
    run.go(0.2)
    assert run.said("remove it by hand") == 1
    assert run.worker.stuck
    assert run.states[-1] == "stuck"


def test_stuck_is_no_success_though_the_maildir_is_gone(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may come back, and the message with it."""
    files, away = FileSystem(monkeypatch, run.path), run.path.with_name("away")
    for path in ("new/1", f"{away}/new/1"):
        files.always_fail(f"unlink {path}", errno.EROFS)
    run.add(1)
    run.at(10, lambda: run.path.rename(away))
    run.go(100)
    assert run.worker.stuck
    assert run.states[-1:] == ["no maildir"]
    assert run.worker.snapshot.state == "stuck"


def test_a_maildir_that_cannot_be_changed_is_said_once(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is sent that could not be removed; when it can be, all goes."""
    files = FileSystem(monkeypatch, run.path)
    files.always_fail("unlink new/.maildirqmtp-probe", errno.EROFS)
    run.add(1)
    run.at(300, files.heal)
    run.go(400)
    assert run.said("cannot change") == 1
    assert run.said("in order again") == 1
    assert [when for when, _ in run.got] == [300.0]


# What it tells of itself


def test_it_publishes_at_most_once_a_second_and_never_keeps_the_last_back(run: Run) -> None:
    """A status file is written for a thousand messages once, and then says what is the case."""
    for number in range(100):
        run.at(10 + number / 20, lambda number=number: run.come(number))  # type: ignore[misc]
    run.go(40)
    times = [when for when, _ in run.published][:-1]
    assert all(b - a >= PUBLISH_S for a, b in pairwise(times))
    assert 5 <= len(times) <= 9
    assert run.published[-2][1].counters["accepted"] == 100
    assert run.published[-2][0] <= 16.0


def test_the_last_of_what_happens_is_published_though_nothing_follows(run: Run) -> None:
    """`--status` right after a deferral shows it, not half a minute later."""
    run.scripts = [defer]
    run.at(10, lambda: run.come(1))
    run.go(25)
    (when, _) = next(p for p in run.published if p[1].counters["deferred"])
    assert when <= 10.0 + PUBLISH_S


def test_a_change_that_is_undone_does_not_make_it_busy(run: Run) -> None:
    """What was to be published is as it was: there is nothing to wake up for."""

    def leave() -> None:
        (name,) = run.new
        (run.path / "new" / name).unlink()

    def hint() -> None:
        run.watches[-1].hint()

    run.at(10.0, lambda: run.come(1))
    run.at(10.1, hint)  # published
    run.at(10.2, leave)
    for when in (10.3, 10.4, 10.5):  # two scans miss it; to be published, when it is time
        run.at(when, hint)
    run.at(10.6, lambda: run.come(2))
    run.at(10.7, hint)  # as it was
    run.go(500, prefix=b"none-")
    assert len(run.published) < 10


def test_while_nothing_happens_nothing_is_published(run: Run) -> None:
    """A laptop's disk may sleep."""
    run.go(10_000)
    assert run.states == ["idle", "stopped"]
    assert len(run.published) == 2


def test_of_very_many_messages_some_are_told(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The count is of all; the status file stays small."""
    monkeypatch.setattr(daemon_module, "MOST_SHOWN", 3)
    assert MOST_SHOWN > 3
    run.scripts = [REFUSED]
    for number in range(5):
        run.add(number)
    run.go(2)
    (_, snapshot) = run.published[-1]
    assert (snapshot.messages, len(snapshot.waiters)) == (5, 3)
    json.dumps(snapshot.as_dict())


def test_a_held_message_is_told_with_its_reason(run: Run) -> None:
    """And once: not by each look."""
    add_message(run.path, "1.held", b"\n", None, None)
    worker = run.make()
    run.at(500, worker.try_all)
    run.at(600, worker.stop)
    run.run()
    assert run.said("held") == 1
    (waiter,) = run.published[-1][1].waiters
    assert waiter.tries == 2 + 1 * (waiter.tries > 2)
    assert "no envelope" in waiter.reason


def test_a_supervisor_sees_that_it_hangs(run: Run) -> None:
    """Time passes in a turn, and nothing comes back: `watchdog_deadline` is in the past."""

    def hang(server: FakeServer, package: Package) -> None:
        if package.recipients == (b"r2@y",):
            run.clock.check = lambda: None
            run.clock.now += RESCAN_S + 2 * SLACK_S
            seen.append(run.worker.watchdog_deadline < run.clock.now)
        server.respond(b"Kok")

    seen: list[bool] = []
    run.scripts = [hang]
    run.add(1)
    run.at(10, lambda: run.come(2))
    run.go(200)
    assert seen == [True]


def test_a_slow_connection_is_no_hanging(run: Run) -> None:
    """Ten addresses that do not answer take their time each."""

    def connect(server: Endpoint, timeout_s: float) -> FakeServer:
        run.clock.now += 9 * timeout_s
        assert run.clock.now <= run.worker.watchdog_deadline
        raise REFUSED

    run.add(1)
    worker = run.make()
    worker._connector = connect
    run.at(700, worker.stop)
    run.run()


def test_no_descriptor_is_left_to_wait_with(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other programs have them all for a while: that is said, and mail goes when they are done."""
    real = os.eventfd

    def scarce(count: int, flags: int) -> int:
        if run.clock.now - 1_000.0 < 20:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return real(count, flags)

    monkeypatch.setattr(os, "eventfd", scarce)
    run.add(1)
    run.go(100)
    assert run.new == []
    assert run.said("Too many open files; this process may have") == 1
    assert run.said("LimitNOFILE=") == 1
    assert run.said("in order again") == 1
