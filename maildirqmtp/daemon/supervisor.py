"""The daemon's process: its routes in threads, its signals, and what it reports.

    TERM, INT   finish what is in flight (20 s at most), settle, exit; twice: at once
    ALRM        try everything now
    HUP         read the configuration again
    USR1        a line of status for each route

The configuration is a table of wanted routes. At the start and after each HUP,
`_reconcile` stops the running routes that are not in it as they are, and starts those
that are missing, once the predecessor on the same maildir has ended.
"""

from __future__ import annotations

import os
import selectors
import signal
import sys
import threading
from collections import deque
from typing import TYPE_CHECKING

from maildirqmtp.daemon.announcer import Announcer
from maildirqmtp.daemon.boot_clock import Sleeps, boot_clock
from maildirqmtp.daemon.health import Health, RouteHealth, is_live
from maildirqmtp.daemon.http_pages import HttpPages
from maildirqmtp.daemon.log_lines import log_line
from maildirqmtp.daemon.preload import preload
from maildirqmtp.daemon.reservations import MaildirLocks
from maildirqmtp.daemon.route_names import full_name, watched
from maildirqmtp.daemon.runner import Runner
from maildirqmtp.daemon.slots import ServerSlots
from maildirqmtp.daemon.systemd import Notifier
from maildirqmtp.daemon.watcher import Watcher
from maildirqmtp.daemon.worker import Worker
from maildirqmtp.descriptor_limit import raise_limit, threads_reason
from maildirqmtp.errors import ConfigError, LocalError
from maildirqmtp.exit_codes import EXIT_OK, EXIT_TEMPORARY
from maildirqmtp.forwarder.report import Report
from maildirqmtp.forwarder.stop import STOP_S
from maildirqmtp.text import printable
from maildirqmtp.transport.orphans import is_reaper, reap
from maildirqmtp.transport.signals import signal_handlers
from maildirqmtp.transport.wakeup import Wakeup

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    from maildirqmtp.daemon.snapshot import Snapshot
    from maildirqmtp.forwarder.route import Route
    from maildirqmtp.settings.config import Config

#: Seconds that routes get to stop, beyond those for what is in flight.
_STOP_SLACK_S = 5.0
#: Seconds that routes get when they are told to stop at once: a command that does not exit by
#: itself is ended in four, and then the route reports what is in doubt.
_HURRY_S = 5.0
#: Seconds that the state files of routes that are not waited for may take to be written.
_SAVE_S = 2.0
#: Seconds until another look at a route that does not turn: the watchdog may be short of time.
_LOOK_AGAIN_S = 1.0
#: Seconds until another attempt at a route that could not be started, and at orphans that could
#: not be reaped.
_AGAIN_S = 60.0
_REAP_AGAIN_S = 1.0
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGALRM, signal.SIGHUP, signal.SIGUSR1)
#: A route's maildir, as a real path, and its prefix: no two routes share both.
RouteKey = tuple[bytes, bytes]


def run(config: Config, reload: Callable[[], Config] | None) -> int:
    """Forward until told to stop; return the exit code.

    `reload` reads the configuration again, None without a file; it may raise `ConfigError`.
    Raises as `HttpPages.apply` does, if pages of the first configuration cannot be served.
    """
    raise_limit()
    wake = Wakeup()
    service = Supervisor(config, reload, Notifier(os.environ), wake)

    def on_signal(number: int, frame: FrameType | None) -> None:
        service.signals.append(number)

    try:
        signals = (*_SIGNALS, signal.SIGCHLD) if is_reaper() else _SIGNALS
        with signal_handlers(signals, on_signal, wakeup_fd=wake.write_fd):
            return service.run()
    finally:
        wake.close()


