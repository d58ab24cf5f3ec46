"""Keeps in a message's sidecar which recipients are still owed it, while the message is in flight.

The sidecar is looked at again before it is rewritten or removed: one that was replaced meanwhile
names recipients who are still owed the message.

On a full disk, or in another user's envelope/, messages can be removed, and no sidecar can be
written. So

    before a message to several recipients goes   prove that a sidecar can be written
    one cannot be written all the same            the message is `Stuck`: what is to be done to it
                                                  is remembered, and it is not sent again
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from maildirqmtp.errors import FileChangedError, LocalError
from maildirqmtp.forwarder.removed import is_gone
from maildirqmtp.maildir import files, sidecars
from maildirqmtp.qmtp.protocol import ACCEPTED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from maildirqmtp.forwarder.queued_message import QueuedMessage
    from maildirqmtp.forwarder.route import Route
    from maildirqmtp.maildir.maildir import Maildir

#: Bytes that have to fit on the disk before a message to several recipients is sent; a sidecar of
#: a thousand recipients has no more.
ROOM_BYTES = 64 << 10
#: Seconds for which a proof that they fit is good.
PROVEN_S = 10.0
_PROBE = b".maildirqmtp-room"


def not_accepted(queued: QueuedMessage) -> list[int]:
    """Return which recipients of a message the server has not accepted it for, by index."""
    return [i for i, a in enumerate(queued.answers) if a is None or a.status is not ACCEPTED]


class OwedRecipients:
    """The sidecars of one route's messages. `clock` is monotonic seconds."""

    def __init__(self, maildir: Maildir, route: Route, clock: Callable[[], float]) -> None:
        self._maildir = maildir
        self._prefix = route.prefix
        self._include_cur = route.include_cur
        self._clock = clock
        self._proven_until = float("-inf")

    def prove(self) -> None:
        """Prove that a sidecar can be written, before a message that may need one is sent.

        Otherwise those who accept it would get it again with each run. Raises `LocalError` if there
        is no room, or nothing may be put there.
        """
        if self._clock() < self._proven_until:
            return
        tmp = self._maildir.tmp
        try:
            place = self._maildir.find_envelopes() or self._maildir.root  # where that is made
            files.replace(place, _PROBE, bytes(ROOM_BYTES), tmp=tmp, sync_folder=False)
            place.discard(_PROBE)
        except LocalError as error:
            raise LocalError(
                f"it has several recipients, and no sidecar can be written: {error}"
            ) from error
        self._proven_until = self._clock() + PROVEN_S

    def check(self, queued: QueuedMessage) -> None:
        """Raise `FileChangedError` if the sidecar was replaced since the message was opened.

        The recipients in the new one are still owed it. Raises `LocalError` if looking fails.
        """
        name, known = queued.message.name, queued.sidecar_identity
        if sidecars.is_another(self._maildir, name, queued.sidecar, known):
            raise FileChangedError("its sidecar was replaced while it was being sent")

    def named(self, queued: QueuedMessage, owed: Iterable[int]) -> tuple[bytes, ...]:
        """Return the recipients that the sidecar is to name: these, by index, and other routes'."""
        return tuple(self.original(queued, index) for index in owed) + queued.others

    def write(self, queued: QueuedMessage, recipients: tuple[bytes, ...]) -> None:
        """Have the sidecar name these recipients only, as it has them.

        Raises `FileChangedError` if the message or its sidecar is not as it was sent, and
        `LocalError` if the sidecar cannot be written.
        """
        from maildirqmtp.mail.sidecar import Sidecar

        maildir, message = self._maildir, queued.message
        if is_gone(maildir, message, self._include_cur) or not maildir.is_same(message):
            # The sidecar would belong to a message that was never sent.
            raise FileChangedError("it changed while it was being sent")
        self.check(queued)
        failures = queued.sidecar.failures if queued.sidecar else ()
        sender = queued.others_sender if recipients == queued.others else queued.sender
        content = Sidecar(sender, recipients, failures)
        sidecars.write(maildir, message.name, content)

    def original(self, queued: QueuedMessage, index: int) -> bytes:
        """Return a recipient as the sidecar has it, with the prefix."""
        return self._prefix + queued.recipients[index]
