"""Types of values: how each is written on a command line, in TOML and in the help.

`to_text` writes what `parse` reads, and `to_toml` what `from_toml` reads.
`parse` and `from_toml` take `where`, the name that an error begins with
(`--window`, `window`), and raise `ConfigError` if the value is wrong.
"""

from __future__ import annotations

import os
from typing import Generic, TypeVar

from maildirqmtp.errors import ConfigError
from maildirqmtp.settings.units import check_seconds, parse_seconds

T = TypeVar("T")

#: TOML's integers have no limit, but `str` refuses those of thousands of digits.
_MAX_NUMBER = 10**12


class ValueType(Generic[T]):
    """The base of all types. `metavar` stands for the value in the help."""

    #: What a TOML value has to be; part of the error about one of another type.
    wanted = "a text in quotes"

    def __init__(self, metavar: str = "") -> None:
        self.metavar = metavar

    def parse(self, text: str, where: str) -> T:
        """Read the text of a flag."""
        raise NotImplementedError

    def to_text(self, value: T) -> str:
        """Write a value as `parse` reads it."""
        raise NotImplementedError

    def from_toml(self, value: object, where: str) -> T:
        """Read a value of a configuration file."""
        if isinstance(value, str):
            return self.parse(value, where)
        raise self.wrong(value, where)

    def to_toml(self, value: T) -> str:
        """Write a value as `from_toml` reads it."""
        return quoted(self.to_text(value))

    def wrong(self, value: object, where: str) -> ConfigError:
        """Return the error for a TOML value of another type."""
        found = {bool: "true or false", str: "a text", list: "an array", dict: "a table"}
        found |= {int: "a number", float: "a number"}
        return ConfigError(
            f"{where}: {self.wanted} is needed, not {found.get(type(value), 'a date or time')}"
        )


class TextType(ValueType[str]):
    """A text as it is."""

    def parse(self, text: str, where: str) -> str:
        return text

    def to_text(self, value: str) -> str:
        return value


class ChoiceType(TextType):
    """One of a few words."""

    def __init__(self, *words: str) -> None:
        super().__init__("|".join(words))
        self._words = words
        self.wanted = " or ".join([f'"{word}"' for word in words])

    def parse(self, text: str, where: str) -> str:
        if text not in self._words:
            raise ConfigError(f"{where}: {' or '.join(self._words)} is needed, not {text!r}")
        return text


class BytesType(ValueType[bytes]):
    """Bytes, as the file system has them: those that are not UTF-8 stay as they are."""

    def parse(self, text: str, where: str) -> bytes:
        return os.fsencode(text)

    def to_text(self, value: bytes) -> str:
        return os.fsdecode(value)


class PathType(BytesType):
    """A path. In a file, which no shell reads, `~` is the home directory."""

    wanted = "a path in quotes"

    def parse(self, text: str, where: str) -> bytes:
        if not text:
            raise ConfigError(f"{where}: a path is needed")  # $UNSET in a script
        return super().parse(text, where)

    def from_toml(self, value: object, where: str) -> bytes:
        if isinstance(value, str):
            return self.parse(expanded(value, where), where)
        raise self.wrong(value, where)

    def to_toml(self, value: bytes) -> str:
        return quoted(unexpanded(os.fsdecode(value)))


class NumberType(ValueType[int]):
    """A whole number of at most nine digits."""

    wanted = "a whole number"

    def parse(self, text: str, where: str) -> int:
        if not (text.isascii() and text.isdigit() and len(text) <= 9):
            raise ConfigError(f"{where}: a number is needed, not {text!r}")
        return int(text)

    def to_text(self, value: int) -> str:
        return str(value)

    def from_toml(self, value: object, where: str) -> int:
        if type(value) is not int:
            raise self.wrong(value, where)
        return self.parse(digits(value, where), where)

    def to_toml(self, value: int) -> str:
        return self.to_text(value)


class CountType(NumberType):
    """A whole number from 1 to `most`."""

    def __init__(self, metavar: str = "", most: int = 100) -> None:
        super().__init__(metavar)
        self._most = most

    def parse(self, text: str, where: str) -> int:
        number = super().parse(text, where)
        if not 1 <= number <= self._most:
            raise ConfigError(f"{where}: a number from 1 to {self._most} is needed, not {text!r}")
        return number


