"""Where a route waits: for its connections, and for whatever interrupts that."""

from __future__ import annotations

import selectors
from typing import TYPE_CHECKING

from maildirqmtp.maildir.files import local_error
from maildirqmtp.transport.readiness import seconds_until
from maildirqmtp.transport.wakeup import Wakeup

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from maildirqmtp.maildir.maildir import Maildir


class Waiting:
    """A selector, and a wake-up that interrupts it.

    `wake` None makes one, and a selector for a process of one route. `clock` is monotonic seconds.
    `watchdog_deadline`: its time by which the thread comes back, unless it hangs. Raises
    `LocalError` if no descriptor is to be had.
    """

    def __init__(self, wake: Wakeup | None, maildir: Maildir, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.watchdog_deadline = 0.0
        self._owns_wake = wake is None
        try:
            #: Interrupts a wait.
            self.wake = Wakeup() if wake is None else wake
            # A daemon may have thousands of routes: poll(2) needs no descriptor of its own.
            kind = selectors.DefaultSelector if wake is None else selectors.PollSelector
            #: For connections to register with.
            self.selector: selectors.BaseSelector = kind()
            self.selector.register(self.wake.fd, selectors.EVENT_READ)
        except OSError as error:
            raise local_error("make a pipe, to work on", maildir.path, error) from error

    def extend_watchdog(self, may_take_s: float) -> None:
        """Have the thread come back within so many seconds from now."""
        self.watchdog_deadline = self._clock() + may_take_s

    def wait(
        self, due: Iterable[float | None], slack_s: float
    ) -> list[tuple[selectors.SelectorKey, int]]:
        """Wait until a descriptor is ready, or the first time that is due; clear a wake-up.

        What comes after it may take `slack_s`. Raises `OSError` if the selector fails.
        """
        first = min([at for at in due if at is not None], default=None)
        wait_s = seconds_until(first, self._clock())
        self.extend_watchdog((wait_s or 0.0) + slack_s)
        ready = self.selector.select(wait_s)
        for key, _ in ready:
            if key.fd == self.wake.fd:
                self.wake.clear()
        return ready

    def close(self) -> None:
        """Close its own descriptors."""
        self.selector.close()
        if self._owns_wake:
            self.wake.close()
