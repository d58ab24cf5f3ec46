"""Shares of the threads: mail of one client that takes long does not hold up everybody's.

A client has at most three quarters of the threads. What it has beyond that waits here, and goes
behind the jobs of others when one of its own is done.
"""

from __future__ import annotations

import contextlib
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
        self._begun: dict[Job[Any], Job[None]] = {}
        self._taken = 0

    def submit(self, work: Callable[[], T]) -> Job[T]:
        """Have this done. Raises `RuntimeError` when the pool is closed."""
        job = Job(work)
        with self._lock:
            if self._taken < self._limit:
                self._begin(job)
            else:
                self._waiting.append(job)
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
        inner = self._pool.submit(partial(self._run, job))
        if not job.done:
            self._taken += 1
            self._begun[job] = inner

    def _run(self, job: Job[Any]) -> None:
        job.run()
        with self._lock:
            self._end(job)

    def _end(self, job: Job[Any]) -> None:
        """Begin the next one in place of a job, if that had one; the lock is held."""
        if self._begun.pop(job, None) is None:
            return
        self._taken -= 1
        if self._waiting:
            with contextlib.suppress(RuntimeError):  # closed: what was not begun is dropped
                self._begin(self._waiting.popleft())


class Shares:
    """The shares of all clients in a pool of so many `threads`."""

    def __init__(self, pool: Workers, threads: int) -> None:
        self._pool = pool
        self._limit = threads - threads // 4
        self._shares: WeakValueDictionary[str, Share] = WeakValueDictionary()

    def of(self, group: str) -> Workers:
        """Return a client's workers: one share for a group, and all threads without a group."""
        if not group:
            return self._pool
        share = self._shares.get(group)
        if share is None:
            share = self._shares[group] = Share(self._pool, self._limit)
        return share
