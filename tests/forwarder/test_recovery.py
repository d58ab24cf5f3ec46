"""What a message does to a connection must stop neither the run nor the others.

Servers in memory, as in `test_forwarder`; the time they take is the clock's.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

import pytest

from maildirqmtp.errors import ConnectError
from maildirqmtp.forwarder import recovery
from maildirqmtp.forwarder.forwarder import Forwarder
from maildirqmtp.forwarder.large_messages import LargeMessages
from maildirqmtp.forwarder.recovery import MAX_SET_ASIDE, MAX_WITHOUT_PROGRESS, Recovery
from maildirqmtp.forwarder.route import Route
from maildirqmtp.forwarder.settle import Settler
from maildirqmtp.maildir import state
from maildirqmtp.maildir.maildir import Maildir
from maildirqmtp.transport.addresses import Address
from maildirqmtp.transport.endpoint import CommandEndpoint, Endpoint, TcpEndpoint, UnixEndpoint
from tests.fakes import FakeScript, FakeServer, accept, queued
from tests.forwarder.test_forwarder import NOW, Run
from tests.helpers import Package

HOUR_S = 3_600


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """An empty maildir and a server that accepts."""
    return Run(monkeypatch, tmp_path / "Maildir")


def hang_up(server: FakeServer, package: Package) -> None:
    """Close instead of answering."""
    server.hang_up()


def say_nothing(server: FakeServer, package: Package) -> None:
    """Never answer again, whatever comes."""


def talk_nonsense(server: FakeServer, package: Package) -> None:
    """Answer as a crashing program does."""
    server.say(b"Traceback (most recent call last):\n")


#: What poison makes a server do, and what is then said of the message.
FAULTS = {
    "hangs up": (hang_up, "hung up twice on this message alone"),
    "times out": (say_nothing, "did not answer twice, with this message alone"),
    "nonsense": (talk_nonsense, "answered nonsense twice to this message alone"),
}


def poisoned(fault: FakeScript, *numbers: int) -> FakeScript:
    """Make a server that accepts, but for these messages; it is of no use after one of them."""
    poison = {(b"r%d@y" % number,) for number in numbers}

    def script(server: FakeServer, package: Package) -> None:
        if package.recipients in poison:
            fault(server, package)
        elif not any(one.recipients in poison for one in server.received):
            server.respond(b"Kok")

    return script


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize(
    "places", [(1,), (2,), (57,), (100,), (1, 2), (1, 100), (30, 31), (99, 100), (7, 8, 9, 10)]
)
def test_poison_stops_no_batch(run: Run, fault: str, places: tuple[int, ...]) -> None:
    """Each run stopped there, and what is behind it never went."""
    script, said = FAULTS[fault]
    run.add(100)
    run.scripts = [poisoned(script, *places)]
    run.go()
    assert sorted(run.new) == sorted(f"{number}.a" for number in places)
    deferred = [e for e in run.events if e["event"] == "deferred"]
    assert sorted(str(e["message"]) for e in deferred) == sorted(run.new)
    assert all(said in str(e["text"]) for e in deferred)
    assert run.report.counters.accepted == 100 - len(places)
    # By eighths from 100 down to one, then twice alone, and what was in flight with it once each.
    assert run.reached <= 8 * len(places)
    assert run.code == 111


def test_a_first_message_that_is_poison_costs_the_others_one_double(run: Run) -> None:
    """Then it goes last, and alone: nothing that is in flight with it comes twice."""
    run.add(50)
    run.scripts = [poisoned(say_nothing, 1)]
    run.go()
    assert run.new == ["1.a"]
    assert Counter(run.received.values()) == {2: 49, 4: 1}
    assert run.clock() == 1_000 + 4 * HOUR_S


def test_the_only_message_is_set_aside_the_second_time(run: Run) -> None:
    """To be set aside is a deferral: it has its reason, and the run an end."""
    run.add(1)
    run.scripts = [hang_up]
    run.go()
    assert (run.reached, run.new) == (2, ["1.a"])
    counters = run.report.counters
    assert (counters.deferred, counters.in_doubt, counters.left) == (1, 2, 0)
    assert run.code == 111


def test_a_server_that_dies_after_each_answer_has_nothing_against_the_next(run: Run) -> None:
    """Its end finds another message in flight each time; none of them is the culprit."""
    run.add(30)

    def one_each(server: FakeServer, package: Package) -> None:
        if len(server.received) == 1:
            server.respond(b"Kok")
        else:
            server.hang_up()

    run.scripts = [one_each]
    run.go(window_messages=1)
    assert run.new == []
    assert run.report.counters.deferred == 0


def test_an_answer_clears_a_message_of_suspicion(run: Run) -> None:
    """A server that is restarted with one message in flight says nothing about that message.

    With the next restart, days later in a daemon, its delivery would have to wait for nothing.
    """
    run.add(1)
    run.scripts = [hang_up, lambda server, package: server.respond(b"Zlater")]
    run.go()
    assert run.report.counters.in_doubt == 1
    assert b"1.a" not in run.forwarder.servers.suspects


def test_poison_that_is_all_there_is_left_is_named(run: Run) -> None:
    """With nothing else to try, the server may as well be dead; the names tell a person."""
    run.add(10)
    run.scripts = [poisoned(say_nothing, 8, 9, 10)]
    run.go()
    assert run.new == ["10.a", "8.a", "9.a"]
    why = str(run.events[-1]["reason"])
    assert all(name in why for name in run.new)
    assert "giving up (3 left)" in why
    assert run.code == 111


@pytest.mark.parametrize("fault", ["hangs up", "nonsense"])
def test_a_third_of_all_messages_may_be_poison(run: Run, fault: str) -> None:
    """mailfront's echo crashes over a message without a header: the others still go."""
    run.add(90)
    bad = [number for number in range(1, 91) if number % 9 in (3, 4, 5)]
    run.scripts = [poisoned(FAULTS[fault][0], *bad)]
    run.go()
    assert sorted(run.new) == sorted(f"{number}.a" for number in bad)
    assert run.report.counters.accepted == 60


