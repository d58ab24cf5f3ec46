"""Waiting for descriptors: what a selector waits for, and for how long."""

from __future__ import annotations

import selectors
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from maildirqmtp.transport.transport import Transport

_READ, _WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE

#: The most seconds of one wait: epoll_wait(2) and poll(2) count milliseconds in 32 bits.
MAX_WAIT_S = 86_400.0


def seconds_until(deadline: float | None, now: float) -> float | None:
    """Return the most seconds that a selector may wait; None: no limit. Both by the same clock."""
    return None if deadline is None else min(max(0.0, deadline - now), MAX_WAIT_S)


class DescriptorRegistration:
    """The descriptors that a selector watches for one owner; `data` is kept in their keys."""

    __slots__ = ("_data", "_registered", "_selector")

    def __init__(self, selector: selectors.BaseSelector, data: object = None) -> None:
        self._selector = selector
        self._data = data
        self._registered: dict[int, int] = {}

    def want(self, wanted: Mapping[int, int]) -> None:
        """Watch these descriptors for these events, and no others.

        Raises `OSError` if the selector cannot watch one.
        """
        registered, selector = self._registered, self._selector
        for fd in registered.keys() - wanted.keys():
            del registered[fd]
            selector.unregister(fd)
        for fd, events in wanted.items():
            if fd not in registered:
                selector.register(fd, events, self._data)
            elif registered[fd] != events:
                selector.modify(fd, events, self._data)
            registered[fd] = events

    def drop(self) -> None:
        """Watch nothing more; also works if the selector is already closed."""
        still_there = self._selector.get_map() or {}
        for fd in self._registered:
            if fd in still_there:
                self._selector.unregister(fd)
        self._registered.clear()


class TransportRegistration(DescriptorRegistration):
    """A connection in a selector, of one descriptor or two.

    Raises `OSError` if the selector cannot watch it.
    """

    __slots__ = ("_transport", "_wanted")

    def __init__(
        self, selector: selectors.BaseSelector, transport: Transport, data: object = None
    ) -> None:
        super().__init__(selector, data)
        self._transport = transport
        self._wanted = (False, False)
        self.want_to(True, False)

    def want_to(self, read: bool, write: bool) -> None:
        """Watch for the connection to become readable, writable, either or neither."""
        if (read, write) != self._wanted:
            self._wanted = (read, write)
            wanted = {self._transport.read_fd: _READ} if read else {}
            if write:
                fd = self._transport.write_fd
                wanted[fd] = wanted.get(fd, 0) | _WRITE
            self.want(wanted)


class ConnectionSelector:
    """A selector with one connection in it.

    Raises `OSError` if the system has no descriptor left for one.
    """

    def __init__(self, transport: Transport) -> None:
        self.transport = transport
        self._selector = selectors.DefaultSelector()
        try:
            self._registration = TransportRegistration(self._selector, transport)
        except BaseException:
            self._selector.close()
            raise

    def wait(self, reading: bool, writing: bool, timeout_s: float | None) -> tuple[bool, bool]:
        """Wait until it can be read or written, as wanted; return (readable, writable)."""
        self._registration.want_to(reading, writing)
        events = 0
        for _, ready in self._selector.select(timeout_s):
            events |= ready
        return bool(events & _READ), bool(events & _WRITE)

    def close(self) -> None:
        """Close the selector; the connection stays open."""
        self._selector.close()
