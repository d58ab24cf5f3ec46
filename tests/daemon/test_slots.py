"""The slots of a server: who gets the next one, who leaves one, and what a server takes."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import pytest

from maildirqmtp.daemon.slots import (
    IN_FLIGHT_LEAST,
    PATIENCE_LEAST_S,
    PROBE_S,
    TURN_LEAST_S,
    TURN_MOST_S,
    RouteSlots,
    ServerSlots,
    Turn,
)
from tests.fakes import FakeClock


class FakeConnection:
    """A connection with so many answers so far, and so many packages in flight."""

    def __init__(self, answered: int = 0, in_flight: int = 1) -> None:
        self.pipeline = SimpleNamespace(
            answered=answered,
            packages_in_flight=in_flight,
            bytes_sent=100,
            transport=SimpleNamespace(name="mail.example.org:209"),
        )


class FakeRoute:
    """A route, its slots, its connections, and how often it was woken."""

    def __init__(self, servers: ServerSlots, limit: int) -> None:
        self.woken = 0
        self.slots: RouteSlots = servers.join("server", limit, self)  # type: ignore[arg-type]
        self.connections: list[Any] = []
        self.has_more = False
        self.last = Turn()

    def set(self) -> None:
        """See `Wakeup`."""
        self.woken += 1

    def connect(self) -> FakeRoute:
        """Take a slot, which is free, and make a connection that sends something."""
        assert self.slots.take()
        self.connections.append(FakeConnection())
        return self.turn()

    def answer(self, packages: int = 1) -> FakeRoute:
        """Let answers come, to all that was in flight where not said otherwise."""
        pipeline = self.connections[-1].pipeline
        pipeline.answered += packages
        pipeline.packages_in_flight = max(0, pipeline.packages_in_flight - packages)
        return self.turn()

    def turn(self, *, wants_more: bool = False) -> FakeRoute:
        """Ask what may be done in the next turn."""
        if self.connections:
            self.last = self.slots.before_turn(self.connections, self.has_more, wants_more)
        return self

    def end(self, *, failed: bool = False) -> None:
        """Have no connection any more."""
        self.connections.clear()
        self.slots.give_back(failed)


class Bench:
    """Routes to one server, and the clock."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.servers = ServerSlots(self.clock)

    def routes(self, count: int, limit: int = 20) -> list[FakeRoute]:
        """Make routes."""
        return [FakeRoute(self.servers, limit) for _ in range(count)]


@pytest.fixture
def bench() -> Bench:
    """A server that nothing is known of."""
    return Bench()


# The configuration's limit


def test_no_more_connections_than_configured(bench: Bench) -> None:
    """A server that bans who opens too many would ban all routes of this machine."""
    a, b, c = bench.routes(3, limit=2)
    a.connect()
    b.connect()
    assert not c.slots.take()
    assert c.slots.waits


def test_the_least_of_what_the_routes_say_counts(bench: Bench) -> None:
    """What one [[route]] says of a server is meant for that server."""
    a, b = FakeRoute(bench.servers, 20), FakeRoute(bench.servers, 1)
    a.connect()
    assert not b.slots.take()


def test_servers_do_not_share_slots(bench: Bench) -> None:
    """A server that is down or full must not keep mail from another."""
    (a,) = bench.routes(1, limit=1)
    a.connect()
    other = bench.servers.join("other", 1, a)  # type: ignore[arg-type]
    assert other.take()


def test_a_free_slot_goes_to_the_first_in_line(bench: Bench) -> None:
    """In turn: a route that asks more often gets no more."""
    a, b, c = bench.routes(3, limit=1)
    a.connect()
    assert not b.slots.take()
    assert not c.slots.take()
    a.end()
    assert b.woken
    assert not c.slots.take()
    assert not a.slots.take()
    assert b.slots.take()
    b.end()
    assert c.slots.take()