@pytest.mark.parametrize("addresses", [2, 5])
def test_every_address_has_its_turn_before_a_server_is_given_up(run: Run, addresses: int) -> None:
    """The last of five addresses is the one that works, and no run came that far."""
    reach = run.connect

    def connect(server: Endpoint, timeout_s: float) -> FakeServer:
        made = reach(server, timeout_s)
        # Those that were of no use are tried last, the one longest ago first.
        made.address = Address(0, ((len(run.servers) - 1) % addresses,))
        return made

    run.connect = connect  # type: ignore[method-assign]
    run.add(20)
    run.scripts = [hang_up]
    run.go()
    # The first had them all in flight: fewer is progress.
    assert len(run.servers) == 1 + addresses * (MAX_WITHOUT_PROGRESS - 1) + 1
    run.servers.clear()
    run.scripts = [*[hang_up] * (addresses - 1), accept]
    run.go()
    assert run.new == []


def make_recovery(run: Run) -> Recovery:
    """A recovery by itself, for what needs no connection."""
    large = LargeMessages.__new__(LargeMessages)
    return Recovery(Settler.__new__(Settler), run.report, TcpEndpoint("mail.example.org"), large)


def test_suspicion_is_dropped_with_the_answer(run: Run) -> None:
    """In a daemon it would be held against every later attempt."""
    made, one = make_recovery(run), queued(b"1.a")
    suspects = made.suspects
    assert not suspects
    assert made._count_fault(one) == 1
    assert [*suspects] == [b"1.a"]
    made.answered([b"2.a"])
    assert [*suspects] == [b"1.a"]
    made.answered([b"1.a"])
    assert not suspects
    assert made._count_fault(one) == 1


