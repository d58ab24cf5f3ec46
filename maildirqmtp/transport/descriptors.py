"""Transports on two descriptors, for reading and writing, such as those of a UCSPI client."""

from __future__ import annotations

import contextlib
import os
import stat

from maildirqmtp.errors import ConnectError
from maildirqmtp.transport.descriptor_pair import DescriptorPair

#: The descriptors on which a UCSPI client has what comes from the server, and what goes there.
UCSPI_READ_FD = 6
UCSPI_WRITE_FD = 7

# A UCSPI client makes one connection and then executes this program, which cannot get another.
_taken = False


class DescriptorTransport(DescriptorPair):
    """A connection on two descriptors, which it owns."""

    def __init__(self, read_fd: int, write_fd: int, name: str) -> None:
        # sendfile(2) writes to sockets; older kernels do not let it write to pipes.
        can_send_file = stat.S_ISSOCK(os.fstat(write_fd).st_mode)
        super().__init__(read_fd, write_fd, name, can_send_file)
        self.owner = os.getpid()
        self._closed = False
        for fd in (read_fd, write_fd):
            os.set_blocking(fd, False)

    def close(self) -> None:
        """See `Transport`."""
        if not self._closed:
            self._closed = True
            for fd in (self.read_fd, self.write_fd):
                if self.owner == os.getpid():  # a fork must not make its parent wait
                    with contextlib.suppress(OSError):
                        # Processes that share them, as in a shell's pipeline, may expect to block.
                        os.set_blocking(fd, True)
                os.close(fd)
            self._forget_descriptors()


def connect_ucspi() -> DescriptorTransport:
    """Take over descriptors 6 and 7. Raises `ConnectError` if they are unusable, or used up."""
    global _taken
    name = _peer()
    if _taken:
        raise ConnectError(
            f"the connection to {name} is used up: a UCSPI client makes only one; run it again"
        )
    for fd in (UCSPI_READ_FD, UCSPI_WRITE_FD):
        if not _is_inherited_stream(fd):
            raise ConnectError(
                f"server -: descriptor {fd} is no connection; run this under a UCSPI client, "
                f"as in: tcpclient HOST 209 maildirqmtp DIR -"
            )
    _taken = True
    for fd in (UCSPI_READ_FD, UCSPI_WRITE_FD):
        os.set_inheritable(fd, False)  # a bounce's sendmail would keep the connection open
    return DescriptorTransport(UCSPI_READ_FD, UCSPI_WRITE_FD, name)


def _is_inherited_stream(fd: int) -> bool:
    """Return whether this process inherited the descriptor, and it is a socket or a pipe.

    Without a UCSPI client, other files of this process may be 6 and 7, but
    Python opens none that a child would inherit.
    """
    try:
        mode = os.fstat(fd).st_mode
        return os.get_inheritable(fd) and (stat.S_ISSOCK(mode) or stat.S_ISFIFO(mode))
    except OSError:
        return False


def _peer() -> str:
    """Return the server's address, as far as the UCSPI client tells (tcp-environ(5))."""
    address = os.environ.get("TCPREMOTEIP") or os.environ.get("TCP6REMOTEIP") or ""
    port = os.environ.get("TCPREMOTEPORT") or os.environ.get("TCP6REMOTEPORT") or ""
    if not (address.isascii() and address.isprintable() and 0 < len(address) < 100):
        return "descriptors 6 and 7"
    if not (port.isascii() and port.isdigit() and len(port) <= 5):
        return address
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
