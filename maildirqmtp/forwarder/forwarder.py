"""One route at work: candidates -> pipeline -> settle.

One thread, one selector. Each turn fills the pipeline from the queue, waits
until the connection can be read or written or something is due, lets the
pipeline write and read, and settles what has been answered. After responses
everything is settled before anything more is sent: at most the window is ever
sent and not settled. What a connection left undone is the business of `recovery`.

A batch and watch mode differ in their queue, and in who calls `attempt` again.
"""

import selectors
import time
from collections import deque
from collections.abc import Callable, Sequence

from maildirqmtp.errors import ConnectError, LocalError, TransportError
from maildirqmtp.forwarder.outbox import Outbox
from maildirqmtp.forwarder.queue import BatchQueue, Queue
from maildirqmtp.forwarder.queued_message import QueuedMessage
from maildirqmtp.forwarder.recovery import Recovery
from maildirqmtp.forwarder.report import Report
from maildirqmtp.forwarder.route import Route
from maildirqmtp.forwarder.settle import Settler
from maildirqmtp.maildir.files import local_error
from maildirqmtp.maildir.maildir import Candidates, Maildir
from maildirqmtp.pipeline.capabilities import Capabilities
from maildirqmtp.pipeline.limits import Limits
from maildirqmtp.pipeline.pool import Connection, ConnectionPool
from maildirqmtp.pipeline.window import shares
from maildirqmtp.transport.endpoint import Endpoint
from maildirqmtp.transport.transport import Transport, connect
from maildirqmtp.transport.wakeup import Wakeup

#: Seconds that a run which is told to stop waits for what is in flight.
STOP_S = 30.0
#: Seconds that a turn may take, beyond those it waits; more where a bounce is handed on.
SLACK_S = 30.0
BOUNCE_SLACK_S = 360.0
#: Seconds that a connection beyond the first may take, while the others wait; and
#: until the next is tried, after one that failed.
MORE_TIMEOUT_S = 5.0
MORE_AGAIN_S = 30.0
#: Seconds that one wait takes at most: epoll_wait(2) counts milliseconds in 32 bits.
MAX_WAIT_S = 86_400.0


