"""Which address is tried first: a wrong order costs seconds in every run."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from maildirqmtp.errors import ConnectError
from maildirqmtp.transport import addresses
from maildirqmtp.transport.addresses import (
    USELESS_S,
    Address,
    look_up,
    next_after_s,
    note_useless,
    note_worked,
)
from maildirqmtp.transport.endpoint import TcpEndpoint

SERVER = TcpEndpoint("mail.example.org")
V4 = [Address(socket.AF_INET, (f"192.0.2.{n}", 209)) for n in range(4)]
V6 = [Address(socket.AF_INET6, (f"2001:db8::{n}", 209, 0, 0)) for n in range(4)]


@pytest.fixture(autouse=True)
def _forgetful() -> Iterator[None]:
    """Begin and end without anything remembered."""
    addresses.forget()
    yield
    addresses.forget()


def found(monkeypatch: pytest.MonkeyPatch, *order: Address) -> None:
    """Have the resolver find these."""
    answer = [(a.family, socket.SOCK_STREAM, 6, "", a.sockaddr) for a in order]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: answer)


def test_the_families_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where IPv6 is broken, four addresses of it in a row would cost a second; RFC 8305, 4."""
    found(monkeypatch, V6[0], V6[1], V6[2], V4[0], V4[1])
    assert look_up(SERVER, 0.0) == [V6[0], V4[0], V6[1], V4[1], V6[2]]
    found(monkeypatch, V4[0], V4[1], V6[0])
    assert look_up(SERVER, 0.0) == [V4[0], V6[0], V4[1]]


def test_an_address_is_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two lines of /etc/hosts for one name are not two servers."""
    found(monkeypatch, V4[0], V4[0], V4[1])
    assert look_up(SERVER, 0.0) == [V4[0], V4[1]]


def test_the_address_that_worked_is_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """A first address that is down would cost a moment at each reconnect."""
    found(monkeypatch, *V4)
    note_worked(SERVER, V4[2], 0.1)
    assert look_up(SERVER, 0.0) == [V4[2], V4[0], V4[1], V4[3]]


def test_an_address_that_worked_is_that_of_one_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two hosts may share addresses, and have them in different order for a reason."""
    note_worked(SERVER, V4[1], 0.1)
    found(monkeypatch, V4[0], V4[1])
    for other in (TcpEndpoint("mail.example.net"), TcpEndpoint("mail.example.org", 2_090)):
        assert look_up(other, 0.0) == [V4[0], V4[1]]


def test_an_address_that_worked_and_is_gone_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server has moved; another customer of the provider may have the address now."""
    note_worked(SERVER, V4[1], 0.1)
    found(monkeypatch, V4[0])
    assert look_up(SERVER, 0.0) == [V4[0]]


def test_an_address_of_no_use_goes_behind_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two load balancers one is broken: it takes connections, and worked last."""
    found(monkeypatch, V4[0], V4[1], V4[2])
    note_worked(SERVER, V4[0], 0.1)
    note_useless(V4[0], 1_000.0)
    assert look_up(SERVER, 1_000.0 + USELESS_S - 1) == [V4[1], V4[2], V4[0]]
    assert look_up(SERVER, 1_000.0 + USELESS_S) == [V4[0], V4[1], V4[2]]


def test_where_all_were_of_no_use_the_one_longest_ago_is_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each has its turn: one of them may be up again."""
    found(monkeypatch, V4[0], V4[1], V4[2])
    for when, address in ((3.0, V4[0]), (1.0, V4[1]), (2.0, V4[2])):
        note_useless(address, when)
    assert look_up(SERVER, 4.0) == [V4[1], V4[2], V4[0]]


@pytest.mark.parametrize(
    ("took_s", "next_s"), [(0.0, 0.25), (0.1, 0.25), (0.6, 0.9), (1.2, 1.8), (30.0, 2.0)]
)
def test_over_a_slow_link_the_next_address_waits_longer(took_s: float, next_s: float) -> None:
    """By satellite, connecting takes 0.6 s: two connections each time would cost money."""
    assert next_after_s(SERVER) == 0.25
    note_worked(SERVER, V4[0], took_s)
    assert next_after_s(SERVER) == pytest.approx(next_s)
    assert next_after_s(TcpEndpoint("mail.example.net")) == 0.25


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program may talk to any number of servers."""
    monkeypatch.setattr(addresses, "_MAX_REMEMBERED", 2)
    for number in range(5):
        note_worked(TcpEndpoint(f"{number}.example.org"), V4[0], 0.1)
        note_useless(Address(socket.AF_INET, (f"192.0.2.{number}", 209)), 1.0)
        assert len(addresses._worked) <= 2
        assert len(addresses._useless) <= 2


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), "not known"),
        (UnicodeError("label too long"), "label too long"),
    ],
)
def test_an_unknown_host_says_so(
    error: Exception, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mistyped name must not look like a server that is down."""

    def getaddrinfo(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    with pytest.raises(ConnectError, match=f"cannot find the host mail.example.org: .*{why}"):
        look_up(SERVER, 0.0)


def test_being_told_to_stop_ends_the_look_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """And is not called a host that cannot be found."""

    def getaddrinfo(*_: object, **__: object) -> None:
        raise ConnectError("told to stop")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    with pytest.raises(ConnectError, match=r"^told to stop$"):
        look_up(SERVER, 0.0)
