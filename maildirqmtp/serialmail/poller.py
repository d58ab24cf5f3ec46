"""Waiting for several descriptors, including files: standard input may be one, or /dev/null."""

import selectors
from collections.abc import Callable, Mapping

from maildirqmtp.transport.readiness import DescriptorRegistration, seconds_until


class DescriptorPoller:
    """Waits for events of descriptors. `clock` is monotonic seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._selector = selectors.DefaultSelector()
        self._registration = DescriptorRegistration(self._selector)
        #: Whether the selector takes a descriptor; one that it does not take is always ready.
        self._selectable: dict[int, bool] = {}
        self._always: dict[int, int] = {}

    def watch(self, wanted: Mapping[int, int]) -> None:
        """Wait for these events on these descriptors from now on, and for nothing else."""
        wanted = {fd: events for fd, events in wanted.items() if events}
        self._always = {fd: events for fd, events in wanted.items() if not self._takes(fd)}
        self._registration.want({fd: wanted[fd] for fd in wanted.keys() - self._always.keys()})

    def _takes(self, fd: int) -> bool:
        if fd not in self._selectable:
            try:
                self._selector.register(fd, selectors.EVENT_READ)
                self._selector.unregister(fd)
                self._selectable[fd] = True
            except PermissionError:  # epoll_ctl(2) refuses files and /dev/null
                self._selectable[fd] = False
        return self._selectable[fd]

    def wait(self, until: float | None) -> dict[int, int]:
        """Wait until the time `until` at most; return the events of descriptors that are ready."""
        wait_s = seconds_until(until, self._clock())
        found = self._selector.select(0 if self._always else wait_s)
        return self._always | {key.fd: events for key, events in found}

    def close(self) -> None:
        """Close the selector; the descriptors stay open."""
        self._selector.close()
