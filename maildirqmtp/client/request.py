"""A request: a package of the program on its way, and the result it will have."""

from __future__ import annotations

from collections.abc import Sequence, Set
from typing import TYPE_CHECKING

from maildirqmtp.client.content import Content
from maildirqmtp.client.package import Package
from maildirqmtp.pipeline.outgoing import OutgoingMessage
from maildirqmtp.response import Response, Status
from maildirqmtp.results import Outcome, SendResult

if TYPE_CHECKING:
    from maildirqmtp.pipeline.outgoing import Piece


#: Stands for the text of a message that is in the send buffer already.
_RELEASED = Content(b"")


class SendRequest(OutgoingMessage):
    """A package that was taken from a program, with its files open; see `OutgoingMessage`.

    `keeps` is true if it may have to be sent once more, to one recipient at a time:
    then its files stay open until it is answered. Raises as `Content` does.
    """

    __slots__ = ("_content", "_doubted", "_found", "_places", "_why", "encoding", "keeps")

    def __init__(self, package: Package) -> None:
        self._content = Content(package.message)
        super().__init__(package.sender, package.recipients, self._content.length)
        self.encoding = package.first_byte
        self.keeps = False
        self._why = ""
        # For a package that is sent once more, to one recipient at a time: the answers of the
        # first round, and the places in the package of the recipients of the second.
        self._places: Sequence[int] = range(len(self.recipients))
        self._found: dict[int, tuple[bytes, Response | None]] = {}
        self._doubted: Set[int] = frozenset()

    @property
    def done(self) -> bool:
        """True if the result is final."""
        return not self.unanswered or bool(self._why)

    def append_to(self, into: bytearray) -> Sequence[Piece]:
        """See `OutgoingMessage`."""
        return self._content.append_to(into)

    def release(self) -> None:
        """See `OutgoingMessage`. Files that are streamed stay open until `close`."""
        if not self.keeps and self._content.in_memory:
            # Thousands may be in flight, and the garbage collector looks at each object of each.
            self._content = _RELEASED

    def close(self) -> None:
        """See `OutgoingMessage`."""
        if not (self.keeps and self.unanswered):
            self._content.close()

    @property
    def label(self) -> str:
        """See `Content.label`."""
        return self._content.label

    def unchanged(self) -> bool:
        """Return whether its files are as they were when they were opened; see `Content`."""
        return self._content.unchanged()

    def start_over(self) -> None:
        """Keep only the recipients without an answer, as if nothing had been sent to them."""
        self._note()
        owed = self.owed()
        self._places = [self._places[index] for index in owed]
        self.recipients = tuple([self.recipients[index] for index in owed])
        self.answers = [None] * len(owed)
        self.unanswered = len(owed)
        self.doubtful = ()
        self.next = 0

    def give_up(self, why: str) -> None:
        """Defer recipients without an answer; `why` is a text for people."""
        self._why = why
        self.keeps = False
        self.close()

    def result(self) -> SendResult:
        """Return a response for each recipient: the server's, or a deferral that says why."""
        self._note()
        outcomes = []
        for place in sorted(self._found):
            address, response = self._found[place]
            doubt = place in self._doubted
            answered = response is not None
            if response is None:
                how = "no answer, may have been taken" if doubt else "not sent"
                response = Response(Status.DEFERRED, f"{how}: {self._why}".encode())
            outcomes.append(Outcome(address, response, answered, doubt))
        return SendResult(outcomes)

    def _note(self) -> None:
        for index, place in enumerate(self._places):
            self._found[place] = (self.recipients[index], self.answers[index])
        if self.doubtful:
            self._doubted |= {self._places[index] for index in self.doubtful}
