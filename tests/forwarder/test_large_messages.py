"""Large messages: small ones go as if they were absent, and they get their turn all the same."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from maildirqmtp.errors import ConnectError
from maildirqmtp.forwarder.large_messages import ANSWERS_S, TURN_S, Postponed
from maildirqmtp.maildir import state
from tests.fakes import FakeServer, accept
from tests.forwarder.test_forwarder import Run
from tests.helpers import Package, add_message, add_sidecar

LARGE = 300 << 10


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """An empty maildir and a server that accepts."""
    return Run(monkeypatch, tmp_path / "Maildir")


def add_large(run: Run, *numbers: int, size: int = LARGE) -> None:
    """Put large messages N.large with a recipient lN@y into new/."""
    for number in numbers:
        add_message(run.path, f"{number}.large", b"x" * size, b"s@x", b"l%d@y" % number)


def order(run: Run) -> list[list[str]]:
    """Return to whom packages came whole, connection by connection."""
    return [[p.recipients[0].decode() for p in server.received] for server in run.servers]


def cuts_large(server: FakeServer, package: Package) -> None:
    """Accept small messages; say nothing to a large one, and hang up, as a link that is cut."""
    if len(package.text) < LARGE:
        server.respond(b"Kok")
    else:
        server.hang_up()


def remembered(run: Run) -> dict[str, dict[str, float]]:
    """Return what the state file says of messages that broke a connection."""
    found = json.loads((run.path / os.fsdecode(state.NAME)).read_text())["broken"]
    assert isinstance(found, dict)
    return found


def test_small_messages_go_before_a_large_one_in_front_of_them(run: Run) -> None:
    """On a thin link they waited minutes for it, in every run."""
    add_large(run, 1, 4)
    run.add(2, first=2)
    run.add(2, first=5)
    run.go()
    assert order(run) == [["r2@y", "r3@y", "r5@y", "r6@y", "l1@y", "l4@y"]]
    assert (run.new, run.code) == ([], 0)


@pytest.mark.parametrize("size", [LARGE, 3 << 20], ids=["read", "streamed"])
def test_a_large_one_has_one_attempt_in_a_run(run: Run, size: int) -> None:
    """What cannot pass between two cuts would be sent for nothing again and again."""
    add_large(run, 1, size=size)
    run.add(5, first=2)
    run.scripts = [cuts_large]
    run.go()
    assert run.new == ["1.large"]
    assert order(run) == [["r2@y", "r3@y", "r4@y", "r5@y", "r6@y", "l1@y"]]
    told = [e for e in run.events if e["event"] == "deferred"]
    assert [e["message"] for e in told] == ["1.large"]
    assert "the connection broke before the answer to all of its" in str(told[0]["text"])
    assert run.code == 111


def test_each_of_several_has_its_attempt(run: Run) -> None:
    """One that cannot pass must not take that from those behind it."""
    add_large(run, 1, 2, 3, size=3 << 20)

    def second_passes(server: FakeServer, package: Package) -> None:
        if package.recipients == (b"l2@y",):
            server.respond(b"Kok")
        else:
            server.hang_up()

    run.scripts = [second_passes]
    run.go()
    assert run.new == ["1.large", "3.large"]
    seen = [name for server in order(run) for name in server]
    assert (seen.count("l1@y"), seen.count("l3@y")) == (1, 1)
    assert set(remembered(run)) == {"1.large", "3.large"}


def test_one_that_broke_a_connection_goes_last_in_the_next_run(run: Run) -> None:
    """It would break the connection of the others once more."""
    add_large(run, 1)
    run.scripts = [cuts_large]
    run.go()
    assert remembered(run)["1.large"]["of"] == LARGE
    add_large(run, 2, 3)
    run.add(1, first=4)
    run.scripts = [accept]
    run.servers.clear()
    run.go()
    assert order(run) == [["r4@y", "l2@y", "l3@y", "l1@y"]]
    assert remembered(run) == {}, "it is done"


def test_how_far_it_got_is_told_and_remembered(run: Run) -> None:
    """Whether a link that is cut will ever do is seen by that."""
    add_large(run, 1, size=3 << 20)

    class Cut(FakeServer):
        def _take(self, data: bytes) -> None:
            super()._take(data)
            if len(self.sent) >= 700_000:
                self.hang_up()

        def _room(self, wanted: int) -> int:
            return min(super()._room(wanted), 100_000, max(0, 700_000 - len(self.sent)))

    def connect(server: object, timeout_s: float) -> FakeServer:
        run.servers.append(Cut(accept))
        return run.servers[-1]

    run.connect = connect  # type: ignore[method-assign]
    run.go()
    (told,) = [str(e["text"]) for e in run.events if e["event"] == "deferred"]
    assert told == f"the connection broke after 700000 of {3 << 20} bytes"
    assert remembered(run)["1.large"]["sent"] == 700_000


def test_the_connection_after_it_is_as_wide_as_before(run: Run) -> None:
    """Small messages that came meanwhile would go one by one, as if they were to blame."""
    add_large(run, 1)

    def cut(server: FakeServer, package: Package) -> None:
        run.add(20, first=10)
        server.hang_up()

    run.scripts = [cut, accept]
    run.go()
    assert run.new == ["1.large"]
    assert run.forwarder.pool.windows[0].size == 4_096


def test_small_ones_that_come_meanwhile_go_before_the_next_large_one(run: Run) -> None:
    """A batch looks around before each of them, and none goes twice for that."""
    add_large(run, 1, 2, 3)

    def late(server: FakeServer, package: Package) -> None:
        if package.recipients == (b"l1@y",):
            run.add(2, first=7)
        run.clock.advance(1.0)
        server.respond(b"Kok")

    run.scripts = [late]
    run.go()
    assert order(run) == [["l1@y", "r7@y", "r8@y", "l2@y", "l3@y"]]


def test_nothing_small_is_in_flight_with_a_large_one(run: Run) -> None:
    """When the link is cut, it would be in doubt because of the large one."""
    add_large(run, 1)
    run.add(30, first=2)
    answered: list[Package] = []

    def strict(server: FakeServer, package: Package) -> None:
        if package.recipients == (b"l1@y",):
            assert len(answered) == 30
        answered.append(package)
        server.respond(b"Kok")

    run.scripts = [strict]
    run.go()
    assert run.new == []


def test_it_has_its_turn_after_five_minutes(run: Run) -> None:
    """Where small mail comes as fast as it goes, it would never go."""
    add_large(run, 1, 2)
    run.add(2, first=3)
    seen: list[str] = []

    def busy(server: FakeServer, package: Package) -> None:
        seen.append(package.recipients[0].decode())
        if len(seen) < 40:
            run.add(1, first=100 + len(seen))
        run.clock.advance(TURN_S / 10)
        server.respond(b"Kok")

    run.scripts = [busy]
    run.go(window_messages=1)
    assert run.new == []
    turns = [seen.index("l1@y"), seen.index("l2@y")]
    assert turns[0] in (9, 10, 11)
    assert turns[1] - turns[0] in (9, 10, 11), "and the next one five minutes later"


def test_it_goes_on_a_connection_of_its_own(run: Run) -> None:
    """With two of them, small messages pass it while it takes minutes."""
    add_large(run, 1)
    run.add(3, first=2)
    left_then: list[list[str]] = []

    def slow(server: FakeServer, package: Package) -> None:
        def answer() -> None:
            left_then.append(run.new)
            server.respond(b"Kok")

        if package.recipients == (b"l1@y",):
            run.add(5, first=10)
            run.clock.at(run.clock() + 130.0, answer)
        else:
            server.respond(b"Kok")

    run.scripts = [slow]
    run.go(connections=2)
    assert run.new == []
    assert left_then == [["1.large"]]


@pytest.mark.parametrize("connections", [2, 3, 8])
def test_large_ones_leave_a_connection_to_the_small_ones(run: Run, connections: int) -> None:
    """Ten of them would take all connections, for minutes."""
    run.add(1)
    add_large(run, *range(10, 30))
    most = [0]
    at_work: list[FakeServer] = []

    def count(server: FakeServer, package: Package) -> None:
        def answer() -> None:
            at_work.remove(server)
            server.respond(b"Kok")

        at_work.append(server)
        most[0] = max(most[0], len(set(map(id, at_work))))
        run.clock.at(run.clock() + 10.0, answer)

    run.scripts = [count]
    run.go(connections=connections)
    assert run.new == []
    assert min(connections - 1, 4) <= most[0] <= connections - 1


def test_where_no_second_connection_is_to_be_had_small_ones_go_first(run: Run) -> None:
    """tcpserver -c 1: the connections that are allowed are not those that there are."""
    add_large(run, 1, 2)
    run.add(3, first=3)
    run.scripts = [accept, ConnectError("refused")]
    run.go(connections=4)
    assert order(run) == [["r3@y", "r4@y", "r5@y", "l1@y", "l2@y"]]
    assert run.new == []


def test_a_large_one_to_many_goes_whole_on_one_connection(run: Run) -> None:
    """It has one result; and small ones do not come in between."""
    run.add(2)
    run.add_shared("3.a", "a@y", "b@y", "c@y")
    with (run.path / "new" / "3.a").open("ab") as file:
        file.write(b"x" * LARGE)
    run.go(one_recipient=True, connections=2)
    assert run.new == []
    assert [sent for sent in order(run) if "a@y" in sent] == [["a@y", "b@y", "c@y"]] or [
        "r1@y", "r2@y", "a@y", "b@y", "c@y",
    ] in order(run)  # fmt: skip


def test_two_that_were_half_sent_when_the_connection_ended_go_on(run: Run) -> None:
    """Who had the large one got it again, or the run connected again and again, for ever."""
    add_large(run, 1)
    add_sidecar(run.path, "1.large", "s@x", "l1@y", "l2@y")

    def ends_halfway(server: FakeServer, package: Package) -> None:
        if package.recipients == (b"r1@y",):
            server.hang_up()
            return
        server.respond(b"Kok")
        run.clock.advance(1.0)
        run.add(1, first=2)
        add_sidecar(run.path, "2.a", "s@x", "r1@y", "r2@y")

    run.scripts = [ends_halfway, accept]
    run.go(window_messages=1, one_recipient=True)
    assert order(run) == [["l1@y", "r1@y"], ["r1@y", "r2@y", "l2@y"]]
    assert (run.new, run.code) == ([], 0)


def test_a_large_message_of_others_connects_to_nobody(run: Run) -> None:
    """Its size says nothing of whom it is for."""
    add_large(run, 1)
    run.go(prefix=b"p-")
    assert (run.reached, run.code) == (0, 0)
    assert run.report.counters.others == 1


@pytest.mark.parametrize(("large", "first"), [(99, "r2@y"), (101, "l1@y")])
def test_what_is_large_can_be_set(run: Run, large: int, first: str) -> None:
    """By the bytes of the file, of which the lines on top are a part."""
    add_message(run.path, "1.large", b"", b"s@x", b"l1@y")
    with (run.path / "new" / "1.large").open("ab") as file:
        file.write(b"x" * (100 - file.tell()))
    add_message(run.path, "2.a", b"", b"s@x", b"r2@y")
    run.go(large_bytes=large)
    assert order(run)[0][0] == first


def test_what_is_larger_than_max_size_is_held_with_a_way_out(run: Run) -> None:
    """On a link that never gets it through, somebody has to decide."""
    add_large(run, 1)
    run.add(1, first=2)
    run.go(max_bytes=LARGE - 1)
    assert run.new == ["1.large"]
    (held,) = [str(e["reason"]) for e in run.events if e["event"] == "held"]
    assert f"{LARGE} bytes are more than --max-size allows ({LARGE - 1}); raise that" in held
    assert run.code == 111
    run.go(max_bytes=LARGE)
    assert run.new == []


def test_told_to_stop_it_is_not_the_large_one_that_broke_the_connection(run: Run) -> None:
    """With each restart of the machine it would go behind others."""
    add_large(run, 1)

    def stop(server: FakeServer, package: Package) -> None:
        run.forwarder.stop()

    run.scripts = [stop]
    run.go()
    assert run.new == ["1.large"]
    assert run.report.counters.deferred == 0
    assert not run.forwarder.outbox.left or run.report.counters.left


def test_a_server_that_closes_after_each_message_has_nothing_against_large_ones(run: Run) -> None:
    """Some take so many messages a connection; a part of the next one was under way."""
    add_large(run, 1, 2, 3)

    def one_each(server: FakeServer, package: Package) -> None:
        if len(server.received) == 1:
            server.respond(b"Kok")
            server.hang_up()

    run.scripts = [one_each]
    run.go()
    left = len(run.new)
    run.go()
    assert len(run.new) < left or not left


def test_postponed_ones_go_in_order_and_the_broken_ones_last() -> None:
    """As a queue holds them."""
    postponed: Postponed[str] = Postponed()
    assert postponed.take() is None
    postponed.add(["x"], broken=True)
    postponed.add(["a", "b"])
    assert len(postponed) == 3
    assert [postponed.take() for _ in range(4)] == ["a", "b", "x", None]


@pytest.mark.parametrize("connections", [1, 2])
def test_it_does_not_wait_for_ever_for_answers_to_small_ones(run: Run, connections: int) -> None:
    """A server may answer late, or first when all has come: the link must not be idle meanwhile."""
    add_large(run, 9)
    run.add(4)

    def at_the_end(server: FakeServer, package: Package) -> None:
        if len(server.received) == 1:
            server.respond(b"Kok")
        elif package.recipients == (b"l9@y",):
            server.respond(*[b"Kok"] * (len(server.received) - 1))

    run.scripts = [at_the_end, ConnectError("refused")]
    run.go(connections=connections)
    assert (run.new, run.code) == ([], 0)
    assert ANSWERS_S <= run.clock() - 1_000 < 2 * ANSWERS_S
    assert set(run.received.values()) == {1}, "what is in flight with it is not found once more"


def test_small_ones_in_flight_with_it_are_tried_again_and_it_is_not(run: Run) -> None:
    """It has had its attempt, whoever was the first without an answer."""
    add_large(run, 9)
    run.add(4)

    def breaks(server: FakeServer, package: Package) -> None:
        if len(server.received) == 1:
            server.respond(b"Kok")
        elif package.recipients == (b"l9@y",):
            server.hang_up()

    run.scripts = [breaks, accept]
    run.go()
    assert run.new == ["9.large"]
    assert run.received[(b"l9@y",)] == 1


def test_a_large_one_of_others_that_is_due_stops_no_small_one(run: Run) -> None:
    """The connection was emptied for it, and then there was nothing to send on it."""
    add_large(run, 1)
    for number in range(2, 30):
        add_message(run.path, f"{number}.a", b"text\n", b"s@x", b"p-r%d@y" % number)

    def slow(server: FakeServer, package: Package) -> None:
        run.clock.advance(TURN_S / 5)
        server.respond(b"Kok")

    run.scripts = [slow]
    run.go(window_messages=1, prefix=b"p-")
    assert run.new == ["1.large"]
    assert run.clock() - 1_000 == 28 * TURN_S / 5


@pytest.mark.parametrize(
    ("options", "left", "order_of"),
    [
        ({"large_bytes": 1_000}, [], ["r2@y", "r3@y", "l1@y"]),
        ({"max_bytes": 1_000}, ["1.large"], 2),
    ],
    ids=["large", "max-size"],
)
def test_small_limits_count_where_messages_go_in_batches(
    run: Run, options: dict[str, object], left: list[str], order_of: object
) -> None:
    """Without a line or an event for each message, nobody looked at its size."""
    run.report.set_output(0, None)
    add_large(run, 1, size=2_000)
    run.add(2, first=2)
    for name in run.new:
        os.utime(run.path / "new" / name, (1_000, 1_000))
    run.go(**options)
    assert run.new == left
    assert order_of in (order(run)[0], len(order(run)[0]))
