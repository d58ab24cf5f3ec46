"""Several connections: which gets the next message, and what one tells of the others' server."""

from __future__ import annotations

import selectors
from collections.abc import Iterator

import pytest

from maildirqmtp.forwarder.queued_message import QueuedMessage
from maildirqmtp.pipeline.capabilities import Capabilities
from maildirqmtp.pipeline.pool import Connection, ConnectionPool
from maildirqmtp.pipeline.timeouts import Timeouts
from maildirqmtp.pipeline.window import Window
from tests.fakes import FakeClock, FakeServer, queued

TIMEOUTS = Timeouts(write_s=73, response_s=3600, grace_s=10, session_s=3000)


class Fleet:
    """Connections to servers that say nothing of their own accord."""

    def __init__(self, count: int, selector: selectors.BaseSelector) -> None:
        windows = [Window(8, 1 << 20) for _ in range(count)]
        self.pool: ConnectionPool[QueuedMessage] = ConnectionPool(
            windows, TIMEOUTS, lambda one: True, FakeClock(1_000.0), Capabilities()
        )
        self.servers: list[FakeServer] = []
        self._selector = selector

    def add(self, *, proven: bool = True) -> Connection[QueuedMessage]:
        """Open a connection; a proven one has had its first answer."""
        server = FakeServer(lambda peer, package: None)
        self.servers.append(server)
        self.pool.add(server, self._selector)
        connection = self.pool.open[-1]
        if proven:
            self.put(connection)
            server.respond(b"Kok")
            connection.pipeline.read()
            assert self.pool.capabilities.proven
        return connection

    def put(self, connection: Connection[QueuedMessage], count: int = 1) -> None:
        """Put so many messages, and send them."""
        for _ in range(count):
            assert connection.pipeline.put(queued())
        connection.pipeline.write()


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    """Room for three connections, none of them open."""
    with selectors.DefaultSelector() as selector:
        made = Fleet(3, selector)
        yield made
        for connection in [*made.pool.open]:
            made.pool.end(connection)


def test_no_more_than_there_are_windows_and_none_before_the_first_answer(fleet: Fleet) -> None:
    """A server that does not speak QMTP is not called several times."""
    assert not fleet.pool.may_add()
    first = fleet.add(proven=False)
    assert not fleet.pool.may_add()
    fleet.put(first)
    fleet.servers[0].respond(b"Kok")
    first.pipeline.read()
    assert fleet.pool.may_add()
    fleet.add()
    third = fleet.add()
    assert not fleet.pool.may_add()
    fleet.pool.end(third)
    assert fleet.pool.may_add()


def test_the_next_goes_where_least_is_under_way(fleet: Fleet) -> None:
    """And where there is room: a full window is nobody's choice."""
    first, second = fleet.add(), fleet.add()
    fleet.put(first, 2)
    assert fleet.pool.least_loaded(fleet.pool.open) is second
    fleet.put(second, 3)
    assert fleet.pool.least_loaded(fleet.pool.open) is first
    fleet.put(first, 6)
    fleet.put(second, 4)
    assert fleet.pool.least_loaded(fleet.pool.open) is second


def test_one_that_never_answers_does_not_keep_others_from_being_opened(fleet: Fleet) -> None:
    """The first was closed, having been idle; mail that comes now must not wait for an hour."""
    first, silent = fleet.add(), fleet.add(proven=False)
    fleet.put(silent)
    fleet.pool.end(first)
    assert fleet.pool.may_add()


def test_a_new_one_need_not_prove_again_that_there_is_a_server(fleet: Fleet) -> None:
    """Else each would wait for its own first answer before it has its window full."""
    fleet.pool.end(fleet.add())
    connection = fleet.add(proven=False)
    assert not connection.pipeline.knows_answers
    fleet.put(connection, 2)


def packages_of_three(fleet: Fleet, connection: Connection[QueuedMessage]) -> list[int]:
    """Put a message to three recipients; return the recipients of each package it went in."""
    shared = queued(b"3.a", b"a@y", b"b@y", b"c@y")
    before = len(fleet.servers[fleet.pool.open.index(connection)].received)
    while not connection.pipeline.put(shared):
        pass
    connection.pipeline.write()
    received = fleet.servers[fleet.pool.open.index(connection)].received[before:]
    return [len(package.recipients) for package in received]


def test_once_per_package_holds_for_all_that_do_not_know_better(fleet: Fleet) -> None:
    """To find it out again costs duplicates; but each connection may lead to another server."""
    first, second = fleet.add(), fleet.add()
    assert packages_of_three(fleet, second) == [3]
    fleet.servers[1].respond(b"Kok", b"Kok", b"Kok")
    second.pipeline.read()
    fleet.pool.capabilities.find_one_recipient()
    assert packages_of_three(fleet, first) == [1, 1, 1]
    assert packages_of_three(fleet, second) == [3]
    third = fleet.add(proven=False)
    assert packages_of_three(fleet, third) == [1, 1, 1]


def test_once_per_recipient_holds_for_no_other(fleet: Fleet) -> None:
    """A refusal would be credited to the wrong message."""
    first = fleet.add()
    assert packages_of_three(fleet, first) == [3]
    fleet.servers[0].respond(b"Kok", b"Kok", b"Kok")
    first.pipeline.read()
    assert first.pipeline.knows_answers
    second = fleet.add(proven=False)
    fleet.put(second)
    assert not second.pipeline.can_take(queued(b"3.a", b"a@y", b"b@y"))


def test_a_full_one_is_not_chosen_while_another_has_room(fleet: Fleet) -> None:
    """Its message would wait for an answer, and all the mail behind it, beside an open door."""
    first, second = fleet.add(), fleet.add()
    first.window.maximum = first.window.size = 2
    fleet.put(first, 2)
    fleet.put(second, 5)
    assert not first.pipeline.has_room()
    assert fleet.pool.least_loaded(fleet.pool.open) is second


def test_what_is_remembered_is_what_this_run_has_found_out() -> None:
    """Else each run would prolong what an option or an earlier run said, true or not."""
    known, new = Capabilities(one_recipient=True), Capabilities()
    for capabilities in (known, new):
        capabilities.find_one_recipient()
        assert capabilities.one_recipient
    assert [known.take_news(), new.take_news(), new.take_news()] == [False, True, False]
