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

from maildirqmtp.cleaning import clean
from maildirqmtp.engine import SLACK_S, Engine
from maildirqmtp.errors import LocalError
from maildirqmtp.maildir import Maildir
from maildirqmtp.schedule import Backoff
from maildirqmtp.snapshot import Snapshot, Waiter
from maildirqmtp.watch import Watch
from maildirqmtp.watch_queue import WatchQueue

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from maildirqmtp.claims import Locks
    from maildirqmtp.report import Report
    from maildirqmtp.route import Address, Route
    from maildirqmtp.transport import Transport

#: Seconds between two snapshots while something happens.
PUBLISH_S = 1.0
#: Seconds between two cleanings of tmp/ and envelope/.
CLEAN_S = 6 * 3_600.0
#: Messages that a snapshot tells of one by one.
MOST_SHOWN = 10_000


def boot_clock() -> float:
    """Return seconds that only go on, also while the machine sleeps: laptops do."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Daemon:
    """Forwards one route until it is told to stop.

    `on_publish` is called in the daemon's thread when there is a new
    `snapshot`. `patient`: a maildir that cannot be opened at the start is waited
    for, as one that goes away later always is; otherwise `run` raises `LocalError`.
    """

    def __init__(
        self,
        route: Route,
        report: Report,
        locks: Locks,
        on_publish: Callable[[Snapshot], None],
        *,
        patient: bool = False,
        connector: Callable[[Address, float], Transport] | None = None,
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
        self._engine: Engine | None = None
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
        self.snapshot = Snapshot(route, "starting", report.counters)

    # From any thread

    def stop(self, at_once: bool = False) -> None:
        """Take no more messages, finish what is in flight or give it up, return from `run`."""
        self._stopping.set()
        self._poke(lambda engine: engine.stop(at_once))

    def try_all(self) -> None:
        """Try everything now: what waits, the server, a maildir that is not there."""
        self._all_now = True
        self._poke(None)

    def _poke(self, tell: Callable[[Engine], None] | None) -> None:
        self._nudge.set()
        engine = self._engine
        if engine is not None:
            if tell is not None:
                tell(engine)
            engine.wake.set()

    @property
    def back_by(self) -> float:
        """The clock's time until which nobody need worry about this thread."""
        engine = self._engine
        return self._back_by if engine is None else max(self._back_by, engine.back_by)

    @property
    def connecting(self) -> bool:
        """True while it waits for a connection to be made; then nothing is in flight."""
        engine = self._engine
        return engine is not None and engine.connecting

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
            claims = stack.enter_context(self._locks.hold(maildir))
            queue = self._queue = WatchQueue(
                maildir,
                route.include_cur,
                route.rescan_s,
                self._clock,
                self._wall_clock,
                claims,
                self._before_scan,
                self._tick,
            )
            engine = Engine(
                route, maildir, self.report, self._connector, self._clock, self._wall_clock, queue
            )
            stack.callback(engine.close)
            self._engine = engine
            stack.callback(self._no_engine)
            stack.callback(engine.finish)
            if self._stopping.is_set():
                return  # told so before there was an engine to tell

            queue.wake = engine.wake.set
            # Watched before the first scan: what comes in between is found by the one or the other.
            self._watch = Watch(maildir.new.path, queue.look_again, self.report.note)
            stack.callback(self._watch.close)
            self._patient = True
            self._turn(engine, queue)

    def _no_engine(self) -> None:
        self._engine = None
        self._back_by = self._clock() + SLACK_S

    def _turn(self, engine: Engine, queue: WatchQueue) -> None:
        """Connect where there is mail, rest where there is none."""
        queue.tick()
        while queue.open and not engine.stopping:
            if engine.trouble is not None:
                self._mend(engine)
            elif self._clock() < self._try_again_at or not engine.intake.has_next():
                self._proven(queue)
                waits = self._clock() < self._try_again_at
                until = self._try_again_at if waits else self._clock() + self.route.rescan_s
                self._rest(engine, until)
            else:
                self._proven(queue)
                self._attempt(engine, queue)

    def _proven(self, queue: WatchQueue) -> None:
        if self._complaint and queue.trouble is None:
            self.report.note("the maildir is in order again")
            self._complaint = ""

    def _rest(self, engine: Engine, until: float) -> None:
        self._publish_soon()
        engine.rest(until)

    def _mend(self, engine: Engine) -> None:
        self._publish("stuck")
        engine.rest(self._clock() + self.route.rescan_s)
        if engine.mend():
            self.report.note("the maildir can be changed again; going on")

    def _attempt(self, engine: Engine, queue: WatchQueue) -> None:
        may_help = engine.attempt()
        # Not "later than": clocks are set back, and then the back-off would never end.
        if engine.answered_s not in (0.0, self._answered_s):
            self._answered_s = engine.answered_s
            self._backoff.succeeded()
        engine.intake.put_back()
        queue.look_again()
        if may_help or engine.stopping:
            return
        wait_s = self._backoff.failed()
        self._try_again_at = self._clock() + wait_s
        waiting = len(queue.waiting())
        self.report.trouble(f"{engine.excuse}; {waiting} waiting, next try in {wait_s:.1f} s")
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
        queue, engine = self._queue, self._engine
        if queue is None or engine is None:
            return
        counters = self.report.counters
        if engine.trouble is not None:
            state = "stuck"
        elif engine.connected:
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
            self.report.counters,
            at_s=now_s,
            answered_s=(self._engine and self._engine.answered_s) or self._answered_s,
            messages=len(waiting),
            oldest_s=min((w.birth_s for w in waiting), default=0.0),
            connect_at_s=now_s + self._try_again_at - now if now < self._try_again_at else 0.0,
            excuse=self._engine.excuse if self._engine is not None else self._complaint,
            waiters=tuple(
                Waiter(w.name, w.tries, w.reason, 0.0 if w.due is None else now_s + w.due - now)
                for w in waiting[:MOST_SHOWN]
            ),
        )
        self._on_publish(self.snapshot)
