"""When a connection has ended: what it left undone, and whether another may help.

left undone                                  goes
the file changed while it was sent           held; sent as it is now, the next time
alone in flight, it has ended two of them    set aside: deferred, so that the others go on
some of its recipients were deferred         waits, as they do
anything else                                back to the front of the queue

the connection                               another
answered something, or was ended by us       may help
was none, as it turned out                   cannot: the server is unreachable
had more in flight than one message          may help: the window is smaller now
ended in nonsense or a time-out, no answer   is of no use
just ended, no answer                        may help, but not for the third time in a row
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from maildirqmtp.errors import ConnectError, ProtocolError, TransportError
from maildirqmtp.qmtp.protocol import DEFERRED

if TYPE_CHECKING:
    from maildirqmtp.forwarder.queue import Queue
    from maildirqmtp.forwarder.queued_message import QueuedMessage
    from maildirqmtp.forwarder.report import Report
    from maildirqmtp.forwarder.settle import Settler
    from maildirqmtp.maildir.files import Folder
    from maildirqmtp.pipeline.pool import Connection

#: Connections in a row without a single answer, after which a server is given up for now.
MAX_WITHOUT_PROGRESS = 3
#: Messages set aside, because the server hung up on each of them, without an answer in between.
MAX_SET_ASIDE = 3
# Messages whose strikes are remembered: a daemon meets ever new ones.
_STRIKES_MAX = 1_000


class Recovery:
    """Clears up after the connections of one route, and counts those that were of no use."""

    def __init__(self, settler: Settler, report: Report) -> None:
        self._settler = settler
        self._report = report
        self._strikes: dict[bytes, int] = {}
        self._without_progress = 0
        self._set_aside = 0

    def clear_up(
        self, connection: Connection[QueuedMessage], unfinished: list[QueuedMessage], queue: Queue
    ) -> None:
        """Report how the connection ended, and find a place for what is unfinished."""
        pipeline = connection.pipeline
        error = pipeline.error
        if error is not None:
            # A server may hang up on a connection that is kept only in case of more mail.
            idle = queue.open and not unfinished and isinstance(error, TransportError)
            self._report.closed(pipeline.transport.name, str(error), idle)
        if pipeline.remark:
            self._report.note(pipeline.remark)
        again: list[tuple[Folder, bytes]] = []
        for queued in unfinished:
            message = queued.message
            self._report.in_doubt(queued)
            if queued.unanswered < len(queued.recipients):
                self._settler.settle(queued)
            if queued.reason:
                self._report.held(message.name, queued.reason)
                queue.later(message.name, message.mtime_s, queued.reason, soon=True)
            elif self._is_culprit(connection, queued):
                reason = f"{pipeline.transport.name} hung up twice on this message alone"
                self._defer(queued, reason, queue)
                # That is progress; but a server that does it to every message is dead.
                self._without_progress = 0
                self._set_aside += 1
                # Next one from the other end: its neighbours may be as bad, and would stop
                # this run and all that follow at the same place.
                queue.rotate()
            elif any(a is not None and a.status is DEFERRED for a in queued.answers):
                # To go again now would try those again who were told to try later.
                self._defer(queued, "waits, as others of this message do", queue)
            else:
                again.append((message.folder, message.name))
        queue.put_back(again)

    def _defer(self, queued: QueuedMessage, reason: str, queue: Queue) -> None:
        for index in queued.owed():
            self._report.deferred(queued, index, reason)
        queue.later(queued.message.name, queued.message.mtime_s, reason)

    def _is_culprit(self, connection: Connection[QueuedMessage], queued: QueuedMessage) -> bool:
        """Say whether this message, alone in flight, has now ended two connections."""
        pipeline = connection.pipeline
        if connection.window.size > 1 or pipeline.error is None or not pipeline.bytes_sent:
            return False
        if isinstance(pipeline.error, ConnectError):
            return False
        name = queued.message.name
        if len(self._strikes) >= _STRIKES_MAX:
            self._strikes.clear()
        self._strikes[name] = self._strikes.get(name, 0) + 1
        return self._strikes[name] >= 2

    def stop_reason(self, connection: Connection[QueuedMessage], in_flight: int) -> str:
        """Return why another connection cannot help for now; empty where it may."""
        pipeline = connection.pipeline
        unclean = pipeline.error is not None and in_flight > 0
        narrowed = unclean and connection.window.shrink(in_flight)
        # Ended without an error, it was ended by us, over a file that changed or a fence.
        ours = pipeline.error is None and in_flight > 0
        if pipeline.answered or ours:
            self._without_progress = self._set_aside = 0
            return ""
        if isinstance(pipeline.error, ConnectError):
            return self._give_up(f"{pipeline.error}; what is left stays as it is")
        if isinstance(pipeline.error, (ProtocolError, TimeoutError)):
            return self._give_up(f"{pipeline.transport.name} is of no use: giving up")
        if narrowed:
            return ""
        self._without_progress += 1
        if self._without_progress < MAX_WITHOUT_PROGRESS and self._set_aside < MAX_SET_ASIDE:
            return ""
        return self._give_up(
            "connection after connection without an answer: making no progress, giving up"
        )

    def _give_up(self, why: str) -> str:
        self._without_progress = self._set_aside = 0
        return why
