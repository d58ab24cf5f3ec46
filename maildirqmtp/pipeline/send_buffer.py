"""What goes out on a connection: bytes gathered in memory, and parts of files.

Small packages are gathered so that they share segments. A large message is
read from its file as it goes, and its last byte waits until the file has been
checked once more: until that byte is out, closing the connection takes the
package back (qmtp.txt, section 2).
"""

import os
from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Generic

from maildirqmtp.errors import FileChangedError, LocalError, TransportError
from maildirqmtp.pipeline.outgoing import FilePiece, MessageT
from maildirqmtp.transport.backlog import unacknowledged
from maildirqmtp.transport.transport import Transport

if TYPE_CHECKING:
    from maildirqmtp.pipeline.outgoing import Piece

#: Bytes that are gathered before they are sent.
GATHER_BYTES = 256 << 10


class _Stream(Generic[MessageT]):
    """The rest of a large message, and what follows it."""

    __slots__ = ("message", "pieces", "tail")

    def __init__(self, message: MessageT, pieces: "Iterable[Piece]", tail: bytes) -> None:
        self.message = message
        self.pieces = deque(pieces)
        self.tail = tail


class SendBuffer(Generic[MessageT]):
    """The sending half of a connection. Never waits, never reads from the server.

    `sent` and `queued` count the bytes of the stream that are out, and that
    were put. `progress_at` is the clock's time when a byte last went out, or
    could first have gone. `unchanged` makes that last check, and may raise `LocalError`.
    """

    __slots__ = (
        "_clock",
        "_gathered",
        "_stream",
        "_transport",
        "_unchanged",
        "progress_at",
        "queued",
        "sent",
    )

    def __init__(
        self,
        transport: Transport,
        unchanged: Callable[[MessageT], bool],
        clock: Callable[[], float],
    ) -> None:
        self.sent = 0
        self.queued = 0
        self.progress_at = clock()
        self._transport = transport
        self._unchanged = unchanged
        self._clock = clock
        self._gathered = bytearray()
        self._stream: _Stream[MessageT] | None = None

    @property
    def waiting(self) -> bool:
        """True if there is something to send."""
        return bool(self._gathered) or self._stream is not None

    def arrived(self) -> int:
        """Return how many of the bytes that are out have reached the other end's kernel."""
        return self.sent - unacknowledged(self._transport.write_fd)

    @property
    def streaming(self) -> bool:
        """True while a large message is being sent piece by piece."""
        return self._stream is not None

    def has_room(self) -> bool:
        """Return whether `put` may be called."""
        return self._stream is None and len(self._gathered) < GATHER_BYTES

    @property
    def room(self) -> int:
        """The most bytes that `put_gathered` may be given."""
        return GATHER_BYTES - len(self._gathered)

    def put_gathered(self, data: bytes) -> None:
        """Add whole packages, which must fit the `room`."""
        if not self._gathered:
            self.progress_at = self._clock()
        self._gathered += data
        self.queued += len(data)

    def put(self, message: MessageT, head: bytes, tail: bytes) -> int:
        """Add a package: `head`, the message's text, `tail`; return its length in bytes."""
        gathered = self._gathered
        if not gathered:
            self.progress_at = self._clock()
        gathered += head
        length = len(head) + message.length + len(tail)
        pieces = message.append_to(gathered)
        if pieces:
            self._stream = _Stream(message, pieces, tail)
        else:
            gathered += tail
        self.queued += length
        return length

    def write(self) -> None:
        """Send what fits.

        Raises `TransportError` if the connection is broken, and `FileChangedError` if a message
        can no longer be sent whole: then nothing more may go out on this connection.
        """
        if self._gathered:
            self._send_gathered()
        while self._stream is not None and not self._gathered and self._go_on(self._stream):
            self._send_gathered()

    def _send_gathered(self) -> None:
        sent = self._transport.send(self._gathered)
        if sent:
            del self._gathered[:sent]
            self._progress(sent)

    def _progress(self, sent: int) -> None:
        self.sent += sent
        self.progress_at = self._clock()

    def _go_on(self, stream: _Stream[MessageT]) -> bool:
        """Send the first piece but for a rest, and gather that; return False if it would wait.

        The rest of the last piece is followed by the tail, after a last check of the file.
        """
        piece = stream.pieces[0]
        if isinstance(piece, FilePiece):
            if not self._send_file(stream, piece):
                return False
            rest: bytes | memoryview = self._read(stream, piece, 1)
            if not rest:
                raise self._changed(stream)
        elif len(piece) > GATHER_BYTES:
            self._gathered += piece[:GATHER_BYTES]
            stream.pieces[0] = piece[GATHER_BYTES:]
            return True
        else:
            rest = piece
        stream.pieces.popleft()
        if not stream.pieces:
            self._look(stream)
            self._stream = None
        self._gathered += rest
        if self._stream is None:
            self._gathered += stream.tail
        return True

    def _send_file(self, stream: _Stream[MessageT], piece: FilePiece) -> bool:
        """Send all but the last byte; return False if it would wait."""
        while piece.left > 1:
            sent = self._send_part(stream, piece, piece.left - 1)
            if sent is None:
                return False
            if not sent:
                raise self._changed(stream)
            piece.offset += sent
            piece.left -= sent
            self._progress(sent)
        return True

    def _look(self, stream: _Stream[MessageT]) -> None:
        try:
            same = self._unchanged(stream.message)
        except LocalError as error:
            # A file that cannot be looked at may have changed.
            raise self._changed(stream, f"is not sent: {error}") from error
        if not same:
            raise self._changed(stream)

    def _send_part(self, stream: _Stream[MessageT], piece: FilePiece, count: int) -> int | None:
        """Send from the file; return None if it would wait, 0 if the file ends too early."""
        if self._transport.can_send_file:
            try:
                return self._transport.send_file(piece.fd, piece.offset, count)
            except TransportError:
                self._read(stream, piece, 1)  # sendfile(2) does not say which side failed
                raise
        part = self._read(stream, piece, min(count, GATHER_BYTES))
        return (self._transport.send(part) or None) if part else 0

    def _read(self, stream: _Stream[MessageT], piece: FilePiece, count: int) -> bytes:
        try:
            return os.pread(piece.fd, count, piece.offset)
        except OSError as error:
            # It concerns this message only: an OSError would end the whole run.
            raise self._changed(stream, f"cannot be read: {error.strerror}") from error

    def _changed(
        self, stream: _Stream[MessageT], what: str = "changed while it was being sent"
    ) -> FileChangedError:
        self._stream = None
        return FileChangedError(f"{stream.message.label} {what}")
