"""Several servers: the next one where one is of no use, back to the preferred one, and doubts.

Servers in memory, as in `test_forwarder`; the time they take is the clock's.
"""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from maildirqmtp.errors import ConnectError, ConnectTimeout
from maildirqmtp.forwarder.forwarder import MORE_TIMEOUT_S, Forwarder
from maildirqmtp.forwarder.recovery import MAX_WITHOUT_PROGRESS
from maildirqmtp.forwarder.route import Route
from maildirqmtp.forwarder.servers import AGAIN_TIMEOUT_S, USELESS_S
from maildirqmtp.maildir.maildir import Maildir
from maildirqmtp.maildir.state import State
from maildirqmtp.transport.addresses import Address
from maildirqmtp.transport.endpoint import CommandEndpoint, Endpoint, TcpEndpoint
from tests.fakes import FakeScript, FakeServer, accept
from tests.forwarder.test_forwarder import NOW, Run
from tests.helpers import Package

HOUR_S = 3_600.0
A, B, C = (TcpEndpoint(f"{name}.example.org") for name in "abc")
REFUSED = ConnectError(errno.ECONNREFUSED, "cannot connect: refused")


def say_nothing(server: FakeServer, package: Package) -> None:
    """Never answer, whatever comes."""


def hang_up(server: FakeServer, package: Package) -> None:
    """Close instead of answering."""
    server.hang_up()


def talk_nonsense(server: FakeServer, package: Package) -> None:
    """Answer as another protocol's server does."""
    server.say(b"220 a.example.org ESMTP\r\n")


def never_was(server: FakeServer, package: Package) -> None:
    """Turn out never to have been reached, as ssh does that cannot connect."""
    server.bytes_unread = 1 << 30
    server.say(ConnectError("ssh: exit status 255"))


#: What a server does that is found out to be of no use, and when.
USELESS: dict[str, FakeScript | Exception] = {
    "when connecting": REFUSED,
    "when first read from": never_was,
    "it hangs up": hang_up,
    "it answers nothing": say_nothing,
    "it violates the protocol": talk_nonsense,
}


def answers(count: int, then: FakeScript) -> FakeScript:
    """Make a server that accepts so many packages on each connection, and is of no use then."""

    def script(server: FakeServer, package: Package) -> None:
        if len(server.received) <= count:
            accept(server, package)
        else:
            then(server, package)

    return script


