"""A message on its way to some recipients, as a connection sees it.

It has what `send_buffer` and `pipeline` need of a message, and its answers. Subclasses
are the forwarder's `QueuedMessage` and the library's `SendRequest`.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Generic, TypeVar

from maildirqmtp.qmtp.protocol import ENCODING_LF

if TYPE_CHECKING:
    from maildirqmtp.response import Response


class FilePiece:
    """A part of a file that is still to be sent: `left` bytes from `offset` of `fd`."""

    __slots__ = ("fd", "left", "offset")

    def __init__(self, fd: int, offset: int, left: int) -> None:
        self.fd = fd
        self.offset = offset
        self.left = left


Piece = FilePiece | memoryview


class OutgoingMessage:
    """A message and its envelope.

    `sender` and `recipients` are as the server gets them; recipients before index
    `next` have been put into a package. The text is `length` bytes. `answers` has a
    response or None for each recipient, `unanswered` counts the Nones.
    `doubtful` are the indices of recipients whose package was sent whole and never
    answered. `bytes_out`: how much of a package had arrived when the connection ended.
    `reason` says why this side stopped sending it. `alone`: nothing else may be in
    flight with it, because it may be what ends connections.
    """

    __slots__ = (
        "alone",
        "answers",
        "bytes_out",
        "doubtful",
        "length",
        "next",
        "reason",
        "recipients",
        "sender",
        "unanswered",
    )

    #: First byte of the message (qmtp.txt, section 4).
    encoding = ENCODING_LF

    def __init__(self, sender: bytes, recipients: tuple[bytes, ...], length: int) -> None:
        self.sender = sender
        self.recipients = recipients
        self.length = length
        self.next = 0
        self.unanswered = len(recipients)
        self.answers: list[Response | None] = [None] * self.unanswered
        self.doubtful: tuple[int, ...] = ()
        self.bytes_out = 0
        self.reason = ""
        self.alone = False

    def owed(self) -> list[int]:
        """Return the indices of the recipients without an answer."""
        return [index for index, answer in enumerate(self.answers) if answer is None]

    def append_to(self, into: bytearray) -> "Sequence[Piece]":
        """Append the text, or its beginning; return the pieces to be streamed after it.

        Called once for each of its packages.
        """
        raise NotImplementedError

    def release(self) -> None:
        """Drop the text in memory: its last package has been put."""
        raise NotImplementedError

    def close(self) -> None:
        """Close the files: nothing more of it will be read. Idempotent."""
        raise NotImplementedError

    @property
    def label(self) -> str:
        """Its name in logs and errors; printable."""
        raise NotImplementedError


#: What is sent: the forwarder's queued messages, or the library's requests.
MessageT = TypeVar("MessageT", bound=OutgoingMessage)


class PackageBatch(Generic[MessageT]):
    """Packages to one recipient each, put as one piece: `data`.

    Those from index `next` on are unanswered. `sizes` are their lengths in bytes; `ends`,
    once they are put, the offsets in the connection's stream of the byte after each. An
    accepted package never becomes an object of its own; any other does, by `expand`.
    """

    __slots__ = ("data", "ends", "next", "sizes")

    def __init__(self, data: bytes, sizes: list[int]) -> None:
        self.data = data
        self.sizes = sizes
        self.ends: list[int] = []
        self.next = 0

    @property
    def end(self) -> int:
        """The offset in the stream of the byte after the oldest unanswered package."""
        return self.ends[self.next]

    def expand(self, index: int) -> MessageT:
        """Return one of its messages as an object; its text is dropped."""
        raise NotImplementedError


class PackageInFlight(Generic[MessageT]):
    """A package in flight, to `recipients[first:stop]` of a message.

    Those from index `next` on are unanswered. `size` is its length in bytes, `end`
    the offset in the connection's stream of the byte after its last one.
    """

    __slots__ = ("end", "first", "message", "next", "size", "stop")

    def __init__(self, message: MessageT, first: int, stop: int, size: int, end: int) -> None:
        self.message = message
        self.first = self.next = first
        self.stop = stop
        self.size = size
        self.end = end

    def note_arrived(self, stream_bytes: int) -> None:
        """Note on the message how much of the package is in the stream's first `stream_bytes`."""
        out = min(stream_bytes - self.end, 0) + self.size
        self.message.bytes_out = max(self.message.bytes_out, out)
