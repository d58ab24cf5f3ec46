"""What a batch does besides forwarding: it removes rubbish and old mail, and warns of delays."""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING

from maildirqmtp.maildir.cleanup import clean

if TYPE_CHECKING:
    from maildirqmtp.forwarder.delay_warnings import DelayWarner
    from maildirqmtp.forwarder.forwarder import Forwarder
    from maildirqmtp.forwarder.queue import BatchQueue
    from maildirqmtp.forwarder.report import Report
    from maildirqmtp.forwarder.route import Route
    from maildirqmtp.maildir.maildir import Candidates, Maildir


class Housekeeping:
    """The housekeeping of one batch."""

    def __init__(self, route: Route, report: Report, maildir: Maildir) -> None:
        self._route = route
        self._report = report
        self._maildir = maildir
        self._warner: DelayWarner | None = None
        self._found: Candidates = deque()

    def after_run(self, forwarder: Forwarder | None, queue: BatchQueue | None) -> None:
        """Clean the maildir, and warn of delays, when all has been tried; the maildir is locked.

        `forwarder` and `queue` are None if there was nothing to try. There are no warnings while
        accepted messages cannot be removed: those would be reported as late.

        Raises `LocalError` if the maildir cannot be read or cleaned.
        """
        clean(self._maildir, time.time())
        if forwarder is None or queue is None or forwarder.stopping:
            return
        if forwarder.local_error is None:
            self._warn(forwarder, queue)

    def at_end(self) -> None:
        """Remove what the sent and failed maildirs have kept long enough, without the lock.

        Not for a run that was told to stop.
        """
        route = self._route
        if route.keep_sent_s is None and route.keep_failed_s is None:
            return
        import signal
        from contextlib import closing

        from maildirqmtp.forwarder.retention import Retention
        from maildirqmtp.forwarder.stop import Stop
        from maildirqmtp.transport.signals import signal_handlers

        retention = Retention(route, self._report, self._maildir, time.time)
        stop = Stop(time.monotonic, 0.0)
        with (
            signal_handlers((signal.SIGTERM, signal.SIGINT), lambda *_: stop.tell()),
            closing(retention.portions()) as portions,
        ):
            for _ in portions:
                if stop.is_told:
                    break

    def _warn(self, forwarder: Forwarder, queue: BatchQueue) -> None:
        if self._route.warn_after_s is None:
            return
        from random import shuffle

        if self._warner is None:
            from maildirqmtp.forwarder.delay_warnings import DelayWarner

            self._warner = DelayWarner(
                self._maildir,
                self._route,
                self._report,
                forwarder.state,
                time.time,
                lambda: [name for _, name in self._found],
                forwarder.told_to_stop,
            )
        self._found = self._maildir.scan(self._route.include_cur)
        owed = [(folder, name) for folder, name in self._found if not queue.is_of_others(name)]
        # If the mailer refuses several of them in each run, the others still get their turn.
        shuffle(owed)
        self._warner.warn_all(owed)
        forwarder.state.save()
