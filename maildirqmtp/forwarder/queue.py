"""Decides which message is next: what the forwarder needs of a queue, and the queue of a batch.

A queue hands out candidates (`take`) and is told what became of each: `gone` (no
longer there, or done), `later` (still there, to be tried again in time), or not
tried to the end (`put_back`, `postpone`). The queue of watch mode is in `daemon.queue`.
"""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING, Protocol

from maildirqmtp.forwarder.large_messages import Postponed

# The part of a name that stays when a mail reader moves, flags or numbers the message.
from maildirqmtp.maildir.names import without_uid

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from maildirqmtp.maildir.files import Folder
    from maildirqmtp.maildir.maildir import Candidates

    #: Scans the maildir for messages whose names a filter lets through; see `Maildir.scan`.
    Scan = Callable[[Callable[[Iterator[bytes]], Iterable[bytes]]], Candidates]

#: Seconds for which a batch looks for more mail when it has tried all that it knew of.
RESCAN_FOR_S = 3_600.0
#: Times that a file may be missing under a name that a scan has listed, before it is given up.
_MAX_VANISHED = 10
# While large messages go: part of the time that may go into scanning, and seconds between scans.
_SCAN_SHARE = 0.1
_SCAN_S = 0.1
# Seconds after which the maildir is scanned although nothing else happens.
_LOOK_S = 1.0


class Queue(Protocol):
    """What the forwarder needs of either queue."""

    #: False if nothing more comes once it is empty and `refill` has found nothing.
    open: bool

    def __len__(self) -> int:
        """Return how many could be taken now."""
        ...

    def take(self) -> tuple[Folder, bytes] | None:
        """Hand out the next candidate; return None if there is none."""
        ...

    def refill(self) -> int:
        """Look for more, once all that was known has been tried; return how many there are.

        Raises `LocalError` if the maildir cannot be scanned.
        """
        ...

    def put_back(self, candidates: list[tuple[Folder, bytes]]) -> None:
        """Put these, which were not tried to the end, before all others."""
        ...

    @property
    def postponed(self) -> int:
        """How many candidates only `take_postponed` hands out."""
        ...

    def take_postponed(self) -> tuple[Folder, bytes] | None:
        """Hand out the next postponed candidate; return None if there is none."""
        ...

    def postpone(
        self,
        candidates: list[tuple[Folder, bytes]],
        *,
        broken: bool = False,
        first: bool = False,
    ) -> None:
        """Put these, which were not tried to the end, behind all others, present and to come.

        `broken`: they broke a connection before, and go behind the other postponed ones.
        `first`: they were next among these, and are so again.
        """
        ...

    def add(self, candidates: Iterable[tuple[Folder, bytes]]) -> None:
        """Put these, which are new, behind all others."""
        ...

    def rotate(self) -> None:
        """Move the last candidate to the front; the postponed ones stay as they are."""
        ...

    def gone(self, name: bytes) -> bool:
        """Forget a message that is done; return whether it had been held in this run."""
        ...

    def all_gone(self, names: Iterable[bytes]) -> int:
        """Forget messages that are done; return how many of them had been held in this run."""
        ...

    def is_held(self, name: bytes) -> bool:
        """Return whether a message counts as held, although this run may try it again."""
        ...

    def vanished(self, name: bytes) -> bool:
        """Forget a message whose name is gone; return whether it had been held in this run.

        A scan may find its file under another name.
        """
        ...

    def later(
        self,
        name: bytes,
        birth_s: float | None,
        reason: str,
        at_next_scan: bool = False,
        stuck: bool = False,
    ) -> bool:
        """Keep a candidate for later; return whether the reason is not that of the last time.

        `birth_s` is the file's time, None if it is not known. `at_next_scan`: the
        file has changed, and is tried again with the next scan. An empty reason
        stands for a file that is no message of this route. `stuck`: no route may have it until
        `release`.
        """
        ...

    def release(self, names: Iterable[bytes]) -> None:
        """Let routes have messages that were stuck."""
        ...

    def try_all(self) -> None:
        """Have all messages tried now, if they wait."""
        ...

    def wait(self, candidate: tuple[Folder, bytes], until: float, reason: str) -> None:
        """Keep a candidate back until this time of the clock."""
        ...

    def hurry(self, names: Iterable[bytes]) -> None:
        """Have messages tried now, if they wait."""
        ...

    def next_deadline(self) -> float | None:
        """Return the clock's time at which `take` may have more, None if none is known."""
        ...


