"""One route at work: queue -> outbox -> connections -> settle -> report.

One thread, one selector. Each turn fills the connections from the outbox, waits until one of them
can be read or written or something is due, lets them write and read, and settles what has been
answered. All of that is settled before anything more is sent: at most the window is ever sent and
not settled. `recovery` decides what becomes of what a connection left unfinished, and when a server
is given up: then it gets nothing more, unless an answer comes after all.

A batch is run by `run_batch`. In watch mode the worker owns the loop: it calls `connect`, `turn`
and `rest`, and does its own work in between.
"""

import selectors
import time
from collections.abc import Callable, Sequence

from maildirqmtp.errors import ConnectError, LocalError, TransportError
from maildirqmtp.forwarder.answered import AnsweredMessages
from maildirqmtp.forwarder.large_messages import LargeMessages
from maildirqmtp.forwarder.looking import Look
from maildirqmtp.forwarder.outbox import Outbox
from maildirqmtp.forwarder.queue import BatchQueue, Queue
from maildirqmtp.forwarder.queued_message import QueuedMessage
from maildirqmtp.forwarder.report import Report
from maildirqmtp.forwarder.route import Route
from maildirqmtp.forwarder.servers import Servers
from maildirqmtp.forwarder.settle import Settler
from maildirqmtp.forwarder.stop import STOP_S, Stop
from maildirqmtp.forwarder.stuck import Stuck
from maildirqmtp.forwarder.waiting import Waiting
from maildirqmtp.maildir.files import local_error
from maildirqmtp.maildir.maildir import Candidates, Maildir
from maildirqmtp.maildir.state import State
from maildirqmtp.pipeline.pool import Connection, ConnectionPool
from maildirqmtp.transport.endpoint import Endpoint
from maildirqmtp.transport.transport import Transport
from maildirqmtp.transport.wakeup import Wakeup

#: Seconds that a turn may take, beyond those it waits; more if a bounce is handed on.
SLACK_S = 30.0
BOUNCE_SLACK_S = 360.0
#: Seconds that making a further connection may take; and the pause after one that failed.
MORE_TIMEOUT_S = 5.0
MORE_AGAIN_S = 30.0