class Supervisor:
    """See the module's docstring. `signals` are those received and not acted on yet."""

    def __init__(
        self,
        config: Config,
        reload: Callable[[], Config] | None,
        notifier: Notifier,
        wake: Wakeup,
    ) -> None:
        self.signals: deque[int] = deque()
        self._config = config
        self._reload = reload
        self._notifier = notifier
        self._wake = wake
        self._locks = MaildirLocks(boot_clock)
        self._servers = ServerSlots(boot_clock)
        self._watcher = Watcher()
        self._wanted: dict[RouteKey, Route] = {}
        self._runners: dict[RouteKey, Runner] = {}
        self._report = self._new_report(None)
        self._code = EXIT_OK
        self._stop_by: float | None = None
        self._again_at: float | None = None
        self._announcer = Announcer(notifier, boot_clock, lambda said: self._report.problem(said))
        self._news = True
        self._ready_due = True
        self._pages = HttpPages(self._snapshots, self._health, self._report.note)
        self._sleeps = Sleeps()
        self._live = True
        self._unwritable: set[bytes] = set()

    def run(self) -> int:
        """Run until told to stop, or until a route crashes; return the exit code."""
        interval_s = self._notifier.watchdog_s
        with selectors.DefaultSelector() as selector:
            selector.register(self._wake.fd, selectors.EVENT_READ)
            self._apply(self._config)  # after it there may be no descriptor for a selector
            while not self._is_over():
                waits = [] if interval_s is None else [interval_s / 2]
                if waits and not self._live:
                    waits.append(_LOOK_AGAIN_S)
                if (
                    wait_s := self._announcer.wait_s(self._config.metrics_file, self._news)
                ) is not None:
                    waits.append(wait_s)
                now = boot_clock()
                waits += [
                    max(0.0, at - now) for at in (self._stop_by, self._again_at) if at is not None
                ]
                if selector.select(min(waits, default=None)):
                    self._wake.clear()
                    self._news = True
                while self.signals:
                    self._on_signal(self.signals.popleft())
                self._reap()
                self._tell()
        self._reap()  # a route that ended after the last turn may be stuck, or have crashed
        for runner in self._runners.values():
            if not runner.done and not runner.worker.connecting:
                self._code = EXIT_TEMPORARY
                runner.worker.report.problem(
                    "did not end in time; what it had sent and was not answered is in doubt"
                )
        self._save_states()
        self._announcer.finish(self._snapshots(), self._config.metrics_file)
        for runner in self._runners.values():
            runner.worker.report.summary(self._code)
        self._pages.stop()
        self._notifier.close()
        return self._code

    def _save_states(self) -> None:
        """Write what routes that are not waited for know: where their messages are in doubt, ..."""

        def save() -> None:
            for fault in self._locks.save_states():
                self._report.note(fault)

        # In a thread, since a file system may hang: with it, the route that is not waited for.
        thread = threading.Thread(target=save, daemon=True)
        try:
            thread.start()
        except RuntimeError:  # no more threads are to be had
            return
        thread.join(_SAVE_S)

    def _is_over(self) -> bool:
        if self._stop_by is None:
            return False
        # A thread that is connecting has nothing in flight, and cannot be interrupted.
        busy = [r for r in self._runners.values() if not r.done and not r.worker.connecting]
        return not busy or boot_clock() >= self._stop_by

    # What is wanted, and what runs

    def _apply(self, config: Config) -> None:
        self._pages.apply(config)
        self._config = config
        self._wanted = {
            (os.path.realpath(route.maildir), route.prefix): route for route in config.routes
        }
        data = sys.stdout if config.json else None
        for runner in [*self._runners.values()]:
            line = self._line(runner.worker.route)
            runner.worker.report.set_output(config.verbosity, data, line)
        self._report.set_output(config.verbosity, data, self._line(None))
        self._reconcile()

    def _reconcile(self) -> None:
        for key, runner in self._runners.items():
            if self._wanted.get(key) != runner.worker.route:
                runner.stop()
        for key, route in self._wanted.items():
            if key not in self._runners and self._stop_by is None and not self._start(key, route):
                break

    def _start(self, key: RouteKey, route: Route) -> bool:
        """Start a route; return False if its modules or its thread cannot be had."""
        try:
            preload(route)
        except (ImportError, OSError) as error:
            self._not_started(self._new_report(route), str(error))
            return False
        worker = Worker(
            route,
            self._new_report(route),
            self._locks,
            self._published,
            self._servers,
            self._watcher,
        )
        runner = Runner(worker, self._wake)
        try:
            runner.thread.start()
        except RuntimeError as error:
            self._not_started(worker.report, threads_reason(error))
            return False
        self._runners[key] = runner
        worker.report.note(watched(route))
        return True

    def _not_started(self, report: Report, why: str) -> None:
        # Running routes go on; starting another would only fail for the same reason.
        report.problem(f"cannot be forwarded: {why}")
        self._again_at = boot_clock() + _AGAIN_S

    def _name(self, route: Route) -> str:
        if len(self._config.routes) == 1:
            return ""
        prefix = f" {printable(route.prefix)}" if route.prefix else ""
        return f"{printable(route.maildir)}{prefix}"

    def _line(self, route: Route | None) -> Callable[[str, int, str], str]:
        """Return the function that makes the log lines of a route; None is the process itself."""
        names = (self._name(route), full_name(route)) if route is not None else ("", "")
        return log_line(self._config.log_format, *names)

    def _new_report(self, route: Route | None) -> Report:
        return Report(
            sys.stderr,
            sys.stdout if self._config.json else None,
            self._config.verbosity,
            attempts=True,
            line=self._line(route),
        )

    def _reap(self) -> None:
        """Deal with threads that have ended; a route among them that is wanted is started anew."""
        ended = [(k, r) for k, r in self._runners.items() if r.done and not r.reaped]
        is_late = self._again_at is not None and boot_clock() >= self._again_at
        for key, runner in ended:
            runner.reaped = True
            if runner.worker.stuck or runner.crash:
                self._code = EXIT_TEMPORARY
            if runner.crash:
                runner.worker.report.problem(runner.crash)
                self._stop()
            elif self._stop_by is None:
                runner.worker.report.summary(self._code)
                del self._runners[key]
        if is_late:
            self._again_at = None
            self._reap_orphans()
        if (ended or is_late) and self._stop_by is None:
            self._reconcile()

    def _reap_orphans(self) -> None:
        if is_reaper() and not reap():
            self._again_at = boot_clock() + _REAP_AGAIN_S

    # Signals

    def _on_signal(self, number: int) -> None:
        if number in (signal.SIGTERM, signal.SIGINT):
            if self._stop_by is not None:
                self._code = EXIT_TEMPORARY
            self._stop(at_once=self._stop_by is not None)
        elif number == signal.SIGHUP:
            self._read_again()
        elif number == signal.SIGCHLD:
            self._reap_orphans()
        elif number == signal.SIGALRM:
            for runner in self._runners.values():
                runner.worker.try_all()
        else:
            for runner in self._runners.values():
                runner.worker.report.note(runner.worker.snapshot.line())

    def _stop(self, at_once: bool = False) -> None:
        if self._stop_by is None:
            self._notifier.send("STOPPING=1")
            self._report.note("stopping; what is in flight is finished first")
            self._stop_by = boot_clock() + STOP_S + _STOP_SLACK_S
        elif at_once:
            # A route that is busy with anything else, such as a bounce, is not waited for.
            self._stop_by = min(self._stop_by, boot_clock() + _HURRY_S)
        for runner in self._runners.values():
            runner.stop(at_once)

    def _read_again(self) -> None:
        if self._stop_by is not None:
            return
        if self._reload is None:
            self._report.note("there is no configuration file to read again; looking around")
            for runner in self._runners.values():
                runner.worker.try_all()
            return
        self._notifier.reloading()
        self._ready_due = True
        try:
            self._apply(self._reload())
        except (ConfigError, LocalError) as error:
            self._report.problem(f"{error}; going on as before")
        else:
            self._report.note("the configuration has been read again")

    # What it tells of itself

    def _snapshots(self) -> list[Snapshot]:
        return [runner.worker.snapshot for runner in [*self._runners.values()]]

    def _published(self, snapshot: Snapshot) -> None:
        """Write a route's status file, in the route's thread, and wake the main one."""
        from maildirqmtp.daemon.status import write

        try:
            if snapshot.state != "no maildir":
                write(snapshot)
                self._unwritable.discard(snapshot.route.maildir)
        except LocalError as error:
            if snapshot.route.maildir not in self._unwritable:
                self._unwritable.add(snapshot.route.maildir)
                self._report.note(str(error))
        self._wake.set()

    def _tell(self) -> None:
        snapshots = self._snapshots()
        if self._notifier.watchdog_s is not None:
            self._live = is_live(self._health())
            if self._live:
                self._notifier.send("WATCHDOG=1")
        settled = all(
            runner.worker.snapshot.state != "starting" and not runner.stopping
            for runner in self._runners.values()
        )
        if self._ready_due and settled and self._stop_by is None:
            self._ready_due = False
            self._notifier.send("READY=1")
        if self._announcer.tell(snapshots, self._config.metrics_file):
            self._news = False

    def _health(self) -> Health:
        """Return the health of each route, also of those not started. From any thread."""
        now, runners, wanted = boot_clock(), self._runners.copy(), self._wanted
        if self._sleeps.look():
            for runner in runners.values():
                runner.worker.wake()  # what it waits for is due by now
        slept = self._sleeps.slept_lately(now)
        found = [
            RouteHealth(
                full_name(runner.worker.route),
                runner.done or slept or now <= runner.worker.watchdog_deadline,
                "ending" if runner.stopping else runner.worker.snapshot.state,
            )
            for runner in runners.values()
        ]
        waits = [route for key, route in wanted.items() if key not in runners]
        found += [RouteHealth(full_name(route), True, "not started") for route in waits]
        return Health(found, self._stop_by is not None)
