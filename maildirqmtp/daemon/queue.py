"""Which message next in watch mode, and when.

The scan is the truth, and what is known is only when to try again:

    new name ---> fresh --take--> out --gone--> (forgotten)
                                   |  ^
                             later v  | due, or `try_all`
                                  waiting

Fresh ones go before those that wait. A name that two scans in a row have missed is
forgotten; one that a single scan missed is not gone (readdir and renames at the
same time may do that).
"""

from __future__ import annotations

from collections import deque
from heapq import heapify, heappop, heappush
from itertools import count
from typing import TYPE_CHECKING

from maildirqmtp.daemon.schedule import retry_at
from maildirqmtp.errors import LocalError
from maildirqmtp.maildir import names

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from maildirqmtp.daemon.reservations import Reservations
    from maildirqmtp.maildir.files import Folder
    from maildirqmtp.maildir.maildir import Maildir

#: Part of the time that may go into scanning while events keep coming.
_SCAN_SHARE = 0.1
#: Characters of a reason that are kept.
_REASON_MAX = 200


class QueueEntry:
    """What is known of a message: since when it is there, when it is tried again, and why.

    `due` is the queue's clock, None while the message is fresh or out. `ours`
    is false for what is no message of this route. `birth_s` is seconds of the epoch.
    """

    __slots__ = ("birth_s", "due", "folder", "name", "ours", "reason", "tries")

    def __init__(self, folder: Folder, name: bytes, birth_s: float) -> None:
        self.folder = folder
        self.name = name
        self.birth_s = birth_s
        self.due: float | None = None
        self.tries = 0
        self.reason = ""
        self.ours = True


def _base(name: bytes) -> bytes:
    """Return what a message keeps when a mail reader moves, flags or numbers it."""
    return names.without_uid(name)


