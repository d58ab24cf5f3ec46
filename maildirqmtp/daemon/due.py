"""When what waits is due, in little memory: of a million messages, a pointer each.

Times are whole seconds, one object for all that is due in the same one.
"""

from __future__ import annotations

from collections import deque
from heapq import heappop, heappush
from math import ceil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


class DueTimes:
    """Keys and the clock's times at which they are due; a key may be there several times.

    What was added last counts: `due_of` says for each key what `add` has returned for it then, None
    for a key that is not waiting any more.
    """

    def __init__(self, due_of: Callable[[bytes], int | None]) -> None:
        self._due_of = due_of
        self._seconds: list[int] = []
        self._keys: dict[int, tuple[int, list[bytes]]] = {}
        self._come: deque[bytes] = deque()

    def add(self, key: bytes, due: float) -> int:
        """Have a key due at this time; return the second at which it is, which is not earlier."""
        second = ceil(due)
        if second not in self._keys:
            self._keys[second] = second, []
            heappush(self._seconds, second)
        second, keys = self._keys[second]
        keys.append(key)
        return second

    def reset(self, keys: Iterable[bytes]) -> None:
        """Have all these due now, and no others."""
        self._keys.clear()
        self._seconds.clear()
        self._come = deque(keys)

    def first(self, now: float) -> bytes | None:
        """Return the key that is due first, where one is due; it stays until `pop`."""
        while self._seconds and self._seconds[0] <= now:
            self._come.extend(self._keys.pop(heappop(self._seconds))[1])
        while self._come:
            due = self._due_of(self._come[0])
            if due is not None and due <= now:
                return self._come[0]
            self._come.popleft()  # what has been taken, forgotten or put off since
        return None

    def pop(self) -> None:
        """Take away what `first` has returned."""
        self._come.popleft()

    def next_at(self) -> float | None:
        """Return the time at which `first` may have something, where it has nothing now."""
        return self._seconds[0] if self._seconds else None
