"""When what waits is due, in little memory: of a million messages, a pointer each.

Keys are kept by the second that they are due in; only those of the seconds that have come are
kept with their exact times.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


class DueTimes:
    """Keys and the clock's times at which they are due; a key may be there several times.

    What was added last counts: `due_of` says for each key what that is, None for a key that is
    not waiting any more.
    """

    def __init__(self, due_of: Callable[[bytes], float | None]) -> None:
        self._due_of = due_of
        self._seconds: list[int] = []
        self._keys: dict[int, list[bytes]] = {}
        self._come: list[tuple[float, bytes]] = []

    def add(self, key: bytes, due: float) -> None:
        """Have a key due at this time."""
        second = int(due)
        keys = self._keys.get(second)
        if keys is None:
            self._keys[second] = [key]
            heappush(self._seconds, second)
        else:
            keys.append(key)

    def reset(self, keys: Iterable[bytes], due: float) -> None:
        """Have all these due at this time, and no others."""
        self._keys.clear()
        self._seconds.clear()
        self._come = [(due, key) for key in keys]
        heapify(self._come)

    def first(self, now: float) -> bytes | None:
        """Return the key that is due first, where one is due; it stays until `pop`."""
        while self._seconds and self._seconds[0] <= now:
            second = heappop(self._seconds)
            for key in self._keys.pop(second):
                due = self._due_of(key)
                if due is not None and int(due) == second:
                    heappush(self._come, (due, key))
        while self._come:
            due, key = self._come[0]
            if self._due_of(key) == due:
                return key if due <= now else None
            heappop(self._come)  # what has been taken, forgotten or put off since
        return None

    def pop(self) -> None:
        """Take away what `first` has returned."""
        heappop(self._come)

    def next_at(self) -> float | None:
        """Return the time by which `first` may have something, less than a second before it has."""
        times = [self._come[0][0]] if self._come else []
        times += self._seconds[:1]
        return min(times, default=None)
