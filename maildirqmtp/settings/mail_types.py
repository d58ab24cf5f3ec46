"""Types of values that are about mail: windows, bounces, servers' keys, metrics."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from maildirqmtp.errors import ConfigError
from maildirqmtp.forwarder.route import BounceMethod, BounceVia
from maildirqmtp.settings.types import (
    NumberType,
    ValueType,
    digits,
    expanded,
    quoted,
    unexpanded,
)
from maildirqmtp.settings.units import bytes_text, parse_bytes, parse_window
from maildirqmtp.transport.endpoint import TcpEndpoint, parse_pin, parse_port, parse_tcp

if TYPE_CHECKING:
    from maildirqmtp.maildir.shard import Shard


class PortType(NumberType):
    """A TCP port."""

    def parse(self, text: str, where: str) -> int:
        return parse_port(text, where)


class ServersType(ValueType[tuple[str, ...]]):
    """A server, or several in the order of preference; see `transport.server_list`."""

    wanted = "a text or an array of texts"

    def parse(self, text: str, where: str) -> tuple[str, ...]:
        if "," not in text:
            return (text,)
        from maildirqmtp.transport.server_list import split_servers

        return split_servers(text)

    def to_text(self, value: tuple[str, ...]) -> str:
        return ",".join(value)

    def from_toml(self, value: object, where: str) -> tuple[str, ...]:
        if not isinstance(value, list):
            return super().from_toml(value, where)
        for text in value:
            if not isinstance(text, str):
                raise self.wrong(text, where)
        return tuple(value)

    def to_toml(self, value: tuple[str, ...]) -> str:
        servers = [quoted(server) for server in value]
        # Several as an array, because one text would also be split at the commas of a command.
        return servers[0] if len(servers) == 1 else f"[{', '.join(servers)}]"


class WindowType(ValueType[tuple[int, int]]):
    """Messages, or messages and bytes."""

    wanted = 'a number, or a text as in "4096,32M",'

    def parse(self, text: str, where: str) -> tuple[int, int]:
        return parse_window(text, where)

    def to_text(self, value: tuple[int, int]) -> str:
        messages, size = value
        return f"{messages},{bytes_text(size)}"

    def from_toml(self, value: object, where: str) -> tuple[int, int]:
        if type(value) is int:
            return self.parse(digits(value, where), where)
        return super().from_toml(value, where)


class SizeType(ValueType[int]):
    """A number of bytes, at least 1."""

    wanted = 'a number of bytes, or a text as in "256k",'

    def parse(self, text: str, where: str) -> int:
        size = parse_bytes(text, where)
        if size < 1:
            raise ConfigError(f"{where}: at least one byte, not {text!r}")
        return size

    def to_text(self, value: int) -> str:
        return bytes_text(value)

    def from_toml(self, value: object, where: str) -> int:
        if type(value) is int:
            return self.parse(digits(value, where), where)
        return super().from_toml(value, where)


class ShardType(ValueType["Shard"]):
    """A part of a maildir's messages: `K/N`, K from 0."""

    wanted = 'a text as in "0/4"'

    def parse(self, text: str, where: str) -> Shard:
        from maildirqmtp.maildir.shard import MAX_SHARDS, Shard

        number, _, count = text.partition("/")
        plain = all(part.isascii() and part.isdigit() and len(part) < 6 for part in (number, count))
        if not plain or not int(number) < int(count) <= MAX_SHARDS:
            raise ConfigError(
                f"{where}: K/N as in 0/4 is needed, K less than N and N at most {MAX_SHARDS}, "
                f"not {text!r}"
            )
        return Shard(int(number), int(count))

    def to_text(self, value: Shard) -> str:
        return str(value)


class BounceViaType(ValueType[BounceVia]):
    """`sendmail`, `server` or `maildir:DIR`."""

    def parse(self, text: str, where: str) -> BounceVia:
        method, _, path = text.partition(":")
        if text in (BounceMethod.SENDMAIL.value, BounceMethod.SERVER.value):
            return BounceVia(BounceMethod(text))
        if method == BounceMethod.MAILDIR.value and path:
            # The shell expands no ~ behind the colon.
            return BounceVia(BounceMethod.MAILDIR, os.fsencode(expanded(path, where)))
        raise ConfigError(f"{where}: sendmail, server or maildir:DIR, not {text!r}")

    def to_text(self, value: BounceVia) -> str:
        return self._written(value, "" if value.maildir is None else os.fsdecode(value.maildir))

    def to_toml(self, value: BounceVia) -> str:
        path = "" if value.maildir is None else unexpanded(os.fsdecode(value.maildir))
        return quoted(self._written(value, path))

    @staticmethod
    def _written(value: BounceVia, path: str) -> str:
        return f"{value.method.value}:{path}" if path else value.method.value


class ShellWordsType(ValueType[tuple[bytes, ...]]):
    """A command and its first arguments, split as a shell does; no shell runs it."""

    def parse(self, text: str, where: str) -> tuple[bytes, ...]:
        import shlex

        try:
            words = tuple(os.fsencode(word) for word in shlex.split(text))
        except ValueError as error:
            raise ConfigError(f"{where}: {text!r}: {error}") from None
        if not words:
            raise ConfigError(f"{where}: a command is needed")
        return words

    def to_text(self, value: tuple[bytes, ...]) -> str:
        import shlex

        return shlex.join(map(os.fsdecode, value))

    def from_toml(self, value: object, where: str) -> tuple[bytes, ...]:
        program, *arguments = super().from_toml(value, where)
        return os.fsencode(expanded(os.fsdecode(program), where)), *arguments

    def to_toml(self, value: tuple[bytes, ...]) -> str:
        program, *arguments = value
        return quoted(self.to_text((os.fsencode(unexpanded(os.fsdecode(program))), *arguments)))


class PinType(ValueType[bytes]):
    """The SHA-256 digest of a public key."""

    def parse(self, text: str, where: str) -> bytes:
        return parse_pin(text, where)

    def to_text(self, value: bytes) -> str:
        return f"sha256:{value.hex()}"


class ListenType(ValueType[tuple[str, int]]):
    """`HOST:PORT` to listen on: an address or localhost, since a name's address may change.

    With `loopback_only`, on this machine only: metrics disclose who writes to whom.
    """

    def __init__(self, metavar: str = "", *, loopback_only: bool = False) -> None:
        super().__init__(metavar)
        self._loopback_only = loopback_only

    def parse(self, text: str, where: str) -> tuple[str, int]:
        try:
            found = parse_tcp(text, 0)
        except ConfigError:
            found = TcpEndpoint("", 0)
        if not found.port:
            raise ConfigError(f"{where}: HOST:PORT as in 127.0.0.1:9209 is needed, not {text!r}")
        if not self._is_allowed(found.host):
            wrong = "is no address; write 0.0.0.0 or [::] for all of this machine"
            if self._loopback_only:
                wrong = (
                    "is not loopback; write 127.0.0.1, ::1 or localhost, "
                    "and put a proxy before it where others are to ask"
                )
            raise ConfigError(f"{where}: {found.host} {wrong}")
        return found.host, found.port

    def _is_allowed(self, host: str) -> bool:
        from ipaddress import ip_address

        try:
            return host == "localhost" or ip_address(host).is_loopback or not self._loopback_only
        except ValueError:
            return False

    def to_text(self, value: tuple[str, int]) -> str:
        return str(TcpEndpoint(*value))
