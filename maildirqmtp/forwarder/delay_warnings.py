"""Telling senders that their messages wait: once, when these are older than `--warn-after`.

    | noted in the state file, durable | the warning is handed on |

In this order: a crash in between loses the warning, and never sends a second one. The message is
still there, and its sender is told where it fails in the end. So where a warning cannot be noted it
is not sent; where the mailer does not take it, the note goes again, and a later run tries again.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from maildirqmtp.errors import EnvelopeError, FileChangedError, LocalError
from maildirqmtp.forwarder import bounces
from maildirqmtp.forwarder.lifetime import FIRST_DEFERRED_S
from maildirqmtp.forwarder.mailers import MailerTimeout
from maildirqmtp.forwarder.queued_message import PassedOver, prepare
from maildirqmtp.mail import dsn
from maildirqmtp.mail.addresses import takes_no_bounce
from maildirqmtp.maildir import names
from maildirqmtp.text import printable
from maildirqmtp.transport.host_name import full_host_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from maildirqmtp.forwarder.queued_message import QueuedMessage
    from maildirqmtp.forwarder.report import Report
    from maildirqmtp.forwarder.route import Route
    from maildirqmtp.maildir.files import Folder
    from maildirqmtp.maildir.maildir import Maildir
    from maildirqmtp.maildir.state import State


class DelayWarner:
    """Warns the senders of one route's messages; `wall_clock` is seconds of the epoch.

    At most `max_bounces` warnings in an hour, counted apart from bounces; the others come later.
    """

    def __init__(
        self,
        maildir: Maildir,
        route: Route,
        report: Report,
        state: State,
        wall_clock: Callable[[], float],
    ) -> None:
        self._maildir = maildir
        self._route = route
        self._report = report
        self._state = state
        self._wall_clock = wall_clock
        self._mailer = bounces.make_mailer(maildir, route)
        self._sent = 0
        self._since_s = wall_clock()
        self._complaint = ""

    def may_warn(self) -> bool:
        """Say whether there may be another warning now."""
        now_s = self._wall_clock()
        if not 0 <= now_s - self._since_s < bounces.HOUR_S:  # or the clock was set
            self._sent, self._since_s = 0, now_s
        return self._sent < self._route.max_bounces

    def is_due(self, folder: Folder, name: bytes) -> bool:
        """Say whether a message has waited for so long that its sender may be told now."""
        assert self._route.warn_after_s is not None
        if self._state.was_warned(name):
            return False
        try:
            status = os.stat(name, dir_fd=folder.fd, follow_symlinks=False)
        except OSError:
            return False  # gone, or the forwarder says what is wrong with it
        age_s = self._wall_clock() - status.st_mtime
        return stat.S_ISREG(status.st_mode) and age_s >= self._route.warn_after_s

    def warn_all(self, candidates: Iterable[tuple[Folder, bytes]]) -> None:
        """Warn of each of these that is due, as far as that is possible now."""
        for folder, name in candidates:
            if not self.may_warn():
                return
            if self.is_due(folder, name) and not self.warn(folder, name):
                return

    def warn(self, folder: Folder, name: bytes) -> bool:
        """Warn the sender of a message; say whether it makes sense to go on with the next one."""
        try:
            queued = prepare(self._maildir, self._route, folder, name)
        except (EnvelopeError, FileChangedError, LocalError):
            return True  # it is held, and the forwarder has told why
        if isinstance(queued, PassedOver):
            return True
        try:
            sender = queued.sender
            if queued.refusal or takes_no_bounce(sender) or not self._mailer.can_reach(sender):
                return True
            return self._send(queued)
        finally:
            queued.close()

    def _send(self, queued: QueuedMessage) -> bool:
        name = queued.message.name
        warning = self._build(queued)
        if not self._state.note_warned(name):
            self._complain("it cannot be noted in the state file")
            return False
        try:
            self._mailer.send(dsn.build(warning), queued.sender, warning.identifier)
        except MailerTimeout as error:
            self._complain(f"{error}; it may have been sent")
            return False
        except LocalError as error:
            self._state.forget_warned(name)
            self._complain(f"{error}; it is tried again")
            return False
        self._sent += 1
        self._complaint = ""
        sender = printable(queued.sender)
        self._report.note(f"{printable(name)}: <{sender}> has been told that it waits")
        return True

    def _complain(self, why: str) -> None:
        """Say it once, not with each try."""
        if why != self._complaint:
            self._complaint = why
            self._report.problem(f"no warning of a delay can be sent: {why}")

    def _build(self, queued: QueuedMessage) -> dsn.Bounce:
        message, now_s = queued.message, self._wall_clock()
        attempts = self._state.attempts(message.name)[1]
        lifetime_s = self._route.lifetime_s
        # As `lifetime.final_failure` has it, for what has never been tried.
        until_s = max(message.mtime_s + lifetime_s, now_s + min(FIRST_DEFERRED_S, lifetime_s))
        recipients = queued.recipients
        arrived_ns = message.identity[3]
        kept = queued.kept + message.data[queued.offset : queued.offset + dsn.QUOTE_BYTES]
        return dsn.Bounce(
            sender=queued.sender,
            failed=tuple(dsn.Failed(r, _response(attempts, r, recipients)) for r in recipients),
            original=kept[: dsn.QUOTE_BYTES],
            complete=False,  # so that it has the header only (RFC 3461, 4.3)
            identifier=dsn.identify(b"delay\0" + names.plain(message.name), arrived_ns, recipients),
            host=self._route.hostname or full_host_name(),
            server=None,
            arrived_s=message.mtime_s,
            now_s=now_s,
            delay=dsn.Delay(until_s, float(attempts[0][0]) if attempts else None),
        )


def _response(
    attempts: tuple[tuple[int, str], ...], recipient: bytes, recipients: tuple[bytes, ...]
) -> str:
    """Return what was last said of a recipient, as a server's answer; empty for nothing known."""
    about = f"<{printable(recipient)}>: " if len(recipients) > 1 else ""
    said = [text.removeprefix(about) for _, text in attempts if text and text.startswith(about)]
    return f"Z{said[0]}" if said else ""
