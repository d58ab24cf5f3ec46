"""Which message next: what a watching daemon knows, scan after scan, and what it forgets."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from maildirqmtp.daemon.queue import MAX_HINTS, WatchQueue
from maildirqmtp.daemon.reservations import Reservations
from maildirqmtp.errors import LocalError
from maildirqmtp.maildir.files import Folder
from maildirqmtp.maildir.maildir import Maildir
from maildirqmtp.transport.wakeup import Wakeup
from tests.fakes import FakeClock
from tests.helpers import make_maildir

NOW = 1_800_000_000.0
RESCAN_S = 30.0
NEW, CUR = Folder(-1, b"/Maildir/new"), Folder(-1, b"/Maildir/cur")
#: A name that says when its message came, as `retry_at` will take it: just now.
A, B, C = b"1800000000.a", b"1800000000.b", b"1800000000.c"


class FakeMaildir:
    """What a scan finds: a list that the test changes. `takes_s` is how long a scan takes."""

    def __init__(self, clock: FakeClock) -> None:
        self.new: list[bytes] = []
        self.cur: list[bytes] = []
        self.clock = clock
        self.takes_s = 0.0
        self.scans = 0
        self.error: LocalError | None = None
        self.meanwhile: Callable[[], None] = lambda: None

    def scan(
        self,
        include_cur: bool = False,
        choose: Callable[[Iterator[bytes]], Iterable[bytes]] | None = None,
    ) -> deque[tuple[Folder, bytes]]:
        """See `maildir.Maildir`."""
        self.scans += 1
        if self.error is not None:
            raise self.error
        found = []
        for folder, held in ((NEW, self.new), (CUR, self.cur))[: 1 + include_cur]:
            names: Iterable[bytes] = sorted(held)
            names = choose(iter(names)) if choose is not None else names
            found += [(folder, name) for name in names]
        self.meanwhile()
        self.clock.now += self.takes_s
        return deque(found)


class Bench(SimpleNamespace):
    """A queue, its maildir and its clocks."""

    queue: WatchQueue
    maildir: FakeMaildir
    clock: FakeClock

    def take(self) -> bytes | None:
        """Take the next name."""
        taken = self.queue.take()
        return None if taken is None else taken[1]

    def take_all(self) -> list[bytes]:
        """Take what there is."""
        names = []
        while (name := self.take()) is not None:
            names.append(name)
        return names

    def look(self, *names: bytes) -> list[bytes]:
        """Have these in new/, scan, take what there is."""
        self.maildir.new = list(names)
        self.queue.look_again()
        self.tick()
        return self.take_all()

    def tick(self) -> None:
        """Scan, if that is due, as the worker does with each round of its loop."""
        if self.queue.scan_due():
            self.queue.scan()

    def rescan(self) -> None:
        """Let the time of a rescan come."""
        self.clock.advance(RESCAN_S)
        self.tick()


def bench(**options: Any) -> Bench:
    """Make a queue whose maildir is empty."""
    clock = FakeClock()
    maildir = FakeMaildir(clock)
    include_cur = options.pop("include_cur", False)
    queue = WatchQueue(
        cast(Maildir, maildir),
        include_cur,
        options.pop("rescan_s", RESCAN_S),
        clock,
        lambda: NOW + clock.now - 1_000.0,
        **options,
    )
    return Bench(queue=queue, maildir=maildir, clock=clock)


# Fresh, out, waiting


def test_new_names_are_handed_out_in_the_order_of_the_scan() -> None:
    """The oldest first, each once."""
    b = bench()
    assert b.look(A, B, C) == [A, B, C]
    assert len(b.queue) == 0


def test_what_is_out_is_not_handed_out_again() -> None:
    """A message in flight would be sent twice."""
    b = bench()
    assert b.look(A) == [A]
    assert b.look(A) == []
    for _ in range(5):
        b.rescan()
        assert b.take_all() == []


def test_what_is_out_is_not_handed_out_when_its_old_time_comes() -> None:
    """It was none, to be looked at later; then a reader renamed it, and it was tried at once."""
    b = bench()
    assert b.look(A) == [A]
    b.queue.later(A, NOW, "")
    assert b.look(A + b":2,S") == [A + b":2,S"]
    for _ in range(100):
        b.rescan()
        assert b.take_all() == []


def test_what_is_gone_is_forgotten_and_may_come_again() -> None:
    """The same name, put back by an administrator, is a new message."""
    b = bench()
    b.look(A)
    b.queue.gone(A)
    assert b.queue.size == 0
    assert b.look(A) == [A]


def test_what_stays_waits_for_qmails_schedule() -> None:
    """Neither each rescan nor each new message tries it again."""
    b = bench()
    b.look(A)
    b.queue.later(A, NOW, "Ztry later")
    due = b.clock.now + 400.0
    while b.clock.now + RESCAN_S < due:
        b.rescan()
        assert (len(b.queue), b.take()) == (0, None)
    assert b.look(A, B) == [B]
    b.clock.advance(due - b.clock.now)
    assert len(b.queue) == 1
    assert b.take_all() == [A]


def test_the_wait_is_by_the_files_age() -> None:
    """A message of a day is not tried again within minutes, also by a daemon just started."""
    b = bench()
    b.look(b"1.old")
    b.queue.later(b"1.old", NOW - 90_000.0, "Zno")
    (waiting,) = b.queue.waiting()
    assert waiting.due is not None
    assert waiting.due - b.clock.now == pytest.approx(40 * 300 + 400)


@pytest.mark.parametrize(
    ("name", "birth_s"),
    [
        (b"1799910000.x", NOW - 90_000.0),
        (b"1900000000.future", NOW),
        (b"no-number", NOW),
        (b"123456789012.long", NOW),
    ],
)
def test_where_the_files_time_is_not_known_its_name_is_asked(name: bytes, birth_s: float) -> None:
    """A message that cannot be opened is not tried more often than others of its age."""
    b = bench()
    b.look(name)
    b.queue.later(name, None, "held")
    (waiting,) = b.queue.waiting()
    assert waiting.birth_s == birth_s
    assert waiting.due is not None
    assert waiting.due > b.clock.now


def test_soon_is_at_the_next_rescan() -> None:
    """A file that is being written is tried again within seconds, not in 400."""
    b = bench()
    b.look(A)
    b.queue.later(A, NOW - 1e6, "being written", at_next_scan=True)
    assert b.take_all() == []
    b.rescan()
    assert b.take_all() == [A]


def test_fresh_before_those_that_wait() -> None:
    """Mail that has just come does not stand behind a thousand deferred ones."""
    b = bench()
    b.look(A, B)
    b.queue.later(A, NOW, "Zno")
    b.queue.later(B, NOW, "Zno")
    b.clock.advance(401.0)
    assert b.look(A, B, C) == [C, A, B]


def test_due_in_the_order_of_their_time() -> None:
    """The one that has waited longest."""
    b = bench()
    b.look(A, B)
    b.queue.later(B, NOW, "Zno")
    b.clock.advance(1.0)
    b.queue.later(A, NOW + 1.0, "Zno")
    b.clock.advance(1_000.0)
    assert b.take_all() == [B, A]


def test_each_try_counts_and_news_are_told_apart() -> None:
    """A held message is reported once, and again when the reason is another."""
    b = bench()
    b.look(A)
    answers = []
    for reason in ("no envelope", "no envelope", "too long", "x" * 500, "x" * 200):
        answers.append(b.queue.later(A, None, reason))
        b.queue.try_all()
        assert b.take() == A
    assert answers == [True, False, True, True, False]
    b.queue.later(A, None, "no")
    (waiting,) = b.queue.waiting()
    assert (waiting.tries, waiting.reason) == (6, "no")


def test_what_is_not_ours_is_known_and_not_shown() -> None:
    """A message for the other route of this maildir is no message that waits here."""
    b = bench()
    b.look(A, B)
    b.queue.later(A, None, "")
    b.queue.later(B, None, "Zno")
    assert [w.name for w in b.queue.waiting()] == [B]
    assert b.queue.size == 2


def test_later_of_what_nobody_knows_is_news() -> None:
    """It was forgotten meanwhile; that must not stop the daemon."""
    b = bench()
    assert b.queue.later(A, NOW, "why")
    assert b.queue.size == 0


# Names that a scan does not see


def test_a_name_that_two_scans_miss_is_forgotten() -> None:
    """A daemon of a year does not keep every name it has ever seen."""
    b = bench()
    b.look(A, B)
    b.queue.later(A, NOW, "Zno")
    b.queue.later(B, NOW, "Zno")
    b.look(B)
    assert b.queue.size == 2
    b.look(B)
    assert b.queue.size == 1
    b.clock.advance(1_000.0)
    assert b.take_all() == [B]


def test_a_name_that_one_scan_misses_is_not_gone() -> None:
    """readdir may miss one while others are renamed: it keeps its turn and its number of tries."""
    b = bench()
    b.look(A)
    b.queue.later(A, NOW, "Zno")
    for _ in range(3):
        b.look()
        b.look(A)
    (waiting,) = b.queue.waiting()
    assert waiting.tries == 1
    assert b.take_all() == []


def test_what_is_out_is_never_forgotten() -> None:
    """Its answer is still to come: found by a third scan, it would be sent again meanwhile."""
    b = bench()
    b.look(A)
    for _ in range(3):
        b.look()
    assert b.look(A) == []
    assert b.queue.size == 1


def test_a_forgotten_name_that_comes_back_is_fresh() -> None:
    """And what was left of it in the order of times takes nobody else's turn."""
    b = bench()
    b.look(A, B)
    b.queue.later(A, NOW, "Zno")
    b.queue.later(B, NOW + 1.0, "Zno")
    b.look(B)
    b.look(B)
    assert b.look(A, B) == [A]
    b.queue.later(A, NOW, "Zno")
    b.clock.advance(10_000.0)
    assert sorted(b.take_all()) == [A, B]
    assert b.take_all() == []


