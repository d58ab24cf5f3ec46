"""Work in threads: its results, its errors, its bounds, and its end."""

from __future__ import annotations

import gc
import select
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from maildirqmtp.transport.thread_pool import Job, ThreadPool
from maildirqmtp.transport.wakeup import Wakeup
from tests.helpers import DEADLINE_S, wait_until

THREADS = 3


@pytest.fixture
def wakeup() -> Iterator[Wakeup]:
    """What the pool wakes."""
    made = Wakeup()
    yield made
    made.close()


@pytest.fixture
def pool(wakeup: Wakeup) -> Iterator[ThreadPool]:
    """A pool of three threads."""
    made = ThreadPool(THREADS, wakeup.set)
    yield made
    assert made.close(DEADLINE_S)


class Gate:
    """Work that begins, and then waits until it may go on."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.begun = threading.Semaphore(0)
        self.running = self.most = 0
        self._lock = threading.Lock()

    def __call__(self) -> int:
        with self._lock:
            self.running += 1
            self.most = max(self.most, self.running)
        self.begun.release()
        assert self.open.wait(DEADLINE_S)
        with self._lock:
            self.running -= 1
        return threading.get_ident()


def finished(wakeup: Wakeup, *jobs: Job[Any]) -> None:
    """Wait for jobs as the receiver does, in a selector."""
    while not all(job.done for job in jobs):
        assert select.select([wakeup.fd], [], [], DEADLINE_S)[0], "the wake-up was lost"
        wakeup.clear()


def test_a_result_comes_with_a_wake_up(pool: ThreadPool, wakeup: Wakeup) -> None:
    """A selector that nobody wakes would leave the answer lying until the next client comes."""
    job = pool.submit(lambda: "stored")
    finished(wakeup, job)
    assert job.result() == "stored"


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), MemoryError()])
def test_an_error_is_raised_to_the_owner(
    pool: ThreadPool, wakeup: Wakeup, error: Exception
) -> None:
    """Left in the thread, a full disk would look like a message that is stored."""

    def fail() -> None:
        raise error

    job = pool.submit(fail)
    finished(wakeup, job)
    with pytest.raises(type(error)) as found:
        job.result()
    assert found.value is error
    other = pool.submit(threading.get_ident)
    finished(wakeup, other)
    assert other.result(), "the thread goes on"


def test_before_it_is_done_there_is_no_result(pool: ThreadPool) -> None:
    gate = Gate()
    job = pool.submit(gate)
    with pytest.raises(RuntimeError, match="not done"):
        job.result()
    gate.open.set()


def test_side_by_side_but_no_more_than_allowed(pool: ThreadPool, wakeup: Wakeup) -> None:
    """One slow fsync keeps nobody waiting; a thousand of them do not take a thousand threads."""
    gate = Gate()
    jobs: list[Job[Any]] = [pool.submit(gate) for _ in range(THREADS + 4)]
    for _ in range(THREADS):
        assert gate.begun.acquire(timeout=DEADLINE_S)
    assert gate.running == THREADS
    gate.open.set()
    finished(wakeup, *jobs)
    assert gate.most == THREADS
    assert len({job.result() for job in jobs}) == THREADS


def test_idle_threads_are_used_again(pool: ThreadPool, wakeup: Wakeup) -> None:
    """A thread for each message would cost more than the message."""
    names = set()
    for _ in range(20):
        job = pool.submit(lambda: threading.current_thread().name)
        finished(wakeup, job)
        names.add(job.result())
        wait_until(lambda: pool._idle == len(pool._threads), "the thread waits for work again")
    assert len(names) == 1


def test_in_order(pool: ThreadPool, wakeup: Wakeup) -> None:
    """Whoever came first waits for the disk first."""
    gate = Gate()
    first: list[Job[Any]] = [pool.submit(gate) for _ in range(THREADS)]
    begun: list[int] = []
    jobs: list[Job[Any]] = [pool.submit(_note(begun, number)) for number in range(10)]
    gate.open.set()
    finished(wakeup, *first, *jobs)
    assert sorted(begun) == list(range(10))
    assert begun[0] == 0


def _note(into: list[int], number: int) -> Callable[[], None]:
    return lambda: into.append(number)


def test_what_was_not_begun_can_be_withdrawn(pool: ThreadPool, wakeup: Wakeup) -> None:
    """A client that has gone: what it sent is not stored, for it will send that again."""
    gate = Gate()
    running: list[Job[Any]] = [pool.submit(gate) for _ in range(THREADS)]
    begun: list[int] = []
    job, other = pool.submit(_note(begun, 1)), pool.submit(_note(begun, 2))
    assert pool.cancel(job)
    assert not pool.cancel(job)
    for _ in running:
        assert gate.begun.acquire(timeout=DEADLINE_S)
    assert not pool.cancel(running[0])
    gate.open.set()
    finished(wakeup, *running, other)
    assert begun == [2]
    assert not job.done


def test_the_end_waits_for_what_has_begun(wakeup: Wakeup) -> None:
    """The directories must stay open as long as a thread writes into them."""
    pool, gate = ThreadPool(1, wakeup.set), Gate()
    job = pool.submit(gate)
    assert gate.begun.acquire(timeout=DEADLINE_S)
    never = pool.submit(gate)
    assert not pool.close(wait_s=0.0)
    gate.open.set()
    assert pool.close()
    assert job.done
    assert not never.done
    with pytest.raises(RuntimeError, match="closed"):
        pool.submit(gate)


def test_nothing_of_a_done_job_is_held(pool: ThreadPool, wakeup: Wakeup) -> None:
    """The text of the last message would stay in memory, once for each thread."""

    class Text:
        def store(self) -> None:
            """As a message is stored."""

    text = Text()
    known = weakref.ref(text)
    job = pool.submit(text.store)
    del text
    finished(wakeup, job)
    gc.collect()
    assert known() is None


@pytest.mark.parametrize("error", [RuntimeError("can't start new thread"), MemoryError()])
def test_without_any_thread_it_is_done_all_the_same(
    pool: ThreadPool, wakeup: Wakeup, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """At a limit of tasks the receiver is slow, but takes mail."""

    def start(_: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        here = pool.submit(threading.get_ident)
        assert here.done
        assert here.result() == threading.get_ident()
    finished(wakeup, here)
    gate = Gate()
    job = pool.submit(gate)
    assert gate.begun.acquire(timeout=DEADLINE_S)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        waits = pool.submit(threading.get_ident)
        assert not waits.done, "the thread that is there will come to it"
    gate.open.set()
    finished(wakeup, job, waits)
    assert waits.result() == job.result()
