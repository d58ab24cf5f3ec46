"""The messages that go next: from the queue, opened and with their envelope, into connections.

    queue --take--> opened, addressed --put--> connection

A message may need several packages. All of them go into the connection that has the
first, for they have one result. Which message is half put, and where, is known here only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from maildirqmtp.errors import EnvelopeError, FileChangedError, LocalError
from maildirqmtp.forwarder.queued_message import PassedOver, prepare
from maildirqmtp.forwarder.small_messages import gather
from maildirqmtp.mail import header
from maildirqmtp.maildir import holds

if TYPE_CHECKING:
    from maildirqmtp.forwarder.queue import Queue
    from maildirqmtp.forwarder.queued_message import QueuedMessage
    from maildirqmtp.forwarder.report import Report
    from maildirqmtp.forwarder.route import Route
    from maildirqmtp.forwarder.servers import Servers
    from maildirqmtp.forwarder.settle import Settler
    from maildirqmtp.maildir.files import Folder
    from maildirqmtp.maildir.maildir import Maildir
    from maildirqmtp.maildir.state import State
    from maildirqmtp.pipeline.pool import Connection, ConnectionPool


class Outbox:
    """Takes messages from the queue, and puts them into the connections of a pool.

    `servers` knows which messages have to go alone, because a connection ended on them, and which
    have to wait for one of several servers; `state`, which an administrator holds back.
    """

    __slots__ = (
        "_half_put_on",
        "_held",
        "_maildir",
        "_next",
        "_proven",
        "_queue",
        "_report",
        "_route",
        "_servers",
        "_settler",
        "_state",
    )

    def __init__(
        self,
        maildir: Maildir,
        route: Route,
        report: Report,
        settler: Settler,
        queue: Queue,
        servers: Servers,
        state: State,
    ) -> None:
        self._servers = servers
        self._queue = queue
        self._next: QueuedMessage | None = None
        self._half_put_on: Connection[QueuedMessage] | None = None
        self._maildir = maildir
        self._route = route
        self._report = report
        self._settler = settler
        self._state = state
        self._held = state.held()
        self._proven = False

    def next(self) -> QueuedMessage | None:
        """Return the next message that is ours and can be sent; it stays the next one."""
        while self._next is None and (candidate := self._take()) is not None:
            self._next = self._open(*candidate)
        if self._next is None and self._servers.several and (ready := self._servers.probe()):
            self._queue.hurry(ready)
            return self.next()
        return self._next

    def _take(self) -> tuple[Folder, bytes] | None:
        """Take the next candidate that may go, where the next message goes."""
        while (candidate := self._queue.take()) is not None:
            if self._held and holds.key(candidate[1]) in self._held:
                self._hold(candidate[1])
                continue
            if not self._servers.several:
                break
            wait = self._servers.must_wait(candidate[1])
            if wait is None:
                break
            self._queue.wait(candidate, wait.until, wait.reason)
        return candidate

    def _hold(self, name: bytes) -> None:
        if self._queue.later(name, None, holds.REASON):
            self._report.held(name, holds.REASON)

    def _look_for_holds(self) -> None:
        """Learn which messages are held now; the next one may be among them."""
        self._held = self._state.held()
        queued = self._next
        if self._held and queued is not None and self._half_put_on is None:
            name = queued.message.name
            if holds.key(name) in self._held:
                queued.message.close()
                self._next = None
                self._hold(name)

    def has_next(self) -> bool:
        """Say whether there is a message to be sent now. Raises `LocalError`.

        Before the first is sent it proves that messages can be removed.
        """
        self._look_for_holds()
        if self.next() is None:
            return False
        if not self._proven:
            self.prove()
        return True

    def prove(self) -> None:
        """Prove that what the server takes can be removed, or moved. Raises `LocalError`."""
        self._maildir.prove_changeable(self._route.include_cur)
        self._settler.prove_sent()
        self._proven = True

    def fill(self, pool: ConnectionPool[QueuedMessage]) -> None:
        """Put what there is room for; each message where the least is in flight."""
        self._look_for_holds()
        connection = pool.open[0]
        while True:
            if len(pool.open) > 1:
                connection = pool.for_next()
            elif self._next is None and self._may_batch():
                self._put_small(connection)
            if not connection.pipeline.has_room():
                return
            queued = self.next()
            if queued is None:
                return
            queued.alone = queued.message.name in self._servers.suspects
            if self._half_put_on is not None:
                connection = self._half_put_on
                if not connection.pipeline.has_room():
                    return
            if not connection.pipeline.can_take(queued):
                return
            if connection.pipeline.put(queued):
                self._next = self._half_put_on = None
            else:
                self._half_put_on = connection

    def _may_batch(self) -> bool:
        """Say whether the next messages may go without an object for each.

        Not where more is to be said or done of each than that it is accepted and removed.
        """
        route = self._route
        return not (
            route.sender is not None
            or route.recipients
            or route.sent is not None
            or self._report.tells_all
            or self._maildir.has_envelopes
            or self._servers.suspects
        )

    def _put_small(self, connection: Connection[QueuedMessage]) -> None:
        """Put small messages, batch by batch, up to one that is none: that is the next one."""
        pipeline = connection.pipeline
        while True:
            messages, max_bytes = pipeline.room()
            if not messages:
                return
            prefix, take = self._route.prefix, self._queue.take
            if self._servers.several or self._held:
                take = self._take
            batch, odd = gather(self._maildir, prefix, take, messages, max_bytes)
            if batch is not None:
                pipeline.put_batch(batch)
            if odd is not None:
                self._next = self._open(*odd)
                if self._next is not None:
                    return
            elif batch is None:
                return

    def ended(self, connection: Connection[QueuedMessage]) -> QueuedMessage | None:
        """Return the message that was half put on a connection which has ended, if there is one.

        It begins anew, from the disk.
        """
        if self._half_put_on is not connection:
            return None
        queued, self._next, self._half_put_on = self._next, None, None
        assert queued is not None
        queued.message.close()
        return queued

    def put_back(self) -> None:
        """Put back the message that waits for its turn: it may be another when that comes."""
        queued, self._next = self._next, None
        if queued is not None:
            queued.message.close()
            self._queue.put_back([(queued.message.folder, queued.message.name)])

    def _refuse(self, queued: QueuedMessage) -> None:
        """Settle a message that must not be sent as one that the server refused."""
        if not self._proven:
            self.prove()
        name = queued.message.name
        queued.refuse()
        kept = self._settler.settle(queued)
        queued.close()
        if kept is not None:
            self._queue.later(name, queued.message.mtime_s, kept.reason, kept.at_next_scan)
        elif self._queue.gone(name):
            self._report.no_longer_held()
        self._queue.add(self._settler.take_bounces())

    @property
    def left(self) -> int:
        """How many there are still to be sent now."""
        return len(self._queue) + (self._next is not None)

    def _open(self, folder: Folder, name: bytes) -> QueuedMessage | None:
        """Return a message that is ours and can be sent; None after telling the queue."""
        try:
            queued = prepare(self._maildir, self._route, folder, name)
            is_there = queued is not PassedOver.NO_MESSAGE or folder.has(name)
        except (EnvelopeError, FileChangedError, LocalError) as error:
            at_next_scan = isinstance(error, FileChangedError)
            if self._queue.later(name, None, str(error), at_next_scan):
                self._report.held(name, str(error))
            return None
        if isinstance(queued, PassedOver):
            if not is_there:
                if self._queue.vanished(name):
                    self._report.no_longer_held()
            elif self._queue.later(name, None, "") and queued is PassedOver.FOR_OTHERS:
                self._report.for_others()
            return None
        if queued.refusal is not None:
            self._refuse(queued)
            return None
        if self._report.detailed:
            queued.message_id = header.message_id(queued.message.data)
        return queued
