"""Where a server is, as the command line writes it, and how it proves who it is.

Values only, and their parsers; nothing is looked up, opened or run.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from maildirqmtp.errors import ConfigError
from maildirqmtp.text import printable
from maildirqmtp.values import Value

if TYPE_CHECKING:
    from collections.abc import Iterable


#: TCP port of QMTP (qmtp.txt, section 1).
QMTP_PORT = 209
#: TCP port of QMTP over TLS, by s/qmail's convention.
QMTPS_PORT = 6209

_DIGEST_BYTES = 32
_UNDERSTOOD = "NAME, NAME:PORT, [::1]:PORT, qmtp://NAME, qmtps://NAME, unix:PATH, exec:COMMAND or -"


class TcpEndpoint(Value):
    """A QMTP server on TCP; with `tls`, under TLS from the first byte."""

    __slots__ = ("host", "port", "tls")

    def __init__(self, host: str, port: int = QMTP_PORT, tls: bool = False) -> None:
        self.host = host
        self.port = port
        self.tls = tls

    @property
    def text(self) -> str:
        """SERVER, as `parse_endpoint` reads it."""
        place = f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"
        return f"qmtps://{place}" if self.tls else place

    def __str__(self) -> str:
        return self.text


class UnixEndpoint(Value):
    """A QMTP server on a Unix stream socket. Like the next ones, it has no name in the DNS."""

    __slots__ = ("path",)
    host = ""

    def __init__(self, path: str) -> None:
        self.path = path

    @property
    def text(self) -> str:
        """SERVER, as `parse_endpoint` reads it."""
        return f"unix:{self.path}"

    def __str__(self) -> str:
        return _shown(self.text)


class CommandEndpoint(Value):
    """A command that speaks QMTP on its standard input and output."""

    __slots__ = ("words",)
    host = ""

    def __init__(self, words: tuple[str, ...]) -> None:
        self.words = words

    @property
    def text(self) -> str:
        """SERVER, as `parse_endpoint` reads it."""
        from shlex import join

        return f"exec:{join(self.words)}"

    def __str__(self) -> str:
        return _shown(self.text)

    @property
    def command(self) -> str:
        """The command's name, without its directory, fit to be shown."""
        return _shown(self.words[0].rpartition("/")[2] or self.words[0])


class UcspiEndpoint(Value):
    """What is on descriptors 6 (to read) and 7 (to write), as under tcpclient (UCSPI-1996)."""

    host = ""
    text = "-"

    def __str__(self) -> str:
        return self.text


#: Any of them.
Endpoint = TcpEndpoint | UnixEndpoint | CommandEndpoint | UcspiEndpoint


class Tls(Value):
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

    __slots__ = ("ca", "cert", "key", "pins")

    def __init__(
        self,
        ca: str | bytes | os.PathLike[str] | os.PathLike[bytes] | None = None,
        cert: str | bytes | os.PathLike[str] | os.PathLike[bytes] | None = None,
        key: str | bytes | os.PathLike[str] | os.PathLike[bytes] | None = None,
        pins: str | bytes | Iterable[str | bytes] = (),
    ) -> None:
        self.ca = _file(ca)
        self.cert = _file(cert)
        self.key = _file(key)
        if isinstance(pins, (str, bytes)):
            pins = (pins,)
        self.pins = tuple([_digest(pin) for pin in pins])
        _check_files(self.ca, self.cert, self.key, "tls ")


def _file(path: str | bytes | os.PathLike[str] | os.PathLike[bytes] | None) -> str | bytes | None:
    return path if path is None or isinstance(path, (str, bytes)) else path.__fspath__()


def _digest(pin: str | bytes) -> bytes:
    if isinstance(pin, str):
        return parse_pin(pin, "tls pins")
    if len(pin) != _DIGEST_BYTES:
        raise ConfigError(f"tls pins: a digest of SHA-256 has 32 bytes, not {len(pin)}")
    return bytes(pin)


def _check_files(
    ca: str | bytes | None, cert: str | bytes | None, key: str | bytes | None, prefix: str
) -> None:
    for name, path in (("ca", ca), ("cert", cert), ("key", key)):
        # For OpenSSL an empty one would be none at all.
        if path is not None and (not path or 0 in _as_bytes(path)):
            raise ConfigError(f"{prefix}{name}: the path of a file is needed")
    if key is not None and cert is None:
        raise ConfigError(f"{prefix}key: its certificate is needed too, with {prefix}cert")


def _as_bytes(path: str | bytes) -> bytes:
    return path.encode("utf-8", "surrogateescape") if isinstance(path, str) else path


