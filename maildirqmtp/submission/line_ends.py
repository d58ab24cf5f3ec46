"""The lines of a message as a program writes them to sendmail: CR LF or LF, and the lone dot."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_DOT_LINE = b"\n.\n"


def unix_lines(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Yield a message with each CR LF as LF, as Postfix's sendmail does; other CRs stay."""
    held = b""
    for piece in pieces:
        data = held + piece
        # Its LF may begin the next piece.
        held = b"\r" if data.endswith(b"\r") else b""
        yield data.removesuffix(b"\r").replace(b"\r\n", b"\n")
    yield held


class UntilDot:
    """A message that ends before a line of one dot, as without -i; its lines end with LF.

    After iterating, `more` is true if text was seen to follow that line.
    """

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = pieces
        self.more = False

    def __iter__(self) -> Iterator[bytes]:
        """Yield all of the message."""
        # The first line may be the dot, too: it gets a line end before it, which is removed again.
        held, skip = b"\n", 1
        for piece in self._pieces:
            data = held + piece
            at = data.find(_DOT_LINE)
            if at >= 0:
                self.more = bool(data[at + len(_DOT_LINE) :].strip())
                yield data[skip : at + 1]
                return
            kept = _beginning_of_dot(data)
            held = data[len(data) - kept :]
            if len(data) - kept > skip:
                yield data[skip : len(data) - kept]
                skip = 0
            else:
                skip -= len(data) - kept
        yield (held.removesuffix(b".") if held.endswith(b"\n.") else held)[skip:]


def _beginning_of_dot(data: bytes) -> int:
    """Return how many bytes at the end may belong to a line of one dot."""
    return next(size for size in (2, 1, 0) if data.endswith(_DOT_LINE[:size]))
