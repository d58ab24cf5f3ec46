"""A server's response for one recipient: a value, no exception, because a refusal is an answer."""

from enum import Enum
from typing import NamedTuple

from maildirqmtp.text import printable


class Status(Enum):
    """The first byte of a response (qmtp.txt, section 5)."""

    ACCEPTED = "K"
    DEFERRED = "Z"
    FAILED = "D"


class Response(NamedTuple):
    """What the server says for one recipient.

    `status` says what it means: ACCEPTED, the server is responsible now;
    DEFERRED, try again later; FAILED, do not try again. `raw` is the text after
    the status byte, cut at 2,000 bytes; it comes from outside and may hold any
    bytes, so show `text` instead.
    """

    status: Status
    raw: bytes

    @property
    def text(self) -> str:
        """The server's text, safe for a terminal, a log or a bounce."""
        return printable(self.raw)

    def __str__(self) -> str:
        return f"{self.status.value}{self.text}"
