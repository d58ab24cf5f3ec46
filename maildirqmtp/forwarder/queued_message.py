"""A delivery: one message, whom it goes to, and what was answered.

`prepare` is the first half of the way that all data goes: from a name in the
maildir to a message with its envelope.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from maildirqmtp.errors import EnvelopeError
from maildirqmtp.mail import envelope
from maildirqmtp.maildir import names, sidecars
from maildirqmtp.maildir.files import Folder, Message
from maildirqmtp.maildir.maildir import Maildir
from maildirqmtp.pipeline.outgoing import FilePiece, OutgoingMessage
from maildirqmtp.qmtp.protocol import MAX_MESSAGE
from maildirqmtp.text import printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from maildirqmtp.forwarder.route import Route
    from maildirqmtp.mail.sidecar import Sidecar
    from maildirqmtp.maildir.files import Identity
    from maildirqmtp.pipeline.outgoing import Piece


#: Bytes of a name that leave room for `.json` within NAME_MAX.
_NAME_BYTES = 250


class QueuedMessage(OutgoingMessage):
    """A message of the maildir on its way to some recipients; see `OutgoingMessage`.

    `recipients` are without the prefix. `others` are those without the prefix:
    somebody else's, and still owed it when we are done. What is sent is `kept`
    and then the file from `offset` on. `message_id` is for the log, where that
    wants it. `sidecar_identity` tells whether the sidecar was replaced since.
    """

    __slots__ = (
        "kept",
        "message",
        "message_id",
        "offset",
        "others",
        "sidecar",
        "sidecar_identity",
    )

    def __init__(
        self,
        message: Message,
        sender: bytes,
        recipients: tuple[bytes, ...],
        kept: bytes,
        offset: int,
        sidecar: Sidecar | None = None,
        others: tuple[bytes, ...] = (),
    ) -> None:
        OutgoingMessage.__init__(self, sender, recipients, len(kept) + message.size - offset)
        self.message = message
        self.kept = kept
        self.offset = offset
        self.sidecar = sidecar
        self.others = others
        self.message_id = b""
        self.sidecar_identity: Identity | None = None

    def append_to(self, into: bytearray) -> Sequence[Piece]:
        """See `OutgoingMessage`."""
        message = self.message
        if self.kept:
            into += self.kept
        if message.fd < 0:
            into += message.data[self.offset :]
            return ()
        return (FilePiece(message.fd, self.offset, message.size - self.offset),)

    def release(self) -> None:
        """See `OutgoingMessage`. A window of copies would only fill the cache."""
        self.message.data = b""

    def close(self) -> None:
        """See `OutgoingMessage`."""
        if self.message.fd >= 0:
            self.message.close()

    @property
    def label(self) -> str:
        """The message's path."""
        return printable(self.message.folder.join(self.message.name))


def prepare(maildir: Maildir, route: Route, folder: Folder, name: bytes) -> QueuedMessage | None:
    """Open a message and find its envelope; None where it is none, or not ours.

    Raises `EnvelopeError`, `LocalError` or `FileChangedError` where the message
    has to be held: then nothing of it may be sent.
    """
    message = maildir.load(folder, name)
    if message is None:
        return None
    taken = False
    try:
        queued = _addressed(maildir, route, message)
        taken = queued is not None
        return queued
    finally:
        if not taken:
            message.close()


def _addressed(maildir: Maildir, route: Route, message: Message) -> QueuedMessage | None:
    known = sidecars.read_known(maildir, message.name) if maildir.has_envelopes else None
    sidecar = known[0] if known else None
    given = sidecar is not None or (route.sender is not None and bool(route.recipients))
    try:
        trace = envelope.read_trace(message.data, message.fd < 0)
    except EnvelopeError:
        if not given:
            raise
        # The envelope does not hang on these lines, so they are text like any other.
        trace = envelope.Trace(None, (), b"", 0)
    if sidecar is not None:
        sender: bytes | None = sidecar.sender
        everyone = sidecar.recipients
        if not everyone:
            raise EnvelopeError("its sidecar has no recipient; nobody is owed this message")
    else:
        sender = trace.sender if route.sender is None else route.sender
        everyone = route.recipients or trace.recipients
    if not everyone or sender is None:
        missing = "Return-Path" if sender is None else "Delivered-To"
        raise EnvelopeError(f"no envelope: no {missing} line on top of it")
    recipients = envelope.ours(everyone, route.prefix)
    if not recipients:
        return None
    others: tuple[bytes, ...] = ()
    if len(everyone) > 1:
        if len(names.unique(message.name)) > _NAME_BYTES:
            raise EnvelopeError(
                f"its name is too long to have a sidecar, which its {len(everyone)} recipients may "
                f"need; rename it"
            )
        others = tuple(r for r in everyone if not r.startswith(route.prefix))
    queued = QueuedMessage(message, sender, recipients, trace.kept, trace.offset, sidecar, others)
    queued.sidecar_identity = known[1] if known else None
    if queued.length > MAX_MESSAGE:
        raise EnvelopeError(
            f"{queued.length} bytes are more than servers take over QMTP ({MAX_MESSAGE})"
        )
    return queued
