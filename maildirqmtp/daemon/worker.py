"""One route in watch mode: the maildir's comings and goings, back-off, and what it is up to.

    open and lock the maildir -> watch new/ -> scan -> engine ...
          ^                                              |
          +--- the path leads elsewhere, or nowhere -----+

Runs in a thread of its own. What other threads say (`stop`, `try_all`) is a
flag and a wake-up; what they want to know is in `snapshot`, replaced as a whole.
"""

from __future__ import annotations

import threading
import time
from contextlib import ExitStack
from random import random as system_random
from typing import TYPE_CHECKING

from maildirqmtp.daemon.queue import WatchQueue
from maildirqmtp.daemon.schedule import Backoff
from maildirqmtp.daemon.snapshot import Snapshot, WaitingMessage
from maildirqmtp.daemon.watcher import Watch
from maildirqmtp.errors import LocalError
from maildirqmtp.forwarder.forwarder import SLACK_S, Forwarder
from maildirqmtp.maildir.cleanup import clean
from maildirqmtp.maildir.maildir import Maildir

if TYPE_CHECKING:
    from collections.abc import Callable

    from maildirqmtp.daemon.reservations import MaildirLocks
    from maildirqmtp.forwarder.report import Report
    from maildirqmtp.forwarder.route import Route
    from maildirqmtp.transport.endpoint import Endpoint
    from maildirqmtp.transport.transport import Transport

#: Seconds between two snapshots while something happens.
PUBLISH_S = 1.0
#: Seconds between two cleanings of tmp/ and envelope/.
CLEAN_S = 6 * 3_600.0
#: Messages that a snapshot tells of one by one.
MOST_SHOWN = 10_000


