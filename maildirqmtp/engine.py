"""One route at work: candidates -> pipeline -> settle.

One thread, one selector. Each turn fills the pipeline from the queue, waits
until the connection can be read or written or something is due, lets the
pipeline write and read, and settles what has been answered. After responses
everything is settled before anything more is sent: at most the window is ever
sent and not settled. What a connection left undone is the business of `aftermath`.

A batch and watch mode differ in their queue, and in who calls `attempt` again.
"""

import selectors
import time
from collections import deque
from collections.abc import Callable

from maildirqmtp import envelope
from maildirqmtp.aftermath import Aftermath
from maildirqmtp.delivery import Delivery, prepare
from maildirqmtp.errors import (
    ConnectError,
    EnvelopeError,
    FileChangedError,
    LocalError,
    TransportError,
)
from maildirqmtp.files import local_error
from maildirqmtp.maildir import Candidates, Maildir
from maildirqmtp.pipeline import Limits, Manners, Pipeline
from maildirqmtp.queues import BatchQueue, Queue
from maildirqmtp.report import Report
from maildirqmtp.route import Route, Server
from maildirqmtp.settle import Settler
from maildirqmtp.transport import Transport, connect
from maildirqmtp.wake import Wake
from maildirqmtp.window import Window

#: Seconds that a run which is told to stop waits for what is in flight.
STOP_S = 30.0
#: Seconds that a turn may take, beyond those it waits; more where a bounce is handed on.
SLACK_S = 30.0
BOUNCE_SLACK_S = 360.0


