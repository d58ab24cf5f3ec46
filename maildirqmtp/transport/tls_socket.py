"""TLS by OpenSSL, for both sides: contexts, sockets, and errors in words. Only this imports ssl.

OpenSSL's own errors end here: what is raised is an `OSError` whose `strerror`
can be shown, and "not now" is a return value, as it is with plain sockets.
"""

from __future__ import annotations

import contextlib
import errno
import os
import ssl
from typing import TYPE_CHECKING

from maildirqmtp.text import printable

if TYPE_CHECKING:
    import socket
    from collections.abc import Mapping

#: The most text that a record holds (RFC 8446, 5.1).
RECORD_BYTES = 16 << 10

#: What OpenSSL says to bytes that are not TLS; its versions do not agree.
_NOT_TLS = {
    "HTTP_REQUEST",
    "PACKET_LENGTH_TOO_LONG",
    "RECORD_LAYER_FAILURE",
    "UNKNOWN_PROTOCOL",
    "UNSUPPORTED_PROTOCOL",
    "WRONG_VERSION_NUMBER",
}
_HINT = "; does it speak TLS on this port?"


class TlsError(OSError):
    """The peer broke TLS, or refuses us; `is_alert` is true where it said so itself."""

    def __init__(self, text: str, is_alert: bool = False) -> None:
        super().__init__(errno.EPROTO, text)
        self.is_alert = is_alert


def client_context(
    ca: str | bytes | None = None,
    cert: str | bytes | None = None,
    key: str | bytes | None = None,
    verify: bool = True,
) -> ssl.SSLContext:
    """Return the client's side: who vouches for servers, and our certificate.

    `ca` None means the authorities of this system. Without `verify` any
    certificate will do, for those who compare its key. Raises `OSError` where a
    file cannot be used.
    """
    context = _context(ssl.Purpose.SERVER_AUTH, ca)
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    # Treat EOF without close_notify as truncation.
    context.options &= ~ssl.OP_IGNORE_UNEXPECTED_EOF
    if cert is not None:
        _load_certificate(context, cert, key)
    return context


def server_context(
    cert: str | bytes, key: str | bytes | None = None, client_ca: str | bytes | None = None
) -> ssl.SSLContext:
    """Return the server's side: our certificate, and who vouches for those of clients.

    With `client_ca` a client needs a certificate. Raises `OSError` where a file
    cannot be used.
    """
    context = _context(ssl.Purpose.CLIENT_AUTH, client_ca)
    if client_ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
    _load_certificate(context, cert, key)
    return context


def _context(purpose: ssl.Purpose, ca: str | bytes | None) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(purpose, cafile=ca)
    except OSError as error:
        raise _cannot_use("certificate authority", error, ca) from error
    # Without renegotiation the peer stays the one that was verified, and only half a TLS
    # message makes a write wait for input.
    context.options |= ssl.OP_NO_RENEGOTIATION
    return context


def _load_certificate(context: ssl.SSLContext, cert: str | bytes, key: str | bytes | None) -> None:
    try:
        context.load_cert_chain(cert, key, _no_password)
    except OSError as error:
        raise _cannot_use("certificate and key", error, cert, key) from error


def _no_password() -> str:
    """Refuse an encrypted key: OpenSSL would ask for a password on the terminal."""
    raise PermissionError(errno.EACCES, "the key is encrypted; decrypt it first")


def _cannot_use(what: str, error: OSError, *paths: str | bytes | None) -> OSError:
    shown = " and ".join(printable(os.fsencode(path)) for path in paths if path is not None)
    number = errno.EPROTO if isinstance(error, ssl.SSLError) else error.errno
    return OSError(number, f"cannot use the {what} {shown or 'of this system'}: {_explain(error)}")


