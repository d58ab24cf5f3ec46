"""Waiting for a connection: until it can be read or written, or some time is over."""

import selectors

from maildirqmtp.transport.transport import Transport

_READ, _WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE


class SelectorRegistration:
    """A connection in a selector, of one descriptor or two, with `data` for who selects.

    Raises `OSError` where the selector cannot watch it.
    """

    __slots__ = ("_data", "_registered", "_selector", "_transport", "_wanted")

    def __init__(
        self, selector: selectors.BaseSelector, transport: Transport, data: object = None
    ) -> None:
        self._selector = selector
        self._transport = transport
        self._data = data
        self._registered: dict[int, int] = {}
        self._wanted = (False, False)
        self.want(True, False)

    def want(self, reading: bool, writing: bool) -> None:
        """Have the selector tell when it can be read, and when it can be written."""
        if (reading, writing) != self._wanted:
            self._wanted = (reading, writing)
            wanted: dict[int, int] = {}
            if reading:
                wanted[self._transport.read_fd] = _READ
            if writing:
                fd = self._transport.write_fd
                wanted[fd] = wanted.get(fd, 0) | _WRITE
            self._arrange(wanted)

    def drop(self) -> None:
        """Have the selector forget it, if it has not yet; the connection stays open."""
        still_there = self._selector.get_map() or {}
        for fd in self._registered:
            if fd in still_there:
                self._selector.unregister(fd)
        self._registered.clear()

    def _arrange(self, wanted: dict[int, int]) -> None:
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


class ConnectionSelector:
    """A selector with one connection in it.

    Raises `OSError` where the system has none left.
    """

    def __init__(self, transport: Transport) -> None:
        self.transport = transport
        self._selector = selectors.DefaultSelector()
        try:
            self._interest = SelectorRegistration(self._selector, transport)
        except BaseException:
            self._selector.close()
            raise

    def wait(self, reading: bool, writing: bool, timeout_s: float | None) -> tuple[bool, bool]:
        """Wait until it can be read or written, as wanted; return (readable, writable)."""
        self._interest.want(reading, writing)
        events = 0
        for _, ready in self._selector.select(timeout_s):
            events |= ready
        return bool(events & _READ), bool(events & _WRITE)

    def close(self) -> None:
        """Let go of it; the connection stays open."""
        self._selector.close()