class Engine:
    """Forwards one maildir to one server; the maildir is open and locked.

    `queue` None is for `run_batch`. With one that stays open (watch mode) a
    connection is kept for `route.idle_s` while there is nothing to send, and
    `attempt` and `rest` are called in turns. Raises `LocalError` where this
    machine has no pipe for it. `connector`, `clock` (seconds that only go on)
    and `wall_clock` (seconds of the epoch) are for tests.

    `excuse` says why the last connection was of no use; `back_by` is the
    clock's time until which whoever watches over this engine need not worry;
    `answered_s` the time of the epoch of the last answer, `connected` whether
    there is a connection now, `connecting` whether one is being made.
    """

    def __init__(
        self,
        route: Route,
        maildir: Maildir,
        report: Report,
        connector: Callable[[Server, float], Transport] = connect,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
        queue: Queue | None = None,
    ) -> None:
        self.excuse = ""
        self.connected = False
        self.answered_s = 0.0
        self.back_by = clock() + SLACK_S
        self._route = route
        self._maildir = maildir
        self._report = report
        self._connector = connector
        self._clock = clock
        self._wall_clock = wall_clock
        self._queue: Queue = BatchQueue(deque()) if queue is None else queue
        self._settler = Settler(maildir, route, report, clock, wall_clock)
        self._window = Window(route.window_messages, route.window_bytes)
        self._aftermath = Aftermath(self._settler, self._window, report)
        self._manners = Manners()
        self._limits = Limits(
            route.write_timeout_s, route.response_timeout_s, route.grace_s, route.session_s
        )
        self._pending: Delivery | None = None
        self._proven = False
        self._total = 0
        self._idle_since = 0.0
        self._stop_at: float | None = None
        self.connecting = False
        try:
            self._wake = Wake()
        except OSError as error:
            raise local_error("make a pipe, to work on", maildir.path, error) from error

    # Told from outside

    @property
    def wake_fd(self) -> int:
        """A descriptor: a byte written to it wakes the engine."""
        return self._wake.write_fd

    def wake(self) -> None:
        """Make the engine look around at once. From any thread."""
        self._wake.set()

    @property
    def stopping(self) -> bool:
        """True once it was told to stop."""
        return self._stop_at is not None

    @property
    def trouble(self) -> LocalError | None:
        """What keeps it from taking more messages from this maildir."""
        return self._settler.trouble

    def stop(self) -> None:
        """Take no more messages, finish what is in flight, return. From any thread."""
        if self._stop_at is None:
            self._stop_at = self._clock() + STOP_S

    def interrupt(self) -> None:
        """Stop; for a signal handler that runs in the engine's own thread.

        While connecting, when nothing is in flight, it ends that at once by an
        exception from the handler.
        """
        self.stop()
        if self.connecting:
            raise ConnectError("told to stop while connecting")

    def close(self) -> None:
        """Close the engine's own descriptors."""
        self._wake.close()

    # A batch

    def run_batch(self, candidates: Candidates) -> None:
        """Try each of these once, then return. Raises `LocalError`.

        What is left, and why, is in the report.
        """
        self._queue = BatchQueue(candidates)
        self._total = len(candidates)
        try:
            while self.has_next():
                if not self._may_take:
                    self.excuse = "stopped before the end"
                elif self.attempt():
                    continue
                left = len(self._queue) + (self._pending is not None)
                if left:
                    self._report.trouble(f"{self.excuse} ({left} left)", left)
                break
        finally:
            self.finish()

    # What both modes are made of

    def has_next(self) -> bool:
        """Say whether there is a message to be sent now. Raises `LocalError`.

        Before the first is sent it proves that messages can be removed.
        """
        self._pending = self._pending or self._next()
        if self._pending is None:
            return False
        if not self._proven:
            self._prove()
        return True

    def _prove(self) -> None:
        self._maildir.prove_changeable(self._route.include_cur)
        self._settler.prove_sent()
        self._proven = True

    def attempt(self) -> bool:
        """Connect, and send until the connection ends; say whether another may help."""
        try:
            transport = self._connect()
        except TransportError as error:
            self.excuse = f"{error}; nothing has happened to the messages that are left"
            return False
        self._report.connected(transport.name)
        self.connected = True
        try:
            return self._use(transport)
        finally:
            self.connected = False

    def rest(self, until: float) -> None:
        """Without a connection, wait for something to do, or until this time of the clock."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._wake.fd, selectors.EVENT_READ)
            self._wait(selector, until)
        self._queue.tick()
        self._settler.tick()

    def mend(self) -> bool:
        """Try again what could not be done to the files; say whether all is well now."""
        try:
            self._prove()
        except LocalError:
            return False
        return self._settler.mend()

    def finish(self) -> None:
        """Let go of the message that waits for its turn, and make everything durable."""
        self.put_back()
        self._settler.finish()

    def put_back(self) -> None:
        """Put back the message that waits for its turn: it may be another when that comes."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.message.close()
            self._queue.put_back([(pending.message.folder, pending.message.name)])

    def _connect(self) -> Transport:
        self.connecting = True
        # Each of a name's addresses may take that long, and so may finding them.
        self.back_by = self._clock() + 10 * self._route.connect_timeout_s + SLACK_S
        try:
            return self._connector(self._route.server, self._route.connect_timeout_s)
        finally:
            self.connecting = False

    @property
    def _may_take(self) -> bool:
        return self._settler.trouble is None and self._stop_at is None

    def _next(self) -> Delivery | None:
        """Return the next message that is ours and can be sent."""
        while (candidate := self._queue.take()) is not None:
            folder, name = candidate
            try:
                delivery = prepare(self._maildir, self._route, folder, name)
            except (EnvelopeError, FileChangedError, LocalError) as error:
                soon = isinstance(error, FileChangedError)
                if self._queue.later(name, None, str(error), soon):
                    self._report.held(name, str(error))
                continue
            if delivery is not None:
                if self._report.detailed:
                    delivery.message_id = envelope.message_id(delivery.message.data)
                return delivery
            self._queue.later(name, None, "")
        return None

    # A connection

    def _use(self, transport: Transport) -> bool:
        """Send over one connection until it ends; say whether another may help."""
        if self._queue.open:
            # A daemon outlives the server's software: what was seen of it holds for a connection.
            # That it answers once per package is kept: to find that out again costs duplicates.
            once = self._manners.answers_each is False
            self._manners = Manners(answers_each=False if once else None)
        pipeline = Pipeline(
            transport, self._window, self._manners, self._limits, self._unchanged, self._clock
        )
        blind: OSError | None = None
        try:
            self._drive(pipeline, transport)
        except OSError as error:
            # The selector's: no descriptor, no memory. Errors of the connection end the pipeline.
            blind = error
        unfinished = pipeline.close()
        self._settle(pipeline)
        another_may_help = self._clear_up(pipeline, unfinished)
        if blind is not None:
            self.excuse = f"cannot wait for {transport.name}: {blind.strerror}"
            return False
        return another_may_help

    def _drive(self, pipeline: Pipeline, transport: Transport) -> None:
        """Send and receive until the connection ends, or nothing is left to do on it."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._wake.fd, selectors.EVENT_READ)
            selector.register(transport.read_fd, selectors.EVENT_READ)
            writing = False
            while not pipeline.ended:
                self._fill(pipeline)
                if not pipeline.packages_in_flight and self._is_over(pipeline):
                    break
                if pipeline.wants_write is not writing:
                    writing = not writing
                    self._watch_writing(selector, transport, writing)
                self._turn(pipeline, selector)

    @staticmethod
    def _watch_writing(
        selector: selectors.BaseSelector, transport: Transport, writing: bool
    ) -> None:
        if transport.read_fd == transport.write_fd:
            events = selectors.EVENT_READ | (selectors.EVENT_WRITE if writing else 0)
            selector.modify(transport.read_fd, events)
        elif writing:
            selector.register(transport.write_fd, selectors.EVENT_WRITE)
        else:
            selector.unregister(transport.write_fd)

    def _fill(self, pipeline: Pipeline) -> None:
        may_take = self._may_take
        while may_take and pipeline.has_room():
            delivery = self._pending
            if delivery is None:
                delivery = self._pending = self._next()
                if delivery is None:
                    return
            if not pipeline.can_take(delivery):
                return
            if pipeline.put(delivery):
                self._pending = None

    def _is_over(self, pipeline: Pipeline) -> bool:
        """Say whether a connection with nothing in flight is of no more use."""
        if not self._queue.open or pipeline.draining or not self._may_take:
            return True
        return self._clock() - self._idle_since >= self._route.idle_s

    def _turn(self, pipeline: Pipeline, selector: selectors.BaseSelector) -> None:
        ready = self._wait(selector, pipeline.next_deadline(), not pipeline.packages_in_flight)
        for key, events in ready:
            if key.fd != self._wake.fd:
                if events & selectors.EVENT_READ and not pipeline.ended:
                    pipeline.read()
                if events & selectors.EVENT_WRITE and not pipeline.ended:
                    pipeline.write()
        self._settle(pipeline)
        self._settler.tick()
        self._queue.tick()
        pipeline.check_time()
        if self._stop_at is not None and self._clock() >= self._stop_at:
            pipeline.give_up()

    def _wait(
        self, selector: selectors.BaseSelector, until: float | None, idle: bool = False
    ) -> list[tuple[selectors.SelectorKey, int]]:
        """Wait until a descriptor is ready or something is due; a wake-up is taken in here."""
        idle_until = self._idle_since + self._route.idle_s if idle else None
        times = (
            until,
            idle_until,
            self._settler.next_deadline,
            self._queue.next_deadline(),
            self._stop_at,
        )
        due, now = [t for t in times if t is not None], self._clock()
        wait_s = max(0.0, min(due) - now) if due else None
        slack_s = BOUNCE_SLACK_S if self._route.bounce else SLACK_S
        self.back_by = now + (wait_s or 0.0) + slack_s
        ready = selector.select(wait_s)
        for key, _ in ready:
            if key.fd == self._wake.fd:
                self._wake.clear()
        return ready

    def _settle(self, pipeline: Pipeline) -> None:
        done = pipeline.take_done()
        if not done:
            return
        for delivery in done:
            name, mtime_s = delivery.message.name, delivery.message.mtime_s
            kept = self._settler.settle(delivery)
            if kept is None:
                self._queue.gone(name)
            else:
                self._queue.later(name, mtime_s, kept.reason, kept.soon)
        self._take_queued()
        self._idle_since = self._clock()
        self.answered_s = self._wall_clock()
        self._report.progress(self._total - len(self._queue), self._total)

    def _take_queued(self) -> None:
        """Send the bounces, too, that settling has put into the maildir."""
        queued = self._settler.take_queued()
        self._total += len(queued)
        self._queue.add(queued)

    def _unchanged(self, delivery: Delivery) -> bool:
        return self._maildir.is_same(delivery.message)

    def _clear_up(self, pipeline: Pipeline, unfinished: list[Delivery]) -> bool:
        """Put back what is unfinished; say whether another connection may help."""
        pending = self._pending
        if pending is not None and pending.next:
            # Some of its recipients have been put into packages; it starts anew from the disk.
            self._pending = None
            pending.message.close()
            if not any(pending is delivery for delivery in unfinished):
                unfinished.append(pending)
        self._aftermath.clear_up(pipeline, unfinished, self._queue)
        self._take_queued()
        self.excuse = self._aftermath.excuse(pipeline, len(unfinished))
        return not self.excuse or not self._may_take
