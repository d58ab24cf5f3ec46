"""How long the outbox may look for a message to send before the connections have their turn.

Each message that waits has to be opened to see whether it may go. Thousands of them may be for
other routes, or be held, and a cold disk or NFS takes 10 ms for each. Meanwhile nothing is written
or read, and nobody who watches over the thread can tell that it does not hang.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from maildirqmtp.forwarder.stop import Stop

#: Seconds for which it looks without a pause.
LOOK_S = 0.2


class Look:
    """One look after the other, each of which ends after `LOOK_S`, or when `stop` is told.

    `paused`: the last one has ended before all were seen, or has found a message that is not to be
    sent but settled; the next one is due at once. `clock` is monotonic seconds.
    """

    __slots__ = ("_clock", "_stop", "_until", "paused")

    def __init__(self, clock: Callable[[], float], stop: Stop) -> None:
        self.paused = False
        self._clock = clock
        self._stop = stop
        self._until: float | None = None

    def begin(self) -> None:
        """Begin another look."""
        self._until = None

    def end(self) -> None:
        """End this look: what it has found is to be settled before the next."""
        self._until = float("-inf")
        self.paused = True

    def goes_on(self) -> bool:
        """Return whether to look at one more; the first of a look always is, unless it stops."""
        if self._stop.is_told:
            return False
        now = self._clock()
        if self._until is None:
            self._until = now + LOOK_S
        elif now >= self._until:
            self.paused = True
            return False
        return True
