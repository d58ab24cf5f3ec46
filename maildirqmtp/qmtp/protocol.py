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

The pipeline enforces the last two columns; this module only knows bytes.

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
#: The most recipients of one message, and of a package that a server reads.
MAX_RECIPIENTS = 10_000
#: The most recipients of a package that is sent; a message to more goes in several packages.
MAX_PACKAGE_RECIPIENTS = 1_000


# Looking a member up in its enumeration takes four times as long, for each response.
ACCEPTED, DEFERRED, FAILED = Status.ACCEPTED, Status.DEFERRED, Status.FAILED

# A shortcut for nearly all responses.
_USUAL_RESPONSE = re.compile(rb"([1-9][0-9]{0,3}):[KZD]")
# How an SMTP server greets (RFC 5321, 4.2).
_SMTP = (b"220 ", b"220-")
_USUAL_ACCEPTANCE = re.compile(rb"([1-9][0-9]{0,3}):K")
_STATUS_OF_BYTE = {ord(status.value): status for status in Status}

# Two refusals of qmail-qmtpd in s/qmail 3.x and aQmail, by the length that the server
# announces: one byte too few. They are read as meant: otherwise each of them would end the
# connection, and whatever is in flight on it would be sent again.
_MISFRAMED_REFUSALS = {
    66: b"D Sorry, that domain isn't in my list of allowed rcpthosts (#5.7.1)",
    46: b"D Sorry, I can't handle that recipient (#5.1.3)",
}


def check_address(address: bytes, what: str) -> str | None:
    """Return why `address` cannot be sent, or None if it can.

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
    """Return the bytes before the text of a message of `text_length` bytes."""
    return b"%d:%b" % (text_length + 1, encoding)


def package_tail(sender: bytes, recipients: Sequence[bytes]) -> bytes:
    """Return the bytes after the text: a comma, the sender and the recipients."""
    if len(recipients) == 1:  # nearly always
        inner = b"%d:%b," % (len(recipients[0]), recipients[0])
    else:
        inner = b"".join([b"%d:%b," % (len(r), r) for r in recipients])
    return b",%d:%b,%d:%b," % (len(sender), sender, len(inner), inner)


def small_package(text: bytes, sender: bytes, recipient: bytes) -> bytes:
    """Return a whole package to one recipient; the text has LF line ends (encoding #2)."""
    inner = b"%d:%b," % (len(recipient), recipient)
    lengths = len(text) + 1, text, len(sender), sender, len(inner), inner
    return b"%d:\n%b,%d:%b,%d:%b," % lengths


class ResponseReader:
    """Turns the server's bytes into responses, one at a time.

    `feed` bytes as they come, then call `next` until it returns None (it needs
    more) or raises (`ProtocolError`: close; nothing after it means anything).
    Holds at most `MAX_RESPONSE` and what one `feed` brought.
    """

    __slots__ = ("_buffer", "_last_frame", "_last_response", "_start")

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._start = 0
        # The last usual response and its bytes: many servers send the same one again.
        self._last_frame = b""
        self._last_response: Response | None = None

    @property
    def pending(self) -> int:
        """Bytes of a response that is not complete yet."""
        return len(self._buffer) - self._start

    def feed(self, data: bytes) -> None:
        """Add bytes that have come."""
        if self._start:
            del self._buffer[: self._start]
            self._start = 0
        self._buffer += data

    def next(self) -> Response | None:
        """Return the next complete response, or None. Raises `ProtocolError` if it is malformed."""
        buffer = self._buffer
        if self._last_response is not None and buffer.startswith(self._last_frame, self._start):
            self._start += len(self._last_frame)
            return self._last_response
        usual = _USUAL_RESPONSE.match(buffer, self._start)
        if usual is not None:
            first = usual.end() - 1
            end = first + int(usual[1])
            if end < len(buffer) and buffer[end] == netstring.COMMA:
                self._last_frame = bytes(buffer[self._start : end + 1])
                self._last_response = self._take(first, end)
                return self._last_response
        return self._next_unusual()

    def take_accepted(self, most: int) -> int:
        """Take the complete responses that come next and begin with K; return their number.

        It takes `most` at most, and leaves any other or unusual response for `next`.
        """
        buffer, start, length = self._buffer, self._start, len(self._buffer)
        match = _USUAL_ACCEPTANCE.match
        count = 0
        while count < most and (head := match(buffer, start)) is not None:
            end = head.end() - 1 + int(head[1])
            if end >= length or buffer[end] != netstring.COMMA:
                break
            start = end + 1
            count += 1
        self._start = start
        return count

    def _next_unusual(self) -> Response | None:
        """Do the work of `next` for an incomplete, long or malformed response."""
        buffer = self._buffer
        try:
            head = netstring.parse_length(buffer, self._start, MAX_RESPONSE)
        except NetstringError as error:
            if buffer.startswith(_SMTP, self._start):
                raise self._violation("it speaks SMTP, not QMTP (port 209)") from None
            raise self._violation(f"response is no netstring ({error})") from None
        if head is None:
            return None
        length, first = head
        if not length:
            raise self._violation("empty response")
        end = first + length
        if len(buffer) <= end:
            return None
        if buffer[first] not in _STATUS_OF_BYTE:
            raise self._violation("response is none of K, Z and D")
        if buffer[end] != netstring.COMMA:
            return self._misframed(length, first)
        return self._take(first, end)

    def _misframed(self, length: int, first: int) -> Response | None:
        """Return a refusal that the server is known to announce one byte too short."""
        refusal = _MISFRAMED_REFUSALS.get(length, b"")
        come = self._buffer[first : first + len(refusal) + 1]
        if not refusal or not (refusal + b",").startswith(come):
            raise self._violation("response without a comma after it")
        if len(come) <= len(refusal):
            return None
        return self._take(first, first + len(refusal))

    def _take(self, first: int, end: int) -> Response:
        """Return the response in these bytes of the buffer; the next begins after its comma."""
        buffer = self._buffer
        self._start = end + 1
        text = bytes(buffer[first + 1 : min(end, first + 1 + MAX_RESPONSE_KEPT)])
        return Response(_STATUS_OF_BYTE[buffer[first]], text)

    def _violation(self, what: str) -> ProtocolError:
        shown = printable(bytes(self._buffer[self._start : self._start + 60]))
        return ProtocolError(f"{what}: {shown!r}")
