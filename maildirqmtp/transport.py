"""The way to the server: TCP. The only place where its OS errors are seen.

Everything here is non-blocking once connected, and raises `TransportError`
(also an `OSError`), which names the server and what was tried.
"""

from __future__ import annotations

import os
import socket

from maildirqmtp.errors import ConnectError, ConnectTimeout, TransportError
from maildirqmtp.route import Server

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol
else:
    Protocol = object  # importing typing would be a good part of the start-up


class Transport(Protocol):
    """What the pipeline needs of a connection.

    `read_fd` and `write_fd` are for the selector, and may be the same.
    """

    name: str
    read_fd: int
    write_fd: int
    can_send_file: bool

    def send(self, data: bytes | bytearray | memoryview) -> int:
        """Send what fits without waiting; return the number of bytes, maybe 0."""
        ...

    def send_file(self, fd: int, offset: int, count: int) -> int | None:
        """Send a part of a file; None where it would wait, 0 at the file's end."""
        ...

    def receive(self, max_bytes: int) -> bytes | None:
        """Return what has come; None where it would wait, b"" at the end."""
        ...

    def close(self) -> None:
        """Close the connection; harmless twice."""
        ...


class SocketTransport:
    """A connected stream socket."""

    can_send_file = True

    def __init__(self, sock: socket.socket, name: str) -> None:
        sock.setblocking(False)
        self._socket = sock
        self.name = name
        self.read_fd = self.write_fd = sock.fileno()

    def send(self, data: bytes | bytearray | memoryview) -> int:
        """See `Transport`."""
        try:
            return self._socket.send(data)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise self._broken("sending", error) from error

    def send_file(self, fd: int, offset: int, count: int) -> int | None:
        """See `Transport`."""
        try:
            return os.sendfile(self.write_fd, fd, offset, count)
        except BlockingIOError:
            return None
        except OSError as error:
            raise self._broken("sending a file", error) from error

    def receive(self, max_bytes: int) -> bytes | None:
        """See `Transport`."""
        try:
            return self._socket.recv(max_bytes)
        except BlockingIOError:
            return None
        except OSError as error:
            raise self._broken("reading", error) from error

    def close(self) -> None:
        """See `Transport`."""
        self._socket.close()

    def _broken(self, doing: str, error: OSError) -> TransportError:
        return TransportError(
            error.errno, f"connection to {self.name} broke while {doing}: {error.strerror}"
        )


def connect(server: Server, timeout_s: float) -> SocketTransport:
    """Connect to the server, trying each of its addresses for `timeout_s` seconds.

    Raises `ConnectError`, or `ConnectTimeout` where every address timed out. A
    `ConnectError` that a signal handler raises goes through: no other address.
    """
    # As bytes where that will do: for a str, Python loads its tables of Unicode host names.
    host = server.host.encode() if server.host.isascii() else server.host
    try:
        found = socket.getaddrinfo(host, server.port, type=socket.SOCK_STREAM)
    except ConnectError:
        raise
    except (OSError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise ConnectError(
            getattr(error, "errno", None), f"cannot find the host {server.host}: {why}"
        ) from error
    reasons: list[str] = []
    timed_out = True
    last: OSError | None = None
    for family, kind, protocol, _, address in found:
        try:
            sock = _open(family, kind, protocol, address, timeout_s)
        except ConnectError:
            raise
        except OSError as error:
            timed_out = timed_out and isinstance(error, TimeoutError)
            why = f"no answer in {timeout_s:g} s" if isinstance(error, TimeoutError) else None
            reasons.append(f"{address[0]}: {why or error.strerror}")
            last = error
            continue
        return SocketTransport(sock, str(server))
    reason = f"cannot connect to {server}: {'; '.join(reasons)}"
    kind_of_error = ConnectTimeout if timed_out else ConnectError
    raise kind_of_error(last.errno if last else None, reason) from last


def _open(
    family: int, kind: int, protocol: int, address: tuple[object, ...], timeout_s: float
) -> socket.socket:
    sock = socket.socket(family, kind, protocol)
    try:
        sock.settimeout(timeout_s)
        sock.connect(address)
        # We gather packages ourselves; the last ones must not wait for an acknowledgement.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except BaseException:
        sock.close()
        raise
    return sock
