"""QMTPS: TLS from the first byte, the server's name and certificate checked, never plain.

Whatever goes wrong, in the handshake or later, is a `TransportError`: trouble
on the way, and no answer to any message.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import ssl
from typing import TYPE_CHECKING

from maildirqmtp.errors import ConnectError, TransportError
from maildirqmtp.text import printable
from maildirqmtp.transport.sockets import SocketTransport, connect_tcp
from maildirqmtp.transport.spki import public_key_digest
from maildirqmtp.transport.tls_options import Tls

if TYPE_CHECKING:
    from typing import NoReturn

    from maildirqmtp.transport.endpoint import TcpEndpoint

#: The most text that a record holds (RFC 8446, 5.1).
RECORD_BYTES = 16 << 10

_WOULD_WAIT = (ssl.SSLWantReadError, ssl.SSLWantWriteError)


class TlsTransport(SocketTransport):
    """A socket under TLS, after the handshake."""

    can_send_file = False
    piecemeal = True
    _socket: ssl.SSLSocket

    def __init__(self, sock: ssl.SSLSocket, name: str) -> None:
        super().__init__(sock, name)
        self._blocked = b""
        self._heard = False

    def send(self, data: bytes | bytearray | memoryview) -> int:
        """See `Transport`.

        Record by record: OpenSSL says nothing of those of a longer write that
        are out when it has to wait, and that would look like no progress. The
        record that it could not send whole it has encrypted, and wants to be
        given again; the file that it came from may have changed meanwhile.
        """
        sent = 0
        with memoryview(data) as view:
            while sent < len(view):
                record = self._blocked or bytes(view[sent : sent + RECORD_BYTES])
                try:
                    sent += self._socket.send(record)
                except _WOULD_WAIT as error:
                    # The first part of a message of TLS's own has come: a ticket, say.
                    self.send_needs_read = isinstance(error, ssl.SSLWantReadError)
                    self._blocked = record
                    break
                except OSError as error:
                    raise self._broken("sending", error) from error
                self._blocked = b""
        return sent

    def send_file(self, fd: int, offset: int, count: int) -> int | None:
        """Not under TLS: the kernel would send the file as it is."""
        raise NotImplementedError

    def receive(self, max_bytes: int) -> bytes | None:
        """See `Transport`."""
        self.send_needs_read = self.receive_needs_write = False
        try:
            data = self._socket.recv(max(max_bytes, RECORD_BYTES))
        except _WOULD_WAIT as error:
            # Where the server has asked for new keys, and does not read what it gets.
            self.receive_needs_write = isinstance(error, ssl.SSLWantWriteError)
            return None
        except OSError as error:
            raise self._broken("reading", error) from error
        self._heard = True
        return data

    def close(self) -> None:
        """See `Transport`. Says so to the server, and does not wait for its farewell."""
        with contextlib.suppress(OSError, ValueError):
            self._socket.unwrap()
        self._socket.close()

    def _broken(self, doing: str, error: OSError) -> TransportError:
        text = f"connection to {self.name} broke while {doing}: {_explain(error)}"
        if not isinstance(error, ssl.SSLError):
            return TransportError(error.errno, text)
        # Since TLS 1.3 the server looks at our certificate when the handshake is over for us.
        refused = not self._heard and "ALERT" in (error.reason or "")
        return (ConnectError if refused else TransportError)(errno.EPROTO, text)


def connect_tls(server: TcpEndpoint, timeout_s: float, tls: Tls | None) -> SocketTransport:
    """Connect to the server and know it by what `tls` says; see `transport.connect`."""
    chosen = tls or Tls()
    name = _name(server)
    context = _context(server, chosen)

    def wrap(sock: socket.socket, left_s: float) -> SocketTransport:
        sock.settimeout(left_s)
        return TlsTransport(_handshake(sock, context, name, chosen.pins), str(server))

    return connect_tcp(server, timeout_s, wrap)


def _name(server: TcpEndpoint) -> str:
    """Return the server's host as it stands in certificates."""
    # Neither a zone (RFC 4007, 11) nor the root's dot does.
    name = server.host.partition("%")[0].removesuffix(".")
    try:
        if name.encode("idna"):
            return name
        why = "no name"
    except UnicodeError as error:
        why = str(error)
    raise ConnectError(errno.EINVAL, f"cannot connect to {server}: no name for TLS: {why}")


