"""The log of maildirserial on standard error, in serialmail's words."""

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
    """Return a message's path relative to the maildir, as a client gets it."""
    return os.path.join(os.path.basename(folder.path), name)


class SerialmailReport(Report):
    """A report in the words of serialmail 0.75. A message has one recipient."""

    def __init__(self, log: TextIO) -> None:
        super().__init__(log, line=lambda event, level, text: f"maildirserial: {text}")

    def accepted(self, queued: QueuedMessage) -> None:
        """See `Report`."""
        answer = queued.answers[0]
        assert answer is not None
        self.counters.accepted += 1
        self._info(queued, "succeeded", answer.text)

    def deferred(self, queued: QueuedMessage, index: int, text: str) -> None:
        """See `Report`."""
        self.counters.deferred += 1
        self._info(queued, "failed temporarily", text)

    def failed(self, queued: QueuedMessage, index: int, text: str, where: bytes) -> None:
        """See `Report`."""
        self.counters.failed += 1
        self._info(queued, "failed", f"{text} (moved to {printable(where)})")

    def refused(self, queued: QueuedMessage, text: str) -> None:
        """Report a failure without a bounce: by serialmail's rule the message stays."""
        self.counters.failed += 1
        self._info(queued, "failed", text)

    def bounced(self, queued: QueuedMessage, index: int, text: str) -> None:
        """See `Report`."""
        self.counters.bounced += 1
        self._info(queued, "bounced", text)

    def held(self, name: bytes, reason: str, event: str = "held") -> None:
        """See `Report`."""
        self.counters.held += 1
        self._line("trouble", -1, f"warning: {printable(name)} stays: {reason}")

    def twice(self, queued: QueuedMessage, error: LocalError) -> None:
        """Report that the server has accepted the message, but it cannot be removed."""
        cause = error.__cause__
        why = cause.strerror if isinstance(cause, OSError) and cause.strerror else str(error)
        self._line(
            "trouble",
            -1,
            f"warning: message will be delivered twice! unable to unlink "
            f"{self._name(queued)}: {why}",
        )

    def problem(self, what: str, left: int = 0) -> None:
        """See `Report`."""
        self.counters.problems += 1
        self._line("trouble", -1, f"warning: {what}")

    def note(self, what: str) -> None:
        """See `Report`."""
        self._line("note", -1, f"info: {what}")

    def fatal(self, what: str) -> None:
        """Report why the run ends."""
        self.counters.problems += 1
        self._line("trouble", -1, f"fatal: {what}")

    def _info(self, queued: QueuedMessage, outcome: str, text: str) -> None:
        self._line("note", -1, f"info: {self._name(queued)} {outcome}: {text}")

    @staticmethod
    def _name(queued: QueuedMessage) -> str:
        return printable(path_of(queued.message.folder, queued.message.name))
