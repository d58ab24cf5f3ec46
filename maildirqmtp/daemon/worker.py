"""One route in watch mode: scans, connections and back-off in one loop, and its snapshots.

    open and lock the maildir -> watch new/ -> scan -> connect -> turn -> turn -> ...
          ^                                      ^                          |
          |                                      +---- nothing to send -----+
          +--- the path leads elsewhere, or nowhere ------------------------+

It runs in a thread of its own. Requests of other threads (`stop`, `try_all`) set a flag and
wake it; they read its state from `snapshot`, which is replaced as a whole.
"""

from __future__ import annotations

import threading
import time
from contextlib import ExitStack
from dataclasses import replace
from random import random as system_random
from typing import TYPE_CHECKING

from maildirqmtp.daemon.boot_clock import boot_clock
from maildirqmtp.daemon.chores import Chores
from maildirqmtp.daemon.queue import WatchQueue
from maildirqmtp.daemon.route_slots import SlotsByServer
from maildirqmtp.daemon.schedule import Backoff, earliest
from maildirqmtp.daemon.slots import ServerSlots
from maildirqmtp.daemon.snapshot import Snapshot, waiters
from maildirqmtp.daemon.watcher import Watch, Watcher
from maildirqmtp.errors import LocalError
from maildirqmtp.forwarder.forwarder import SLACK_S, Forwarder
from maildirqmtp.maildir.files import local_error
from maildirqmtp.maildir.maildir import Maildir
from maildirqmtp.transport.wakeup import Wakeup

if TYPE_CHECKING:
    from collections.abc import Callable

    from maildirqmtp.daemon.queue_entry import QueueEntry
    from maildirqmtp.daemon.reservations import MaildirLocks, SharedMaildir, StuckMessages
    from maildirqmtp.daemon.slots import RouteSlots
    from maildirqmtp.forwarder.report import Report
    from maildirqmtp.forwarder.route import Route
    from maildirqmtp.transport.endpoint import Endpoint
    from maildirqmtp.transport.transport import Transport

#: Seconds between two snapshots while something happens; more if making them would take more
#: than this fraction of the time, because very many messages wait.
PUBLISH_S = 1.0
_PUBLISH_SHARE = 0.02
#: Messages that a snapshot lists.
MOST_SHOWN = 10_000


