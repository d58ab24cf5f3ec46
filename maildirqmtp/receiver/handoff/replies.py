"""Replies of SMTP and LMTP servers, from bytes (RFC 5321, 4.2).

    reply = *( code "-" text CRLF ) code [ SP text ] CRLF

The code is three digits, the first from 2 to 5, and the same on every line. A
line may end with LF alone, which smtplib and Postfix accept as well.
"""

import re
from typing import NamedTuple

#: Bytes of one line; RFC 5321, 4.5.3.1.5 says 512, and real servers write more.
MAX_LINE = 4_096
#: Lines of one reply; that to EHLO has about twenty.
MAX_LINES = 200
#: Bytes of a reply's text that are passed on to the client.
MAX_SHOWN = 500

_LINE = re.compile(rb"([2-5][0-9][0-9])(?:([ -])(.*))?", re.DOTALL)
_ENHANCED = re.compile(rb"([245]\.[0-9]{1,3}\.[0-9]{1,3})(?: |$)")


class ReplyError(Exception):
    """The server sent something that is not a reply; the connection cannot be used any more."""


class Reply(NamedTuple):
    """A reply: its code, and the text of each line after the code."""

    code: int
    lines: tuple[bytes, ...]

    @property
    def text(self) -> bytes:
        """Code and text in one line of at most `MAX_SHOWN` bytes."""
        joined = b" ".join((b"%d" % self.code, *self.lines))
        return re.sub(rb"[\x00-\x20\x7f]+", b" ", joined)[:MAX_SHOWN].rstrip()

    @property
    def enhanced(self) -> str:
        """The enhanced status code (RFC 2034) as in `5.1.1`; empty if there is none."""
        match = _ENHANCED.match(self.lines[-1])
        return match[1].decode() if match is not None else ""

    @property
    def is_positive(self) -> bool:
        """True for 2xx: done as asked."""
        return 200 <= self.code < 300


class ReplyReader:
    """Turns the server's bytes into replies.

    Call `feed`, then `next` until it returns None, which means that it needs more. `next`
    raises `ReplyError` for anything that is not a reply, or is longer than the limits.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._lines: list[bytes] = []
        self._code = 0

    @property
    def empty(self) -> bool:
        """True if no part of a reply is held."""
        return not self._buffer and not self._lines

    def feed(self, data: bytes) -> None:
        """Take bytes in."""
        self._buffer += data

    def next(self) -> Reply | None:
        """Return the next complete reply, or None. Raises `ReplyError`; see the class."""
        while (end := self._buffer.find(b"\n")) >= 0:
            line = bytes(self._buffer[:end]).removesuffix(b"\r")
            del self._buffer[: end + 1]
            if self._take(line):
                reply = Reply(self._code, tuple(self._lines))
                self._lines.clear()
                return reply
        if len(self._buffer) > MAX_LINE:
            raise ReplyError(f"a line of a reply is longer than {MAX_LINE} bytes")
        return None

    def _take(self, line: bytes) -> bool:
        """Take a line; return True if it is the last of its reply."""
        match = _LINE.fullmatch(line)
        if match is None or len(line) > MAX_LINE:
            raise ReplyError("not a reply of an SMTP server")
        code = int(match[1])
        if self._lines and code != self._code:
            raise ReplyError(f"a reply begins with {self._code} and goes on with {code}")
        if len(self._lines) >= MAX_LINES:
            raise ReplyError(f"a reply of more than {MAX_LINES} lines")
        self._code = code
        self._lines.append(match[3] or b"")
        return match[2] != b"-"