class TlsSocket:
    """A connected socket under TLS, which it owns; `host` is the server's name, on its client.

    With a time-out on the socket `handshake` waits for so long; otherwise
    nothing waits. `read_needs_write` is true where `read` cannot go on before
    something could be written, `write_needs_read` where `write` cannot before
    something has come: TLS has messages of its own in both directions.

    To a client, EOF without close_notify is an error; to a server it is the
    end: truncation can forge nothing, since a package that is not whole is
    thrown away in any case. Raises `OSError` where the socket is no longer
    connected: `wrap_socket` would leave it in plain text.
    """

    def __init__(
        self, sock: socket.socket, context: ssl.SSLContext, host: str | None = None
    ) -> None:
        self.read_needs_write = self.write_needs_read = False
        sock.getpeername()
        self._socket = context.wrap_socket(
            sock,
            server_side=host is None,
            server_hostname=host,
            do_handshake_on_connect=False,
            suppress_ragged_eofs=False,
        )
        self._blocked = b""

    def fileno(self) -> int:
        """Return its descriptor."""
        return self._socket.fileno()

    def set_timeout(self, seconds: float) -> None:
        """Have `handshake` wait; 0 for never."""
        self._socket.settimeout(seconds)

    def handshake(self) -> bool:
        """Go on with the handshake; say whether it is over."""
        self.read_needs_write = False
        try:
            self._socket.do_handshake()
        except ssl.SSLWantReadError:
            return False
        except ssl.SSLWantWriteError:
            self.read_needs_write = True
            return False
        except ssl.SSLError as error:
            if is_cut_off(error):
                text = f"it closed the connection during the TLS handshake{_HINT}"
                raise TlsError(text) from error
            raise _tls_error(error) from error
        return True

    def read(self, max_bytes: int) -> bytes | None:
        """Return what has come, b"" at the end, None where that is nothing yet.

        `max_bytes` is at least `RECORD_BYTES`: no selector would tell of what is
        left of a record.
        """
        self.read_needs_write = self.write_needs_read = False
        try:
            return self._socket.recv(max_bytes)
        except ssl.SSLWantReadError:
            return None
        except ssl.SSLWantWriteError:
            # The peer has asked for new keys, and does not read what it gets.
            self.read_needs_write = True
            return None
        except ssl.SSLError as error:
            if self._socket.server_side and is_cut_off(error):
                return b""
            raise _tls_error(error) from error

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Write what can be; return how many bytes of `data` went.

        Record by record: OpenSSL says nothing of those of a longer write that
        are out when it has to wait, and that would look like no progress. The
        record that it could not send whole it has encrypted, and wants to be
        given again; what it was made of may have changed meanwhile.
        """
        sent = 0
        self.write_needs_read = False
        with memoryview(data) as view:
            while sent < len(view):
                record = self._blocked or bytes(view[sent : sent + RECORD_BYTES])
                try:
                    sent += self._socket.send(record)
                except (ssl.SSLWantReadError, ssl.SSLWantWriteError) as error:
                    # For reading where the first part of a TLS message has come, a ticket say.
                    self.write_needs_read = isinstance(error, ssl.SSLWantReadError)
                    self._blocked = record
                    break
                except ssl.SSLError as error:
                    raise _tls_error(error) from error
                self._blocked = b""
        return sent

    def peer_names(self) -> Mapping[str, object]:
        """Return what `SSLSocket.getpeercert` says of a verified certificate."""
        return self._socket.getpeercert() or {}

    def peer_certificate(self) -> bytes:
        """Return the peer's certificate in DER, verified or not; empty where it has none."""
        return self._socket.getpeercert(binary_form=True) or b""

    def close_notify(self) -> None:
        """Announce the end, without waiting for the other side to announce its own."""
        with contextlib.suppress(OSError, ValueError):
            self._socket.unwrap()

    def shut_down(self, how: int) -> None:
        """Shut the socket below down."""
        self._socket.shutdown(how)

    def close(self) -> None:
        """Close the socket; harmless twice."""
        self._socket.close()


def is_cut_off(error: BaseException) -> bool:
    """Return whether the other side closed without close_notify (RFC 8446, 6.1).

    Python 3.11.2, which Debian 12 has, raises no SSLEOFError for it with OpenSSL 3.
    """
    if isinstance(error, ssl.SSLError) and error.reason == "UNEXPECTED_EOF_WHILE_READING":
        return True
    return isinstance(error, ssl.SSLEOFError)


def _tls_error(error: ssl.SSLError) -> TlsError:
    return TlsError(_explain(error), is_alert="ALERT" in (error.reason or ""))


def _explain(error: OSError) -> str:
    """Say what was wrong, in words; OpenSSL has names and line numbers."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {error.verify_message}"
    if is_cut_off(error):
        return "it was cut off, without the end that TLS has (close_notify)"
    if isinstance(error, ssl.SSLError) and error.reason:
        hint = _HINT if error.reason in _NOT_TLS else ""
        return f"TLS: {error.reason.replace('_', ' ').lower()}{hint}"
    if isinstance(error, ssl.SSLError):  # "[SSL] PEM lib (_ssl.c:3926)"
        return "TLS: no PEM of that kind in it"
    return error.strerror or str(error)