class Forwarder:
    """Forwards one maildir to one server; the maildir is open and locked.

    `capabilities` is what earlier runs have shown of the server, where that is known.
    `queue` None is for `run_batch`. With one that stays open (watch mode) a
    connection is kept for `route.idle_s` while there is nothing to send, and
    `attempt` and `rest` are called in turns. Raises `LocalError` where this
    machine has no pipe for it. `connector`, `clock` (seconds that only go on)
    and `wall_clock` (seconds of the epoch) are for tests.

    `outbox` has the messages to be sent. `stop_reason` says why the last connection
    was of no use, `watchdog_deadline` is the clock's time until which nobody need worry
    about this engine, `answered_s` the time of the epoch of the last answer,
    `connecting` whether a first connection is being made.
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
        capabilities: Capabilities | None = None,
    ) -> None:
        self.stop_reason = ""
        self.answered_s = 0.0
        self.watchdog_deadline = clock() + SLACK_S
        self._route = route
        self._maildir = maildir
        self._report = report
        self._connector = connector or (lambda server, time_s: connect(server, time_s, route.tls))
        self._clock = clock
        self._wall_clock = wall_clock
        self._settler = Settler(maildir, route, report, clock, wall_clock)
        queue = BatchQueue(deque()) if queue is None else queue
        self.outbox = Outbox(maildir, route, report, self._settler, queue)
        #: What is known of the server.
        self.capabilities = capabilities or Capabilities()
        if route.one_recipient:
            self.capabilities.one_recipient = True
        self._pool = ConnectionPool(
            shares(route.window_messages, route.window_bytes, route.connections),
            Limits(route.write_timeout_s, route.response_timeout_s, route.grace_s, route.session_s),
            self._unchanged,
            clock,
            self.capabilities,
        )
        self._more_at = 0.0
        self._recovery = Recovery(self._settler, report, route.server)
        self._begun: Connection[QueuedMessage] | None = None
        self._total = 0
        self._stop_at: float | None = None
        self.connecting = False
        try:
            #: Makes the engine look around at once.
            self.wake = Wakeup()
        except OSError as error:
            raise local_error("make a pipe, to work on", maildir.path, error) from error

    # Told from outside

    @property
    def stopping(self) -> bool:
        """True once it was told to stop."""
        return self._stop_at is not None

    @property
    def trouble(self) -> LocalError | None:
        """What keeps it from taking more messages from this maildir."""
        return self._settler.trouble

    def stop(self, at_once: bool = False) -> None:
        """Take no more messages, finish what is in flight, return. From any thread.

        `at_once`: what is in flight is given up, and reported as in doubt.
        """
        if at_once:
            self._stop_at = self._clock()
        elif self._stop_at is None:
            self._stop_at = self._clock() + STOP_S

    def interrupt(self) -> None:
        """Stop, the second time at once; for a signal handler in the engine's own thread.

        While connecting, when nothing is in flight, it ends that at once by an
        exception from the handler.
        """
        self.stop(at_once=self.stopping)
        if self.connecting:
            raise ConnectError("told to stop while connecting")

    def close(self) -> None:
        """Close the engine's own descriptors."""
        self.wake.close()

    # A batch

    def run_batch(self, candidates: Candidates) -> None:
        """Try each of these once, then return. Raises `LocalError`.

        What is left, and why, is in the report.
        """
        self.outbox.queue = BatchQueue(candidates)
        self._total = len(candidates)
        try:
            while self.outbox.has_next():
                if not self._may_take:
                    self.stop_reason = "stopped before the end"
                elif self.attempt():
                    continue
                left = self.outbox.left
                if left:
                    self._report.trouble(f"{self.stop_reason} ({left} left)", left)
                break
        finally:
            self.finish()

    # What both modes are made of

    def attempt(self) -> bool:
        """Connect, and send until the connections end; say whether others may help."""
        try:
            transport = self._connect(self._route.connect_timeout_s)
        except TransportError as error:
            self.stop_reason = f"{error}; nothing has happened to the messages that are left"
            return False
        if self.outbox.queue.open:
            self._pool.forget()  # a daemon outlives the server's software
        may_help = False
        try:
            with selectors.DefaultSelector() as selector:
                selector.register(self.wake.fd, selectors.EVENT_READ)
                self._open(transport, selector)
                while self._pool.open:
                    may_help = self._turn(selector) or may_help
        except OSError as error:
            # The selector's: no descriptor, no memory. Errors of a connection end its pipeline.
            transport.close()
            for connection in [*self._pool.open]:
                self._end(connection)
            self.stop_reason = f"cannot wait for {transport.name}: {error.strerror}"
            return False
        return may_help

    def rest(self, until: float) -> None:
        """Without a connection, wait for something to do, or until this time of the clock.

        Raises `LocalError` where this machine has no descriptor left to wait with.
        """
        try:
            with selectors.DefaultSelector() as selector:
                selector.register(self.wake.fd, selectors.EVENT_READ)
                self._wait(selector, (), until)
        except OSError as error:
            raise local_error("wait for mail in", self._maildir.path, error) from error
        self.outbox.queue.tick()
        self._settler.tick()

    def mend(self) -> bool:
        """Try again what could not be done to the files; say whether all is well now."""
        try:
            self.outbox.prove()
        except LocalError:
            return False
        return self._settler.mend()

    def finish(self) -> None:
        """Let go of the message that waits for its turn, and make everything durable."""
        self.outbox.put_back()
        self._settler.finish()

    def _connect(self, timeout_s: float) -> Transport:
        # Interrupted, it must have nothing in flight.
        self.connecting = not self._pool.open
        # Each of a name's addresses may take that long, and so may finding them.
        self.watchdog_deadline = self._clock() + 10 * timeout_s + SLACK_S
        try:
            return self._connector(self._route.server, timeout_s)
        finally:
            self.connecting = False

    @property
    def _may_take(self) -> bool:
        return self._settler.trouble is None and self._stop_at is None

    # Connections

    def _open(self, transport: Transport, selector: selectors.BaseSelector) -> None:
        """Use a connection. Raises `OSError` where the selector cannot watch it."""
        self._pool.add(transport, selector)
        self._report.connected(transport.name)

    def _open_more(self, selector: selectors.BaseSelector) -> None:
        """Use as many connections as are allowed, while more mail waits than is under way."""
        while self._pool.windows and len(self.outbox.queue) and self._clock() >= self._more_at:
            try:
                self._open(
                    self._connect(min(MORE_TIMEOUT_S, self._route.connect_timeout_s)), selector
                )
            except TransportError as error:
                # What there is goes on; the server may not want more of us.
                self._more_at = self._clock() + MORE_AGAIN_S
                self._report.note(f"{error}; going on with {len(self._pool.open)} connections")

    @property
    def connected(self) -> bool:
        """True while there is a connection."""
        return bool(self._pool.open)

    def _turn(self, selector: selectors.BaseSelector) -> bool:
        """Fill, wait, write and read, settle; say whether a connection that ended was of use."""
        pool = self._pool.open
        if self._may_take and self._pool.may_add():
            self._open_more(selector)
        if self._may_take:
            self._fill(pool)
        may_help = False
        over = [
            connection
            for connection in pool
            if connection.pipeline.ended or self._is_over(connection)
        ]
        for connection in over:
            connection.pipeline.transport.hang_up()  # commands are to exit at the same time
        for connection in over:
            may_help = self._end(connection) or may_help
        for connection in pool:
            connection.watch()
        if not pool:
            return may_help
        for key, events in self._wait(selector, pool):
            if key.data is not None:
                key.data.turn(events)
        for connection in pool:
            self._settle(connection)
            connection.pipeline.check_time()
            if self._stop_at is not None and self._clock() >= self._stop_at:
                connection.pipeline.give_up()
        self._settler.tick()
        self.outbox.queue.tick()
        return may_help

    def _fill(self, pool: list[Connection[QueuedMessage]]) -> None:
        """Put what there is room for; each message where the least is under way."""
        connection, outbox = pool[0], self.outbox
        while True:
            if len(pool) > 1:
                connection = self._pool.for_next()
            if not connection.pipeline.has_room():
                return
            queued = outbox.look()
            if queued is None:
                return
            queued.alone = self._recovery.is_suspect(queued)
            if queued.next:
                # The rest of its packages go where the first went: they have one result.
                assert self._begun is not None
                connection = self._begun
                if not connection.pipeline.has_room():
                    return
            if not connection.pipeline.can_take(queued):
                return
            if connection.pipeline.put(queued):
                outbox.pending = None
            else:
                self._begun = connection

    def _is_over(self, connection: Connection[QueuedMessage]) -> bool:
        """Say whether a connection has nothing in flight and is of no more use."""
        pipeline = connection.pipeline
        if pipeline.packages_in_flight:
            return False
        if not self.outbox.queue.open or pipeline.draining or not self._may_take:
            return True
        return self._clock() - connection.idle_since >= self._route.idle_s

    def _end(self, connection: Connection[QueuedMessage]) -> bool:
        """Close a connection, and clear up after it; say whether another may help."""
        unfinished = self._pool.end(connection)
        self._settle(connection)
        pending = self.outbox.pending
        if pending is not None and pending.next and self._begun is connection:
            # Some of its recipients have been put into packages; it starts anew from the disk.
            self.outbox.pending = None
            pending.message.close()
            if not any(pending is queued for queued in unfinished):
                unfinished.append(pending)
        self.stop_reason = self._recovery.clear_up(connection, unfinished, self.outbox.queue)
        self._take_bounces()
        if connection.pipeline.error is not None:
            self._more_at = self._clock() + MORE_AGAIN_S
        return not self.stop_reason or not self._may_take

    def _wait(
        self,
        selector: selectors.BaseSelector,
        pool: Sequence[Connection[QueuedMessage]],
        until: float | None = None,
    ) -> list[tuple[selectors.SelectorKey, int]]:
        """Wait until a descriptor is ready or something is due; a wake-up is taken in here."""
        due = [
            until,
            self._settler.next_deadline,
            self.outbox.queue.next_deadline(),
            self._stop_at,
        ]
        for connection in pool:
            due.append(connection.pipeline.next_deadline())
            if not connection.pipeline.packages_in_flight:
                due.append(connection.idle_since + self._route.idle_s)
        now = self._clock()
        first = min([t for t in due if t is not None], default=None)
        wait_s = None if first is None else min(max(0.0, first - now), MAX_WAIT_S)
        slack_s = BOUNCE_SLACK_S if self._route.bounce else SLACK_S
        self.watchdog_deadline = now + (wait_s or 0.0) + slack_s
        ready = selector.select(wait_s)
        for key, _ in ready:
            if key.fd == self.wake.fd:
                self.wake.clear()
        return ready

    def _settle(self, connection: Connection[QueuedMessage]) -> None:
        done = connection.pipeline.take_done()
        if not done:
            return
        for queued in done:
            name = queued.message.name  # with --cur, settling may find it under another
            kept = self._settler.settle(queued)
            self._recovery.answered(name)
            if kept is None:
                self.outbox.queue.gone(name)
            else:
                self.outbox.queue.later(name, queued.message.mtime_s, kept.reason, kept.soon)
        self._take_bounces()
        connection.idle_since = self._clock()
        self.answered_s = self._wall_clock()
        self._report.progress(self._total - len(self.outbox.queue), self._total)

    def _take_bounces(self) -> None:
        """Send the bounces, too, that settling has put into the maildir."""
        bounces = self._settler.take_bounces()
        self._total += len(bounces)
        self.outbox.queue.add(bounces)

    def _unchanged(self, queued: QueuedMessage) -> bool:
        return self._maildir.is_same(queued.message)
