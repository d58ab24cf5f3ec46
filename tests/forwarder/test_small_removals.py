"""Removing accepted small messages: what is still the file that was sent goes, and only that."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from maildirqmtp.errors import LocalError
from maildirqmtp.forwarder import small_removals
from maildirqmtp.forwarder.removals import SYNC_REMOVALS
from maildirqmtp.forwarder.small_messages import SmallBatch, gather
from maildirqmtp.forwarder.small_removals import MANY, MAX_WAITING, SmallRemovals
from maildirqmtp.maildir.files import Folder
from maildirqmtp.maildir.removal_process import RemovalProcess
from tests.forwarder.doubles import SettlerCase
from tests.helpers import add_message, add_sidecar, open_descriptors, suspend

TWO_CORES = {0, 1}


class Case(SettlerCase):
    """Small messages that were accepted."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.make()
        self.small = self.settler.small
        #: A run takes its batches from here.
        self.queue = self.maildir.scan()

    def batch(self, count: int) -> SmallBatch:
        """Make so many messages, and a batch of them."""
        for number in range(count):
            self.add(f"{number}.a")
        self.queue = self.maildir.scan()
        return self.next_batch()

    def next_batch(self) -> SmallBatch:
        """Return a batch of the next messages."""
        queue = self.queue
        batch, _ = gather(
            self.maildir, b"", lambda: queue.popleft() if queue else None, 99, 1 << 20
        )
        assert batch is not None
        return batch

    def remove(self, batch: SmallBatch, first: int, stop: int) -> bytes:
        """Have messages removed; return a byte for each, and note those that were."""
        found = b""
        while first < stop:
            first = self.small.put(batch, first, stop)
            for _, index, results in self.small.take(wait=True):
                found += results
                for number, was_removed in enumerate(results, index):
                    if was_removed:
                        self.small.note(batch, number, number + 1)
        return found


@pytest.fixture
def case(tmp_path: Path) -> Iterator[Case]:
    """A maildir with a settler."""
    made = Case(tmp_path)
    yield made
    made.small.end_process()
    made.maildir.close()


@pytest.fixture
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """This test's machine has two cores, and the process no other thread."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: TWO_CORES)
    monkeypatch.setattr(threading, "active_count", lambda: 1)


@pytest.fixture(params=["one process", "two"])
def either(request: pytest.FixtureRequest, two_cores: None, case: Case) -> Case:
    """A maildir whose messages this process removes, or a second one."""
    if request.param == "two":
        case.small.expect(MANY)
        assert process_of(case.small).is_alive
    return case


def process_of(small: SmallRemovals) -> RemovalProcess:
    """Return the second process."""
    assert small._process is not None
    return small._process


def test_accepted_ones_are_removed_and_counted(either: Case) -> None:
    """What stays would be sent again."""
    batch = either.batch(3)
    assert either.remove(batch, 0, 2) == b"\1\1"
    assert os.listdir(either.path / "new") == ["2.a"]
    counters = either.report.counters
    assert (counters.accepted, counters.messages) == (2, 2)
    assert counters.bytes == batch.text_bytes(0, 2)
    assert either.settler.next_deadline is not None


@pytest.mark.parametrize("change", ["replaced", "grown", "gone"])
def test_one_that_is_not_the_same_file_is_settled_by_itself(either: Case, change: str) -> None:
    """The new file of that name has not been sent, and would be lost."""
    batch = either.batch(3)
    path = either.path / "new" / "1.a"
    if change == "replaced":
        path.unlink()
        add_message(either.path, "1.a")
    elif change == "grown":
        with path.open("ab") as file:
            file.write(b"more")
    else:
        path.unlink()
    assert either.remove(batch, 0, 3) == b"\1\0\1"
    assert path.exists() == (change != "gone")
    assert either.report.counters.accepted == 2


def test_with_a_sidecar_each_is_settled_by_itself(either: Case) -> None:
    """It came while the message was in flight, and names others who are owed it."""
    batch = either.batch(2)
    add_sidecar(either.path, "0.a", "s@x", "other@y")
    assert either.remove(batch, 0, 2) == b"\0\0"
    assert len(os.listdir(either.path / "new")) == 2


def test_where_sidecars_cannot_be_looked_for_each_is_settled_by_itself(either: Case) -> None:
    """That tells what is wrong; one may be there that names others."""
    batch = either.batch(2)
    (either.path / "envelope").symlink_to("elsewhere")
    assert either.remove(batch, 0, 2) == b"\0\0"


def test_the_state_file_forgets_them(either: Case) -> None:
    """Else it grows by every message that was ever deferred."""
    batch = either.batch(1)
    state = either.settler._state
    assert state is not None
    state.first_deferral(b"0.a")
    either.now += 100
    assert either.remove(batch, 0, 1) == b"\1"
    assert state.first_deferral(b"0.a") == either.now


def test_where_removals_cannot_be_made_durable_each_is_settled_by_itself(
    either: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More and more would come back with a power cut. Nothing must wait for room for ever."""

    def fail(folder: Folder) -> None:
        raise LocalError("cannot make durable")

    batch = either.batch(3)
    monkeypatch.setattr(Folder, "sync", fail)
    monkeypatch.setattr(type(either.settler._removals), "room", 1)
    assert either.remove(batch, 0, 1) == b"\1"
    monkeypatch.setattr(type(either.settler._removals), "room", 0)
    assert either.remove(batch, 1, 3) == b"\0\0"


# A second process


