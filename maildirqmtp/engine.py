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
from collections.abc import Callable, Sequence

from maildirqmtp.aftermath import Aftermath
from maildirqmtp.delivery import Delivery
from maildirqmtp.errors import ConnectError, LocalError, TransportError
from maildirqmtp.files import local_error
from maildirqmtp.intake import Intake
from maildirqmtp.link import Link, Links
from maildirqmtp.maildir import Candidates, Maildir
from maildirqmtp.pipeline import Limits
from maildirqmtp.queues import BatchQueue, Queue
from maildirqmtp.report import Report
from maildirqmtp.route import Address, Route
from maildirqmtp.settle import Settler
from maildirqmtp.transport import Transport, connect
from maildirqmtp.wake import Wake
from maildirqmtp.window import shares

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


class Engine:
    """Forwards one maildir to one server; the maildir is open and locked.

    `queue` None is for `run_batch`. With one that stays open (watch mode) a
    connection is kept for `route.idle_s` while there is nothing to send, and
    `attempt` and `rest` are called in turns. Raises `LocalError` where this
    machine has no pipe for it. `connector`, `clock` (seconds that only go on)
    and `wall_clock` (seconds of the epoch) are for tests.

    `intake` has the messages to be sent. `excuse` says why the last connection
    was of no use, `back_by` is the clock's time until which nobody need worry
    about this engine, `answered_s` the time of the epoch of the last answer,
    `connecting` whether a first connection is being made.
    """

    def __init__(
        self,
        route: Route,
        maildir: Maildir,
        report: Report,
        connector: Callable[[Address, float], Transport] | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
        queue: Queue | None = None,
    ) -> None:
        self.excuse = ""
        self.answered_s = 0.0
        self.back_by = clock() + SLACK_S
        self._route = route
        self._maildir = maildir
        self._report = report
        self._connector = connector or (lambda server, time_s: connect(server, time_s, route.tls))
        self._clock = clock
        self._wall_clock = wall_clock
        self._settler = Settler(maildir, route, report, clock, wall_clock)
        queue = BatchQueue(deque()) if queue is None else queue
        self.intake = Intake(maildir, route, report, self._settler, queue)
        self._links = Links(
            shares(route.window_messages, route.window_bytes, route.connections),
            Limits(route.write_timeout_s, route.response_timeout_s, route.grace_s, route.session_s),
            self._unchanged,
            clock,
        )
        self._more_at = 0.0
        self._aftermath = Aftermath(self._settler, report)
        self._begun: Link | None = None
        self._total = 0
        self._stop_at: float | None = None
        self.connecting = False
        try:
            #: Makes the engine look around at once.
            self.wake = Wake()
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
        self.intake.queue = BatchQueue(candidates)
        self._total = len(candidates)
        try:
            while self.intake.has_next():
                if not self._may_take:
                    self.excuse = "stopped before the end"
                elif self.attempt():
                    continue
                left = self.intake.left
                if left:
                    self._report.trouble(f"{self.excuse} ({left} left)", left)
                break
        finally:
            self.finish()

    # What both modes are made of

    def attempt(self) -> bool:
        """Connect, and send until the connections end; say whether others may help."""
        try:
            transport = self._connect(self._route.connect_timeout_s)
        except TransportError as error:
            self.excuse = f"{error}; nothing has happened to the messages that are left"
            return False
        if self.intake.queue.open:
            self._links.forget()  # a daemon outlives the server's software
        may_help = False
        try:
            with selectors.DefaultSelector() as selector:
                selector.register(self.wake.fd, selectors.EVENT_READ)
                self._open(transport, selector)
                while self._links.open:
                    may_help = self._turn(selector) or may_help
        except OSError as error:
            # The selector's: no descriptor, no memory. Errors of a connection end its pipeline.
            transport.close()
            for link in [*self._links.open]:
                self._end(link)
            self.excuse = f"cannot wait for {transport.name}: {error.strerror}"
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
        self.intake.queue.tick()
        self._settler.tick()

    def mend(self) -> bool:
        """Try again what could not be done to the files; say whether all is well now."""
        try:
            self.intake.prove()
        except LocalError:
            return False
        return self._settler.mend()

    def finish(self) -> None:
        """Let go of the message that waits for its turn, and make everything durable."""
        self.intake.put_back()
        self._settler.finish()

    def _connect(self, timeout_s: float) -> Transport:
        # Interrupted, it must have nothing in flight.
        self.connecting = not self._links.open
        # Each of a name's addresses may take that long, and so may finding them.
        self.back_by = self._clock() + 10 * timeout_s + SLACK_S
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
        self._links.add(transport, selector)
        self._report.connected(transport.name)

    def _open_more(self, selector: selectors.BaseSelector) -> None:
        """Use as many connections as are allowed, while more mail waits than is under way."""
        while self._links.windows and len(self.intake.queue) and self._clock() >= self._more_at:
            try:
                self._open(
                    self._connect(min(MORE_TIMEOUT_S, self._route.connect_timeout_s)), selector
                )
            except TransportError as error:
                # What there is goes on; the server may not want more of us.
                self._more_at = self._clock() + MORE_AGAIN_S
                self._report.note(f"{error}; going on with {len(self._links.open)} connections")

    @property
    def connected(self) -> bool:
        """True while there is a connection."""
        return bool(self._links.open)

    def _turn(self, selector: selectors.BaseSelector) -> bool:
        """Fill, wait, write and read, settle; say whether a connection that ended was of use."""
        links = self._links.open
        if self._may_take and self._links.may_add():
            self._open_more(selector)
        if self._may_take:
            self._fill(links)
        may_help = False
        over = [link for link in links if link.pipeline.ended or self._is_over(link)]
        for link in over:
            link.pipeline.transport.hang_up()  # commands are to exit at the same time
        for link in over:
            may_help = self._end(link) or may_help
        for link in links:
            link.watch()
        if not links:
            return may_help
        for key, events in self._wait(selector, links):
            if key.data is not None:
                key.data.turn(events)
        for link in links:
            self._settle(link)
            link.pipeline.check_time()
            if self._stop_at is not None and self._clock() >= self._stop_at:
                link.pipeline.give_up()
        self._settler.tick()
        self.intake.queue.tick()
        return may_help

    def _fill(self, links: list[Link]) -> None:
        """Put what there is room for; each message where the least is under way."""
        link, intake = links[0], self.intake
        while True:
            if len(links) > 1:
                link = self._links.for_next()
            if not link.pipeline.has_room():
                return
            delivery = intake.look()
            if delivery is None:
                return
            if delivery.next:
                # The rest of its packages go where the first went: they have one result.
                assert self._begun is not None
                link = self._begun
                if not link.pipeline.has_room():
                    return
            if not link.pipeline.can_take(delivery):
                return
            if link.pipeline.put(delivery):
                intake.pending = None
            else:
                self._begun = link

    def _is_over(self, link: Link) -> bool:
        """Say whether a connection has nothing in flight and is of no more use."""
        pipeline = link.pipeline
        if pipeline.packages_in_flight:
            return False
        if not self.intake.queue.open or pipeline.draining or not self._may_take:
            return True
        return self._clock() - link.idle_since >= self._route.idle_s

    def _end(self, link: Link) -> bool:
        """Close a connection, and clear up after it; say whether another may help."""
        unfinished = self._links.end(link)
        self._settle(link)
        pending = self.intake.pending
        if pending is not None and pending.next and self._begun is link:
            # Some of its recipients have been put into packages; it starts anew from the disk.
            self.intake.pending = None
            pending.message.close()
            if not any(pending is delivery for delivery in unfinished):
                unfinished.append(pending)
        self._aftermath.clear_up(link, unfinished, self.intake.queue)
        self._take_queued()
        self.excuse = self._aftermath.excuse(link, len(unfinished))
        if link.pipeline.error is not None:
            self._more_at = self._clock() + MORE_AGAIN_S
        return not self.excuse or not self._may_take

    def _wait(
        self, selector: selectors.BaseSelector, links: Sequence[Link], until: float | None = None
    ) -> list[tuple[selectors.SelectorKey, int]]:
        """Wait until a descriptor is ready or something is due; a wake-up is taken in here."""
        due = [
            until,
            self._settler.next_deadline,
            self.intake.queue.next_deadline(),
            self._stop_at,
        ]
        for link in links:
            due.append(link.pipeline.next_deadline())
            if not link.pipeline.packages_in_flight:
                due.append(link.idle_since + self._route.idle_s)
        now = self._clock()
        first = min([t for t in due if t is not None], default=None)
        wait_s = None if first is None else min(max(0.0, first - now), MAX_WAIT_S)
        slack_s = BOUNCE_SLACK_S if self._route.bounce else SLACK_S
        self.back_by = now + (wait_s or 0.0) + slack_s
        ready = selector.select(wait_s)
        for key, _ in ready:
            if key.fd == self.wake.fd:
                self.wake.clear()
        return ready

    def _settle(self, link: Link) -> None:
        done = link.pipeline.take_done()
        if not done:
            return
        for delivery in done:
            name = delivery.message.name  # with --cur, settling may find it under another
            kept = self._settler.settle(delivery)
            if kept is None:
                self.intake.queue.gone(name)
            else:
                self.intake.queue.later(name, delivery.message.mtime_s, kept.reason, kept.soon)
        self._take_queued()
        link.idle_since = self._clock()
        self.answered_s = self._wall_clock()
        self._report.progress(self._total - len(self.intake.queue), self._total)

    def _take_queued(self) -> None:
        """Send the bounces, too, that settling has put into the maildir."""
        queued = self._settler.take_queued()
        self._total += len(queued)
        self.intake.queue.add(queued)

    def _unchanged(self, delivery: Delivery) -> bool:
        return self._maildir.is_same(delivery.message)
