"""Two descriptors to read from and to write to; and those that a UCSPI client hands us."""

from __future__ import annotations

import contextlib
import os
import stat

from maildirqmtp.errors import ConnectError, TransportError

#: Where a UCSPI client has what comes from the server, and what goes there.
UCSPI_READ_FD = 6
UCSPI_WRITE_FD = 7

# A client makes one connection and becomes us; there is no way back to another.
_taken = False


class DescriptorTransport:
    """A connection on two descriptors, which it owns."""

    send_needs_read = False
    receive_needs_write = False
    piecemeal = False
    close_waits = False

    def __init__(self, read_fd: int, write_fd: int, name: str) -> None:
        self.name = name
        self.read_fd = read_fd
        self.write_fd = write_fd
        # The kernel sends files into sockets; pipes are another matter on older ones.
        self.can_send_file = stat.S_ISSOCK(os.fstat(write_fd).st_mode)
        self._closed = False
        for fd in (read_fd, write_fd):
            os.set_blocking(fd, False)

    def send(self, data: bytes | bytearray | memoryview) -> int:
        """See `Transport`."""
        try:
            return os.write(self.write_fd, data)
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
            return os.read(self.read_fd, max_bytes)
        except BlockingIOError:
            return None
        except OSError as error:
            raise self._broken("reading", error) from error

    def hang_up(self) -> None:
        """See `Transport`. That is what closing tells, and at once."""

    def close(self) -> None:
        """See `Transport`."""
        if not self._closed:
            self._closed = True
            for fd in (self.read_fd, self.write_fd):
                with contextlib.suppress(OSError):
                    # Whoever shares them, as a shell's pipeline does, may expect to wait.
                    os.set_blocking(fd, True)
                os.close(fd)

    def _broken(self, doing: str, error: OSError) -> TransportError:
        return TransportError(
            error.errno, f"connection to {self.name} broke while {doing}: {error.strerror}"
        )


def connect_ucspi() -> DescriptorTransport:
    """Take over descriptors 6 and 7. Raises `ConnectError`, also the second time."""
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
    """Say whether we were started with this descriptor, and it is a socket or a pipe.

    Where nobody gave us 6 and 7, files of our own get these numbers; but Python
    opens none that a child would inherit.
    """
    try:
        mode = os.fstat(fd).st_mode
        return os.get_inheritable(fd) and (stat.S_ISSOCK(mode) or stat.S_ISFIFO(mode))
    except OSError:
        return False


def _peer() -> str:
    """Say who the server is, as far as the UCSPI client tells (tcp-environ(5))."""
    address = os.environ.get("TCPREMOTEIP") or os.environ.get("TCP6REMOTEIP") or ""
    port = os.environ.get("TCPREMOTEPORT") or os.environ.get("TCP6REMOTEPORT") or ""
    if not (address.isascii() and address.isprintable() and 0 < len(address) < 100):
        return "descriptors 6 and 7"
    if not (port.isascii() and port.isdigit() and len(port) <= 5):
        return address
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
