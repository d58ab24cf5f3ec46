"""Who a client is, as far as its connection proves it: whether it may relay depends on that.

    | connection                                         | origin  |
    | -------------------------------------------------- | ------- |
    | TCP, and both ends are on loopback                 | LOCAL   |
    | a Unix socket accepted from a listener             | LOCAL   |
    | TCP with any other address, and any other socket   | REMOTE  |
    | a pipe, a pair of sockets, a file, a terminal      | UNKNOWN |

Both ends count, because packets can be redirected to a listener on loopback
(iptables(8), DNAT). A pair of Unix sockets proves nothing: stunnel, sshd and
inetd-like servers make one for a client from anywhere, and neither end of it has
a name. The variables of tcpserver and sshd are not trusted: they can make a
client remote, but never local.
"""

import os
import pwd
import socket
import stat
import struct
from enum import Enum, auto
from typing import NamedTuple

from maildirqmtp.receiver.streams import client_of, peer_name, stdio_peer

# struct ucred: process, user, group (unix(7), SO_PEERCRED). Only the first has a sign.
_CREDENTIALS = struct.Struct("iII")
# Variables by which servers that start a program for each client pass on its address:
# tcpserver(1), systemd.exec(5), stunnel(8).
_REMOTE_VARIABLES = ("TCPREMOTEIP", "TCP6REMOTEIP", "REMOTE_ADDR", "REMOTE_HOST")
_MAX_USER_NAME = 32
_MAPPED = bytes(10) + b"\xff\xff"


class Origin(Enum):
    """Where a client is; see the table of the module."""

    LOCAL = auto()
    REMOTE = auto()
    UNKNOWN = auto()


class Client(NamedTuple):
    """One client.

    `name` is for log and Received lines; `group` is the same for all connections that
    count as one client, and empty if they are not limited; `user` is the ID of its
    user on this machine, None if that is unknown.
    """

    name: str
    origin: Origin
    group: str = ""
    user: int | None = None


def is_loopback(address: str) -> bool:
    """Return whether only this machine can reach a numeric address: 127.0.0.0/8 or ::1.

    IPv4 addresses mapped into IPv6 count as well (RFC 4291, 2.5.5.2): `::ffff:127.0.0.1`.
    """
    try:
        packed = socket.inet_pton(socket.AF_INET6, address.partition("%")[0])
    except OSError:
        try:
            return socket.inet_pton(socket.AF_INET, address)[0] == 127
        except OSError:
            return False
    if packed.startswith(_MAPPED):
        return packed[12] == 127
    return packed == bytes(15) + b"\1"


def client_at(sock: socket.socket) -> Client:
    """Return who is at the other end of a socket. Raises `OSError` if it is not connected."""
    peer, own = sock.getpeername(), sock.getsockname()
    if sock.family == socket.AF_UNIX and sock.type == socket.SOCK_STREAM:
        return _unix_client(sock, bool(own))
    if sock.family not in (socket.AF_INET, socket.AF_INET6) or sock.type != socket.SOCK_STREAM:
        return Client("unknown", Origin.REMOTE)
    local = is_loopback(peer[0]) and is_loopback(own[0])
    origin = Origin.LOCAL if local else Origin.REMOTE
    return Client(peer_name(peer[0]), origin, client_of(peer[0]))


def _unix_client(sock: socket.socket, named: bool) -> Client:
    if not named:
        return Client("stdin", Origin.UNKNOWN)
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    user = _CREDENTIALS.unpack(credentials)[1]
    return Client(user_name(user), Origin.LOCAL, user=user)


def user_name(user: int) -> str:
    """Return a user's name and number, for log and Received lines: `ann (uid 1000)`."""
    try:
        name = pwd.getpwuid(user).pw_name
    except (KeyError, OverflowError):
        name = ""
    plain = name.isascii() and name.replace("-", "").replace("_", "").replace(".", "").isalnum()
    shown = name if plain and len(name) <= _MAX_USER_NAME else "unix"
    return f"{shown} (uid {user})"


def client_on_stdio(fd: int = 0) -> Client:
    """Return who is at the other end of standard input."""
    client = Client("stdin", Origin.UNKNOWN)
    if stat.S_ISSOCK(os.fstat(fd).st_mode):
        try:
            with socket.socket(fileno=os.dup(fd)) as sock:
                client = client_at(sock)
        except OSError:  # not connected: its client has gone, or it listens, or is UDP's
            client = Client("stdin", Origin.REMOTE)
    if client.origin is Origin.LOCAL and _is_said_to_be_remote():
        client = client._replace(origin=Origin.REMOTE, user=None)
    if client.user is None:
        client = client._replace(name=stdio_peer())
    return client


def _is_said_to_be_remote() -> bool:
    """Return whether a server in between, which hides the client, names a remote one."""
    found = [os.environ.get(name, "").strip() for name in _REMOTE_VARIABLES]
    # systemd.exec(5): for a client on a Unix socket, its path or abstract name.
    return any(a and a[0] not in "/@" and not is_loopback(a) for a in found)
