"""What becomes of each message, as serialmail's maildirserial tells it, on standard error."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from maildirqmtp.forwarder.report import Report
from maildirqmtp.text import printable

if TYPE_CHECKING:
    from typing import TextIO

    from maildirqmtp.errors import LocalError
    from maildirqmtp.forwarder.queued_message import QueuedMessage
    from maildirqmtp.maildir.files import Folder


def path_of(folder: Folder, name: bytes) -> bytes:
    """Return a message's name as a client gets it: below the maildir."""
    return os.path.join(os.path.basename(folder.path), name)


class SerialmailReport(Report):
    """A report in the words of 1998. There is one recipient to a message."""

    def __init__(self, log: TextIO) -> None:
        super().__init__(log)
        self._prefix = "maildirserial: "

    def accepted(self, delivery: QueuedMessage) -> None:
        """See `Report`."""
        answer = delivery.answers[0]
        assert answer is not None
        self.counters.accepted += 1
        self._info(delivery, "succeeded", answer.text)

    def deferred(self, delivery: QueuedMessage, index: int, text: str) -> None:
        """See `Report`."""
        self.counters.deferred += 1
        self._info(delivery, "failed temporarily", text)

    def failed(self, delivery: QueuedMessage, index: int, text: str, where: bytes) -> None:
        """See `Report`."""
        self.counters.failed += 1
        self._info(delivery, "failed", f"{text} (moved to {printable(where)})")

    def refused(self, delivery: QueuedMessage, text: str) -> None:
        """A failure that nobody is told of, by serialmail's rule: the message stays."""
        self.counters.failed += 1
        self._info(delivery, "failed", text)

    def bounced(self, delivery: QueuedMessage, index: int, text: str) -> None:
        """See `Report`."""
        self.counters.bounced += 1
        self._info(delivery, "bounced", text)

    def held(self, name: bytes, reason: str) -> None:
        """See `Report`."""
        self.counters.held += 1
        self._line(-1, f"warning: {printable(name)} stays: {reason}")

    def twice(self, delivery: QueuedMessage, error: LocalError) -> None:
        """The server has it, and it cannot be removed."""
        cause = error.__cause__
        why = cause.strerror if isinstance(cause, OSError) and cause.strerror else str(error)
        self._line(
            -1,
            f"warning: message will be delivered twice! unable to unlink "
            f"{self._name(delivery)}: {why}",
        )

    def problem(self, what: str, left: int = 0) -> None:
        """See `Report`."""
        self.counters.problems += 1
        self._line(-1, f"warning: {what}")

    def note(self, what: str) -> None:
        """See `Report`."""
        self._line(-1, f"info: {what}")

    def fatal(self, what: str) -> None:
        """It ends here."""
        self.counters.problems += 1
        self._line(-1, f"fatal: {what}")

    def _info(self, delivery: QueuedMessage, outcome: str, text: str) -> None:
        self._line(-1, f"info: {self._name(delivery)} {outcome}: {text}")

    @staticmethod
    def _name(delivery: QueuedMessage) -> str:
        return printable(path_of(delivery.message.folder, delivery.message.name))
