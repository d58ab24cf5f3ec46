"""Connected sockets, and connecting to Unix sockets; TCP is in `tcp`."""

from __future__ import annotations

import errno
import os
import socket
from typing import TYPE_CHECKING

from maildirqmtp.descriptor_limit import reason
from maildirqmtp.errors import ConnectError, ConnectTimeout
from maildirqmtp.transport.descriptor_pair import DescriptorPair

if TYPE_CHECKING:
    from maildirqmtp.transport.endpoint import UnixEndpoint

# <asm/socket.h>, for programs whose time_t has 64 bits although a long has 32.
_SO_SNDTIMEO_NEW = 67


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


def connect_unix(server: UnixEndpoint, timeout_s: float) -> SocketTransport:
    """Connect to a Unix socket.

    Raises `ConnectError` if that fails, `ConnectTimeout` if it takes over `timeout_s` seconds.
    """
    from time import monotonic

    try:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    except OSError as error:
        raise ConnectError(error.errno, f"cannot connect to {server}: {reason(error)}") from error
    try:
        until_s = monotonic() + timeout_s
        left_s = timeout_s
        while True:
            # The kernel's time-out: with Python's, connect(2) fails at once if the backlog is full.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _timeval(left_s))
            sock.connect(server.path)
            if _is_connected(sock):
                break
            left_s = until_s - monotonic()
            if left_s < 1e-6:
                raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
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


def _timeval(seconds: float) -> bytes:
    """Return a struct timeval for SO_SNDTIMEO (socket(7)).

    Where that is the newer option, 32-bit machines have it of 64-bit numbers as well.
    """
    from struct import pack

    whole, part = divmod(seconds, 1)
    kind = "@qq" if socket.SO_SNDTIMEO == _SO_SNDTIMEO_NEW else "@ll"
    return pack(kind, int(whole), int(part * 1e6))


def _is_connected(sock: socket.socket) -> bool:
    """Return whether connect(2) has connected a Unix socket.

    A signal interrupts its wait for a full backlog; Python then takes the socket for connected.
    """
    try:
        sock.getpeername()
    except OSError as error:
        if error.errno == errno.ENOTCONN:
            return False
        raise
    return True
