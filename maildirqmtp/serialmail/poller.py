"""Waiting for several descriptors, files among them: standard input may be one, or /dev/null."""

import selectors
from collections.abc import Callable

#: Seconds that one wait takes at most: epoll_wait(2) counts milliseconds in 32 bits.
_MAX_WAIT_S = 86_400.0


class DescriptorPoller:
    """Descriptors and what is waited for on each. `clock` is monotonic seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._selector = selectors.DefaultSelector()
        #: Those that no selector takes, for they are always ready.
        self._always: dict[int, int] = {}

    def watch(self, fd: int, events: int) -> None:
        """Wait for these events from now on, or for none."""
        if fd in self._always:
            self._always[fd] = events
            return
        known = self._selector.get_map().get(fd)
        try:
            if known is None:
                if events:
                    self._selector.register(fd, events)
            elif not events:
                self._selector.unregister(fd)
            elif known.events != events:
                self._selector.modify(fd, events)
        except PermissionError:
            self._always[fd] = events  # what epoll_ctl(2) says of files and /dev/null

    def wait(self, until: float | None) -> dict[int, int]:
        """Return which descriptors are ready for what, at this time of the clock at the latest."""
        ready = {fd: events for fd, events in self._always.items() if events}
        wait_s = None if until is None else min(max(0.0, until - self._clock()), _MAX_WAIT_S)
        found = self._selector.select(0 if ready else wait_s)
        return ready | {key.fd: events for key, events in found}

    def close(self) -> None:
        """Let go of them all."""
        self._selector.close()
