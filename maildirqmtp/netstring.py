"""Netstrings: encode, and decode incrementally within a limit.

A netstring is a decimal length without leading zeros, a colon, that many
bytes, and a comma; `0:,` is the empty one (D. J. Bernstein, netstrings.txt).

Parser contract, here and in `protocol`: a parser looks at a buffer and returns
what it found; or returns None, which means it needs more bytes; or raises, and
then no later byte can help. A length above its limit is refused, so a sender
cannot make us wait for, or set aside memory for, more than we agreed to.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from maildirqmtp.errors import NetstringError

if TYPE_CHECKING:
    from typing import Protocol

    class Readable(Protocol):
        """The part of a binary file object that is needed here."""

        def read(self, size: int, /) -> bytes:
            """Return at most `size` bytes, and b"" at the end."""
            ...


COLON = 0x3A
COMMA = 0x2C

#: Most bytes of a payload that `read` takes by default.
MAX_LENGTH = 200_000_000

_READ_BYTES = 64 << 10


def encode(data: bytes) -> bytes:
    """Return `data` as a netstring."""
    return b"%d:%b," % (len(data), data)


def parse_length(buffer: bytes | bytearray, start: int, max_length: int) -> tuple[int, int] | None:
    """Parse the length and the colon that begin a netstring.

    Returns (length in bytes, offset of the first byte after the colon), or
    None while the colon has not arrived. Raises `NetstringError` for anything
    but digits, for a leading zero, for no digit, and for a length above
    `max_length` as soon as its digits show it.
    """
    max_digits = len(str(max_length))
    colon = buffer.find(b":", start, start + max_digits + 1)
    digits = buffer[start : start + max_digits + 1] if colon < 0 else buffer[start:colon]
    if digits and not digits.isdigit():
        raise NetstringError(f"a netstring begins with {_show(digits)}, not with its length")
    if len(digits) > 1 and digits[0] == 0x30:
        raise NetstringError(f"netstring length {_show(digits)} has a leading zero")
    if digits and int(digits) > max_length:
        raise NetstringError(f"netstring length {_show(digits)} is above {max_length}")
    if colon < 0:
        return None
    if not digits:
        raise NetstringError("a netstring begins with a colon, not with its length")
    return int(digits), colon + 1


def parse(buffer: bytes | bytearray, start: int, max_length: int) -> tuple[int, int] | None:
    """Find the payload of the netstring that begins at `start`.

    Returns (first, end) of the payload, so that the next netstring begins at
    `end + 1`; or None while it is not complete. Raises `NetstringError` as
    `parse_length` does, and for a payload that no comma follows.
    """
    found = parse_length(buffer, start, max_length)
    if found is None:
        return None
    length, first = found
    end = first + length
    if len(buffer) <= end:
        return None
    if buffer[end] != COMMA:
        raise NetstringError(f"no comma after the {length} bytes of a netstring")
    return first, end


def decode(data: bytes, max_length: int | None = None) -> bytes:
    """Return the payload of `data`, which must be exactly one netstring.

    `max_length`, if given, limits the payload's bytes. Raises `NetstringError` if
    `data` is not a netstring, is cut short, or has anything after the netstring.
    """
    found = parse(data, 0, len(data) if max_length is None else max_length)
    if found is None:
        raise NetstringError("a netstring is cut short")
    first, end = found
    if end + 1 != len(data):
        raise NetstringError(f"{len(data) - end - 1} bytes follow a netstring")
    return data[first:end]


def decode_all(data: bytes, max_length: int, max_count: int) -> tuple[bytes, ...]:
    """Return the payloads of the netstrings that `data` is made of.

    Raises `NetstringError` if it is made of anything else, of more than `max_count`,
    or a payload is longer than `max_length` bytes.
    """
    payloads: list[bytes] = []
    start = 0
    while start < len(data):
        found = parse(data, start, max_length)
        if found is None:
            raise NetstringError("a list of netstrings is cut short")
        if len(payloads) == max_count:
            raise NetstringError(f"more than {max_count} netstrings in a list")
        first, end = found
        payloads.append(data[first:end])
        start = end + 1
    return tuple(payloads)


def is_valid(data: bytes) -> bool:
    """Return whether `data` is exactly one netstring."""
    try:
        decode(data)
    except NetstringError:
        return False
    return True


def read(file: Readable, max_length: int = MAX_LENGTH) -> bytes | None:
    """Read one netstring from a binary file object; return its payload, None at the end.

    Reads no byte beyond the netstring, and at most 64 KiB at a time. The file must
    not be non-blocking. Raises `NetstringError` for anything but a netstring, for one
    cut short, and for a payload above `max_length` bytes.
    """
    head = file.read(1)
    if not head:
        return None
    while (found := parse_length(head, 0, max_length)) is None:
        head += _some(file, 1)
    left = found[0]
    parts = []
    while left:
        parts.append(_some(file, min(left, _READ_BYTES)))
        left -= len(parts[-1])
    if _some(file, 1) != b",":
        raise NetstringError(f"no comma after the {found[0]} bytes of a netstring")
    return b"".join(parts)


def _some(file: Readable, count: int) -> bytes:
    data = file.read(count)
    if not data:
        raise NetstringError("a netstring is cut short")
    return data


def _show(digits: bytes | bytearray) -> str:
    return ascii(bytes(digits))[1:]
