"""Which message is tried next in watch mode, and when.

Scans decide which messages there are; the queue only remembers when to try them again:

    new name ---> fresh --take--> out --gone--> (forgotten)
                                   |  ^
                             later v  | due, or `try_all`
                                  waiting

Fresh messages go before those that wait. A name that two scans in a row have missed
is forgotten. One miss proves nothing: readdir may skip a name while other files are
renamed.
"""

from __future__ import annotations

from collections import deque
from sys import intern
from typing import TYPE_CHECKING

from maildirqmtp.daemon.due import DueTimes
from maildirqmtp.daemon.queue_entry import UndatedEntry, make_entry, overview
from maildirqmtp.daemon.reservations import Reservations
from maildirqmtp.daemon.schedule import retry_at
from maildirqmtp.errors import LocalError
from maildirqmtp.forwarder.large_messages import Postponed

# The part of a name that stays when a mail reader moves, flags or numbers the message.
from maildirqmtp.maildir.names import without_uid as _base

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from maildirqmtp.daemon.queue_entry import QueueEntry
    from maildirqmtp.maildir.files import Folder
    from maildirqmtp.maildir.maildir import Maildir
    from maildirqmtp.transport.wakeup import Wakeup

#: The share of the time that may go into scanning while events keep coming.
_SCAN_SHARE = 0.1
#: The most files named by events that are tried without a scan; more of them make one due.
MAX_HINTS = 64
#: Characters of a reason that are kept.
_REASON_MAX = 200


