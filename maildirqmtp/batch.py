"""One flush of one route: lock, forward, clean up, tell the exit code."""

import signal
import time
from contextlib import closing
from types import FrameType

from maildirqmtp.errors import LocalError
from maildirqmtp.maildir import Maildir
from maildirqmtp.report import Report
from maildirqmtp.route import Route


def flush(route: Route, report: Report) -> int:
    """Forward what is in the maildir now; return the exit code, 0 or 111.

    SIGTERM and SIGINT make it finish what is in flight, for 30 s at most. In
    the main thread only.
    """
    try:
        with Maildir(route.maildir) as maildir:
            maildir.lock()
            _forward(route, maildir, report)
            maildir.clean_tmp(time.time())
    except LocalError as error:
        report.trouble(str(error))
    report.summary()
    return report.counters.exit_code


def _forward(route: Route, maildir: Maildir, report: Report) -> None:
    from maildirqmtp.engine import Engine

    with closing(Engine(route, maildir, report)) as engine:

        def stop(number: int, frame: FrameType | None) -> None:
            engine.stop()

        handlers = {
            number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)
        }
        wake_fd = signal.set_wakeup_fd(engine.wake_fd, warn_on_full_buffer=False)
        try:
            engine.run_batch()
        finally:
            signal.set_wakeup_fd(wake_fd)
            for number, handler in handlers.items():
                signal.signal(number, handler)
