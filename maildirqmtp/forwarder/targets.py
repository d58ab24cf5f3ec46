"""The maildirs that messages are moved to: `--sent`, and the failed maildir.

    put in, by link or copy | is the maildir still the one at its path? | (caller) the message goes

They are known by their paths. An administrator may rename or remove one while a daemon runs; the
one that is open is then a maildir where nobody looks for mail.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from maildirqmtp.errors import LocalError, SidecarError
from maildirqmtp.forwarder.removed import following
from maildirqmtp.maildir import sidecars, writing
from maildirqmtp.maildir.maildir import Maildir
from maildirqmtp.text import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import TypeVar

    from maildirqmtp.forwarder.removals import Removals
    from maildirqmtp.forwarder.report import Report
    from maildirqmtp.forwarder.route import Route
    from maildirqmtp.mail.sidecar import Failure, Sidecar
    from maildirqmtp.maildir.files import Folder, Message

    T = TypeVar("T")

#: Seconds after which it is proved once more that files can be put into `sent`.
REHEARSE_S = 10.0
# How often a message is put into the maildir at a path, if that is replaced each time.
_TRIES = 2


class TargetMaildirs:
    """The target maildirs: made if missing, opened when first needed, and kept open.

    One that is not at its path any more is opened, or made, anew; before it is closed, `removals`
    makes durable what was moved to it.
    """

    __slots__ = (
        "_clock",
        "_failed",
        "_follow",
        "_full",
        "_named",
        "_open",
        "_rehearse_at",
        "_removals",
        "_report",
        "_seen",
    )

    def __init__(
        self,
        maildir: Maildir,
        route: Route,
        report: Report,
        removals: Removals,
        clock: Callable[[], float],
    ) -> None:
        self._follow = partial(following, maildir, route.include_cur)
        self._failed = route.failed_maildir
        # A link that the route does not name may have been put there by somebody else.
        self._named = (route.failed, route.sent)
        self._report = report
        self._removals = removals
        self._open: dict[bytes, Maildir] = {}
        # Paths that were checked in this turn: if one is replaced later, a message is put twice.
        self._seen: set[bytes] = set()
        self._clock = clock
        self._rehearse_at: float | None = None
        self._full = ""

    def get(self, path: bytes) -> Maildir:
        """Return the maildir at this path. Raises `LocalError` if it cannot be opened or made."""
        target = self._open.get(path)
        if target is not None and path not in self._seen and not target.new.is_at_path():
            self._let_go(target)
            target = None
        if target is None:
            nofollow = path not in self._named
            writing.create(path, nofollow)
            target = self._open[path] = Maildir(path, nofollow)
        self._seen.add(path)
        return target

    def prove(self, path: bytes) -> None:
        """Prove that messages can be moved to `path`. Raises `LocalError` if they cannot be."""
        self._full = writing.rehearse(self.get(path))
        self._rehearse_at = self._clock() + REHEARSE_S

    def prove_room(self, path: bytes, message: Message, others_bytes: int) -> None:
        """Prove that there is room for a message, and for others of so many bytes, at `path`.

        A message that can be linked takes none. Raises `LocalError` if there is not enough.
        """
        try:
            target, needed = self.get(path), message.size + others_bytes
            if self._rehearse_at is None:
                self.prove(path)
        except LocalError:
            return  # it stops all messages, not only this one
        if self._rehearse_at is not None and self._clock() >= self._rehearse_at:
            self.prove(path)
        is_short = target.tmp.free_bytes() < needed
        if (is_short or self._full) and not writing.can_link(target, message):
            why = f"less than {needed} bytes are free there" if is_short else self._full
            raise LocalError(f"it could not be moved to {printable(path)} afterwards: {why}")

    def look_again(self) -> None:
        """Have `get` look at the paths once more."""
        self._seen.clear()

    def keep(self, path: bytes, message: Message) -> Folder:
        """Put a message into the maildir at `path` as well; return the directory to sync first.

        Raises `LocalError` if that fails, `FileChangedError` if its name is not the same file now.
        """

        def add(target: Maildir) -> Folder:
            name = writing.free_name(target, message)
            self._follow(message, lambda: writing.adopt(target, message, name))
            return target.new

        return self._put(path, add)

    def fail(self, message: Message, sender: bytes, failures: Sequence[Failure]) -> bytes:
        """Put a message into the failed maildir as well, durably, for these recipients.

        Return its path there; raises as `keep`.
        """
        from maildirqmtp.mail.sidecar import Sidecar

        def add(target: Maildir) -> bytes:
            name = writing.free_name(target, message)
            is_there = target.new.has(name)
            # An orphan tells of recipients who have been seen to, as by `qmtpq resend`.
            before = _usable(target, name) if is_there else None
            known, listed = (before.recipients, before.failures) if before else ((), ())
            recipients = dict.fromkeys((*known, *(f.recipient for f in failures)))
            envelope = target.durable_envelope()
            sidecars.write(target, name, Sidecar(sender, tuple(recipients), (*listed, *failures)))
            # Linked once more, two files would have one sidecar, and be sent with and without it.
            is_in_cur = is_there and not target.new.has(name) and sidecars.is_used(target, name)
            if not is_in_cur:
                self._follow(message, lambda: writing.adopt(target, message, name))
            target.new.sync()
            target.check_path(envelope)
            return target.new.join(name)

        return self._put(self._failed, add)

    def _put(self, path: bytes, add: Callable[[Maildir], T]) -> T:
        """Put something into the maildir at `path`, and make sure that it is still there then."""
        for _ in range(_TRIES):
            target = self.get(path)
            try:
                done = add(target)
            except LocalError:
                if target.is_current():
                    raise
            else:
                if target.new.is_at_path():
                    return done
            self._let_go(target)
        raise LocalError(f"{printable(path)} was replaced while mail was being moved to it")

    def _let_go(self, target: Maildir) -> None:
        """Close a maildir that is not at its path any more. Raises as `Removals.finish`."""
        self._removals.finish()
        self._seen.discard(target.path)
        del self._open[target.path]
        target.close()
        path = printable(target.path)
        self._report.note(f"{path} was renamed, removed or replaced; opening or making it anew")

    def close(self) -> None:
        """Close them; `get` opens them again."""
        for target in self._open.values():
            target.close()
        self._open.clear()
        self._seen.clear()


def _usable(target: Maildir, name: bytes) -> Sidecar | None:
    """Return a message's sidecar; None if there is none, or it cannot be used: ours replaces it."""
    try:
        return sidecars.read(target, name)
    except SidecarError:
        return None
