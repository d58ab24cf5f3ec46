"""A way to the server, as everything above this room sees it.

    transport              what there is to call
    connect                makes one, of the kind that the endpoint asks for
    addresses, tcp, tls    TCP, and TLS on it
    sockets                Unix sockets
    command                a command's standard input and output
    descriptors            what a UCSPI client has opened

Everything here is non-blocking once connected, and raises `TransportError`
(also an `OSError`), which names the server and what was tried.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from maildirqmtp.transport.addresses import Address


class Transport(Protocol):
    """What the pipeline needs of a connection.

    A caller that has read until `receive` returned None, or less than there is
    room for, is told by the selector of what comes next.

    TLS has messages of its own in both directions, hence `send_needs_read` and
    `receive_needs_write`: a selector that is asked the other way round reports
    at once, and for ever, that all is ready.
    """

    @property
    def name(self) -> str:
        """The server, for people."""
        ...

    @property
    def read_fd(self) -> int:
        """The descriptor for the selector to read from; -1 once it is closed."""
        ...

    @property
    def write_fd(self) -> int:
        """The descriptor for the selector to write to; may be the same one."""
        ...

    @property
    def can_send_file(self) -> bool:
        """True where `send_file` can be used."""
        ...

    @property
    def send_needs_read(self) -> bool:
        """True where `send` cannot go on before something has come."""
        ...

    @property
    def receive_needs_write(self) -> bool:
        """True where `receive` cannot go on before something could be written."""
        ...

    @property
    def piecemeal(self) -> bool:
        """True where `receive` returns less than there is."""
        ...

    @property
    def close_waits(self) -> bool:
        """True where `close` may take seconds."""
        ...

    @property
    def address(self) -> Address | None:
        """Where it leads, if the server may have other addresses: over TCP."""
        ...

    @property
    def addresses(self) -> int:
        """How many addresses the server has; the next connection may lead to another of them."""
        ...

    @property
    def bytes_unread(self) -> int:
        """How many of the bytes that were sent last nobody has read, or ever will.

        As far as that is certain, so that what was sent is not in doubt: 0 where it is not known,
        and more than were sent where there never was a connection.
        """
        ...

    def send(self, data: bytes | bytearray | memoryview) -> int:
        """Send what fits without waiting; return the number of bytes, maybe 0.

        What was not sent comes first in the next call: a part of it may
        already be encrypted.
        """
        ...

    def send_file(self, fd: int, offset: int, count: int) -> int | None:
        """Send a part of a file; None where it would wait, 0 at the file's end.

        Only where `can_send_file`.
        """
        ...

    def receive(self, max_bytes: int) -> bytes | None:
        """Return what has come; None where it would wait, b"" at the end.

        Under TLS up to a whole record, 16 KiB, whatever `max_bytes`: no
        selector would tell of the rest.

        Raises `ConnectError` where it turns out that there never was a
        connection: ssh failed, or the server refuses our certificate.
        """
        ...

    def hang_up(self) -> None:
        """Let the other side know that it will be closed; commands can exit meanwhile."""
        ...

    def report_useless(self) -> None:
        """Have the server's other addresses tried before this one, for some minutes."""
        ...

    def close(self) -> None:
        """Close the connection; harmless twice."""
        ...
