"""A route with several servers in watch mode: fail over, come back, doubts, back-off, metrics."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from maildirqmtp.daemon import metrics
from maildirqmtp.errors import ConnectError
from maildirqmtp.forwarder.servers import AGAIN_TIMEOUT_S, USELESS_S
from maildirqmtp.transport.endpoint import Endpoint, TcpEndpoint
from tests.daemon.test_worker import Run
from tests.fakes import FakeScript, FakeServer, accept
from tests.helpers import Package

A, B = TcpEndpoint("a.example.org"), TcpEndpoint("b.example.org")
NAMES: dict[Endpoint, str] = {A: "A", B: "B"}
REFUSED = ConnectError(errno.ECONNREFUSED, "cannot connect: refused")
#: Seconds of the answer of a server that takes so long that it is found out to be of no use.
SILENT_S = 10.0


def say_nothing(server: FakeServer, package: Package) -> None:
    """Never answer, whatever comes."""


def hang_up(server: FakeServer, package: Package) -> None:
    """Close instead of answering."""
    server.hang_up()


class ListRun(Run):
    """A daemon with two servers; `does` says what each does, `tried` where it connected."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
        super().__init__(monkeypatch, path)
        self.does: dict[Endpoint, FakeScript | Exception] = {A: accept, B: accept}
        self.tried: list[tuple[float, str]] = []
        self.timeouts: list[float] = []
        self.at_server: list[tuple[float, str, bytes]] = []

    def connect(self, server: Endpoint, timeout_s: float) -> FakeServer:
        """Reach this server."""
        self.tried.append((self.clock.now - 1_000.0, NAMES[server]))
        self.timeouts.append(timeout_s)
        assert len(self.tried) < 500, "it never stops"
        script = self.does[server]
        if isinstance(script, Exception):
            raise script

        def on_package(fake: FakeServer, package: Package) -> None:
            self.at_server.append((self.clock.now - 1_000.0, NAMES[server], package.recipients[0]))
            script(fake, package)

        made = FakeServer(on_package)
        made.name = str(server)
        self.servers.append(made)
        return made

    def go(self, until: float, **options: object) -> None:
        """Run the daemon with both servers, and stop it after so many seconds."""
        both = {"fallback_servers": (B,), "server": A, "response_timeout_s": SILENT_S}
        super().go(until, **(both | options))

    def set(self, seconds: float, server: Endpoint, does: FakeScript | Exception) -> None:
        """Plan what a server does from so many seconds after the start on."""
        self.at(seconds, lambda: self.does.update({server: does}))

    def come_at(self, seconds: float, number: int) -> None:
        """Plan for a message to come."""
        self.at(seconds, lambda: self.come(number))

    def had(self, server: str) -> list[bytes]:
        """Return what a server has had."""
        return [who for _, where, who in self.at_server if where == server]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ListRun:
    """An empty maildir and servers that accept."""
    return ListRun(monkeypatch, tmp_path / "Maildir")


# Fail over, and back


def test_while_the_first_is_down_the_second_has_the_mail_at_once(run: ListRun) -> None:
    """Back-off would hold it for minutes, though a server is there."""
    run.does[A] = REFUSED
    for number in (1, 2, 3):
        run.come_at(number * 100.0, number)
    run.go(350.0)
    assert run.had("B") == [b"r1@y", b"r2@y", b"r3@y"]
    assert [at for at, _, _ in run.at_server] == [100.0, 200.0, 300.0]
    # Within 5 minutes the first one is not tried again: each time that could take a minute.
    assert run.tried == [(100.0, "A"), (100.0, "B"), (200.0, "B"), (300.0, "B")]
    assert run.said("next try in") == 0
    assert "backing off" not in run.states


def test_after_five_minutes_it_comes_back(run: ListRun) -> None:
    """With a new connection; the one to the second server has been idle for a minute."""
    run.does[A] = REFUSED
    run.come_at(10.0, 1)
    run.set(20.0, A, accept)
    run.come_at(10.0 + USELESS_S - 1.0, 2)
    run.come_at(10.0 + USELESS_S + 100.0, 3)
    run.go(600.0)
    assert run.had("B") == [b"r1@y", b"r2@y"]
    assert run.had("A") == [b"r3@y"]
    assert run.timeouts[-1] == AGAIN_TIMEOUT_S


def test_the_first_that_is_still_down_costs_nothing_but_the_try(run: ListRun) -> None:
    """Every five minutes, and the mail goes to the second at once."""
    run.does[A] = REFUSED
    for number in range(1, 20):
        run.come_at(number * 100.0, number)
    run.go(2_000.0)
    assert [at for at, _, _ in run.at_server] == [number * 100.0 for number in range(1, 20)]
    tries = [at for at, where in run.tried if where == "A"]
    assert tries == [100.0, 400.0, 700.0, 1_000.0, 1_300.0, 1_600.0, 1_900.0]


def test_only_when_all_have_failed_it_backs_off(run: ListRun) -> None:
    """And begins with the one that was not tried for longer, when it tries again."""
    run.does |= {A: REFUSED, B: REFUSED}
    run.come_at(10.0, 1)
    run.set(40.0, B, accept)
    run.go(120.0)
    assert run.had("B") == [b"r1@y"]
    assert run.said("next try in") == len([at for at, where in run.tried if where == "A"]) - 1
    assert run.tried[:4] == [(10.0, "A"), (10.0, "B"), (11.0, "A"), (11.0, "B")]
    assert run.said("cannot connect: refused; cannot connect: refused; nothing has happened") > 0


def test_alarm_begins_with_the_preferred_one(run: ListRun) -> None:
    """An if-up hook sends it: what was of no use was so because the link was down."""
    run.does[A] = REFUSED
    run.come_at(10.0, 1)
    run.set(100.0, A, accept)
    run.at(101.0, lambda: run.worker.try_all())
    run.come_at(102.0, 2)
    run.go(150.0)
    assert run.had("A") == [b"r2@y"]


