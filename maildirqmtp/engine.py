"""One route at work: candidates -> pipeline -> settle.

One thread, one selector. Each turn fills the pipeline from the candidates,
waits until the connection can be read or written or something is due, lets the
pipeline write and read, and settles what has been answered. After responses
everything is settled before anything more is sent: at most the window is ever
sent and not settled.
"""

import os
import selectors
import time
from collections import deque
from collections.abc import Callable

from maildirqmtp.delivery import Delivery, prepare
from maildirqmtp.errors import (
    ConnectError,
    EnvelopeError,
    FileChangedError,
    LocalError,
    ProtocolError,
    TransportError,
)
from maildirqmtp.files import Folder, local_error
from maildirqmtp.maildir import Candidates, Maildir
from maildirqmtp.pipeline import Limits, Manners, Pipeline
from maildirqmtp.protocol import Status
from maildirqmtp.report import Report
from maildirqmtp.route import Route, Server
from maildirqmtp.settle import Settler
from maildirqmtp.transport import Transport, connect
from maildirqmtp.window import Window

#: Connections in a row without a single answer, after which a batch run gives up.
MAX_BARREN = 3
#: Messages put aside, because the server hung up on each of them, without an answer in between.
MAX_SET_ASIDE = 3
#: Seconds that a run which is told to stop waits for what is in flight.
STOP_S = 30.0