class WatchQueue:
    """The messages of a maildir, as scan after scan finds them.

    `hint` and `look_again` may be called from any thread, and set `wake`. A file that
    an event names is tried without a scan, unless there are very many; any other event
    makes a scan due. Without events, one is due every `rescan_s` seconds. If scanning
    takes long, because very many messages wait, scans are due less often than events
    come. `clock` is monotonic seconds; `wall_clock` seconds of the epoch.

    `open` is false after `close`; then nothing is handed out any more. `local_error` is why the
    last scan failed. `allowance` is how many messages may be out beyond those that are out when it
    is set; None for no limit.
    """

    def __init__(
        self,
        maildir: Maildir,
        include_cur: bool,
        rescan_s: float,
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
        reservations: Reservations | None = None,
        wake: Wakeup | None = None,
    ) -> None:
        self.open = True
        self.allowance: int | None = None
        self.local_error: LocalError | None = None
        self._maildir = maildir
        self._include_cur = include_cur
        self._rescan_s = rescan_s
        self._clock = clock
        self._wall_clock = wall_clock
        self._reservations = reservations or Reservations()
        self._wake = wake
        self._known: dict[bytes, QueueEntry] = {}
        self._fresh: deque[bytes] = deque()
        self._hints: deque[bytes] = deque()
        self._postponed: Postponed[bytes] = Postponed()
        self._due = DueTimes(self._due_of)
        self._scans = 0
        self._sought: set[bytes] = set()
        self._look = True
        self._rescan_at = self._not_before = clock()

    # Called from outside

    def close(self) -> None:
        """Hand out nothing more."""
        self.open = False

    def look_again(self) -> None:
        """Make a scan due; from any thread."""
        self._look = True
        if self._wake is not None:
            self._wake.set()

    def hint(self, name: bytes | None = None) -> None:
        """Take a name that may have appeared in new/; None makes a scan due. From any thread."""
        if name is None or len(self._hints) >= MAX_HINTS:
            self.look_again()
            return
        self._hints.append(name)
        if self._wake is not None:
            self._wake.set()

    def try_all(self) -> None:
        """Make all messages that wait, and a scan, due now."""
        now = int(self._clock())
        for entry in self._known.values():
            if entry.due is not None:
                entry.due = now
        self._due.reset(key for key, e in self._known.items() if e.due is not None)
        self._look = True

    # Handing out

    def __len__(self) -> int:
        """See `forwarder.queue.Queue`. All waiting messages that are due count as one."""
        if not self.open:
            return 0
        return len(self._fresh) + len(self._postponed) + (self._next_due() is not None)

    def take(self) -> tuple[Folder, bytes] | None:
        """See `forwarder.queue.Queue`."""
        while self.open and self.allowance != 0:
            key = self._fresh.popleft() if self._fresh else self._next_due()
            if key is None:
                return None
            if self._known[key].due is not None:
                self._due.pop()
                self._known[key].due = None
            if (found := self._reserved(key)) is not None:
                return found
        return None

    @property
    def postponed(self) -> int:
        """See `forwarder.queue.Queue`."""
        return len(self._postponed) if self.open else 0

    def take_postponed(self) -> tuple[Folder, bytes] | None:
        """See `forwarder.queue.Queue`."""
        while self.open and self.allowance != 0 and (key := self._postponed.take()) is not None:
            if (found := self._reserved(key)) is not None:
                return found
        return None

    def _reserved(self, key: bytes) -> tuple[Folder, bytes] | None:
        """Reserve a message for this route and return it; None if another route has it."""
        if not self._reservations.take(key, self):
            # When the other route releases it, a scan finds it as a new message.
            del self._known[key]
            return None
        if self.allowance is not None:
            self.allowance -= 1
        return self._known[key].folder, self._known[key].name

    def _next_due(self) -> bytes | None:
        return self._due.first(self._clock())

    def _due_of(self, key: bytes) -> int | None:
        entry = self._known.get(key)
        return None if entry is None else entry.due

    def refill(self) -> int:
        """See `forwarder.queue.Queue`. It finds nothing: the worker decides when to scan."""
        return 0

    def put_back(self, candidates: list[tuple[Folder, bytes]]) -> None:
        """See `forwarder.queue.Queue`."""
        self._fresh.extendleft([self._return(*candidate) for candidate in reversed(candidates)])

    def postpone(
        self, candidates: list[tuple[Folder, bytes]], *, broken: bool = False, first: bool = False
    ) -> None:
        """See `forwarder.queue.Queue`."""
        keys = [self._return(*candidate) for candidate in candidates]
        self._postponed.add(keys, broken=broken, first=first)

    def _return(self, folder: Folder, name: bytes) -> bytes:
        """Release a message that was out; return its key, for the caller to queue it again."""
        key = _base(name)
        new = make_entry(folder, name, self._wall_clock(), self._scans)
        entry = self._known.setdefault(key, new)
        entry.folder, entry.name = folder, name
        self._release(key)
        return key

    def add(self, candidates: Iterable[tuple[Folder, bytes]]) -> None:
        """See `forwarder.queue.Queue`."""
        for folder, name in candidates:
            key = _base(name)
            if key not in self._known:
                self._add_new(key, folder, name, self._wall_clock())

    def _add_new(self, key: bytes, folder: Folder, name: bytes, now_s: float) -> None:
        self._known[key] = make_entry(folder, name, now_s, self._scans)
        self._fresh.append(key)

    def rotate(self) -> None:
        """See `forwarder.queue.Queue`."""
        self._fresh.rotate(1)

    def _release(self, key: bytes) -> None:
        if self.allowance is not None:
            self.allowance += 1
        self._reservations.release(key)

    # What became of them

    def gone(self, name: bytes) -> bool:
        """See `forwarder.queue.Queue`; what was held is not remembered for a daemon's lifetime."""
        key = _base(name)
        self._known.pop(key, None)
        self._release(key)
        return False

    def all_gone(self, names: Iterable[bytes]) -> int:
        """See `forwarder.queue.Queue`."""
        return sum(map(self.gone, names))

    def is_held(self, name: bytes) -> bool:
        """See `gone`: a daemon counts how often messages were held."""
        return False

    def vanished(self, name: bytes) -> bool:
        """See `forwarder.queue.Queue`. With --cur, a mail reader may have moved it."""
        # Only once until the next regular scan: a file system may list files that are not there.
        if self._include_cur and _base(name) not in self._sought:
            self._sought.add(_base(name))
            self._look = True
        return self.gone(name)

    def later(
        self,
        name: bytes,
        birth_s: float | None,
        reason: str,
        at_next_scan: bool = False,
        stuck: bool = False,
    ) -> bool:
        """See `forwarder.queue.Queue`."""
        key = _base(name)
        if not stuck:
            self._release(key)
        entry = self._known.get(key)
        if entry is None:
            return True
        if birth_s is None:
            birth_s = entry.birth_s
        elif isinstance(entry, UndatedEntry):
            entry.came_s = birth_s
        # A server may give the same reason for a million messages: keep one copy.
        reason = intern(reason[:_REASON_MAX])
        before = entry.reason, entry.ours
        entry.reason = reason
        entry.tries += 1
        now, now_s = self._clock(), self._wall_clock()
        wait_s = self._rescan_s if at_next_scan else retry_at(birth_s, now_s) - now_s
        self._wait_until(entry, key, now + wait_s)
        return before != (entry.reason, entry.ours)

    def release(self, names: Iterable[bytes]) -> None:
        """See `forwarder.queue.Queue`. The allowance is of messages that are out, not of these."""
        for name in names:
            self._reservations.release(_base(name))

    def wait(self, candidate: tuple[Folder, bytes], until: float, reason: str) -> None:
        """See `forwarder.queue.Queue`."""
        key = self._return(*candidate)
        entry = self._known[key]
        entry.reason = reason[:_REASON_MAX]
        self._wait_until(entry, key, until)

    def hurry(self, names: Iterable[bytes]) -> None:
        """See `forwarder.queue.Queue`."""
        for name in names:
            entry = self._known.get(_base(name))
            if entry is not None and entry.due is not None:
                self._wait_until(entry, _base(name), int(self._clock()))

    def _wait_until(self, entry: QueueEntry, key: bytes, due: float) -> None:
        entry.due = self._due.add(key, due)

    # The scan

    def scan_due(self) -> bool:
        """Return whether it is time for a scan."""
        now = self._clock()
        return self.open and (now >= self._rescan_at or (self._look and now >= self._not_before))

    def next_deadline(self) -> float | None:
        """See `forwarder.queue.Queue`: also the time at which a scan is due."""
        if not self.open:
            return None
        at = self._not_before if self._look else self._rescan_at
        if self._next_due() is None and (due := self._due.next_at()) is not None:
            at = min(at, due)
        return at

    def scan(self) -> None:
        """Scan the maildir; `local_error` is then the reason why that failed, or None."""
        # Before the scan, not after: a file that appears meanwhile makes another one due.
        self._look = False
        self._hints.clear()
        began = self._clock()
        if began >= self._rescan_at:
            self._sought.clear()
        self._rescan_at = began + self._rescan_s
        number = self._scans + 1
        try:
            found = self._maildir.scan(self._include_cur, lambda names: self._news(names, number))
        except LocalError as error:
            self.local_error = error
            return
        self.local_error = None
        self._scans = number
        now_s = self._wall_clock()
        for folder, name in found:
            key = _base(name)
            entry = self._known.get(key)
            if entry is None:
                self._add_new(key, folder, name, now_s)
            elif entry.name != name or entry.folder is not folder:
                self._move(entry, key, folder, name)
        self._forget_missing()
        self._not_before = began + (self._clock() - began) / _SCAN_SHARE

    def take_hints(self) -> None:
        """Add the files that events have named since the last call."""
        if not self._hints:
            return
        try:
            # If sidecars cannot be looked for, each of these files would be held for a while.
            self._maildir.find_envelopes()
        except LocalError:
            self._hints.clear()
            self._look = True  # the scan says what is wrong
            return
        now_s = self._wall_clock()
        while self._hints:
            name = self._hints.popleft()
            key = _base(name)
            if key not in self._known and self._maildir.is_ours(name):
                self._add_new(key, self._maildir.new, name, now_s)

    def _news(self, names: Iterator[bytes], number: int) -> Iterable[bytes]:
        """Return the names that are new, or that a mail reader has moved or flagged."""
        known = self._known
        news = []
        for name in names:
            entry = known.get(_base(name))
            if entry is None:
                news.append(name)
                continue
            entry.seen_in = number
            if entry.name != name:
                news.append(name)
        return news

    def _move(self, entry: QueueEntry, key: bytes, folder: Folder, name: bytes) -> None:
        """Note where a message is now; a file that was no message of this route may be one here."""
        entry.folder, entry.name = folder, name
        if not entry.ours and entry.due is not None:
            self._wait_until(entry, key, int(self._clock()))

    def _forget_missing(self) -> None:
        """Forget waiting messages that neither this scan nor the one before has found."""
        before, known = self._scans - 1, self._known
        for key in [k for k, e in known.items() if e.seen_in < before and e.due is not None]:
            del known[key]

    # To be shown

    @property
    def size(self) -> int:
        """The number of known names, of this route or not."""
        return len(self._known)

    def waiting(self) -> Iterator[QueueEntry]:
        """Yield what is known of each message of this route."""
        return (entry for entry in self._known.values() if entry.ours)

    def is_out(self, entry: QueueEntry) -> bool:
        """Return whether this route or another has reserved a message: it may be in flight."""
        return self._reservations.has(_base(entry.name))

    def names(self) -> list[bytes]:
        """Return the names without flags of all known messages, of this route or not."""
        return [*self._known, *self._reservations.keys()]

    def overview(self, most: int) -> tuple[int, float, list[QueueEntry]]:
        """Return how many wait, the birth of the oldest (0.0 for none), and `most` of them."""
        return overview(self._known.values(), most)
