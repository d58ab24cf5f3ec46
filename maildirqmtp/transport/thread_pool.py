"""A small pool of threads for what may take long: fsyncs, handing mail to another server.

The thread of a selector submits work, goes on, and is woken when some of it is done:

    wakeup = Wakeup()                         # its fd is in the selector
    pool = ThreadPool(8, wakeup.set)
    job = pool.submit(work)
    ...                                       # woken: wakeup.clear(), then look at job.done
    job.result()                              # what `work` returned, or raises what it raised

Nothing calls back into the selector's thread: the owner of a job looks at it.
"""

import threading
from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import Any, Generic, Protocol, TypeVar

T = TypeVar("T")


class Job(Generic[T]):
    """Work given to a pool. `done` is true once `result` can be asked for."""

    __slots__ = ("_error", "_result", "_work", "done")

    def __init__(self, work: Callable[[], T]) -> None:
        self.done = False
        self._work: Callable[[], T] | None = work
        self._result: T | None = None
        self._error: BaseException | None = None

    def result(self) -> T:
        """Return what the work returned, or raise what it raised; `RuntimeError` if not `done`."""
        if not self.done:
            raise RuntimeError("the work is not done yet")
        if self._error is not None:
            raise self._error
        return self._result  # type: ignore[return-value]

    def run(self) -> None:
        """Do the work in the calling thread. Raises nothing."""
        work, self._work = self._work, None
        assert work is not None
        try:
            self._result = work()
        except BaseException as error:
            self._error = error
        # What the work holds, such as the text of a message, is freed before `done` tells others.
        del work
        self.done = True


class Workers(Protocol):
    """What takes work: a `ThreadPool`, or `Here`."""

    def submit(self, work: Callable[[], T]) -> Job[T]:
        """Have the work done; return its job."""

    def cancel(self, job: Job[Any]) -> bool:
        """Withdraw a job that was not begun; return False if it was."""


class Here:
    """Does all work at once, in the caller's thread."""

    def submit(self, work: Callable[[], T]) -> Job[T]:
        """Do the work; the job is done when this returns."""
        job = Job(work)
        job.run()
        return job

    def cancel(self, job: Job[Any]) -> bool:
        """Return False: every job is done."""
        return False


class ThreadPool:
    """At most `max_threads` threads, started as they are needed; they do not outlive the process.

    `wake` is called from them each time that a job is done, and must not wait.
    Any thread may call any method. Work is begun in the order of `submit`.
    """

    def __init__(self, max_threads: int, wake: Callable[[], None], name: str = "pool") -> None:
        self._max_threads = max_threads
        self._wake = wake
        self._name = name
        self._waiting: deque[Job[Any]] = deque()
        self._changed = threading.Condition()
        self._threads: list[threading.Thread] = []
        self._idle = 0
        self._closed = False

    def submit(self, work: Callable[[], T]) -> Job[T]:
        """Have the work done; return its job. Raises `RuntimeError` if the pool is closed.

        If not even one thread can be started, the work is done before this returns.
        """
        job = Job(work)
        with self._changed:
            if self._closed:
                raise RuntimeError("the pool is closed")
            self._waiting.append(job)
            if self._idle >= len(self._waiting) or self._add_thread():
                self._changed.notify()
                return job
            self._waiting.remove(job)
        job.run()
        self._wake()
        return job

    def _add_thread(self) -> bool:
        """Start one more thread, if there may be one more; return False if there is none at all."""
        if len(self._threads) < self._max_threads:
            name = f"{self._name} {len(self._threads)}"
            # A thread that waits for a dead disk or server must not keep the process from ending.
            thread = threading.Thread(target=self._serve, name=name, daemon=True)
            try:
                thread.start()
            except (RuntimeError, MemoryError):
                return bool(self._threads)  # the others will come to it
            self._threads.append(thread)
        return True

    def cancel(self, job: Job[Any]) -> bool:
        """Withdraw a job that was not begun; return False if it was, and goes on."""
        with self._changed:
            if job not in self._waiting:
                return False
            self._waiting.remove(job)
            return True

    def close(self, wait_s: float | None = None) -> bool:
        """Drop what was not begun, and wait for the rest; return False if some of it goes on.

        `wait_s` is the most seconds to wait, None for as long as it takes. May be
        called again.
        """
        with self._changed:
            self._closed = True
            self._waiting.clear()
            self._changed.notify_all()
        until_s = None if wait_s is None else monotonic() + wait_s
        for thread in self._threads:
            thread.join(None if until_s is None else max(0.0, until_s - monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def _serve(self) -> None:
        while (job := self._next()) is not None:
            job.run()
            # Nothing of this job may be kept alive here until the next one comes.
            del job
            self._wake()

    def _next(self) -> Job[Any] | None:
        with self._changed:
            self._idle += 1
            try:
                while not (self._waiting or self._closed):
                    self._changed.wait()
            finally:
                self._idle -= 1
            return self._waiting.popleft() if self._waiting else None
