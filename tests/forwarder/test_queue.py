"""Which message next in a batch: each once, and what comes meanwhile."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator

from maildirqmtp.forwarder.queue import RESCAN_FOR_S, BatchQueue
from maildirqmtp.maildir.files import Folder
from tests.fakes import FakeClock

NOW = 1_800_000_000.0
NEW, CUR = Folder(-1, b"/Maildir/new"), Folder(-1, b"/Maildir/cur")
A, B, C = b"1800000000.a", b"1800000000.b", b"1800000000.c"


def batch(*found: deque[tuple[Folder, bytes]], clock: Callable[[], float] = float) -> BatchQueue:
    """Return the queue of a batch whose scans find these, one after the other."""
    scans = [*found]

    def scan(choose: Callable[[Iterator[bytes]], Iterable[bytes]]) -> deque[tuple[Folder, bytes]]:
        here = scans.pop(0)
        chosen = choose(iter([name for _, name in here]))
        return deque((folder, name) for folder, name in here if name in chosen)

    return BatchQueue(scan, clock)


def test_a_batch_tries_each_once() -> None:
    """What stays is for the next run; what came meanwhile is for this one."""
    queue = batch(deque([(NEW, A), (NEW, B), (NEW, C)]), deque([(NEW, A)]))
    assert not queue.open
    queue.add([(NEW, A), (NEW, B)])
    assert len(queue) == 2
    assert queue.take() == (NEW, A)
    assert queue.later(A, NOW, "Zno")
    queue.rotate()
    assert [queue.take(), queue.take()] == [(NEW, B), None]
    assert not queue.gone(B)
    assert queue.next_deadline() is None
    queue.put_back([(NEW, B)])
    queue.postpone([(NEW, C)])
    assert [queue.take(), queue.take()] == [(NEW, B), None]
    assert (len(queue), queue.postponed) == (1, 1)
    assert [queue.take_postponed(), queue.take_postponed()] == [(NEW, C), None]
    assert queue.refill() == 1, "what was tried and stays, or is in flight, does not come twice"
    assert [queue.take(), queue.take()] == [(NEW, B), None]
    assert queue.refill() == 0


def test_a_batch_that_gets_ever_more_mail_ends_after_an_hour() -> None:
    """Somebody may deliver as fast as the server takes it: cron would start no other run."""
    clock = FakeClock()
    queue = batch(deque([(NEW, A)]), deque([(NEW, B)]), clock=clock)
    clock.advance(RESCAN_FOR_S - 1.0)
    assert queue.refill() == 1
    clock.advance(1.0)
    assert (queue.refill(), queue.may_rescan) == (0, False)


def test_a_message_that_changed_is_tried_twice_in_a_batch() -> None:
    """It is sent as it is now; one that changes all the time must not keep the run going."""
    queue = batch(*[deque([(NEW, A)])] * 3)
    assert queue.later(A, NOW, "it changed", at_next_scan=True)
    assert queue.refill() == 1
    assert not queue.later(A, NOW, "it changed", at_next_scan=True), "said before"
    assert queue.refill() == 0


def test_a_message_that_changed_and_was_sent_is_no_longer_held() -> None:
    """Exit 0 means that nothing is left."""
    queue = batch()
    queue.later(A, NOW, "it changed", at_next_scan=True)
    assert queue.gone(A)
    assert not queue.gone(A)


def test_a_message_that_changed_counts_as_held_until_its_next_outcome() -> None:
    """Counted on, it would be one more than is left; counted twice, two for one."""
    queue = batch()
    assert not queue.is_held(A)
    queue.later(A, NOW, "it changed", at_next_scan=True)
    queue.later(A, NOW, "it changed", at_next_scan=True)
    assert queue.is_held(A + b",U=3")
    assert not queue.is_held(B)
    queue.later(A, NOW, "deferred")
    assert not queue.is_held(A)


def test_a_batch_follows_a_message_that_a_reader_moves() -> None:
    """Its old name is gone; a scan finds it under the new one, but not for ever."""
    queue = batch(*[deque([(CUR, A + b":2,S")])] * 20)
    for _ in range(9):
        queue.vanished(A)
    assert queue.refill() == 1
    queue.vanished(A + b":2,S")
    assert queue.refill() == 0, "a file system may list what it does not have"


def test_what_has_to_wait_is_not_tried_before_its_time() -> None:
    """It may be at another server already; no scan hands it out as a new one."""
    clock = FakeClock()
    queue = batch(deque([(NEW, A), (NEW, B)]), deque([(NEW, A)]), clock=clock)
    queue.add([(NEW, A)])
    assert queue.take() == (NEW, A)
    queue.wait((NEW, A), clock() + 60.0, "in doubt")
    assert (queue.take(), len(queue), queue.waiting) == (None, 0, 1)
    assert queue.refill() == 1
    assert [queue.take(), queue.take()] == [(NEW, B), None]
    clock.advance(59.0)
    assert queue.take() is None
    clock.advance(1.0)
    assert queue.waiting == 1, "if the run ends now, exit code 0 would not be true"
    assert len(queue) == 1
    assert (queue.take(), queue.take(), queue.waiting) == ((NEW, A), None, 0)
    assert queue.refill() == 0


def test_what_has_another_name_when_its_time_comes_is_found() -> None:
    """A mail reader has moved it to cur/ meanwhile; without a look it stays, with exit code 0."""
    clock = FakeClock()
    moved = (CUR, A + b":2,S")
    queue = batch(deque([moved]), deque([moved]), clock=clock)
    queue.wait((NEW, A), clock() + 60.0, "in doubt")
    assert queue.refill() == 0
    clock.advance(60.0)
    assert queue.take() == (NEW, A)
    queue.vanished(A)
    assert queue.refill() == 1
    assert queue.take() == moved


def test_what_waits_can_be_hurried() -> None:
    """The server that it waits for is back; a mail reader may have flagged it meanwhile."""
    clock = FakeClock()
    queue = batch(clock=clock)
    for name in (A, B):
        queue.wait((NEW, name), clock() + 60.0, "in doubt")
    queue.hurry([B + b":2,S", C])
    assert [queue.take(), queue.take()] == [(NEW, B), None]
    assert queue.waiting == 1
    clock.advance(60.0)
    assert [queue.take(), queue.take()] == [(NEW, A), None]
