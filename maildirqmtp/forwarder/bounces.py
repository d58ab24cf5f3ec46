"""Decides whether a failure becomes a bounce, and sends it.

The null sender, `#@[]` and senders that the mailer cannot reach get no bounce, and
there are at most `--max-bounces` in a run, or in an hour of it: failures that are
not bounced go to the failed maildir, where nothing is lost.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from maildirqmtp.errors import FileChangedError
from maildirqmtp.forwarder import mailers
from maildirqmtp.forwarder.removed import following
from maildirqmtp.forwarder.route import BounceMethod
from maildirqmtp.mail import dsn
from maildirqmtp.mail.addresses import takes_no_bounce
from maildirqmtp.maildir import names
from maildirqmtp.text import printable
from maildirqmtp.transport.host_name import full_host_name

if TYPE_CHECKING:
    from collections.abc import Callable

    from maildirqmtp.forwarder.queued_message import QueuedMessage
    from maildirqmtp.forwarder.report import Report
    from maildirqmtp.forwarder.route import Route
    from maildirqmtp.forwarder.stop import Stop
    from maildirqmtp.maildir.maildir import Maildir


#: Seconds after which bounces are counted anew.
HOUR_S = 3_600.0


class Bouncer:
    """Bounces the failures of one route. `wall_clock` is seconds of the epoch.

    `queue` is the maildir for bounces that go through the route's server, None for `maildir`;
    `stop` ends a mailer.
    """

    def __init__(
        self,
        maildir: Maildir,
        route: Route,
        report: Report,
        wall_clock: Callable[[], float],
        queue: Maildir | None = None,
        stop: Stop | None = None,
    ) -> None:
        self._maildir = maildir
        self._route = route
        self._report = report
        self._wall_clock = wall_clock
        self._sent = 0
        self._since_s = wall_clock()
        self._mailer = make_mailer(queue or maildir, route, stop)

    def refusal(self, queued: QueuedMessage) -> str:
        """Return why a failure of this message does not become a bounce; empty if it does."""
        sender = printable(queued.sender)
        if takes_no_bounce(queued.sender):
            return f"it came from <{sender}>"
        if not self._mailer.can_reach(queued.sender):
            return f"<{sender}> is no plain address"
        now_s = self._wall_clock()
        if not 0 <= now_s - self._since_s < HOUR_S:  # or the clock was set
            self._sent, self._since_s = 0, now_s
        if self._sent < self._route.max_bounces:
            return ""
        if self._sent == self._route.max_bounces:
            self._sent += 1
            self._report.note(
                f"{self._route.max_bounces} bounces are enough for one run or hour "
                f"(--max-bounces); the other failures go to the failed maildir"
            )
        return "there have been enough"

    def bounce(
        self,
        queued: QueuedMessage,
        failures: dict[int, str],
        host: str,
        earlier: tuple[tuple[int, str], ...] = (),
    ) -> bytes | None:
        """Bounce these failures to the sender; call it only if `refusal` returns nothing.

        `host` is that of the server that answered, `earlier` time and text of earlier attempts.

        Return the name of the bounce if it is a message of our own maildir now, else
        None. Raises `LocalError` if the bounce could not be handed on, and
        `FileChangedError` if the file is no longer the one that was sent.
        """
        message = queued.message
        recipients = tuple(queued.recipients[index] for index in failures)
        identifier = dsn.identify(names.plain(message.name), message.identity[3], recipients)
        original, complete = following(
            self._maildir, self._route.include_cur, message, lambda: self._original(queued)
        )
        bounce = dsn.Bounce(
            sender=queued.sender,
            failed=tuple(
                dsn.Failed(queued.recipients[index], text) for index, text in failures.items()
            ),
            original=original,
            complete=complete,
            identifier=identifier,
            host=self._route.hostname or full_host_name(),
            server=None if queued.refusal else host,
            arrived_s=message.mtime_s,
            now_s=self._wall_clock(),
            earlier=earlier,
        )
        name = self._mailer.send(dsn.build(bounce), queued.sender, identifier)
        self._sent += 1
        return name

    def _original(self, queued: QueuedMessage) -> tuple[bytes, bool]:
        """Return the text as it was sent, or its beginning, and whether it is all of it."""
        message = queued.message
        again = self._maildir.load(message.folder, message.name)
        if again is None or again.identity != message.identity:
            if again is not None:
                again.close()
            raise FileChangedError("it changed while it was being sent")
        again.close()
        original = queued.kept + again.data[queued.offset :]
        limit = dsn.QUOTE_BYTES + 1
        return original[:limit], len(original) == queued.length


def make_mailer(maildir: Maildir, route: Route, stop: Stop | None = None) -> mailers.Mailer:
    """Return the mailer for the bounces and warnings of a route; `stop` ends its command."""
    if route.bounce_via.method is BounceMethod.SERVER:
        return mailers.QueueMailer(maildir, route.prefix)
    if route.bounce_via.maildir is not None:
        return mailers.MaildirMailer(route.bounce_via.maildir)
    if stop is None:
        return mailers.SendmailMailer(route.sendmail)
    return mailers.SendmailMailer(route.sendmail, limit_s=stop.mailer_s)
