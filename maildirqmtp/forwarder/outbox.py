"""Takes messages from the queue, opens them with their envelope, and puts them into connections.

    queue --take--> opened, addressed --put--> connection

A message may need several packages. All of them go into the connection that has the
first, since they have one result. Only the outbox knows which message is half put, and where.

Small messages and large ones go in two lanes: see `large_messages`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from maildirqmtp.errors import EnvelopeError, FileChangedError, LocalError
from maildirqmtp.forwarder.kept import hold
from maildirqmtp.forwarder.lane import Lane
from maildirqmtp.forwarder.looking import Look
from maildirqmtp.forwarder.queued_message import PassedOver, prepare
from maildirqmtp.forwarder.small_messages import SMALL_MAX, gather
from maildirqmtp.mail import header
from maildirqmtp.maildir import holds

if TYPE_CHECKING:
    from collections.abc import Callable

    from maildirqmtp.forwarder.answered import AnsweredMessages
    from maildirqmtp.forwarder.large_messages import LargeMessages
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

    `large` says when a large one may go, and where; `servers` knows which messages have to go
    alone, because a connection ended on them, and which have to wait for one of several servers;
    `state` knows which are on hold; `look` says how long to look for a message.
    """

    __slots__ = (
        "_answered",
        "_held",
        "_large",
        "_large_lane",
        "_look",
        "_maildir",
        "_proven",
        "_queue",
        "_report",
        "_route",
        "_servers",
        "_settler",
        "_small_lane",
        "_state",
    )

    def __init__(
        self,
        maildir: Maildir,
        route: Route,
        report: Report,
        settler: Settler,
        answered: AnsweredMessages,
        queue: Queue,
        large: LargeMessages,
        servers: Servers,
        state: State,
        look: Look,
    ) -> None:
        self._queue = queue
        self._servers = servers
        self._large = large
        self._small_lane = Lane()
        self._large_lane = Lane()
        self._maildir = maildir
        self._route = route
        self._report = report
        self._settler = settler
        self._answered = answered
        self._state = state
        self._look = look
        self._held = state.held()
        self._proven = False

    def next(self) -> QueuedMessage | None:
        """Return the next small message of this route that can be sent; it stays the next one.

        None also if there may be one, and the look for it has ended.
        """
        lane, look, most_bytes = self._small_lane, self._look, self._large.large_bytes
        while lane.next is None and look.goes_on() and (candidate := self._take()) is not None:
            lane.next = self._open(*candidate, most_bytes)
        return lane.next

    def next_large(self) -> QueuedMessage | None:
        """Return the next postponed message of this route that can be sent, likewise."""
        lane, look = self._large_lane, self._look
        take = self._queue.take_postponed
        while (
            lane.next is None
            and look.goes_on()
            and (candidate := self._take_one_of(take)) is not None
        ):
            lane.next = self._open(*candidate)
        if not self.large_waits:
            self._large.none_waits()
        return lane.next

    def _take(self) -> tuple[Folder, bytes] | None:
        return self._take_one_of(self._queue.take)

    def _take_one_of(
        self, take: Callable[[], tuple[Folder, bytes] | None]
    ) -> tuple[Folder, bytes] | None:
        """Take the next candidate that is neither on hold nor has to wait for another server."""
        while (candidate := take()) is not None:
            if self._held and holds.key(candidate[1]) in self._held:
                self._hold(candidate[1])
            elif not self._servers.several:
                return candidate
            else:
                wait = self._servers.must_wait(candidate[1])
                if wait is None:
                    return candidate
                self._queue.wait(candidate, wait.until, wait.reason)
            if not self._look.goes_on():
                return None
        return None

    def _hold(self, name: bytes) -> None:
        hold(self._queue, self._report, name, self._held[holds.key(name)])

    def _look_for_holds(self) -> None:
        """Look up which messages are on hold; take back a next message that is one of them."""
        before, self._held = self._held, self._state.held(must_know=not self._proven)
        if before is not self._held and before.keys() - self._held.keys():
            self._queue.try_all()  # released by who may not send us a signal
        for lane in (self._small_lane, self._large_lane) if self._held else ():
            queued = lane.next
            if queued is None or lane.half_put_on is not None:
                continue
            name = queued.message.name
            if holds.key(name) in self._held:
                lane.next = None
                queued.message.close()
                self._hold(name)

    @property
    def large_waits(self) -> bool:
        """True if there may be a large message to be sent."""
        return bool(self._queue.postponed) or self._large_lane.next is not None

    def has_next(self) -> bool:
        """Return whether there is a message to be sent now; if not, look on if `take_pause`.

        Before the first is sent, prove that messages can be removed; raises `LocalError` if not.
        """
        self._look.begin()
        self._look_for_holds()
        if not self._finds_next():
            if self._look.paused:
                return False
            ready = self._servers.probe() if self._servers.several else []
            self._queue.hurry(ready)
            if not ready or not self._finds_next():
                return False
        if not self._proven:
            self.prove()
        return True

    @property
    def paused(self) -> bool:
        """True if the look has ended before all were seen, or found what is to be settled first."""
        return self._look.paused

    def take_pause(self) -> bool:
        """Return whether the look for messages was `paused`, once."""
        paused, self._look.paused = self._look.paused, False
        return paused

    def _finds_next(self) -> bool:
        return self.next() is not None or self.next_large() is not None

    def prove(self) -> None:
        """Prove that accepted messages can be removed, or moved; raises `LocalError` if not."""
        self._maildir.prove_changeable(self._route.include_cur)
        self._settler.prove_sent()
        self._proven = True

    def fill(self, pool: ConnectionPool[QueuedMessage]) -> None:
        """Put all small messages there is room for, each where the least is in flight."""
        lane, connection = self._small_lane, self._for_small(pool)
        self._look.begin()
        self._look_for_holds()
        while True:
            if len(pool.open) > 1:
                connection = self._for_small(pool)
            elif connection is not None and lane.next is None:
                self._put_small(connection)
            if connection is None or not connection.pipeline.has_room() or self.next() is None:
                return
            self._look_for_holds()  # opening it takes time: somebody may hold and bounce it
            if (queued := lane.next) is not None:
                queued.alone = queued.message.name in self._servers.suspects
                if not lane.put(queued, connection):
                    return

    def fill_large(self, pool: ConnectionPool[QueuedMessage]) -> None:
        """Put the large messages that may go now."""
        self._look.begin()
        while self.large_waits and (connection := self._for_large(pool)) is not None:
            if self.next_large() is None:
                self.fill(pool)  # the small ones had to wait for it
                return
            self._look_for_holds()
            if (queued := self._large_lane.next) is None:
                continue
            suspects = self._servers.suspects
            queued.alone = self._large.one_by_one or queued.message.name in suspects
            if not self._large_lane.put(queued, connection):
                return
            self._large.put_on(connection)
            if self.large_waits:
                self._large.waits()

    def _for_small(self, pool: ConnectionPool[QueuedMessage]) -> Connection[QueuedMessage] | None:
        return self._small_lane.half_put_on or self._large.for_small(pool, self.large_waits)

    def _for_large(self, pool: ConnectionPool[QueuedMessage]) -> Connection[QueuedMessage] | None:
        connection = self._large_lane.half_put_on
        if connection is None:
            return self._large.for_large(pool, self.small_left)
        return connection if connection.pipeline.has_room() else None

    def needs_connection(self, pool: ConnectionPool[QueuedMessage]) -> bool:
        """Return whether one more connection is allowed, and of use for mail that waits."""
        if not pool.may_add() and not (pool.windows and self._large.takes_all(pool)):
            return False
        small_waits = len(self._queue) > self._queue.postponed
        return small_waits or (self.large_waits and self._large.needs_connection(pool))

    def may_batch(self) -> bool:
        """Return whether the next messages may go without an object for each.

        False if more is to be reported or done for each than to remove it once accepted. The names
        were seen before this looks for sidecars, so all sidecars that they have are found.
        """
        route = self._route
        return not (
            route.sender is not None
            or route.recipients
            or route.sent is not None
            or self._report.tells_all
            or self._servers.suspects
            or self._maildir.may_have_envelopes()
        )

    def _put_small(self, connection: Connection[QueuedMessage]) -> None:
        """Put small messages, batch by batch, up to a candidate that is not one; it comes next."""
        pipeline, most_bytes = connection.pipeline, self._large.large_bytes
        small_max = min(SMALL_MAX, most_bytes, self._route.max_bytes or SMALL_MAX)
        while self._look.goes_on() and self.may_batch():
            self._look_for_holds()
            messages, max_bytes = pipeline.room()
            if not messages:
                return
            prefix = self._route.prefix
            take = self._take if self._servers.several or self._held else self._queue.take
            batch, odd = gather(self._maildir, prefix, take, messages, max_bytes, small_max)
            self._look_for_holds()  # again: reading these took time
            if batch and self._held and any(holds.key(m[1]) in self._held for m in batch.messages):
                candidates = [(m[0], m[1]) for m in batch.messages]
                self._queue.put_back(candidates if odd is None else [*candidates, odd])
                continue
            if batch is not None:
                pipeline.put_batch(batch)
            if odd is not None:
                self._small_lane.next = self._open(*odd, most_bytes)
                if self._small_lane.next is not None:
                    return
            elif batch is None:
                return

    def ended(self, connection: Connection[QueuedMessage]) -> list[QueuedMessage]:
        """Return the messages that were half put on a connection that has ended: one of each lane.

        They begin anew, from the disk.
        """
        half_put = []
        for lane in (self._small_lane, self._large_lane):
            if lane.half_put_on is connection:
                assert lane.next is not None
                lane.next.message.close()
                half_put.append(lane.next)
                lane.next = lane.half_put_on = None
        return half_put

    def put_back(self) -> None:
        """Put back the messages that wait for their turn: others may be next when that comes."""
        small, self._small_lane.next = self._small_lane.next, None
        if small is not None:
            small.message.close()
            self._queue.put_back([(small.message.folder, small.message.name)])
        large, self._large_lane.next = self._large_lane.next, None
        if large is not None:
            large.message.close()
            broken = self._large.broke_before(large.message.name)
            candidate = large.message.folder, large.message.name
            self._queue.postpone([candidate], broken=broken, first=True)

    def _refuse(self, queued: QueuedMessage) -> None:
        """Have a message that must not be sent settled as one that the server refused."""
        if not self._proven:
            try:
                self.prove()
            except LocalError:
                queued.close()
                self._queue.put_back([(queued.message.folder, queued.message.name)])
                raise
        self._answered.refused(queued)
        self._look.end()  # a mailer may take its time over each: others, and a stop, come between

    def next_deadline(self) -> float | None:
        """Return the clock's time at which there may be more to put, None if none is known."""
        due = [self._queue.next_deadline(), self._large.next_deadline()]
        return min((at for at in due if at is not None), default=None)

    @property
    def left(self) -> int:
        """How many messages are still to be sent now."""
        lanes = (self._small_lane, self._large_lane)
        return len(self._queue) + sum(lane.next is not None for lane in lanes)

    @property
    def small_left(self) -> bool:
        """True if a small message may wait."""
        return len(self._queue) > self._queue.postponed or self._small_lane.next is not None

    def _prepare(
        self, folder: Folder, name: bytes, most_bytes: int | None
    ) -> QueuedMessage | PassedOver:
        """Open a message, and prove that there is room for what its acceptance may need."""
        queued = prepare(self._maildir, self._route, folder, name, most_bytes)
        if isinstance(queued, PassedOver):
            return queued
        try:
            self._settler.prove_room(queued.message)
            if len(queued.recipients) + len(queued.others) > 1:
                self._settler.owed.prove()
        except LocalError:
            queued.close()
            raise
        return queued

    def _open(
        self, folder: Folder, name: bytes, most_bytes: int | None = None
    ) -> QueuedMessage | None:
        """Return a message of this route that can be sent; else tell the queue, and return None.

        One above `most_bytes` is postponed.
        """
        was_held = self._queue.is_held(name)
        try:
            queued = self._prepare(folder, name, most_bytes)
            is_there = queued is not PassedOver.NO_MESSAGE or folder.has(name)
        except (EnvelopeError, FileChangedError, LocalError) as error:
            at_next_scan = isinstance(error, FileChangedError)
            hold(self._queue, self._report, name, str(error), at_next_scan=at_next_scan)
            return None
        if queued is PassedOver.LARGE:
            self._queue.postpone([(folder, name)], broken=self._large.broke_before(name))
            self._large.waits()
            return None
        if isinstance(queued, PassedOver):
            if not is_there:
                if self._queue.vanished(name):
                    self._report.no_longer_held()
            elif self._queue.later(name, None, "") and queued is PassedOver.FOR_OTHERS:
                self._report.for_others()
                self._report.no_longer_held(was_held)
            return None
        if queued.refusal is not None:
            self._refuse(queued)
            return None
        if self._report.detailed:
            queued.message_id = header.message_id(queued.message.data)
        return queued
