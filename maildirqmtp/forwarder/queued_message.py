"""A queued message: one of the maildir, its recipients, and what was answered.

`prepare` is the first half of the way that all data goes: from a name in the
maildir to a message with its envelope.
"""

from __future__ import annotations

from enum import Enum, auto
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


#: What to do about a message that is held, by where the reason lies.
_BY_HEADER = "give --sender and --recipient, or a sidecar"
_BY_SIDECAR = "correct its sidecar, or remove it where the lines on top of the message are right"
_MANUAL = "see HELD MESSAGES in maildirqmtp(1)"

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


class PassedOver(Enum):
    """Why a file of the maildir is not sent, without being held."""

    #: It is gone, or a link, a directory, ...
    NO_MESSAGE = auto()
    #: None of its recipients begins with the route's prefix.
    FOR_OTHERS = auto()


def prepare(
    maildir: Maildir, route: Route, folder: Folder, name: bytes
) -> QueuedMessage | PassedOver:
    """Open a message and find its envelope.

    Raises `EnvelopeError`, `LocalError` or `FileChangedError` where the message
    has to be held: then nothing of it may be sent.
    """
    message = maildir.load(folder, name)
    if message is None:
        return PassedOver.NO_MESSAGE
    taken = False
    try:
        queued = _addressed(maildir, route, message)
        taken = isinstance(queued, QueuedMessage)
        return queued
    finally:
        if not taken:
            message.close()


def _addressed(maildir: Maildir, route: Route, message: Message) -> QueuedMessage | PassedOver:
    known = _sidecar(maildir, message)
    sidecar = known[0] if known else None
    given = sidecar is not None or (route.sender is not None and bool(route.recipients))
    try:
        trace = envelope.read_trace(message.data, message.fd < 0)
    except EnvelopeError as error:
        if not given:
            raise _with_way_out(error, _BY_HEADER) from None
        # The envelope does not hang on these lines, so they are text like any other.
        trace = envelope.Trace(None, (), b"", 0)
    if sidecar is not None:
        sender: bytes | None = sidecar.sender
        everyone = sidecar.recipients
        if not everyone:
            raise _with_way_out(
                EnvelopeError("its sidecar has no recipient; nobody is owed this message"),
                "remove both, or correct the sidecar",
            )
    else:
        sender = trace.sender if route.sender is None else route.sender
        everyone = route.recipients or trace.recipients
    if not everyone or sender is None:
        missing = "Return-Path" if sender is None else "Delivered-To"
        raise _with_way_out(
            EnvelopeError(f"no envelope: no {missing} line on top of it"), _BY_HEADER
        )
    try:
        recipients = envelope.ours(everyone, route.prefix)
    except EnvelopeError as error:
        raise _with_way_out(error, _BY_SIDECAR if sidecar else _BY_HEADER) from None
    if not recipients:
        return PassedOver.FOR_OTHERS
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
            f"{queued.length} bytes are more than servers take over QMTP ({MAX_MESSAGE}); "
            f"move it out of the maildir"
        )
    return queued


def _sidecar(maildir: Maildir, message: Message) -> tuple[Sidecar, Identity] | None:
    if not maildir.has_envelopes:
        return None
    try:
        return sidecars.read_known(maildir, message.name)
    except EnvelopeError as error:
        raise _with_way_out(error, _BY_SIDECAR) from None


def _with_way_out(error: EnvelopeError, way_out: str) -> EnvelopeError:
    """Return the error with what to do about it: its reader is not who wrote this program."""
    return type(error)(f"{error}; {way_out}; {_MANUAL}")
