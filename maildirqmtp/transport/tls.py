"""TLS to the server: verifying the server, and talking to it."""

from __future__ import annotations

import errno
import os
import sys
from typing import TYPE_CHECKING

from maildirqmtp.errors import ConnectError, TransportError
from maildirqmtp.transport.descriptor_pair import DescriptorPair
from maildirqmtp.transport.spki import public_key_digest
from maildirqmtp.transport.tcp import connect_tcp
from maildirqmtp.transport.tls_options import Tls
from maildirqmtp.transport.tls_socket import RECORD_BYTES, TlsError, TlsSocket, client_context

if TYPE_CHECKING:
    import socket

    from maildirqmtp.transport.endpoint import TcpEndpoint


class TlsTransport(DescriptorPair):
    """A socket under TLS, after the handshake."""

    piecemeal = True

    def __init__(self, sock: TlsSocket, name: str) -> None:
        sock.set_timeout(0)
        super().__init__(sock.fileno(), sock.fileno(), name, can_send_file=False)
        self._socket = sock
        self._owner = os.getpid()
        self._ever_received = False
        self._refused = False

    @property
    def bytes_unread(self) -> int:
        """See `Transport`. A server that refuses our certificate has read none of them."""
        return sys.maxsize if self._refused else 0

    def send(self, data: bytes | bytearray | memoryview) -> int:
        """See `Transport`."""
        try:
            sent = self._socket.write(data)
        except OSError as error:
            raise self._broken("sending", error) from error
        self.send_needs_read = self._socket.write_needs_read
        return sent

    def send_file(self, fd: int, offset: int, count: int) -> int | None:
        """Raise `NotImplementedError`: the kernel would send the file unencrypted."""
        raise NotImplementedError

    def receive(self, max_bytes: int) -> bytes | None:
        """See `Transport`."""
        try:
            data = self._socket.read(max(max_bytes, RECORD_BYTES))
        except OSError as error:
            raise self._broken("reading", error) from error
        self.send_needs_read = False
        self.receive_needs_write = self._socket.read_needs_write
        self._ever_received = self._ever_received or data is not None
        return data

    def close(self) -> None:
        """See `Transport`. Sends close_notify, and does not wait for the server's."""
        if self._owner == os.getpid():  # a fork must not end its parent's connection
            self._socket.close_notify()
        self._socket.close()
        self._forget_descriptors()

    def _broken(self, doing: str, error: OSError) -> TransportError:
        broken = super()._broken(doing, error)
        # Since TLS 1.3 the server checks our certificate after our side of the handshake is over.
        if isinstance(error, TlsError) and error.refuses_us and not self._ever_received:
            self._refused = True
            return ConnectError(broken.errno, broken.strerror)
        return broken


def connect_tls(
    server: TcpEndpoint, timeout_s: float, write_timeout_s: float, tls: Tls | None
) -> DescriptorPair:
    """Connect to the server and verify it as `tls` says; see `connect`."""
    chosen = tls or Tls()
    name = _name(server)
    # A pinned key proves that it is the server, whatever the certificate says.
    verify = chosen.ca is not None or not chosen.pins
    try:
        context = client_context(chosen.ca, chosen.cert, chosen.key, verify)
    except OSError as error:
        raise ConnectError(error.errno, f"cannot connect to {server}: {error.strerror}") from error

    def wrap(sock: socket.socket, left_s: float) -> TlsTransport:
        wrapped = TlsSocket(sock, context, name)
        try:
            wrapped.set_timeout(left_s)
            wrapped.handshake()
            if chosen.pins:
                _check_pins(wrapped, chosen.pins)
            return TlsTransport(wrapped, str(server))
        except BaseException:
            wrapped.close()
            raise

    return connect_tcp(server, timeout_s, write_timeout_s, wrap)


def _name(server: TcpEndpoint) -> str:
    """Return the server's host as it stands in certificates."""
    # Without the zone (RFC 4007, 11) and without the dot of the DNS root.
    name = server.host.partition("%")[0].removesuffix(".")
    try:
        if name.encode("idna"):
            return name
        why = "no name"
    except UnicodeError as error:
        why = str(error)
    raise ConnectError(errno.EINVAL, f"cannot connect to {server}: no name for TLS: {why}")


def _check_pins(sock: TlsSocket, pins: tuple[bytes, ...]) -> None:
    try:
        digest = public_key_digest(sock.peer_certificate())
    except ValueError as error:
        raise TlsError(f"its certificate cannot be read: {error}") from None
    if digest not in pins:
        raise TlsError(f"its public key, sha256:{digest.hex()}, is not a pinned one")
