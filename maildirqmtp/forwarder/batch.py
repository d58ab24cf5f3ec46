"""One flush of one route: lock, forward, clean up, tell the exit code."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from maildirqmtp.errors import LocalError
from maildirqmtp.maildir.cleanup import clean
from maildirqmtp.maildir.maildir import Maildir

if TYPE_CHECKING:
    from maildirqmtp.forwarder.forwarder import Forwarder
    from maildirqmtp.forwarder.report import Report
    from maildirqmtp.forwarder.route import Route
    from maildirqmtp.maildir.maildir import Candidates


def flush(route: Route, report: Report) -> int:
    """Forward what is in the maildir now; return the exit code, 0 or 111.

    SIGTERM and SIGINT make it finish what is in flight, for 30 s at most. In
    the main thread only.
    """
    try:
        with Maildir(route.maildir) as maildir:
            maildir.lock()
            candidates = maildir.scan(route.include_cur)
            if candidates:
                # Not before: cron finds most maildirs empty, and that should cost next to nothing.
                from maildirqmtp.forwarder.forwarder import Forwarder

                _run(Forwarder(route, maildir, report), candidates)
            clean(maildir, time.time())
    except LocalError as error:
        report.trouble(str(error))
    report.summary()
    return report.counters.exit_code


def _run(forwarder: Forwarder, candidates: Candidates) -> None:
    """Run the forwarder; SIGTERM and SIGINT stop it in an orderly way."""
    import signal

    from maildirqmtp.transport.signals import signal_handlers

    stop_signals = (signal.SIGTERM, signal.SIGINT)
    try:
        with signal_handlers(
            stop_signals, lambda *_: forwarder.interrupt(), wakeup_fd=forwarder.wake.write_fd
        ):
            forwarder.run_batch(candidates)
    finally:
        forwarder.close()
