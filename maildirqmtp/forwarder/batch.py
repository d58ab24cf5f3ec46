"""One flush of one route: lock, forward, clean up, return the exit code."""

from __future__ import annotations

from typing import TYPE_CHECKING

from maildirqmtp.errors import LocalError
from maildirqmtp.forwarder.housekeeping import Housekeeping
from maildirqmtp.maildir.maildir import Maildir
from maildirqmtp.text import printable

if TYPE_CHECKING:
    from maildirqmtp.forwarder.forwarder import Forwarder
    from maildirqmtp.forwarder.queue import BatchQueue
    from maildirqmtp.forwarder.report import Report
    from maildirqmtp.forwarder.route import Route
    from maildirqmtp.maildir.maildir import Candidates


def flush(route: Route, report: Report) -> int:
    """Forward what is in the maildir, and what arrives meanwhile; return the exit code, 0 or 111.

    After SIGTERM or SIGINT, what is in flight has at most 20 s to finish, and a running mailer 5 s.
    To be called in the main thread.
    """
    try:
        with Maildir(route.maildir, shard=route.shard) as maildir:
            _flush(route, report, maildir)
    except LocalError as error:
        report.problem(str(error))
    report.summary()
    return report.counters.exit_code


def _flush(route: Route, report: Report, maildir: Maildir) -> None:
    forwarder: Forwarder | None = None
    queue: BatchQueue | None = None
    untried = None
    housekeeping = Housekeeping(route, report, maildir)
    try:
        while True:
            maildir.lock()
            candidates = maildir.scan(route.include_cur, untried)
            through = True
            if candidates:
                # Not before: cron finds most maildirs empty, and that should cost next to nothing.
                if forwarder is None:
                    from maildirqmtp.forwarder.forwarder import Forwarder
                    from maildirqmtp.forwarder.queue import BatchQueue

                    queue = BatchQueue(lambda choose: maildir.scan(route.include_cur, choose))
                    untried = queue.untried
                    forwarder = Forwarder(route, maildir, report, queue=queue)
                assert queue is not None
                through = _run(forwarder, candidates, housekeeping, queue)
            else:
                housekeeping.after_run(None, None)
            maildir.unlock()
            if forwarder is not None and forwarder.stopping:
                _tell_of_the_rest(report, maildir.scan(route.include_cur, untried))
                return
            # A run that found the maildir locked has left its mail to this one.
            left = maildir.scan(route.include_cur, untried) if through else ()
            if not left:
                if through:
                    _tell_if_elsewhere(report, maildir)
                housekeeping.at_end()
                return
            if queue is not None and not queue.may_rescan:
                report.problem(f"stopped after an hour ({len(left)} left)", len(left))
                return
    except LocalError as error:
        report.problem(str(error), 0 if forwarder is None else forwarder.outbox.left)
    finally:
        _tell_of_doubts(report, queue)
        if forwarder is not None:
            forwarder.close()


def _tell_of_doubts(report: Report, queue: BatchQueue | None) -> None:
    if queue is not None and (in_doubt := queue.waiting):
        report.problem(
            f"in doubt at one server, and not sent to another before --in-doubt-wait is over "
            f"({in_doubt} left)",
            in_doubt,
        )


def _tell_if_elsewhere(report: Report, maildir: Maildir) -> None:
    if not maildir.is_current():
        report.problem(
            f"{printable(maildir.path)} was renamed, replaced or mounted over during this run; run "
            f"it again for what is there now"
        )


def _tell_of_the_rest(report: Report, left: Candidates) -> None:
    """Report what came while a run that was told to stop finished what was in flight."""
    if left and not report.counters.left:
        report.problem(f"stopped before the end ({len(left)} left)", len(left))


def _run(
    forwarder: Forwarder, candidates: Candidates, housekeeping: Housekeeping, queue: BatchQueue
) -> bool:
    """Run a batch, and the housekeeping after it; return whether everything was tried.

    SIGTERM, SIGINT and SIGHUP, of a terminal that is gone, stop it in an orderly way.
    """
    from maildirqmtp.transport.signals import stop_handler, stop_signals

    with stop_signals(stop_handler(forwarder.interrupt), forwarder.wake.write_fd):
        through = forwarder.run_batch(candidates)
        if not through:
            forwarder.state.note_stop(forwarder.stop_reason)
            forwarder.state.save()
        housekeeping.after_run(forwarder, queue)
    return through
