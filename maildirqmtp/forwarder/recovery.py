"""After a connection has ended: where its unfinished messages go, and whether another may help.

unfinished message                           goes
some have it, and its sidecar cannot say so  stays reserved until it can; see `stuck`
the file changed while it was sent           held; sent as it is now, the next time
a large one over which it broke              set aside: it has had its attempt in this run
the only one of a connection, at a fault     to the end of the queue, to go alone
the same a second time                       set aside: deferred, so that the others go on
some of its recipients were deferred         waits, as they do
another large one                            behind the small ones
anything else                                back to the front of the queue

the connection                               another
answered something, or was ended by us       may help: that is progress
turned out never to have been one            cannot: the server is unreachable
ended with several messages in flight        may help: the window is smaller now
ended with a message that is set aside       may help, but not for the tenth time in a row
ended otherwise without an answer            may help, but not for the third time in a row, for
                                             each that may be open at once; the eighth, if the
                                             server has answered in this run and did not time out
the same, if the route has another server    cannot if it timed out, or has answered nothing in
that is still to be tried                    this run at any of its addresses; else the second time

A fault is a connection that the server ended, a time-out, or an answer that breaks the protocol. It
counts against a message only if nothing was answered on that connection before: a server that takes
one message, or so many, and hangs up has nothing against the next one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from maildirqmtp.errors import ConnectError, ProtocolError, TransportError
from maildirqmtp.forwarder.kept import Kept, hold, tell
from maildirqmtp.qmtp.protocol import DEFERRED
from maildirqmtp.text import printable
from maildirqmtp.transport.endpoint import CommandEndpoint, TcpEndpoint

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from maildirqmtp.errors import QMTPError
    from maildirqmtp.forwarder.large_messages import LargeMessages
    from maildirqmtp.forwarder.queue import Queue
    from maildirqmtp.forwarder.queued_message import QueuedMessage
    from maildirqmtp.forwarder.report import Report
    from maildirqmtp.forwarder.settle import Settler
    from maildirqmtp.maildir.files import Folder
    from maildirqmtp.pipeline.pipeline import Pipeline
    from maildirqmtp.pipeline.pool import Connection
    from maildirqmtp.transport.endpoint import Endpoint

#: Connections in a row without progress after which a server is given up for now: to each address,
#: and for each that may be open at once.
MAX_WITHOUT_PROGRESS = 3
#: The same for a server that has answered before and fails at once: it may dislike many messages.
MAX_FROM_KNOWN_SERVER = 8
#: The same if another server may be tried, and this one has answered before and fails at once.
MAX_WITH_SPARE = 2
#: Messages set aside in a row without an answer, after which a server is given up for now as well.
MAX_SET_ASIDE = 10
# Messages whose faults are remembered: a daemon meets more and more of them.
_MAX_SUSPECTS = 1_000


class Recovery:
    """Clears up after the connections to one server of a route, and judges whether to go on.

    `server` is the server's endpoint, for a hint about one that never sends anything.
    """

    def __init__(
        self, settler: Settler, report: Report, server: Endpoint, large: LargeMessages
    ) -> None:
        self._large = large
        self._settler = settler
        self._report = report
        self._server = server
        self._faults: dict[bytes, int] = {}
        # By address: one that was of no use is tried last, so that each has its turn.
        self._without_progress: dict[object, int] = {}
        self._of_no_use: set[object] = set()
        self._set_aside = 0
        self._tried: list[bytes] = []
        self._has_answered = False
        self._silence_told = False

    @property
    def suspects(self) -> Collection[bytes]:
        """The names of the messages that have ended a connection, and therefore go alone."""
        return self._faults.keys()

    def answered(self, names: Iterable[bytes]) -> None:
        """Forget the faults of messages that were answered: these do not end connections."""
        if self._faults:
            for name in names:
                self._faults.pop(name, None)

    def clear_up(
        self,
        connection: Connection[QueuedMessage],
        unfinished: list[QueuedMessage],
        queue: Queue,
        *,
        has_spare: bool = False,
        at_once: int = 1,
    ) -> str:
        """Report how a connection ended, and find a place for each message that is unfinished.

        `has_spare`: there is another server to go to. So many connections may be open `at_once`,
        and one event may end them all. Return why another connection to this server cannot help
        for now; empty if it may.
        """
        pipeline = connection.pipeline
        self._report_end(pipeline, unfinished, queue)
        no_use = has_spare and self._is_of_no_use(connection, unfinished)
        narrowed = self._narrow(connection, unfinished)
        # A server that has not answered at all is to blame itself: another may take the message.
        never_answered = has_spare and not (self._has_answered or pipeline.answered)
        broken = None if never_answered else self._large.find_broken(pipeline, unfinished)
        may_be_at_fault = broken is None and not (never_answered or no_use)
        at_fault = may_be_at_fault and len(unfinished) == 1 and _is_fault(pipeline)
        culprit = at_fault and self._count_fault(unfinished[0]) >= 2
        again: list[tuple[Folder, bytes]] = []
        last: list[tuple[Folder, bytes]] = []
        for queued in unfinished:
            message = queued.message
            if self._is_done(queued, queue):
                continue
            if queued.reason:
                hold(
                    queue,
                    self._report,
                    message.name,
                    queued.reason,
                    birth_s=message.mtime_s,
                    at_next_scan=True,
                )
            elif queued is broken:
                self._defer(queued, self._large.note_broken(queued), queue)
            elif culprit:
                self._defer(queued, _blame(pipeline), queue)
            elif any(a is not None and a.status is DEFERRED for a in queued.answers):
                # Sending it again now would retry recipients that are to be tried later.
                self._defer(queued, "waits, as others of this message do", queue, was_tried=False)
            else:
                goes_last = at_fault or self._large.is_large(queued)
                (last if goes_last else again).append((message.folder, message.name))
        if no_use:
            stop_reason = self._give_up(pipeline)
        else:
            set_aside = culprit or broken is not None
            stop_reason = self._judge(pipeline, unfinished, narrowed, set_aside, at_once)
        queue.put_back(again)
        if at_fault and sum(self._without_progress.values()) == 1:
            # The messages next to it may be as bad, and would stop this and every later run here.
            queue.rotate()
        queue.postpone(last)
        return stop_reason

    def _is_done(self, queued: QueuedMessage, queue: Queue) -> bool:
        """Settle what is known of a message; return whether it is gone then, or stuck."""
        kept = self._settler.settle(queued)
        if kept is not None and not kept.stuck:
            return False
        tell(queue, self._report, queued, kept)
        return True

    def _report_end(
        self, pipeline: Pipeline[QueuedMessage], unfinished: list[QueuedMessage], queue: Queue
    ) -> None:
        error, name = pipeline.error, pipeline.transport.name
        if error is not None:
            # A server may hang up on a connection that is kept only in case of more mail.
            idle = queue.open and not unfinished and isinstance(error, TransportError)
            self._report.closed(name, str(error), idle)
        if pipeline.remark:
            self._report.note(pipeline.remark)
        silent = not pipeline.capabilities.has_spoken
        for queued in unfinished:
            self._report.in_doubt(queued, silent)
        if silent and unfinished and not self._silence_told:
            self._silence_told = True
            self._report.note(
                f"{name} has not sent a single byte so far: {_silence_hint(self._server)}; "
                f"what was sent whole counts as in doubt"
            )

    def _defer(
        self, queued: QueuedMessage, reason: str, queue: Queue, was_tried: bool = True
    ) -> None:
        for index in queued.owed():
            self._report.deferred(queued, index, reason)
        if was_tried:
            self._settler.attempts.note(queued, reason)
        tell(queue, self._report, queued, Kept(reason))

    def _count_fault(self, queued: QueuedMessage) -> int:
        """Count a connection that this message, alone in flight, has ended; return how many."""
        name = queued.message.name
        if len(self._faults) >= _MAX_SUSPECTS:
            self._faults.clear()
        self._faults[name] = self._faults.get(name, 0) + 1
        return self._faults[name]

    def _is_of_no_use(
        self, connection: Connection[QueuedMessage], unfinished: list[QueuedMessage]
    ) -> bool:
        """Return whether to go to another server, now that this one has not answered.

        With another to go to, it is not worth finding out which message this one may dislike.
        """
        pipeline = connection.pipeline
        if pipeline.answered or not pipeline.ended or (pipeline.error is None and unfinished):
            return False
        if isinstance(pipeline.error, (TimeoutError, ConnectError)):
            return True
        self._of_no_use.add(pipeline.transport.address)
        if len(self._of_no_use) < pipeline.transport.addresses:
            return False
        if not self._has_answered:
            return True
        if len(unfinished) > 1 and connection.window.size > 1:
            return False  # the window is to get smaller first
        return sum(self._without_progress.values()) + 1 >= MAX_WITH_SPARE

    def _narrow(
        self, connection: Connection[QueuedMessage], unfinished: list[QueuedMessage]
    ) -> bool:
        """Make the window smaller for the next connection if that may help; return whether."""
        pipeline = connection.pipeline
        if not unfinished or pipeline.error is None:
            return False
        if self._large.find_broken(pipeline, unfinished) is not None and all(
            map(self._large.is_large, unfinished)
        ):
            return False  # it broke over a large message, which nothing went with
        # A server that never answered may never do so: put as little as possible in doubt.
        known = pipeline.capabilities.proven
        return connection.window.shrink(len(unfinished) if known else 1)

    def _give_up(self, pipeline: Pipeline[QueuedMessage]) -> str:
        """Return why a server is of no use, so that another is tried; forget that it answered."""
        self._has_answered = False
        return str(pipeline.error or f"{pipeline.transport.name} closed the connection")

    def _judge(
        self,
        pipeline: Pipeline[QueuedMessage],
        unfinished: list[QueuedMessage],
        narrowed: bool,
        set_aside: bool,
        at_once: int,
    ) -> str:
        """Return why another connection cannot help for now; empty if it may.

        `narrowed`: its window would be smaller; `set_aside`: a message was set aside.
        """
        error, in_flight = pipeline.error, len(unfinished)
        # Without an error, this side has ended it, over a file that changed or a fence.
        ours = error is None and in_flight > 0
        self._has_answered = self._has_answered or pipeline.answered > 0
        if pipeline.answered or ours:
            self.begin_anew()
            return ""
        if isinstance(error, ConnectError):
            return f"{error}; what is left stays as it is"
        if narrowed and in_flight > 1:
            return ""
        if set_aside:
            # Progress; but a server that does this with every message is dead.
            self._without_progress.clear()
            self._set_aside += 1
            in_vain = 0
        else:
            address = pipeline.transport.address
            in_vain = self._without_progress.get(address, 0) + 1
            self._without_progress[address] = in_vain
        self._tried += [queued.message.name for queued in unfinished]
        patient = self._has_answered and not isinstance(error, TimeoutError)
        limit = MAX_FROM_KNOWN_SERVER if patient else MAX_WITHOUT_PROGRESS
        if in_vain < limit * at_once and self._set_aside < MAX_SET_ASIDE:
            return ""
        tried = printable(b", ".join(dict.fromkeys(self._tried)))
        return (
            f"{pipeline.transport.name} is of no use: connection after connection without an "
            f"answer{f', with {tried}' if tried else ''}; making no progress, giving up"
        )

    def begin_anew(self) -> None:
        """Begin to count anew."""
        self._without_progress.clear()
        self._of_no_use.clear()
        self._set_aside = 0
        self._tried.clear()


def _is_fault(pipeline: Pipeline[QueuedMessage]) -> bool:
    """Return whether the one message that a connection had may be what ended it."""
    error = pipeline.error
    if error is None or isinstance(error, ConnectError):
        return False
    return bool(pipeline.bytes_sent) and not pipeline.answered


def _blame(pipeline: Pipeline[QueuedMessage]) -> str:
    """Return why a message is set aside."""
    error: QMTPError | None = pipeline.error
    if isinstance(error, ProtocolError):
        what = "answered nonsense twice to this message alone"
    elif isinstance(error, TimeoutError):
        what = "did not answer twice, with this message alone"
    else:
        what = "hung up twice on this message alone"
    if not pipeline.capabilities.has_spoken:
        what += ", and has not sent a single byte so far"
    return f"{pipeline.transport.name} {what}"


def _silence_hint(server: Endpoint) -> str:
    """Return what is probably wrong with a server that has never sent a byte."""
    if isinstance(server, CommandEndpoint):
        return "did the command run, and does it speak QMTP on its standard input and output?"
    if isinstance(server, TcpEndpoint) and not server.tls:
        return "does it speak QMTP? if it speaks TLS, write qmtps:// before its name"
    return "does it speak QMTP?"
