"""Shares of the threads: mail of one client that takes long does not hold up everybody's.

A client has at most three quarters of the threads, and of two or three all but one. What it has
beyond that waits here, and goes behind the jobs of others when one of its own is done.
"""

from __future__ import annotations

import threading
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakValueDictionary

from maildirqmtp.transport.thread_pool import Job

if TYPE_CHECKING:
    from collections.abc import Callable

    from maildirqmtp.transport.thread_pool import Workers

T = TypeVar("T")


class Share:
    """Workers with at most `limit` jobs at once in `pool`. For any thread."""

    def __init__(self, pool: Workers, limit: int) -> None:
        self._pool = pool
        self._limit = limit
        # A pool without threads does a job before `submit` returns.
        self._lock = threading.RLock()
        self._waiting: deque[Job[Any]] = deque()
        #: With what the pool has of each; None before it has that.
        self._begun: dict[Job[Any], Job[None] | None] = {}

    def submit(self, work: Callable[[], T]) -> Job[T]:
        """Have this done. Raises `RuntimeError` when the pool is closed."""
        job = Job(work)
        with self._lock:
            self._begin_waiting()
            if self._waiting or len(self._begun) >= self._limit:
                self._waiting.append(job)
            else:
                self._begin(job)
        return job

    def cancel(self, job: Job[Any]) -> bool:
        """Withdraw a job that was not begun; False where it was, and goes on."""
        with self._lock:
            if job in self._waiting:
                self._waiting.remove(job)
                return True
            inner = self._begun.get(job)
            if inner is None or not self._pool.cancel(inner):
                return False
            self._end(job)
            return True

    def _begin(self, job: Job[Any]) -> None:
        """Give a job to the pool; the lock is held."""
        self._begun[job] = None
        try:
            inner = self._pool.submit(partial(self._run, job))
        except BaseException:
            self._begun.pop(job, None)
            raise
        if job in self._begun:
            self._begun[job] = inner

    def _run(self, job: Job[Any]) -> None:
        job.run()
        with self._lock:
            self._end(job)

    def _end(self, job: Job[Any]) -> None:
        """Begin others in place of a job, if that had one; the lock is held."""
        if job in self._begun:
            del self._begun[job]
            self._begin_waiting()

    def _begin_waiting(self) -> None:
        """Begin what there is room for; the lock is held."""
        while self._waiting and len(self._begun) < self._limit:
            # Before it is begun: where the pool does it at once, its end begins the one after it.
            job = self._waiting.popleft()
            try:
                self._begin(job)
            except MemoryError:
                self._waiting.appendleft(job)  # with the next that comes or ends
                return
            except RuntimeError:  # closed: what was not begun is dropped
                self._waiting.clear()


class Shares:
    """The shares of all clients in a pool of so many `threads`."""

    def __init__(self, pool: Workers, threads: int) -> None:
        self._pool = pool
        self._limit = max(1, threads - max(1, threads // 4))
        self._shares: WeakValueDictionary[str, Share] = WeakValueDictionary()

    def of(self, group: str) -> Workers:
        """Return a client's workers: one share for a group, and all threads without a group."""
        if not group:
            return self._pool
        share = self._shares.get(group)
        if share is None:
            share = self._shares[group] = Share(self._pool, self._limit)
        return share
