"""How a server at `qmtps://` is verified, and which certificate is shown to it."""

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
    """How to verify a server, and which certificate to show it.

        QMTPClient("qmtps://mail.example.org", tls=Tls(ca="/etc/ssl/our-ca.pem"))

    `ca`, `cert` and `key` are paths of PEM files: the certificate authorities
    for the server, our certificate, and its key; without `key`, it is in
    `cert`. `pins` are SHA-256 digests of public keys (RFC 7469, 2.4), of which
    the server must have one: in place of a certificate authority, unless `ca`
    is given as well. A pin is `"sha256:"` with hexadecimal or base64, or the 32
    bytes. Without `ca` and `pins`, the authorities of this system count.

    The files are read for each connection, which fails with `ConnectError` if
    one cannot be used. Raises `ConfigError` for a malformed pin, a path that is
    empty or has a NUL, or a `key` without `cert`.
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
        # OpenSSL would take an empty path for none at all.
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
    """Return what `--tls-ca`, `--tls-cert`, `--tls-key` and `--tls-pin` ask for; None if not given.

    Raises `ConfigError` as `Tls` does, and if the server is not reached by TLS.
    """
    if ca is None and cert is None and key is None and not pins:
        return None
    _check_files(ca, cert, key, "--tls-")
    made = Tls(ca, cert, key, pins)
    check_tls(server, made)
    return made