class ListRun(Run):
    """A run with a list of servers, each of which does what `does` says of it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
        super().__init__(monkeypatch, path)
        self.options: dict[str, object] = {"server": A, "fallback_servers": (B,)}
        self.does: dict[Endpoint, FakeScript | Exception] = {A: accept, B: accept, C: accept}
        self.tried: list[Endpoint] = []
        self.timeouts: list[float] = []
        self.by_server: dict[Endpoint, list[FakeServer]] = {}
        self.addresses = 1

    def connect(self, server: Endpoint, timeout_s: float) -> FakeServer:
        """Reach this server."""
        self.tried.append(server)
        self.timeouts.append(timeout_s)
        assert len(self.tried) < 200, "it never stops"
        self.before()
        script = self.does[server]
        if isinstance(script, Exception):
            raise script
        made = FakeServer(script)
        made.name = str(server)
        made.addresses = self.addresses
        made.address = Address(0, (len(self.tried) % self.addresses,))
        self.servers.append(made)
        self.by_server.setdefault(server, []).append(made)
        return made

    def go(self, **options: object) -> None:
        """Run a batch, as `flush` does."""
        route = Route(os.fsencode(self.path), **(self.options | options))  # type: ignore[arg-type]
        with Maildir(os.fsencode(self.path)) as maildir:
            forwarder = self.forwarder = Forwarder(
                route, maildir, self.report, self.connect, self.clock, self.wall
            )
            try:
                forwarder.run_batch(maildir.scan())
            finally:
                forwarder.close()
        assert all(server.closed for server in self.servers)

    def wall(self) -> float:
        """Return seconds of the epoch."""
        return NOW + self.clock() - 1_000.0

    def got(self, server: Endpoint) -> list[bytes]:
        """Return the recipients of the packages that a server has had whole, in order."""
        made = self.by_server.get(server, [])
        return [p.recipients[0] for one in made for p in one.received]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ListRun:
    """An empty maildir and servers that accept."""
    return ListRun(monkeypatch, tmp_path / "Maildir")


# Fail over


def test_the_preferred_server_gets_everything(run: ListRun) -> None:
    """The others are for when it cannot be had; they may cost, or be slow."""
    run.add(20)
    run.go()
    assert run.tried == [A]
    assert run.new == []


@pytest.mark.parametrize("how", USELESS)
def test_the_next_one_gets_the_mail_of_one_that_is_of_no_use(run: ListRun, how: str) -> None:
    """Found out when connecting or as late as it can be; the second server is not down."""
    run.add(20)
    run.does[A] = USELESS[how]
    run.go(in_doubt_wait_s=0.0)
    assert run.tried == [A, B]
    assert sorted(run.got(B)) == sorted(b"r%d@y" % n for n in range(1, 21))
    assert run.new == []
    assert run.report.counters.deferred == run.report.counters.problems == 0
    assert run.code == 0


@pytest.mark.parametrize("how", USELESS)
def test_the_only_message_goes_to_the_next_server_too(run: ListRun, how: str) -> None:
    """It would be set aside as the one that a server hangs up on, and never reach the other."""
    run.add(1)
    run.does[A] = USELESS[how]
    run.go(in_doubt_wait_s=0.0)
    assert run.tried == [A, B]
    assert (run.new, run.code) == ([], 0)


@pytest.mark.parametrize("how", ["it hangs up", "it answers nothing", "it violates the protocol"])
def test_a_server_that_has_answered_and_is_of_no_use_from_then_on(run: ListRun, how: str) -> None:
    """It answered five, and nothing on the connections after that: the others go to the next."""
    run.add(100)
    script = USELESS[how]
    assert not isinstance(script, Exception)

    def wear_out(server: FakeServer, package: Package) -> None:
        if len(run.got(A)) <= 5:
            accept(server, package)
        else:
            script(server, package)

    run.does[A] = wear_out
    run.go(in_doubt_wait_s=0.0)
    assert set(run.tried) == {A, B}
    assert run.tried[-1] == B
    assert run.new == []
    assert len(run.tried) <= 6


def test_each_of_a_list_has_its_turn(run: ListRun) -> None:
    """Two are down, in two ways."""
    run.add(3)
    run.does |= {A: REFUSED, B: never_was}
    run.go(fallback_servers=(B, C))
    assert run.tried == [A, B, C]
    assert run.new == []


def test_where_all_have_failed_a_batch_ends_with_all_reasons(run: ListRun) -> None:
    """And with 111; nothing has happened to any message."""
    run.add(3)
    run.does |= {A: REFUSED, B: ConnectTimeout("cannot connect to b: no answer")}
    run.go()
    assert run.tried == [A, B]
    assert len(run.new) == 3
    assert run.code == 111
    (why,) = [str(e["reason"]) for e in run.events if e["event"] == "trouble"]
    assert "cannot connect: refused; cannot connect to b: no answer; nothing has happened" in why
    assert "(3 left)" in why


def test_the_last_one_has_the_patience_that_a_single_server_has(run: ListRun) -> None:
    """A server that hangs up once is tried again where there is no other."""
    run.add(5)
    run.does |= {A: REFUSED, B: hang_up}
    run.go(in_doubt_wait_s=0.0, window_messages=1)
    assert run.tried == [A] + [B] * MAX_WITHOUT_PROGRESS
    assert run.code == 111


def test_poison_at_a_good_server_is_set_aside_there(run: ListRun) -> None:
    """One message that the first server dies of must not drive all mail to the second for good.

    What was in flight with it is tried at the first one again.
    """
    run.add(60)

    def dislikes_one(server: FakeServer, package: Package) -> None:
        if package.recipients == (b"r30@y",):
            server.hang_up()
        elif not any(one.recipients == (b"r30@y",) for one in server.received):
            accept(server, package)

    run.does[A] = dislikes_one
    run.go()
    assert set(run.tried) == {A}
    assert run.new == ["30.a"]
    assert run.report.counters.deferred == 1


def test_a_server_that_answers_z_is_of_use(run: ListRun) -> None:
    """Greylisting is an answer: the message is that server's to be tried again at."""
    run.add(2)
    run.does[A] = lambda server, package: server.respond(b"Zgreylisted")
    run.go()
    assert run.tried == [A]
    assert run.report.counters.deferred == 2