def test_suspects_do_not_pile_up(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A daemon meets ever new ones, and would remember them until it has no memory left."""
    monkeypatch.setattr(recovery, "_MAX_SUSPECTS", 10)
    made = make_recovery(run)
    for number in range(25):
        made._count_fault(queued(b"%d.a" % number))
        assert len(made._faults) <= 10
    assert b"24.a" in made.suspects


def test_a_server_that_has_died_is_given_up_with_suspects_left(run: Run) -> None:
    """To set a message aside is progress; but not for ever without an answer in between."""
    run.add(60)
    seen: list[tuple[bytes, ...]] = []

    def dies_slowly(server: FakeServer, package: Package) -> None:
        # One message in three is answered at the first try, and none at the second.
        if package.recipients not in seen and len(seen) % 3 == 2:
            server.respond(b"Kok")
        seen.append(package.recipients)
        server.hang_up()

    run.scripts = [dies_slowly]
    run.go(window_messages=1)
    assert run.report.counters.accepted == 20
    assert run.report.counters.deferred == MAX_SET_ASIDE
    assert run.report.counters.left == 40 - MAX_SET_ASIDE
    assert "making no progress" in str(run.events[-1]["reason"])


# A server that has never said anything


def lines(run: Run) -> list[str]:
    """What people read at the usual verbosity."""
    return run.log.getvalue().splitlines()


@pytest.mark.parametrize(
    ("server", "hint"),
    [
        (TcpEndpoint("mail.example.org"), "qmtps://"),
        (TcpEndpoint("mail.example.org", 6209, tls=True), "does it speak QMTP?"),
        (UnixEndpoint("/run/qmtp"), "does it speak QMTP?"),
        (CommandEndpoint(("ssh", "mx", "qmtpmaildir")), "did the command run"),
    ],
)
@pytest.mark.parametrize("script", [hang_up, say_nothing])
def test_a_server_without_a_single_byte_gets_a_hint_and_no_list_of_doubts(
    run: Run, server: Endpoint, hint: str, script: FakeScript
) -> None:
    """Plain QMTP to a TLS port, a command that failed: the doubts said nothing about that."""
    run.report.set_output(0, run.data)
    run.add(5)
    run.scripts = [script]
    run.go(server=server)
    hints = [line for line in lines(run) if "has not sent a single byte" in line]
    assert len(hints) == 1
    assert hint in hints[0]
    assert not any("may have been taken" in line for line in lines(run))
    assert run.report.counters.in_doubt == run.kinds()["in-doubt"] == 5 + 3


def test_a_command_that_never_connected_gets_the_hint_once(run: Run) -> None:
    """The error itself says what ssh said; what it had read is counted."""
    run.report.set_output(0, run.data)
    run.add(5)

    def never_was(server: FakeServer, package: Package) -> None:
        server.say(ConnectError("ssh: exit status 255"))

    run.scripts = [never_was]
    run.go(server=CommandEndpoint(("ssh", "mx", "qmtpmaildir")))
    assert run.reached == 1
    assert sum("has not sent a single byte" in line for line in lines(run)) == 1
    assert not any("may have been taken" in line for line in lines(run))
    assert run.report.counters.in_doubt == 5


def test_ssh_that_fails_twice_is_not_put_on_the_message(run: Run) -> None:
    """It would be deferred, as one that makes the server hang up; and ssh works the next time."""
    run.add(1)

    def never_was(server: FakeServer, package: Package) -> None:
        server.say(ConnectError("ssh: exit status 255"))

    run.scripts = [never_was, never_was, accept]
    route = Route(os.fsencode(run.path), CommandEndpoint(("ssh", "mx")), window_messages=1)
    with Maildir(os.fsencode(run.path)) as maildir:
        forwarder = Forwarder(route, maildir, run.report, run.connect, run.clock, lambda: NOW)
        for _ in range(3):
            forwarder.run_batch(maildir.scan(False))
        forwarder.close()
    assert run.new == []
    assert run.report.counters.deferred == 0


def test_once_a_server_has_said_something_doubts_are_named(run: Run) -> None:
    """Then the connection broke, and each of them may come twice."""
    run.report.set_output(0, run.data)
    run.add(5)
    run.scripts = [poisoned(hang_up, 3), accept]
    run.go()
    assert not any("has not sent a single byte" in line for line in lines(run))
    doubts = sum("may have been taken" in line for line in lines(run))
    assert doubts == run.report.counters.in_doubt > 0


# A server that is said to answer once per package


def once(server: FakeServer, package: Package) -> None:
    """Answer once per package, as mailfront does."""
    server.respond(b"Kok")


def test_a_server_that_is_known_to_answer_once_costs_no_time_and_no_duplicate(run: Run) -> None:
    """Each run lost 10 s, and all recipients but one of a message got two copies."""
    run.add(2)
    run.add_shared("3.a", "a@y", "b@y", "c@y")
    run.scripts = [once]
    run.go(one_recipient=True)
    assert run.new == []
    assert set(run.received) == {(b"r1@y",), (b"r2@y",), (b"a@y",), (b"b@y",), (b"c@y",)}
    assert set(run.received.values()) == {1}
    assert run.clock() == 1_000
    assert run.report.counters.in_doubt == 0
    assert remembered(run) == {}


def remembered(run: Run) -> dict[str, float]:
    """Return the servers that the state file says answer once per package, and since when."""
    path = run.path / os.fsdecode(state.NAME)
    content = json.loads(path.read_text()) if path.exists() else {"servers": {}}
    servers: dict[str, dict[str, float]] = content["servers"]
    return {name: of["one_recipient"] for name, of in servers.items() if "one_recipient" in of}


def test_that_a_server_answers_once_is_remembered(run: Run) -> None:
    """To find it out costs 10 s and duplicates; the next runs know it, for 30 days."""
    run.scripts = [once]
    run.add_shared("1.a", "a@y", "b@y", "c@y")
    run.go()
    assert run.clock() == 1_010
    assert remembered(run) == {"mail.example.org:209": NOW}
    run.add_shared("2.a", "d@y", "e@y", "f@y")
    run.go()
    assert run.clock() == 1_010
    assert run.new == []
    assert all(len(who) == 1 for who in list(run.received)[1:])
    assert run.report.counters.in_doubt == 2


def test_a_connection_that_broke_off_is_nothing_to_remember(run: Run) -> None:
    """For the rest of the run it is taken so, to be safe; not for weeks."""
    run.add_shared("1.a", "a@y", "b@y", "c@y")

    def breaks_off(server: FakeServer, package: Package) -> None:
        once(server, package)
        server.hang_up()

    run.scripts = [breaks_off, accept]
    run.go()
    assert run.new == []
    assert [len(who) for who in run.received] == [3, 1, 1]
    assert remembered(run) == {}


def test_a_message_to_very_many_goes_in_several_packages(run: Run) -> None:
    """At most 1,000 recipients each, and one outcome of the message."""
    os.makedirs(run.path / "envelope")
    run.add_shared("1.a", *[f"r{number}@y" for number in range(2_300)])
    run.go()
    assert run.new == []
    assert [len(package.recipients) for package in run.servers[0].received] == [1_000, 1_000, 300]
    assert run.report.counters.accepted == 2_300


# When to give up


def test_progress_begins_the_count_anew(run: Run) -> None:
    """A server that stalls now and then would be given up, with half of the mail left."""

    def answers_one(server: FakeServer, package: Package) -> None:
        if len(server.received) == 1:
            server.respond(b"Kok")

    run.add(8)
    run.scripts = [*[answers_one, say_nothing, say_nothing] * 3, accept]
    run.go(window_messages=1)
    assert run.report.counters.left == 0
    assert run.report.counters.accepted + run.report.counters.deferred == 8
    assert run.reached == 10


def test_a_command_that_does_not_connect_says_nothing_against_a_message(run: Run) -> None:
    """ssh to a host that is down, twice: the message would wait for its next try, not for ssh."""
    run.add(1)
    run.scripts = [lambda server, package: server.say(ConnectError("ssh: exit status 255"))]
    run.go(server=CommandEndpoint(("ssh", "mx", "qmtpmaildir")))
    assert not run.forwarder.servers.suspects


def test_a_server_that_sets_every_message_aside_is_given_up(run: Run) -> None:
    """Each is progress, but a server that does it to all of them is dead: the rest is for later."""
    reach = run.connect

    def connect(server: Endpoint, timeout_s: float) -> FakeServer:
        made = reach(server, timeout_s)
        made.address = Address(0, (len(run.servers) % 2,))
        return made

    def kills_all_but_the_first(server: FakeServer, package: Package) -> None:
        if package.recipients == (b"r1@y",):
            server.respond(b"Kok")
        else:
            server.hang_up()

    run.connect = connect  # type: ignore[method-assign]
    run.add(1 + MAX_SET_ASIDE + 3)
    run.scripts = [kills_all_but_the_first]
    run.go(window_messages=1)
    assert run.report.counters.deferred == MAX_SET_ASIDE
    assert run.report.counters.left == 3
    assert "is of no use" in str(run.events[-1]["reason"])


def test_what_was_set_aside_is_forgotten_with_the_next_answer(run: Run) -> None:
    """A daemon that had met ten bad messages in a month gave up on a good server with each."""
    bad = MAX_SET_ASIDE - 4
    run.scripts = [poisoned(hang_up, *range(2, 2 + bad), *range(22, 22 + bad))]
    route = Route(os.fsencode(run.path), TcpEndpoint("mail.example.org"), window_messages=1)
    with Maildir(os.fsencode(run.path)) as maildir:
        forwarder = Forwarder(route, maildir, run.report, run.connect, run.clock, lambda: NOW)
        for first in (1, 21):
            run.add(1 + bad, first)
            forwarder.run_batch(maildir.scan(False))
            assert run.new == sorted(f"{first + number}.a" for number in range(1, 1 + bad))
            for name in run.new:
                (run.path / "new" / name).unlink()
        forwarder.close()
    assert run.report.counters.deferred == 2 * bad
    assert run.report.counters.left == 0
    assert "is of no use" not in run.data.getvalue()
