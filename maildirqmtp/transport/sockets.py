"""TCP and Unix sockets."""

from __future__ import annotations

import socket
import time
from typing import TYPE_CHECKING

from maildirqmtp.errors import ConnectError, ConnectTimeout
from maildirqmtp.transport.descriptor_pair import DescriptorPair

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from maildirqmtp.transport.endpoint import TcpEndpoint, UnixEndpoint

    #: What getaddrinfo says of one address.
    Found = tuple[int, int, int, str, tuple[Any, ...]]
    #: Makes a transport of a connected socket, within the seconds that are left.
    Wrap = Callable[[socket.socket, float], DescriptorPair]

#: The address of each host and port that last worked; for as long as the process lives.
_worked: dict[tuple[str, int], tuple[Any, ...]] = {}
#: Hosts remembered; a program may have talked to any number of them.
_MAX_WORKED = 1_000


class SocketTransport(DescriptorPair):
    """A connected stream socket, which it owns."""

    def __init__(self, sock: socket.socket, name: str) -> None:
        sock.setblocking(False)
        super().__init__(sock.fileno(), sock.fileno(), name, can_send_file=True)
        self._socket = sock

    def close(self) -> None:
        """See `Transport`."""
        self._socket.close()
        self._forget_descriptors()


def connect_tcp(server: TcpEndpoint, timeout_s: float, wrap: Wrap | None = None) -> DescriptorPair:
    """Connect to the first of the server's addresses that works, the last good one first.

    `wrap` may raise an `OSError` for an address that is no good after all.
    """
    reasons: list[str] = []
    timed_out = True
    last: OSError | None = None
    for found in _find(server):
        address = found[4]
        try:
            made = _try(found, server, timeout_s, wrap)
        except ConnectError:
            raise
        except OSError as error:
            timed_out = timed_out and isinstance(error, TimeoutError)
            why = f"no answer in {timeout_s:g} s" if isinstance(error, TimeoutError) else None
            reasons.append(f"{address[0]}: {why or error.strerror or error}")
            last = error
            continue
        if len(_worked) >= _MAX_WORKED:
            _worked.clear()
        _worked[server.host, server.port] = address
        return made
    reason = f"cannot connect to {server}: {'; '.join(reasons)}"
    kind_of_error = ConnectTimeout if timed_out else ConnectError
    raise kind_of_error(last.errno if last else None, reason) from last


def _find(server: TcpEndpoint) -> list[Found]:
    """Look the server's addresses up, in the system's order; but first the one that worked."""
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
    worked = _worked.get((server.host, server.port))
    return sorted(found, key=lambda one: one[4] != worked)


def _try(found: Found, server: TcpEndpoint, timeout_s: float, wrap: Wrap | None) -> DescriptorPair:
    family, kind, protocol, _, address = found
    deadline = time.monotonic() + timeout_s
    sock = socket.socket(family, kind, protocol)
    try:
        sock.settimeout(timeout_s)
        sock.connect(address)
        # We gather packages ourselves; the last ones must not wait for an acknowledgement.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if wrap is None:
            return SocketTransport(sock, str(server))
        return wrap(sock, max(0.001, deadline - time.monotonic()))
    except BaseException:
        sock.close()
        raise


def connect_unix(server: UnixEndpoint, timeout_s: float) -> SocketTransport:
    """Connect to a Unix socket."""
    import struct

    try:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    except OSError as error:
        raise ConnectError(error.errno, f"cannot connect to {server}: {error.strerror}") from error
    try:
        # By the kernel: with a time-out of Python's it fails at once where others wait before us.
        whole, part = divmod(timeout_s, 1)
        span = struct.pack("@ll", int(whole), int(part * 1e6))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, span)
        sock.connect(server.path)
    except ConnectError:
        sock.close()
        raise
    except BlockingIOError as error:
        sock.close()
        raise ConnectTimeout(
            error.errno, f"cannot connect to {server}: no answer in {timeout_s:g} s"
        ) from error
    except (OSError, ValueError) as error:
        sock.close()
        why = getattr(error, "strerror", None) or str(error)
        raise ConnectError(
            getattr(error, "errno", None), f"cannot connect to {server}: {why}"
        ) from error
    except BaseException:
        sock.close()
        raise
    return SocketTransport(sock, str(server))
