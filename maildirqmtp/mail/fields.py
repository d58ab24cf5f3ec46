"""The header of a message as its fields, each kept as it is written (RFC 5322, 2.2)."""

import re
from collections.abc import Iterable
from typing import NamedTuple

# A field's name and colon; blanks before the colon are obsolete (RFC 5322, 4.5).
_NAME = re.compile(rb"([!-9;-~]{1,200})[ \t]*:")

# Bytes of a name in one encoded word of at most 75 characters (RFC 2047, 2): base64 makes 4 of 3.
_WORD_BYTES = 39
_ATOMS = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~\- ]+")


class Field(NamedTuple):
    """One field: its name in lower case, and all its lines, with their ends."""

    name: bytes
    raw: bytes

    @property
    def value(self) -> bytes:
        """What is after the colon, still folded."""
        return self.raw.partition(b":")[2]


class Head(NamedTuple):
    """The header of a message, and where its body begins.

    `body_at` is the index after the empty line; if there is none, of the first
    line that belongs to no field.
    """

    fields: tuple[Field, ...]
    body_at: int


def read(top: bytes, complete: bool) -> Head | None:
    """Split the beginning of a message, with LF line ends; return None if it is too short.

    `complete` means that there is no more of the message.
    """
    lines: list[list[bytes]] = []
    names: list[bytes] = []
    at = 0
    while True:
        end = top.find(b"\n", at) + 1
        if not end:
            if not complete:
                return None
            end = len(top)
        line = top[at:end]
        if line in (b"\n", b""):
            at = end
            break
        if line[:1] in b" \t" and lines:
            lines[-1].append(line)
        elif match := _NAME.match(line):
            names.append(match[1].lower())
            lines.append([line])
        else:
            break
        at = end
    fields = [
        Field(name, _ended(b"".join(parts))) for name, parts in zip(names, lines, strict=True)
    ]
    return Head(tuple(fields), at)


def _ended(raw: bytes) -> bytes:
    return raw if raw.endswith(b"\n") else raw + b"\n"


def join(fields: Iterable[Field]) -> bytes:
    """Return the header made of these fields, with the empty line after it."""
    return b"".join(field.raw for field in fields) + b"\n"


def phrase(name: str) -> str:
    """Return a person's name as it can stand before an address (RFC 5322, 3.2.5; RFC 2047).

    Control characters become blanks. Empty for an empty name.
    """
    name = " ".join("".join(c if c.isprintable() else " " for c in name).split())
    if not name.isascii():
        return "\n ".join(_encoded_words(name))
    if _ATOMS.fullmatch(name) and "=?" not in name:
        return name
    escaped = name.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"' if name else ""


def _encoded_words(name: str) -> Iterable[str]:
    """Yield encoded words of at most 75 characters, none of which cuts a character in two."""
    from base64 import b64encode

    part = b""
    for character in name:
        encoded = character.encode("utf-8", "replace")
        if len(part) + len(encoded) > _WORD_BYTES:
            yield f"=?utf-8?b?{b64encode(part).decode()}?="
            part = b""
        part += encoded
    yield f"=?utf-8?b?{b64encode(part).decode()}?="
