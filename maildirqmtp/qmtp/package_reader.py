"""QMTP without I/O, the server's half: bytes to packages.

The states of a package, in the order of the wire (qmtp.txt, section 3):

    LENGTH --"123:"--> ENCODING --one byte--> TEXT --all of it, ","--> SENDER
      ^                                                                  |
      +----------- PackageEnd <-- RECIPIENTS <--------- netstring -------+

The text is handed on as it comes, so that a message of any size passes through
bounded memory. A client may go away before the last byte of a package; then
there is no `PackageEnd`, and the caller must discard what came of the package.
"""

from dataclasses import dataclass
from enum import Enum, auto

from maildirqmtp import netstring
from maildirqmtp.errors import ProtocolError
from maildirqmtp.qmtp.protocol import ENCODING_CRLF, ENCODING_LF, MAX_MESSAGE, MAX_RECIPIENTS

#: The most bytes of a sender that are read; the server decides whether to accept it.
MAX_SENDER = 65_536
#: Bytes of all recipients together, with their lengths and commas.
MAX_RECIPIENTS_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class MessageStart:
    """A message begins; `length` bytes of text will follow."""

    length: int
    encoding: bytes


@dataclass(frozen=True, slots=True)
class MessageData:
    """A piece of the text, in the client's encoding."""

    data: bytes


@dataclass(frozen=True, slots=True)
class PackageEnd:
    """The last byte of the package has come; each recipient is owed a response."""

    sender: bytes
    recipients: tuple[bytes, ...]


Event = MessageStart | MessageData | PackageEnd


class _State(Enum):
    LENGTH = auto()
    ENCODING = auto()
    TEXT = auto()
    TEXT_COMMA = auto()
    SENDER = auto()
    RECIPIENTS = auto()


class PackageReader:
    """Turns a client's bytes into events; `feed`, then `next` until it returns None.

    `next` raises `ProtocolError` for bytes that are no package and for a
    message above `max_message` bytes; then the connection must be closed.
    Holds at most `MAX_RECIPIENTS_BYTES` and what one `feed` brought.
    """

    __slots__ = ("_buffer", "_left", "_max_message", "_sender", "_start", "_state")

    def __init__(self, max_message: int = MAX_MESSAGE) -> None:
        self._buffer = bytearray()
        self._start = 0
        self._state = _State.LENGTH
        self._max_message = max_message
        self._left = 0
        self._sender = b""

    @property
    def between_packages(self) -> bool:
        """True if the client may close now without losing anything."""
        return self._state is _State.LENGTH and self._start == len(self._buffer)

    def feed(self, data: bytes) -> None:
        """Add bytes that have come."""
        if self._start:
            del self._buffer[: self._start]
            self._start = 0
        self._buffer += data

    def next(self) -> Event | None:
        """Return the next event, or None when more bytes are needed."""
        if self._state is _State.LENGTH and not self._read_length():
            return None
        if self._state is _State.ENCODING:
            return self._message_start()
        if self._state is _State.TEXT:
            return self._text()
        if self._state is _State.TEXT_COMMA and not self._read_comma():
            return None
        return self._envelope()

    def _read_length(self) -> bool:
        """Read the message's length; return False if more bytes are needed."""
        head = netstring.parse_length(self._buffer, self._start, self._max_message + 1)
        if head is None:
            return False
        self._left, self._start = head
        if not self._left:
            raise ProtocolError("a message without even its encoding byte")
        self._state = _State.ENCODING
        return True

    def _read_comma(self) -> bool:
        """Read the comma after the text; return False if more bytes are needed."""
        if self._start == len(self._buffer):
            return False
        if self._buffer[self._start] != netstring.COMMA:
            raise ProtocolError("no comma after the message")
        self._start += 1
        self._state = _State.SENDER
        return True

    def _envelope(self) -> PackageEnd | None:
        if self._state is _State.SENDER:
            sender = self._netstring(MAX_SENDER)
            if sender is None:
                return None
            self._sender = sender
            self._state = _State.RECIPIENTS
        inner = self._netstring(MAX_RECIPIENTS_BYTES)
        if inner is None:
            return None
        recipients = netstring.decode_all(inner, MAX_RECIPIENTS_BYTES, MAX_RECIPIENTS)
        self._state = _State.LENGTH
        return PackageEnd(self._sender, recipients)

    def _message_start(self) -> MessageStart | None:
        encoding = bytes(self._buffer[self._start : self._start + 1])
        if not encoding:
            return None
        if encoding not in (ENCODING_LF, ENCODING_CRLF):
            raise ProtocolError(f"a message begins with {encoding!r}, neither LF nor CR")
        self._start += 1
        self._left -= 1
        self._state = _State.TEXT if self._left else _State.TEXT_COMMA
        return MessageStart(self._left, encoding)

    def _text(self) -> MessageData | None:
        data = bytes(self._buffer[self._start : self._start + self._left])
        if not data:
            return None
        self._start += len(data)
        self._left -= len(data)
        if not self._left:
            self._state = _State.TEXT_COMMA
        return MessageData(data)

    def _netstring(self, max_length: int) -> bytes | None:
        found = netstring.parse(self._buffer, self._start, max_length)
        if found is None:
            return None
        first, end = found
        self._start = end + 1
        return bytes(self._buffer[first:end])
