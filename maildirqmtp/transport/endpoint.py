"""Where a server is, as the command line writes it.

Values only, and their parsers; nothing is looked up, opened or run.
"""

# No postponed annotations; see `forwarder.route`.
from typing import NamedTuple

from maildirqmtp.errors import ConfigError
from maildirqmtp.text import printable

#: TCP port of QMTP (qmtp.txt, section 1).
QMTP_PORT = 209
#: TCP port of QMTP over TLS, by s/qmail's convention.
QMTPS_PORT = 6209

#: Bytes of a SHA-256 digest.
DIGEST_BYTES = 32
_UNDERSTOOD = "NAME, NAME:PORT, [::1]:PORT, qmtp://NAME, qmtps://NAME, unix:PATH, exec:COMMAND or -"


class _Kind:
    """What all kinds of endpoints have in common; each is also a named tuple of its fields.

    Named tuples alone would be equal across kinds (`unix:a` and `exec:a` are both one text), and
    `dataclasses` takes longer to import than a run that finds its maildir empty.
    """

    __slots__ = ()

    @property
    def text(self) -> str:
        """SERVER, as `parse_endpoint` reads it."""
        raise NotImplementedError

    def __str__(self) -> str:
        return _shown(self.text)

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other.text == self.text

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash(self.text)


class _Tcp(NamedTuple):
    host: str
    port: int = QMTP_PORT
    tls: bool = False


class TcpEndpoint(_Kind, _Tcp):
    """A QMTP server on TCP; with `tls`, under TLS from the first byte."""

    __slots__ = ()

    @property
    def text(self) -> str:
        """SERVER, as `parse_endpoint` reads it."""
        place = f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"
        if self.tls:
            return f"qmtps://{place}"
        # A host of one of these names would be read as another kind.
        return f"qmtp://{place}" if self.host in ("unix", "exec") else place


class _Unix(NamedTuple):
    path: str


class UnixEndpoint(_Kind, _Unix):
    """A QMTP server on a Unix stream socket. `host` is empty: it has no name in the DNS."""

    __slots__ = ()
    host = ""

    @property
    def text(self) -> str:
        """SERVER, as `parse_endpoint` reads it."""
        return f"unix:{self.path}"


class _Command(NamedTuple):
    words: tuple[str, ...]


class CommandEndpoint(_Kind, _Command):
    """A command that speaks QMTP on its standard input and output."""

    __slots__ = ()
    host = ""

    @property
    def text(self) -> str:
        """SERVER, as `parse_endpoint` reads it."""
        from shlex import join

        return f"exec:{join(self.words)}"

    @property
    def command(self) -> str:
        """The command's name, without its directory; printable."""
        return _shown(self.words[0].rpartition("/")[2] or self.words[0])


class UcspiEndpoint(_Kind):
    """A server on descriptors 6 (to read) and 7 (to write), as under tcpclient (UCSPI-1996)."""

    __slots__ = ()
    host = ""

    @property
    def text(self) -> str:
        """SERVER, as `parse_endpoint` reads it."""
        return "-"

    def __repr__(self) -> str:
        return "UcspiEndpoint()"


#: Any kind of endpoint.
Endpoint = TcpEndpoint | UnixEndpoint | CommandEndpoint | UcspiEndpoint


def check_tls(server: Endpoint, tls: object | None) -> None:
    """Raise `ConfigError` for TLS options with a plain-text server: never silently ignored."""
    if tls is not None and not (isinstance(server, TcpEndpoint) and server.tls):
        raise ConfigError(f"TLS options with the server {server}: write qmtps://NAME for TLS")


def parse_pin(text: str, where: str = "--tls-pin") -> bytes:
    """Parse `sha256:` and 64 hexadecimal digits or base64 (RFC 7469), or raise `ConfigError`."""
    from base64 import b64decode

    scheme, colon, digest = text.partition(":")
    if scheme == "sha256" and colon:
        try:
            raw = bytes.fromhex(digest) if len(digest) == 64 else b64decode(digest, validate=True)
        except ValueError:
            raw = b""
        if len(raw) == DIGEST_BYTES:
            return raw
    raise ConfigError(f"{where}: sha256: and the digest in hexadecimal or base64, not {text!r}")


def parse_endpoint(text: str, default_port: int | None = None) -> Endpoint:
    """Parse SERVER, in any of the forms of `maildirqmtp --help`.

    `default_port` is for a TCP server without a port; None: 209, or 6209 with
    TLS. Raises `ConfigError` if it has none of these forms; the error says what
    is wrong and what is understood.
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
    """Parse `NAME`, `NAME:PORT` or `[::1]:PORT`. Raises `ConfigError` for anything else."""
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
    if not host or any(c.isspace() or not c.isprintable() or c in "/@[]," for c in host):
        raise ConfigError(f"server {text!r}: no host name; write {_UNDERSTOOD}")
    if ":" in host:
        _check_ipv6(host, text)
    return TcpEndpoint(
        host, parse_port(port, f"server {text!r}") if has_port else default_port, tls
    )


def _check_ipv6(host: str, text: str) -> None:
    """Refuse text that would otherwise be looked up as a name, as in `name:209:`."""
    from ipaddress import IPv6Address

    try:
        IPv6Address(host)
    except ValueError:
        raise ConfigError(f"server {text!r}: {host!r} is no IPv6 address") from None


def parse_port(text: str, where: str = "port") -> int:
    """Parse a TCP port. Raises `ConfigError` if it is not a number from 1 to 65535."""
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and 0 < int(text) < 65_536):
        raise ConfigError(f"{where}: a port is a number from 1 to 65535, not {text!r}")
    return int(text)


def _path(path: str, text: str) -> str:
    if not path or "\0" in path:
        raise ConfigError(f"server {text!r}: a socket's path is needed, as in unix:/run/qmtp.sock")
    return path


def _words(command: str, text: str) -> tuple[str, ...]:
    """Split a command as a shell would, without running a shell."""
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
