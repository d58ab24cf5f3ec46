"""One flush of one route: lock, forward, clean up, tell the exit code."""

from __future__ import annotations

import time

from maildirqmtp.cleaning import clean
from maildirqmtp.errors import LocalError
from maildirqmtp.maildir import Maildir

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType

    from maildirqmtp.engine import Engine
    from maildirqmtp.maildir import Candidates
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
            candidates = maildir.scan(route.include_cur)
            if candidates:
                # Not before: cron finds most maildirs empty, and that should cost next to nothing.
                from maildirqmtp.engine import Engine

                _run(Engine(route, maildir, report), candidates)
            clean(maildir, time.time())
    except LocalError as error:
        report.trouble(str(error))
    report.summary()
    return report.counters.exit_code


def _run(engine: Engine, candidates: Candidates) -> None:
    """Run the engine; SIGTERM and SIGINT stop it in an orderly way."""
    import signal

    def stop(number: int, frame: FrameType | None) -> None:
        engine.interrupt()

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    wake_fd = signal.set_wakeup_fd(engine.wake.write_fd, warn_on_full_buffer=False)
    try:
        engine.run_batch(candidates)
    finally:
        signal.set_wakeup_fd(wake_fd)
        for number, handler in before.items():
            signal.signal(number, handler)
        engine.close()
