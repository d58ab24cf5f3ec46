"""TLS for the receiver's clients, and which of them may come in."""

import contextlib
import errno
import socket
import ssl
from collections.abc import Iterable, Mapping
from typing import NoReturn

from maildirqmtp.errors import LocalError
from maildirqmtp.receiver.streams import READ_BYTES, SocketStream
from maildirqmtp.text import printable
from maildirqmtp.transport.tls import is_cut_off

#: The most text that a record holds (RFC 8446, 5.1).
_RECORD_BYTES = 16 << 10


class TlsServer:
    """What a client meets: our certificate, and what we ask of its own.

    `cert`, `key` and `client_ca` are paths of PEM files; without a key, it is
    in `cert`. With `client_ca` a client needs a certificate of that authority;
    with `client_names`, one that has one of these among its subjectAltNames
    (DNS and e-mail) or common names. Raises `LocalError` for a useless file.
    """

    def __init__(
        self,
        cert: str,
        key: str | None = None,
        client_ca: str | None = None,
        client_names: Iterable[str] = (),
    ) -> None:
        self.client_names = frozenset(name.lower() for name in client_names)
        try:
            self._context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=client_ca)
        except OSError as error:
            _useless("certificate authority", client_ca or "", error)
        # Without renegotiation, writing never has to wait for something to come.
        self._context.options |= ssl.OP_NO_RENEGOTIATION
        if client_ca is not None:
            self._context.verify_mode = ssl.CERT_REQUIRED
        try:
            self._context.load_cert_chain(cert, key, _no_password)
        except OSError as error:
            _useless("certificate and key", " and ".join(filter(None, (cert, key))), error)

    def wrap(self, sock: socket.socket) -> "TlsStream":
        """Return the stream of a client that has connected. Raises `OSError` where it is gone."""
        sock.setblocking(False)
        sock.getpeername()  # a socket that is not connected would be talked to in plain
        wrapped = self._context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
        try:
            return TlsStream(wrapped, self.client_names)
        except OSError:
            wrapped.close()
            raise


class TlsStream(SocketStream):
    """A client under TLS. Its first `read`s do the handshake."""

    _socket: ssl.SSLSocket

    def __init__(self, sock: ssl.SSLSocket, client_names: frozenset[str]) -> None:
        super().__init__(sock)
        self.handshaking = True
        self.read_wants_write = False
        self._client_names = client_names

    def read(self) -> bytes | None:
        """Return what is there, b"" at the end, None when there is nothing yet.

        An end without TLS's farewell is an end as well: nothing can be forged
        by it, and what is not a whole package is thrown away in any case.
        """
        self.read_wants_write = False
        try:
            if self.handshaking:
                self._socket.do_handshake()
                if self._client_names:
                    self._check_client()
                self.handshaking = False
            # At least a whole record: the selector knows nothing of what would be left of it.
            return self._socket.recv(READ_BYTES)
        except ssl.SSLWantReadError:
            return None
        except ssl.SSLWantWriteError:
            self.read_wants_write = True
            return None
        except ssl.SSLError as error:
            if is_cut_off(error) and not self.handshaking:
                return b""
            raise OSError(errno.EPROTO, _explain(error)) from error

    def _check_client(self) -> None:
        names = names_of(self._socket.getpeercert() or {})
        if not self._client_names & {name.lower() for name in names}:
            shown = printable(", ".join(names).encode()[:500]) or "nobody"
            raise OSError(errno.EACCES, f"its certificate is for {shown}, who is not permitted")

    def write(self, data: bytes | bytearray) -> int:
        """Write some of `data`; return how many bytes went.

        A record that has to wait OpenSSL has encrypted already, and wants to be
        given again: what it was made of may have grown at its end, no more.
        """
        try:
            return self._socket.send(data[:_RECORD_BYTES])
        except ssl.SSLWantWriteError:
            return 0
        except ssl.SSLWantReadError as error:
            # Nobody does that but to keep us busy: there is room to write all the time.
            raise OSError(
                errno.EPROTO, "TLS: it keeps back half of a message of TLS's own"
            ) from error
        except ssl.SSLError as error:
            raise OSError(errno.EPROTO, _explain(error)) from error

    def half_close(self) -> bool:
        """Tell the client that no more comes; what it still sends is not decrypted any more."""
        self._say_farewell()
        return super().half_close()

    def close(self) -> None:
        """Close the socket."""
        self._say_farewell()
        super().close()

    def _say_farewell(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._socket.unwrap()  # does not wait for the client's


def names_of(certificate: Mapping[str, object]) -> list[str]:
    """Return the DNS and e-mail names, then the common names, of what `getpeercert` says."""
    found: list[str] = []
    alternatives = certificate.get("subjectAltName", ())
    assert isinstance(alternatives, tuple)
    found += [value for kind, value in alternatives if kind in ("DNS", "email")]
    subject = certificate.get("subject", ())
    assert isinstance(subject, tuple)
    found += [value for part in subject for kind, value in part if kind == "commonName"]
    return found


def _no_password() -> str:
    """Refuse an encrypted key: OpenSSL would ask on the terminal, or for ever."""
    raise PermissionError(errno.EACCES, "the key is encrypted; decrypt it first")


def _useless(what: str, path: str, error: OSError) -> NoReturn:
    shown = printable(path.encode("utf-8", "replace"))
    raise LocalError(f"cannot use the {what} {shown}: {_explain(error)}") from error


def _explain(error: OSError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {error.verify_message}"
    if is_cut_off(error):
        return "it hung up during the TLS handshake"
    if isinstance(error, ssl.SSLError) and error.reason:
        return f"TLS: {error.reason.replace('_', ' ').lower()}"
    if isinstance(error, ssl.SSLError):  # "[SSL] PEM lib (_ssl.c:3926)"
        return "TLS: no PEM of that kind in it"
    return error.strerror or str(error)
