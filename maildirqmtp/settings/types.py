"""Kinds of settings: how a flag's text or a TOML value becomes a value, and how it is shown.

Every method that reads takes `where`, the name that an error begins with, and
raises `ConfigError`.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from maildirqmtp.errors import ConfigError
from maildirqmtp.pipeline.limits import MAX_SECONDS
from maildirqmtp.settings.units import parse_seconds

if TYPE_CHECKING:
    from typing import Any

#: Above every time that can be written as a text, 12 digits and `w`; below where floats end.
_MAX_SECONDS = MAX_SECONDS
#: Integers of TOML have no end, but `str` refuses those above some thousands of digits; and a
#: time is read from a text of twelve digits at most.
_MAX_NUMBER = 10**12


class Setting:
    """A setting, of the kind text: its flag is `--key`, its key in a configuration file `key`.

    `field` is the field of `Route` or `Config` that it sets. `default` is what
    the flag would have to say for the default, where that can be said.
    """

    __slots__ = ("default", "field", "help", "key", "metavar")

    #: What a TOML value has to be, for those who wrote another.
    wanted = "a text in quotes"
    #: Whether the flag may be given several times.
    repeated = False
    #: Whether the flag takes no value; and whether there is a `--no-` of it, too.
    switch = False
    both_ways = False

    def __init__(
        self, key: str, field: str, metavar: str, help: str, default: str | None = None
    ) -> None:
        self.key = key
        self.field = field
        self.metavar = metavar
        self.help = help
        self.default = default

    @property
    def dest(self) -> str:
        """The name of the flag's value among the options."""
        return self.key.replace("-", "_")

    def unsaid(self) -> Any:
        """Return what the options have where the flag is not given."""
        if self.repeated:
            return []
        return False if self.switch and not self.both_ways else None

    def parse(self, text: str, where: str) -> Any:
        """Read the flag's text."""
        return text

    def from_flag(self, value: Any) -> Any:
        """Read what the options have."""
        return self.parse(value, f"--{self.key}")

    def from_toml(self, value: object, where: str) -> Any:
        """Read a value of a configuration file."""
        if isinstance(value, str):
            return self.parse(value, where)
        raise self.wrong(value, where)

    def to_toml(self, value: Any) -> str:
        """Show a value as `from_toml` would take it."""
        return quoted(value)

    def fields(self, value: Any) -> dict[str, Any]:
        """Return the fields that a value sets."""
        return {self.field: value}

    def of(self, owner: object) -> Any:
        """Return the value that a route or a configuration has; None where there is none."""
        return getattr(owner, self.field)

    def wrong(self, value: object, where: str) -> ConfigError:
        """Return the error for a TOML value of another type."""
        found = {bool: "true or false", str: "a text", list: "an array", dict: "a table"}
        found |= {int: "a number", float: "a number"}
        return ConfigError(
            f"{where}: {self.wanted} is needed, not {found.get(type(value), 'a date or time')}"
        )


class Path(Setting):
    """A path, as bytes. In a file, where no shell has done it, `~` is the home directory."""

    __slots__ = ()
    wanted = "a path in quotes"

    def parse(self, text: str, where: str) -> bytes:
        return os.fsencode(text)

    def from_toml(self, value: object, where: str) -> Any:
        if isinstance(value, str):
            return self.parse(expanded(value, where), where)
        raise self.wrong(value, where)

    def to_toml(self, value: bytes) -> str:
        return quoted(unexpanded(os.fsdecode(value)))


class Prefix(Setting):
    """What recipients begin with, as bytes."""

    __slots__ = ()

    def parse(self, text: str, where: str) -> bytes:
        return os.fsencode(text)

    def to_toml(self, value: Any) -> str:
        return quoted(os.fsdecode(value))


