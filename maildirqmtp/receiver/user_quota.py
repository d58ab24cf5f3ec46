"""How much mail each local user may have waiting in a queue.

A message's file name has the ID of its user after the count: `...Q7U1000.host`. So the
limit survives restarts, and a forwarder need not report the messages that it removes.
"""

import os
import re
import threading
import time
from collections.abc import Callable

from maildirqmtp.maildir.files import Folder, local_error

#: Least seconds between two counts of what a user who is over the limit has waiting.
RECOUNT_S = 5.0

_MARK = re.compile(rb"[0-9]+\.M[0-9]+P[0-9]+Q[0-9]+U([0-9]+)\.")


def mark_of(user: int | None) -> str:
    """Return the part of a file name that says whose message it is; empty for no local user."""
    return "" if user is None else f"U{user}"


class UserQuota:
    """Allows each user at most `max_bytes` in new/; `clock` is monotonic seconds.

    The sizes that were taken are added up; the directory is counted again only when
    that sum exceeds the limit.
    """

    def __init__(self, max_bytes: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.max_bytes = max_bytes
        self._clock = clock
        self._lock = threading.Lock()
        self._used: dict[int, int] = {}
        self._counted_s: dict[int, float] = {}

    def take(self, new: Folder, user: int, size: int) -> bool:
        """Return whether a user may add a message of `size` bytes; if so, count it.

        For any thread. Raises `LocalError` if `new` cannot be listed.
        """
        with self._lock:
            used = self._used.get(user)
            if used is None or (used + size > self.max_bytes and self._is_due(user)):
                used = _bytes_of(new, user)
                self._counted_s[user] = self._clock()
            may = used + size <= self.max_bytes
            self._used[user] = used + size if may else used
            return may

    def _is_due(self, user: int) -> bool:
        return self._clock() - self._counted_s[user] >= RECOUNT_S


def _bytes_of(new: Folder, user: int) -> int:
    """Return how many bytes of a user's messages are in a directory."""
    total = 0
    try:
        for name in map(os.fsencode, os.listdir(new.fd)):
            match = _MARK.match(name)
            if match and int(match[1]) == user:
                total += _size(new, name)
    except OSError as error:
        raise local_error("list", new.path, error) from error
    return total


def _size(new: Folder, name: bytes) -> int:
    try:
        return os.stat(name, dir_fd=new.fd, follow_symlinks=False).st_size
    except FileNotFoundError:
        return 0  # it was forwarded meanwhile
