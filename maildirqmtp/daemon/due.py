"""When waiting messages are due, in little memory: a pointer for each of a million.

Times are whole seconds; all messages that are due in the same one share an object.
"""

from __future__ import annotations

from collections import deque
from heapq import heappop, heappush
from math import ceil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


class DueTimes:
    """Keys and the clock's times at which they are due; a key may have been added several times.

    The last addition counts: `due_of` returns what `add` returned for a key then, or None for a
    key that no longer waits.
    """

    def __init__(self, due_of: Callable[[bytes], int | None]) -> None:
        self._due_of = due_of
        self._seconds: list[int] = []
        self._keys: dict[int, tuple[int, list[bytes]]] = {}
        self._come: deque[bytes] = deque()

    def add(self, key: bytes, due: float) -> int:
        """Make a key due at this time; return the whole second, not earlier, at which it is due."""
        second = ceil(due)
        if second not in self._keys:
            self._keys[second] = second, []
            heappush(self._seconds, second)
        second, keys = self._keys[second]
        keys.append(key)
        return second

    def reset(self, keys: Iterable[bytes]) -> None:
        """Make these keys due now, and forget all others."""
        self._keys.clear()
        self._seconds.clear()
        self._come = deque(keys)

    def first(self, now: float) -> bytes | None:
        """Return the first key that is due, or None; it stays until `pop`."""
        while self._seconds and self._seconds[0] <= now:
            self._come.extend(self._keys.pop(heappop(self._seconds))[1])
        while self._come:
            due = self._due_of(self._come[0])
            if due is not None and due <= now:
                return self._come[0]
            self._come.popleft()  # what has been taken, forgotten or put off since
        return None

    def pop(self) -> None:
        """Remove the key that `first` has returned."""
        self._come.popleft()

    def next_at(self) -> float | None:
        """Return when `first` may return a key, if it returns none now; None for never."""
        return self._seconds[0] if self._seconds else None
