"""What goes out on a connection: bytes gathered in memory, and parts of files.

Small packages are gathered so that they share segments. A large message is
read from its file as it goes, and its last byte waits for a last look at the
file: until that byte is out, closing the connection takes the package back
(qmtp.txt, section 2).
"""

import os
from collections.abc import Callable

from maildirqmtp.delivery import Delivery
from maildirqmtp.errors import FileChangedError, LocalError
from maildirqmtp.text import printable
from maildirqmtp.transport import Transport

#: Bytes that are gathered before they are sent.
GATHER_BYTES = 256 << 10


class _FilePart:
    """The rest of a large message, and what follows it."""

    __slots__ = ("delivery", "left", "offset", "tail")

    def __init__(self, delivery: Delivery, tail: bytes) -> None:
        self.delivery = delivery
        self.offset = delivery.offset
        self.left = delivery.message.size - delivery.offset
        self.tail = tail


class Outflow:
    """The sending half of a connection. Never waits, never reads from the server.

    `sent` and `queued` count the bytes of the stream that are out, and that
    were put. `progress_at` is the clock's time when a byte last went out, or
    could first have gone. `unchanged` takes the last look, and may raise `LocalError`.
    """

    __slots__ = (
        "_clock",
        "_file",
        "_gathered",
        "_transport",
        "_unchanged",
        "progress_at",
        "queued",
        "sent",
    )

    def __init__(
        self,
        transport: Transport,
        unchanged: Callable[[Delivery], bool],
        clock: Callable[[], float],
    ) -> None:
        self.sent = 0
        self.queued = 0
        self.progress_at = clock()
        self._transport = transport
        self._unchanged = unchanged
        self._clock = clock
        self._gathered = bytearray()
        self._file: _FilePart | None = None

    @property
    def waiting(self) -> bool:
        """True where something is to be sent."""
        return bool(self._gathered) or self._file is not None

    @property
    def streaming(self) -> bool:
        """True while a large message is being read from its file."""
        return self._file is not None

    @property
    def has_room(self) -> bool:
        """True where `put` may be called."""
        return self._file is None and len(self._gathered) < GATHER_BYTES

    def put(self, delivery: Delivery, head: bytes, tail: bytes) -> int:
        """Take a package: `head`, the delivery's text, `tail`; return its length in bytes."""
        message = delivery.message
        gathered = self._gathered
        if not gathered:
            self.progress_at = self._clock()
        gathered += head
        if delivery.kept:
            gathered += delivery.kept
        length = len(head) + delivery.length + len(tail)
        if message.fd < 0:
            gathered += message.data[delivery.offset :]
            gathered += tail
        else:
            self._file = _FilePart(delivery, tail)
        self.queued += length
        return length

    def write(self) -> None:
        """Send what fits.

        Raises `TransportError`; and `FileChangedError` where a message can no
        longer be sent whole: then nothing more goes out on this connection.
        """
        if self._gathered:
            self._send_gathered()
        if self._file is not None and not self._gathered and self._send_file(self._file):
            self._file = None
            self._send_gathered()

    def _send_gathered(self) -> None:
        sent = self._transport.send(self._gathered)
        if sent:
            del self._gathered[:sent]
            self._progress(sent)

    def _progress(self, sent: int) -> None:
        self.sent += sent
        self.progress_at = self._clock()

    def _send_file(self, part: _FilePart) -> bool:
        """Send all but the last byte; gather that one and the tail after a last look."""
        while part.left > 1:
            sent = self._send_part(part, part.left - 1)
            if sent is None:
                return False
            if not sent:
                raise self._changed(part)
            part.offset += sent
            part.left -= sent
            self._progress(sent)
        last = self._read(part, 1)
        try:
            same = bool(last) and self._unchanged(part.delivery)
        except LocalError as error:
            # A name that cannot be looked at is not known to be the same.
            raise self._changed(part, f"is not sent: {error}") from error
        if not same:
            raise self._changed(part)
        self._gathered += last
        self._gathered += part.tail
        return True

    def _send_part(self, part: _FilePart, count: int) -> int | None:
        """Send from the file; None where it would wait, 0 where the file ends too early."""
        if self._transport.can_send_file:
            return self._transport.send_file(part.delivery.message.fd, part.offset, count)
        piece = self._read(part, min(count, GATHER_BYTES))
        return (self._transport.send(piece) or None) if piece else 0

    def _read(self, part: _FilePart, count: int) -> bytes:
        try:
            return os.pread(part.delivery.message.fd, count, part.offset)
        except OSError as error:
            # This message's trouble: as an OSError it would end the whole run.
            raise self._changed(part, f"cannot be read: {error.strerror}") from error

    def _changed(
        self, part: _FilePart, what: str = "changed while it was being sent"
    ) -> FileChangedError:
        self._file = None
        message = part.delivery.message
        return FileChangedError(f"{printable(message.folder.join(message.name))} {what}")
