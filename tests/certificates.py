"""Certificates made for the tests, and servers that speak TLS with them."""

from __future__ import annotations

import contextlib
import datetime
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtensionOID, NameOID

from maildirqmtp.transport.spki import public_key_digest
from tests.helpers import Peer, Script

LONG_AGO = datetime.datetime(2020, 1, 1)
EXPIRED = datetime.datetime(2020, 1, 2)


@dataclass(frozen=True)
class Identity:
    """A certificate with its key, in files."""

    cert: str
    key: str
    pin: str

    def context(self, client_ca: str | None = None) -> ssl.SSLContext:
        """What a server needs to show it; with `client_ca`, it wants one from its clients."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.cert, self.key)
        if client_ca is not None:
            context.load_verify_locations(client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
        return context


class Authority:
    """A certificate authority in a directory; `file` is its own certificate."""

    def __init__(self, directory: Path, name: str = "authority") -> None:
        self._ca = trustme.CA(organization_name=name)
        self._directory = directory
        self._name = name
        self._count = 0
        self.file = str(directory / f"{name}.pem")
        self._ca.cert_pem.write_to_path(self.file)

    def issue(
        self,
        *names: str,
        common_name: str | None = None,
        expired: bool = False,
    ) -> Identity:
        """Make a certificate for these names."""
        self._count += 1
        made = self._ca.issue_cert(
            *names,
            common_name=common_name,
            not_before=LONG_AGO if expired else None,
            not_after=EXPIRED if expired else None,
        )
        stem = self._directory / f"{self._name}-{self._count}"
        cert, key = f"{stem}.crt", f"{stem}.key"
        made.cert_chain_pems[0].write_to_path(cert)
        made.private_key_pem.write_to_path(key)
        der = ssl.PEM_cert_to_DER_cert(made.cert_chain_pems[0].bytes().decode())
        return Identity(cert, key, f"sha256:{public_key_digest(der).hex()}")

    def issue_raw(self, address: bytes) -> Identity:
        """Make a certificate with an e-mail address of any bytes, such as those of Latin-1."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "raw")])
        general = b"\x81" + bytes([len(address)]) + address  # RFC 5280, 4.2.1.6: rfc822Name
        alternatives = b"\x30" + bytes([len(general)]) + general
        now = datetime.datetime.now(datetime.UTC)
        made = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(x509.load_pem_x509_certificate(self._ca.cert_pem.bytes()).subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(
                x509.UnrecognizedExtension(ExtensionOID.SUBJECT_ALTERNATIVE_NAME, alternatives),
                critical=False,
            )
            .sign(
                serialization.load_pem_private_key(self._ca.private_key_pem.bytes(), None),  # type: ignore[arg-type]
                hashes.SHA256(),
            )
        )
        stem = f"{self._directory}/{self._name}-raw"
        files = Identity(f"{stem}.crt", f"{stem}.key", "")
        Path(files.cert).write_bytes(made.public_bytes(serialization.Encoding.PEM))
        Path(files.key).write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        return files


def over_tls(context: ssl.SSLContext, script: Script, farewell: bool = True) -> Script:
    """Make a script that speaks TLS; without `farewell` it just drops the connection at the end.

    A client that does not come in is no error.
    """

    def scripted(peer: Peer) -> None:
        try:
            wrapped = context.wrap_socket(peer.socket, server_side=True)
        except OSError:
            return
        with wrapped:
            peer.socket = wrapped
            script(peer)
            if farewell:
                with contextlib.suppress(OSError, ValueError):
                    wrapped.unwrap()

    return scripted


def reads_all(took: Callable[[bytes], object]) -> Script:
    """Make a script that reads until the client says farewell, and fails where it does not."""

    def script(peer: Peer) -> None:
        setattr(peer.socket, "suppress_ragged_eofs", False)  # noqa: B010
        while data := peer.socket.recv(1 << 16):
            took(data)

    return script
