"""The text of a message as SMTP carries it: CR LF after each line, dots doubled.

Lines of the input end with LF; those with CR LF stay as they are. A CR alone, or
a NUL, cannot be sent in a way that every server reads alike (RFC 5321, 2.3.8 and
4.1.1.4), and is refused.
"""

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

_BARE_CR = re.compile(rb"\r(?!\n)")


class TextFeatures(NamedTuple):
    """What has to be known about a text before it is sent.

    `size` is its length in bytes with CR LF after each line, dots not doubled
    (RFC 1870, 4); `is_8bit` is true if a byte is not ASCII; `fault` says why it
    cannot be sent, and is empty if it can.
    """

    size: int
    is_8bit: bool
    fault: str


def features(pieces: Iterable[bytes]) -> TextFeatures:
    """Read a text and return its features. Raises what reading `pieces` raises."""
    size = 0
    is_8bit = False
    fault = ""
    previous = b""
    last = b"\n"
    for piece in pieces:
        if not piece:
            continue
        if b"\0" in piece:
            fault = "the message has a NUL in it"
        is_8bit = is_8bit or not piece.isascii()
        size += len(piece)
        if piece.startswith(b"\n"):
            size += previous != b"\r"
        elif previous == b"\r":
            fault = fault or "the message has a CR without LF in it"
        size += piece.count(b"\n") - piece.startswith(b"\n") - piece.count(b"\r\n")
        previous = piece[-1:]
        body = piece[:-1] if previous == b"\r" else piece
        if not fault and _BARE_CR.search(body):
            fault = "the message has a CR without LF in it"
        last = previous
    if last == b"\r":
        fault = fault or "the message has a CR without LF in it"
    return TextFeatures(size + (0 if last == b"\n" else 2), is_8bit, fault)


def for_smtp(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Yield a text as it is sent after DATA (RFC 5321, 4.5.2).

    Its last line is a dot alone. The text must have no `fault`.
    """
    held = b""
    at_line_start = True
    for piece in pieces:
        # The CR that ends this piece belongs to the LF that begins the next one.
        data = held + piece
        held = b"\r" if data.endswith(b"\r") else b""
        data = data.removesuffix(b"\r").replace(b"\r\n", b"\n")
        if not data:
            continue
        starts_with_dot = at_line_start and data.startswith(b".")
        at_line_start = data.endswith(b"\n")
        data = data.replace(b"\n.", b"\n..").replace(b"\n", b"\r\n")
        yield b"." + data if starts_with_dot else data
    yield b".\r\n" if at_line_start else b"\r\n.\r\n"
