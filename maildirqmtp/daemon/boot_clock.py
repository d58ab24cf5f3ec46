"""The daemon's clock, and what a machine that sleeps does to it."""

from __future__ import annotations

import time
from threading import Lock
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

#: Seconds after a sleep during which no route is taken to hang: what was being waited for before it
#: (a connection has ten addresses at most, a minute each) goes on, and does not count the sleep.
GRACE_S = 660.0
# Of less, no deadline takes any notice.
_SLEPT_S = 2.0


def boot_clock() -> float:
    """Return monotonic seconds that go on while the machine sleeps, as laptops do."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Sleeps:
    """Notices that the machine was suspended: waits do not count that time, `clock` does.

    `awake_clock` does not, either. Thread-safe.
    """

    def __init__(
        self,
        clock: Callable[[], float] = boot_clock,
        awake_clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._awake_clock = awake_clock
        self._lock = Lock()
        self._slept_s = clock() - awake_clock()
        self._until: float | None = None

    def look(self) -> bool:
        """Return whether the machine has slept since the last call."""
        with self._lock:
            now = self._clock()
            slept_s = now - self._awake_clock()
            if slept_s - self._slept_s < _SLEPT_S:
                return False
            self._slept_s, self._until = slept_s, now
            return True

    def slept_lately(self, now: float) -> bool:
        """Return whether a deadline that has passed may be one from before a sleep."""
        return self._until is not None and now < self._until + GRACE_S
