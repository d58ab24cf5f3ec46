"""Shares of the threads: slow mail of one client does not hold up that of the others.

A client has at most three quarters of the threads; of two or three threads, all but one. Its
further jobs wait here: when one of its own is done, the next goes behind the jobs of others.
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
        # Reentrant, because a pool without threads runs a job before `submit` returns.
        self._lock = threading.RLock()
        self._waiting: deque[Job[Any]] = deque()
        #: Jobs given to the pool, each with the pool's own job; None until `submit` returns that.
        self._begun: dict[Job[Any], Job[None] | None] = {}

    def submit(self, work: Callable[[], T]) -> Job[T]:
        """Have the work done by the pool. Raises `RuntimeError` if the pool is closed."""
        job = Job(work)
        with self._lock:
            self._begin_waiting()
            if self._waiting or len(self._begun) >= self._limit:
                self._waiting.append(job)
            else:
                self._begin(job)
        return job

    def cancel(self, job: Job[Any]) -> bool:
        """Withdraw a job that has not begun; return False if it has: it goes on."""
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
        """Begin waiting jobs in place of this one, if it was begun; the lock is held."""
        if job in self._begun:
            del self._begun[job]
            self._begin_waiting()

    def _begin_waiting(self) -> None:
        """Begin as many jobs as the limit allows; the lock is held."""
        while self._waiting and len(self._begun) < self._limit:
            # Taken out first: if the pool runs it at once, its end begins the job after it.
            job = self._waiting.popleft()
            try:
                self._begin(job)
            except MemoryError:
                self._waiting.appendleft(job)  # tried again when a job comes or ends
                return
            except RuntimeError:  # closed: what was not begun is dropped
                self._waiting.clear()


class Shares:
    """The shares of all clients in a pool with this number of `threads`."""

    def __init__(self, pool: Workers, threads: int) -> None:
        self._pool = pool
        self._limit = max(1, threads - max(1, threads // 4))
        self._shares: WeakValueDictionary[str, Share] = WeakValueDictionary()

    def of(self, group: str) -> Workers:
        """Return a client's workers: the share of its group, or the whole pool without a group."""
        if not group:
            return self._pool
        share = self._shares.get(group)
        if share is None:
            share = self._shares[group] = Share(self._pool, self._limit)
        return share
