"""The way to the server. The only place where its OS errors are seen.

    sockets       TCP and Unix sockets
    tls, spki     TLS on TCP, and pinned public keys
    command       a command's standard input and output
    descriptors   what a UCSPI client has opened for us

Everything here is non-blocking once connected, and raises `TransportError`
(also an `OSError`), which names the server and what was tried. Only the ways
that are used are imported: a run over plain TCP loads neither ssl nor subprocess.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Protocol

from maildirqmtp.transport.endpoint import CommandEndpoint, TcpEndpoint, UnixEndpoint, check_tls
from maildirqmtp.transport.sockets import SocketTransport, connect_tcp, connect_unix

if TYPE_CHECKING:
    from collections.abc import Callable

    from maildirqmtp.transport.endpoint import Endpoint
    from maildirqmtp.transport.tls_options import Tls

__all__ = ["SocketTransport", "Transport", "connect"]

#: Seconds; sockets count milliseconds in 32 bits, and the kernel gives up long before.
MAX_TIMEOUT_S = 86_400.0


class Transport(Protocol):
    """What the pipeline needs of a connection.

    `read_fd` and `write_fd` are for the selector, and may be the same. Whoever
    has read until `receive` returned None, or what it returns while there is
    more, is told by the selector of what comes next.

    TLS has messages of its own in both directions: `send_needs_read` is true
    where `send` cannot go on before something has come, `receive_needs_write`
    where `receive` cannot before something could be written. A selector that
    is asked for the other way round would say at once, and for ever, that all
    is ready. `piecemeal` is true where `receive` returns less than there is.
    `close_waits` is true where `close` may take seconds.
    """

    name: str
    read_fd: int
    write_fd: int
    can_send_file: bool
    send_needs_read: bool
    receive_needs_write: bool
    piecemeal: bool
    close_waits: bool

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

    def close(self) -> None:
        """Close the connection; harmless twice."""
        ...


def _to_stderr(line: str) -> None:
    """Write a line of a command to our log; in one piece, for it comes from a thread."""
    stream = sys.stderr
    if stream is None:
        return
    try:
        stream.write(f"maildirqmtp: {line}\n")
        stream.flush()
    except (OSError, ValueError):  # nobody reads it, or it is closed
        return


def connect(
    server: Endpoint,
    timeout_s: float,
    tls: Tls | None = None,
    log: Callable[[str], None] = _to_stderr,
) -> Transport:
    """Connect to the server; each address that it has gets `timeout_s` seconds.

    `tls` says how to know a server at `qmtps://`; None: by the certificate
    authorities of this system. `log` gets the lines that a command writes on
    its standard error, in a thread of theirs.

    Raises `ConnectError`, or `ConnectTimeout` where every address timed out;
    `ConfigError` for `tls` with a server that would be talked to in plain. A
    `ConnectError` that a signal handler raises goes through: no other address.
    """
    check_tls(server, tls)
    timeout_s = min(timeout_s, MAX_TIMEOUT_S)
    if isinstance(server, TcpEndpoint) and server.tls:
        from maildirqmtp.transport.tls import connect_tls

        return connect_tls(server, timeout_s, tls)
    if isinstance(server, TcpEndpoint):
        return connect_tcp(server, timeout_s)
    if isinstance(server, UnixEndpoint):
        return connect_unix(server, timeout_s)
    if isinstance(server, CommandEndpoint):
        from maildirqmtp.transport.command import CommandTransport

        return CommandTransport(server, log)
    from maildirqmtp.transport.descriptors import connect_ucspi

    return connect_ucspi()