@pytest.mark.parametrize("bad", [hang_up, say_nothing])
def test_a_server_that_is_of_no_use_later_than_when_connecting(
    run: ListRun, bad: FakeScript
) -> None:
    """One message at a time, as on a quiet day: each would be set aside as the one to blame."""
    run.does[A] = bad
    for number in range(1, 6):
        run.come_at(number * 30.0, number)
    run.go(500.0, in_doubt_wait_s=0.0)
    assert run.had("B") == [b"r1@y", b"r2@y", b"r3@y", b"r4@y", b"r5@y"]
    assert run.had("A") == [b"r1@y"]
    assert run.report.counters.deferred == 0
    assert run.new == []


def test_a_server_that_goes_bad_after_a_day(run: ListRun) -> None:
    """It has answered thousands before; it is given up after two connections all the same."""
    run.come_at(10.0, 1)
    run.set(20.0, A, hang_up)
    for number in (2, 3, 4):
        run.come_at(number * 100.0, number)
    run.go(500.0, in_doubt_wait_s=0.0)
    assert run.had("A")[0] == b"r1@y"
    assert run.had("A")[1:] == [b"r2@y"] * 2
    assert run.had("B") == [b"r2@y", b"r3@y", b"r4@y"]


def test_told_to_stop_while_the_first_is_connected_to(run: ListRun) -> None:
    """The second is not tried any more."""
    run.does[A] = REFUSED
    run.come_at(10.0, 1)
    run.before = lambda: None

    real = run.connect

    def connect(server: Endpoint, timeout_s: float) -> FakeServer:
        run.worker.stop()
        return real(server, timeout_s)

    run.connect = connect  # type: ignore[method-assign]
    run.go(100.0)
    assert run.tried == [(10.0, "A")]
    assert len(run.new) == 1


# In doubt


def doubt(run: ListRun) -> None:
    """Have the first server take a message and vanish, and two more come."""

    def last(server: FakeServer, package: Package) -> None:
        run.does[A] = REFUSED
        server.hang_up()

    run.does[A] = last
    run.come_at(10.0, 1)
    run.come_at(11.0, 2)
    run.come_at(50.0, 3)


def test_in_doubt_waits_while_the_others_go(run: ListRun) -> None:
    """Five minutes later it goes to the second server."""
    doubt(run)
    run.go(600.0)
    assert [(at, who) for at, where, who in run.at_server if where == "B"] == [
        (11.0, b"r2@y"),
        (50.0, b"r3@y"),
        (310.0, b"r1@y"),
    ]
    assert run.new == []
    assert "backing off" not in run.states


def test_in_doubt_goes_back_to_the_server_that_may_have_it(run: ListRun) -> None:
    """That is restarted within a minute, and may know that it has the message (`--once`)."""
    doubt(run)
    run.set(60.0, A, accept)
    run.go(300.0)
    assert run.had("A") == [b"r1@y", b"r1@y"]
    assert run.had("B") == [b"r2@y", b"r3@y"]
    assert run.new == []


def test_what_waits_is_shown_with_its_reason(run: ListRun) -> None:
    """`--status` would have a message there that nobody tries, and nobody knows why."""
    doubt(run)
    run.go(100.0)
    shown = [w.reason for _, s in run.published for w in s.waiters if w.name.endswith(b".1")]
    assert any("in doubt at a.example.org:209, and waits for it; from 20" in why for why in shown)


def test_a_message_in_doubt_again_does_not_wait_again(run: ListRun) -> None:
    """A server that takes each message and answers nothing would have it to itself for ever."""
    run.does[A] = say_nothing
    run.come_at(10.0, 1)
    run.go(700.0)
    assert run.had("B") == [b"r1@y"]
    assert run.new == []


def test_a_short_wait(run: ListRun) -> None:
    """`--in-doubt-wait 5s`."""
    doubt(run)
    run.go(60.0, in_doubt_wait_s=5.0)
    assert (15.0, "B", b"r1@y") in run.at_server


# What is told


def test_the_one_that_answered_is_named(run: ListRun) -> None:
    """In the status file, and in the metrics: what went over the second server is that one's."""
    run.does[A] = REFUSED
    run.come_at(10.0, 1)
    run.come_at(20.0, 2)
    run.go(100.0)
    (_, snapshot) = run.published[-2]
    assert run.published[0][1].answering == "a.example.org:209"
    assert snapshot.as_dict()["server"] == "b.example.org:209"
    assert snapshot.as_dict()["servers"] == ["a.example.org:209", "b.example.org:209"]
    text = metrics.render(metrics.collect([snapshot]))
    accepted = [line for line in text.splitlines() if line.startswith("maildirqmtp_accepted_")]
    assert [(line.split('server="')[1].split('"')[0], line.split()[-1]) for line in accepted] == [
        ("a.example.org:209", "0.0"),
        ("b.example.org:209", "2.0"),
    ]
    (waiting,) = [line for line in text.splitlines() if line.startswith("maildirqmtp_queue_mess")]
    assert 'server="b.example.org:209"' in waiting


def test_the_slots_are_those_of_the_server_that_mail_goes_to(run: ListRun) -> None:
    """Routes to the second server have to know of each other; the first is left to others."""
    run.does[A] = REFUSED
    run.come_at(10.0, 1)
    held: list[tuple[int, int]] = []

    def look() -> None:
        of = run.worker._servers._servers
        held.append(tuple(sum(r.held for r in of[s].routes) for s in (A, B)))  # type: ignore[arg-type]

    run.at(11.0, look)
    run.go(20.0)
    assert held == [(0, 1)]