class Forwarder:
    """Forwards one maildir to one of its servers; the maildir is open and locked.

    `queue` None is for `run_batch`. With one that stays open (watch mode), a connection is kept for
    `route.idle_s` without work. `wake` interrupts any wait, `state` is the maildir's state file;
    None makes a new object for either. `connector`, `clock` (monotonic seconds) and `wall_clock`
    (seconds of the epoch) are for tests. Raises `LocalError` if no descriptor is to be had.

    `stop_reason`: why the last connection was of no use, else empty. `may_help`: another may help.
    `answered_s`: epoch time of the last answer, or 0. `connecting`: a first connection is being
    made. `idle_s`: seconds for which a connection is kept without work. `servers`: the route's.
    `told_to_stop`: whether it is to stop, and by when it ends. `take_over`: see `AnsweredMessages`.
    """

    def __init__(
        self,
        route: Route,
        maildir: Maildir,
        report: Report,
        connector: Callable[[Endpoint, float], Transport] | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
        queue: Queue | None = None,
        wake: Wakeup | None = None,
        state: State | None = None,
    ) -> None:
        self.stop_reason = ""
        self.may_help = False
        self.answered_s = 0.0
        self.idle_s = route.idle_s
        self._route = route
        self._maildir = maildir
        self._report = report
        self._clock = clock
        self._wall_clock = wall_clock
        self.told_to_stop = stop = Stop(clock, STOP_S)
        self.state = state = state or State(maildir.root, clock, wall_clock, shard=maildir.shard)
        self._waiting = waiting = Waiting(wake, maildir, clock)
        waiting.extend_watchdog(SLACK_S)
        self._slack_s = slack_s = BOUNCE_SLACK_S if route.bounce else SLACK_S
        #: Interrupts a wait.
        self.wake = waiting.wake
        self._settler = settler = Settler(
            maildir, route, report, clock, wall_clock, state, waiting.wake.set, stop
        )
        settler.lives = lambda: waiting.extend_watchdog(slack_s)
        if queue is None:
            queue = BatchQueue(lambda choose: maildir.scan(route.include_cur, choose), clock)
        self.queue = queue
        self._large = large = LargeMessages(route.large_bytes, state, clock)
        self.servers = servers = Servers(
            route, maildir, settler, report, state, large, connector, clock, wall_clock
        )
        self._answered = answered = AnsweredMessages(settler, servers, queue, report)
        self.take_over = answered.take_over
        look = Look(clock, stop)
        self.outbox = Outbox(
            maildir, route, report, settler, answered, queue, large, servers, state, look
        )
        self._more_at = 0.0
        self._total = 0
        self._all_tried = self._given_up = self.connecting = False

    # Called from outside

    @property
    def stopping(self) -> bool:
        """True once it was told to stop."""
        return self.told_to_stop.is_told

    @property
    def watchdog_deadline(self) -> float:
        """The time of `clock` by which the thread comes back, unless it hangs."""
        return self._waiting.watchdog_deadline

    @property
    def local_error(self) -> LocalError | None:
        """The error for which it takes no more messages from this maildir, None if it does."""
        return self._settler.local_error

    def stop(self, at_once: bool = False) -> None:
        """Take no more messages, finish what is in flight, then end; call it from any thread.

        `at_once`: what is in flight is given up, and reported as in doubt.
        """
        self._large.stopping = True
        self.told_to_stop.tell(at_once)

    def interrupt(self) -> None:
        """Stop, the second time at once; for a signal handler in the forwarder's own thread.

        Raises `ConnectError` to end connecting at once if that is under way with nothing in flight.
        """
        self.stop(at_once=self.stopping)
        if self.connecting:
            raise ConnectError("told to stop while connecting")

    def close(self) -> None:
        """Close the forwarder's own descriptors."""
        self._waiting.close()

    # A batch

    def run_batch(self, candidates: Candidates) -> bool:
        """Try each of these once, and what arrives meanwhile; return whether all were tried.

        What is left, and why, is in the report. Raises `LocalError` if it finds, before
        the first is sent, that messages cannot be removed from the maildir.
        """
        self.queue.add(candidates)
        self._total += len(candidates)
        self._answered.expect(len(candidates) if self.outbox.may_batch() else 0)
        try:
            while self._has_next():
                if not self._may_take:
                    self.stop_reason = "stopped before the end"
                elif self._attempt():
                    continue
                left = self.outbox.left
                if left:
                    self._report.problem(f"{self.stop_reason} ({left} left)", left)
                return False
        finally:
            self.finish()
        return self._may_take

    def _has_next(self) -> bool:
        """Return whether there is a message to be sent, or one that is not, for it is to stop."""
        while not self.outbox.has_next():
            self._settle_others()
            if self.stopping:
                return bool(self.outbox.left)
            if not (self.outbox.take_pause() or (not self._all_tried and self._refill())):
                return False
        return True

    def _refill(self) -> bool:
        """Look for new messages, once all small ones that were known have been tried."""
        if self.outbox.small_left or not self._answered.all_settled() or not self._may_take:
            return False
        try:
            found = self.queue.refill()
        except LocalError as error:
            self._settler.stop_taking(error)
            return False
        self._all_tried = not found
        self._total += found
        return found > 0

    def _attempt(self) -> bool:
        """Connect, and send until the connections end; return whether others may help."""
        self.connect()
        while self.connected:
            self.turn()
        return self.may_help

    # What both modes are made of

    @property
    def connected(self) -> bool:
        """True while there is a connection."""
        return bool(self.pool.open)

    @property
    def wants_more(self) -> bool:
        """True if one more connection would be of use."""
        may = self._may_take and not self._given_up and self._clock() >= self._more_at
        return may and self.outbox.needs_connection(self.pool)

    def connect(self) -> bool:
        """Open a first connection; return whether that could be done.

        If not, `may_help` says whether another server is left to be tried.
        """
        self.may_help = self._all_tried = self._given_up = False
        self._settle_others()
        if self.stopping:
            self.stop_reason = "stopped before the end"
            return False
        if self.servers.choose():
            self.outbox.put_back()  # it may have to wait, now that it goes elsewhere
        try:
            transport = self._connect(self.servers.timeout_s)
        except TransportError as error:
            why = str(error) if self.stopping else self.servers.failed(str(error))
            self.stop_reason = f"{why}; nothing has happened to the messages that are left"
            self.may_help = not why
            return False
        try:
            self._open(transport)
        except OSError as error:
            self.stop_reason = f"cannot wait for {transport.name}: {error.strerror}"
            return False
        self.queue.hurry(self.servers.take_ready())
        return True

    def turn(self, until: float | None = None) -> None:
        """Fill connections, wait (until this time of the clock at most), write, read, settle."""
        name = self.pool.open[0].pipeline.transport.name
        try:
            self._turn(until)
        except OSError as error:
            # From the selector: no descriptor, no memory. Connection errors end their pipeline.
            for connection in [*self.pool.open]:
                self._end(connection)
            self.may_help = False
            self.stop_reason = f"cannot wait for {name}: {error.strerror}"

    def rest(self, until: float) -> None:
        """Without a connection, wait for something to do, or until this time of the clock.

        Raises `LocalError` if the selector fails.
        """
        try:
            self._settle_others()
            self._wait((), until)
        except OSError as error:
            raise local_error("wait for mail in", self._maildir.path, error) from error
        self._settler.tick()

    def mend(self) -> bool:
        """Try again what could not be done to the files; return whether all is well now."""
        try:
            self.outbox.prove()
        except LocalError:
            return False
        return self._answered.mend()

    def finish(self) -> list[Stuck]:
        """Put back what waits for its turn, make everything durable; see `Settler.finish`."""
        self.outbox.put_back()
        self._settle_others()
        return self._answered.finish()

    def _connect(self, timeout_s: float) -> Transport:
        # `interrupt` may raise only while nothing is in flight.
        self.connecting = not self.pool.open
        # Each of a name's addresses may take that long, and so may looking them up.
        self._waiting.extend_watchdog(10 * timeout_s + SLACK_S)
        try:
            return self.servers.connect(timeout_s)
        finally:
            self.connecting = False

    @property
    def pool(self) -> ConnectionPool[QueuedMessage]:
        """The connections to the server that is in use."""
        return self.servers.current.pool

    @property
    def _may_take(self) -> bool:
        return self._settler.local_error is None and not self.stopping

    def _open(self, transport: Transport) -> None:
        """Use a connection. Raises `OSError` if the selector cannot watch it."""
        self.pool.add(transport, self._waiting.selector)
        self._settler.host = self.servers.current.endpoint.host
        self.state.note_stop("")
        self._report.connected(transport.name)

    def _open_more(self) -> None:
        """Open as many connections as are allowed, while mail waits that they can take."""
        while len(self.pool.open) < self.pool.most and self.wants_more:
            try:
                self._open(self._connect(min(MORE_TIMEOUT_S, self._route.connect_timeout_s)))
            except TransportError as error:
                # The open ones go on; the server may not want more connections from us.
                self._more_at = self._clock() + MORE_AGAIN_S
                self._report.note(f"{error}; going on with {len(self.pool.open)} connections")

    def _turn(self, until: float | None) -> None:
        pool = self.pool.open
        if self._may_take and not (self._given_up and self.pool.in_flight):
            self._open_more()
            self.outbox.fill(self.pool)
            if not self._large.small_in_flight(self.pool):
                self._refill()
                self.outbox.fill(self.pool)
            self.outbox.fill_large(self.pool)
        self._end_those_over()
        for connection in pool:
            connection.watch()
        if not pool:
            return
        for key, events in self._wait(pool, until):
            if key.data is not None and not self.told_to_stop.is_due:  # it would be in doubt
                key.data.turn(events)
        for connection in pool:
            connection.pipeline.check_time()
            if self.told_to_stop.is_due:
                connection.pipeline.give_up()
            self._settle(connection)  # after these, for both of them may take in answers
        self._settle_others()
        self._settler.tick()

    def _end_those_over(self) -> None:
        more_may_come = (self.queue.open or self.outbox.paused) and self._may_take
        over = self.pool.over(self._clock(), self.idle_s, more_may_come=more_may_come)
        for connection in over:
            connection.pipeline.transport.hang_up()  # commands are to exit at the same time
        for connection in over:
            self._end(connection)

    def _end(self, connection: Connection[QueuedMessage]) -> None:
        """Close a connection, and clear up after it; note whether another may help."""
        unfinished = self.pool.end(connection)
        self._settle(connection)
        self._settle_others()
        for half_put in self.outbox.ended(connection):
            if not any(half_put is queued for queued in unfinished):
                unfinished.append(half_put)
        self.stop_reason = self.servers.clear_up(connection, unfinished, self.queue, self.stopping)
        self._all_tried = self._all_tried and not unfinished
        self._take_bounces()
        if connection.pipeline.error is not None:
            self._more_at = self._clock() + MORE_AGAIN_S
        if not (self.stop_reason and isinstance(connection.pipeline.error, ConnectError)):
            self._given_up = bool(self.stop_reason)
        helps = not self._given_up and (self.may_help or not self.stop_reason)
        self.may_help = helps or not self._may_take

    def _wait(
        self, pool: Sequence[Connection[QueuedMessage]], until: float | None
    ) -> list[tuple[selectors.SelectorKey, int]]:
        """Wait until a descriptor is ready or something is due; clear a wake-up."""
        settling = self._settler.next_deadline
        due = [until, settling, self.outbox.next_deadline(), self.told_to_stop.at]
        for connection in pool:
            due.append(connection.pipeline.next_deadline())
            if not connection.pipeline.packages_in_flight:
                due.append(connection.idle_since + self.idle_s)
        if self.outbox.take_pause():
            due.append(self._clock())
        return self._waiting.wait(due, self._slack_s)

    def _settle(self, connection: Connection[QueuedMessage]) -> None:
        if answers := self._answered.settle(connection):
            self._given_up = False
            connection.idle_since = self._clock()
            self.answered_s = self._wall_clock()
            self.servers.note_answers(connection.pipeline, answers, self.outbox.left)
            self._report.progress(self._total - len(self.queue), self._total)

    def _settle_others(self) -> None:
        self._waiting.extend_watchdog(self._slack_s)
        while self._answered.settle_another():  # each may take as long as a mailer
            self._waiting.extend_watchdog(self._slack_s)
        self._take_bounces()

    def _take_bounces(self) -> None:
        """Have the bounces sent that settling has put into the maildir."""
        bounces = self._settler.bounces.take()
        self._total += len(bounces)
        self.queue.add(bounces)