class Worker:
    """Forwards one route until it is told to stop.

    `on_publish` is called in the worker's thread with a new `snapshot`; the maildir is locked then,
    if its state is not `no maildir`. All routes of the process share `servers` and `watcher`; None
    makes one of the worker's own. If the maildir cannot be opened or locked, the worker tries again
    every `rescan_s` seconds.
    """

    def __init__(
        self,
        route: Route,
        report: Report,
        locks: MaildirLocks,
        on_publish: Callable[[Snapshot], None],
        servers: ServerSlots | None = None,
        watcher: Watcher | None = None,
        *,
        connector: Callable[[Endpoint, float], Transport] | None = None,
        clock: Callable[[], float] = boot_clock,
        wall_clock: Callable[[], float] = time.time,
        random: Callable[[], float] = system_random,
    ) -> None:
        self.route = route
        self.report = report
        self._locks = locks
        self._on_publish = on_publish
        self._connector = connector
        self._clock = clock
        self._wall_clock = wall_clock
        self._servers = ServerSlots(clock) if servers is None else servers
        self._watcher = Watcher() if watcher is None else watcher
        self._slots: SlotsByServer | None = None
        self._chores: Chores | None = None
        self._backoff = Backoff(random)
        self._try_again_at = self._mend_at = 0.0
        self._forwarder: Forwarder | None = None
        self._queue: WatchQueue | None = None
        self._publish_at: float | None = None
        self._publish_every_s = PUBLISH_S
        self._stopping = threading.Event()
        self._interrupt = threading.Event()
        self._all_now = False
        self._complaint = ""
        self._left_stuck = False
        self._own_deadline = clock() + SLACK_S
        self._answered_s = self._published_at = 0.0
        self._published: tuple[object, ...] = ()
        self.snapshot = Snapshot(route, "starting", report.counters.as_dict())

    # From any thread

    def stop(self, at_once: bool = False) -> None:
        """Take no more messages, finish what is in flight (`at_once`: give it up), leave `run`."""
        self._stopping.set()
        if (forwarder := self._forwarder) is not None:
            forwarder.stop(at_once)
        self.wake()

    def try_all(self) -> None:
        """Try everything now: messages that wait, the server, a maildir that is missing."""
        self._all_now = True
        self.wake()

    def wake(self) -> None:
        """Have it look at the time, and at what it was asked for."""
        self._interrupt.set()
        if (forwarder := self._forwarder) is not None:
            forwarder.wake.set()

    @property
    def watchdog_deadline(self) -> float:
        """The clock's time by which the thread must be back in its loop; later, it hangs."""
        if (forwarder := self._forwarder) is None:
            return self._own_deadline
        return max(self._own_deadline, forwarder.watchdog_deadline)

    @property
    def connecting(self) -> bool:
        """True while the worker waits for a connection; then nothing is in flight."""
        return (forwarder := self._forwarder) is not None and forwarder.connecting

    @property
    def stuck(self) -> bool:
        """True if messages that the server has accepted cannot be removed here."""
        return self._left_stuck or self.snapshot.state == "stuck"

    # The thread

    def run(self) -> None:
        """Forward until told to stop."""
        while not self._stopping.is_set():
            try:
                self._serve()
            except LocalError as error:
                self._complain(str(error))
                self._publish("no maildir")
                self._sleep(self.route.rescan_s)
        # Without the maildir's lock, the status file in it may be another daemon's.
        self.snapshot = replace(self.snapshot, state="stuck" if self.stuck else "stopped")

    def _sleep(self, seconds: float) -> None:
        self._own_deadline = self._clock() + seconds + SLACK_S
        self._interrupt.wait(seconds)
        self._interrupt.clear()
        self._own_deadline = self._clock() + SLACK_S

    def _complain(self, what: str) -> None:
        """Report a problem once, not with each try."""
        if what != self._complaint:
            self.report.problem(f"{what}; trying again every {self.route.rescan_s:g} s")
        self._complaint = what

    def _serve(self) -> None:
        """Open the maildir and forward, until told to stop or the path leads elsewhere."""
        route = self.route
        with ExitStack() as stack:
            maildir = stack.enter_context(Maildir(route.maildir, shard=route.shard))
            shared = stack.enter_context(self._locks.hold(maildir, route.prefix))
            try:
                wake = Wakeup(for_signals=False)
            except OSError as error:
                raise local_error("make a pipe, to watch", maildir.path, error) from error
            stack.callback(wake.close)
            queue = self._queue = WatchQueue(
                maildir,
                route.include_cur,
                route.rescan_s,
                self._clock,
                self._wall_clock,
                shared.reservations,
                wake,
            )
            forwarder = Forwarder(
                route,
                maildir,
                self.report,
                self._connector,
                self._clock,
                self._wall_clock,
                queue,
                wake,
                shared.state,
            )
            stack.callback(forwarder.close)
            self._forwarder = forwarder
            stack.callback(self._no_forwarder, shared)
            stack.callback(self._finish, forwarder, shared.stuck)
            if self._stopping.is_set():
                return  # told so before there was a forwarder to tell

            self._slots = SlotsByServer(self._servers, route.server_connections, wake)
            stack.callback(self._slots.leave)

            # Watched before the first scan, so that no file that appears in between is missed.
            watch = Watch(maildir.new.path, queue.hint, self.report.note, self._watcher)
            stack.callback(watch.close)
            clocks, stop = (self._clock, self._wall_clock), forwarder.told_to_stop
            self._chores = Chores(route, self.report, maildir, shared.state, *clocks, queue, stop)
            stack.callback(self._chores.close)
            self._publish_if_due()
            while forwarder.connected or (queue.open and not forwarder.stopping):
                if queue.scan_due() and (left := shared.stuck.take()):
                    self._left_stuck = False
                    forwarder.take_over(left)
                self._tick(maildir, watch, queue)
                self._own_deadline = self._clock() + self._chores.may_take_s
                self._chores.tick(forwarder)
                self._step(forwarder, queue)

    def _finish(self, forwarder: Forwarder, stuck: StuckMessages) -> None:
        if left := forwarder.finish():
            self._left_stuck = True
            stuck.put(left)

    def _no_forwarder(self, shared: SharedMaildir) -> None:
        self._forwarder = None
        self._own_deadline = self._clock() + SLACK_S
        # Another path may lead to the maildir, and a route by that path have its status file now.
        if self._stopping.is_set() and shared.prefixes.count(self.route.prefix) == 1:
            self._publish("stuck" if self.stuck else "stopped")

    def _slots_for(self, forwarder: Forwarder) -> RouteSlots:
        assert self._slots is not None
        return self._slots.of(forwarder.servers.target.endpoint)

    @property
    def _chores_at(self) -> float | None:
        return None if self._chores is None else self._chores.next_at

    # One round of the loop

    def _tick(self, maildir: Maildir, watch: Watch, queue: WatchQueue) -> None:
        """Do what is due, between the turns of the forwarder."""
        if self._all_now:
            self._all_now = False
            self._try_again_at = self._mend_at = 0.0
            self._backoff.succeeded()
            if self._forwarder is not None:
                self._forwarder.servers.forget_failures()
            queue.try_all()
        if queue.scan_due():
            self._scan(maildir, watch, queue)
        queue.take_hints()
        if queue.local_error is not None:
            self._complain(str(queue.local_error))

    def _scan(self, maildir: Maildir, watch: Watch, queue: WatchQueue) -> None:
        if not maildir.is_current():
            self.report.note("the maildir has been replaced, or is gone; opening it anew")
            queue.close()
            return
        watch.check()
        if self._chores is not None:
            self._chores.clean()
        queue.scan()

    def _step(self, forwarder: Forwarder, queue: WatchQueue) -> None:
        """Send while there is a connection; connect if there is mail; else wait."""
        if forwarder.connected:
            self._turn(forwarder, queue, self._slots_for(forwarder))
            return
        if not queue.open:
            return
        queue.allowance = None
        if forwarder.local_error is not None:
            self._slots_for(forwarder).give_back()
            self._mend(forwarder)
        elif self._clock() < self._try_again_at or not forwarder.outbox.has_next():
            self._slots_for(forwarder).give_back()
            self._rest(forwarder, queue)
        elif not (slots := self._slots_for(forwarder)).take():
            forwarder.outbox.put_back()
            self._rest(forwarder, queue)
        else:
            self._proven(queue)
            if not forwarder.connect():
                self._disconnected(forwarder, queue, slots)

    def _turn(self, forwarder: Forwarder, queue: WatchQueue, slots: RouteSlots) -> None:
        """Send, as far as other routes to this server leave room."""
        self._publish_if_due()
        more = bool(forwarder.outbox.left)
        may = slots.before_turn(forwarder.pool.open, more, forwarder.wants_more)
        queue.allowance = may.allowance
        forwarder.pool.most = may.connections
        forwarder.idle_s = 0.0 if may.closes_idle else self.route.idle_s
        if may.news:
            self.report.note(may.news)
        forwarder.turn(earliest(self._publish_at, may.look_at, self._chores_at))
        if not forwarder.connected:
            self._disconnected(forwarder, queue, slots)

    def _rest(self, forwarder: Forwarder, queue: WatchQueue) -> None:
        """Wait for mail, for the end of a back-off, or for a slot."""
        self._proven(queue)
        self._publish_if_due()
        now = self._clock()
        until = self._try_again_at if now < self._try_again_at else now + self.route.rescan_s
        forwarder.rest(earliest(until, self._publish_at, self._chores_at) or until)

    def _proven(self, queue: WatchQueue) -> None:
        if self._complaint and queue.local_error is None:
            self.report.note("the maildir is in order again")
            self._complaint = ""

    def _mend(self, forwarder: Forwarder) -> None:
        if self.snapshot.state != "stuck":
            self._publish("stuck")
            self._mend_at = self._clock() + self.route.rescan_s
        self._publish_if_due()
        forwarder.rest(earliest(self._mend_at, self._publish_at, self._chores_at) or self._mend_at)
        if self._clock() >= self._mend_at:  # not with each message that comes meanwhile
            self._mend_at = self._clock() + self.route.rescan_s
            if forwarder.mend():
                self._publish("idle")  # the exit code goes by it
                self.report.note("the maildir can be changed again; going on")

    def _disconnected(self, forwarder: Forwarder, queue: WatchQueue, slots: RouteSlots) -> None:
        """Handle the end of all connections, or a failed one; back off if another cannot help."""
        # Not "later than": if a clock is set back, the back-off would never end.
        of_use = forwarder.answered_s not in (0.0, self._answered_s)
        if of_use:
            self._answered_s = forwarder.answered_s
            self._backoff.succeeded()
        slots.give_back(failed=forwarder.servers.reached and not (of_use or forwarder.stopping))
        forwarder.outbox.put_back()
        queue.look_again()
        if forwarder.may_help or forwarder.stopping:
            return
        wait_s = self._backoff.failed()
        self._try_again_at = self._clock() + wait_s
        waiting = sum(1 for _ in queue.waiting())
        self.report.problem(
            f"{forwarder.stop_reason}; {waiting} waiting, next try in {wait_s:.1f} s"
        )
        self._publish("backing off")

    # Snapshots

    def _publish_if_due(self) -> None:
        """Publish a snapshot if something has changed, at most once a second."""
        queue, forwarder = self._queue, self._forwarder
        if queue is None or forwarder is None:
            return
        counters = self.report.counters
        if forwarder.local_error is not None:
            state = "stuck"
        elif forwarder.connected:
            state = "connected"
        elif self._slots is not None and self._slots.waits:
            state = "waiting for a slot"
        else:
            waits = self._clock() < self._try_again_at or (self._backoff.failures and len(queue))
            state = "backing off" if waits else "idle"
        news = (len(queue), queue.size, counters.as_tuple())
        if news == self._published and state == self.snapshot.state:
            self._publish_at = None
        elif self._clock() >= self._published_at + self._publish_every_s:
            self._published = news
            self._publish_at = None
            self._publish(state)
        else:
            self._publish_at = self._published_at + self._publish_every_s

    def _publish(self, state: str) -> None:
        queue = self._queue
        nothing: tuple[int, float, list[QueueEntry]] = (0, 0.0, [])
        count, oldest_s, shown = nothing if queue is None else queue.overview(MOST_SHOWN)
        now_s, now = self._wall_clock(), self._clock()
        self._published_at = now
        self.snapshot = Snapshot(
            self.route,
            state,
            self.report.counters.as_dict(),
            at_s=now_s,
            answered_s=(self._forwarder and self._forwarder.answered_s) or self._answered_s,
            server=self._forwarder.servers.answered_by if self._forwarder is not None else "",
            by_server=self.report.by_server.as_dicts(),
            messages=count,
            oldest_s=oldest_s,
            connect_at_s=now_s + self._try_again_at - now if now < self._try_again_at else 0.0,
            stop_reason=self._complaint if self._forwarder is None else self._forwarder.stop_reason,
            waiters=waiters(shown, now_s - now),
        )
        self._on_publish(self.snapshot)
        self._publish_every_s = max(PUBLISH_S, (self._clock() - now) / _PUBLISH_SHARE)
