"""Several connections: which gets the next message, and what one tells of the others' server."""

from __future__ import annotations

import selectors
from collections.abc import Iterator

import pytest

from maildirqmtp.forwarder.queued_message import QueuedMessage
from maildirqmtp.pipeline.capabilities import Capabilities
from maildirqmtp.pipeline.limits import Limits
from maildirqmtp.pipeline.pool import Connection, ConnectionPool
from maildirqmtp.pipeline.window import Window
from tests.fakes import FakeClock, FakeServer, queued

LIMITS = Limits(write_s=73, response_s=3600, grace_s=10, session_s=3000)


class Fleet:
    """Connections to servers that say nothing of their own accord."""

    def __init__(self, count: int, selector: selectors.BaseSelector) -> None:
        windows = [Window(8, 1 << 20) for _ in range(count)]
        self.pool: ConnectionPool[QueuedMessage] = ConnectionPool(
            windows, LIMITS, lambda one: True, FakeClock(1_000.0)
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
            assert connection.answers_once
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


def seen(fleet: Fleet) -> list[bool | None]:
    """What is known of each connection."""
    return [connection.pipeline.capabilities.answers_each for connection in fleet.pool.open]


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
    assert fleet.pool.for_next() is second
    fleet.put(second, 3)
    assert fleet.pool.for_next() is first
    fleet.put(first, 6)
    fleet.put(second, 4)
    assert fleet.pool.for_next() is second


def test_one_that_never_answers_does_not_keep_others_from_being_opened(fleet: Fleet) -> None:
    """The first was closed, having been idle; mail that comes now must not wait for an hour."""
    first, silent = fleet.add(), fleet.add(proven=False)
    fleet.put(silent)
    fleet.pool.end(first)
    assert fleet.pool.may_add()


def test_a_new_one_need_not_prove_again_that_there_is_one_answer(fleet: Fleet) -> None:
    """Else all would wait for the first answer to come on each; until it is forgotten."""
    fleet.pool.end(fleet.add())
    connection = fleet.add(proven=False)
    assert connection.answers_once
    fleet.put(connection, 2)
    fleet.pool.end(connection)
    fleet.pool.forget()
    assert not fleet.add(proven=False).answers_once


def test_once_per_package_holds_for_all_who_do_not_know_better(fleet: Fleet) -> None:
    """To find it out again costs duplicates; but each connection may lead to another server."""
    fleet.add()
    fleet.add()
    first, second = fleet.pool.open
    second.pipeline.capabilities.answers_each = True
    third = fleet.add()
    third.pipeline.capabilities.answers_each = False
    fleet.pool.end(third)
    assert seen(fleet) == [False, True]
    fleet.pool.end(first)
    fleet.pool.end(second)
    fleet.add(proven=False)
    assert seen(fleet) == [False]


def test_once_per_recipient_holds_for_nobody_else(fleet: Fleet) -> None:
    """A refusal would be credited to the wrong message."""
    first = fleet.add()
    first.pipeline.capabilities.answers_each = True
    second = fleet.add(proven=False)
    assert seen(fleet) == [True, None]
    fleet.pool.end(first)
    fleet.pool.end(second)
    fleet.add(proven=False)
    assert seen(fleet) == [None]


@pytest.mark.parametrize("once", [True, False])
def test_what_is_taken_for_granted(once: bool) -> None:
    """Not what would lose mail if it is wrong."""
    for each, inherited in ((True, None), (None, None), (False, False)):
        for_next_connection = Capabilities(once, each).for_next_connection()
        assert (for_next_connection.answers_once, for_next_connection.answers_each) == (
            once,
            inherited,
        )