def _context(server: TcpEndpoint, tls: Tls) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=tls.ca)
    except OSError as error:
        _useless(server, "certificate authority", error, tls.ca)
    if tls.pins and tls.ca is None:
        # Who has the pinned key is the server, whatever its certificate says.
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    # An end that the server did not announce may be somebody else's doing; and who it is
    # has been found out, and must not be another question later.
    context.options &= ~ssl.OP_IGNORE_UNEXPECTED_EOF
    context.options |= ssl.OP_NO_RENEGOTIATION
    if tls.cert is not None:
        try:
            context.load_cert_chain(tls.cert, tls.key, _no_password)
        except OSError as error:
            _useless(server, "certificate and key", error, tls.cert, tls.key)
    return context


def _no_password() -> str:
    """Refuse an encrypted key: OpenSSL would ask on the terminal, or for ever."""
    raise PermissionError(errno.EACCES, "the key is encrypted; decrypt it first")


def _useless(
    server: TcpEndpoint, what: str, error: OSError, *paths: str | bytes | None
) -> NoReturn:
    shown = " and ".join(printable(os.fsencode(path)) for path in paths if path is not None)
    number = errno.EPROTO if isinstance(error, ssl.SSLError) else error.errno
    why = _explain(error)
    raise ConnectError(
        number,
        f"cannot connect to {server}: cannot use the {what} {shown or 'of this system'}: {why}",
    ) from error


def _handshake(
    sock: socket.socket, context: ssl.SSLContext, name: str, pins: tuple[bytes, ...]
) -> ssl.SSLSocket:
    """Return the socket under TLS. Raises `OSError` with a reason fit to be shown."""
    wrapped: ssl.SSLSocket | None = None
    try:
        sock.getpeername()  # a socket that is not connected any more would be used in plain
        wrapped = context.wrap_socket(
            sock, server_hostname=name, do_handshake_on_connect=False, suppress_ragged_eofs=False
        )
        wrapped.do_handshake()
        if pins:
            _check_pins(wrapped, pins)
    except BaseException as error:
        if wrapped is not None:
            wrapped.close()
        if is_cut_off(error):
            hint = "it hung up during the TLS handshake; does it speak TLS on this port?"
            raise OSError(errno.EPROTO, hint) from error
        if isinstance(error, ssl.SSLError):
            raise OSError(errno.EPROTO, _explain(error)) from error
        raise
    return wrapped


def _check_pins(wrapped: ssl.SSLSocket, pins: tuple[bytes, ...]) -> None:
    certificate = wrapped.getpeercert(binary_form=True) or b""
    try:
        digest = public_key_digest(certificate)
    except ValueError as error:
        raise OSError(errno.EPROTO, f"its certificate cannot be read: {error}") from None
    if digest not in pins:
        raise OSError(errno.EPROTO, f"its public key, sha256:{digest.hex()}, is not a pinned one")


def is_cut_off(error: BaseException) -> bool:
    """Return whether the other side closed without close_notify (RFC 8446, 6.1).

    Python 3.11.2, which Debian 12 has, raises no SSLEOFError for it with OpenSSL 3.
    """
    if isinstance(error, ssl.SSLError) and error.reason == "UNEXPECTED_EOF_WHILE_READING":
        return True
    return isinstance(error, ssl.SSLEOFError)


def _explain(error: OSError) -> str:
    """Say what was wrong, in words; OpenSSL has names and line numbers."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {error.verify_message}"
    if is_cut_off(error):
        return "it was cut off, without the end that TLS has (close_notify)"
    if isinstance(error, ssl.SSLError) and error.reason:
        hint = "; does it speak TLS on this port?" if error.reason in _PLAIN else ""
        return f"TLS: {error.reason.replace('_', ' ').lower()}{hint}"
    if isinstance(error, ssl.SSLError):  # "[SSL] PEM lib (_ssl.c:3926)"
        return "TLS: no PEM of that kind in it"
    return error.strerror or str(error)


#: What OpenSSL says to bytes that are no TLS; its versions do not agree.
_PLAIN = {
    "HTTP_REQUEST",
    "PACKET_LENGTH_TOO_LONG",
    "RECORD_LAYER_FAILURE",
    "UNKNOWN_PROTOCOL",
    "UNSUPPORTED_PROTOCOL",
    "WRONG_VERSION_NUMBER",
}
