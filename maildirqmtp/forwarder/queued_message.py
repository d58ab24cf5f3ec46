"""A message of the maildir with its envelope: whom it goes to, and what was answered.

`prepare` makes it from a name in the maildir.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import TYPE_CHECKING

from maildirqmtp.errors import EnvelopeError
from maildirqmtp.mail import envelope, header
from maildirqmtp.maildir import names, sidecars
from maildirqmtp.maildir.files import Folder, Message
from maildirqmtp.maildir.maildir import TOP_BYTES, WHOLE_MAX, Maildir
from maildirqmtp.pipeline.outgoing import FilePiece, OutgoingMessage
from maildirqmtp.qmtp.protocol import ACCEPTED, FAILED, MAX_MESSAGE, Response
from maildirqmtp.text import printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from maildirqmtp.forwarder.route import Route
    from maildirqmtp.mail.envelope import Trace
    from maildirqmtp.mail.sidecar import Sidecar
    from maildirqmtp.maildir.files import Identity
    from maildirqmtp.pipeline.outgoing import Piece


#: Bytes of a name that leave room for `.json` within NAME_MAX.
_NAME_BYTES = 250
# What to do about a message that is held, by the place of the reason; and what explains that.
_SIDECAR = "a sidecar, as --enqueue does"
_BY_SIDECAR = "correct its sidecar, or remove it where the lines on top of the message are right"
_BY_OPTIONS = f"give --sender and --recipient, or write {_SIDECAR}"
_MANUAL = "see HELD MESSAGES in maildirqmtp(1)"


class QueuedMessage(OutgoingMessage):
    """A message of the maildir on its way to some recipients; see `OutgoingMessage`.

    `recipients` have the prefix removed. `others` are the recipients that do not
    begin with it: left for other routes, and still owed the message when this one is done, with
    `others_sender` as its sender. What is sent is `kept` and then the file from `offset` on.
    `message_id` is for the log, if that shows it. `sidecar_identity` tells whether the sidecar was
    replaced since. `refusal` is our own final answer to a message that must not be sent, None if
    it may be.
    """

    __slots__ = (
        "kept",
        "message",
        "message_id",
        "offset",
        "others",
        "others_sender",
        "refusal",
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
        self.others_sender = sender
        self.message_id = b""
        self.sidecar_identity: Identity | None = None
        self.refusal: Response | None = None

    @property
    def is_accepted(self) -> bool:
        """True if it was accepted for all of `recipients`."""
        return all([a is not None and a.status is ACCEPTED for a in self.answers])

    def refuse(self) -> None:
        """Answer for all recipients with our own `refusal`, in place of the server."""
        assert self.refusal is not None
        self.answers = [self.refusal] * len(self.recipients)
        self.unanswered = 0

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
    #: It is large, and not asked for now.
    LARGE = auto()


def prepare(
    maildir: Maildir, route: Route, folder: Folder, name: bytes, most_bytes: int | None = None
) -> QueuedMessage | PassedOver:
    """Open a message and find its envelope; one above `most_bytes` is not looked into.

    Raises `EnvelopeError` if its envelope or size does not allow sending it,
    `LocalError` if a file of it cannot be read, `FileChangedError` if it is still
    being written: it has to be held then, and nothing of it may be sent.
    """
    message = maildir.load(folder, name, most_bytes)
    if message is None:
        return PassedOver.NO_MESSAGE
    if most_bytes is not None and message.size > most_bytes:
        return PassedOver.LARGE
    taken = False
    try:
        queued = _addressed(maildir, route, message)
        taken = isinstance(queued, QueuedMessage)
        return queued
    except EnvelopeError as error:
        raise type(error)(f"{error}; {_MANUAL}") from None
    finally:
        if not taken:
            message.close()


def _addressed(maildir: Maildir, route: Route, message: Message) -> QueuedMessage | PassedOver:
    trace = trace_of(message)
    known = _sidecar(maildir, message)
    sidecar = known[0] if known else None
    if sidecar is None:
        sender, everyone = _sender(route, trace), _recipients(route, trace)
    else:
        sender, everyone = sidecar.sender, sidecar.recipients
        if not everyone:
            raise EnvelopeError(
                "its sidecar has no recipient; nobody is owed this message; remove both, or "
                "correct the sidecar"
            )
    try:
        recipients = envelope.ours(everyone, route.prefix)
    except EnvelopeError as error:
        raise EnvelopeError(f"{error}; {_BY_SIDECAR if sidecar else _BY_OPTIONS}") from None
    if not recipients:
        return PassedOver.FOR_OTHERS
    others = _others(message, everyone, route.prefix)
    queued = QueuedMessage(message, sender, recipients, trace.kept, trace.offset, sidecar, others)
    queued.sidecar_identity = known[1] if known else None
    if sidecar is None and trace.sender is not None:
        queued.others_sender = trace.sender  # --sender is this route's only
    if queued.length > MAX_MESSAGE:
        raise EnvelopeError(
            f"{queued.length} bytes are more than servers take over QMTP ({MAX_MESSAGE}); "
            f"move it out of the maildir"
        )
    if route.max_bytes is not None and queued.length > route.max_bytes:
        raise EnvelopeError(
            f"{queued.length} bytes are more than --max-size allows ({route.max_bytes}); raise "
            f"that, or move it out of the maildir"
        )
    if received := header.loop_lines(message.data):
        queued.refusal = Response(
            FAILED, b"mail loop: it has %d Received lines (#5.4.6)" % received
        )
    return queued


def _others(message: Message, everyone: tuple[bytes, ...], prefix: bytes) -> tuple[bytes, ...]:
    """Return the recipients that are left for other routes."""
    if len(everyone) < 2:
        return ()
    if len(names.unique(message.name)) > _NAME_BYTES:
        raise EnvelopeError(
            f"its name is too long to have a sidecar, which its {len(everyone)} recipients may "
            f"need; rename it"
        )
    return tuple(r for r in everyone if not r.startswith(prefix))


def _sidecar(maildir: Maildir, message: Message) -> tuple[Sidecar, Identity] | None:
    try:
        return sidecars.read_known(maildir, message.name)
    except EnvelopeError as error:
        raise type(error)(f"{error}; {_BY_SIDECAR}") from None


def trace_of(message: Message) -> Trace:
    """Return the trace of a message; more of a large one is read if its trace lines are long.

    Raises `EnvelopeError` if these do not end within `WHOLE_MAX` bytes, `LocalError` if the file
    cannot be read.
    """
    length = TOP_BYTES
    while True:
        trace = envelope.read_trace(message.data, message.fd < 0)
        if trace is not None:
            return trace
        if length >= WHOLE_MAX:
            raise EnvelopeError(
                f"the trace lines on top of it do not end within {WHOLE_MAX} bytes; remove them"
            )
        length *= 2
        message.read_top(length)


def _sender(route: Route, trace: Trace) -> bytes:
    if route.sender is not None:
        return route.sender
    if trace.sender is not None:
        return trace.sender
    if trace.sender_fault:
        raise EnvelopeError(f"{trace.sender_fault}; give --sender ADDRESS, or write {_SIDECAR}")
    if route.default_sender is not None:
        return route.default_sender
    by_default = f"give --default-sender ADDRESS, or write {_SIDECAR}"
    way_out = by_default if route.recipients or trace.recipients else _BY_OPTIONS
    raise EnvelopeError(f"no envelope: no Return-Path line on top of it; {way_out}")


def _recipients(route: Route, trace: Trace) -> tuple[bytes, ...]:
    if route.recipients:
        return route.recipients
    if trace.recipients:
        return trace.recipients
    fault = trace.recipients_fault or "no envelope: no Delivered-To line on top of it"
    raise EnvelopeError(f"{fault}; give --recipient ADDRESS, or write {_SIDECAR}")