@pytest.mark.parametrize("count", [1, 20])
def test_another_address_of_the_preferred_server_comes_first(run: ListRun, count: int) -> None:
    """Of its two load balancers one hangs up; that is no reason to go to another server."""
    run.add(count)
    run.addresses = 2
    run.does[A] = lambda server, package: (
        hang_up(server, package) if run.tried.count(A) == 1 else accept(server, package)
    )
    run.go()
    assert run.tried == [A, A]
    assert run.new == []


@pytest.mark.parametrize("count", [1, 20])
def test_after_all_addresses_of_one_server_comes_the_next(run: ListRun, count: int) -> None:
    """Each of three hangs up once; the message that they had is not the one to blame."""
    run.add(count)
    run.addresses = 3
    run.does[A] = hang_up
    run.go(in_doubt_wait_s=0.0)
    assert run.tried == [A, A, A, B]
    assert run.new == []
    assert run.report.counters.deferred == 0


def test_fail_over_is_told(run: ListRun) -> None:
    """At the usual verbosity: why, and which server is next."""
    run.report.set_output(0, run.data)
    run.add(1)
    run.does[A] = REFUSED
    run.go()
    assert "cannot connect: refused; going on with b.example.org:209" in run.log.getvalue()


@pytest.mark.parametrize("at", [A, B])
def test_being_told_to_stop_while_connecting_ends_it(run: ListRun, at: Endpoint) -> None:
    """The next server would be another minute, and TERM has no more than 25 s."""
    run.add(1)
    run.does |= {A: REFUSED, B: REFUSED}

    def stop() -> None:
        if run.tried[-1] == at:
            run.forwarder.interrupt()

    run.before = stop
    run.go()
    assert run.tried[-1] == at
    assert "told to stop while connecting" in run.forwarder.stop_reason
    assert run.code == 111


def test_each_server_has_its_time_before_the_watchdog_bites(run: ListRun) -> None:
    """Ten addresses of ten servers may take a minute each; the supervisor must not think it hangs.

    Also where a server before it has used up the time of one.
    """
    run.add(1)
    run.does |= {A: ConnectTimeout("no answer"), B: ConnectTimeout("no answer")}

    def slow() -> None:
        run.clock.advance(500.0)
        assert run.clock() <= run.forwarder.watchdog_deadline

    run.before = slow
    run.go()
    assert run.tried == [A, B]


# What is known of each


def test_what_one_server_has_shown_is_not_taken_for_the_other(run: ListRun) -> None:
    """The first answers once per package; the second gets each message to three in one package.

    And the other way round would delete mail: a proven server is no proof for the next one.
    """
    known = {"servers": {str(A): {"one_recipient": NOW, "proven": NOW}}, "version": 1}
    (run.path / ".maildirqmtp-state.json").write_text(json.dumps(known))
    run.add_shared("1.a", "a@y", "b@y", "c@y")
    run.does[A] = REFUSED
    run.go()
    assert [p.recipients for p in run.by_server[B][0].received] == [(b"a@y", b"b@y", b"c@y")]


def test_the_next_server_has_a_fence_of_its_own(run: ListRun) -> None:
    """The first is proven; from the second only one package is in flight until it has answered."""
    known = {"servers": {str(A): {"proven": NOW}}, "version": 1}
    (run.path / ".maildirqmtp-state.json").write_text(json.dumps(known))
    run.add(10)
    in_flight: list[int] = []

    def counts(server: FakeServer, package: Package) -> None:
        run.clock.at(run.clock() + 1.0, lambda: accept(server, package))
        in_flight.append(len(server.received))

    run.does |= {A: REFUSED, B: counts}
    run.go()
    assert run.new == []
    assert run.forwarder.servers.current.endpoint == B
    with Maildir(os.fsencode(run.path)) as maildir:
        state = State(maildir.root, run.clock, run.wall)
        assert state.has_shown(str(A), "proven")
        assert state.has_shown(str(B), "proven")


