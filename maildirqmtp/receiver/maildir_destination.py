"""The destination `DIR`: a maildir that gets a copy for each recipient.

On top of each copy are its Return-Path and Delivered-To, in the quoted form of
addresses, for whatever reads the maildir, our own forwarder included.
"""

from collections.abc import Sequence

from maildirqmtp.errors import LocalError
from maildirqmtp.mail.addresses import quote
from maildirqmtp.maildir.files import Folder
from maildirqmtp.qmtp.protocol import MAX_MESSAGE, Response, Status
from maildirqmtp.receiver.destination import SHARED_FSYNC_PACKAGES, Mail, Outcome, accepted
from maildirqmtp.receiver.storage import Copy, Storage

#: Most bytes of all copies of one package together; the first copy may exceed it.
MAX_PACKAGE_BYTES = MAX_MESSAGE

_TOO_MUCH = Response(Status.DEFERRED, b"452 too many recipients for its size (#4.5.3)")


class CopyDelivery:
    """The copies of one package; see `Delivery`."""

    def __init__(self, storage: Storage, mail: Mail, max_bytes: int) -> None:
        self.copies: list[Copy] = []
        self.outcomes: list[Outcome] = []
        self._storage = storage
        self._mail = mail
        self._room = max_bytes

    def deliver(self, recipient: bytes) -> int:
        """Write one more copy. Raises `LocalError` if it cannot be written."""
        text = self._mail.text
        if self.copies and text.size > self._room:
            self.outcomes.append(Outcome(_TOO_MUCH))
            return 0
        header = b"Return-Path: <%b>\nDelivered-To: %b\n%b" % (
            quote(self._mail.sender),
            quote(recipient),
            self._mail.received,
        )
        size = len(header) + text.size
        copy = self._storage.stage(text.pieces(header))
        self._room -= size
        self.copies.append(copy)
        self.outcomes.append(Outcome(accepted(self._mail.now_s), copy.name, size))
        return size


class MaildirDestination:
    """A maildir, which is made if it is missing; see `Destination`.

    `max_size` is the most bytes of a message that the policy accepts: one copy always has
    room. `renames` is for `--once`. Raises `LocalError` if the maildir cannot be used.
    """

    packages_together = SHARED_FSYNC_PACKAGES

    def __init__(self, path: bytes, max_size: int = MAX_MESSAGE, renames: bool = False) -> None:
        self.storage = Storage(path, renames=renames)
        self._max_bytes = max(MAX_PACKAGE_BYTES, max_size)

    @property
    def tmp(self) -> Folder:
        """The maildir's tmp/."""
        return self.storage.tmp

    def free_bytes(self) -> int:
        """Return the bytes left on its file system. Raises `LocalError` if that is unknown."""
        return self.storage.free_bytes()

    def begin(self, mail: Mail) -> CopyDelivery:
        """Begin to deliver a package."""
        return CopyDelivery(self.storage, mail, self._max_bytes)

    def commit(self, deliveries: Sequence[CopyDelivery]) -> None:
        """Move all copies into new/, durable when this returns.

        Raises `LocalError` if a copy cannot be moved or made durable.
        """
        copies = [copy for delivery in deliveries for copy in delivery.copies]
        for copy in copies:
            self.storage.publish(copy)
        self.storage.commit(copies)

    def withdraw(self, deliveries: Sequence[CopyDelivery]) -> list[LocalError]:
        """Remove copies that were not committed; return the errors."""
        return self.storage.withdraw(copy for delivery in deliveries for copy in delivery.copies)

    def abort(self) -> None:
        """Do nothing: waiting for a disk cannot be cut short."""

    def close(self) -> None:
        """Close the maildir; harmless twice."""
        self.storage.close()
