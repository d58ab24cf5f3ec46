"""What a worker does from time to time besides forwarding, in portions that delay no mail."""

from __future__ import annotations

from collections import deque
from itertools import islice
from typing import TYPE_CHECKING

from maildirqmtp.errors import LocalError
from maildirqmtp.forwarder.forwarder import BOUNCE_SLACK_S, SLACK_S
from maildirqmtp.maildir.cleanup import clean

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from maildirqmtp.daemon.queue import WatchQueue
    from maildirqmtp.daemon.queue_entry import QueueEntry
    from maildirqmtp.forwarder.delay_warnings import DelayWarner
    from maildirqmtp.forwarder.forwarder import Forwarder
    from maildirqmtp.forwarder.report import Report
    from maildirqmtp.forwarder.retention import Retention
    from maildirqmtp.forwarder.route import Route
    from maildirqmtp.forwarder.stop import Stop
    from maildirqmtp.maildir.maildir import Maildir
    from maildirqmtp.maildir.state import State

#: Seconds between two cleanings of tmp/ and envelope/.
CLEAN_S = 6 * 3_600.0
#: Seconds between two searches for messages to warn of; less with a short `warn_after_s`.
LOOK_S = 600.0
#: Seconds from the start to the first of these searches, and to the first removal of old mail.
FIRST_LOOK_S = 2.0
#: The most messages that are looked at in one portion.
PORTION = 200


class Chores:
    """The chores of one route. `clock` is monotonic seconds, `wall_clock` seconds of the epoch.

    `stop`, once told, ends a mailer that is running.
    """

    def __init__(
        self,
        route: Route,
        report: Report,
        maildir: Maildir,
        state: State,
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
        queue: WatchQueue,
        stop: Stop | None = None,
    ) -> None:
        self._queue = queue
        self._state = state
        self._report = report
        self._maildir = maildir
        self._clock = clock
        self._wall_clock = wall_clock
        self._clean_at = clock()
        self._warn_after_s = route.warn_after_s
        self._warner: DelayWarner | None = None
        self._look_every_s = LOOK_S
        if route.warn_after_s is not None:
            from maildirqmtp.forwarder.delay_warnings import DelayWarner  # and mail.dsn

            self._warner = DelayWarner(maildir, route, report, state, wall_clock, queue.names, stop)
            self._look_every_s = min(LOOK_S, max(1.0, route.warn_after_s / 10))
        self._look_at = clock() + min(FIRST_LOOK_S, self._look_every_s)
        self._waiting: deque[QueueEntry] = deque()
        self._retention: Retention | None = None
        self._expire_at = clock() + FIRST_LOOK_S
        self._expiring: Generator[None, None, None] | None = None
        if route.keep_sent_s is not None or route.keep_failed_s is not None:
            from maildirqmtp.forwarder.retention import Retention

            self._retention = Retention(route, report, maildir, wall_clock)

    def close(self) -> None:
        """Abandon a removal that is under way, and close the maildirs that are open for it."""
        if self._expiring is not None:
            self._expiring.close()
            self._expiring = None

    def clean(self) -> None:
        """Remove leftovers from tmp/ and envelope/, if it is time for that."""
        now = self._clock()
        if now >= self._clean_at:
            self._clean_at = now + CLEAN_S
            try:
                clean(self._maildir, self._wall_clock())
            except LocalError as error:
                self._report.note(str(error))

    @property
    def next_at(self) -> float | None:
        """The clock's time at which `tick` will have something to do; None for never."""
        due = []
        if self._warner is not None:
            due.append(self._clock() if self._waiting else self._look_at)
        if self._retention is not None:
            due.append(self._expire_at if self._expiring is None else self._clock())
        return min(due, default=None)

    @property
    def may_take_s(self) -> float:
        """Seconds that `tick` may take; a mailer may take as long for a warning as for a bounce."""
        return SLACK_S if self._warner is None else BOUNCE_SLACK_S

    def tick(self, forwarder: Forwarder) -> None:
        """Do a portion of what is due; nothing once the forwarder is stopping."""
        if self._retention is not None:
            if forwarder.stopping:
                self.close()
                self._expire_at = self._clock() + self._retention.look_every_s
            else:
                self._expire(self._retention)
        self._warn_if_due(forwarder)

    def _expire(self, retention: Retention) -> None:
        """Remove a portion of the old sent and failed messages, even if this disk is full."""
        if self._expiring is None and self._clock() >= self._expire_at:
            self._expire_at = self._clock() + retention.look_every_s
            self._expiring = retention.portions()
        if self._expiring is not None and next(self._expiring, self) is self:
            self._expiring = None

    def _warn_if_due(self, forwarder: Forwarder) -> None:
        """Search for senders to warn, or warn one; not while stopping or while removing mail fails.

        A warning would then delay the responses in flight, or be about an accepted message.
        """
        if self._warner is None or self._warn_after_s is None:
            return
        if forwarder.stopping or forwarder.local_error is not None:
            self._waiting.clear()
            self._look_at = self._clock() + self._look_every_s
        elif self._waiting:
            self._warn(self._warner)
        elif self._clock() >= self._look_at:
            self._look_at = self._clock() + self._look_every_s
            self._look(self._warner, self._wall_clock() - self._warn_after_s)

    def _look(self, warner: DelayWarner, since_s: float) -> None:
        """Collect messages that may have waited since then; failed warnings are tried last."""
        warner.begin()
        # If a name does not tell the age, the file does: `DelayWarner.is_due` looks at it.
        waiting = self._queue.waiting()
        found = [e for e in waiting if e.came_s is not None or e.birth_s <= since_s]
        found.sort(key=lambda entry: warner.has_failed(entry.name))
        self._waiting = deque(found)

    def _warn(self, warner: DelayWarner) -> None:
        """Warn of one message; if no more may be sent now, leave the others to the next search."""
        if not warner.may_warn():
            self._waiting.clear()
            return
        held = self._state.held()
        for entry in list(islice(self._waiting, PORTION)):
            self._waiting.popleft()
            is_out = self._queue.is_out(entry)
            if not is_out and warner.is_due(entry.folder, entry.name, held):
                if not warner.warn(entry.folder, entry.name):
                    self._waiting.clear()
                return
