"""What a worker does now and then beside forwarding, in portions that hold no mail up."""

from __future__ import annotations

from collections import deque
from itertools import islice
from typing import TYPE_CHECKING

from maildirqmtp.errors import LocalError
from maildirqmtp.maildir.cleanup import clean

if TYPE_CHECKING:
    from collections.abc import Callable

    from maildirqmtp.daemon.queue import WatchQueue
    from maildirqmtp.daemon.queue_entry import QueueEntry
    from maildirqmtp.forwarder.delay_warnings import DelayWarner
    from maildirqmtp.forwarder.report import Report
    from maildirqmtp.forwarder.route import Route
    from maildirqmtp.maildir.maildir import Maildir
    from maildirqmtp.maildir.state import State

#: Seconds between two cleanings of tmp/ and envelope/.
CLEAN_S = 6 * 3_600.0
#: Seconds between two looks for messages that wait for long; less with a short `warn_after_s`.
LOOK_S = 600.0
#: Seconds after which it is looked for the first time.
FIRST_LOOK_S = 2.0
#: Messages that are looked at in one portion.
PORTION = 200


class Chores:
    """Those of one route. `clock` is seconds that only go on, `wall_clock` seconds of the epoch."""

    def __init__(
        self,
        route: Route,
        report: Report,
        maildir: Maildir,
        state: State,
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
    ) -> None:
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

            self._warner = DelayWarner(maildir, route, report, state, wall_clock)
            self._look_every_s = min(LOOK_S, max(1.0, route.warn_after_s / 10))
        self._look_at = clock() + min(FIRST_LOOK_S, self._look_every_s)
        self._waiting: deque[QueueEntry] = deque()

    def clean(self) -> None:
        """Remove rubbish, where it is time for that."""
        now = self._clock()
        if now >= self._clean_at:
            self._clean_at = now + CLEAN_S
            try:
                clean(self._maildir, self._wall_clock())
            except LocalError as error:
                self._report.note(str(error))

    @property
    def next_at(self) -> float | None:
        """The clock's time at which `tick` will have something to do."""
        if self._warner is None:
            return None
        return self._clock() if self._waiting else self._look_at

    def tick(self, queue: WatchQueue, connected: bool) -> None:
        """Do a portion of what is due; `connected`: what is not waiting may be in flight."""
        if self._warner is None or self._warn_after_s is None:
            return
        if self._waiting:
            self._warn(self._warner, connected)
        elif self._clock() >= self._look_at:
            self._look_at = self._clock() + self._look_every_s
            since_s = self._wall_clock() - self._warn_after_s
            # Where a name does not tell, the file does: `DelayWarner.is_due` looks at it.
            self._waiting = deque(
                [e for e in queue.waiting() if e.came_s is not None or e.birth_s <= since_s]
            )

    def _warn(self, warner: DelayWarner, connected: bool) -> None:
        """Warn of one message; the others are tried in the next look where that fails."""
        if not warner.may_warn():
            self._waiting.clear()
            return
        for entry in list(islice(self._waiting, PORTION)):
            self._waiting.popleft()
            may_be_in_flight = connected and entry.due is None
            if not may_be_in_flight and warner.is_due(entry.folder, entry.name):
                if not warner.warn(entry.folder, entry.name):
                    self._waiting.clear()
                return