def test_who_has_nothing_to_send_leaves_the_line(bench: Bench) -> None:
    """Else a slot would be kept for a route that never comes."""
    a, b, c = bench.routes(3, limit=1)
    a.connect()
    b.slots.take()
    c.slots.take()
    b.slots.give_back()
    a.end()
    assert c.slots.take()


def test_a_route_that_ends_leaves_its_slot(bench: Bench) -> None:
    """HUP takes routes away, connected ones and those in line."""
    a, b, c = bench.routes(3, limit=1)
    a.connect()
    b.slots.take()
    c.slots.take()
    b.slots.leave()
    a.slots.leave()
    assert c.slots.take()


def test_more_connections_of_one_route_need_slots(bench: Bench) -> None:
    """`connections = 8` in a hundred routes is no way around the limit."""
    a, b = bench.routes(2, limit=3)
    a.connect().answer().turn(wants_more=True)
    assert a.last.connections == 2
    a.connections.append(FakeConnection(1))
    b.connect()
    a.turn(wants_more=True)
    assert a.last.connections == 2


def test_further_connections_do_not_overtake_the_line(bench: Bench) -> None:
    """A route without any connection comes first."""
    a, b, c = bench.routes(3, limit=2)
    a.connect().answer()
    b.connect()
    c.slots.take()
    b.end()
    assert a.turn(wants_more=True).last.connections == 1
    assert c.slots.take()


# Who makes room


def test_an_idle_connection_is_closed_at_once(bench: Bench) -> None:
    """Mail must not wait a minute for a connection that is kept only in case of more."""
    a, b = bench.routes(2, limit=1)
    a.connect().answer()
    assert not a.last.closes_idle
    woken = a.woken
    b.slots.take()
    assert a.woken > woken, "an idle route sleeps"
    assert a.turn().last == a.last._replace(allowance=0, closes_idle=True)


def test_one_that_waits_needs_one_slot(bench: Bench) -> None:
    """The other idle connections are of use still."""
    routes = bench.routes(4, limit=3)
    for route in routes[:3]:
        route.connect().answer()
    routes[3].slots.take()
    assert sum(route.turn().last.closes_idle for route in routes[:3]) == 1


def test_a_busy_connection_is_left_after_its_turn(bench: Bench) -> None:
    """A route with a million messages must not keep another's single one back."""
    a, b = bench.routes(2, limit=1)
    a.has_more = True
    a.connect().answer()
    b.slots.take()
    assert not a.turn().last.closes_idle
    assert a.last.look_at is not None, "nobody would wake it"
    bench.clock.advance(TURN_MOST_S)
    assert a.turn().last.allowance == 0
    assert a.last.closes_idle


def test_the_longest_in_use_is_left_first(bench: Bench) -> None:
    """And only as many as are waited for."""
    a, b, c = bench.routes(3, limit=2)
    a.has_more = b.has_more = True
    a.connect().answer()
    bench.clock.advance(1.0)
    b.connect().answer()
    c.slots.take()
    bench.clock.advance(TURN_MOST_S)
    assert not b.turn().last.closes_idle
    assert a.turn().last.closes_idle
    assert not b.turn().last.closes_idle


def test_turns_are_shorter_where_many_wait(bench: Bench) -> None:
    """A hundred routes and one slot: each has its turn within a minute."""
    routes = bench.routes(100, limit=1)
    routes[0].has_more = True
    routes[0].connect().answer()
    for route in routes[1:]:
        route.slots.take()
    bench.clock.advance(TURN_LEAST_S)
    assert routes[0].turn().last.closes_idle


def test_when_nobody_waits_any_more_it_goes_on(bench: Bench) -> None:
    """A connection is not given up for a route that has gone."""
    a, b = bench.routes(2, limit=1)
    a.connect().answer()
    b.slots.take()
    assert a.turn().last.closes_idle
    b.slots.give_back()
    assert not a.turn().last.closes_idle


def test_alone_it_may_do_all(bench: Bench) -> None:
    """One route has no limits but its window."""
    (a,) = bench.routes(1)
    a.has_more = True
    assert a.connect().answer().last == Turn()