def test_a_message_that_a_mail_reader_moved_keeps_its_turn() -> None:
    """With --cur: flags are not part of what a message is known by."""
    b = bench(include_cur=True)
    b.look(A)
    b.queue.later(A, NOW, "Zno")
    b.maildir.cur = [A + b":2,S"]
    assert b.look() == []
    assert b.queue.size == 1
    b.queue.gone(A + b":2,S")
    assert b.queue.size == 0


def test_cur_is_left_alone_where_it_is_not_asked_for() -> None:
    """A message that was read is its reader's, and stays."""
    b = bench()
    b.maildir.cur = [A]
    assert b.look() == []


# Handing back


def test_put_back_comes_first_in_its_order() -> None:
    """After a connection that broke, the oldest are the first again."""
    b = bench()
    assert b.look(A, B, C) == [A, B, C]
    b.queue.put_back([(NEW, A), (NEW, B), (NEW, C)])
    assert len(b.queue) == 3
    assert b.take_all() == [A, B, C]


def test_put_back_before_what_is_fresh() -> None:
    """It has waited longer."""
    b = bench()
    b.look(B)
    b.maildir.new = [A, B, C]
    b.queue.look_again()
    b.tick()
    b.queue.put_back([(NEW, B)])
    assert b.take_all() == [B, A, C]


