"""When to try again a message that was deferred, or a server that cannot be reached.

Pure. The clock and the randomness are arguments.
"""

from __future__ import annotations

from math import sqrt
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

#: Square root of the seconds from a message's birth to its second try: 20 squared is 400 s.
_FIRST_ROOT_S = 20.0
#: Seconds before a server that could not be reached is tried again, at first and at most.
BACKOFF_FIRST_S = 1.0
BACKOFF_MOST_S = 300.0
#: A wait is shortened by up to this fraction, so that many forwarders do not connect at once.
_JITTER = 0.2


def earliest(*times: float | None) -> float | None:
    """Return the earliest of these times, of which None is never."""
    return min([at for at in times if at is not None], default=None)


def retry_at(birth_s: float, now_s: float) -> float:
    """Return when a message that was deferred now is to be tried again, in seconds of the epoch.

    qmail's schedule (qmail-send.c, squareroot): tries at birth + 400 n^2. It depends only on the
    message's age, so it survives a restart. A birth in the future counts as now.
    """
    birth_s = min(birth_s, now_s)
    return birth_s + (sqrt(now_s - birth_s) + _FIRST_ROOT_S) ** 2


class Backoff:
    """Waits that double with each failure in a row, from 1 s to 5 min.

    `random` returns a number from 0 to 1; up to a fifth is taken off each wait.
    """

    __slots__ = ("_random", "failures")

    def __init__(self, random: Callable[[], float]) -> None:
        self._random = random
        self.failures = 0

    def failed(self) -> float:
        """Count a failure; return the seconds to wait."""
        # Bounded, because a daemon may fail for months: 2.0 ** 1024 is an OverflowError.
        wait_s = min(BACKOFF_MOST_S, BACKOFF_FIRST_S * 2.0 ** min(self.failures, 30))
        self.failures += 1
        return wait_s * (1.0 - _JITTER * self._random())

    def succeeded(self) -> None:
        """Begin anew."""
        self.failures = 0
