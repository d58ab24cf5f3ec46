"""Where a route waits: for its connections, and for whatever interrupts that."""

from __future__ import annotations

import selectors
from typing import TYPE_CHECKING

from maildirqmtp.maildir.files import local_error
from maildirqmtp.transport.wakeup import Wakeup

if TYPE_CHECKING:
    from maildirqmtp.maildir.maildir import Maildir


class Waiting:
    """A selector, and a wake-up that interrupts it.

    `wake` None makes one, and a selector for a process of one route. Raises `LocalError` if no
    descriptor is to be had.
    """

    def __init__(self, wake: Wakeup | None, maildir: Maildir) -> None:
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

    def select(self, wait_s: float | None) -> list[tuple[selectors.SelectorKey, int]]:
        """Wait until a descriptor is ready, or for so long; clear a wake-up.

        Raises `OSError` if the selector fails.
        """
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
