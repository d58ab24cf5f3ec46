"""How a server at `qmtps://` proves who it is, and what is shown to it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from maildirqmtp.errors import ConfigError
from maildirqmtp.text import each_of
from maildirqmtp.transport.endpoint import DIGEST_BYTES, check_tls, parse_pin

if TYPE_CHECKING:
    from maildirqmtp.transport.endpoint import Endpoint

    File = str | bytes | os.PathLike[str] | os.PathLike[bytes]


@dataclass(frozen=True, slots=True, init=False)
class Tls:
    """What is asked of a server's certificate, and what is shown of ours.

        QMTPClient("qmtps://mail.example.org", tls=Tls(ca="/etc/ssl/our-ca.pem"))

    `ca`, `cert` and `key` are paths of PEM files: who vouches for the server,
    our certificate, and its key; without `key`, it is in `cert`. `pins` are
    SHA-256 digests of public keys (RFC 7469, 2.4), of which the server must
    have one: in place of a certificate authority, unless `ca` is given as well.
    A pin is `"sha256:"` with hexadecimal or base64, or the 32 bytes. Nothing
    given means the certificate authorities of this system.

    The files are read with each connection; one that cannot be used is a
    `ConnectError` then. Raises `ConfigError` for what makes no sense.
    """

    ca: str | bytes | None
    cert: str | bytes | None
    key: str | bytes | None
    pins: tuple[bytes, ...]

    def __init__(
        self,
        ca: File | None = None,
        cert: File | None = None,
        key: File | None = None,
        pins: str | bytes | Iterable[str | bytes] = (),
    ) -> None:
        for name, path in (("ca", ca), ("cert", cert), ("key", key)):
            object.__setattr__(self, name, None if path is None else os.fspath(path))
        object.__setattr__(self, "pins", tuple([_digest(pin) for pin in each_of(pins)]))
        _check_files(self.ca, self.cert, self.key, "tls ")


def _digest(pin: str | bytes) -> bytes:
    if isinstance(pin, str):
        return parse_pin(pin, "tls pins")
    if len(pin) != DIGEST_BYTES:
        raise ConfigError(f"tls pins: a digest of SHA-256 has 32 bytes, not {len(pin)}")
    return bytes(pin)


def _check_files(
    ca: str | bytes | None, cert: str | bytes | None, key: str | bytes | None, prefix: str
) -> None:
    for name, path in (("ca", ca), ("cert", cert), ("key", key)):
        # For OpenSSL an empty one would be none at all.
        if path is not None and (not path or 0 in os.fsencode(path)):
            raise ConfigError(f"{prefix}{name}: the path of a file is needed")
    if key is not None and cert is None:
        raise ConfigError(f"{prefix}key: its certificate is needed too, with {prefix}cert")


def make_tls(
    server: Endpoint,
    ca: str | bytes | None = None,
    cert: str | bytes | None = None,
    key: str | bytes | None = None,
    pins: tuple[bytes, ...] = (),
) -> Tls | None:
    """Return what `--tls-ca`, `--tls-cert`, `--tls-key` and `--tls-pin` ask for; None for nothing.

    Raises `ConfigError`, also where the server is not reached by TLS.
    """
    if ca is None and cert is None and key is None and not pins:
        return None
    _check_files(ca, cert, key, "--tls-")
    made = Tls(ca, cert, key, pins)
    check_tls(server, made)
    return made
