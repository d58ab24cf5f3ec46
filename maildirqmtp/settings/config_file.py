"""A configuration file: its text, its tables, and the line that each key is on."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from maildirqmtp.errors import ConfigError
from maildirqmtp.text import printable, printable_text

if TYPE_CHECKING:
    from typing import Any

#: Keys and, in arrays, indices, from the outermost table inwards.
TomlPath = tuple[str | int, ...]

#: Room for some ten thousand routes.
MAX_BYTES = 4 << 20
#: Characters that are shown of a line that is no TOML.
_SHOWN_MAX = 60
# What the last line of a statement has in it: a key's value, or the end of what has several lines.
_ENDS = ("=", "]", '"""', "'''")
_LINE = re.compile(r"\(at line (\d+), column \d+\)$")


class ConfigFile:
    """A TOML file, read and parsed.

    Raises `ConfigError` if it cannot be read, is larger than `MAX_BYTES`, or is not
    UTF-8 or TOML.
    """

    def __init__(self, path: str) -> None:
        import tomllib

        if not path:  # $UNSET in a script
            raise ConfigError("--config: a file is needed")
        self.name = printable(os.fsencode(path))
        try:
            with open(path, "rb") as file:
                raw = file.read(MAX_BYTES + 1)
        except OSError as error:
            raise ConfigError(f"cannot read {self.name}: {error.strerror}") from None
        except ValueError as error:  # a NUL in the path
            raise ConfigError(f"cannot read {self.name}: {error}") from None
        if len(raw) > MAX_BYTES:
            raise ConfigError(f"{self.name}: larger than {MAX_BYTES} bytes; is it the right file?")
        try:
            # A byte order mark, which some editors write first, is not TOML. Line ends are
            # changed as tomllib changes them before it counts lines.
            self.text = raw.decode("utf-8-sig").replace("\r\n", "\n")
        except UnicodeDecodeError as error:
            line = raw.count(b"\n", 0, error.start) + 1
            raise ConfigError(
                f"{self.name}, line {line}: not UTF-8, which TOML has to be"
            ) from None
        try:
            self.tables: dict[str, Any] = tomllib.loads(self.text)
        except RecursionError:
            raise ConfigError(f"{self.name}: nested too deeply") from None
        except ValueError as error:  # TOMLDecodeError, or an integer of thousands of digits
            raise ConfigError(f"{self.name}: {self._with_line(str(error))}") from None

    def _with_line(self, message: str) -> str:
        """Return what tomllib says, which names the line at its end, with that line's text."""
        if (place := _LINE.search(message)) is None:
            return message
        text = self.text.split("\n")[int(place[1]) - 1].strip()[:_SHOWN_MAX]
        hint = " (text is written in quotes)" if message.startswith("Invalid value") else ""
        return f"{message}: {printable_text(text)}{hint}"

    def at(self, place: TomlPath) -> dict[str, Any]:
        """Return the table at a place, which must have one."""
        found: Any = self.tables
        for part in place:
            found = found[part]
        assert isinstance(found, dict)
        return found

    def wrong(self, key: TomlPath, message: str) -> ConfigError:
        """Return an error with this message, which names the file and the line of `key`."""
        return ConfigError(f"{self.name}, line {self.line(key)}: {message}")

    def line(self, key: TomlPath) -> int:
        """Return the line, from 1, on which the statement begins that brings in a key.

        tomllib does not tell. But a file that is cut off amid a statement is an
        error, and a file that is cut off between two statements is not: so the line is
        the one after the longest part of the latter kind that does not have the key. Lines
        without one of `_ENDS` end no statement.
        """
        lines = self.text.split("\n")
        ends = [n for n, line in enumerate(lines, 1) if any(end in line for end in _ENDS)]
        without, begin, with_it = 0, 0, len(ends)
        while begin < with_it:
            middle = (begin + with_it) // 2
            for at in (*range(middle, begin - 1, -1), *range(middle + 1, with_it)):
                found = self._has(key, "\n".join(lines[: ends[at]]))
                if found is not None:
                    break
            else:
                break
            if found:
                with_it = at
            else:
                begin, without = at + 1, ends[at]
        while not lines[without].split("#")[0].strip():
            without += 1
        return without + 1

    @staticmethod
    def _has(key: TomlPath, text: str) -> bool | None:
        """Return whether a part of the file has a key; None if it ends amid a statement."""
        import tomllib

        try:
            found: Any = tomllib.loads(text)
        except tomllib.TOMLDecodeError:
            return None
        try:
            for part in key:
                found = found[part]
        except (KeyError, IndexError):
            return False
        return True
