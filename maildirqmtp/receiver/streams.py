"""The connections of the receiver's clients: a socket, or stdin and stdout; TLS is in `tls`.

A stream is two descriptors to wait for, and operations on them that do not
block. Reading and writing raise `OSError` if the connection is broken.
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
    #: True until calls of `read` have completed the handshake and authenticated the client.
    handshaking: bool
    #: True while `read` has to wait until the stream is writable.
    read_wants_write: bool

    def read(self) -> bytes | None:
        """Return the bytes available, b"" at the end, None if there are none yet."""

    def write(self, data: bytes | bytearray) -> int:
        """Write some of `data`; return how many bytes were written."""

    def half_close(self) -> bool:
        """Tell the client that no more data follows; return False if that is impossible."""

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
        """Return the bytes available, b"" at the end, None if there are none yet."""
        try:
            return self._socket.recv(READ_BYTES)
        except BlockingIOError:
            return None

    def write(self, data: bytes | bytearray) -> int:
        """Write some of `data`; return how many bytes were written."""
        try:
            return self._socket.send(data)
        except BlockingIOError:
            return 0

    def half_close(self) -> bool:
        """Tell the client that no more data follows; return False if it has gone."""
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

    Their blocking mode is left alone, since other processes may share them:
    `read` is called only when they are readable, and `write`, only when they are
    writable, writes no more than they take without blocking.
    """

    handshaking = False
    read_wants_write = False

    def __init__(self, read_fd: int = 0, write_fd: int = 1) -> None:
        self.read_fd = read_fd
        self.write_fd = write_fd

    def read(self) -> bytes | None:
        """Return the bytes available, b"" at the end."""
        return os.read(self.read_fd, READ_BYTES)

    def write(self, data: bytes | bytearray) -> int:
        """Write as much as a pipe that is ready takes without blocking (pipe(7): PIPE_BUF)."""
        return os.write(self.write_fd, data[: select.PIPE_BUF])

    def half_close(self) -> bool:
        """Tell the client that no more data follows; False for a pipe, which only our exit ends."""
        try:
            with socket.socket(fileno=os.dup(self.write_fd)) as sock:
                sock.shutdown(socket.SHUT_WR)
        except OSError:
            return False
        return True

    def close(self) -> None:
        """Do nothing: the descriptors close when the process ends."""


def stdio_peer() -> str:
    """Return the peer of standard input, from tcpserver's or sshd's variables or its socket."""
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

    The holder of one IPv6 address usually has its whole /64 (RFC 6177).
    """
    try:
        packed = socket.inet_pton(socket.AF_INET6, address.partition("%")[0])
    except OSError:
        return address
    if packed.startswith(bytes(10) + b"\xff\xff"):
        return socket.inet_ntop(socket.AF_INET, packed[12:])
    return socket.inet_ntop(socket.AF_INET6, packed[:8] + bytes(8)) + "/64"
