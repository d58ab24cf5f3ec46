"""How much mail each local user may have waiting in a queue.

A message's file name has the ID of its user after the count: `...Q7U1000.host`. So the
limit survives restarts, and a forwarder need not report the messages that it removes.
"""

import os
import re
import threading
import time
from collections.abc import Callable, Sequence

from maildirqmtp.maildir.files import Folder, local_error

#: Least seconds between two counts of what a user has waiting: as many times those that the last
#: one took, and no more than these.
_RECOUNT_TIMES, RECOUNT_S = 20.0, 5.0

_MARK = re.compile(rb"([0-9]+)\.M[0-9]+P([0-9]+)Q[0-9]+U([0-9]+)\.")


def mark_of(user: int | None) -> str:
    """Return the part of a file name that says whose message it is; empty for no local user."""
    return "" if user is None else f"U{user}"


class UserQuota:
    """Allows each user at most `max_bytes` in tmp/ and new/; `clock` is monotonic seconds.

    The sizes that were taken are added up; the directories are counted again only when
    that sum exceeds the limit, for which a user can take up a twentieth of the time at most.
    """

    def __init__(self, max_bytes: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.max_bytes = max_bytes
        self._clock = clock
        self._since_s = int(time.time())
        self._lock = threading.Lock()
        self._locks: dict[int, threading.Lock] = {}
        self._used: dict[int, int] = {}
        #: What was allowed and is not written yet: no count of the directories sees all of it.
        self._unwritten: dict[int, int] = {}
        self._count_again_s: dict[int, float] = {}

    def take(self, folders: Callable[[], Sequence[Folder]], user: int, size: int) -> bool:
        """Return whether a user may add a message of `size` bytes; if so, count it.

        For any thread; a user waits for no other's count. `folders` returns tmp/ and new/, in this
        order, so that what moves is seen. `written` has to follow, if it may. Raises
        `LocalError` if they cannot be listed, and what `folders` raises.
        """
        with self._lock:
            lock = self._locks.setdefault(user, threading.Lock())
        with lock:
            used = self._used.get(user)
            if used is None or (used + size > self.max_bytes and self._is_due(user)):
                began_s = self._clock()
                # Read first: what is written meanwhile is in a directory then.
                used = self._unwritten.get(user, 0)
                used += _bytes_of(folders(), user, self._since_s)
                ended_s = self._clock()
                pause_s = min(RECOUNT_S, _RECOUNT_TIMES * (ended_s - began_s))
                self._count_again_s[user] = ended_s + pause_s
            may = used + size <= self.max_bytes
            self._used[user] = used + size if may else used
            if may:
                with self._lock:
                    self._unwritten[user] = self._unwritten.get(user, 0) + size
            return may

    def written(self, user: int, size: int) -> None:
        """Note that a message that was allowed is in tmp/, or could not be. For any thread."""
        with self._lock:
            self._unwritten[user] -= size

    def _is_due(self, user: int) -> bool:
        return self._clock() >= self._count_again_s[user]


def _bytes_of(folders: Sequence[Folder], user: int, since_s: int) -> int:
    """Return how many bytes of a user's messages are in tmp/ and new/; a name in both counts once.

    In tmp/ those that this process has begun to store since then (seconds of the epoch). A receiver
    that was killed leaves some there for 36 hours, and nobody is waiting for them.
    """
    found: dict[bytes, int] = {}
    for folder in folders:
        try:
            for name in map(os.fsencode, os.listdir(folder.fd)):
                match = _MARK.match(name)
                if not match or int(match[3]) != user:
                    continue
                is_ours = int(match[2]) == os.getpid() and int(match[1]) >= since_s
                if is_ours or folder is not folders[0]:
                    found[name] = _size(folder, name)
        except OSError as error:
            raise local_error("list", folder.path, error) from error
    return sum(found.values())


def _size(folder: Folder, name: bytes) -> int:
    try:
        return os.stat(name, dir_fd=folder.fd, follow_symlinks=False).st_size
    except FileNotFoundError:
        return 0  # it was moved or forwarded meanwhile