class Number(Setting):
    """A whole number, of at most nine digits."""

    __slots__ = ()
    wanted = "a whole number"

    def parse(self, text: str, where: str) -> int:
        if not (text.isascii() and text.isdigit() and len(text) <= 9):
            raise ConfigError(f"{where}: a number is needed, not {text!r}")
        return int(text)

    def from_toml(self, value: object, where: str) -> Any:
        if type(value) is not int:
            raise self.wrong(value, where)
        if abs(value) >= _MAX_NUMBER:
            raise ConfigError(f"{where}: the number is too large")
        return self.parse(str(value), where)

    def to_toml(self, value: int) -> str:
        return str(value)


class Count(Number):
    """A whole number from 1 to 100."""

    __slots__ = ()

    def parse(self, text: str, where: str) -> int:
        number = super().parse(text, where)
        if not 1 <= number <= 100:
            raise ConfigError(f"{where}: a number from 1 to 100 is needed, not {text!r}")
        return number


class Time(Setting):
    """A time in seconds."""

    __slots__ = ()
    wanted = 'a time as in "90s", or a number of seconds,'

    def parse(self, text: str, where: str) -> float:
        return self.within(parse_seconds(text, where), where, repr(text))

    def from_toml(self, value: object, where: str) -> float:
        if isinstance(value, str):
            return self.parse(value, where)
        if type(value) is not int and type(value) is not float:
            raise self.wrong(value, where)
        if not 0 <= value <= _MAX_SECONDS:
            raise ConfigError(f"{where}: a time cannot be negative, or endless")
        return self.within(float(value), where, str(value))

    def within(self, seconds: float, where: str, shown: str) -> float:
        """Refuse what this setting does not allow."""
        return seconds

    def to_toml(self, value: float) -> str:
        for unit, length in (("d", 86_400), ("h", 3_600), ("m", 60)):
            if 0 < value < _MAX_NUMBER and value % length == 0:
                return f'"{value / length:.0f}{unit}"'
        return f'"{value:.0f}s"' if value < _MAX_NUMBER and value % 1 == 0 else repr(value)


class PositiveTime(Time):
    """A time in seconds, more than none."""

    __slots__ = ()

    def within(self, seconds: float, where: str, shown: str) -> float:
        if seconds <= 0:
            raise ConfigError(f"{where}: more than 0 seconds are needed, not {shown}")
        return seconds


class Switch(Setting):
    """On or off. Its flag says on."""

    __slots__ = ()
    wanted = "true or false"
    switch = True

    def __init__(self, key: str, field: str, help: str) -> None:
        super().__init__(key, field, "", help)

    def from_flag(self, value: bool) -> bool:
        return value

    def from_toml(self, value: object, where: str) -> bool:
        if not isinstance(value, bool):
            raise self.wrong(value, where)
        return value

    def to_toml(self, value: bool) -> str:
        return "true" if value else "false"


class BothWays(Switch):
    """On or off, and neither by default: its flag says on, `--no-` before it off."""

    __slots__ = ()
    both_ways = True


def expanded(path: str, where: str) -> str:
    """Expand `~` at the start of a path. Raises `ConfigError`, also for what is no path."""
    if not path or "\0" in path:
        raise ConfigError(f"{where}: a path is needed, not {path!r}")
    found = os.path.expanduser(path)
    if found.startswith("~"):
        raise ConfigError(f"{where}: {path!r}: no such user; write ./~ where that is its name")
    return found


def unexpanded(path: str) -> str:
    """Write a path so that `expanded` leaves it as it is."""
    return f"./{path}" if path.startswith("~") else path


def quoted(text: str) -> str:
    """Return a basic string of TOML. Raises `ConfigError` for what is no UTF-8."""
    out = []
    for c in text:
        if "\ud800" <= c <= "\udfff":
            raise ConfigError(f"{text!r} is no UTF-8 and cannot be written as TOML")
        if c in '"\\':
            out.append("\\" + c)
        elif c.isprintable():
            out.append(c)
        else:
            out.append(f"\\u{ord(c):04x}" if ord(c) < 0x10000 else f"\\U{ord(c):08x}")
    return f'"{"".join(out)}"'