def test_shared_it_sends_as_much_as_the_server_takes_in_seconds(bench: Bench) -> None:
    """What is in flight has to be waited for when the turn is over: 4,096 may take minutes."""
    a, _ = bench.routes(2)
    a.has_more = True
    a.connect()
    assert a.last.allowance == IN_FLIGHT_LEAST - 1
    for _ in range(20):
        bench.clock.advance(0.1)
        a.connections[0].pipeline.packages_in_flight = 100
        a.answer(10)
    assert a.last.allowance is not None
    assert 300 * 0.8 <= a.last.allowance + 90 <= 300 * 1.2


# What the server takes


def backlog(bench: Bench, count: int, taken: int) -> list[FakeRoute]:
    """Have routes with a connection each, of which the server answers so many."""
    routes = bench.routes(count)
    for route in routes:
        route.connect()
    bench.clock.advance(0.1)
    for route in routes[:taken]:
        route.answer()
    return routes


def test_connections_in_the_backlog_are_noticed(bench: Bench) -> None:
    """`tcpserver -c 2`: ten routes would wait for two that keep idle connections, a minute each."""
    routes = backlog(bench, 12, 2)
    assert not any(route.turn().last.closes_idle for route in routes)
    assert routes[0].last.look_at is not None, "nobody would wake it"
    bench.clock.advance(PATIENCE_LEAST_S)
    assert [route.turn().last.closes_idle for route in routes] == [True] * 2 + [False] * 10
    assert "seems to take 2 connections at a time" in routes[0].last.news
    assert not routes[1].last.news, "once"
    late = FakeRoute(bench.servers, 20)
    assert not late.slots.take()


def test_a_slow_server_is_not_taken_for_a_full_one(bench: Bench) -> None:
    """Over a satellite each first answer takes a second; nobody is closed for that."""
    routes = bench.routes(3)
    for route in routes:
        route.connect()
    bench.clock.advance(1.5)
    routes[0].answer()
    assert not routes[0].last.closes_idle
    bench.clock.advance(1.0)
    assert not routes[0].turn().last.closes_idle


def test_a_server_that_answers_nobody_is_slow_not_full(bench: Bench) -> None:
    """It hangs for a while: that says nothing of how many it takes."""
    a, b = bench.routes(2)
    a.has_more = True
    a.connect().answer()
    a.connections[0].pipeline.packages_in_flight = 5
    b.connect()
    bench.clock.advance(30.0)
    a.turn()
    assert not a.last.news
    assert not a.last.closes_idle


def test_one_that_was_alone_is_not_in_the_backlog(bench: Bench) -> None:
    """When a second route came, the log said that the server takes one connection at a time."""
    a = FakeRoute(bench.servers, 20)
    a.has_more = True
    a.connect().answer()
    a.connections[0].pipeline.packages_in_flight = 5
    bench.clock.advance(30.0)
    a.answer()
    b = FakeRoute(bench.servers, 20).connect()
    assert not b.last.news
    assert FakeRoute(bench.servers, 20).slots.take()


def test_how_long_answers_take_is_learnt_by_one_that_is_alone(bench: Bench) -> None:
    """A server that looks for spam first; the second route took the connection of the first."""
    a = FakeRoute(bench.servers, 20)
    a.has_more = True
    a.connect()
    bench.clock.advance(3.0)
    a.answer()
    a.connections[0].pipeline.packages_in_flight = 5
    b = FakeRoute(bench.servers, 20).connect()
    bench.clock.advance(3.0)
    a.answer()
    assert not a.last.closes_idle
    assert not a.last.news
    assert not b.turn().last.news


def test_a_large_message_under_way_is_not_in_the_backlog(bench: Bench) -> None:
    """As long as bytes go out, no answer is due."""
    a, b = bench.routes(2)
    b.connect()
    a.connect().answer()
    for _ in range(20):
        bench.clock.advance(0.5)
        b.connections[0].pipeline.bytes_sent += 10_000
        b.turn()
        assert not a.turn().last.closes_idle


