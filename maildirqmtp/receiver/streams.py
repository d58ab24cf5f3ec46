"""What the receiver's clients are on: a socket, or stdin and stdout; TLS is in `tls`.

A stream is two descriptors to wait for, and what can be done with them without
waiting. Reading and writing raise `OSError` where the client is gone.
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
    #: True until it is known who the client is; `read` sees to it.
    handshaking: bool
    #: True where `read` has to wait until something can be written.
    read_wants_write: bool

    def read(self) -> bytes | None:
        """Return what is there, b"" at the end, None when there is nothing yet."""

    def write(self, data: bytes | bytearray) -> int:
        """Write some of `data`; return how many bytes went."""

    def half_close(self) -> bool:
        """Tell the client that no more comes; False where that cannot be told."""

    def close(self) -> None:
        """Let go of the client; harmless twice."""


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

    They are left as blocking as they are, since others may share them: a read
    follows only on readiness, and a write is of a length that does not block
    then.
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
        """Write what a pipe that is ready takes for sure (POSIX: PIPE_BUF)."""
        return os.write(self.write_fd, data[: select.PIPE_BUF])

    def half_close(self) -> bool:
        """Tell the client that no more comes; False for a pipe, where our exit tells."""
        try:
            with socket.socket(fileno=os.dup(self.write_fd)) as sock:
                sock.shutdown(socket.SHUT_WR)
        except OSError:
            return False
        return True

    def close(self) -> None:
        """Do nothing; the descriptors go with the process."""


def stdio_peer() -> str:
    """Say who is behind standard input: tcpserver, sshd and inetd tell."""
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
