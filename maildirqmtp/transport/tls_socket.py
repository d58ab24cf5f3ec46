"""TLS by OpenSSL, for both sides: contexts, sockets and errors. Only this module imports ssl.

OpenSSL's own errors do not leave this module: it raises `OSError`, with a
`strerror` that can be shown, and an operation that would wait returns a value.
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

#: The most bytes of plain text that a record holds (RFC 8446, 5.1).
RECORD_BYTES = 16 << 10

#: OpenSSL's reasons for bytes that are not TLS; they differ between its versions.
_NOT_TLS = {
    "HTTP_REQUEST",
    "PACKET_LENGTH_TOO_LONG",
    "RECORD_LAYER_FAILURE",
    "UNKNOWN_PROTOCOL",
    "UNSUPPORTED_PROTOCOL",
    "WRONG_VERSION_NUMBER",
}
_HINT = "; does it speak TLS on this port?"
# Alerts (RFC 8446, 6.2) about a handshake and its certificates: then no application data was read.
_REFUSALS = ("CERTIFICATE", "UNKNOWN_CA", "ACCESS_DENIED", "DECRYPT_ERROR", "HANDSHAKE_FAILURE")


class TlsError(OSError):
    """The peer violated TLS, or refuses us; with `refuses_us`, by an alert about our handshake."""

    def __init__(self, text: str, refuses_us: bool = False) -> None:
        super().__init__(errno.EPROTO, text)
        self.refuses_us = refuses_us


class TlsCutOffError(TlsError, ConnectionError):
    """The peer closed the connection amid the handshake."""


def client_context(
    ca: str | bytes | None = None,
    cert: str | bytes | None = None,
    key: str | bytes | None = None,
    verify: bool = True,
) -> ssl.SSLContext:
    """Return a client's context: the authorities for servers, and our certificate.

    `ca` None means the authorities of this system. Without `verify` any
    certificate is accepted, for callers that compare its key. Raises `OSError`
    if a file cannot be used.
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
    """Return a server's context: our certificate, and the authorities for clients.

    With `client_ca` a client needs a certificate. Raises `OSError` if a file
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
    # Without renegotiation the peer stays the one that was verified, and a write waits for input
    # only if half a TLS message has come.
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
    """A connected socket under TLS, which it owns; a client passes the server's name as `host`.

    With a time-out on the socket, `handshake` waits at most that long; without
    one, nothing waits. `read_needs_write` is true if `read` cannot go on before
    something can be written, `write_needs_read` if `write` cannot before
    something has come: TLS has messages of its own in both directions.

    For a client, EOF without close_notify is an error; for a server it is the
    end: truncation cannot forge anything, because an incomplete package is
    discarded in any case. Raises `OSError` if the socket is no longer
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
        self._failed: OSError | None = None

    def fileno(self) -> int:
        """Return its descriptor."""
        return self._socket.fileno()

    def set_timeout(self, seconds: float) -> None:
        """Set how long `handshake` may wait; 0: not at all."""
        self._socket.settimeout(seconds)

    def handshake(self) -> bool:
        """Continue the handshake; return whether it is complete."""
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
                raise TlsCutOffError(text) from error
            raise _tls_error(error) from error
        return True

    def read(self, max_bytes: int) -> bytes | None:
        """Return what has come, b"" at the end, None if nothing has come yet.

        `max_bytes` must be at least `RECORD_BYTES`: no selector would report what
        is left of a record.
        """
        self.read_needs_write = self.write_needs_read = False
        try:
            return self._socket.recv(max_bytes)
        except ssl.SSLWantReadError:
            return None
        except ssl.SSLWantWriteError:
            # The peer has asked for new keys, and does not read what is sent to it.
            self.read_needs_write = True
            return None
        except ssl.SSLError as error:
            if self._socket.server_side and is_cut_off(error):
                return b""
            raise _tls_error(error) from error

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Write what fits; return how many bytes of `data` were written.

        Record by record: if a longer write has to wait, OpenSSL does not tell which
        records are out, and that would look like no progress. A record that could
        not be sent whole is already encrypted and has to be passed again; a copy is
        kept, because `data` may have changed meanwhile. If one fails after others went out,
        the next call raises the error: the peer may have acted on what went out.
        """
        if self._failed is not None:
            raise self._failed
        sent = 0
        self.write_needs_read = False
        with memoryview(data) as view:
            while sent < len(view):
                record = self._blocked or bytes(view[sent : sent + RECORD_BYTES])
                try:
                    sent += self._socket.send(record)
                except (ssl.SSLWantReadError, ssl.SSLWantWriteError) as error:
                    # It waits for input if only part of a TLS message, such as a ticket, has come.
                    self.write_needs_read = isinstance(error, ssl.SSLWantReadError)
                    self._blocked = record
                    break
                except OSError as error:
                    failed = _tls_error(error) if isinstance(error, ssl.SSLError) else error
                    if not sent:
                        raise failed from error
                    self._failed = failed
                    break
                self._blocked = b""
        return sent

    def peer_names(self) -> Mapping[str, object]:
        """Return what `SSLSocket.getpeercert` says of a verified certificate.

        Raises `OSError` if it cannot be read, as with a name in Latin-1.
        """
        try:
            return self._socket.getpeercert() or {}
        except ValueError as error:
            raise TlsError(f"its certificate cannot be read: {error}") from error

    def peer_certificate(self) -> bytes:
        """Return the peer's certificate in DER, verified or not; empty if it has none."""
        return self._socket.getpeercert(binary_form=True) or b""

    def close_notify(self) -> None:
        """Send close_notify, without waiting for the other side's."""
        with contextlib.suppress(OSError, ValueError):
            self._socket.unwrap()

    def shut_down(self, how: int) -> None:
        """Shut down the underlying socket; `how` is as for shutdown(2)."""
        self._socket.shutdown(how)

    def close(self) -> None:
        """Close the socket; idempotent."""
        self._socket.close()


def is_cut_off(error: BaseException) -> bool:
    """Return whether the other side closed without close_notify (RFC 8446, 6.1).

    Python 3.11.2, which Debian 12 has, raises no SSLEOFError for it with OpenSSL 3.
    """
    if isinstance(error, ssl.SSLError) and error.reason == "UNEXPECTED_EOF_WHILE_READING":
        return True
    return isinstance(error, ssl.SSLEOFError)


def _tls_error(error: ssl.SSLError) -> TlsError:
    _, is_alert, alert = (error.reason or "").partition("ALERT_")
    return TlsError(_explain(error), bool(is_alert) and any(word in alert for word in _REFUSALS))


def _explain(error: OSError) -> str:
    """Return in words what was wrong; OpenSSL gives names and line numbers."""
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
