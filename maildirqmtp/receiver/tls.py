"""TLS for the receiver's clients, and the check of their certificates."""

import errno
import os
import socket
from collections.abc import Callable, Iterable, Mapping

from maildirqmtp.errors import LocalError
from maildirqmtp.maildir.files import Identity, identity_of
from maildirqmtp.receiver.streams import READ_BYTES
from maildirqmtp.text import printable
from maildirqmtp.transport.tls_socket import TlsError, TlsSocket, server_context


class TlsServer:
    """The server's side of TLS: its certificate, and what it requires of a client's.

    `cert`, `key` and `client_ca` are paths of PEM files; `key` is None if the key is
    in `cert`. With `client_ca` a client needs a certificate of that authority; with
    `client_names`, that certificate must have one of these names among its
    subjectAltNames (DNS and e-mail) or common names. Raises `LocalError` if a file
    cannot be used.

    A file that has changed, such as a renewed certificate, is used from the next client on; if it
    cannot be used, `complain` gets a line, and what was read before stays in use.
    """

    def __init__(
        self,
        cert: str,
        key: str | None = None,
        client_ca: str | None = None,
        client_names: Iterable[str] = (),
        complain: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.client_names = frozenset(name.lower() for name in client_names)
        self._files = cert, key, client_ca
        self._complain = complain
        self._read = self._identities()
        try:
            self._context = server_context(*self._files)
        except OSError as error:
            raise LocalError(error.strerror or str(error)) from error

    def wrap(self, sock: socket.socket) -> "TlsStream":
        """Return the stream of a connected socket. Raises `OSError` if the client has gone."""
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # see `SocketStream`
        sock.setblocking(False)
        self._renew()
        return TlsStream(TlsSocket(sock, self._context), self.client_names)

    def _renew(self) -> None:
        """Read the files again if one has changed."""
        found = self._identities()
        if found == self._read:
            return
        try:
            self._context = server_context(*self._files)
            self._read = found
        except OSError as error:  # perhaps a new certificate, and its key is still to come
            self._complain(f"{error.strerror or error}; the one read before stays in use")

    def _identities(self) -> list[Identity | None]:
        return [_identity(file) for file in self._files if file is not None]


def _identity(path: str) -> Identity | None:
    try:
        return identity_of(os.stat(path))
    except OSError:
        return None


class TlsStream:
    """A client under TLS; see `Stream`. The first calls of `read` do the handshake."""

    def __init__(self, sock: TlsSocket, client_names: frozenset[str]) -> None:
        self.handshaking = True
        self.read_wants_write = False
        self.read_fd = self.write_fd = sock.fileno()
        self._socket = sock
        self._client_names = client_names

    def read(self) -> bytes | None:
        """Return the bytes available, b"" at the end, None if there are none yet.

        Raises `OSError` also if the client's certificate has none of the required names.
        """
        if self.handshaking:
            done = self._socket.handshake()
            self.read_wants_write = self._socket.read_needs_write
            if not done:
                return None
            if self._client_names:
                self._check_client()
            self.handshaking = False
        data = self._socket.read(READ_BYTES)
        self.read_wants_write = self._socket.read_needs_write
        return data

    def _check_client(self) -> None:
        names = names_of(self._socket.peer_names())
        if not self._client_names & {name.lower() for name in names}:
            shown = printable(", ".join(names).encode()[:500]) or "no name"
            raise OSError(errno.EACCES, f"its certificate is for {shown}, which is not permitted")

    def write(self, data: bytes | bytearray) -> int:
        """Write some of `data`; return how many bytes were written."""
        sent = self._socket.write(data)
        if self._socket.write_needs_read:
            # A write waits for input only after half a TLS message from the client; meanwhile
            # the selector would report the socket as writable all the time.
            raise TlsError("TLS: half a handshake message, and no rest")
        return sent

    def half_close(self) -> bool:
        """Tell the client that no more data follows; return False if it has gone.

        What it still sends is not decrypted.
        """
        self._socket.close_notify()
        try:
            self._socket.shut_down(socket.SHUT_WR)
        except OSError:
            return False
        return True

    def close(self) -> None:
        """Close the socket; harmless twice."""
        self._socket.close_notify()
        self._socket.close()


def names_of(certificate: Mapping[str, object]) -> list[str]:
    """Return the DNS and e-mail names, then the common names, in a result of `getpeercert`."""
    found: list[str] = []
    alternatives = certificate.get("subjectAltName", ())
    assert isinstance(alternatives, tuple)
    found += [value for kind, value in alternatives if kind in ("DNS", "email")]
    subject = certificate.get("subject", ())
    assert isinstance(subject, tuple)
    found += [value for part in subject for kind, value in part if kind == "commonName"]
    return found
