"""What the queue and the summary are told of a message that stays."""

from __future__ import annotations

import io
from collections import deque

from maildirqmtp.forwarder.kept import Kept, hold, tell
from maildirqmtp.forwarder.queue import BatchQueue
from maildirqmtp.forwarder.report import Report
from tests.fakes import queued


def test_a_message_is_held_once_whatever_the_reasons() -> None:
    """`2 held` of one message sends people to look for the other."""
    queue = BatchQueue(lambda choose: deque(), float)
    report = Report(io.StringIO())
    hold(queue, report, b"1.a", "changed", at_next_scan=True)
    hold(queue, report, b"1.a", "still being written", at_next_scan=True)
    assert report.counters.held == 1
    hold(queue, report, b"1.a", "no envelope")
    assert report.counters.held == 1


def test_what_is_stuck_or_gone_is_no_longer_held() -> None:
    """It had changed before; a connection that breaks settles it as an answer does."""
    for kept in (Kept("disk full", stuck=True), None):
        queue = BatchQueue(lambda choose: deque(), float)
        report = Report(io.StringIO())
        one = queued()
        hold(queue, report, one.message.name, "changed", at_next_scan=True)
        tell(queue, report, one, kept)
        assert report.counters.held == 0