def test_one_more_is_tried_from_time_to_time(bench: Bench) -> None:
    """The server's administrator raises its limit; nobody restarts this daemon for that."""
    routes = backlog(bench, 3, 2)
    bench.clock.advance(PATIENCE_LEAST_S)
    routes[0].turn()
    routes[2].end()
    late = FakeRoute(bench.servers, 20)
    assert not late.slots.take()
    bench.clock.advance(PROBE_S)
    late.connect().answer()
    # All three are answered: so the next one is tried at once.
    assert FakeRoute(bench.servers, 20).slots.take()
    assert not FakeRoute(bench.servers, 20).slots.take()


@pytest.mark.parametrize("others", [True, False])
def test_a_server_that_sends_us_away(bench: Bench, others: bool) -> None:
    """One that hangs up on the third connection takes two; alone, it is just down."""
    a, b, c = bench.routes(3)
    if others:
        a.connect().answer()
        b.connect().answer()
    c.connect()
    c.end(failed=True)
    assert c.slots.take() is not others


def test_a_server_that_restarts_takes_as_many_as_before(bench: Bench) -> None:
    """Refused meanwhile, the log said that it takes two connections, and the third route waited."""
    routes = bench.routes(3)
    for route in routes[:2]:
        route.connect().answer()
    for route in routes[:2]:
        route.end()
    assert routes[0].slots.take()
    routes[0].end(failed=True)
    for route in routes:
        route.connect()
        assert not route.last.news


def test_its_own_further_connection_in_the_backlog(bench: Bench) -> None:
    """`connections = 2` and `-c 1`: what the second one has would wait for the first for ever."""
    (a,) = bench.routes(1)
    a.connect().answer()
    a.connections.append(FakeConnection())
    a.turn()
    bench.clock.advance(PATIENCE_LEAST_S * 6)
    assert a.turn().last.closes_idle


def test_all_have_their_turn_whatever_the_server_takes(bench: Bench) -> None:
    """A model of `tcpserver -c N`: each busy route gets an answer within the minute."""
    for taken, count in itertools.product((1, 3), (2, 40)):
        bench = Bench()
        routes = bench.routes(count)
        waiting = list(routes)  # the server's backlog, or our line
        last = dict.fromkeys(routes, bench.clock.now)
        accepted: list[FakeRoute] = []
        backlogged: list[FakeRoute] = []
        for route in routes:
            route.has_more = True
        for _ in range(1_200):
            bench.clock.advance(0.1)
            for route in [*waiting]:
                if route.slots.take():
                    waiting.remove(route)
                    route.connections.append(FakeConnection())
                    backlogged.append(route)
                    route.turn()
            while backlogged and len(accepted) < taken:
                accepted.append(backlogged.pop(0))
            for route in [*accepted]:
                last[route] = bench.clock.now
                route.answer(0 if route.last.closes_idle else 1)
                route.connections[0].pipeline.packages_in_flight = 1
                if route.last.closes_idle:
                    accepted.remove(route)
                    route.end()
                    waiting.append(route)
            slowest = max(bench.clock.now - at for at in last.values())
            assert slowest < 60.0, f"{count} routes, {taken} at a time"


def test_a_route_that_ends_while_it_gets_a_slot_leaves_none_behind(bench: Bench) -> None:
    """The slot would be lost for good, and with it all mail to that server."""
    one, two = bench.routes(2, limit=1)
    one.connect()
    assert not two.slots.take()
    server = two.slots._server

    class Busy:
        """The lock, which another thread has: amid `grant`, it is about to give `two` the slot."""

        def __enter__(self) -> None:
            server.lock = lock
            server.hold(two.slots, 1)
            lock.acquire()

        def __exit__(self, *error: object) -> None:
            lock.release()

    lock = server.lock
    server.hold(one.slots, 0)
    server.line.remove(two.slots)
    two.slots.waits = False
    server.lock = Busy()  # type: ignore[assignment]
    two.slots.leave()
    assert one.slots.take()