def test_a_window_that_one_server_has_narrowed_is_its_own(run: ListRun) -> None:
    """The next server is not to be slow because of it."""
    run.add(200)
    run.does[A] = answers(100, hang_up)

    def once_only() -> None:
        if run.tried.count(A) > 1:
            run.does[A] = REFUSED

    run.before = once_only
    run.go(in_doubt_wait_s=0.0)
    assert run.new == []
    windows = [server.pool.windows[0].size for server in run.forwarder.servers._servers]
    assert windows[0] < windows[1]


def test_more_connections_go_to_the_same_server(run: ListRun) -> None:
    """A second one to another server would be fail-over without a reason."""
    run.add(300)
    run.does[A] = REFUSED

    def slow(server: FakeServer, package: Package) -> None:
        run.clock.at(run.clock() + 0.1, lambda: accept(server, package))

    run.does[B] = slow
    run.go(connections=3, window_messages=30)
    assert run.tried == [A, B, B, B]
    assert run.timeouts[2:] == [MORE_TIMEOUT_S] * 2
    assert run.new == []


# Come back: see also `tests/daemon/test_worker_servers.py`


def test_a_new_connection_begins_with_the_one_that_is_of_use(run: ListRun) -> None:
    """Not with the preferred one each time: its time-out would be paid at each reconnect."""
    run.add(30)
    run.does |= {A: REFUSED, B: answers(10, hang_up)}
    run.go(in_doubt_wait_s=0.0)
    assert run.tried == [A, B, B, B]


def test_after_five_minutes_a_new_connection_begins_with_the_preferred_one(run: ListRun) -> None:
    """It is up again, and nobody would have noticed."""
    run.add(30)

    def slow(server: FakeServer, package: Package) -> None:
        if len(run.got(B)) == 10:
            run.does[A] = accept
            run.clock.at(run.clock() + USELESS_S, server.hang_up)
        else:
            accept(server, package)

    run.does |= {A: REFUSED, B: slow}
    run.go(in_doubt_wait_s=0.0)
    assert run.tried == [A, B, A]
    # A router that drops packets must not hold everything up for a minute, again and again.
    assert run.timeouts == [60.0, 60.0, AGAIN_TIMEOUT_S]
    assert run.new == []


# In doubt


def leave_in_doubt(run: ListRun, count: int = 3) -> None:
    """Have the first server take one of some messages and hang up; then it is gone."""
    run.add(count)
    run.options["window_messages"] = 1

    def last(server: FakeServer, package: Package) -> None:
        run.does[A] = REFUSED
        server.hang_up()

    run.does[A] = last


def test_what_is_in_doubt_at_one_server_does_not_go_to_another(run: ListRun) -> None:
    """It would come twice; the run goes on with the others, and says what is left."""
    leave_in_doubt(run)
    run.go()
    assert run.got(A) == [b"r1@y"]
    assert run.got(B) == [b"r2@y", b"r3@y"]
    assert run.new == ["1.a"]


def test_in_doubt_waits_in_the_next_runs_too(run: ListRun) -> None:
    """cron's next run comes in a minute; five minutes later it goes to any server."""
    leave_in_doubt(run)
    run.go()
    run.does[A] = REFUSED
    run.clock.advance(60.0)
    run.go()
    assert run.new == ["1.a"]
    assert run.got(B) == [b"r2@y", b"r3@y"]
    run.clock.advance(300.0)
    run.go()
    assert run.got(B) == [b"r2@y", b"r3@y", b"r1@y"]
    assert run.new == []


def test_in_doubt_goes_to_the_server_that_may_have_it(run: ListRun) -> None:
    """That one may know that it has it (`--once`); it is the second of the list here."""
    run.add(1)
    run.does[A] = REFUSED
    run.does[B] = hang_up
    run.go()
    assert run.new == ["1.a"]
    run.add(1, first=2)
    run.does |= {A: accept, B: accept}
    run.go()
    assert run.got(A) == [b"r2@y"]
    assert run.got(B)[-1] == b"r1@y"
    assert run.new == []


