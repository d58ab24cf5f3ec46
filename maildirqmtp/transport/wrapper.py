"""A transport around another, as a base for those that change a part of what it does."""

from __future__ import annotations

from typing import TYPE_CHECKING

from maildirqmtp.transport.transport import Transport

if TYPE_CHECKING:
    from maildirqmtp.transport.addresses import Address


class TransportWrapper:
    """A transport that passes everything on to another; a subclass changes some of it."""

    def __init__(self, inner: Transport) -> None:
        self._inner = inner

    @property
    def name(self) -> str:
        """See `Transport`."""
        return self._inner.name

    @property
    def read_fd(self) -> int:
        """See `Transport`."""
        return self._inner.read_fd

    @property
    def write_fd(self) -> int:
        """See `Transport`."""
        return self._inner.write_fd

    @property
    def can_send_file(self) -> bool:
        """See `Transport`."""
        return self._inner.can_send_file

    @property
    def send_needs_read(self) -> bool:
        """See `Transport`."""
        return self._inner.send_needs_read

    @property
    def receive_needs_write(self) -> bool:
        """See `Transport`."""
        return self._inner.receive_needs_write

    @property
    def piecemeal(self) -> bool:
        """See `Transport`."""
        return self._inner.piecemeal

    @property
    def close_waits(self) -> bool:
        """See `Transport`."""
        return self._inner.close_waits

    @property
    def address(self) -> Address | None:
        """See `Transport`."""
        return self._inner.address

    @property
    def addresses(self) -> int:
        """See `Transport`."""
        return self._inner.addresses

    @property
    def bytes_unread(self) -> int:
        """See `Transport`."""
        return self._inner.bytes_unread

    def send(self, data: bytes | bytearray | memoryview) -> int:
        """See `Transport`."""
        return self._inner.send(data)

    def send_file(self, fd: int, offset: int, count: int) -> int | None:
        """See `Transport`."""
        return self._inner.send_file(fd, offset, count)

    def receive(self, max_bytes: int) -> bytes | None:
        """See `Transport`."""
        return self._inner.receive(max_bytes)

    def hang_up(self) -> None:
        """See `Transport`."""
        self._inner.hang_up()

    def report_useless(self) -> None:
        """See `Transport`."""
        self._inner.report_useless()

    def close(self) -> None:
        """See `Transport`."""
        self._inner.close()
