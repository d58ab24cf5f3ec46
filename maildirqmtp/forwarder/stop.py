"""The request that a run stops: by when it ends, and how long a mailer may still take."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

#: Seconds that a run waits for what is in flight once it is told to stop. A daemon gives its routes
#: 5 more, 25 in all: podman and Kubernetes kill after 10 and 30 unless told otherwise.
STOP_S = 20.0
#: Seconds that a mailer may take in all once the run is told to stop: one that works needs fewer.
MAILER_S = 5.0


class Stop:
    """A request to stop, made by any thread or signal handler; waits end a moment after it.

    `within_s` seconds of `clock` are for what is in flight. `at` is the clock's time by which the
    run ends, None as long as it is not told to stop.
    """

    def __init__(self, clock: Callable[[], float], within_s: float) -> None:
        self.at: float | None = None
        self._clock = clock
        self._within_s = within_s

    def tell(self, at_once: bool = False) -> None:
        """Tell the run to stop within `within_s`, or `at_once`."""
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
        """Return the most seconds that one run of a mailer may take at present."""
        if self.at is None:
            return float("inf")
        return 0.0 if self.is_due else MAILER_S