class BatchQueue:
    """The candidates that the scans of one run find; each message is tried once.

    A message that changed while it was sent is tried twice. `scan` looks at the
    maildir again. `clock` is monotonic seconds.
    """

    open = False

    def __init__(self, scan: Scan, clock: Callable[[], float] = time.monotonic) -> None:
        self._candidates: Candidates = deque()
        self._postponed: Postponed[tuple[Folder, bytes]] = Postponed()
        # Those that were postponed: they wait, or are in flight while the maildir is scanned.
        self._large: set[bytes] = set()
        self._scan = scan
        self._clock = clock
        self._rescan_until = clock() + RESCAN_FOR_S
        self._not_before = clock()
        self._tried: set[bytes] = set()
        self._of_others: set[bytes] = set()
        self._held: dict[bytes, str] = {}
        self._vanished: dict[bytes, int] = {}
        self._waiting: dict[bytes, tuple[float, tuple[Folder, bytes]]] = {}
        self._next_due = float("inf")

    def __len__(self) -> int:
        self._take_due()
        return len(self._candidates) + len(self._postponed)

    def take(self) -> tuple[Folder, bytes] | None:
        """See `Queue`."""
        if not self._candidates:
            self._take_due()
        return self._candidates.popleft() if self._candidates else None

    @property
    def postponed(self) -> int:
        """See `Queue`."""
        return len(self._postponed)

    def take_postponed(self) -> tuple[Folder, bytes] | None:
        """See `Queue`."""
        return self._postponed.take()

    @property
    def may_rescan(self) -> bool:
        """True for an hour only, since mail may arrive as fast as it is sent."""
        return self._clock() < self._rescan_until

    def refill(self) -> int:
        """See `Queue`."""
        began = self._clock()
        if not self.may_rescan or (self._large and began < self._not_before):
            return 0
        found = self._scan(self._unknown if self._large else self.untried)
        self._candidates.extend(found)
        self._not_before = began + max(_SCAN_S, (self._clock() - began) / _SCAN_SHARE)
        return len(found)

    def untried(self, names: Iterable[bytes]) -> Iterable[bytes]:
        """Return those of these names that this run has not tried."""
        tried = self._tried
        if not tried:
            return names
        return [n for n in names if n not in tried and without_uid(n) not in tried]

    def _unknown(self, names: Iterable[bytes]) -> Iterable[bytes]:
        """Return those of these names that this run has not met.

        A changed message is tried again after the large ones: it may go on changing for a while.
        """
        met = self._large | self._held.keys()
        return [n for n in self.untried(names) if without_uid(n) not in met]

    def put_back(self, candidates: list[tuple[Folder, bytes]]) -> None:
        """See `Queue`."""
        self._candidates.extendleft(reversed(candidates))

    def postpone(
        self,
        candidates: list[tuple[Folder, bytes]],
        *,
        broken: bool = False,
        first: bool = False,
    ) -> None:
        """See `Queue`."""
        self._postponed.add(candidates, broken=broken, first=first)
        self._large.update([without_uid(name) for _, name in candidates])

    def add(self, candidates: Iterable[tuple[Folder, bytes]]) -> None:
        """See `Queue`."""
        self._candidates.extend(candidates)

    def rotate(self) -> None:
        """See `Queue`."""
        self._candidates.rotate(1)

    def gone(self, name: bytes) -> bool:
        """See `Queue`."""
        if self._large:
            self._large.discard(without_uid(name))
        return bool(self._held) and self._held.pop(without_uid(name), None) is not None

    def all_gone(self, names: Iterable[bytes]) -> int:
        """See `Queue`."""
        return sum(map(self.gone, names)) if self._held or self._large else 0

    def is_held(self, name: bytes) -> bool:
        """See `Queue`."""
        return bool(self._held) and without_uid(name) in self._held

    def vanished(self, name: bytes) -> bool:
        """See `Queue`."""
        key = without_uid(name)
        # A file system may list a name that it does not have.
        self._vanished[key] = self._vanished.get(key, 0) + 1
        if self._vanished[key] >= _MAX_VANISHED:
            self._tried.add(key)
        else:
            self._tried.discard(key)  # it waited, and has another name now
        return self.gone(name)

    def later(
        self,
        name: bytes,
        birth_s: float | None,
        reason: str,
        at_next_scan: bool = False,
        stuck: bool = False,
    ) -> bool:
        """See `Queue`. The next run tries again."""
        key = without_uid(name)
        self._large.discard(key)
        before = self._held.get(key)
        if at_next_scan and before is None:
            self._held[key] = reason
        else:
            self._tried.add(key)
            if not at_next_scan:
                self._held.pop(key, None)
        if not reason:
            self._of_others.add(key)
        return reason != before

    def release(self, names: Iterable[bytes]) -> None:
        """See `Queue`. A batch shares its maildir with no other route."""

    def try_all(self) -> None:
        """See `Queue`. A batch tries each message once."""

    def is_of_others(self, name: bytes) -> bool:
        """Return whether a message was tried and found to be none of this route."""
        return without_uid(name) in self._of_others

    @property
    def waiting(self) -> int:
        """How many candidates are kept back, including those whose time has just come."""
        return len(self._waiting)

    def wait(self, candidate: tuple[Folder, bytes], until: float, reason: str) -> None:
        """See `Queue`. This run tries it if the run lasts that long."""
        key = without_uid(candidate[1])
        self._large.discard(key)
        self._tried.add(key)  # no scan is to find it as a new one
        self._waiting[key] = until, candidate
        self._next_due = min(self._next_due, until)

    def hurry(self, names: Iterable[bytes]) -> None:
        """See `Queue`."""
        found = [
            self._waiting.pop(key) for name in names if (key := without_uid(name)) in self._waiting
        ]
        self.put_back([candidate for _, candidate in found])

    def _take_due(self) -> None:
        now = self._clock()
        if now >= self._next_due:
            self.hurry([key for key, (until, _) in self._waiting.items() if until <= now])
            self._next_due = min([at for at, _ in self._waiting.values()], default=float("inf"))

    def next_deadline(self) -> float | None:
        """See `Queue`: while a large message is sent, small ones may arrive."""
        return self._clock() + _LOOK_S if self._large and self.may_rescan else None
