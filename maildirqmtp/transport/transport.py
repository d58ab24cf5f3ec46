"""A transport: a way to the server, as everything above this room sees it.

    transport              the interface
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

    Once `receive` has returned None, or fewer bytes than asked for, the selector
    reports what comes next.

    TLS has messages of its own in both directions, hence `send_needs_read` and
    `receive_needs_write`: a selector that watches for the wrong direction keeps
    reporting at once that the descriptor is ready.
    """

    @property
    def name(self) -> str:
        """The server's name, for logs and errors."""
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
        """True if `send_file` can be used."""
        ...

    @property
    def send_needs_read(self) -> bool:
        """True if `send` cannot go on before something has come."""
        ...

    @property
    def receive_needs_write(self) -> bool:
        """True if `receive` cannot go on before something can be written."""
        ...

    @property
    def piecemeal(self) -> bool:
        """True if `receive` may return less than there is to read."""
        ...

    @property
    def close_waits(self) -> bool:
        """True if `close` may take seconds."""
        ...

    @property
    def address(self) -> Address | None:
        """The address it leads to, over TCP, since the server may have others; else None."""
        ...

    @property
    def addresses(self) -> int:
        """How many addresses the server has; the next connection may lead to another of them."""
        ...

    @property
    def bytes_unread(self) -> int:
        """How many of the bytes sent last the server has not read, and never will.

        Only as far as that is certain, because they are then not in doubt: 0 if it is not known,
        and more than were sent if there never was a connection.
        """
        ...

    def send(self, data: bytes | bytearray | memoryview) -> int:
        """Send what fits without waiting; return the number of bytes, maybe 0.

        The next call must begin with what was not sent: a part of it may
        already be encrypted.
        """
        ...

    def send_file(self, fd: int, offset: int, count: int) -> int | None:
        """Send a part of a file; return None if it would wait, 0 at the file's end.

        Only if `can_send_file`.
        """
        ...

    def receive(self, max_bytes: int) -> bytes | None:
        """Return what has come; None if it would wait, b"" at the end.

        Under TLS up to a whole record, 16 KiB, whatever `max_bytes`: no
        selector would report the rest.

        Raises `ConnectError` if it turns out that there never was a
        connection: ssh failed, or the server refuses our certificate.
        """
        ...

    def hang_up(self) -> None:
        """Announce to the other side that it will be closed; commands can exit meanwhile."""
        ...

    def report_useless(self) -> None:
        """Have the server's other addresses tried before this one, for some minutes."""
        ...

    def close(self) -> None:
        """Close the connection; idempotent."""
        ...
