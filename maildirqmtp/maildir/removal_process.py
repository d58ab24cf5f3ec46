"""A second process that removes small messages, so that a long run has the use of two cores.

On a disk, unlink(2) is half of the work of a run. A thread would gain nothing: the interpreter
lets one of them run at a time.

    run --names and identities--> process --a byte for each: removed or not--> run

The process ends when the run closes its pipe or dies. What it was told to remove by then is
removed, and the maildir stays locked for that long: it has inherited the lock.
"""

from __future__ import annotations

import gc
import marshal
import os
import select
import signal
from contextlib import suppress
from typing import TYPE_CHECKING

from maildirqmtp.maildir import small

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import NoReturn

    from maildirqmtp.maildir.files import Folder, Identity

#: Seconds without a result after which the process is given up: it was stopped, or the disk hangs.
RESULT_TIMEOUT_S = 60.0
#: Seconds that it may take to die when it is killed, unless the disk hangs.
KILLED_S = 1.0
# Bytes that are read at once.
_READ_BYTES = 1 << 16


class RemovalProcess:
    """Removes messages of some directories. Raises `OSError` if no process can be made.

    `waiting`: how many messages `take` has not told about. They should be so few that their
    results fit into a pipe. `is_alive`: False once it has died or was given up; `put` no more then.
    """

    def __init__(self, folders: Sequence[Folder]) -> None:
        self.waiting = 0
        self.is_alive = False
        self._index = {folder: index for index, folder in enumerate(folders)}
        self._requests, self._results, self._process = _start(folders)
        self.is_alive = True

    def put(self, messages: Iterable[tuple[Folder, bytes, Identity]]) -> None:
        """Have messages removed, each unless its name is no longer this file."""
        found = [(self._index[folder], name, identity) for folder, name, identity in messages]
        self.waiting += len(found)
        left = marshal.dumps(found)
        try:
            while left:
                if not _is_ready(self._requests, select.POLLOUT, RESULT_TIMEOUT_S):
                    self._give_up()
                    return
                left = left[os.write(self._requests, left) :]
        except BrokenPipeError:
            self._give_up()

    def take(self, wait: bool) -> bytes:
        """Return the results that are there: a byte for each message, as they were put.

        1: it was removed. 0: it was not, or nobody knows. `wait`: until there is one, unless
        nothing is `waiting`.
        """
        if not self.waiting:
            return b""
        found = self._read(RESULT_TIMEOUT_S if wait else 0.0)
        if not self.is_alive:
            found += bytes(self.waiting - len(found))
        self.waiting -= len(found)
        return found

    def close(self) -> None:
        """End the process; results that were not taken are lost."""
        os.close(self._requests)
        if self.is_alive and not self._ends_within(RESULT_TIMEOUT_S):
            self._give_up()
        if self.is_alive or self._ends_within(KILLED_S):
            os.waitpid(self._process, 0)
        os.close(self._results)
        self.is_alive = False

    def _ends_within(self, timeout_s: float) -> bool:
        """Return whether the process, which has the other end of the pipe, ends in time."""
        return _is_ready(self._results, 0, timeout_s)

    def _read(self, timeout_s: float) -> bytes:
        """Return the results that are there, or come in time; give the process up if none can."""
        is_there = _is_ready(self._results, select.POLLIN, timeout_s)
        found = os.read(self._results, _READ_BYTES) if is_there else b""
        if not found and (is_there or timeout_s):
            self._give_up()
        return found

    def _give_up(self) -> None:
        self.is_alive = False
        os.kill(self._process, signal.SIGKILL)


def _is_ready(fd: int, events: int, timeout_s: float) -> bool:
    """Return whether a pipe can be read or written in time, or its other end is closed."""
    poll = select.poll()
    poll.register(fd, events)
    return bool(poll.poll(timeout_s * 1000))


def _start(folders: Sequence[Folder]) -> tuple[int, int, int]:
    """Start a process; return where to write requests, where to read results, and its ID."""
    fds: list[int] = []
    try:
        fds += os.pipe2(os.O_CLOEXEC)
        fds += os.pipe2(os.O_CLOEXEC)
        process = os.fork()
    except OSError:
        for fd in fds:
            os.close(fd)
        raise
    their_requests, requests, results, their_results = fds
    os.set_blocking(requests, False)
    if not process:
        os.close(requests)  # else it would never see the end; `results` stays open, so that
        # writing to it does not fail when the run has died
        _run(their_requests, their_results, folders)
    os.close(their_requests)
    os.close(their_results)
    return requests, results, process


def _run(requests: int, results: int, folders: Sequence[Folder]) -> NoReturn:
    """Be the process. Signals that stop the run leave it alone: it ends when the run does."""
    try:
        gc.disable()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        with open(requests, "rb") as stream, suppress(EOFError):
            while True:
                messages = marshal.load(stream)
                found = [small.remove(folders[i], name, identity) for i, name, identity in messages]
                os.write(results, bytes(found))
    finally:
        os._exit(0)