def test_put_back_under_another_name() -> None:
    """A reader has moved it while it was in flight: the new name is the one to open."""
    b = bench(include_cur=True)
    b.look(A)
    b.queue.put_back([(CUR, A + b":2,S")])
    assert b.queue.take() == (CUR, A + b":2,S")
    assert b.queue.size == 1


def test_put_back_of_what_is_not_known() -> None:
    """The queue of a maildir that was opened anew."""
    b = bench()
    b.queue.put_back([(NEW, A)])
    assert b.take_all() == [A]
    assert b.queue.size == 1


def test_put_back_of_one_that_waited_takes_nobodys_turn() -> None:
    """It was due and tried; the other one, which waits, is still to come."""
    b = bench()
    b.look(A, B)
    b.queue.later(A, NOW, "Zno")
    b.clock.advance(200.0)
    b.queue.later(B, NOW + 200.0, "Zno")
    b.clock.advance(200.0)
    assert b.take_all() == [A]
    b.queue.put_back([(NEW, A)])
    assert b.take_all() == [A]
    b.clock.advance(200.0)
    assert b.take_all() == [B]


def test_added_ones_come_last_and_once() -> None:
    """A bounce that was put into this maildir is sent now, and not again by the next scan."""
    b = bench()
    b.maildir.new = [A]
    b.tick()
    b.queue.add([(NEW, B), (NEW, B), (NEW, A)])
    assert b.look(A, B) == [A, B]


def test_rotate_has_the_last_first() -> None:
    """After a culprit, one from the other end."""
    b = bench()
    b.maildir.new = [A, B, C]
    b.tick()
    b.queue.rotate()
    assert b.take_all() == [C, A, B]


# Everything now