def check_tls(server: Endpoint, tls: Tls | None) -> None:
    """Raise `ConfigError` where there is a `tls` for a server that is talked to in plain.

    Who says how to check a certificate expects it, and must not get that instead.
    """
    if tls is not None and not (isinstance(server, TcpEndpoint) and server.tls):
        raise ConfigError(f"TLS options with the server {server}: write qmtps://NAME for TLS")


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


def parse_pin(text: str, where: str = "--tls-pin") -> bytes:
    """Read `sha256:` and 64 hexadecimal digits or base64 (RFC 7469). Raises `ConfigError`."""
    from base64 import b64decode

    scheme, colon, digest = text.partition(":")
    if scheme == "sha256" and colon:
        try:
            raw = bytes.fromhex(digest) if len(digest) == 64 else b64decode(digest, validate=True)
        except ValueError:
            raw = b""
        if len(raw) == _DIGEST_BYTES:
            return raw
    raise ConfigError(f"{where}: sha256: and the digest in hexadecimal or base64, not {text!r}")


def parse_endpoint(text: str, default_port: int | None = None) -> Endpoint:
    """Read SERVER, in any of the forms of `maildirqmtp --help`.

    `default_port` is for a TCP server without a port; None: 209, or 6209 with
    TLS. Raises `ConfigError`, which says what is wrong and what is understood.
    """
    if text == "-":
        return UcspiEndpoint()
    if text.startswith("unix:"):
        return UnixEndpoint(_path(text.removeprefix("unix:"), text))
    if text.startswith("exec:"):
        return CommandEndpoint(_words(text.removeprefix("exec:"), text))
    scheme, separator, rest = text.partition("://")
    if not separator:
        return _tcp(text, text, default_port or QMTP_PORT)
    if scheme not in ("qmtp", "qmtps"):
        raise ConfigError(f"server {text!r}: this way is not known; write {_UNDERSTOOD}")
    tls = scheme == "qmtps"
    port = default_port or (QMTPS_PORT if tls else QMTP_PORT)
    return _tcp(rest.removesuffix("/"), text, port, tls)


def parse_tcp(text: str, default_port: int = QMTP_PORT) -> TcpEndpoint:
    """Read `NAME`, `NAME:PORT` or `[::1]:PORT`, and nothing else. Raises `ConfigError`."""
    return _tcp(text, text, default_port)


def _tcp(rest: str, text: str, default_port: int, tls: bool = False) -> TcpEndpoint:
    if rest.startswith("["):
        host, bracket, port = rest[1:].partition("]")
        if not bracket or (port and not port.startswith(":")):
            raise ConfigError(f"server {text!r}: an IPv6 address is written [::1] or [::1]:PORT")
        port = port[1:] if port else ""
        has_port = rest.endswith(":") or bool(port)
    elif rest.count(":") > 1:
        host, port, has_port = rest, "", False
    else:
        host, colon, port = rest.partition(":")
        has_port = bool(colon)
    if not host or any(c.isspace() or not c.isprintable() or c in "/@[]" for c in host):
        raise ConfigError(f"server {text!r}: no host name; write {_UNDERSTOOD}")
    if ":" in host:
        _check_ipv6(host, text)
    return TcpEndpoint(
        host, parse_port(port, f"server {text!r}") if has_port else default_port, tls
    )


def _check_ipv6(host: str, text: str) -> None:
    """Refuse what would otherwise be looked up as a name, as in `name:209:`."""
    from ipaddress import IPv6Address

    try:
        IPv6Address(host)
    except ValueError:
        raise ConfigError(f"server {text!r}: {host!r} is no IPv6 address") from None


def parse_port(text: str, where: str = "port") -> int:
    """Read a TCP port, 1 to 65535. Raises `ConfigError`."""
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and 0 < int(text) < 65_536):
        raise ConfigError(f"{where}: a port is a number from 1 to 65535, not {text!r}")
    return int(text)


def _path(path: str, text: str) -> str:
    if not path or "\0" in path:
        raise ConfigError(f"server {text!r}: a socket's path is needed, as in unix:/run/qmtp.sock")
    return path


def _words(command: str, text: str) -> tuple[str, ...]:
    """Split a command as a shell would; no shell is ever asked."""
    import shlex

    try:
        words = tuple(shlex.split(command))
    except ValueError as error:
        raise ConfigError(f"server {text!r}: {error}") from None
    if not words or not words[0] or "\0" in command:
        raise ConfigError(
            f"server {text!r}: a command is needed, as in exec:ssh mx qmtpmaildir --stdio Maildir"
        )
    return words


def _shown(text: str) -> str:
    return printable(text.encode("utf-8", "replace"))
