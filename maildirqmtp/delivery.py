"""A delivery: one message, whom it goes to, and what was answered.

`prepare` is the first half of the way that all data goes: from a name in the
maildir to a message with its envelope.
"""

from dataclasses import dataclass, field

from maildirqmtp import envelope, filing
from maildirqmtp.errors import EnvelopeError
from maildirqmtp.maildir import Folder, Maildir, Message
from maildirqmtp.protocol import MAX_MESSAGE, Response
from maildirqmtp.route import Route
from maildirqmtp.sidecar import Sidecar


@dataclass(slots=True)
class Delivery:
    """A message on its way to some recipients.

    `recipients` are as the server gets them, without the prefix; those before
    `next` have been put into a package. What is sent is `kept` and then the
    file from `offset` on. `answers` has a response or None for each recipient,
    `unanswered` counts the Nones. `doubtful` are the recipients whose package
    was sent whole and never answered. `reason` says why we gave up on it
    ourselves. `length` is the bytes of text that are sent.
    """

    message: Message
    sender: bytes
    recipients: tuple[bytes, ...]
    kept: bytes
    offset: int
    sidecar: Sidecar | None = None
    next: int = 0
    length: int = 0
    unanswered: int = 0
    answers: list[Response | None] = field(default_factory=list)
    doubtful: tuple[int, ...] = ()
    reason: str = ""

    def __post_init__(self) -> None:
        self.length = len(self.kept) + self.message.size - self.offset
        self.unanswered = len(self.recipients)
        self.answers = [None] * self.unanswered

    def owed(self) -> list[int]:
        """Return the recipients nothing has been answered for."""
        return [index for index, answer in enumerate(self.answers) if answer is None]


def prepare(maildir: Maildir, route: Route, folder: Folder, name: bytes) -> Delivery | None:
    """Open a message and find its envelope; None where it is none, or not ours.

    Raises `EnvelopeError`, `LocalError` or `FileChangedError` where the message
    has to be held: then nothing of it may be sent.
    """
    message = maildir.load(folder, name)
    if message is None:
        return None
    taken = False
    try:
        delivery = _addressed(maildir, route, message)
        taken = delivery is not None
        return delivery
    finally:
        if not taken:
            message.close()


def _addressed(maildir: Maildir, route: Route, message: Message) -> Delivery | None:
    sidecar = filing.read_sidecar(maildir, message.name) if maildir.has_envelopes else None
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
    delivery = Delivery(message, sender, recipients, trace.kept, trace.offset, sidecar)
    if delivery.length > MAX_MESSAGE:
        raise EnvelopeError(
            f"{delivery.length} bytes are more than servers take over QMTP ({MAX_MESSAGE})"
        )
    return delivery