def test_try_all_makes_all_that_wait_due() -> None:
    """SIGALRM means now; what is fresh is still before them, what is out stays out."""
    b = bench()
    b.look(A, B)
    b.queue.later(A, NOW, "Zno")
    b.queue.try_all()
    assert len(b.queue) == 1
    b.tick()
    assert b.take_all() == [A]
    b.queue.later(B, NOW, "Zno")
    b.queue.try_all()
    b.queue.try_all()
    assert b.look(A, B, C) == [C, B]


def test_try_all_scans_too() -> None:
    """What came on a deaf file system is sent by SIGALRM, not half a minute later."""
    b = bench()
    b.look()
    b.maildir.new = [A]
    b.queue.try_all()
    b.tick()
    assert b.take_all() == [A]


# Closing


def test_closed_hands_out_nothing() -> None:
    """The maildir has been replaced: what is known of it is of no use."""
    b = bench()
    b.maildir.new = [A, B]
    b.tick()
    b.queue.close()
    assert (len(b.queue), b.take(), b.queue.next_deadline()) == (0, None, None)


def test_closed_it_is_not_to_be_scanned() -> None:
    """The path leads elsewhere: names of there are not opened here."""
    b = bench()
    b.queue.close()
    assert b.look(A) == []
    assert b.maildir.scans == 0


# When to scan


def test_it_scans_at_once_and_then_with_each_rescan() -> None:
    """With no event at all, all mail still goes."""
    b = bench()
    assert b.queue.next_deadline() == b.clock.now
    b.tick()
    for number in range(1, 5):
        assert b.maildir.scans == number
        assert b.queue.next_deadline() == b.clock.now + RESCAN_S
        b.clock.advance(RESCAN_S - 1.0)
        b.tick()
        assert b.maildir.scans == number
        b.clock.advance(1.0)
        b.tick()


def test_an_event_makes_a_scan_and_only_one() -> None:
    """Idle means idle: no scan without a reason."""
    b = bench()
    b.tick()
    b.queue.look_again()
    assert b.queue.next_deadline() == b.clock.now
    b.tick()
    b.tick()
    assert b.maildir.scans == 2


def test_an_event_during_a_scan_is_not_lost() -> None:
    """The scan may have been past that place: what came is found by another one."""
    b = bench()

    def arrive() -> None:
        b.maildir.meanwhile = lambda: None
        b.maildir.new.append(A)
        b.queue.look_again()

    b.maildir.meanwhile = arrive
    b.tick()
    assert b.take_all() == []
    assert b.queue.next_deadline() == b.clock.now
    b.tick()
    assert b.take_all() == [A]


def test_an_event_wakes_whoever_waits() -> None:
    """A route that another one keeps from a message sleeps until its rescan otherwise."""
    wake = Wakeup()
    b = bench(wake=wake)
    b.tick()
    b.queue.look_again()
    assert b.queue.scan_due()
    assert os.read(wake.fd, 1)
    wake.close()


def test_where_scans_are_slow_they_are_rarer_than_events() -> None:
    """200,000 names are not listed for each of a burst of messages."""
    b = bench()
    b.maildir.takes_s = 2.0
    b.tick()
    began = b.clock.now - 2.0
    b.maildir.takes_s = 0.0
    b.queue.look_again()
    b.tick()
    assert b.maildir.scans == 1
    assert b.queue.next_deadline() == pytest.approx(began + 20.0)
    b.clock.advance(18.0)
    b.tick()
    assert b.maildir.scans == 2
    b.queue.look_again()
    b.tick()
    assert b.maildir.scans == 3, "fast again"


def test_next_deadline_is_the_first_of_all() -> None:
    """Waking too late keeps mail waiting; too early, and a laptop's battery is empty."""
    b = bench(rescan_s=1_000.0)
    b.look(A)
    now = b.clock.now
    assert b.queue.next_deadline() == now + 1_000.0
    b.queue.later(A, NOW, "Zno")
    assert b.queue.next_deadline() == now + 400.0
    b.clock.advance(400.0)
    assert b.queue.next_deadline() == now + 1_000.0, "what is due is no reason to wake again"


