"""Waiting for several descriptors, files among them: standard input may be one, or /dev/null."""

import selectors
from collections.abc import Callable

#: Seconds that one wait takes at most: epoll_wait(2) counts milliseconds in 32 bits.
_MAX_WAIT_S = 86_400.0


class DescriptorPoller:
    """Waits for events of descriptors. `clock` is monotonic seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._selector = selectors.DefaultSelector()
        #: Descriptors that epoll refuses because they are always ready.
        self._always: dict[int, int] = {}

    def watch(self, fd: int, events: int) -> None:
        """Wait for these events of a descriptor from now on; 0 for none."""
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
            self._always[fd] = events  # epoll_ctl(2): EPERM for files and /dev/null

    def wait(self, until: float | None) -> dict[int, int]:
        """Return the events of the descriptors that are ready; empty at the time `until`."""
        ready = {fd: events for fd, events in self._always.items() if events}
        wait_s = None if until is None else min(max(0.0, until - self._clock()), _MAX_WAIT_S)
        found = self._selector.select(0 if ready else wait_s)
        return ready | {key.fd: events for key, events in found}

    def close(self) -> None:
        """Close the selector; the descriptors stay open."""
        self._selector.close()
