"""A hint that several connections might help, if a server answers slowly over one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from maildirqmtp.transport.backlog import unacknowledged

if TYPE_CHECKING:
    from collections.abc import Callable

    from maildirqmtp.forwarder.queued_message import QueuedMessage
    from maildirqmtp.forwarder.report import Report
    from maildirqmtp.maildir.state import State
    from maildirqmtp.pipeline.pipeline import Pipeline

#: Seconds between two answers from which on these are slow, and for which that is watched.
SLOW_S = 0.25
WATCH_S = 10.0
#: Seconds between two hints.
HINT_S = 3_600.0
# What the state file calls it.
_HINT = "slow answers"


class SlowAnswers:
    """Watches how long a server takes to answer when it has received all that was sent.

    A slow link does not count: then bytes are still on their way. `state` knows when the last hint
    was given, by this run or an earlier one. `clock` is monotonic seconds.
    """

    __slots__ = ("_answers", "_clock", "_report", "_since", "_state")

    def __init__(self, report: Report, state: State, clock: Callable[[], float]) -> None:
        self._report = report
        self._state = state
        self._clock = clock
        self._since: float | None = None
        self._answers = 0

    def answered(self, pipeline: Pipeline[QueuedMessage], answers: int, waiting: int) -> None:
        """Note that `answers` messages were answered; `waiting` are not in flight yet."""
        now = self._clock()
        waiting += pipeline.packages_in_flight
        if pipeline.wants_write or not waiting or unacknowledged(pipeline.transport.write_fd):
            self._since = None
        elif self._since is None:
            self._since, self._answers = now, 0
        else:
            self._answers += answers
            watched_s = now - self._since
            each_s = watched_s / self._answers
            if watched_s >= WATCH_S and each_s >= SLOW_S:
                self._hint(pipeline.transport.name, each_s, waiting)
            if watched_s >= WATCH_S:
                self._since = None

    def _hint(self, server: str, each_s: float, waiting: int) -> None:
        if self._state.may_tell(_HINT, HINT_S):
            self._report.note(
                f"{server} takes {each_s:.1f} s for each answer, and {waiting} wait; with "
                f"--connections 8, say, it could work on several at a time"
            )