def boot_clock() -> float:
    """Return seconds that only go on, also while the machine sleeps: laptops do."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Worker:
    """Forwards one route until it is told to stop.

    `on_publish` is called in the daemon's thread when there is a new
    `snapshot`. `patient`: a maildir that cannot be opened at the start is waited
    for, as one that goes away later always is; otherwise `run` raises `LocalError`.
    """

    def __init__(
        self,
        route: Route,
        report: Report,
        locks: MaildirLocks,
        on_publish: Callable[[Snapshot], None],
        *,
        patient: bool = False,
        connector: Callable[[Endpoint, float], Transport] | None = None,
        clock: Callable[[], float] = boot_clock,
        wall_clock: Callable[[], float] = time.time,
        random: Callable[[], float] = system_random,
    ) -> None:
        self.route = route
        self.report = report
        self._locks = locks
        self._on_publish = on_publish
        self._patient = patient
        self._connector = connector
        self._clock = clock
        self._wall_clock = wall_clock
        self._backoff = Backoff(random)
        self._try_again_at = 0.0
        self._forwarder: Forwarder | None = None
        self._queue: WatchQueue | None = None
        self._maildir: Maildir | None = None
        self._watch: Watch | None = None
        self._stopping = threading.Event()
        self._nudge = threading.Event()
        self._all_now = False
        self._complaint = ""
        self._answered_s = 0.0
        self._back_by = clock() + SLACK_S
        self._clean_at = 0.0
        self._published_at = 0.0
        self._published: tuple[object, ...] = ()
        self.snapshot = Snapshot(route, "starting", report.counters.as_dict())

    # From any thread

    def stop(self, at_once: bool = False) -> None:
        """Take no more messages, finish what is in flight or give it up, return from `run`."""
        self._stopping.set()
        self._poke(lambda forwarder: forwarder.stop(at_once))

    def try_all(self) -> None:
        """Try everything now: what waits, the server, a maildir that is not there."""
        self._all_now = True
        self._poke(None)

    def _poke(self, tell: Callable[[Forwarder], None] | None) -> None:
        self._nudge.set()
        forwarder = self._forwarder
        if forwarder is not None:
            if tell is not None:
                tell(forwarder)
            forwarder.wake.set()

    @property
    def watchdog_deadline(self) -> float:
        """The clock's time until which nobody need worry about this thread."""
        forwarder = self._forwarder
        return (
            self._back_by if forwarder is None else max(self._back_by, forwarder.watchdog_deadline)
        )

    @property
    def connecting(self) -> bool:
        """True while it waits for a connection to be made; then nothing is in flight."""
        forwarder = self._forwarder
        return forwarder is not None and forwarder.connecting

    @property
    def stuck(self) -> bool:
        """True where the server has messages that cannot be removed here."""
        return self.snapshot.state == "stuck"

    # The thread

    def run(self) -> None:
        """Forward until told to stop. Raises `LocalError` at the start, where not `patient`."""
        while not self._stopping.is_set():
            try:
                self._serve()
            except LocalError as error:
                if not self._patient:
                    raise
                self._complain(str(error))
                self._publish("no maildir")
                self._sleep(self.route.rescan_s)
        self._publish("stuck" if self.stuck else "stopped")

    def _sleep(self, seconds: float) -> None:
        self._back_by = self._clock() + seconds + SLACK_S
        self._nudge.wait(seconds)
        self._nudge.clear()
        self._back_by = self._clock() + SLACK_S

    def _complain(self, what: str) -> None:
        """Say it once, not with each try."""
        if what != self._complaint:
            self.report.trouble(f"{what}; trying again every {self.route.rescan_s:g} s")
        self._complaint = what

    def _serve(self) -> None:
        """Open the maildir and forward, until told to stop or it is another's."""
        route = self.route
        with ExitStack() as stack:
            maildir = self._maildir = stack.enter_context(Maildir(route.maildir))
            reservations = stack.enter_context(self._locks.hold(maildir))
            queue = self._queue = WatchQueue(
                maildir,
                route.include_cur,
                route.rescan_s,
                self._clock,
                self._wall_clock,
                reservations,
                self._before_scan,
                self._tick,
            )
            forwarder = Forwarder(
                route, maildir, self.report, self._connector, self._clock, self._wall_clock, queue
            )
            stack.callback(forwarder.close)
            self._forwarder = forwarder
            stack.callback(self._no_forwarder)
            stack.callback(forwarder.finish)
            if self._stopping.is_set():
                return  # told so before there was an engine to tell

            queue.wake = forwarder.wake.set
            # Watched before the first scan: what comes in between is found by the one or the other.
            self._watch = Watch(maildir.new.path, queue.look_again, self.report.note)
            stack.callback(self._watch.close)
            self._patient = True
            self._turn(forwarder, queue)

    def _no_forwarder(self) -> None:
        self._forwarder = None
        self._back_by = self._clock() + SLACK_S

    def _turn(self, forwarder: Forwarder, queue: WatchQueue) -> None:
        """Connect where there is mail, rest where there is none."""
        queue.tick()
        while queue.open and not forwarder.stopping:
            if forwarder.trouble is not None:
                self._mend(forwarder)
            elif self._clock() < self._try_again_at or not forwarder.outbox.has_next():
                self._proven(queue)
                waits = self._clock() < self._try_again_at
                until = self._try_again_at if waits else self._clock() + self.route.rescan_s
                self._rest(forwarder, until)
            else:
                self._proven(queue)
                self._attempt(forwarder, queue)

    def _proven(self, queue: WatchQueue) -> None:
        if self._complaint and queue.trouble is None:
            self.report.note("the maildir is in order again")
            self._complaint = ""

    def _rest(self, forwarder: Forwarder, until: float) -> None:
        self._publish_soon()
        forwarder.rest(until)

    def _mend(self, forwarder: Forwarder) -> None:
        self._publish("stuck")
        forwarder.rest(self._clock() + self.route.rescan_s)
        if forwarder.mend():
            self.report.note("the maildir can be changed again; going on")

    def _attempt(self, forwarder: Forwarder, queue: WatchQueue) -> None:
        may_help = forwarder.attempt()
        # Not "later than": clocks are set back, and then the back-off would never end.
        if forwarder.answered_s not in (0.0, self._answered_s):
            self._answered_s = forwarder.answered_s
            self._backoff.succeeded()
        forwarder.outbox.put_back()
        queue.look_again()
        if may_help or forwarder.stopping:
            return
        wait_s = self._backoff.failed()
        self._try_again_at = self._clock() + wait_s
        waiting = len(queue.waiting())
        self.report.trouble(
            f"{forwarder.stop_reason}; {waiting} waiting, next try in {wait_s:.1f} s"
        )
        self._publish("backing off")

    # Called by the queue, in the engine's turns

    def _before_scan(self) -> None:
        maildir, queue, watch = self._maildir, self._queue, self._watch
        assert maildir is not None
        assert queue is not None
        if not maildir.is_current():
            self.report.note("the maildir has been replaced, or is gone; opening it anew")
            queue.close()
            return
        if watch is not None:
            watch.check()
        now = self._clock()
        if now >= self._clean_at:
            self._clean_at = now + CLEAN_S
            try:
                clean(maildir, self._wall_clock())
            except LocalError as error:
                self.report.note(str(error))

    def _tick(self) -> None:
        queue = self._queue
        assert queue is not None
        if self._all_now:
            self._all_now = False
            self._try_again_at = 0.0
            self._backoff.succeeded()
            queue.try_all()
        if queue.trouble is not None:
            self._complain(str(queue.trouble))
        self._publish_soon()

    # What it is up to

    def _publish_soon(self) -> None:
        """Publish, if something has changed, and not more often than once a second."""
        queue, forwarder = self._queue, self._forwarder
        if queue is None or forwarder is None:
            return
        counters = self.report.counters
        if forwarder.trouble is not None:
            state = "stuck"
        elif forwarder.connected:
            state = "connected"
        else:
            waits = self._clock() < self._try_again_at or (self._backoff.failures and len(queue))
            state = "backing off" if waits else "idle"
        news = (len(queue), queue.size, counters.as_tuple())
        if news == self._published and state == self.snapshot.state:
            queue.tick_at = None
        elif self._clock() >= self._published_at + PUBLISH_S:
            self._published = news
            queue.tick_at = None
            self._publish(state)
        else:
            queue.tick_at = self._published_at + PUBLISH_S

    def _publish(self, state: str) -> None:
        queue = self._queue
        waiting = queue.waiting() if queue is not None else []
        now_s, now = self._wall_clock(), self._clock()
        self._published_at = now
        self.snapshot = Snapshot(
            self.route,
            state,
            self.report.counters.as_dict(),
            at_s=now_s,
            answered_s=(self._forwarder and self._forwarder.answered_s) or self._answered_s,
            messages=len(waiting),
            oldest_s=min((w.birth_s for w in waiting), default=0.0),
            connect_at_s=now_s + self._try_again_at - now if now < self._try_again_at else 0.0,
            stop_reason=self._forwarder.stop_reason
            if self._forwarder is not None
            else self._complaint,
            waiters=tuple(
                WaitingMessage(
                    w.name, w.tries, w.reason, 0.0 if w.due is None else now_s + w.due - now
                )
                for w in waiting[:MOST_SHOWN]
            ),
        )
        self._on_publish(self.snapshot)
