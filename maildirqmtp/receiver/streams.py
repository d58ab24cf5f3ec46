"""The connections of the receiver's clients: a socket, or stdin and stdout; TLS is in `tls`.

A stream is two descriptors to wait for, and operations on them that do not
block. Reading and writing raise `OSError` where the client is gone.
"""

import os
import select
import socket
from typing import Protocol

#: Bytes of one read.
READ_BYTES = 64 << 10


class Stream(Protocol):
    """What a connection reads from and writes to."""

    read_fd: int
    write_fd: int
    #: True until the client is authenticated, by calls of `read`.
    handshaking: bool
    #: True where `read` has to wait until something can be written.
    read_wants_write: bool

    def read(self) -> bytes | None:
        """Return what is there, b"" at the end, None when there is nothing yet."""

    def write(self, data: bytes | bytearray) -> int:
        """Write some of `data`; return how many bytes went."""

    def half_close(self) -> bool:
        """Tell the client that no more comes; False where the stream cannot tell."""

    def close(self) -> None:
        """Close the connection; harmless twice."""


class SocketStream:
    """A connected stream socket."""

    handshaking = False
    read_wants_write = False

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        if sock.family != socket.AF_UNIX:
            # Responses are small, and the client's window may be waiting for them.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = sock
        self.read_fd = self.write_fd = sock.fileno()

    def read(self) -> bytes | None:
        """Return what is there, b"" at the end, None when there is nothing yet."""
        try:
            return self._socket.recv(READ_BYTES)
        except BlockingIOError:
            return None

    def write(self, data: bytes | bytearray) -> int:
        """Write some of `data`; return how many bytes went."""
        try:
            return self._socket.send(data)
        except BlockingIOError:
            return 0

    def half_close(self) -> bool:
        """Tell the client that no more comes; False where it is gone."""
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError:
            return False
        return True

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


class StdioStream:
    """Standard input and output, under ssh, tcpserver or inetd.

    They stay as blocking as they are, since other processes may share them: a
    read is made only when there is something to read, and a write has a length
    that does not block then.
    """

    handshaking = False
    read_wants_write = False

    def __init__(self, read_fd: int = 0, write_fd: int = 1) -> None:
        self.read_fd = read_fd
        self.write_fd = write_fd

    def read(self) -> bytes | None:
        """Return what is there, b"" at the end."""
        return os.read(self.read_fd, READ_BYTES)

    def write(self, data: bytes | bytearray) -> int:
        """Write as much as a pipe that is ready takes without blocking (pipe(7): PIPE_BUF)."""
        return os.write(self.write_fd, data[: select.PIPE_BUF])

    def half_close(self) -> bool:
        """Tell the client that no more comes; False for a pipe, where only our exit does."""
        try:
            with socket.socket(fileno=os.dup(self.write_fd)) as sock:
                sock.shutdown(socket.SHUT_WR)
        except OSError:
            return False
        return True

    def close(self) -> None:
        """Do nothing: the descriptors close when the process ends."""


def stdio_peer() -> str:
    """Return the peer of standard input, as tcpserver, sshd and inetd tell it."""
    for variable in ("TCPREMOTEIP", "TCP6REMOTEIP", "SSH_CONNECTION"):
        words = os.environ.get(variable, "").split()
        if words and words[0].isascii() and words[0].isprintable() and len(words[0]) < 100:
            return peer_name(words[0])
    try:
        with socket.socket(fileno=os.dup(0)) as sock:
            if sock.family in (socket.AF_INET, socket.AF_INET6):
                return peer_name(sock.getpeername()[0])
    except OSError:
        pass  # a pipe, a terminal, a file
    return "stdin"


def peer_name(address: str) -> str:
    """Return an IP address as RFC 5321, 4.1.3 writes it: `[192.0.2.1]`, `[IPv6:::1]`."""
    return f"[IPv6:{address}]" if ":" in address else f"[{address}]"


def client_of(address: str) -> str:
    """Return what counts as one client: an IPv4 address, or the /64 of an IPv6 address.

    Whoever has one address of IPv6 usually has the whole /64 (RFC 6177).
    """
    try:
        packed = socket.inet_pton(socket.AF_INET6, address.partition("%")[0])
    except OSError:
        return address
    if packed.startswith(bytes(10) + b"\xff\xff"):
        return socket.inet_ntop(socket.AF_INET, packed[12:])
    return socket.inet_ntop(socket.AF_INET6, packed[:8] + bytes(8)) + "/64"
