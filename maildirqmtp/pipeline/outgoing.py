"""A transfer: a message on its way to some recipients, as a connection sees it.

What `outflow` and `pipeline` need to know of a message and keep of its answers,
whoever sends it: the forwarder's `delivery.QueuedMessage`, the library's `job.SendRequest`.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

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
    """A message and whom it goes to.

    `sender` and `recipients` are as the server gets them; those before `next`
    have been put into a package. The text is `length` bytes. `answers` has a
    response or None for each recipient, `unanswered` counts the Nones.
    `doubtful` are the recipients whose package was sent whole and never
    answered. `reason` says why we gave up on it ourselves.
    """

    __slots__ = (
        "answers",
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
        self.reason = ""

    def owed(self) -> list[int]:
        """Return the recipients nothing has been answered for."""
        return [index for index, answer in enumerate(self.answers) if answer is None]

    def append_to(self, into: bytearray) -> "Sequence[Piece]":
        """Append the text, or its beginning; return the pieces to be streamed after it.

        Called once for each package of it.
        """
        raise NotImplementedError

    def release(self) -> None:
        """Drop the text in memory: the last package of it has been put."""
        raise NotImplementedError

    def close(self) -> None:
        """Close the files: nothing more of it will be read. Harmless twice."""
        raise NotImplementedError

    @property
    def label(self) -> str:
        """What to call it to people; printable."""
        raise NotImplementedError
