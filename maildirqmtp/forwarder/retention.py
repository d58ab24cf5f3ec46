"""Removes what the sent and the failed maildir of a route have kept for long enough.

Each of them is looked at every few hours, by the first of the routes that share it: the time of the
last look is in the maildir itself (`maildir.trusted_clock`). Errors are reported, and stop nothing:
all of this mail is done with.
"""

# No postponed annotations; see `forwarder.route`.
import os
from collections.abc import Callable, Generator, Iterator
from typing import NamedTuple

from maildirqmtp.errors import LocalError, LockedError
from maildirqmtp.forwarder.report import Report
from maildirqmtp.forwarder.route import Route
from maildirqmtp.maildir import expiry, trusted_clock
from maildirqmtp.maildir.expiry import Expiry
from maildirqmtp.maildir.files import local_error
from maildirqmtp.maildir.maildir import Maildir
from maildirqmtp.text import printable

#: Seconds between two looks at a maildir; fewer if messages are kept for a short time.
LOOK_S = 6 * 3_600.0
# How the names of the files begin that forwarders write in a maildir: state and status.
_FORWARDED = ".maildirqmtp-sta"


class KeptMaildir(NamedTuple):
    """A maildir whose messages are kept for `keep_s` seconds, by the setting `key`.

    `nofollow`: the route does not name its path, which must not end in a link.
    """

    key: str
    path: bytes
    keep_s: float
    nofollow: bool = False


def kept_maildirs(route: Route) -> list[KeptMaildir]:
    """Return those maildirs of a route from which messages are removed."""
    found = []
    if route.sent is not None and route.keep_sent_s is not None:
        found.append(KeptMaildir("keep-sent", route.sent, route.keep_sent_s))
    if route.keep_failed_s is not None:
        nofollow = route.failed is None
        found.append(
            KeptMaildir("keep-failed", route.failed_maildir, route.keep_failed_s, nofollow)
        )
    return found


class Retention:
    """The retention of one route, whose maildir is open. `wall_clock` is seconds of the epoch."""

    def __init__(
        self, route: Route, report: Report, maildir: Maildir, wall_clock: Callable[[], float]
    ) -> None:
        self._kept = kept_maildirs(route)
        self._report = report
        self._maildir = maildir
        self._wall_clock = wall_clock
        self._said: set[str] = set()

    @property
    def look_every_s(self) -> float:
        """Seconds between two looks."""
        return min(_every_s(kept) for kept in self._kept)

    def portions(self) -> Generator[None, None, None]:
        """Look at the maildirs that are due, and remove what is old, one portion in each step.

        The maildir is locked only within each step, so that `qmtpq resend` need not wait.
        """
        for kept in self._kept:
            try:
                if os.path.lexists(kept.path):  # else nothing has come there yet
                    with Maildir(kept.path, kept.nofollow) as target:
                        yield from self._expire(kept, target)
            except LocalError as error:
                self._say(f"{kept.key}: {error}")

    def count(self) -> Iterator[tuple[KeptMaildir, int]]:
        """Yield each maildir and how many messages would be removed from it now.

        Raises `LocalError` if that cannot be told, or nothing may be removed from one of them.
        """
        for kept in self._kept:
            if os.path.lexists(kept.path):
                with Maildir(kept.path, kept.nofollow) as target:
                    self._check(kept, target)
                    reading = trusted_clock.judge(
                        trusted_clock.read(target.root), self._wall_clock()
                    )
                    look = Expiry(target, kept.keep_s, reading.trusted_s)
                    yield kept, look.count()
                    if look.fault is not None:
                        raise look.fault

    def _expire(self, kept: KeptMaildir, target: Maildir) -> Iterator[None]:
        self._check(kept, target)
        now_s = self._wall_clock()
        before = trusted_clock.read(target.root)
        if before is not None and 0 <= now_s - before.seen_s < _every_s(kept):
            return
        reading = trusted_clock.judge(before, now_s)
        look = Expiry(target, kept.keep_s, reading.trusted_s)
        portions = look.portions()
        try:
            while self._lock(target):
                try:
                    is_through = next(portions, self) is self
                finally:
                    target.unlock()
                if is_through:
                    # Written last: on a full disk, the removals make room for it.
                    trusted_clock.write(target.root, reading)
                    break
                yield
        finally:
            if look.removed:
                self._report.expired(kept.key, kept.path, look.removed)
        if look.fault is not None:
            raise look.fault

    @staticmethod
    def _lock(target: Maildir) -> bool:
        """Lock a maildir for one portion; return False if another process has it locked.

        That is `qmtpq` or another route, for a moment: the next look is early enough. Raises
        `LocalError` if it cannot be locked for another reason.
        """
        try:
            target.lock()
        except LockedError:
            return False
        return True

    def _check(self, kept: KeptMaildir, target: Maildir) -> None:
        """Raise `LocalError` if mail may wait there, or the maildir may be another user's."""
        try:
            expiry.check_owners(target)
            self._check_place(kept, target)
        except OSError as error:
            raise local_error("look at", kept.path, error) from error

    def _check_place(self, kept: KeptMaildir, target: Maildir) -> None:
        path = printable(kept.path)
        if kept.nofollow and self._maildir.owners is not None:
            owner = os.fstat(target.root.fd).st_uid
            if owner not in self._maildir.owners:
                raise LocalError(f"{path} belongs to user {owner}, who is not the maildir's owner")
        for ours in (self._maildir.new, self._maildir.cur):
            for theirs in (target.new, target.cur):
                if os.path.samestat(os.fstat(ours.fd), os.fstat(theirs.fd)):
                    raise LocalError(f"{path} is the maildir that is forwarded")
        for name in os.listdir(target.root.fd):
            if name.startswith(_FORWARDED):
                raise LocalError(
                    f"nothing is removed from {path}: it is forwarded itself, or was, as "
                    f"{name} in it tells; remove that file where nothing waits there any more"
                )

    def _say(self, what: str) -> None:
        """Report a warning once, not with each look."""
        if what not in self._said:
            self._said.add(what)
            self._report.warning(what)


def _every_s(kept: KeptMaildir) -> float:
    return min(LOOK_S, max(1.0, kept.keep_s / 10))