def test_a_scan_that_fails_is_trouble_until_one_does_not() -> None:
    """Nothing is forgotten because of it, and the next rescan tries again."""
    b = bench()
    b.look(A)
    b.queue.later(A, NOW, "Zno")
    error = b.maildir.error = LocalError("cannot list")
    b.rescan()
    assert b.queue.local_error is error
    b.rescan()
    b.rescan()
    assert (b.maildir.scans, b.queue.size) == (4, 1)
    b.maildir.error = None
    b.maildir.new = [A, B]
    b.rescan()
    assert b.queue.local_error is None
    assert b.take_all() == [B]


# Reservations


def test_what_another_route_has_is_not_handed_out() -> None:
    """Until that lets go of it: then it is found as a new one."""
    reservations = Reservations()
    one, two = bench(reservations=reservations), bench(reservations=reservations)
    assert one.look(A, B) == [A, B]
    assert two.look(A, B, C) == [C]
    assert two.queue.size == 1
    one.queue.later(A, NOW, "Zno")
    two.tick()
    assert two.take_all() == [A]
    one.queue.gone(B)
    two.tick()
    assert two.take_all() == [B]
    assert one.take_all() == []
    two.queue.put_back([(NEW, A)])
    one.queue.try_all()
    assert one.take_all() == [A]


def test_a_refused_one_that_was_due_is_not_lost() -> None:
    """It comes again by a scan."""
    reservations = Reservations()
    one, two = bench(reservations=reservations), bench(reservations=reservations)
    one.look(A)
    one.queue.later(A, NOW, "Zno")
    assert two.look(A) == [A]
    one.queue.try_all()
    assert one.take_all() == []
    two.queue.put_back([(NEW, A)])
    assert one.look(A) == [A]


# What may be out


def test_what_does_not_go_after_all_leaves_its_place_to_the_next() -> None:
    """Large messages in front, or mail of others, used up a route's share of a server.

    Then the route had nothing in flight, and slept until the next scan.
    """
    one, d = bench(), b"1800000000.d"
    one.maildir.new = [A, B, C, d]
    one.tick()
    one.queue.allowance = 1
    assert one.queue.take() == (NEW, A)
    assert one.queue.take() is None
    one.queue.postpone([(NEW, A)])
    assert one.queue.take() == (NEW, B)
    one.queue.later(B, NOW, "")
    assert one.queue.take() == (NEW, C)
    one.queue.wait((NEW, C), one.clock.now + 5.0, "in doubt")
    assert one.queue.take() == (NEW, d)
    assert one.queue.take_postponed() is None
    one.queue.gone(d)
    assert one.queue.take_postponed() == (NEW, A)
    one.queue.postpone([(NEW, A)], first=True)
    one.queue.allowance = 0
    assert one.queue.take_postponed() is None


# Files on a disk


def test_with_a_real_maildir(tmp_path: Path) -> None:
    """Oldest first, without dot-files, and names that are known cost no stat."""
    path = make_maildir(tmp_path / "Maildir")
    for name in ("1700000002.b", "1700000001.a", ".hidden"):
        (path / "new" / name).write_bytes(b"")
    clock = FakeClock()
    with Maildir(os.fsencode(path)) as maildir:
        queue = WatchQueue(maildir, False, RESCAN_S, clock, lambda: NOW)
        assert queue.scan_due()
        queue.scan()
        assert [queue.take(), queue.take(), queue.take()] == [
            (maildir.new, b"1700000001.a"),
            (maildir.new, b"1700000002.b"),
            None,
        ]


# Files that events name


class Hinted(SimpleNamespace):
    """A queue of a real maildir that has been scanned."""

    path: Path
    maildir: Maildir
    queue: WatchQueue

    def deliver(self, *names: str) -> None:
        """Put messages into new/, and have events name them."""
        for name in names:
            (self.path / "new" / name).write_bytes(b"")
            self.queue.hint(os.fsencode(name))

    def take_all(self) -> list[bytes]:
        """Take up what was hinted at, and hand it out."""
        self.queue.take_hints()
        taken = []
        while (candidate := self.queue.take()) is not None:
            assert candidate[0] is self.maildir.new
            taken.append(candidate[1])
        return taken


@pytest.fixture
def hinted(tmp_path: Path) -> Iterator[Hinted]:
    """A queue of an empty maildir."""
    path = make_maildir(tmp_path / "Maildir")
    clock = FakeClock()
    with Maildir(os.fsencode(path)) as maildir:
        queue = WatchQueue(maildir, False, RESCAN_S, clock, lambda: NOW)
        queue.scan()
        yield Hinted(path=path, maildir=maildir, queue=queue, clock=clock)


