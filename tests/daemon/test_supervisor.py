"""The daemon's process: routes that come and go, signals, and what the supervisor is told.

With daemons that only do what a test says, in a thread of the test's own.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from maildirqmtp.daemon import supervisor as supervisor_module
from maildirqmtp.daemon.boot_clock import GRACE_S, boot_clock
from maildirqmtp.daemon.snapshot import Snapshot
from maildirqmtp.daemon.supervisor import Supervisor
from maildirqmtp.errors import ConfigError, LocalError
from maildirqmtp.forwarder.report import Report
from maildirqmtp.forwarder.route import Route
from maildirqmtp.forwarder.stop import STOP_S
from maildirqmtp.maildir.maildir import Maildir
from maildirqmtp.settings.config import Config
from maildirqmtp.transport.endpoint import TcpEndpoint
from maildirqmtp.transport.wakeup import Wakeup
from tests.helpers import closed_port, make_maildir, probe, wait_until


class FakeWorker:
    """A daemon that does nothing, until it is told to stop, crash or hang."""

    made: list[FakeWorker]

    def __init__(
        self,
        route: Route,
        report: Report,
        locks: object,
        on_publish: Callable[[Snapshot], None],
        servers: object,
        watcher: object,
    ) -> None:
        self.route = route
        self.report = report
        self.snapshot = Snapshot(route, "starting", report.counters.as_dict())
        self.watchdog_deadline = boot_clock() + 3_600.0
        self.connecting = False
        self.stuck = False
        self.stops = 0
        self.alls = 0
        self.wakes = 0
        self.running = False
        self.slow = False
        self.deaf = False
        self.hurried = False
        self._on_publish = on_publish
        self._end = threading.Event()
        self._error: BaseException | None = None
        self.made.append(self)

    def run(self) -> None:
        """See `daemon.Worker`."""
        self.running = True
        self._end.wait()
        self.running = False
        if self._error is not None:
            raise self._error

    def stop(self, at_once: bool = False) -> None:
        """See `daemon.Worker`."""
        self.stops += 1
        self.hurried = at_once
        if not self.slow or (at_once and not self.deaf):
            self._end.set()

    def end(self, error: BaseException | None = None) -> None:
        """Return from `run`, or raise."""
        self._error = error
        self._end.set()

    def try_all(self) -> None:
        """See `daemon.Worker`."""
        self.alls += 1

    def wake(self) -> None:
        """See `daemon.Worker`."""
        self.wakes += 1

    def say(self, state: str) -> None:
        """Publish a snapshot."""
        self.snapshot = Snapshot(self.route, state, self.report.counters.as_dict())
        self._on_publish(self.snapshot)


class FakeNotifier:
    """A supervisor that writes down what it is told."""

    def __init__(self) -> None:
        self.watchdog_s: float | None = None
        self.said: list[str] = []
        self.closed = False

    def send(self, *states: str) -> None:
        """See `notify.Notifier`."""
        self.said += states

    def reloading(self) -> None:
        """See `notify.Notifier`."""
        self.said.append("RELOADING=1")

    def close(self) -> None:
        """See `notify.Notifier`."""
        self.closed = True

    def count(self, state: str) -> int:
        """How often it was told this."""
        return self.said.count(state)


def route(name: str, server: str = "mail.example.org", prefix: bytes = b"") -> Route:
    """Return a route for a maildir of that name, which need not be there."""
    return Route(os.fsencode(f"/nowhere/{name}"), TcpEndpoint(server), prefix=prefix)


def config(*routes: Route, **options: object) -> Config:
    """Return the configuration of a file."""
    return Config(routes, **({"path": "/etc/x.toml"} | options))  # type: ignore[arg-type]


class Run:
    """A service at work in a thread."""

    def __init__(self) -> None:
        self.wake = Wakeup()
        self.notifier = FakeNotifier()
        self.next: Config | ConfigError = ConfigError("x.toml: line 3: no")
        self.code: int | None = None
        self.service: Supervisor
        self._thread: threading.Thread

    def start(self, first: Config, *, has_file: bool = True) -> None:
        """Start it."""
        reload = self._reload if has_file else None
        self.service = Supervisor(first, reload, self.notifier, self.wake)  # type: ignore[arg-type]
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        wait_until(lambda: len(self.at_work) == len(first.routes), "the routes")
        wait_until(lambda: len(self.service._runners) == len(first.routes), "the routes' records")

    def _run(self) -> None:
        self.code = self.service.run()

    def _reload(self) -> Config:
        if isinstance(self.next, ConfigError):
            raise self.next
        return self.next

    def signal(self, number: int) -> None:
        """Have a signal come."""
        self.service.signals.append(number)
        self.wake.set()

    def hup(self, following: Config | ConfigError) -> None:
        """Have the configuration read again; wait until it is."""
        before = self.notifier.count("RELOADING=1")
        self.next = following
        self.signal(signal.SIGHUP)
        wait_until(lambda: self.notifier.count("RELOADING=1") > before, "the reload")

    @property
    def at_work(self) -> list[FakeWorker]:
        """The daemons that run."""
        return [worker for worker in FakeWorker.made if worker.running]

    def worker(self, name: str) -> FakeWorker:
        """Return the last daemon of this maildir."""
        return [d for d in FakeWorker.made if d.route.maildir.endswith(os.fsencode(name))][-1]

    def ended(self) -> int:
        """Wait for the end; return the exit code."""
        self._thread.join(60)
        assert not self._thread.is_alive()
        assert self.code is not None
        return self.code

    def stop(self) -> int:
        """Stop it as systemd does."""
        self.signal(signal.SIGTERM)
        return self.ended()


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """A service that is not started yet; it is ended, however the test ends."""
    FakeWorker.made = []
    monkeypatch.setattr(supervisor_module, "Worker", FakeWorker)
    monkeypatch.setattr("maildirqmtp.daemon.status.write", lambda snapshot: None)
    made = Run()
    yield made
    if made.code is None:
        made.signal(signal.SIGTERM)
        for worker in FakeWorker.made:
            worker.end()
        made.ended()
    made.wake.close()


# What is wanted, and what runs


def test_each_route_has_a_thread(run: Run) -> None:
    """And ends with it; all is well, so the exit code is 0."""
    run.start(config(route("a"), route("b")))
    assert len(run.at_work) == 2
    assert run.stop() == 0
    assert [worker.stops for worker in FakeWorker.made] == [1, 1]
    assert run.notifier.closed


def test_hup_leaves_alone_what_has_not_changed(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its connection, its back-off and what is in flight."""
    run.start(config(route("a"), route("b"), route("c")))
    before = {name: run.worker(name) for name in "abc"}
    run.hup(config(route("a"), route("b", "other.example.org"), route("d")))
    wait_until(lambda: len(FakeWorker.made) == 5, "the new ones")
    wait_until(lambda: len(run.at_work) == 3, "the end of the old ones")
    assert run.worker("a") is before["a"]
    assert before["a"].stops == 0
    assert (before["b"].stops, before["c"].stops) == (1, 1)
    assert run.worker("b").route.server.host == "other.example.org"
    assert {os.fsdecode(d.route.maildir)[-1] for d in run.at_work} == {"a", "b", "d"}
    assert run.stop() == 0
    assert "the configuration has been read again" in capsys.readouterr().err


