"""A daemon's chores: warnings of what really waits, old mail removed, none in the way of mail."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from maildirqmtp.daemon.chores import FIRST_LOOK_S, LOOK_S, Chores
from maildirqmtp.daemon.queue import WatchQueue
from maildirqmtp.daemon.reservations import Reservations
from maildirqmtp.errors import LocalError
from maildirqmtp.forwarder import bounces
from maildirqmtp.forwarder.forwarder import Forwarder
from maildirqmtp.forwarder.report import Report
from maildirqmtp.forwarder.route import Route
from maildirqmtp.maildir import expiry, holds
from maildirqmtp.maildir.maildir import Maildir
from maildirqmtp.maildir.state import MAX_BYTES, NAME, State
from maildirqmtp.transport.endpoint import TcpEndpoint
from tests.fakes import FakeClock
from tests.helpers import add_message, make_maildir, names, open_descriptors

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

    def begin(self, **options: object) -> None:
        """Start the route, one that warns where nothing else is said."""
        server = TcpEndpoint("mail.example.org")
        chosen = options or {"bounce": True, "warn_after_s": 4 * HOUR_S}
        route = Route(os.fsencode(self.path), server, **chosen)  # type: ignore[arg-type]
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
    made.chores.close()
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
    assert bench.chores.next_at == bench.clock.now, "the next one waits for nothing"
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


# Old mail


@pytest.fixture
def keeping(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """A route that keeps failed mail for a day; there are five that are older, two in a portion."""
    failed = make_maildir(bench.path / ".Failed")
    for number in range(5):
        add_message(failed, f"1.{number}")
    bench.now = time.time() + 2 * 86_400.0
    monkeypatch.setattr(expiry, "PORTION_FILES", 2)
    bench.begin(keep_failed_s=86_400.0)
    return bench


def left(bench: Bench) -> int:
    """Return how many messages are left in the failed maildir."""
    return len(names(bench.path / ".Failed" / "new"))


def tick(bench: Bench) -> int:
    """Do what is due; return how many messages are left then."""
    bench.chores.tick(cast(Forwarder, bench.forwarder))
    return left(bench)


def test_old_mail_goes_in_portions_between_which_mail_is_sent(keeping: Bench) -> None:
    """A million at once would keep fresh mail waiting for a minute."""
    assert keeping.chores.next_at == keeping.clock.now + FIRST_LOOK_S
    assert tick(keeping) == 5, "what waits at the start goes first"
    keeping.clock.now += FIRST_LOOK_S
    assert [tick(keeping), tick(keeping)] == [3, 1]
    assert keeping.chores.next_at == keeping.clock.now
    assert [tick(keeping), tick(keeping)] == [0, 0]
    look_every_s = 86_400.0 / 10
    assert keeping.chores.next_at == keeping.clock.now + look_every_s
    assert "keep-failed: 5 removed from" in keeping.log.getvalue()
    add_message(keeping.path / ".Failed", "1.9")
    for seconds, then in ((look_every_s - 1, 1), (1, 0)):
        keeping.clock.now += seconds
        keeping.now += seconds
        assert tick(keeping) == then


def test_a_look_that_takes_very_long_comes_to_its_end(keeping: Bench) -> None:
    """Not begun anew each time that the next one would be due."""
    for _ in range(5):
        keeping.clock.now += 86_400.0
        tick(keeping)
    assert keeping.log.getvalue().count("removed from") == 1


def test_sent_mail_goes_as_well(keeping: Bench) -> None:
    """Where only that is asked for."""
    sent = make_maildir(keeping.path / ".Sent")
    add_message(sent, "1.a")
    keeping.begin(sent=os.fsencode(sent), keep_sent_s=86_400.0)
    keeping.clock.now += FIRST_LOOK_S
    assert tick(keeping) == 5
    assert names(sent / "new") == []


def test_old_mail_goes_where_this_disk_is_full(keeping: Bench) -> None:
    """It is what may make room; only on the way out there is no time for it."""
    keeping.clock.now += FIRST_LOOK_S
    keeping.forwarder.local_error = LocalError("no space left on device")
    assert tick(keeping) == 3
    keeping.forwarder.stopping = True
    assert tick(keeping) == 3
    assert (keeping.chores.next_at or 0.0) > keeping.clock.now, "it would spin until the end"


def test_a_route_that_ends_leaves_nothing_open(keeping: Bench) -> None:
    """A daemon that is reloaded often would run out of descriptors."""
    before = open_descriptors()
    keeping.clock.now += FIRST_LOOK_S
    tick(keeping)
    assert open_descriptors() != before
    for _ in range(2):
        keeping.chores.close()
    assert open_descriptors() == before
    assert "keep-failed: 2 removed from" in keeping.log.getvalue()


def test_warnings_and_old_mail_are_each_looked_at_in_their_time(keeping: Bench) -> None:
    """One of them must not put off the other."""
    keeping.begin(keep_failed_s=86_400.0, bounce=True, warn_after_s=4 * HOUR_S)
    assert keeping.chores.next_at == keeping.clock.now + FIRST_LOOK_S
    keeping.look()
    assert left(keeping) == 0
    assert keeping.chores.next_at == keeping.clock.now + LOOK_S