def test_a_file_that_an_event_names_needs_no_scan(hinted: Hinted) -> None:
    """Behind 100,000 messages that wait a scan takes most of a second."""
    hinted.deliver("1.a", "2.a")
    assert not hinted.queue.scan_due()
    assert hinted.take_all() == [b"1.a", b"2.a"]
    hinted.queue.gone(b"1.a")
    hinted.queue.later(b"2.a", NOW, "Zno")
    hinted.deliver("2.a")
    assert hinted.take_all() == [], "it waits for its time, whatever event there is"
    assert hinted.take_all() == []


def test_a_file_that_an_event_names_may_be_gone(hinted: Hinted) -> None:
    """A scan has found it before."""
    hinted.queue.hint(b"gone")
    assert hinted.take_all() == [b"gone"]
    hinted.queue.vanished(b"gone")
    assert hinted.queue.size == 0


def test_the_first_sidecar_of_a_maildir_counts_without_a_scan(hinted: Hinted) -> None:
    """Its message would go to the recipients of its header instead."""
    assert not hinted.maildir.may_have_envelopes()
    (hinted.path / "envelope").mkdir()
    hinted.deliver("1.a")
    assert hinted.take_all() == [b"1.a"]
    assert hinted.maildir.may_have_envelopes()


def test_sidecars_that_cannot_be_looked_for_leave_it_to_the_scan(hinted: Hinted) -> None:
    """Which says what is wrong; until then nothing goes by its header."""
    (hinted.path / "envelope").symlink_to("/nowhere")
    hinted.deliver("1.a")
    assert hinted.take_all() == []
    assert hinted.queue.scan_due()
    hinted.queue.scan()
    assert hinted.queue.local_error is not None


def test_a_burst_of_events_is_scanned(hinted: Hinted) -> None:
    """Nobody counts on the names of 30,000 events; and memory is bounded."""
    hinted.deliver(*[f"1{number:03}.a" for number in range(MAX_HINTS + 1)])
    assert hinted.queue.scan_due()
    assert len(hinted.queue._hints) == MAX_HINTS
    hinted.queue.scan()
    assert len(hinted.take_all()) == MAX_HINTS + 1


# Anything in any order


class Model(RuleBasedStateMachine):
    """The queue beside a reference: what is fresh, out and waiting, and when each is due."""

    @initialize()
    def start(self) -> None:
        """Begin with an empty maildir."""
        self.b = bench()
        self.fresh: list[bytes] = []
        self.out: list[bytes] = []
        self.due: dict[bytes, float] = {}
        self.missed: set[bytes] = set()
        self.number = 0

    def known(self) -> set[bytes]:
        """Return every name that the queue should know."""
        return {*self.fresh, *self.out, *self.due}

    @rule(count=st.integers(1, 3))
    def arrive(self, count: int) -> None:
        """Messages come."""
        for _ in range(count):
            self.number += 1
            self.b.maildir.new.append(b"%d.x" % (1_700_000_000 + self.number))

    @rule(data=st.data())
    def vanish(self, data: st.DataObject) -> None:
        """Somebody removes a message."""
        if self.b.maildir.new:
            self.b.maildir.new.remove(data.draw(st.sampled_from(self.b.maildir.new)))

    @rule()
    def scan(self) -> None:
        """There is a scan."""
        self.b.queue.look_again()
        self.b.tick()
        here = set(self.b.maildir.new)
        self.fresh += sorted(here - self.known())
        missing = self.known() - here
        for name in missing & self.missed:
            self.due.pop(name, None)
        self.missed = missing

    @rule(seconds=st.sampled_from([1.0, 29.0, 400.0, 5_000.0]))
    def pass_time(self, seconds: float) -> None:
        """Time passes, and nobody looks."""
        self.b.clock.advance(seconds)

    @rule()
    def take(self) -> None:
        """The forwarder takes one: a fresh one, else the one that is due for longest."""
        name = self.b.take()
        now = self.b.clock.now
        due = [key for key, at in self.due.items() if at <= now]
        if self.fresh:
            assert name == self.fresh.pop(0)
        elif due:
            assert name is not None
            assert self.due[name] == min(self.due[key] for key in due)
            del self.due[name]
        else:
            assert name is None
            return
        assert name is not None
        self.out.append(name)

    @precondition(lambda self: self.out)
    @rule(data=st.data(), how=st.sampled_from(["gone", "later", "soon"]))
    def settle(self, data: st.DataObject, how: str) -> None:
        """One that is out is through, or stays."""
        name = data.draw(st.sampled_from(self.out))
        self.out.remove(name)
        if how == "gone":
            if name in self.b.maildir.new:
                self.b.maildir.new.remove(name)
            self.b.queue.gone(name)
            return
        self.b.queue.later(name, NOW, "Zno", at_next_scan=how == "soon")
        (waiting,) = [w for w in self.b.queue.waiting() if w.name == name]
        assert waiting.due is not None
        assert waiting.due > self.b.clock.now
        self.due[name] = waiting.due

    @precondition(lambda self: self.out)
    @rule(count=st.integers(1, 3))
    def put_back(self, count: int) -> None:
        """A connection breaks."""
        back, self.out = self.out[:count], self.out[count:]
        self.b.queue.put_back([(NEW, name) for name in back])
        self.fresh = back + self.fresh

    @rule()
    def try_all(self) -> None:
        """An alarm; the scan that follows is another step."""
        self.b.queue.try_all()
        self.due = dict.fromkeys(self.due, self.b.clock.now)

    @rule()
    def rotate(self) -> None:
        """The last one first."""
        self.b.queue.rotate()
        self.fresh = self.fresh[-1:] + self.fresh[:-1]

    @invariant()
    def agree(self) -> None:
        """Nothing is lost, nothing is kept that is gone, and it wakes in time."""
        queue, now = self.b.queue, self.b.clock.now
        assert queue.size == len(self.known())
        assert {w.name for w in queue.waiting()} == self.known()
        is_due = any(at <= now for at in self.due.values())
        assert len(queue) == len(self.fresh) + is_due
        deadline = queue.next_deadline()
        assert deadline is not None
        if self.due and not is_due:
            assert deadline <= min(self.due.values())
        assert {w.name: w.due for w in queue.waiting() if w.due is not None} == self.due