@pytest.mark.parametrize("why", ["few messages", "one core", "threads", "no process"])
def test_this_process_removes_them_where_a_second_is_of_no_use(
    case: Case, two_cores: None, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    """A fork costs more than a few messages; it must not copy the locks of other threads."""

    def no_fork() -> int:
        raise BlockingIOError

    count = MANY
    if why == "few messages":
        count -= 1
    elif why == "one core":
        monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0})
    elif why == "threads":
        monkeypatch.setattr(threading, "active_count", lambda: 2)
    else:
        monkeypatch.setattr(os, "fork", no_fork)
    before = open_descriptors()
    case.small.expect(count)
    assert open_descriptors() == before
    batch = case.batch(2)
    assert case.small.put(batch, 0, 2) == 2
    assert case.small.waiting == 0
    assert case.new == []


def test_what_was_put_waits_until_it_is_taken(case: Case, two_cores: None) -> None:
    """A scan that does not wait for it finds it again, and it is sent twice."""
    case.small.expect(MANY)
    batch = case.batch(3)
    assert case.settler.next_deadline is None
    assert case.small.put(batch, 0, 3) == 3
    assert case.small.waiting == 3
    assert case.settler.next_deadline is not None, "nobody would look for the results"
    assert list(case.small.take(wait=True)) == [(batch, 0, b"\1\1\1")]
    assert case.small.waiting == 0
    assert case.new == []


def test_so_much_waits_and_no_more(case: Case, two_cores: None) -> None:
    """A kill, or a power cut, is to leave no more accepted mail than is documented."""
    case.small.expect(MANY)
    process = process_of(case.small)
    suspend(process._process)
    for number in range(MAX_WAITING + 10):
        add_message(case.path, f"{number}.a")
        os.utime(case.path / "new" / f"{number}.a", (1, 1))
    case.queue = case.maildir.scan()
    put = 0
    while True:
        batch = case.next_batch()
        stop = case.small.put(batch, 0, len(batch.messages))
        put += stop
        if stop < len(batch.messages):
            break
    assert put == case.small.waiting == MAX_WAITING
    os.kill(process._process, signal.SIGCONT)


def test_what_waits_counts_among_the_removals(case: Case, two_cores: None) -> None:
    """Else more than two batches come back with a power cut."""
    case.small.expect(MANY)
    case.settler._removals.add(case.maildir.new, SYNC_REMOVALS - 2)
    batch = case.batch(3)
    assert case.small.put(batch, 0, 3) == 2
    assert case.small.put(batch, 2, 3) == 2
    assert [results for _, _, results in case.small.take(wait=True)] == [b"\1\1"]


def test_when_it_dies_what_waits_is_settled_one_by_one(case: Case, two_cores: None) -> None:
    """Some of it has been removed, and nobody knows how much. The run goes on without it."""
    case.small.expect(MANY)
    process = process_of(case.small)
    suspend(process._process)
    batch = case.batch(5)
    assert case.small.put(batch, 0, 2) == 2
    os.kill(process._process, signal.SIGKILL)
    assert list(case.small.take(wait=True)) == [(batch, 0, b"\0\0")]
    assert case.small.put(batch, 2, 4) == 4
    assert list(case.small.take()) == [(batch, 2, b"\1\1")]
    assert case.new == ["0.a", "1.a", "4.a"]


def test_results_may_come_in_parts(
    case: Case, two_cores: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of the next messages would be taken for theirs."""
    case.small.expect(MANY)
    batch = case.batch(5)
    monkeypatch.setattr(process_of(case.small), "put", lambda messages: None)
    parts = iter([b"\1\0", b"\1", b"\0\1"])
    monkeypatch.setattr(process_of(case.small), "take", lambda wait: next(parts))
    assert case.small.put(batch, 0, 3) == 3
    assert case.small.put(batch, 3, 5) == 5
    found = [[(i, results) for _, i, results in case.small.take()] for _ in range(3)]
    assert found == [[(0, b"\1\0")], [(2, b"\1")], [(3, b"\0\1")]]


def test_nothing_overtakes_what_it_left_undone(case: Case, two_cores: None) -> None:
    """The results of the next batch would be taken for those of the last."""
    case.small.expect(MANY)
    process = process_of(case.small)
    os.kill(process._process, signal.SIGKILL)
    os.waitid(os.P_PID, process._process, os.WEXITED | os.WNOWAIT)
    batch = case.batch(4)
    assert case.small.put(batch, 0, 2) == 2
    assert case.small.put(batch, 2, 4) == 2
    assert list(case.small.take()) == [(batch, 0, b"\0\0")]
    assert case.small.put(batch, 2, 4) == 4


def test_results_come_in_the_order_in_which_messages_were_put(case: Case, two_cores: None) -> None:
    """Of two batches at once, those of one would be taken for the other's."""
    case.small.expect(MANY)
    process = process_of(case.small)
    batch = case.batch(5)
    (case.path / "new" / "1.a").unlink()
    suspend(process._process)
    assert case.small.put(batch, 0, 2) == 2
    assert case.small.put(batch, 2, 5) == 5
    add_sidecar(case.path, "9.a", "s@x", "other@y")
    assert case.small.put(batch, 4, 5) == 4, "its result would come before the others'"
    os.kill(process._process, signal.SIGCONT)
    found: dict[int, int] = {}
    while case.small.waiting:
        for _, index, results in case.small.take(wait=True):
            found.update(enumerate(results, index))
    assert found == {0: 1, 1: 0, 2: 1, 3: 1, 4: 1}


def test_many_is_many_enough() -> None:
    """A batch of removals is so large; a thread that syncs one would be there before the fork."""
    assert small_removals.MANY >= SYNC_REMOVALS