class DurationType(ValueType[float]):
    """A time in seconds, up to 100 years; more than 0 if `positive`, and at least `least_s`."""

    wanted = 'a time as in "90s", or a number of seconds,'

    def __init__(
        self, metavar: str = "TIME", *, positive: bool = True, least_s: float = 0.0
    ) -> None:
        super().__init__(metavar)
        self._positive = positive
        self._least_s = least_s

    def parse(self, text: str, where: str) -> float:
        return self._checked(parse_seconds(text, where), where, repr(text))

    def to_text(self, value: float) -> str:
        if value % 1:
            return repr(value)
        for unit, length in (("d", 86_400), ("h", 3_600), ("m", 60)):
            # "60s" is plainer than "1m".
            if value > 60 and value % length == 0:
                return f"{value / length:.0f}{unit}"
        return f"{value:.0f}s"

    def from_toml(self, value: object, where: str) -> float:
        if isinstance(value, str):
            return self.parse(value, where)
        if type(value) is int:
            shown = digits(value, where)
        elif type(value) is float:
            shown = repr(value)
        else:
            raise self.wrong(value, where)
        check_seconds(value, where, shown)
        return self._checked(float(value), where, shown)

    def to_toml(self, value: float) -> str:
        text = self.to_text(value)
        return quoted(text) if text[-1] in "smhd" else text

    def _checked(self, seconds: float, where: str, shown: str) -> float:
        if self._positive and seconds <= 0:
            raise ConfigError(f"{where}: more than 0 seconds are needed, not {shown}")
        if seconds < self._least_s:
            least = self.to_text(self._least_s)
            raise ConfigError(f"{where}: at least {least} is needed, not {shown}")
        return seconds


class SwitchType(ValueType[bool]):
    """On or off. The flag takes no value and means on; with `both_ways`, `--no-FLAG` means off."""

    wanted = "true or false"

    def __init__(self, *, both_ways: bool = False) -> None:
        super().__init__()
        self.both_ways = both_ways

    def from_toml(self, value: object, where: str) -> bool:
        if not isinstance(value, bool):
            raise self.wrong(value, where)
        return value

    def to_toml(self, value: bool) -> str:
        return "true" if value else "false"


class AddressType(BytesType):
    """An address of the envelope, quoted where it has to be; kept raw.

    `what` is sender or recipient; only a sender may be empty.
    """

    def __init__(self, what: str) -> None:
        super().__init__("ADDRESS")
        self._what = what

    def parse(self, text: str, where: str) -> bytes:
        from maildirqmtp.mail import addresses

        try:
            return addresses.parse(os.fsencode(text), self._what)
        except ValueError as error:
            raise ConfigError(f"{where}: {error}") from None

    def to_text(self, value: bytes) -> str:
        from maildirqmtp.mail import addresses

        return os.fsdecode(addresses.quote(value))


class HostNameType(TextType):
    """A host's name, as it can stand in every header field (RFC 1123, 2.1)."""

    wanted = "a name in quotes"

    def parse(self, text: str, where: str) -> str:
        plain = text.isascii() and text.replace("-", "x").replace(".", "x").isalnum()
        if not plain or text[0] in ".-" or text[-1] in ".-" or ".." in text or len(text) > 253:
            raise ConfigError(f"{where}: a name as in mail.example.org is needed, not {text!r}")
        return text


class ListType(ValueType[tuple[T, ...]]):
    """Several values, each once: the flag may be repeated; in a file, a text or an array."""

    wanted = "a text or an array of texts"

    def __init__(self, element: ValueType[T]) -> None:
        super().__init__(element.metavar)
        self._element = element

    def parse(self, text: str, where: str) -> tuple[T, ...]:
        return (self._element.parse(text, where),)

    def from_toml(self, value: object, where: str) -> tuple[T, ...]:
        found: list[T] = []
        for text in value if isinstance(value, list) else [value]:
            if not isinstance(text, str):
                raise self.wrong(text, where)
            found += self.parse(text, where)
        return tuple(dict.fromkeys(found))

    def to_toml(self, value: tuple[T, ...]) -> str:
        return f"[{', '.join(self._element.to_toml(one) for one in value)}]"


def digits(value: int, where: str) -> str:
    """Write an integer of TOML. Raises `ConfigError` if it has more than twelve digits."""
    if abs(value) >= _MAX_NUMBER:
        raise ConfigError(f"{where}: the number is too large")
    return str(value)


def expanded(path: str, where: str) -> str:
    """Expand `~` at the start of a path. Raises `ConfigError` for no path, or no such user."""
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
    """Return a basic string of TOML. Raises `ConfigError` if the text is not UTF-8."""
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
