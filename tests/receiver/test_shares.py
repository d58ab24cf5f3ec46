"""One client has a part of the threads, however much it brings."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import pytest

from maildirqmtp.receiver.shares import Share, Shares
from maildirqmtp.transport.thread_pool import Here, Job, ThreadPool
from tests.helpers import DEADLINE_S, wait_until

T = TypeVar("T")


class Pool:
    """Begins a job when it is told to; `has_memory` is false while it takes no more."""

    def __init__(self) -> None:
        self.jobs: list[Job[Any]] = []
        self.has_memory = True

    def submit(self, work: Callable[[], T]) -> Job[T]:
        if not self.has_memory:
            raise MemoryError
        self.jobs.append(job := Job(work))
        return job

    def cancel(self, job: Job[Any]) -> bool:
        self.jobs.remove(job)
        return True

    def run_first(self) -> None:
        self.jobs.pop(0).run()


@pytest.fixture
def pool() -> Iterator[ThreadPool]:
    """Four threads."""
    made = ThreadPool(4, lambda: None)
    yield made
    assert made.close(DEADLINE_S)


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """What slow work waits for."""
    made = threading.Event()
    yield made
    made.set()


def test_others_have_a_thread_left(pool: ThreadPool, gate: threading.Event) -> None:
    """Mail to a mailbox that hangs, by twenty connections, would defer everybody's mail."""
    shares = Shares(pool, 4)
    slow = [shares.of("a").submit(lambda: gate.wait(DEADLINE_S)) for _ in range(12)]
    quick = [shares.of("b").submit(lambda: 1) for _ in range(5)]
    wait_until(lambda: all(job.done for job in quick), "the other's work")
    assert not any(job.done for job in slow)
    gate.set()
    wait_until(lambda: all(job.done for job in slow), "the slow work")
    assert all(job.result() for job in slow)


def test_a_share_is_a_clients_not_a_connections(pool: ThreadPool) -> None:
    """And it is forgotten with its last connection; clients of this machine's own have none."""
    shares = Shares(pool, 4)
    share = shares.of("a")
    assert shares.of("a") is share
    assert shares.of("b") is not share
    assert shares.of("") is pool
    del share
    assert list(shares._shares) == []


def test_work_that_fails_gives_its_place_to_the_next(pool: ThreadPool) -> None:
    """Else a client that had no memory a few times is never served again."""
    share = Share(pool, 1)

    def fail() -> None:
        raise MemoryError

    jobs = [share.submit(fail) for _ in range(5)]
    wait_until(lambda: all(job.done for job in jobs), "all of it")
    for job in jobs:
        with pytest.raises(MemoryError):
            job.result()


def test_what_was_not_begun_can_be_withdrawn(pool: ThreadPool, gate: threading.Event) -> None:
    """Here and in the pool; its place goes to the next."""
    ran: list[str] = []
    busy = [pool.submit(lambda: gate.wait(DEADLINE_S)) for _ in range(4)]
    share = Share(pool, 1)
    in_pool, here, last = (
        share.submit(lambda name=name: ran.append(name))  # type: ignore[misc]
        for name in ("in pool", "here", "last")
    )
    assert share.cancel(here)
    assert share.cancel(in_pool)
    gate.set()
    wait_until(lambda: last.done and all(job.done for job in busy), "the rest")
    assert ran == ["last"]
    assert not share.cancel(last)


def test_without_a_thread_to_be_had() -> None:
    """The pool does the work before `submit` returns."""
    share = Share(Here(), 1)
    assert [share.submit(lambda n=n: n).result() for n in range(3)] == [0, 1, 2]  # type: ignore[misc]


def test_a_pool_that_is_closed_drops_what_waits(gate: threading.Event) -> None:
    """The receiver ends; what was not begun has no answer."""
    pool = ThreadPool(1, lambda: None)
    share = Share(pool, 1)
    began = threading.Event()

    def wait() -> bool:
        began.set()
        return gate.wait(DEADLINE_S)

    running = share.submit(wait)
    waiting = share.submit(lambda: None)
    assert began.wait(DEADLINE_S)
    with contextlib.ExitStack() as stack:
        stack.callback(gate.set)
        assert not pool.close(0.0)
    assert pool.close(DEADLINE_S)
    assert running.result()
    assert not waiting.done
    with pytest.raises(RuntimeError, match="closed"):
        Share(pool, 1).submit(lambda: None)


@pytest.mark.parametrize(("threads", "limit"), [(1, 1), (2, 1), (3, 2), (4, 3), (7, 6), (8, 6)])
def test_so_many_at_once(threads: int, limit: int) -> None:
    """With two or three threads, too, one is left to the others."""
    pool = Pool()
    share = Shares(pool, threads).of("a")
    for _ in range(10):
        share.submit(lambda: None)
    assert len(pool.jobs) == limit


def test_what_there_was_no_memory_for_begins_later() -> None:
    """Else its client waits for an answer that never comes; and all of the share is used then."""
    pool = Pool()
    share = Share(pool, 2)
    jobs = [share.submit(lambda: 1) for _ in range(4)]
    pool.has_memory = False
    pool.run_first()
    assert pool.jobs
    pool.has_memory = True
    pool.run_first()
    assert len(pool.jobs) == 2
    pool.run_first()
    pool.run_first()
    assert [job.result() for job in jobs] == [1] * 4


def test_what_there_was_no_memory_for_goes_before_what_comes_later() -> None:
    """Where nothing else of the client is under way, it begins with the next that comes."""
    pool = Pool()
    share = Share(pool, 1)
    ran: list[str] = []
    share.submit(lambda: ran.append("first"))
    share.submit(lambda: ran.append("second"))
    pool.has_memory = False
    pool.run_first()
    with contextlib.suppress(MemoryError):
        share.submit(lambda: ran.append("third"))
    pool.has_memory = True
    share.submit(lambda: ran.append("fourth"))
    while pool.jobs:
        pool.run_first()
    assert ran == ["first", "second", "third", "fourth"]


def test_what_cannot_be_begun_takes_no_place() -> None:
    """Else a client that had no memory a few times is never served again."""
    pool = Pool()
    share = Share(pool, 1)
    pool.has_memory = False
    with pytest.raises(MemoryError):
        share.submit(lambda: 1)
    pool.has_memory = True
    job = share.submit(lambda: 1)
    pool.run_first()
    assert job.result() == 1