def test_a_message_waits_once_for_a_server(run: ListRun) -> None:
    """One that takes each connection and answers nothing would have it for ever."""
    run.add(1)
    run.does[A] = hang_up
    run.go()
    assert run.new == ["1.a"]
    run.clock.advance(301.0)
    run.go()
    assert run.tried == [A, A, B]
    assert run.got(B) == [b"r1@y"]
    assert run.new == []


def test_after_an_answer_a_new_doubt_waits_anew(run: ListRun) -> None:
    """Deferred by the server that may have had it: what breaks later is another attempt."""
    run.add(1)
    run.does[A] = hang_up
    run.go()
    run.does[A] = lambda server, package: server.respond(b"Zgreylisted")
    run.clock.advance(60.0)
    run.go()
    run.clock.advance(301.0)
    run.does[A] = hang_up
    run.go()
    assert run.got(A) == [b"r1@y"] * 3
    assert run.got(B) == []
    assert run.new == ["1.a"]
    run.clock.advance(301.0)
    run.does[A] = REFUSED
    run.go()
    assert run.got(B) == [b"r1@y"]


def test_a_doubt_is_forgotten_with_its_message(run: ListRun) -> None:
    """The state file would grow with each restart of a server."""
    leave_in_doubt(run)
    run.go()
    state = run.path / ".maildirqmtp-state.json"
    assert json.loads(state.read_text())["in_doubt"] == {"1.a": {str(A): NOW}}
    run.does[A] = accept
    run.go()
    assert run.new == []
    assert "in_doubt" not in json.loads(state.read_text())


def test_a_server_that_is_no_longer_in_the_list_is_not_waited_for(run: ListRun) -> None:
    """An administrator who has taken it out wants the mail to go."""
    leave_in_doubt(run)
    run.go()
    run.go(server=C, fallback_servers=(B,))
    assert run.new == []
    assert run.got(C) == [b"r1@y"]


def test_with_one_server_nothing_waits(run: ListRun) -> None:
    """There is no other that it could go to: as before, it is sent again at once."""
    run.add(1)
    run.does[A] = lambda server, package: (
        accept(server, package) if run.tried.count(A) > 1 else server.hang_up()
    )
    run.go(fallback_servers=())
    assert run.tried == [A, A]
    assert run.new == []


def test_a_clock_that_was_set_back_does_not_make_it_wait_for_ever(run: ListRun) -> None:
    """The state file says that it was in doubt in ten years from now."""
    doubt = {"version": 1, "in_doubt": {"1.a": {str(A): NOW + 10 * 365 * 86_400.0}}}
    (run.path / ".maildirqmtp-state.json").write_text(json.dumps(doubt))
    run.add(1)
    run.does[A] = REFUSED
    run.go()
    assert run.new == []


def test_after_all_the_next_server_is_tried_where_one_was_given_up_before(run: ListRun) -> None:
    """It said "going on with b", and ended; several connections had been of no use before."""
    run.add(1)
    run.go(connections=2)
    run.add(40, first=2)
    run.by_server.clear()

    def script(server: FakeServer, package: Package) -> None:
        if server is not run.by_server[A][0]:
            server.hang_up()
        elif len(server.received) == 1:
            server.bytes_unread = 1 << 30
            over = ConnectError("ssh: exit status 255")
            run.clock.at(run.clock() + 900, lambda: server.say(over))

    run.does[A] = script
    run.go(connections=2, window_messages=2)
    assert "going on with b.example.org:209" in run.log.getvalue()
    assert len(run.got(B)) > 20


def test_what_a_command_has_not_read_is_not_in_doubt(run: ListRun) -> None:
    """ssh cannot reach its host: all goes to the other server at once."""
    run.add(3)
    run.does = {CommandEndpoint(("ssh", "mx")): never_was, B: accept}
    run.go(server=CommandEndpoint(("ssh", "mx")))
    assert run.new == []
    assert run.report.counters.in_doubt == 0
