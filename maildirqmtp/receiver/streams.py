"""Where the receiver's clients come from: a listening socket, or stdin and stdout.

A stream is two descriptors to wait for, and what can be done with them without
waiting. Reading and writing raise `OSError` where the client is gone.
"""

import os
import select
import socket
from typing import Protocol

from maildirqmtp.errors import ConfigError, LocalError

#: Bytes of one read.
READ_BYTES = 64 << 10
#: Clients that the kernel keeps for us while we have as many as we want.
BACKLOG = 128


class Stream(Protocol):
    """What a connection reads from and writes to."""

    read_fd: int
    write_fd: int

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


def show_address(host: str, port: int) -> str:
    """Return host and port as the command line takes them."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_loopback(address: str) -> bool:
    """Say whether only this machine can reach a numeric address: 127.0.0.0/8 and ::1."""
    return address.removeprefix("::ffff:").startswith("127.") or address == "::1"


def open_listener(host: str, port: int, loopback_only: bool) -> socket.socket:
    """Return a non-blocking socket that listens; port 0 lets the kernel choose one.

    A name that has several addresses gets its first. Raises `ConfigError` for
    an address beyond loopback with `loopback_only`, and `LocalError`.
    """
    where = show_address(host, port)
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "not a host name"
        raise LocalError(f"cannot listen on {where}: {reason}") from error
    family, kind, protocol, _, address = found[0]
    if loopback_only and not is_loopback(str(address[0])):
        raise ConfigError(
            f"to listen on {where}, which others can reach, name the domains to accept "
            f"mail for with --domain"
        )
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise LocalError(f"cannot listen on {where}: {_explain(error, port)}") from error
    return listener


def _explain(error: OSError, port: int) -> str:
    if isinstance(error, PermissionError) and 0 < port < 1024:
        return f"{error.strerror}; ports below 1024 are root's, use another with --listen"
    return error.strerror or str(error)
