"""Settles the messages that were answered, and tells the queue what became of them.

settle          the accepted small messages of each connection
settle_another  then the other accepted ones, one by one: --sent may be on a slow disk; then those
                that were not accepted: one may become a bounce, and a mailer may hang. Among
                them are those that must not be sent, as if the server had refused them
"""

from __future__ import annotations

from collections import deque
from itertools import groupby
from typing import TYPE_CHECKING

from maildirqmtp.forwarder.kept import tell
from maildirqmtp.forwarder.small_messages import SmallBatch
from maildirqmtp.qmtp.protocol import ACCEPTED, Response

if TYPE_CHECKING:
    from collections.abc import Sequence

    from maildirqmtp.forwarder.queue import Queue
    from maildirqmtp.forwarder.queued_message import QueuedMessage
    from maildirqmtp.forwarder.report import Report
    from maildirqmtp.forwarder.servers import Servers
    from maildirqmtp.forwarder.settle import Settler
    from maildirqmtp.forwarder.stuck import Stuck
    from maildirqmtp.pipeline.pool import Connection

# Stands for the answer to an accepted small message, the text of which is not kept.
_ACCEPTED = Response(ACCEPTED, b"")


class AnsweredMessages:
    """Settles the messages of one route that have their answers."""

    def __init__(self, settler: Settler, servers: Servers, queue: Queue, report: Report) -> None:
        self._settler = settler
        self._servers = servers
        self._queue = queue
        self._report = report
        self._small = settler.small
        self._accepted: deque[QueuedMessage] = deque()
        self._others: deque[QueuedMessage] = deque()

    def settle(self, connection: Connection[QueuedMessage]) -> int:
        """Settle a connection's accepted small messages; return how many messages were answered.

        The others are left for `settle_another`.
        """
        pipeline = connection.pipeline
        self._settle_small()
        accepted, done = pipeline.take_accepted(), pipeline.take_done()
        recovery = self._servers.current.recovery
        for batch, first, stop in accepted:
            assert isinstance(batch, SmallBatch)
            recovery.answered(message[1] for message in batch.messages[first:stop])
            self._remove_small(batch, first, stop)
        self._count_unsettled(connection)
        recovery.answered(queued.message.name for queued in done)
        self._servers.end_doubts(done)
        for queued in done:
            (self._accepted if queued.is_accepted else self._others).append(queued)
        return len(done) + sum([stop - first for _, first, stop in accepted])

    def expect(self, small: int) -> None:
        """Prepare for so many small messages, before the first connection; see `SmallRemovals`."""
        self._small.expect(small)

    def all_settled(self) -> bool:
        """Return whether nothing is left for `settle_another`, once the small ones are settled.

        Waits for those that are being removed: a scan would find them again.
        """
        while self._small.waiting:
            self._settle_small(wait=True)
        return not (self._accepted or self._others)

    def refused(self, queued: QueuedMessage) -> None:
        """Leave a message that must not be sent for `settle_another`."""
        queued.refuse()
        queued.close()
        queued.release()
        self._others.append(queued)

    def settle_another(self) -> bool:
        """Settle one message, those accepted for all first; return False if there is none."""
        left = self._accepted or self._others
        if not left:
            return False
        self._settle_one(left.popleft())
        return True

    def mend(self) -> bool:
        """See `Settler.mend`."""
        is_well = self._settler.mend()
        self._queue.release(self._settler.take_mended())
        return is_well

    def take_over(self, stuck: Sequence[Stuck]) -> None:
        """See `Settler.take_over`."""
        self._settler.take_over(stuck)
        self._queue.release(self._settler.take_mended())

    def finish(self) -> list[Stuck]:
        """See `Settler.finish`."""
        self.all_settled()
        self._small.end_process()
        left = self._settler.finish()
        self._queue.release(self._settler.take_mended())
        return left

    def _remove_small(self, batch: SmallBatch, first: int, stop: int) -> None:
        while first < stop:
            first = self._small.put(batch, first, stop)
            self._settle_small(wait=first < stop)

    def _count_unsettled(self, connection: Connection[QueuedMessage]) -> None:
        """Count what is being removed as in flight: after a crash, both are sent again.

        Wait for it where it would leave little of the window, which may shrink when it ends.
        """
        if connection.pipeline.ended or self._small.waiting > connection.window.size // 2:
            self.all_settled()
        connection.window.unsettled = self._small.waiting

    def _settle_small(self, wait: bool = False) -> None:
        """Settle small messages of which it is known whether they were removed."""
        for batch, index, results in self._small.take(wait):
            for was_removed, group in groupby(results):
                first, index = index, index + len(list(group))
                if was_removed:
                    self._small.note(batch, first, index)
                    names = (message[1] for message in batch.messages[first:index])
                    self._report.no_longer_held(self._queue.all_gone(names))
                else:
                    for left in range(first, index):
                        queued = batch.expand(left)
                        queued.answers, queued.unanswered = [_ACCEPTED], 0
                        self._settle_one(queued)

    def _settle_one(self, queued: QueuedMessage) -> None:
        """Settle one message that has its answers, and tell the queue."""
        kept = self._settler.settle(queued)
        tell(self._queue, self._report, queued, kept)
