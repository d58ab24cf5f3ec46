"""The sockets that the receiver listens on: TCP, Unix sockets, and those opened by systemd."""

import contextlib
import os
import socket
import stat
from collections.abc import Iterable, MutableMapping

from maildirqmtp.errors import ConfigError, LocalError
from maildirqmtp.receiver.clients import is_loopback
from maildirqmtp.text import printable

#: Clients that wait in the kernel while all places are taken, as when cron starts many jobs at
#: once; above it, connecting to a Unix socket fails. Linux caps it at net.core.somaxconn (4,096).
BACKLOG = 1_024
#: Permissions of a Unix socket to which only its owner can connect.
OWNER_ONLY = 0o600
#: The longest path of a Unix socket: 108 bytes with a NUL at the end (unix(7)).
_PATH_BYTES = 107
#: sd_listen_fds(3): SD_LISTEN_FDS_START.
_FIRST_INHERITED = 3


def show_address(host: str, port: int) -> str:
    """Return host and port as the command line takes them."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def where(listener: socket.socket) -> str:
    """Return where a socket listens, as `--listen` takes it."""
    address = listener.getsockname()
    if isinstance(listener, _UnixListener):  # its present name; the kernel has that of bind(2)
        address = listener.path
    if listener.family == socket.AF_UNIX:
        return f"unix:{printable(os.fsencode(address))}"
    return show_address(*address[:2])


def is_local_only(listener: socket.socket) -> bool:
    """Return whether only this machine can reach it: a Unix socket, or one on loopback."""
    if listener.family == socket.AF_UNIX:
        return True
    return is_loopback(listener.getsockname()[0])


def require_local(listener: socket.socket) -> None:
    """Raise `ConfigError` if other machines can reach a socket, however it was opened."""
    if not is_local_only(listener):
        raise ConfigError(
            f"to listen on {where(listener)}, which other machines can reach, name the domains to "
            f"accept mail for with --domain; a relay may have --tls-client-ca instead"
        )


def inherited(environment: MutableMapping[str, str]) -> list[socket.socket]:
    """Return the listening sockets that systemd has passed on, non-blocking (sd_listen_fds(3)).

    There are none if the variables are for another process. The variables are removed, so
    that no child process uses them. Raises `ConfigError` if a descriptor is not a
    listening TCP or Unix socket.
    """
    process = environment.pop("LISTEN_PID", "")
    count = environment.pop("LISTEN_FDS", "")
    environment.pop("LISTEN_FDNAMES", None)
    if process != str(os.getpid()) or not (count.isascii() and count.isdigit()):
        return []
    found: list[socket.socket] = []
    for fd in range(_FIRST_INHERITED, _FIRST_INHERITED + int(count)):
        try:
            os.set_inheritable(fd, False)
            listener = socket.socket(fileno=fd)
            found.append(listener)
            listener.setblocking(False)
            listens = listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        except OSError as error:
            _close_all(found)
            raise ConfigError(f"LISTEN_FDS: descriptor {fd}: {error.strerror}") from error
        known = listener.family in (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6)
        if not (listens and known and listener.type == socket.SOCK_STREAM):
            _close_all(found)
            raise ConfigError(
                f"LISTEN_FDS: descriptor {fd} is no TCP or Unix socket that listens; for one "
                f"client (Accept=yes), use StandardInput=socket and --stdio"
            )
    return found


def _close_all(sockets: Iterable[socket.socket]) -> None:
    for sock in sockets:
        sock.close()


def open_listener(host: str, port: int, v6_only: bool = False) -> socket.socket:
    """Return a non-blocking listening socket; port 0 lets the kernel choose one.

    Of several addresses of a name the first is used. One of IPv6 takes IPv4 as well, as far as
    its address allows, unless it is `v6_only`. Raises `LocalError` if the name
    has no address, or that address cannot be used.
    """
    shown = show_address(host, port)
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "not a host name"
        raise LocalError(f"cannot listen on {shown}: {reason}") from error
    family, kind, protocol, _, address = found[0]
    try:
        listener = socket.socket(family, kind, protocol)
    except OSError as error:  # no IPv6 in this kernel, or no descriptor left
        raise LocalError(f"cannot listen on {shown}: {_explain(error, port)}") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if v6_only and family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise LocalError(f"cannot listen on {shown}: {_explain(error, port)}") from error
    return listener


def _explain(error: OSError, port: int) -> str:
    if isinstance(error, PermissionError) and 0 < port < 1024:
        return f"{error.strerror}; ports below 1024 are root's, use another with --listen"
    return error.strerror or str(error)


class _UnixListener(socket.socket):
    """A listener that removes its name when it closes, unless another file has it now."""

    path = b""
    identity = (0, 0)

    def close(self) -> None:
        """Close the socket and remove its name; harmless twice."""
        super().close()
        with contextlib.suppress(OSError):
            if self.path and _identity(self.path) == self.identity:
                os.unlink(self.path)
        self.path = b""


def open_unix_listener(path: bytes, mode: int = OWNER_ONLY) -> socket.socket:
    """Return a non-blocking listening Unix socket; by default only its owner can connect.

    It gets its name when it is ready, and replaces a socket without a listener. Clients
    need write permission on it, and search permission on its directories (unix(7)).
    Raises `LocalError` if it cannot be made, or `path` is in use: another process listens
    there, or it is not a socket.
    """
    if len(path) > _PATH_BYTES:
        raise LocalError(
            f"cannot listen on unix:{printable(path)}: longer than the {_PATH_BYTES} bytes that a "
            f"socket's path may have"
        )
    try:
        listener = _UnixListener(socket.AF_UNIX, socket.SOCK_STREAM)
    except OSError as error:
        why = error.strerror or error
        raise LocalError(f"cannot listen on unix:{printable(path)}: {why}") from error
    directory, name = os.path.split(path)
    making = os.path.join(directory, b".%b.%d" % (name[:20], os.getpid()))
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(making)  # left by a process of this number that died here
        _bind(listener, making)
        listener.path, listener.identity = making, _identity(making)
        os.chmod(making, mode)
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


def _bind(listener: socket.socket, path: bytes) -> None:
    """Bind a socket to a path that may be longer than bind(2) takes. Raises `OSError`."""
    if len(path) <= _PATH_BYTES:
        listener.bind(path)
        return
    directory, name = os.path.split(path)
    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        listener.bind(b"/proc/self/fd/%d/%b" % (fd, name))
    finally:
        os.close(fd)


def _identity(path: bytes) -> tuple[int, int]:
    status = os.lstat(path)
    return status.st_dev, status.st_ino


def _make_way(path: bytes) -> None:
    """Raise `LocalError` unless a name is free, or that of a socket without a listener."""
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
