"""The daemon's clock."""

from __future__ import annotations

import time


def boot_clock() -> float:
    """Return monotonic seconds that go on while the machine sleeps, as laptops do."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
