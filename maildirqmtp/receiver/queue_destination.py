"""The destination `--queue DIR`: a maildir that maildirqmtp forwards.

A package becomes one file for all its recipients, with its envelope in a sidecar. The
text stays as it came, but for a Received line on top, so that lines of it that look like
trace lines are no longer the first, and are not read as such.

The order, so that a crash loses nothing; no forwarder sees a message without its sidecar:

    deliver  tmp/X written and fsynced, at the first recipient
    commit   tmp/X.json written and fsynced, renamed to envelope/X.json, for each package
             one fsync of envelope/ | tmp/X linked to new/X, for each | one fsync of new/
             is the queue still the one at its path?
    withdraw new/X and tmp/X removed | fsync of new/ | the sidecars
"""

from collections.abc import Sequence

from maildirqmtp.errors import LocalError
from maildirqmtp.mail.sidecar import MAX_BYTES, Sidecar, encode
from maildirqmtp.maildir import sidecars, writing
from maildirqmtp.maildir.files import Folder
from maildirqmtp.qmtp.protocol import MAX_MESSAGE, Response, Status
from maildirqmtp.receiver.destination import SHARED_FSYNC_PACKAGES, Mail, Outcome, accepted
from maildirqmtp.receiver.storage import Copy, Storage
from maildirqmtp.receiver.user_quota import UserQuota, mark_of

_TOO_MUCH = Response(Status.DEFERRED, b"452 too many recipients in one package (#4.5.3)")
_OVER_QUOTA = Response(Status.DEFERRED, b"452 too much mail of this user is waiting (#4.2.2)")
_TOO_LARGE = Response(
    Status.FAILED, b"552 larger than what goes by QMTP, with its Received line (#5.3.4)"
)
_NEVER_FITS = Response(Status.FAILED, b"552 larger than all that a user may have waiting (#5.3.4)")


class QueueDelivery:
    """One package on its way into the queue; see `Delivery`."""

    def __init__(self, storage: Storage, mail: Mail, quota: UserQuota | None) -> None:
        self.copy: Copy | None = None
        self.outcomes: list[Outcome] = []
        self._storage = storage
        self._mail = mail
        self._quota = quota
        self._recipients: list[bytes] = []
        self._sidecar_bytes = len(encode(Sidecar(mail.sender, ())))
        self._refusal: Response | None = None

    @property
    def content(self) -> Sidecar:
        """The sidecar, once all recipients are known."""
        return Sidecar(self._mail.sender, tuple(self._recipients))

    def deliver(self, recipient: bytes) -> int:
        """Take one more recipient; the text is written with the first.

        Raises `LocalError` if the text cannot be written, or the user's mail not counted.
        """
        # More than the recipient adds: a sidecar of its own is that line and about 50 bytes.
        added = len(encode(Sidecar(b"", (recipient,))))
        if self._sidecar_bytes + added > MAX_BYTES:
            self.outcomes.append(Outcome(_TOO_MUCH))
            return 0
        written = 0
        size = len(self._mail.received) + self._mail.text.size
        if self.copy is None:
            self._refusal = self._refusal or self._refuse(size)
            if self._refusal is not None:
                self.outcomes.append(Outcome(self._refusal))
                return 0
            pieces = self._mail.text.pieces(self._mail.received)
            try:
                self.copy = self._storage.stage(pieces, mark_of(self._mail.user))
            finally:
                if self._quota is not None and self._mail.user is not None:
                    self._quota.written(self._mail.user, size)
            written = size
        self._sidecar_bytes += added
        self._recipients.append(recipient)
        self.outcomes.append(Outcome(accepted(self._mail.now_s), self.copy.name, size))
        return written

    def _refuse(self, size: int) -> Response | None:
        """Return why a message of `size` bytes is not taken from this user; None if it is."""
        if size > MAX_MESSAGE:
            return _TOO_LARGE
        if self._quota is None or self._mail.user is None:
            return None
        if size > self._quota.max_bytes:
            return _NEVER_FITS
        may = self._quota.take(self._storage.folders, self._mail.user, size)
        return None if may else _OVER_QUOTA


class QueueDestination:
    """A queue, which is made if it is missing; see `Destination`.

    `user_quota` is the most bytes of mail that one local user may have waiting in it; None
    for no limit. `renames` is for `--once`. Raises `LocalError` if it cannot be used.
    """

    packages_together = SHARED_FSYNC_PACKAGES

    def __init__(self, path: bytes, user_quota: int | None = None, renames: bool = False) -> None:
        self._storage = Storage(path, has_sidecars=True, renames=renames)
        self._quota = None if user_quota is None else UserQuota(user_quota)

    @property
    def tmp(self) -> Folder:
        """The queue's tmp/."""
        return self._storage.tmp

    def free_bytes(self) -> int:
        """Return the bytes left on its file system. Raises `LocalError` if that is unknown."""
        return self._storage.free_bytes()

    def begin(self, mail: Mail) -> QueueDelivery:
        """Begin to deliver a package."""
        return QueueDelivery(self._storage, mail, self._quota)

    def commit(self, deliveries: Sequence[QueueDelivery]) -> None:
        """Enqueue the packages, durable when this returns.

        Raises `LocalError` if a sidecar or message cannot be put in place or made durable.
        """
        staged = [(d.copy, d.content) for d in deliveries if d.copy is not None]
        for copy, content in staged:
            place = copy.place
            assert place.envelope is not None
            with place.looked_at():
                sidecars.place_first(place.maildir, place.envelope, copy.name, content)
        for place in {copy.place for copy, _ in staged}:
            place.sync_envelope()
        for copy, _ in staged:
            self._storage.publish(copy)
        self._storage.commit([copy for copy, _ in staged])

    def withdraw(self, deliveries: Sequence[QueueDelivery]) -> list[LocalError]:
        """Remove what was not committed; return the errors.

        If the removal from new/ cannot be made durable, the sidecars stay: an orphan does no harm,
        but a message without its sidecar might be sent to other recipients. That fsync may take the
        error of another batch's links: `sync_new` tells that batch.
        """
        errors = []
        copies = [d.copy for d in deliveries if d.copy is not None]
        for place in {copy.place for copy in copies}:
            names = [copy.name for copy in copies if copy.place is place]
            try:
                writing.withdraw(place.maildir, names, envelope=None)
                if place.trouble is None:
                    place.sync_new()
                    self._remove_sidecars(place.envelope, names)
            except LocalError as error:
                errors.append(error)
        return errors

    @staticmethod
    def _remove_sidecars(envelope: Folder | None, names: Sequence[bytes]) -> None:
        assert envelope is not None
        for name in names:
            sidecars.remove(envelope, name)

    def abort(self) -> None:
        """Do nothing: waiting for a disk cannot be cut short."""

    def close(self) -> None:
        """Close the queue; harmless twice."""
        self._storage.close()
