"""The bounces that a settler sends: one for each message with recipients who failed for good.

A bounce that cannot be handed on keeps its recipients among those who are owed the message, until
that is too old.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from maildirqmtp.maildir.state import BOUNCE

if TYPE_CHECKING:
    from collections.abc import Callable

    from maildirqmtp.errors import LocalError
    from maildirqmtp.forwarder.attempts import AttemptNotes
    from maildirqmtp.forwarder.bounces import Bouncer
    from maildirqmtp.forwarder.queued_message import QueuedMessage
    from maildirqmtp.forwarder.report import Report
    from maildirqmtp.forwarder.route import Route
    from maildirqmtp.forwarder.stop import Stop
    from maildirqmtp.maildir.files import Folder
    from maildirqmtp.maildir.maildir import Maildir
    from maildirqmtp.maildir.state import State

#: Seconds for which mailers may refuse the bounce of a message that is too old.
REFUSED_S = 86_400.0


class SettledBounces:
    """The bounces of one route. `wall_clock` is seconds of the epoch; `stop` ends a mailer."""

    def __init__(
        self,
        maildir: Maildir,
        route: Route,
        report: Report,
        wall_clock: Callable[[], float],
        attempts: AttemptNotes,
        state: State | None,
        stop: Stop | None,
    ) -> None:
        self._maildir = maildir
        self._route = route
        self._report = report
        self._wall_clock = wall_clock
        self._attempts = attempts
        self._state = state
        self._stop = stop
        self._bouncer: Bouncer | None = None
        self._no_bounces = ""
        self._bounces: list[tuple[Folder, bytes]] = []

    def refusal(self, queued: QueuedMessage) -> str | None:
        """Return why no bounce is sent; empty if one is sent, None if none is wanted."""
        if not self._route.bounce:
            return None
        if self._bouncer is None:
            from maildirqmtp.forwarder.bounces import Bouncer

            self._bouncer = Bouncer(
                self._maildir, self._route, self._report, self._wall_clock, stop=self._stop
            )
        return self._bouncer.refusal(queued)

    def bounce(self, queued: QueuedMessage, failures: dict[int, str], host: str) -> None:
        """Bounce to the sender. Raises `LocalError` if the bounce could not be handed on."""
        assert self._bouncer is not None
        earlier = self._attempts.earlier(queued, failures)
        bounce = self._bouncer.bounce(queued, failures, host, earlier)
        self._no_bounces = ""
        if self._state is not None:
            self._state.forget_deferral(queued.message.name, BOUNCE)
        if bounce is not None and self._maildir.is_ours(bounce):  # else another shard finds it
            self._bounces.append((self._maildir.new, bounce))
        for index, text in failures.items():
            self._report.bounced(queued, index, text[1:])

    def was_refused_for_a_day(self, queued: QueuedMessage, error: LocalError) -> bool:
        """Return whether a mailer has taken no bounce of a message for a day; note this refusal."""
        from maildirqmtp.forwarder.mailers import MailerNotAsked

        if self._state is None or isinstance(error, MailerNotAsked):
            return False
        since_s = self._state.first_deferral(queued.message.name, BOUNCE)
        return self._wall_clock() - since_s >= REFUSED_S

    def put_off(self, queued: QueuedMessage, failures: dict[int, str], error: LocalError) -> None:
        """Report recipients who are still owed the message, because of an error of `bounce`."""
        if str(error) != self._no_bounces:
            self._no_bounces = str(error)
            self._report.problem(f"no bounce can be sent: {error}; it is tried again")
        for index, text in failures.items():
            self._report.deferred(queued, index, f"{text[1:]} (no bounce yet: {error})")
        first, text = next(iter(failures.items()))
        self._attempts.note(queued, f"{text[1:]} (no bounce yet)", first)

    def take(self) -> list[tuple[Folder, bytes]]:
        """Return the bounces that settling has put into the maildir since the last call."""
        bounces, self._bounces = self._bounces, []
        return bounces