class Engine:
    """Forwards one maildir to one server; the maildir is open and locked.

    Raises `LocalError` where this machine has no pipe for it.
    `connector`, `clock` (monotonic seconds) and `wall_clock` (seconds of the
    epoch) are for tests.
    """

    def __init__(
        self,
        route: Route,
        maildir: Maildir,
        report: Report,
        connector: Callable[[Server, float], Transport] = connect,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._route = route
        self._maildir = maildir
        self._report = report
        self._connector = connector
        self._clock = clock
        self._settler = Settler(maildir, route, report, clock, wall_clock)
        self._window = Window(route.window_messages, route.window_bytes)
        self._manners = Manners()
        self._limits = Limits(
            route.write_timeout_s, route.response_timeout_s, route.grace_s, route.session_s
        )
        self._candidates: Candidates = deque()
        self._pending: Delivery | None = None
        self._strikes: dict[bytes, int] = {}
        self._barren = 0
        self._set_aside = 0
        self._total = 0
        self._stop_at: float | None = None
        self._connecting = False
        try:
            self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise local_error("make a pipe, to work on", maildir.path, error) from error

    # Told from outside

    @property
    def wake_fd(self) -> int:
        """Write a byte to this descriptor to make the engine look around at once."""
        return self._wake_write

    def stop(self) -> None:
        """Take no more messages, finish what is in flight, return. For a signal handler.

        While connecting, when nothing is in flight, it ends that at once by an
        exception from the handler.
        """
        if self._stop_at is None:
            self._stop_at = self._clock() + STOP_S
        if self._connecting:
            raise ConnectError("told to stop while connecting")

    def close(self) -> None:
        """Close the engine's own descriptors."""
        os.close(self._wake_read)
        os.close(self._wake_write)

    # A batch

    def run_batch(self, candidates: Candidates) -> None:
        """Try each of these once, then return. Raises `LocalError`.

        What is left, and why, is in the report.
        """
        self._candidates = candidates
        self._total = len(candidates)
        self._pending = self._next()
        if self._pending is not None:
            self._maildir.prove_changeable(self._route.include_cur)
            self._settler.prove_sent()
        try:
            while self._may_take and self._pending is not None:
                try:
                    transport = self._connect()
                except TransportError as error:
                    self._give_up(f"{error}; nothing has happened to the messages that are left")
                    break
                self._report.connected(transport.name)
                if not self._use(transport):
                    break
                self._pending = self._pending or self._next()
            else:
                if not self._may_take:
                    self._give_up("stopped before the end")
        finally:
            if self._pending is not None:
                self._pending.message.close()
            self._settler.finish()

    def _connect(self) -> Transport:
        self._connecting = True
        try:
            return self._connector(self._route.server, self._route.connect_timeout_s)
        finally:
            self._connecting = False

    @property
    def _may_take(self) -> bool:
        return self._settler.trouble is None and self._stop_at is None

    def _give_up(self, why: str) -> None:
        left = len(self._candidates) + (self._pending is not None)
        if left:
            self._report.trouble(f"{why} ({left} left)", left)

    def _next(self) -> Delivery | None:
        """Return the next message that is ours and can be sent."""
        while self._candidates:
            folder, name = self._candidates.popleft()
            try:
                delivery = prepare(self._maildir, self._route, folder, name)
            except (EnvelopeError, FileChangedError, LocalError) as error:
                self._report.held(name, str(error))
                continue
            if delivery is not None:
                return delivery
        return None

    # A connection

    def _use(self, transport: Transport) -> bool:
        """Send over one connection until it ends; say whether another may help."""
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
            self._give_up(f"cannot wait for {transport.name}: {blind.strerror}")
            return False
        return another_may_help

    def _drive(self, pipeline: Pipeline, transport: Transport) -> None:
        """Send and receive until the connection ends, or nothing is left to do on it."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._wake_read, selectors.EVENT_READ)
            selector.register(transport.read_fd, selectors.EVENT_READ)
            writing = False
            while not pipeline.ended:
                self._fill(pipeline)
                if not pipeline.packages_in_flight:
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

    def _turn(self, pipeline: Pipeline, selector: selectors.BaseSelector) -> None:
        ready = selector.select(self._wait_s(pipeline))
        for key, events in ready:
            if key.fd == self._wake_read:
                os.read(self._wake_read, 4096)
            else:
                if events & selectors.EVENT_READ and not pipeline.ended:
                    pipeline.read()
                if events & selectors.EVENT_WRITE and not pipeline.ended:
                    pipeline.write()
        self._settle(pipeline)
        self._settler.tick()
        pipeline.check_time()
        if self._stop_at is not None and self._clock() >= self._stop_at:
            pipeline.give_up()

    def _settle(self, pipeline: Pipeline) -> None:
        done = pipeline.take_done()
        for delivery in done:
            self._settler.settle(delivery)
        if done:
            self._take_queued()
            self._report.progress(self._total - len(self._candidates), self._total)

    def _take_queued(self) -> None:
        """Send the bounces, too, that settling has put into the maildir."""
        queued = self._settler.take_queued()
        self._total += len(queued)
        self._candidates.extend(queued)

    def _wait_s(self, pipeline: Pipeline) -> float | None:
        times = (pipeline.next_deadline(), self._settler.next_deadline, self._stop_at)
        due = [t for t in times if t is not None]
        return max(0.0, min(due) - self._clock()) if due else None

    def _unchanged(self, delivery: Delivery) -> bool:
        return self._maildir.is_same(delivery.message)

    # After a connection

    def _clear_up(self, pipeline: Pipeline, unfinished: list[Delivery]) -> bool:
        """Put back what is unfinished; say whether another connection may help."""
        if pipeline.error is not None:
            self._report.closed(pipeline.transport.name, str(pipeline.error))
        if pipeline.remark:
            self._report.note(pipeline.remark)
        pending = self._pending
        if pending is not None and pending.next:
            # Some of its recipients have been put into packages; it starts anew from the disk.
            self._pending = None
            pending.message.close()
            if not any(pending is delivery for delivery in unfinished):
                unfinished.append(pending)
        again: list[tuple[Folder, bytes]] = []
        for delivery in unfinished:
            self._report.in_doubt(delivery)
            if delivery.unanswered < len(delivery.recipients):
                self._settler.settle(delivery)
            if delivery.reason:
                self._report.held(delivery.message.name, delivery.reason)
            elif self._is_culprit(pipeline, delivery):
                for index in delivery.owed():
                    reason = f"{pipeline.transport.name} hung up twice on this message alone"
                    self._report.deferred(delivery, index, reason)
                # That is progress; but a server that does it to every message is dead.
                self._barren = 0
                self._set_aside += 1
                # Next one from the other end: its neighbours may be as bad, and would stop
                # this run and all that follow at the same place.
                self._candidates.rotate(1)
            elif any(a is not None and a.status is Status.DEFERRED for a in delivery.answers):
                # To go again now would try those again who were told to try later.
                for index in delivery.owed():
                    self._report.deferred(delivery, index, "waits, as others of this message do")
            else:
                again.append((delivery.message.folder, delivery.message.name))
        self._candidates.extendleft(reversed(again))
        self._take_queued()
        return self._another_may_help(pipeline, len(unfinished))

    def _is_culprit(self, pipeline: Pipeline, delivery: Delivery) -> bool:
        """Say whether this message, alone in flight, has now ended two connections."""
        if self._window.size > 1 or pipeline.error is None or not pipeline.bytes_sent:
            return False
        name = delivery.message.name
        self._strikes[name] = self._strikes.get(name, 0) + 1
        return self._strikes[name] >= 2

    def _another_may_help(self, pipeline: Pipeline, in_flight: int) -> bool:
        unclean = pipeline.error is not None and in_flight > 0
        narrowed = unclean and self._window.shrink(in_flight)
        # Ended without an error, it was ended by us, over a file that changed or a fence.
        ours = pipeline.error is None and in_flight > 0
        if pipeline.answered or ours or not self._may_take:
            self._barren = self._set_aside = 0
            return True
        if isinstance(pipeline.error, (ProtocolError, TimeoutError)):
            self._give_up(f"{pipeline.transport.name} is of no use: giving up")
            return False
        if narrowed:
            return True
        self._barren += 1
        if self._barren < MAX_BARREN and self._set_aside < MAX_SET_ASIDE:
            return True
        self._give_up(
            "connection after connection without an answer: making no progress, giving up"
        )
        return False