TestModel = Model.TestCase
TestModel.settings = settings(
    max_examples=60, stateful_step_count=40, suppress_health_check=list(HealthCheck), deadline=None
)


@pytest.mark.parametrize(
    ("found", "oldest_s"),
    [
        ((), 0.0),
        ((b"1700000200.a", b"1700000100.a"), 1_700_000_100.0),
        ((b"1700000200.a", b"999.fewer-digits"), 1_700_000_200.0),
        ((b"1900000000.future", b"no-number"), NOW),
    ],
)
def test_the_oldest_is_told_by_its_name(found: tuple[bytes, ...], oldest_s: float) -> None:
    """An alarm on old mail must not hang on how a delivery agent names its files."""
    b = bench()
    b.look(*found)
    count, oldest, some = b.queue.overview(1)
    assert (count, oldest, len(some)) == (len(found), oldest_s, min(1, len(found)))


def test_the_oldest_is_told_by_its_file_where_its_name_does_not() -> None:
    """It may have waited for a week before this daemon found it."""
    b = bench()
    b.look(b"1700000200.a", b"999.a")
    b.queue.later(b"999.a", 1_600_000_000.5, "Zno")
    assert b.queue.overview(0) == (2, 1_600_000_000.5, [])


def test_what_has_to_wait_is_not_tried_before_its_time() -> None:
    """It may be at another server already; it is shown with the reason, and not as tried."""
    b = bench()
    assert b.look(A, B) == [A, B]
    b.queue.gone(B)
    b.queue.wait((NEW, A), b.clock() + 100.0, "in doubt at mx1")
    (entry,) = b.queue.waiting()
    assert (entry.reason, entry.tries) == ("in doubt at mx1", 0)
    assert b.look(A) == []
    assert b.queue.next_deadline() is not None
    b.clock.advance(99.0)
    assert b.take_all() == []
    b.clock.advance(1.0)
    assert b.take_all() == [A]


def test_what_waits_can_be_hurried() -> None:
    """The server that it waits for is back."""
    b = bench()
    assert b.look(A, B) == [A, B]
    for name in (A, B):
        b.queue.wait((NEW, name), b.clock() + 100.0, "in doubt")
    b.queue.hurry([B + b":2,S", C])
    assert b.take_all() == [B]
    b.queue.gone(B)
    b.queue.hurry([B])
    b.clock.advance(100.0)
    assert b.take_all() == [A]
