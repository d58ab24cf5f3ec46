"""Warns senders, once, that their messages wait, when these are older than `--warn-after`.

    | noted in the state file, durable | the warning is handed on |

In this order, a crash in between loses the warning, and never sends a second one. The message is
still there, and its sender is told if it fails in the end. So a warning that cannot be noted is not
sent; if the mailer does not take one, its note is removed, and a later run tries again.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from maildirqmtp.errors import EnvelopeError, FileChangedError, LocalError
from maildirqmtp.forwarder import bounces
from maildirqmtp.forwarder.attempts import last_answer
from maildirqmtp.forwarder.lifetime import FIRST_DEFERRED_S
from maildirqmtp.forwarder.mailers import MailerTimeout
from maildirqmtp.forwarder.queued_message import PassedOver, prepare
from maildirqmtp.mail import dsn
from maildirqmtp.mail.addresses import takes_no_bounce
from maildirqmtp.maildir import holds, names
from maildirqmtp.maildir.warned import Noted
from maildirqmtp.text import printable
from maildirqmtp.transport.host_name import full_host_name

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable

    from maildirqmtp.forwarder.queued_message import QueuedMessage
    from maildirqmtp.forwarder.report import Report
    from maildirqmtp.forwarder.route import Route
    from maildirqmtp.forwarder.stop import Stop
    from maildirqmtp.maildir.files import Folder
    from maildirqmtp.maildir.maildir import Maildir
    from maildirqmtp.maildir.state import State

#: Warnings that fail in a row before a pass over the messages ends.
MOST_FAILURES = 3
# Names that are kept of messages whose warning failed, and of those that never have one.
_MOST_NAMES = 10_000
_FULL = (
    "as many are noted in the state file as there is room for; no other sender is told until some "
    "of the messages that these were about are gone"
)


class DelayWarner:
    """Warns the senders of one route's messages; `wall_clock` is seconds of the epoch.

    At most `max_bounces` warnings are tried in an hour, counted apart from bounces; the others come
    later. A pass over the messages ends after three failures in a row, or with `stop`; `has_failed`
    says which come last in the next pass. `known` returns the names of all messages that are there:
    when there is no room, notes about other messages are dropped.
    """

    def __init__(
        self,
        maildir: Maildir,
        route: Route,
        report: Report,
        state: State,
        wall_clock: Callable[[], float],
        known: Callable[[], Iterable[bytes]],
        stop: Stop | None = None,
    ) -> None:
        self._maildir = maildir
        self._route = route
        self._report = report
        self._state = state
        self._wall_clock = wall_clock
        self._stop = stop
        self._mailer = bounces.make_mailer(maildir, route, stop)
        self._known = known
        self._failed: dict[bytes, str] = {}
        self._never: dict[bytes, str] = {}
        self._failures = 0
        self._tried = 0
        self._since_s = wall_clock()
        self._complaint = ""

    def begin(self) -> None:
        """Begin a pass over all messages."""
        self._failures = 0

    def has_failed(self, name: bytes) -> bool:
        """Return whether a warning about this message has failed: it comes after the others."""
        return names.plain(name) in self._failed

    def may_warn(self) -> bool:
        """Return whether another warning may be sent now."""
        if self._stop is not None and self._stop.is_told:
            return False
        now_s = self._wall_clock()
        if not 0 <= now_s - self._since_s < bounces.HOUR_S:  # or the clock was set
            self._tried, self._since_s = 0, now_s
        return self._tried < self._route.max_bounces

    def is_due(self, folder: Folder, name: bytes, held: Container[str]) -> bool:
        """Return whether a message has waited for so long that its sender may be warned now.

        `held` are the messages on hold: an administrator knows of these, and no warning is sent.
        """
        assert self._route.warn_after_s is not None
        if names.plain(name) in self._never or holds.key(name) in held:
            return False
        if self._state.was_warned(name, self._route.prefix):
            return False
        try:
            status = os.stat(name, dir_fd=folder.fd, follow_symlinks=False)
        except OSError:
            return False  # gone, or the forwarder says what is wrong with it
        age_s = self._wall_clock() - status.st_mtime
        return stat.S_ISREG(status.st_mode) and age_s >= self._route.warn_after_s

    def warn_all(self, candidates: Iterable[tuple[Folder, bytes]]) -> None:
        """Send a warning for each of these messages that is due, as far as possible now."""
        self.begin()
        held = self._state.held()
        for folder, name in sorted(candidates, key=lambda candidate: self.has_failed(candidate[1])):
            if not self.may_warn():
                return
            if self.is_due(folder, name, held) and not self.warn(folder, name):
                return

    def warn(self, folder: Folder, name: bytes) -> bool:
        """Warn the sender of a message; return whether to go on with the next one."""
        try:
            queued = prepare(self._maildir, self._route, folder, name)
        except (EnvelopeError, FileChangedError, LocalError):
            return True  # it is held, and the forwarder has told why
        if isinstance(queued, PassedOver):
            if queued is PassedOver.FOR_OTHERS:
                _keep(self._never, name)
            return True
        try:
            sender = queued.sender
            if queued.refusal or takes_no_bounce(sender) or not self._mailer.can_reach(sender):
                _keep(self._never, name)
                return True
            return self._send(queued)
        finally:
            queued.close()

    def _send(self, queued: QueuedMessage) -> bool:
        name = queued.message.name
        warning = self._build(queued)
        noted = self._note(name)
        if noted is not Noted.NEW:
            return noted is Noted.ALREADY
        self._tried += 1
        try:
            self._mailer.send(dsn.build(warning), queued.sender, warning.identifier)
        except MailerTimeout as error:
            self._complain(f"{error}; it may have been sent")
            return False
        except LocalError as error:
            self._state.forget_warned(name, self._route.prefix)
            if self._failed.get(names.plain(name)) != str(error):
                self._complain(f"{error}; it is tried again")
            _keep(self._failed, name, str(error))
            self._failures += 1
            return self._failures < MOST_FAILURES
        self._failed.pop(names.plain(name), None)
        self._failures = 0
        self._complaint = ""
        sender = printable(queued.sender)
        self._report.note(f"{printable(name)}: <{sender}> has been told that it waits")
        return True

    def _note(self, name: bytes) -> Noted:
        """Note that a sender is warned; if there is no room, drop notes about messages now gone."""
        state, prefix = self._state, self._route.prefix
        noted = state.note_warned(name, prefix)
        if noted is Noted.FULL and state.keep_warned(self._known(), prefix):
            noted = state.note_warned(name, prefix)
        if noted is Noted.FULL:
            self._complain(_FULL)
        elif noted is Noted.FAILED:
            self._complain("it cannot be noted in the state file")
        return noted

    def _complain(self, why: str) -> None:
        """Report a problem once, not with each try."""
        if why != self._complaint:
            self._complaint = why
            self._report.problem(f"no warning of a delay can be sent: {why}")

    def _build(self, queued: QueuedMessage) -> dsn.Bounce:
        message, now_s = queued.message, self._wall_clock()
        attempts = self._state.attempts(message.name)[1]
        lifetime_s = self._route.lifetime_s
        # As `lifetime.final_failure` decides for a message that was never tried.
        until_s = max(message.mtime_s + lifetime_s, now_s + min(FIRST_DEFERRED_S, lifetime_s))
        recipients = queued.recipients
        arrived_ns = message.identity[3]
        kept = queued.kept + message.data[queued.offset : queued.offset + dsn.QUOTE_BYTES]
        return dsn.Bounce(
            sender=queued.sender,
            failed=tuple(dsn.Failed(r, _response(attempts, r)) for r in recipients),
            original=kept[: dsn.QUOTE_BYTES],
            complete=False,  # so that it has the header only (RFC 3461, 4.3)
            identifier=dsn.identify(b"delay\0" + names.plain(message.name), arrived_ns, recipients),
            host=self._route.hostname or full_host_name(),
            server=None,
            arrived_s=message.mtime_s,
            now_s=now_s,
            delay=dsn.Delay(until_s, float(attempts[0][0]) if attempts else None),
        )


def _response(attempts: tuple[tuple[int, str], ...], recipient: bytes) -> str:
    """Return the last reason noted for a recipient as a server's answer; empty for none."""
    said = last_answer(attempts, recipient)
    return f"Z{said}" if said else ""


def _keep(kept: dict[bytes, str], name: bytes, why: str = "") -> None:
    """Keep a name, and why; forget all others if there are too many."""
    if len(kept) >= _MOST_NAMES:
        kept.clear()
    kept[names.plain(name)] = why
