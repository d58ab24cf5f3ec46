"""That a run is told to stop: by when it ends, and what a mailer may still take."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

#: Seconds that a mailer may take in all once the run is told to stop: one that works needs fewer.
MAILER_S = 5.0


class Stop:
    """Told from any thread, a signal handler's too; it ends what waits within a moment.

    `within_s` seconds of `clock` are for what is in flight. `at` is the clock's time by which the
    run ends, None as long as it is not told to.
    """

    def __init__(self, clock: Callable[[], float], within_s: float) -> None:
        self.at: float | None = None
        self._clock = clock
        self._within_s = within_s

    def tell(self, at_once: bool = False) -> None:
        """Stop; `at_once`, now."""
        if at_once:
            self.at = self._clock()
        elif self.at is None:
            self.at = self._clock() + self._within_s

    @property
    def is_told(self) -> bool:
        """True once it is told to stop."""
        return self.at is not None

    @property
    def is_due(self) -> bool:
        """True from the time by which the run ends."""
        return self.at is not None and self._clock() >= self.at

    def mailer_s(self) -> float:
        """Return the most seconds that one run of a mailer may take, as things are now."""
        if self.at is None:
            return float("inf")
        return 0.0 if self.is_due else MAILER_S
