"""Keeps in a message's sidecar which recipients are still owed it, while the message is in flight.

The sidecar is looked at again before it is rewritten or removed: one that was replaced meanwhile
names recipients who are still owed the message.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from maildirqmtp.errors import FileChangedError
from maildirqmtp.maildir import sidecars

if TYPE_CHECKING:
    from maildirqmtp.forwarder.queued_message import QueuedMessage
    from maildirqmtp.maildir.maildir import Maildir


class OwedRecipients:
    """The sidecars of one route's messages; `prefix` is what its recipients begin with."""

    def __init__(self, maildir: Maildir, prefix: bytes) -> None:
        self._maildir = maildir
        self._prefix = prefix

    def check(self, queued: QueuedMessage) -> None:
        """Raise `FileChangedError` if the sidecar was replaced since the message was opened.

        The recipients in the new one are still owed it. Raises `LocalError` if looking fails.
        """
        name, known = queued.message.name, queued.sidecar_identity
        if sidecars.is_another(self._maildir, name, queued.sidecar, known):
            raise FileChangedError("its sidecar was replaced while it was being sent")

    def write(self, queued: QueuedMessage, owed: list[int]) -> None:
        """Write the sidecar without the recipients that are done.

        Raises `FileChangedError` if the message or its sidecar is not as it was sent, and
        `LocalError` if the sidecar cannot be written.
        """
        from maildirqmtp.mail.sidecar import Sidecar

        if not self._maildir.is_same(queued.message):
            # The sidecar would belong to a message that was never sent.
            raise FileChangedError("it changed while it was being sent")
        self.check(queued)
        recipients = tuple(self.original(queued, i) for i in owed) + queued.others
        failures = queued.sidecar.failures if queued.sidecar else ()
        content = Sidecar(queued.sender, recipients, failures)
        sidecars.write(self._maildir, queued.message.name, content)

    def original(self, queued: QueuedMessage, index: int) -> bytes:
        """Return a recipient as the sidecar has it, with the prefix."""
        return self._prefix + queued.recipients[index]
