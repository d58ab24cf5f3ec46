"""Warnings of delays by a daemon: of what really waits, and never in the way of the mail."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from maildirqmtp.daemon.chores import LOOK_S, Chores
from maildirqmtp.daemon.queue import WatchQueue
from maildirqmtp.daemon.reservations import Reservations
from maildirqmtp.errors import LocalError
from maildirqmtp.forwarder import bounces
from maildirqmtp.forwarder.forwarder import Forwarder
from maildirqmtp.forwarder.report import Report
from maildirqmtp.forwarder.route import Route
from maildirqmtp.maildir import holds
from maildirqmtp.maildir.maildir import Maildir
from maildirqmtp.maildir.state import MAX_BYTES, NAME, State
from maildirqmtp.transport.endpoint import TcpEndpoint
from tests.fakes import FakeClock
from tests.helpers import add_message, make_maildir

NOW = 1_800_000_000.0
HOUR_S = 3_600.0


class Bench:
    """A maildir with three messages of 5 hours, warned of after 4, and the mailer of its route."""

    def __init__(self, path: Path) -> None:
        self.path = make_maildir(path)
        self.clock = FakeClock()
        self.told: list[bytes] = []
        self.refused: set[bytes] = set()
        self.now = NOW
        for number in range(3):
            name = f"{int(NOW - 5 * HOUR_S)}.{number}"
            add_message(self.path, name, sender=b"%d@x" % number)
            os.utime(self.path / "new" / name, (NOW - 5 * HOUR_S, NOW - 5 * HOUR_S))
        self.maildir = Maildir(os.fsencode(path))
        self.queue = WatchQueue(
            self.maildir, False, 30.0, self.clock, lambda: self.now, Reservations()
        )
        self.queue.scan()
        self.state = State(self.maildir.root, self.clock, lambda: self.now)
        self.forwarder = SimpleNamespace(stopping=False, local_error=None, connected=True)
        self.log = io.StringIO()

    def begin(self) -> None:
        """Start the route."""
        server = TcpEndpoint("mail.example.org")
        route = Route(os.fsencode(self.path), server, bounce=True, warn_after_s=4 * HOUR_S)
        report = Report(self.log)
        self.chores = Chores(
            route, report, self.maildir, self.state, self.clock, lambda: self.now, self.queue
        )

    def can_reach(self, recipient: bytes) -> bool:
        """See `mailers.Mailer`."""
        return True

    def send(self, bounce: bytes, recipient: bytes, identifier: str) -> bytes | None:
        """See `mailers.Mailer`."""
        if recipient in self.refused:
            raise LocalError(f"exit 67 {recipient!r}")
        self.told.append(recipient)
        return None

    def look(self) -> list[bytes]:
        """Have it look at all messages, until nothing is to be done; return who was told."""
        before = len(self.told)
        self.clock.now += LOOK_S
        for _ in range(10):
            self.chores.tick(cast(Forwarder, self.forwarder))
        assert (self.chores.next_at or 0.0) > self.clock.now, "the route would go round in circles"
        return self.told[before:]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Bench]:
    """A route that has begun."""
    made = Bench(tmp_path / "M")
    monkeypatch.setattr(bounces, "make_mailer", lambda *_: made)
    made.begin()
    yield made
    made.maildir.close()


def test_a_backlog_on_a_link_that_is_never_idle_is_told_of(bench: Bench) -> None:
    """Connected all the time, and never tried: these wait for longest, and nobody heard of it."""
    assert bench.queue.take() is not None
    assert bench.look() == [b"1@x", b"2@x"], "but not of what may be accepted by now"


@pytest.mark.parametrize("what", [{"stopping": True}, {"local_error": LocalError("read-only")}])
def test_on_the_way_out_and_where_removing_fails_nobody_is_told(
    bench: Bench, what: dict[str, object]
) -> None:
    """A slow sendmail would keep answers waiting; and what the server has does not wait."""
    before = vars(bench.forwarder).copy()
    vars(bench.forwarder).update(what)
    assert bench.look() == []
    vars(bench.forwarder).update(before)
    assert len(bench.look()) == 3


def test_stopped_in_the_middle_of_a_look(bench: Bench) -> None:
    """Those that are left are told of by the next daemon; the route does not spin until then."""
    bench.clock.now += LOOK_S
    for _ in range(2):
        bench.chores.tick(cast(Forwarder, bench.forwarder))
    assert len(bench.told) == 1
    bench.forwarder.stopping = True
    assert bench.look() == []


def test_what_an_administrator_holds_is_told_of_when_it_is_let_go(bench: Bench) -> None:
    """Not before: people hold mail that its sender is not to ask for."""
    held = [entry.name for entry in bench.queue.waiting()]
    holds.change(bench.maildir.root, NAME, MAX_BYTES, hold=held, release=[])
    assert bench.look() == []
    holds.change(bench.maildir.root, NAME, MAX_BYTES, hold=[], release=held[1:])
    assert bench.look() == [b"1@x", b"2@x"]


def test_those_that_failed_come_last_in_the_next_look(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that two whom the mailer never takes keep nobody else from being told."""
    monkeypatch.setattr("maildirqmtp.forwarder.delay_warnings.MOST_FAILURES", 2)
    bench.refused = {b"0@x", b"1@x"}
    assert bench.look() == []
    assert bench.look() == [b"2@x"]


def test_a_full_state_file_forgets_only_what_is_gone(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else those who are still waiting were told a second time."""
    monkeypatch.setattr("maildirqmtp.maildir.warned.MOST_WARNED", 3)
    for name in (b"gone.1", b"gone.2"):
        bench.state.note_warned(name, b"")
    assert bench.queue.take() is not None
    out = next(bench.queue.waiting()).name
    bench.state.note_warned(out, b"")
    del bench.queue._known[out]  # as where another route has it in hand
    assert bench.look() == [b"1@x", b"2@x"]
    assert bench.state.was_warned(out, b"")
    assert bench.look() == []
