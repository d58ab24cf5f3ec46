"""What a queue knows of a message that waits. Half a million may wait, so each byte counts."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from maildirqmtp.maildir.files import Folder

#: Digits of the seconds that a name begins with, from 2001 to 2286.
_DIGITS = 10


class QueueEntry:
    """What is known of a message: when it is tried again, and why; its name says when it came.

    Values that many entries have in common are one object. `due` is a time of the queue's clock,
    None while the message is fresh or out. `seen_in` is the number of the last scan that found it.
    """

    __slots__ = ("due", "folder", "name", "reason", "seen_in", "tries")
    #: When it came, in seconds of the epoch, if its name does not say that.
    came_s: float | None = None

    def __init__(self, folder: Folder, name: bytes, seen_in: int) -> None:
        self.folder = folder
        self.name = name
        self.due: int | None = None
        self.tries = 0
        self.reason = ""
        self.seen_in = seen_in

    @property
    def birth_s(self) -> float:
        """When it came: by its name, else by its file's time; until that is known, when found."""
        return float(self.name[:_DIGITS]) if self.came_s is None else self.came_s

    @property
    def ours(self) -> bool:
        """False once a try has shown that it is no message of this route."""
        return bool(self.reason or not self.tries)


class UndatedEntry(QueueEntry):
    """The entry of a message whose name does not say when it came."""

    __slots__ = ("came_s",)


def make_entry(folder: Folder, name: bytes, now_s: float, seen_in: int) -> QueueEntry:
    """Return the entry of a message found now, which also came now unless its name says when."""
    if _tells(name, now_s):
        return QueueEntry(folder, name, seen_in)
    entry = UndatedEntry(folder, name, seen_in)
    entry.came_s = now_s
    return entry


def _tells(name: bytes, now_s: float) -> bool:
    """Return whether a name begins with ten digits of past seconds: such names sort by time."""
    seconds, dot, _ = name.partition(b".")
    if not dot or len(seconds) != _DIGITS or seconds[:1] == b"0" or not seconds.isdigit():
        return False
    return int(seconds) <= now_s


def overview(known: Iterable[QueueEntry], most: int) -> tuple[int, float, list[QueueEntry]]:
    """Return how many messages of the route wait, the oldest's birth (0.0: none), and `most`."""
    count, some = 0, []
    oldest, births_s = b"", []
    for entry in known:
        if entry.reason or not entry.tries:  # as `ours`, without the call: there may be a million
            count += 1
            if count <= most:
                some.append(entry)
            if entry.came_s is not None:
                births_s.append(entry.came_s)
            elif entry.name < oldest or not oldest:
                oldest = entry.name
    if oldest:
        births_s.append(float(oldest[:_DIGITS]))
    return count, min(births_s, default=0.0), some