def test_a_changed_route_waits_for_its_predecessor(run: Run) -> None:
    """Both at once would send the same mail to two servers."""
    run.start(config(route("a")))
    (old,) = FakeWorker.made
    old.slow = True
    run.hup(config(route("a", "other.example.org")))
    wait_until(lambda: old.stops == 1, "the old one told")
    run.wake.set()
    assert len(FakeWorker.made) == 1
    old.end()
    wait_until(lambda: len(FakeWorker.made) == 2, "the new one")
    assert run.worker("a").route.server.host == "other.example.org"


def test_a_route_that_is_wanted_again_before_it_has_ended(run: Run) -> None:
    """Two HUPs in a row: it ends, and begins anew; it is not forgotten."""
    run.start(config(route("a"), route("b")))
    old = run.worker("b")
    old.slow = True
    run.hup(config(route("a")))
    run.hup(config(route("a"), route("b")))
    assert old.stops == 1
    old.end()
    wait_until(lambda: run.worker("b") is not old and run.worker("b").running, "the new one")


def test_prefixes_are_routes_of_their_own(run: Run) -> None:
    """One maildir, two routes: one of them may go."""
    first, second = route("a", prefix=b"p-"), route("a", prefix=b"q-")
    run.start(config(first, second))
    run.hup(config(second))
    wait_until(lambda: len(run.at_work) == 1, "the end of the first")
    assert run.at_work[0].route == second
    assert len(FakeWorker.made) == 2


