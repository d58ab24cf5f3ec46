"""Waiting for one connection: until it can be read or written, or some time is over."""

import selectors

from maildirqmtp.transport import Transport

_READ, _WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE


class Waiter:
    """A selector with one connection in it, of one descriptor or two.

    Raises `OSError` where the system has none left.
    """

    def __init__(self, transport: Transport) -> None:
        self.transport = transport
        self._writing = False
        self._selector = selectors.DefaultSelector()
        self._selector.register(transport.read_fd, _READ)

    def wait(self, writing: bool, timeout_s: float | None) -> tuple[bool, bool]:
        """Wait, also until it can be written where `writing`; return (readable, writable)."""
        if writing is not self._writing:
            self._writing = writing
            self._change(writing)
        events = 0
        for _, ready in self._selector.select(timeout_s):
            events |= ready
        return bool(events & _READ), bool(events & _WRITE)

    def close(self) -> None:
        """Let go of it; the connection stays open."""
        self._selector.close()

    def _change(self, writing: bool) -> None:
        read_fd, write_fd = self.transport.read_fd, self.transport.write_fd
        if read_fd == write_fd:
            self._selector.modify(read_fd, _READ | (_WRITE if writing else 0))
        elif writing:
            self._selector.register(write_fd, _WRITE)
        else:
            self._selector.unregister(write_fd)
