"""What the routes of one process share of a maildir: lock, reserved and stuck messages, state.

Routes with different prefixes may share a maildir, and a message with several
recipients may be for both. Each rewrites its sidecar; if both did so at the same
time, one would put back the recipients that the other has just removed.
"""

from __future__ import annotations

import os
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from maildirqmtp.descriptor_limit import check_room
from maildirqmtp.maildir import locking
from maildirqmtp.maildir.files import Folder
from maildirqmtp.maildir.state import State

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Protocol

    from maildirqmtp.forwarder.stuck import Stuck
    from maildirqmtp.maildir.locking import Lock
    from maildirqmtp.maildir.maildir import Maildir
    from maildirqmtp.maildir.shard import Shard

    #: Device and inode of a maildir.
    _Inode = tuple[int, int]

    class RouteQueue(Protocol):
        """The queue of a route."""

        def look_again(self) -> None:
            """Scan again: a message that could not be taken may be free now."""


class Reservations:
    """The messages of one maildir that routes have reserved, each for one route. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: dict[bytes, list[RouteQueue]] = {}

    def take(self, key: bytes, queue: RouteQueue) -> bool:
        """Reserve a message; False if it is taken: `queue.look_again` is called when it is free."""
        with self._lock:
            refused = self._held.get(key)
            if refused is None:
                self._held[key] = []
                return True
            if queue not in refused:
                refused.append(queue)
            return False

    def has(self, key: bytes) -> bool:
        """Return whether a route has reserved a message."""
        return key in self._held

    def keys(self) -> list[bytes]:
        """Return the messages that are reserved now."""
        with self._lock:
            return list(self._held)

    def release(self, key: bytes) -> None:
        """Release a message; harmless if it is not reserved."""
        with self._lock:
            refused = self._held.pop(key, [])
        for queue in refused:
            queue.look_again()


class StuckMessages:
    """The stuck messages of one maildir that no route is at work on. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stuck: list[Stuck] = []

    def __bool__(self) -> bool:
        return bool(self._stuck)

    def put(self, stuck: Iterable[Stuck]) -> None:
        """Leave messages to the next route."""
        with self._lock:
            self._stuck += stuck

    def take(self) -> list[Stuck]:
        """Return those that were left, to the route that will deal with them."""
        with self._lock:
            stuck, self._stuck = self._stuck, []
            return stuck


class SharedMaildir(NamedTuple):
    """What the routes of one maildir share; `root` is a descriptor of its directory.

    `prefixes` has the prefix of each of them: twice, while one with the same takes over.
    """

    root: Folder
    state: State
    reservations: Reservations
    stuck: StuckMessages
    prefixes: list[bytes]


class MaildirLocks:
    """The locks that this process holds on maildirs, one for all the routes of each.

    `clock` is monotonic seconds, `wall_clock` seconds of the epoch.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._clock = clock
        self._wall_clock = wall_clock
        self._lock = threading.Lock()
        self._routes = 0
        self._held: dict[tuple[_Inode, Shard | None], tuple[Lock, SharedMaildir]] = {}
        # What the server has taken must not be sent again by the next route, however much later,
        # and whatever its shard: stuck messages stay reserved.
        self._kept: dict[_Inode, tuple[Reservations, StuckMessages]] = {}

    def save_states(self) -> list[str]:
        """Write the state files of all maildirs in use; return why one could not be. Any thread."""
        with self._lock:  # so that no route closes the directory meanwhile
            states = [shared.state for _, shared in self._held.values()]
            for state in states:
                state.save()
            return [fault for state in states if (fault := state.take_fault()) is not None]

    @contextmanager
    def hold(self, maildir: Maildir, prefix: bytes = b"") -> Iterator[SharedMaildir]:
        """Keep other processes away from a maildir; yield what its routes share.

        Raises `LocalError` if it cannot be locked, naming the process that holds the lock, or if
        another route is too much for the limit of descriptors.
        """
        status = os.fstat(maildir.root.fd)
        inode = (status.st_dev, status.st_ino)
        key = (inode, maildir.shard)
        with self._lock:
            check_room(self._routes, maildir.root.fd)
            if key not in self._held:
                # Not the maildir's own lock, which ends with the route that opened it.
                lock = locking.acquire(maildir.root, maildir.shard)
                # The lock's descriptor, which outlives the route.
                root = Folder(lock.directory, maildir.root.path, maildir.root.owner)
                threads = threading.Lock()
                state = State(root, self._clock, self._wall_clock, threads, maildir.shard)
                kept = self._kept.setdefault(inode, (Reservations(), StuckMessages()))
                self._held[key] = lock, SharedMaildir(root, state, *kept, [])
            lock, shared = self._held[key]
            shared.prefixes.append(prefix)
            self._routes += 1
        try:
            yield shared
        finally:
            with self._lock:
                shared.prefixes.remove(prefix)
                self._routes -= 1
                if not shared.prefixes:
                    del self._held[key]
                    lock.close()
                    if not shared.stuck and all(held != inode for held, _ in self._held):
                        del self._kept[inode]
