"""Who of several routes has a message of one maildir in hand.

Routes with different prefixes may share a maildir, and a message with several
recipients may be for both. Each rewrites its sidecar; if both did so at the same
time, the one would put back the recipients that the other has just taken off.
"""

from __future__ import annotations

import os
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

from maildirqmtp.maildir import locking

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Protocol

    from maildirqmtp.maildir.locking import Lock
    from maildirqmtp.maildir.maildir import Maildir

    class Claimant(Protocol):
        """A route's queue."""

        def look_again(self) -> None:
            """A message that was refused may be free now."""


class Reservations:
    """The messages of one maildir that are in hand; shared by threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: dict[bytes, list[Claimant]] = {}

    def take(self, key: bytes, claimant: Claimant) -> bool:
        """Take a message; False where another has it: `look_again` is called when it is free."""
        with self._lock:
            refused = self._held.get(key)
            if refused is None:
                self._held[key] = []
                return True
            if claimant not in refused:
                refused.append(claimant)
            return False

    def release(self, key: bytes) -> None:
        """Let go of a message; harmless where it is not held."""
        with self._lock:
            refused = self._held.pop(key, [])
        for claimant in refused:
            claimant.look_again()


class MaildirLocks:
    """The locks that this process holds on maildirs, one for all the routes of each."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: dict[tuple[int, int], tuple[int, Lock, Reservations]] = {}

    @contextmanager
    def hold(self, maildir: Maildir) -> Iterator[Reservations]:
        """Keep other processes away from a maildir; yield what its routes share.

        Raises `LocalError`, which names the process that holds the lock.
        """
        status = os.fstat(maildir.root.fd)
        key = (status.st_dev, status.st_ino)
        with self._lock:
            if key in self._held:
                users, lock, reservations = self._held[key]
            else:
                # Not the maildir's own, which ends with the route that opened it.
                users, lock, reservations = 0, locking.acquire(maildir.root), Reservations()
            self._held[key] = (users + 1, lock, reservations)
        try:
            yield reservations
        finally:
            with self._lock:
                users, lock, reservations = self._held.pop(key)
                if users > 1:
                    self._held[key] = (users - 1, lock, reservations)
                else:
                    lock.close()
