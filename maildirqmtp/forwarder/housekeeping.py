"""What a batch does beside forwarding: it removes rubbish, and tells senders of delays."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from maildirqmtp.maildir.cleanup import clean

if TYPE_CHECKING:
    from maildirqmtp.forwarder.delay_warnings import DelayWarner
    from maildirqmtp.forwarder.forwarder import Forwarder
    from maildirqmtp.forwarder.report import Report
    from maildirqmtp.forwarder.route import Route
    from maildirqmtp.maildir.maildir import Maildir


class Housekeeping:
    """That of one batch; its maildir is locked."""

    def __init__(self, route: Route, report: Report, maildir: Maildir) -> None:
        self._route = route
        self._report = report
        self._maildir = maildir
        self._warner: DelayWarner | None = None

    def after_run(self, forwarder: Forwarder | None) -> None:
        """Do what is due when all has been tried; None where there was nothing to be tried.

        Raises `LocalError`.
        """
        clean(self._maildir, time.time())
        if forwarder is not None and not forwarder.stopping:
            self._warn(forwarder)

    def _warn(self, forwarder: Forwarder) -> None:
        if self._route.warn_after_s is None:
            return
        if self._warner is None:
            from maildirqmtp.forwarder.delay_warnings import DelayWarner

            self._warner = DelayWarner(
                self._maildir, self._route, self._report, forwarder.state, time.time
            )
        self._warner.warn_all(self._maildir.scan(self._route.include_cur))
        forwarder.state.save()
