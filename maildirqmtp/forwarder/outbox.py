"""From the queue to a message that can be sent: opened, with its envelope, and ours."""

from __future__ import annotations

from typing import TYPE_CHECKING

from maildirqmtp.errors import EnvelopeError, FileChangedError, LocalError
from maildirqmtp.forwarder.queued_message import prepare
from maildirqmtp.mail import header

if TYPE_CHECKING:
    from maildirqmtp.forwarder.queue import Queue
    from maildirqmtp.forwarder.queued_message import QueuedMessage
    from maildirqmtp.forwarder.report import Report
    from maildirqmtp.forwarder.route import Route
    from maildirqmtp.forwarder.settle import Settler
    from maildirqmtp.maildir.files import Folder
    from maildirqmtp.maildir.maildir import Maildir


class Outbox:
    """Takes messages from the queue; `pending` is the one whose turn is next."""

    __slots__ = ("_maildir", "_proven", "_report", "_route", "_settler", "pending", "queue")

    def __init__(
        self, maildir: Maildir, route: Route, report: Report, settler: Settler, queue: Queue
    ) -> None:
        self.queue = queue
        self.pending: QueuedMessage | None = None
        self._maildir = maildir
        self._route = route
        self._report = report
        self._settler = settler
        self._proven = False

    def look(self) -> QueuedMessage | None:
        """Return the next message that is ours and can be sent; it stays the next one."""
        while self.pending is None and (candidate := self.queue.take()) is not None:
            self.pending = self._open(*candidate)
        return self.pending

    def has_next(self) -> bool:
        """Say whether there is a message to be sent now. Raises `LocalError`.

        Before the first is sent it proves that messages can be removed.
        """
        if self.look() is None:
            return False
        if not self._proven:
            self.prove()
        return True

    def prove(self) -> None:
        """Prove that what the server takes can be removed, or moved. Raises `LocalError`."""
        self._maildir.prove_changeable(self._route.include_cur)
        self._settler.prove_sent()
        self._proven = True

    def put_back(self) -> None:
        """Put back the message that waits for its turn: it may be another when that comes."""
        pending, self.pending = self.pending, None
        if pending is not None:
            pending.message.close()
            self.queue.put_back([(pending.message.folder, pending.message.name)])

    def _refuse(self, queued: QueuedMessage) -> None:
        """Settle a message that must not be sent as one that the server refused."""
        if not self._proven:
            self.prove()
        name = queued.message.name
        queued.refuse()
        kept = self._settler.settle(queued)
        queued.close()
        if kept is None:
            self.queue.gone(name)
        else:
            self.queue.later(name, queued.message.mtime_s, kept.reason, kept.soon)
        self.queue.add(self._settler.take_bounces())

    @property
    def left(self) -> int:
        """How many there are still to be sent now."""
        return len(self.queue) + (self.pending is not None)

    def _open(self, folder: Folder, name: bytes) -> QueuedMessage | None:
        """Return a message that is ours and can be sent; None after telling the queue."""
        try:
            queued = prepare(self._maildir, self._route, folder, name)
        except (EnvelopeError, FileChangedError, LocalError) as error:
            soon = isinstance(error, FileChangedError)
            if self.queue.later(name, None, str(error), soon):
                self._report.held(name, str(error))
            return None
        if queued is None:
            self.queue.later(name, None, "")
        elif queued.refusal is not None:
            self._refuse(queued)
            return None
        elif self._report.detailed:
            queued.message_id = header.message_id(queued.message.data)
        return queued
