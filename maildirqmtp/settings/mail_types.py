"""Kinds of settings that know what they are for: addresses, windows, bounces, metrics."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from maildirqmtp.errors import ConfigError
from maildirqmtp.settings.types import Number, Path, Prefix, Setting, expanded, quoted, unexpanded
from maildirqmtp.settings.units import parse_window
from maildirqmtp.transport.endpoint import TcpEndpoint, parse_pin, parse_port, parse_tcp

if TYPE_CHECKING:
    from typing import Any


class Address(Prefix):
    """An address of the envelope, as bytes; the sender may be empty."""

    __slots__ = ()
    what = "sender"

    def parse(self, text: str, where: str) -> bytes:
        from maildirqmtp.qmtp.protocol import check_address

        address = os.fsencode(text)
        reason = check_address(address, self.what)
        if reason is None and self.repeated and not address:
            reason = "a recipient must not be empty"
        if reason is not None:
            raise ConfigError(f"{where}: {reason}")
        return address


class Addresses(Address):
    """Recipients, as bytes: one text, or an array of them."""

    __slots__ = ()
    what = "recipient"
    wanted = "a text or an array of texts"
    repeated = True

    def from_flag(self, value: list[str]) -> tuple[bytes, ...]:
        return tuple(self.parse(text, f"--{self.key}") for text in value)

    def from_toml(self, value: object, where: str) -> tuple[bytes, ...]:
        found = []
        for text in value if isinstance(value, list) else [value]:
            if not isinstance(text, str):
                raise self.wrong(text, where)
            found.append(self.parse(text, where))
        return tuple(found)

    def to_toml(self, value: Any) -> str:
        return f"[{', '.join(quoted(os.fsdecode(address)) for address in value)}]"

    def of(self, owner: object) -> Any:
        return getattr(owner, self.field) or None


class Port(Number):
    """A TCP port. No field of its own: it goes into the server's address."""

    __slots__ = ()

    def parse(self, text: str, where: str) -> int:
        return parse_port(text, where)

    def fields(self, value: int) -> dict[str, Any]:
        return {}

    def of(self, owner: object) -> None:
        return None


class Window(Number):
    """Messages, or messages and bytes."""

    __slots__ = ()
    wanted = 'a number, or a text as in "4096,32M",'

    def parse(self, text: str, where: str) -> Any:
        return parse_window(text, where)

    def from_toml(self, value: object, where: str) -> Any:
        if isinstance(value, str):
            return self.parse(value, where)
        return super().from_toml(value, where)

    def to_toml(self, value: Any) -> str:
        messages, size = value
        for unit, length in (("G", 1 << 30), ("M", 1 << 20), ("k", 1 << 10)):
            if size % length == 0:
                return f'"{messages},{size // length}{unit}"'
        return f'"{messages},{size}"'

    def fields(self, value: tuple[int, int]) -> dict[str, Any]:
        return {"window_messages": value[0], "window_bytes": value[1]}

    def of(self, owner: Any) -> tuple[int, int]:
        return owner.window_messages, owner.window_bytes


class BounceVia(Setting):
    """`sendmail`, `server` or `maildir:DIR`."""

    __slots__ = ()

    def parse(self, text: str, where: str) -> str:
        kind, colon, path = text.partition(":")
        if text not in ("sendmail", "server") and not (kind == "maildir" and colon and path):
            raise ConfigError(f"{where}: sendmail, server or maildir:DIR, not {text!r}")
        return text

    def from_toml(self, value: object, where: str) -> Any:
        found: str = super().from_toml(value, where)
        kind, colon, path = found.partition(":")
        return kind + colon + (expanded(path, where) if colon else "")

    def to_toml(self, value: str) -> str:
        kind, colon, path = value.partition(":")
        return quoted(kind + colon + unexpanded(path))


class Command(Setting):
    """A command and its first arguments, as bytes; split as a shell does."""

    __slots__ = ()

    def parse(self, text: str, where: str) -> tuple[bytes, ...]:
        import shlex

        try:
            words = tuple(os.fsencode(word) for word in shlex.split(text))
        except ValueError as error:
            raise ConfigError(f"{where}: {text!r}: {error}") from None
        if not words:
            raise ConfigError(f"{where}: a command is needed")
        return words

    def from_toml(self, value: object, where: str) -> Any:
        if not isinstance(value, str):
            raise self.wrong(value, where)
        program, *arguments = self.parse(value, where)
        return os.fsencode(expanded(os.fsdecode(program), where)), *arguments

    def to_toml(self, value: tuple[bytes, ...]) -> str:
        import shlex

        program, *arguments = map(os.fsdecode, value)
        return quoted(shlex.join([unexpanded(program), *arguments]))


class TlsFile(Path):
    """A PEM file. All settings of TLS together make one field."""

    __slots__ = ()

    def fields(self, value: bytes) -> dict[str, Any]:
        return {}

    def of(self, owner: Any) -> Any:
        return None if owner.tls is None else getattr(owner.tls, self.key.removeprefix("tls-"))


class TlsPins(Setting):
    """Digests of public keys: one text, or an array of them."""

    __slots__ = ()
    wanted = "a text or an array of texts"
    repeated = True

    def parse(self, text: str, where: str) -> bytes:
        return parse_pin(text, where)

    def from_flag(self, value: list[str]) -> tuple[bytes, ...]:
        return tuple(self.parse(text, f"--{self.key}") for text in value)

    def from_toml(self, value: object, where: str) -> tuple[bytes, ...]:
        found = []
        for text in value if isinstance(value, list) else [value]:
            if not isinstance(text, str):
                raise self.wrong(text, where)
            found.append(self.parse(text, where))
        return tuple(found)

    def to_toml(self, value: tuple[bytes, ...]) -> str:
        return f"[{', '.join(quoted(f'sha256:{pin.hex()}') for pin in value)}]"

    def fields(self, value: tuple[bytes, ...]) -> dict[str, Any]:
        return {}

    def of(self, owner: Any) -> Any:
        return None if owner.tls is None else owner.tls.pins or None


class Loopback(Setting):
    """`HOST:PORT` on this machine only: the metrics say who writes to whom, to all who ask."""

    __slots__ = ()

    def parse(self, text: str, where: str) -> tuple[str, int]:
        from ipaddress import ip_address

        try:
            found = parse_tcp(text, 0)
        except ConfigError:
            found = TcpEndpoint("", 0)
        if not found.port:
            raise ConfigError(f"{where}: HOST:PORT as in 127.0.0.1:9209 is needed, not {text!r}")
        try:
            good = found.host == "localhost" or ip_address(found.host).is_loopback
        except ValueError:
            good = False
        if not good:
            raise ConfigError(
                f"{where}: {found.host} is not loopback; write 127.0.0.1, ::1 or localhost, "
                f"and put a proxy before it where others are to ask"
            )
        return found.host, found.port

    def to_toml(self, value: tuple[str, int]) -> str:
        return quoted(str(TcpEndpoint(*value)))