def test_a_bad_configuration_changes_nothing(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    """A typing error in the file does not stop the mail; it is said, and READY follows."""
    run.start(config(route("a")))
    run.worker("a").say("idle")
    wait_until(lambda: run.notifier.count("READY=1") == 1, "READY")
    run.hup(ConfigError("x.toml: line 3: unknown key 'servre'"))
    wait_until(lambda: run.notifier.count("READY=1") == 2, "READY again")
    assert run.worker("a").stops == 0
    assert run.stop() == 0
    assert "unknown key 'servre'; going on as before" in capsys.readouterr().err


def test_without_a_file_hup_looks_around(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    """It must not end the process, as HUP does where nobody minds it."""
    run.start(config(route("a"), path=None), has_file=False)
    run.signal(signal.SIGHUP)
    wait_until(lambda: run.worker("a").alls == 1, "another look")
    assert run.stop() == 0
    assert "no configuration file to read again" in capsys.readouterr().err


def test_hup_while_it_stops_starts_nothing(run: Run) -> None:
    """systemd may send both."""
    run.start(config(route("a")))
    run.worker("a").slow = True
    run.signal(signal.SIGTERM)
    wait_until(lambda: run.worker("a").stops == 1, "the stop")
    run.next = config(route("a", "other.example.org"), route("b"))
    run.signal(signal.SIGHUP)
    run.worker("a").end()
    assert run.ended() == 0
    assert len(FakeWorker.made) == 1
    assert run.notifier.count("RELOADING=1") == 0


def test_hup_changes_how_much_is_said(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    """Of routes that go on, too: --quiet and --json are the process's."""
    run.start(config(route("a")))
    report = run.worker("a").report
    run.hup(config(route("a"), verbosity=-1, json=True))
    wait_until(lambda: report._verbosity == -1, "the new verbosity")
    report.note("hello")
    run.stop()
    out, err = capsys.readouterr()
    assert '"text": "hello"' in out
    assert "hello" not in err


def test_a_line_says_of_which_route_it_is(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    """Where there are several."""
    run.start(config(route("a"), route("a", prefix=b"p-")))
    for worker in FakeWorker.made:
        worker.report.note("hello")
    run.stop()
    err = capsys.readouterr().err
    assert "maildirqmtp: /nowhere/a: hello\n" in err
    assert "maildirqmtp: /nowhere/a p-: hello\n" in err


# Threads that end


def test_a_thread_that_crashes_stops_the_others_and_is_told(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    """A daemon of which a part is dead and that says nothing is worse than none: 111, once."""
    run.start(config(route("a"), route("b")))
    run.worker("b").slow = True
    run.worker("a").end(ZeroDivisionError("a bug"))
    wait_until(lambda: run.worker("b").stops == 1, "the other one told")
    for _ in range(5):
        run.wake.set()
        wait_until(lambda: not run.wake._is_set, "another turn")
    run.worker("b").end()
    assert run.ended() == 111
    err = capsys.readouterr().err
    assert err.count("a bug") == err.count("Traceback") == 1


def test_a_thread_that_ends_though_nobody_told_it_begins_anew(run: Run) -> None:
    """Its mail would wait for ever."""
    run.start(config(route("a")))
    old = run.worker("a")
    old.end()
    wait_until(lambda: run.worker("a") is not old, "a new one")
    wait_until(lambda: run.at_work == [run.worker("a")], "its thread")


@pytest.mark.parametrize("when", ["at the end", "removed by HUP"])
def test_messages_that_cannot_be_removed_are_an_exit_code(run: Run, when: str) -> None:
    """111: somebody has to look."""
    run.start(config(route("a"), route("b")))
    stuck = run.worker("b")
    stuck.stuck = True
    if when == "removed by HUP":
        run.hup(config(route("a")))
        wait_until(lambda: stuck.stops == 1, "its end")
    assert run.stop() == 111


def test_while_it_stops_nothing_begins_anew(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two threads end at the same time, one of them of a bug: mail is not begun to be sent."""
    reap = Supervisor._reap

    def both(self: Supervisor) -> None:
        runners = self._runners.values()
        if any(runner.done for runner in runners):
            wait_until(lambda: all(runner.done for runner in runners), "both ends")
        reap(self)

    monkeypatch.setattr(Supervisor, "_reap", both)
    run.start(config(route("a"), route("b")))
    run.worker("a").end()
    run.worker("b").end(ZeroDivisionError("a bug"))
    assert run.ended() == 111
    assert len(FakeWorker.made) == 2


@pytest.mark.parametrize("how", ["stuck", "crashed"])
def test_what_a_thread_says_in_the_last_moment_counts(
    run: Run, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """It ends between two looks: exit code 0 would hide what it found."""
    tell = Supervisor._tell

    def late(self: Supervisor) -> None:
        tell(self)
        worker = run.worker("a")
        if worker.stops and worker.running:
            worker.stuck = how == "stuck"
            worker.end(ZeroDivisionError("a bug") if how == "crashed" else None)
            (runner,) = self._runners.values()
            wait_until(lambda: runner.done, "its end")

    monkeypatch.setattr(Supervisor, "_tell", late)
    run.start(config(route("a")))
    run.worker("a").slow = True
    assert run.stop() == 111


# Signals


def test_alarm_is_for_every_route(run: Run) -> None:
    """The link is there: all of them try."""
    run.start(config(route("a"), route("b")))
    run.signal(signal.SIGALRM)
    wait_until(lambda: [d.alls for d in FakeWorker.made] == [1, 1], "both told")
    assert len(run.at_work) == 2, "a signal to try now must not end a route"


def test_usr1_is_a_line_for_each_route(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    """On standard error, whatever systemd shows."""
    run.start(config(route("a"), route("b")))
    run.worker("b").say("connected")
    run.signal(signal.SIGUSR1)
    run.signal(signal.SIGALRM)
    wait_until(lambda: run.worker("b").alls == 1, "that signals were seen")
    run.stop()
    err = capsys.readouterr().err
    assert err.count("0 waiting; starting; 0 accepted") == 1
    assert err.count("0 waiting; connected; 0 accepted") == 1


def test_a_second_term_ends_at_once(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    """With 111, without waiting for a server that does not answer; what is in doubt is told."""
    run.start(config(route("a"), json=True))
    run.worker("a").slow = True
    run.signal(signal.SIGTERM)
    wait_until(lambda: run.worker("a").stops == 1, "the first")
    assert run.code is None
    assert not run.worker("a").hurried
    run.signal(signal.SIGINT)
    assert run.ended() == 111
    assert run.worker("a").hurried
    assert not run.worker("a").running
    assert '"exit_code": 111' in capsys.readouterr().out


def test_a_second_term_does_not_wait_for_who_cannot_stop(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bounce may be on its way to a mailer that hangs."""
    monkeypatch.setattr(supervisor_module, "_HURRY_S", 0.05)
    run.start(config(route("a")))
    run.worker("a").slow = run.worker("a").deaf = True
    run.signal(signal.SIGTERM)
    wait_until(lambda: run.worker("a").stops == 1, "the first")
    run.signal(signal.SIGTERM)
    assert run.ended() == 111
    assert run.worker("a").running
    run.worker("a").end()


def test_what_a_route_knows_that_is_not_waited_for_is_written(run: Run, tmp_path: Path) -> None:
    """A message in doubt at one server would go to another one after a restart."""
    path = make_maildir(tmp_path / "M")
    run.start(config(route("a")))
    run.worker("a").slow = run.worker("a").connecting = True
    with Maildir(os.fsencode(path)) as maildir, run.service._locks.hold(maildir) as shared:
        shared.state.note_in_doubt(b"1.a", "mx1.example.org")
        assert run.stop() == 0
        assert '"mx1.example.org"' in (path / ".maildirqmtp-state.json").read_text()
    run.worker("a").end()


def test_a_state_that_cannot_be_written_on_the_way_out_is_told(
    run: Run, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Nobody would know why the other server has the message as well."""
    path = make_maildir(tmp_path / "M")
    run.start(config(route("a"), verbosity=1))
    run.worker("a").slow = run.worker("a").connecting = True
    with Maildir(os.fsencode(path)) as maildir, run.service._locks.hold(maildir) as shared:
        shared.state.note_in_doubt(b"1.a", "mx1.example.org")
        (path / ".maildirqmtp-state.json").mkdir()
        run.stop()
    run.worker("a").end()
    assert "cannot write" in capfd.readouterr().err


def test_who_is_only_connecting_is_not_waited_for(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is in flight, and connect(2) takes its minute."""
    monkeypatch.setattr(supervisor_module, "STOP_S", 10_000.0)
    run.start(config(route("a")))
    run.worker("a").slow = run.worker("a").connecting = True
    assert run.stop() == 0
    run.worker("a").end()


def test_the_end_comes_before_an_orchestrator_kills() -> None:
    """Kubernetes waits 30 s where nothing is said, and what is killed is in doubt."""
    assert STOP_S + supervisor_module._STOP_SLACK_S <= 25.0


def test_a_thread_that_does_not_end_is_not_waited_for_for_ever(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """systemd would kill us, and nobody would know why; what it had in flight may come twice."""
    monkeypatch.setattr(supervisor_module, "STOP_S", 0.0)
    monkeypatch.setattr(supervisor_module, "_STOP_SLACK_S", 0.05)
    run.start(config(route("a")))
    run.worker("a").slow = True
    assert run.stop() == 111
    assert "in doubt" in capsys.readouterr().err
    run.worker("a").end()


# What the supervisor is told


def test_ready_when_every_route_works(run: Run) -> None:
    """`systemctl start` returns when mail goes, not before."""
    run.start(config(route("a"), route("b")))
    run.worker("a").say("idle")
    wait_until(lambda: any("idle" in said for said in run.notifier.said), "the status")
    assert run.notifier.count("READY=1") == 0
    run.worker("b").say("no maildir")
    wait_until(lambda: run.notifier.count("READY=1") == 1, "READY")
    run.worker("b").say("connected")
    wait_until(lambda: any("connected" in said for said in run.notifier.said), "another turn")
    run.worker("b").say("idle")
    assert run.stop() == 0
    assert run.notifier.count("READY=1") == 1
    assert run.notifier.said.index("STOPPING=1") > run.notifier.said.index("READY=1")
    assert run.notifier.count("STOPPING=1") == 1


def test_ready_after_a_reload_when_the_new_routes_work(run: Run) -> None:
    """`systemctl reload` returns when it has been done; a route that ends is waited for."""
    run.start(config(route("a")))
    old = run.worker("a")
    old.say("idle")
    wait_until(lambda: run.notifier.count("READY=1") == 1, "READY")
    old.slow = True
    run.hup(config(route("a", "other.example.org")))
    old.say("connected")
    wait_until(lambda: any("connected" in said for said in run.notifier.said), "a turn")
    assert run.notifier.count("READY=1") == 1
    old.end()
    wait_until(lambda: run.worker("a") is not old, "the new one")
    run.worker("a").say("idle")
    wait_until(lambda: run.notifier.count("READY=1") == 2, "READY")
    said = [s for s in run.notifier.said if s in ("READY=1", "RELOADING=1")]
    assert said == ["READY=1", "RELOADING=1", "READY=1"]


def test_status_is_told_when_it_is_another(run: Run) -> None:
    """Not with each turn."""
    run.start(config(route("a"), route("b")))
    for state in ("idle", "idle", "connected"):
        run.worker("a").say(state)
        wait_until(lambda: not run.wake._is_set, "a turn")
    wait_until(lambda: any("connected" in said for said in run.notifier.said), "the last")
    status = [said for said in run.notifier.said if said.startswith("STATUS=")]
    assert len(status) == len(set(status))
    assert " | " in status[-1]


def test_the_watchdog_is_told_while_every_thread_turns(run: Run) -> None:
    """One that hangs, and systemd starts us again; also if the others are well."""
    run.notifier.watchdog_s = 0.02
    run.start(config(route("a"), route("b")))
    wait_until(lambda: run.notifier.count("WATCHDOG=1") >= 3, "WATCHDOG")
    run.worker("b").watchdog_deadline = boot_clock() - 1.0
    turns: list[int] = []

    def silent() -> bool:
        turns.append(run.notifier.count("WATCHDOG=1"))
        return len(turns) > 20 and len(set(turns[-20:])) == 1

    wait_until(silent, "silence")
    run.worker("b").watchdog_deadline = boot_clock() + 3_600.0
    before = run.notifier.count("WATCHDOG=1")
    wait_until(lambda: run.notifier.count("WATCHDOG=1") > before, "WATCHDOG again")
    assert run.stop() == 0


def test_after_a_sleep_of_the_machine_no_route_hangs(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A daemon on a laptop would be killed by systemd because its lid was closed for an hour."""
    slept = [0.0]
    gettime = time.clock_gettime

    def sleepy(clock: int) -> float:
        return gettime(clock) + (slept[0] if clock == time.CLOCK_BOOTTIME else 0.0)

    monkeypatch.setattr(time, "clock_gettime", sleepy)
    run.notifier.watchdog_s = 0.02
    run.start(config(route("a")))
    run.worker("a").watchdog_deadline = boot_clock() + 30.0
    slept[0] = 3_600.0
    wait_until(lambda: run.worker("a").wakes > 0, "the wake-up")
    before = run.notifier.count("WATCHDOG=1")
    wait_until(lambda: run.notifier.count("WATCHDOG=1") > before + 3, "WATCHDOG")
    assert run.worker("a").wakes == 1
    slept[0] += 1.0  # too little for a sleep, and the route has not turned for long
    run.service._sleeps._until = boot_clock() - GRACE_S
    wait_until(lambda: not run.service._live, "silence")
    assert run.stop() == 0


def test_a_route_that_turns_again_is_not_kept_waiting(run: Run) -> None:
    """The rest of the watchdog's time may be shorter than until the next regular look."""
    run.notifier.watchdog_s = 20_000.0
    run.start(config(route("a")))
    run.worker("a").watchdog_deadline = boot_clock() - 1.0
    run.worker("a").say("idle")
    wait_until(lambda: not run.service._live, "silence")
    before = run.notifier.count("WATCHDOG=1")
    run.worker("a").watchdog_deadline = boot_clock() + 3_600.0
    wait_until(lambda: run.notifier.count("WATCHDOG=1") > before, "WATCHDOG again")
    assert run.stop() == 0


def test_without_a_watchdog_none_is_told(run: Run) -> None:
    """Idle means idle."""
    run.start(config(route("a")))
    run.worker("a").say("idle")
    assert run.stop() == 0
    assert run.notifier.count("WATCHDOG=1") == 0


def test_while_it_stops_the_watchdog_is_told(run: Run) -> None:
    """A thread that has ended is not one that hangs."""
    run.notifier.watchdog_s = 0.02
    run.start(config(route("a"), route("b")))
    run.worker("b").slow = True
    run.signal(signal.SIGTERM)
    wait_until(lambda: not run.worker("a").running, "the end of the first")
    run.worker("a").watchdog_deadline = 0.0
    before = run.notifier.count("WATCHDOG=1")
    wait_until(lambda: run.notifier.count("WATCHDOG=1") > before + 2, "WATCHDOG")
    run.worker("b").end()
    assert run.ended() == 0


# Files


def test_a_status_file_that_cannot_be_written_is_said_once(
    run: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And mail goes on; once more when the disk was well in between."""
    full = True

    def write(snapshot: Snapshot) -> None:
        if full:
            raise LocalError(f"cannot write the status file {snapshot.route.maildir!r}")

    monkeypatch.setattr("maildirqmtp.daemon.status.write", write)
    run.start(config(route("a"), route("b")))
    for _ in range(3):
        run.worker("a").say("idle")
        run.worker("b").say("idle")
    full = False
    run.worker("b").say("idle")
    full = True
    run.worker("b").say("idle")
    assert run.stop() == 0
    err = capsys.readouterr().err
    assert err.count("cannot write the status file b'/nowhere/a'") == 1
    assert err.count("cannot write the status file b'/nowhere/b'") == 2


def test_the_metrics_file_follows_the_status(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Unwritable is said once, and again when it was well in between."""
    path = tmp_path / "metrics" / "mail.prom"
    run.start(config(route("a"), metrics_file=os.fsencode(path)))

    def say(state: str) -> None:
        run.worker("a").say(state)
        told = f"STATUS=0 waiting; {state}; "
        before = sum(said.startswith(told) for said in run.notifier.said)
        wait_until(
            lambda: sum(said.startswith(told) for said in run.notifier.said) >= max(before, 1),
            "the status",
        )
        wait_until(lambda: not run.wake._is_set, "the turn")

    for state in ("idle", "connected", "idle", "connected"):
        say(state)
    path.parent.mkdir()
    run.worker("a").say("stuck")
    wait_until(lambda: path.exists() and "stuck" in path.read_text(), "the file")
    wait_until(lambda: "maildirqmtp_stuck{" in path.read_text(), "all of it")
    path.unlink()
    path.parent.rmdir()
    run.worker("a").say("idle")
    assert run.stop() == 0
    assert capsys.readouterr().err.count("mail.prom: No such file") == 2


def answers(port: int) -> bool:
    """Say whether anybody listens on a port."""
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


def test_hup_moves_the_metrics(run: Run) -> None:
    """From one port to another, and away; unchanged, they stay."""
    first, second = closed_port(), closed_port()
    run.start(config(route("a"), metrics_listen=("127.0.0.1", first)))
    assert answers(first)
    servers = dict(run.service._pages._running)
    run.hup(config(route("a"), route("b"), metrics_listen=("127.0.0.1", first)))
    wait_until(lambda: len(run.at_work) == 2, "the second route")
    assert run.service._pages._running == servers
    run.hup(config(route("a"), metrics_listen=("127.0.0.1", second)))
    wait_until(lambda: answers(second), "the second port")
    assert not answers(first)
    run.hup(config(route("a")))
    wait_until(lambda: not answers(second), "the end")
    assert run.stop() == 0


def test_a_port_that_is_taken_leaves_the_old_one(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    """A configuration that is refused is refused as a whole."""
    port = closed_port()
    run.start(config(route("a"), metrics_listen=("127.0.0.1", port)))
    run.worker("a").say("idle")
    wait_until(lambda: run.notifier.count("READY=1") == 1, "READY")
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        run.hup(config(route("b"), metrics_listen=("127.0.0.1", taken)))
        wait_until(lambda: run.notifier.count("READY=1") == 2, "READY")
    assert answers(port)
    assert run.worker("a").stops == 0
    assert run.stop() == 0
    assert "going on as before" in capsys.readouterr().err
    assert not answers(port)


def test_metrics_and_health_may_change_places(run: Run) -> None:
    """Both addresses are given up before either is taken."""
    first, second = ("127.0.0.1", closed_port()), ("127.0.0.1", closed_port())
    run.start(config(route("a"), metrics_listen=first, health_listen=second))
    assert probe(second[1], "/livez") == (200, "ok\n")
    run.hup(config(route("a"), metrics_listen=second, health_listen=first))
    wait_until(lambda: probe(first[1], "/livez")[0] == 200, "the new place")
    wait_until(lambda: probe(second[1], "/livez")[0] == 404, "the metrics' new place")
    assert run.stop() == 0


# Health


def test_one_route_that_hangs_is_named_by_livez(run: Run) -> None:
    """The others are well, and nobody would notice that mail of this one waits for ever."""
    port = closed_port()
    run.start(config(route("a"), route("b", prefix=b"p-"), health_listen=("0.0.0.0", port)))
    assert probe(port, "/livez") == (200, "ok\n")
    run.worker("b").watchdog_deadline = boot_clock() - 1.0
    assert probe(port, "/livez") == (503, "/nowhere/b p-: does not turn\n")
    run.worker("b").watchdog_deadline = boot_clock() + 3_600.0
    assert probe(port, "/livez") == (200, "ok\n")
    assert run.stop() == 0


def test_readyz_waits_for_each_maildir(run: Run) -> None:
    """One that is not mounted yet, or not any more; a server that is away is no reason."""
    port = closed_port()
    run.start(config(route("a"), route("b"), health_listen=("127.0.0.1", port)))
    run.worker("a").say("backing off")
    starting = (503, "/nowhere/b: starting\n")
    wait_until(lambda: probe(port, "/readyz") == starting, "the second to be known")
    run.worker("b").say("idle")
    assert probe(port, "/readyz") == (200, "ok\n")
    run.worker("b").say("no maildir")
    assert probe(port, "/readyz") == (503, "/nowhere/b: no maildir\n")
    assert probe(port, "/livez")[0] == 200, "a restart brings no maildir"
    run.worker("a").slow = True
    run.signal(signal.SIGTERM)
    wait_until(lambda: run.worker("a").stops == 1, "TERM")
    assert probe(port, "/readyz") == (503, "stopping\n")
    assert probe(port, "/livez")[0] == 200
    run.worker("a").end()
    assert run.ended() == 0


def test_a_route_without_a_thread_is_not_ready(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its mail waits, though no thread of it hangs."""
    port = closed_port()
    run.start(config(route("a"), health_listen=("127.0.0.1", port)))
    run.worker("a").say("idle")

    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        run.hup(config(route("a"), route("b"), health_listen=("127.0.0.1", port)))
        wait_until(lambda: run.service._again_at is not None, "what it says of threads")
    assert probe(port, "/readyz") == (503, "/nowhere/b: not started\n")
    assert run.stop() == 0


def test_metrics_stand_beside_the_health(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without the extra, the probes still work, and the page says what to install."""
    port, other = closed_port(), closed_port()
    run.start(config(route("a"), health_listen=("127.0.0.1", port)))
    status, body = probe(port, "/metrics")
    assert status == 200
    assert "maildirqmtp_queue_messages{" in body
    assert probe(port, "/")[0] == 404
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    run.hup(config(route("a"), health_listen=("127.0.0.1", other)))
    wait_until(lambda: answers(other), "the other port")
    assert probe(other, "/livez")[0] == 200
    status, body = probe(other, "/metrics")
    assert status == 404
    assert "pip install 'maildirqmtp[metrics]'" in body
    assert run.stop() == 0


def test_hup_changes_the_format_of_the_log(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    """Of routes that go on as well, and back; each line says of which route it is."""
    run.start(config(route("a"), route("b", prefix=b"p-")))
    run.hup(config(route("a"), route("b", prefix=b"p-"), log_format="json"))
    wait_until(lambda: "read again" in capsys.readouterr().err, "the file")
    run.worker("a").report.note("hello")
    run.worker("b").report.problem('quote " and\nline')
    run.service._report.note("bye")
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [(one["route"], one["level"], one["event"], one["text"]) for one in lines] == [
        ("/nowhere/a", "info", "note", "hello"),
        ("/nowhere/b p-", "error", "trouble", 'quote " and?line'),
        ("", "info", "note", "bye"),
    ]
    run.hup(config(route("a"), route("b", prefix=b"p-")))
    wait_until(lambda: " maildirqmtp: the configuration" in capsys.readouterr().err, "the file")
    run.worker("b").report.note("hello")
    assert capsys.readouterr().err.endswith("Z maildirqmtp: /nowhere/b p-: hello\n")
    assert run.stop() == 0


# With real signals


def test_the_process_as_a_whole(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Signals reach the service while it waits; all is as it was before when it returns."""
    before = {number: signal.getsignal(number) for number in supervisor_module._SIGNALS}

    def drive() -> None:
        wait_until(lambda: len(run.at_work) == 1, "the route")
        (worker,) = run.at_work
        os.kill(os.getpid(), signal.SIGALRM)
        wait_until(lambda: worker.alls == 1, "ALRM")
        os.kill(os.getpid(), signal.SIGHUP)
        wait_until(lambda: len(FakeWorker.made) == 2, "HUP")
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=drive)
    thread.start()
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    run.code = supervisor_module.run(config(route("a")), lambda: config(route("b")))
    thread.join()
    assert run.code == 0
    assert {number: signal.getsignal(number) for number in supervisor_module._SIGNALS} == before
    assert signal.set_wakeup_fd(-1) == -1
    assert "stopping; what is in flight is finished first" in capsys.readouterr().err