class WatchQueue:
    """The messages of a maildir, as scan after scan finds them.

    `look_again` may be called from any thread: at the next `tick` there is a
    scan, and one every `rescan_s` seconds without it. Where scanning takes
    long, because very many wait, it is done less often than events come.
    `on_tick` is called with each `tick`, and by the time `tick_at` of the
    clock; `on_scan` before each scan: it may call `close`, and then nothing is handed
    out any more. `clock` is seconds that only go on; `wall_clock` seconds of
    the epoch.
    """

    def __init__(
        self,
        maildir: Maildir,
        include_cur: bool,
        rescan_s: float,
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
        reservations: Reservations | None = None,
        on_scan: Callable[[], None] | None = None,
        on_tick: Callable[[], None] | None = None,
    ) -> None:
        self.open = True
        self.tick_at: float | None = None
        #: Makes whoever calls `tick` do so soon; for `look_again`.
        self.wake: Callable[[], None] = lambda: None
        self.trouble: LocalError | None = None
        self._maildir = maildir
        self._include_cur = include_cur
        self._rescan_s = rescan_s
        self._clock = clock
        self._wall_clock = wall_clock
        self._reservations = reservations
        self._on_scan = on_scan
        self._on_tick = on_tick
        self._known: dict[bytes, QueueEntry] = {}
        self._fresh: deque[bytes] = deque()
        self._heap: list[tuple[float, int, bytes]] = []
        self._order = count()
        self._missed: set[bytes] = set()
        self._look = True
        self._rescan_at = self._not_before = clock()

    # Told from outside

    def close(self) -> None:
        """Hand out nothing more."""
        self.open = False

    def look_again(self) -> None:
        """There may be something new; from any thread."""
        self._look = True
        self.wake()

    def try_all(self) -> None:
        """Make all that wait due now."""
        now = self._clock()
        for waiting in self._known.values():
            if waiting.due is not None:
                waiting.due = now
        self._heap = [
            (now, next(self._order), key) for key, w in self._known.items() if w.due is not None
        ]
        heapify(self._heap)
        self._look = True

    # Handing out

    def __len__(self) -> int:
        """See `queues.Queue`. Those that wait and are due count, too."""
        if not self.open:
            return 0
        return len(self._fresh) + (self._next_due() is not None)

    def take(self) -> tuple[Folder, bytes] | None:
        """See `queues.Queue`."""
        while self.open:
            key = self._fresh.popleft() if self._fresh else self._next_due()
            if key is None:
                return None
            waiting = self._known[key]
            if waiting.due is not None:
                heappop(self._heap)
                waiting.due = None
            if self._reservations is not None and not self._reservations.take(key, self):
                # Another route has it. When that lets go of it, a scan finds it as a new one.
                del self._known[key]
                continue
            return waiting.folder, waiting.name
        return None

    def _next_due(self) -> bytes | None:
        heap = self._heap
        while heap:
            due, _, key = heap[0]
            waiting = self._known.get(key)
            if waiting is None or waiting.due != due:
                heappop(heap)  # what has been taken, forgotten or moved since
            else:
                return key if due <= self._clock() else None
        return None

    def put_back(self, candidates: list[tuple[Folder, bytes]]) -> None:
        """See `queues.Queue`."""
        for folder, name in reversed(candidates):
            self._fresh.appendleft(self._return(folder, name))

    def postpone(self, candidates: list[tuple[Folder, bytes]]) -> None:
        """See `queues.Queue`."""
        for folder, name in candidates:
            self._fresh.append(self._return(folder, name))

    def _return(self, folder: Folder, name: bytes) -> bytes:
        """Let go of a message that was out; return its key."""
        key = _base(name)
        waiting = self._known.setdefault(key, QueueEntry(folder, name, self._wall_clock()))
        waiting.folder, waiting.name = folder, name
        self._forget(key)
        return key

    def add(self, candidates: list[tuple[Folder, bytes]]) -> None:
        """See `queues.Queue`."""
        for folder, name in candidates:
            key = _base(name)
            if key not in self._known:
                self._known[key] = QueueEntry(folder, name, self._wall_clock())
                self._fresh.append(key)

    def rotate(self) -> None:
        """See `queues.Queue`."""
        self._fresh.rotate(1)

    def _forget(self, key: bytes) -> None:
        if self._reservations is not None:
            self._reservations.release(key)

    # Told what became of them

    def gone(self, name: bytes) -> None:
        """See `queues.Queue`."""
        key = _base(name)
        self._known.pop(key, None)
        self._forget(key)

    def later(self, name: bytes, birth_s: float | None, reason: str, soon: bool = False) -> bool:
        """See `queues.Queue`. An empty reason: it is no message of this route."""
        key = _base(name)
        self._forget(key)
        waiting = self._known.get(key)
        if waiting is None:
            return True
        if birth_s is not None:
            waiting.birth_s = birth_s
        reason = reason[:_REASON_MAX]
        is_news = reason != waiting.reason
        waiting.reason = reason
        waiting.ours = bool(reason)
        waiting.tries += 1
        now, now_s = self._clock(), self._wall_clock()
        wait_s = self._rescan_s if soon else retry_at(waiting.birth_s, now_s) - now_s
        waiting.due = now + wait_s
        heappush(self._heap, (waiting.due, next(self._order), key))
        return is_news

    # The scan

    def tick(self) -> None:
        """See `queues.Queue`."""
        if self._on_tick is not None:
            self._on_tick()
        now = self._clock()
        if now >= self._rescan_at or (self._look and now >= self._not_before):
            self._scan(now)

    def next_deadline(self) -> float | None:
        """See `queues.Queue`."""
        if not self.open:
            return None
        at = self._not_before if self._look else self._rescan_at
        if self.tick_at is not None:
            at = min(at, self.tick_at)
        if self._next_due() is None and self._heap:
            at = min(at, self._heap[0][0])
        return at

    def _scan(self, now: float) -> None:
        # Before the scan, not after: what comes meanwhile asks for another one.
        self._look = False
        self._rescan_at = now + self._rescan_s
        if self._on_scan is not None:
            self._on_scan()
        if not self.open:
            return
        began = self._clock()
        seen: set[bytes] = set()
        try:
            found = self._maildir.scan(self._include_cur, lambda names: self._new(names, seen))
        except LocalError as error:
            self.trouble = error
            return
        self.trouble = None
        now_s = self._wall_clock()
        for folder, name in found:
            key = _base(name)
            if key not in self._known:
                self._known[key] = QueueEntry(folder, name, _birth_s(name, now_s))
                self._fresh.append(key)
        self._forget_missing(seen)
        self._not_before = began + (self._clock() - began) / _SCAN_SHARE

    def _new(self, names: Iterator[bytes], seen: set[bytes]) -> Iterable[bytes]:
        known = self._known
        new = []
        for name in names:
            key = _base(name)
            seen.add(key)
            if key not in known:
                new.append(name)
        return new

    def _forget_missing(self, seen: set[bytes]) -> None:
        """Forget those that wait and were neither in this scan nor in the one before."""
        missing = self._known.keys() - seen
        for key in missing & self._missed:
            if self._known[key].due is not None:
                del self._known[key]
        self._missed = missing

    # To be shown

    @property
    def size(self) -> int:
        """How many names are known, of this route or not."""
        return len(self._known)

    def waiting(self) -> list[QueueEntry]:
        """Return what is known of each message of this route."""
        return [waiting for waiting in self._known.values() if waiting.ours]


def _birth_s(name: bytes, now_s: float) -> float:
    """Return when a message came, as far as its name says; its file's time is learnt later."""
    seconds = name.partition(b".")[0]
    return min(float(seconds), now_s) if seconds.isdigit() and len(seconds) <= 11 else now_s
