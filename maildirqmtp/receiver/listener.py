"""The sockets that the receiver listens on: TCP, or a Unix socket."""

import contextlib
import os
import socket
import stat

from maildirqmtp.errors import ConfigError, LocalError
from maildirqmtp.text import printable

#: Clients that wait in the kernel while all places are taken.
BACKLOG = 128
#: unix(7): 108, with a NUL at the end.
_PATH_BYTES = 107


def show_address(host: str, port: int) -> str:
    """Return host and port as the command line takes them."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_loopback(address: str) -> bool:
    """True for a numeric address that only this machine can reach: 127.0.0.0/8 and ::1."""
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
            f"to listen on {where}, which other machines can reach, name the domains to accept "
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


class _UnixListener(socket.socket):
    """A listener that removes its name when it closes, unless another socket has it now."""

    path = b""
    identity = (0, 0)

    def close(self) -> None:
        """Close the socket and remove its name; harmless twice."""
        super().close()
        with contextlib.suppress(OSError):
            if self.path and _identity(self.path) == self.identity:
                os.unlink(self.path)
        self.path = b""


def open_unix_listener(path: bytes) -> socket.socket:
    """Return a non-blocking Unix socket that listens; only its owner can connect.

    It gets its name when it is ready, and replaces a socket without a listener.
    Raises `LocalError`, also where the name has a listener, or is no socket's.
    """
    if len(path) > _PATH_BYTES:
        raise LocalError(
            f"cannot listen on unix:{printable(path)}: longer than the {_PATH_BYTES} bytes that a "
            f"socket's path may have"
        )
    listener = _UnixListener(socket.AF_UNIX, socket.SOCK_STREAM)
    directory, name = os.path.split(path)
    making = os.path.join(directory, b".%b.%d" % (name[:20], os.getpid()))
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(making)  # left by a process of this number that died here
        listener.bind(making)
        listener.path, listener.identity = making, _identity(making)
        os.chmod(making, 0o600)
        listener.listen(BACKLOG)
        listener.setblocking(False)
        _make_way(path)
        os.rename(making, path)
        listener.path = path
    except LocalError:
        listener.close()
        raise
    except OSError as error:
        listener.close()
        why = error.strerror or error
        raise LocalError(f"cannot listen on unix:{printable(path)}: {why}") from error
    return listener


def _identity(path: bytes) -> tuple[int, int]:
    status = os.lstat(path)
    return status.st_dev, status.st_ino


def _make_way(path: bytes) -> None:
    """Check that a name can be taken: it is free, or a socket whose listener is gone."""
    shown = f"cannot listen on unix:{printable(path)}"
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise LocalError(f"{shown}: it exists and is no socket")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.setblocking(False)
            probe.connect(path)
    except (FileNotFoundError, ConnectionRefusedError):
        return
    except BlockingIOError:
        pass  # it has a listener, which is busy
    raise LocalError(f"{shown}: another process listens there already")
