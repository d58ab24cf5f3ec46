"""QMTP without I/O: packages to bytes and bytes to responses.

This is the client's half; `package_reader` is the server's.

    package   = netstring(message) netstring(sender) netstring(recipients)
    message   = one byte, 0x0a or 0x0d, then the text as it is
    recipients= netstring(recipient), one or more, run together
    response  = netstring(K | Z | D, then a text), one per recipient, in order

What the states of a connection allow, as the client sees it:

    | owed responses | a response comes             | the server closes        |
    | -------------- | ---------------------------- | ------------------------ |
    | none           | violation                    | clean                    |
    | some           | belongs to the oldest        | all that are owed: doubt |
    | oldest unsent  | violation (before last byte) | unsent is not in doubt   |

The last two columns are the pipeline's business; this module knows bytes.

Source: qmtp.txt, sections 2 to 5.
"""

import re
from collections.abc import Sequence

from maildirqmtp import netstring
from maildirqmtp.errors import NetstringError, ProtocolError
from maildirqmtp.response import Response as Response
from maildirqmtp.response import Status as Status
from maildirqmtp.text import printable

#: First byte of a message whose lines end with LF (qmtp.txt, section 4, encoding #2).
ENCODING_LF = b"\n"
#: First byte of a message whose lines end with CR LF (encoding #1).
ENCODING_CRLF = b"\r"

#: Bytes. Longest response taken; real ones are under 100.
MAX_RESPONSE = 65_536
#: Bytes of a response that are kept; the rest is read and dropped.
MAX_RESPONSE_KEPT = 2_000
#: Bytes. qmail-qmtpd refuses senders and recipients of 1,000 bytes or more.
MAX_ADDRESS = 999
#: Bytes. qmail-qmtpd gives up at netstring lengths above about this.
MAX_MESSAGE = 200_000_000
#: Recipients of one message, and in one package.
MAX_RECIPIENTS = 10_000


# Looking a member up in its enumeration takes four times as long, for each response.
ACCEPTED, DEFERRED, FAILED = Status.ACCEPTED, Status.DEFERRED, Status.FAILED

# Only to be quick about what nearly always comes.
_USUAL_RESPONSE = re.compile(rb"([1-9][0-9]{0,3}):[KZD]")
_STATUS_OF_BYTE = {ord(status.value): status for status in Status}


def check_address(address: bytes, what: str) -> str | None:
    """Say why `address` cannot be sent, or None when it can.

    `what` is "sender" or "recipient". qmail-qmtpd refuses 1,000 bytes and
    more, and NUL; no delivery agent can write LF or CR on one line.
    """
    if len(address) > MAX_ADDRESS:
        return f"{what} of {len(address)} bytes; servers take at most {MAX_ADDRESS}"
    for byte, name in ((b"\0", "NUL"), (b"\n", "LF"), (b"\r", "CR")):
        if byte in address:
            return f"{what} {printable(address)} has a {name} in it"
    return None


def package_head(text_length: int, encoding: bytes = ENCODING_LF) -> bytes:
    """Return what stands before the text of a message of `text_length` bytes."""
    return b"%d:%b" % (text_length + 1, encoding)


def package_tail(sender: bytes, recipients: Sequence[bytes]) -> bytes:
    """Return what stands after the text: a comma, the sender and the recipients."""
    if len(recipients) == 1:  # nearly always
        inner = b"%d:%b," % (len(recipients[0]), recipients[0])
    else:
        inner = b"".join([b"%d:%b," % (len(r), r) for r in recipients])
    return b",%d:%b,%d:%b," % (len(sender), sender, len(inner), inner)


class ResponseReader:
    """Turns the server's bytes into responses, one at a time.

    `feed` bytes as they come, then call `next` until it returns None (it needs
    more) or raises (`ProtocolError`: close; nothing after it means anything).
    Holds at most `MAX_RESPONSE` and what one `feed` brought.

    `broken` is true after a refusal whose length is one too small, as two of
    s/qmail's are (`66:` before 67 bytes): the refusal counts, but the
    connection is to be closed. Only a D is taken so: a K that is not framed
    right is no acceptance.
    """

    __slots__ = ("_before", "_buffer", "_response", "_start", "broken")

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._start = 0
        self.broken = False
        # The bytes of the last usual response, and what they say: many servers say it each time.
        self._before = b""
        self._response: Response | None = None

    @property
    def pending(self) -> int:
        """Bytes of a response that is not complete yet."""
        return len(self._buffer) - self._start

    def feed(self, data: bytes) -> None:
        """Take bytes in."""
        if self._start:
            del self._buffer[: self._start]
            self._start = 0
        self._buffer += data

    def next(self) -> Response | None:
        """Return the next complete response, or None."""
        buffer = self._buffer
        if self._response is not None and buffer.startswith(self._before, self._start):
            self._start += len(self._before)
            return self._response
        usual = _USUAL_RESPONSE.match(buffer, self._start)
        if usual is not None:
            first = usual.end() - 1
            end = first + int(usual[1])
            if end < len(buffer) and buffer[end] == netstring.COMMA:
                self._before = bytes(buffer[self._start : end + 1])
                self._start = end + 1
                text = bytes(buffer[first + 1 : min(end, first + 1 + MAX_RESPONSE_KEPT)])
                self._response = Response(_STATUS_OF_BYTE[buffer[first]], text)
                return self._response
        return self._next_unusual()

    def _next_unusual(self) -> Response | None:
        """Do the work of `next` for anything else: incomplete, long, or wrong."""
        buffer = self._buffer
        try:
            head = netstring.parse_length(buffer, self._start, MAX_RESPONSE)
        except NetstringError as error:
            raise self._violation(f"response is no netstring ({error})") from None
        if head is None:
            return None
        length, first = head
        if not length:
            raise self._violation("empty response")
        end = first + length
        if len(buffer) <= end:
            return None
        status = _STATUS_OF_BYTE.get(buffer[first])
        if status is None:
            raise self._violation("response is none of K, Z and D")
        if buffer[end] != netstring.COMMA:
            if status is not Status.FAILED:
                raise self._violation("response without a comma after it")
            if len(buffer) == end + 1:
                return None
            if buffer[end + 1] != netstring.COMMA:
                raise self._violation("response without a comma after it")
            end += 1
            self.broken = True
        self._start = end + 1
        return Response(status, bytes(buffer[first + 1 : min(end, first + 1 + MAX_RESPONSE_KEPT)]))

    def _violation(self, what: str) -> ProtocolError:
        shown = printable(bytes(self._buffer[self._start : self._start + 60]))
        return ProtocolError(f"{what}: {shown!r}")
