"""The two clients: what a program is told of its mail, and that it never hangs.

Each test runs with `QMTPClient`, with `AsyncQMTPClient`, and with the latter
taking its packages from an asynchronous iterable.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import select
import shlex
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from maildirqmtp import (
    AsyncQMTPClient,
    ConfigError,
    ConnectError,
    FileChangedError,
    Package,
    PackageError,
    ProtocolError,
    QMTPClient,
    ResponseTimeout,
    SendResult,
    Tls,
    TransportError,
    WriteTimeout,
)
from maildirqmtp.client import async_client
from maildirqmtp.client.session import ClientSession
from maildirqmtp.pipeline.outgoing import PackageInFlight
from maildirqmtp.pipeline.pipeline import Pipeline
from maildirqmtp.qmtp.protocol import MAX_PACKAGE_RECIPIENTS
from maildirqmtp.transport.transport import Transport
from tests.certificates import Authority, Identity, over_tls
from tests.clients import SEEN, Make, packages, said
from tests.fakes import FakeServer
from tests.helpers import (
    DEADLINE_S,
    Peer,
    answer_all,
    blackhole,
    closed_port,
    command,
    make_maildir,
    open_descriptors,
    serving,
    wait_until,
)
from tests.helpers import Package as Taken


def greets(peer: Peer) -> None:
    """Speak first, as an SMTP server does."""
    peer.send(b"220 mail ESMTP\r\n")
    never_answers(peer)


def never_answers(peer: Peer) -> None:
    """Read all there is."""
    while peer.read_package() is not None:
        pass


def wait_for(event: threading.Event) -> None:
    """Do nothing until then."""
    event.wait(30)


def by_letter(package: Taken, recipient: bytes) -> bytes:
    """Answer as the recipient's first letter says: k, z or d."""
    return recipient[:1].upper() + b" for " + recipient


# One message


def test_each_recipient_has_his_answer(make: Make) -> None:
    """Shifted by one, a refused message counts as accepted."""
    with serving(answer_all(by_letter)) as server:
        client = make(server.address)
        result = client.send("s@x", ["d@y", "k@y", "z@y", "k@y"], b"hello")
    assert [str(r.response) for r in result] == [
        "D for d@y",
        "K for k@y",
        "Z for z@y",
        "K for k@y",
    ]
    assert all(r.answered and not r.in_doubt for r in result)
    (taken,) = server.packages
    assert (taken.text, taken.encoding, taken.sender) == (b"hello", b"\n", b"s@x")
    assert taken.recipients == (b"d@y", b"k@y", b"z@y", b"k@y")


def test_messages_of_every_kind_and_size_arrive(make: Make, tmp_path: Path) -> None:
    """Gathered, streamed from memory, streamed from a file, of several parts."""
    path = tmp_path / "large"
    large = bytes(range(256)) * 12_000
    path.write_bytes(large)
    messages: list[tuple[Any, bytes]] = [
        (b"", b""),
        (b"small", b"small"),
        (large, large),
        (path, large),
        ([b"head", path, b"tail"], b"head" + large + b"tail"),
        ([large, large], large + large),
    ]
    with serving(answer_all()) as server:
        client = make(server.address)
        sent = [Package("s@x", "r@y", m, encoding="dos") for m, _ in messages]
        assert said(client.send_many(sent)) == [SEEN] * len(messages)
    assert [p.text for p in server.packages] == [text for _, text in messages]
    assert {p.encoding for p in server.packages} == {b"\r"}


def test_a_wrong_argument_is_said_before_anything_is_sent(make: Make, tmp_path: Path) -> None:
    """And the connection stays good for the next message."""
    with serving(answer_all()) as server:
        client = make(server.address)
        with pytest.raises(PackageError):
            client.send("s@x", [], b"")
        with pytest.raises(FileNotFoundError):
            client.send("s@x", "r@y", tmp_path / "missing")
        assert client.client.connected
        assert said([client.send("s@x", "r@y", b"")]) == [SEEN]
    assert server.connections == 1


# Connections


def test_options_that_make_no_sense_are_refused(make: Make) -> None:
    """At the line that has them, not with the first message."""
    wrong: list[tuple[str, dict[str, Any]]] = [
        ("", {}),
        ("a b", {}),
        ("name", {"port": 0}),
        ("name", {"window": 0}),
        ("name", {"window": (5, 0)}),
        ("name", {"window": "5,1k"}),
        ("name", {"window": (5, "1k")}),
        ("name", {"window": (5,)}),
        ("name", {"connect_timeout": "10s"}),
        ("name", {"response_timeout": -1}),
        ("name", {"session_limit": 0}),
        ("name", {"connect_timeout": float("nan")}),
        ("qmtps://name", {"tls": True}),
        ("name", {"tls": Tls()}),
        ("exec:ssh mx", {"tls": Tls(ca="ca.pem")}),
    ]
    for server, options in wrong:
        with pytest.raises(ConfigError):
            make(server, defer_connect=True, **options)


def test_an_unreachable_server_defers_everything_and_says_why(make: Make) -> None:
    """Nothing was sent, so nothing is in doubt."""
    client = make("127.0.0.1", port=closed_port(), defer_connect=True)
    with pytest.raises(ConnectError) as caught:
        client.send("s@x", ["a@y", "b@y"], b"")
    result = caught.value.result
    assert result is not None
    assert [r.recipient for r in result.deferred] == ["a@y", "b@y"]
    assert not result.in_doubt
    assert result[0].response.text.startswith("not sent: cannot connect to 127.0.0.1")
    with pytest.raises(ConnectError):
        client.connect()


def test_a_connection_that_the_server_closed_meanwhile_is_replaced(make: Make) -> None:
    """Idle servers hang up; a program that sends once an hour must not hear of it."""

    def one_each(peer: Peer) -> None:
        if peer.read_package() is not None:
            peer.respond(b"Kok")

    with serving(one_each) as server:
        client = make(server.address)
        for _ in range(3):
            assert said([client.send("s@x", "r@y", b"")]) == [SEEN]
            wait_until(lambda: not client.client.connected, "the end of the connection")
    assert server.connections == 3


def test_a_server_that_closes_at_once_is_given_up(make: Make) -> None:
    """Connecting again and again would keep the program busy for ever."""
    with serving(lambda peer: None) as server:
        client = make(server.address, defer_connect=True)
        with pytest.raises(TransportError) as caught:
            client.send("s@x", "r@y", b"")
        assert caught.value.result is not None
        assert server.connections <= 2


def test_a_server_that_has_closed_before_the_first_package_is_given_up(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As above, where its end comes sooner than we write."""
    real = ClientSession.connected

    def connected(session: ClientSession, transport: Transport) -> None:
        assert select.select([transport.read_fd], [], [], DEADLINE_S)[0]
        real(session, transport)

    monkeypatch.setattr(ClientSession, "connected", connected)
    with serving(lambda peer: None) as server:
        client = make(server.address, defer_connect=True)
        with pytest.raises(TransportError, match="closed"):
            client.send("s@x", "r@y", b"")
        assert server.connections == 1


def test_another_kind_of_server_is_a_protocol_error(make: Make) -> None:
    """Port 25 in place of 209 is a mistake to be told of."""
    with serving(greets) as s:
        client = make(s.address, defer_connect=True)
        with pytest.raises((ProtocolError, TransportError)):
            client.send("s@x", "r@y", b"")
        assert not client.client.connected


def test_server_and_port_count_from_the_next_connect_on(make: Make) -> None:
    """And not in the middle of what is being sent."""
    with serving(answer_all()) as first, serving(answer_all()) as second:
        client = make(first.address)
        client.client.server = "127.0.0.1"
        client.client.port = second.port
        client.send("s@x", "r@y", b"one")
        client.connect()
        client.send("s@x", "r@y", b"two")
        with pytest.raises(ConfigError):
            client.client.port = 70_000
        with pytest.raises(ConfigError):
            client.client.server = ""
        assert (client.client.server, client.client.port) == ("127.0.0.1", second.port)
    assert [p.text for p in first.packages] == [b"one"]
    assert [p.text for p in second.packages] == [b"two"]


def test_connecting_twice_is_one_connection(make: Make) -> None:
    """And disconnecting twice is harmless."""
    with serving(answer_all()) as server:
        client = make(server.address)
        client.connect()
        client.send("s@x", "r@y", b"")
        assert server.connections == 1
        client.client.disconnect()
        client.client.disconnect()
        assert not client.client.connected
        client.connect()
        client.send("s@x", "r@y", b"")
        assert server.connections == 2


def test_a_session_is_replaced_between_packages(make: Make) -> None:
    """After an hour the server would hang up on what is in flight (qmtp.txt, section 2)."""
    with serving(answer_all()) as server:
        client = make(server.address, session_limit=1e-6)
        assert said(client.send_many(packages(4))) == [SEEN] * 4
    assert server.connections >= 4
    assert len(server.packages) == 4


# Many messages


def test_results_come_in_order_and_belong_to_their_packages(make: Make) -> None:
    """Whatever the server says to whom."""
    sent = [Package("s@x", f"{'kzd'[n % 3]}{n}@y", b"x" * n) for n in range(500)]
    with serving(answer_all(by_letter)) as server:
        results = make(server.address).send_many(sent)
    assert [r[0].recipient for r in results] == [f"{'kzd'[n % 3]}{n}@y" for n in range(500)]
    assert said(results) == [f"{'KZD'[n % 3]} for {'kzd'[n % 3]}{n}@y" for n in range(500)]
    assert [p.text for p in server.packages] == [b"x" * n for n in range(500)]


def test_many_are_under_way_before_the_first_is_answered(make: Make) -> None:
    """One after the other, each would cost a round trip."""

    def patient(peer: Peer) -> None:
        peer.read_package()
        peer.respond(b"Kok")
        for _ in range(999):
            assert peer.read_package() is not None
        peer.respond(*[b"Kok"] * 999)

    with serving(patient) as server:
        assert said(make(server.address).send_many(packages(1000))) == [SEEN] * 1000
    assert server.connections == 1


def test_a_server_that_wants_to_be_read_first_is_read(make: Make) -> None:
    """Both sides writing and nobody reading is the deadlock of qmtp.txt, section 2."""
    long = b"K" + b"x" * 60_000
    with serving(answer_all(lambda package, recipient: long)) as server:
        results = make(server.address).send_many(packages(300, size=60_000))
    assert all(result.accepted for result in results)
    assert len(server.packages) == 300


def test_packages_are_taken_only_as_there_is_room(make: Make) -> None:
    """The iterable may be a database with a million of them."""
    taken = 0

    def counted() -> Iterator[Package]:
        nonlocal taken
        for package in packages(10_000):
            taken += 1
            yield package

    with serving(answer_all()) as server:
        client = make(server.address, window=16)
        assert len(client.send_many(counted(), stop_after=3)) == 3
    assert taken <= 3 + 16 + 1


def test_the_bytes_in_flight_are_bounded(make: Make) -> None:
    """One more than the window at most."""
    taken = 0
    most = 0

    def counted() -> Iterator[Package]:
        nonlocal taken
        for package in packages(40, size=50_000):
            taken += 1
            yield package

    def script(peer: Peer) -> None:
        nonlocal most
        answered = 0
        while peer.read_package() is not None:
            most = max(most, taken - answered)
            answered += 1
            peer.respond(b"Kok")

    with serving(script) as server:
        assert len(make(server.address, window=(1000, 200_000)).send_many(counted())) == 40
    assert most <= 8


def test_an_iterable_that_raises_ends_it_after_what_it_gave(make: Make) -> None:
    """What was sent is told of; the connection is not lost for it."""

    def broken() -> Iterator[Package]:
        yield from packages(5)
        raise LookupError("no such row")

    with serving(answer_all()) as server:
        client = make(server.address)
        with pytest.raises(LookupError, match="no such row") as caught:
            client.send_many(broken())
        assert said(caught.value.results) == [SEEN] * 5  # type: ignore[attr-defined]
        assert said([client.send("s@x", "r@y", b"")]) == [SEEN]
    assert server.connections == 1


def test_a_message_whose_reader_stops_an_iteration_is_no_end_of_the_packages(make: Make) -> None:
    """The rest was never sent, and nobody was told."""

    class Chunks:
        def __init__(self) -> None:
            self.chunks = iter([b"two"])

        def read(self, count: int) -> bytes:
            return next(self.chunks)  # which forgets b"" at the end

    sent = [
        Package("s@x", "r@y", b"one"),
        Package("s@x", "r@y", Chunks()),
        Package("s@x", "r@y", b"three"),
    ]
    with serving(answer_all()) as server:
        with pytest.raises(RuntimeError, match="StopIteration") as caught:
            make(server.address).send_many(sent)
        assert said(caught.value.results) == [SEEN]  # type: ignore[attr-defined]


def test_no_packages_are_no_results(make: Make) -> None:
    """And no connection."""
    client = make("127.0.0.1", port=closed_port(), defer_connect=True)
    assert client.send_many([]) == []


@pytest.mark.parametrize("answer", ["k", "z", "d"])
@pytest.mark.parametrize("count", [1, 2])
def test_a_large_file_is_closed_whatever_the_answer(
    make: Make, tmp_path: Path, answer: str, count: int
) -> None:
    """A program that sends for weeks would run out of descriptors, one for each refusal."""
    path = tmp_path / "large"
    path.write_bytes(bytes(3 << 20))
    recipients = [f"{answer}{n}@y" for n in range(count)]
    with serving(answer_all(by_letter)) as server:
        client = make(server.address)
        client.send("s@x", "k@y", b"")
        before = open_descriptors()
        for _ in range(2):
            assert len(client.send("s@x", recipients, path)) == count
        assert open_descriptors() == before


def test_a_package_that_was_taken_and_not_sent_is_closed(make: Make, tmp_path: Path) -> None:
    """It waits for its turn when the program leaves: nobody else would close its file."""
    path = tmp_path / "large"
    path.write_bytes(bytes(3 << 20))
    sent = [Package("s@x", f"k{n}@y", b"") for n in range(2)]
    # Several recipients go alone at first, so it has to wait for the answer to the one before.
    sent.append(Package("s@x", ["k2@y", "k3@y"], path))
    before = open_descriptors()
    with serving(answer_all(by_letter)) as server:
        client = make(server.address)
        assert len(client.send_many(sent, stop_after=2)) == 2
        client.close()
    assert open_descriptors() == before


def test_leaving_early_takes_nothing_more_from_an_asynchronous_source() -> None:
    """A package that comes later, in a queue say, is not swallowed: the next run gets it."""

    async def main(address: str) -> None:
        queue: asyncio.Queue[Package] = asyncio.Queue()
        *sent, later = packages(3)
        for package in sent:
            queue.put_nowait(package)

        async def source() -> AsyncIterator[Package]:
            while True:
                yield await queue.get()

        async with AsyncQMTPClient(address) as client:
            async with contextlib.aclosing(client.send_many(source())) as results:
                for _ in sent:
                    assert said([await anext(results)]) == [SEEN]
            queue.put_nowait(later)
            for _ in range(5):  # whatever still waits for the queue has its turn now
                await asyncio.sleep(0)
            assert queue.qsize() == 1

    with serving(answer_all()) as server:
        asyncio.run(main(server.address))


def test_leaving_the_loop_early_leaves_a_client_that_works(make: Make) -> None:
    """What was in flight is not mixed up with what comes next."""
    with serving(answer_all(by_letter)) as server:
        client = make(server.address)
        sent = [Package("s@x", f"z{n}@y", b"x") for n in range(200)]
        assert len(client.send_many(sent, stop_after=2)) == 2
        assert said([client.send("s@x", "k@y", b"")]) == ["K for k@y"]


# Trouble


def test_a_close_in_the_middle_defers_the_rest_and_says_who_is_in_doubt(make: Make) -> None:
    """Any response not received is a temporary failure (qmtp.txt, section 2)."""

    def script(peer: Peer) -> None:
        for number in range(10):
            peer.read_package()
            if number < 4:
                peer.respond(b"Kok")

    with serving(script) as server:
        client = make(server.address)
        with pytest.raises(TransportError) as caught:
            client.send_many(packages(10))
    results: list[SendResult] = caught.value.results  # type: ignore[attr-defined]
    assert len(results) == 10
    assert said(results[:4]) == [SEEN] * 4
    for result in results[4:]:
        assert len(result.deferred) == len(result.in_doubt) == 1
        assert not result[0].answered
        assert result[0].response.text.startswith("no answer, may have been taken: ")
    assert caught.value.result == results[4]
    assert not client.client.connected


def test_after_a_break_less_is_in_flight(make: Make) -> None:
    """So that a server that breaks off again leaves less in doubt."""

    def script(peer: Peer) -> None:
        peer.read_package()
        peer.respond(b"Kok")
        for _ in range(64):
            peer.read_package()

    with serving(script) as server:
        client = make(server.address, window=64)
        with pytest.raises(TransportError) as caught:
            client.send_many(packages(100))
        assert client.client._session._window.size == 8
    results: list[SendResult] = caught.value.results  # type: ignore[attr-defined]
    assert len(results) == 65


def test_a_violation_ends_it(make: Make) -> None:
    """After nonsense no later answer can be trusted."""

    def script(peer: Peer) -> None:
        peer.read_package()
        peer.respond(b"Kok")
        peer.read_package()
        peer.respond(b"Xwhat")
        peer.read_package()

    with serving(script) as server:
        client = make(server.address, window=1)
        with pytest.raises(ProtocolError, match="none of K, Z and D") as caught:
            client.send_many(packages(5))
    results: list[SendResult] = caught.value.results  # type: ignore[attr-defined]
    assert said(results[:1]) == [SEEN]
    assert len(results) == 2


def test_a_server_that_is_silent_is_a_timeout(make: Make) -> None:
    """A program must not wait for an answer for ever."""
    with serving(never_answers) as server:
        client = make(server.address, response_timeout=0.05)
        with pytest.raises(ResponseTimeout) as caught:
            client.send("s@x", "r@y", b"")
    assert isinstance(caught.value, TimeoutError)
    assert caught.value.result is not None
    assert len(caught.value.result.in_doubt) == 1


def test_a_server_that_takes_nothing_is_a_timeout(make: Make) -> None:
    """What it did not get whole is not in doubt."""
    done = threading.Event()
    with serving(lambda peer: wait_for(done)) as server:
        client = make(server.address, write_timeout=0.05)
        with pytest.raises(WriteTimeout) as caught:
            client.send("s@x", "r@y", b"x" * 50_000_000)
        done.set()
    assert caught.value.result is not None
    assert not caught.value.result.in_doubt
    assert caught.value.result.deferred


def test_a_file_that_shrinks_while_it_is_sent_is_never_sent_whole(
    make: Make, tmp_path: Path
) -> None:
    """Half a message with a full stop at its end is worse than none."""
    path = tmp_path / "message"
    path.write_bytes(b"x" * 3_000_000)

    class Shrinks:
        def read(self, size: int) -> bytes:
            os.truncate(path, 2_900_000)
            return b""

    with serving(answer_all()) as server:
        client = make(server.address)
        sent = [*packages(3), Package("s@x", "r@y", [path, Shrinks()]), *packages(3)]
        with pytest.raises(FileChangedError, match="changed while it was being sent") as caught:
            client.send_many(sent)
        results: list[SendResult] = caught.value.results  # type: ignore[attr-defined]
        assert said(results[:3]) == [SEEN] * 3
        assert caught.value.result == results[3]
        assert not results[3].in_doubt
        assert said([client.send("s@x", "r@y", b"again")]) == [SEEN]
    assert [p.text[:5] for p in server.packages] == [b"0 xxx", b"1 xxx", b"2 xxx", b"again"]


def test_a_file_that_cannot_be_looked_at_costs_no_other_result(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On NFS its server may have lost it: an `OSError` would hide what became of the others."""
    path = tmp_path / "message"
    path.write_bytes(b"x" * 3_000_000)
    fstat = os.fstat
    lost: list[tuple[int, int]] = []

    def stale(fd: int) -> os.stat_result:
        status = fstat(fd)
        if (status.st_dev, status.st_ino) in lost:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return status

    class Vanishes:
        def read(self, size: int) -> bytes:
            status = path.stat()
            lost.append((status.st_dev, status.st_ino))
            return b""

    monkeypatch.setattr(os, "fstat", stale)
    with serving(answer_all()) as server:
        sent = [*packages(2), Package("s@x", "r@y", [path, Vanishes()])]
        with pytest.raises(FileChangedError, match="Stale file handle") as caught:
            make(server.address).send_many(sent)
        results: list[SendResult] = caught.value.results  # type: ignore[attr-defined]
        assert said(results[:2]) == [SEEN] * 2
        assert caught.value.result == results[2]
        assert not results[2].in_doubt


# Servers that answer once per package


def once_per_package(peer: Peer) -> None:
    """As mailfront does."""
    while (package := peer.read_package()) is not None:
        peer.respond(b"D" if b"d@y" in package.recipients else b"Kok")


def test_a_server_that_answers_once_per_package_is_found_out(make: Make, tmp_path: Path) -> None:
    """Else its single answer shifts all that follow; still one result for each package."""
    path = tmp_path / "message"
    path.write_bytes(b"x" * 2_000_000)
    sent = [
        Package("s@x", "a@y", b"one"),
        Package("s@x", ["a@y", "d@y", "b@y"], path),
        Package("s@x", ["d@y", "a@y"], b"three"),
        Package("s@x", "b@y", b"four"),
    ]
    with serving(once_per_package) as server:
        client = make(server.address, grace_time=0.05)
        results = client.send_many(sent)
        assert [[r.recipient for r in result] for result in results] == [
            ["a@y"],
            ["a@y", "d@y", "b@y"],
            ["d@y", "a@y"],
            ["b@y"],
        ]
        assert [[r.response.status.value for r in result] for result in results] == [
            ["K"],
            ["K", "D", "K"],
            ["D", "K"],
            ["K"],
        ]
        assert [r.recipient for r in results[1].in_doubt] == ["a@y", "d@y", "b@y"]
        assert not results[2].in_doubt
        assert server.connections == 2
        assert [len(p.recipients) for p in server.packages] == [1, 3, 1, 1, 1, 1, 1, 1]
        assert all(p.text == b"x" * 2_000_000 for p in server.packages[1:5])


@pytest.mark.parametrize("responds_to_nobody", [True, False])
def test_a_package_of_many_recipients_is_sent_again_once(
    make: Make, responds_to_nobody: bool
) -> None:
    """Put twice, its second copy had no end: `send` hung, or the next packages were its text."""

    def once(peer: Peer) -> None:
        while (package := peer.read_package()) is not None:
            if package.recipients or responds_to_nobody:
                peer.respond(b"Kok")

    many = [f"r{number}@y" for number in range(MAX_PACKAGE_RECIPIENTS + 2)]
    sent = [Package("s@x", many, b"one"), Package("s@x", "a@y", b"two")]
    with serving(once) as server:
        # The short time-out ends a test that would hang.
        client = make(server.address, grace_time=0.05, response_timeout=30)
        results = client.send_many([*sent, Package("s@x", "b@y", b"three")])
    assert [len(result.accepted) for result in results] == [len(many), 1, 1]
    assert [outcome.recipient for outcome in results[0]] == many
    assert [taken.text for taken in server.packages[-2:]] == [b"two", b"three"]
    # The first recipient's answer counts; each of the others has a package of their own.
    alone = [taken.recipients for taken in server.packages[1:-2]]
    assert alone == [(recipient.encode(),) for recipient in many[1:]]


def test_another_connection_may_lead_to_another_server(make: Make) -> None:
    """A name has several addresses: what the one does says nothing of how the next one answers."""

    def two_kinds(peer: Peer) -> None:
        if peer.server.connections > 1:
            once_per_package(peer)
        for _ in range(2):
            package = peer.read_package()
            if package is not None:
                peer.respond(*[b"D" if r == b"d@y" else b"Kok" for r in package.recipients])

    both = [Package("s@x", "a@y", b"one"), Package("s@x", ["a@y", "b@y"], b"two")]
    then = [*both, Package("s@x", "d@y", b"refused"), Package("s@x", "c@y", b"last")]
    with serving(two_kinds) as server:
        client = make(server.address, grace_time=0.05, response_timeout=5)
        assert all(result.accepted for result in client.send_many(both))
        wait_until(lambda: not client.client._session.is_alive(), "the server to hang up")
        results = client.send_many(then)
        said = [[r.response.status.value for r in result] for result in results]
    assert said == [["K"], ["K", "K"], ["D"], ["K"]]


def test_an_acceptance_for_all_is_kept_for_the_first(make: Make) -> None:
    """It is true for the first either way; the others are asked for again, and may get it twice."""
    with serving(once_per_package) as server:
        client = make(server.address, grace_time=0.05)
        result = client.send("s@x", ["a@y", "b@y"], b"one")
    assert [r.response.status.value for r in result] == ["K", "K"]
    assert [r.recipient for r in result.in_doubt] == ["b@y"]
    assert [p.recipients for p in server.packages] == [(b"a@y", b"b@y"), (b"b@y",)]


def test_what_was_learnt_is_forgotten_with_another_server(make: Make) -> None:
    """One recipient per package costs a round trip's worth of bytes each."""
    with serving(once_per_package) as first, serving(answer_all()) as second:
        client = make(first.address, grace_time=0.05)
        client.send("s@x", ["a@y", "b@y"], b"one")
        client.client.server = second.address
        client.connect()
        client.send("s@x", ["a@y", "b@y"], b"one")
    assert [p.recipients for p in second.packages] == [(b"a@y", b"b@y")]


def test_a_package_that_has_to_go_alone_waits_its_turn(make: Make) -> None:
    """Until the server has shown how it answers, nothing may be mixed with its answers."""
    sent = [*packages(20), Package("s@x", ["d@y", "k@y", "z@y"], b"x"), *packages(20)]
    with serving(answer_all(lambda p, r: by_letter(p, r) if r[:1] != b"r" else b"Kok")) as server:
        results = make(server.address).send_many(sent)
    assert [r.response.status.value for r in results[20]] == ["D", "K", "Z"]
    assert len(results) == 41
    assert server.connections == 1


def test_a_way_of_two_descriptors(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command's standard input and output are two, and so are a UCSPI client's."""
    made: list[FakeServer] = []

    def connect(server: object, timeout_s: float, *more: object) -> FakeServer:
        made.append(FakeServer(lambda me, package: me.respond(b"Kok"), two_fds=True))
        return made[-1]

    monkeypatch.setattr("maildirqmtp.client.client.connect", connect)
    client = make("mail.example.org")
    assert said(client.send_many(packages(50))) == [SEEN] * 50
    client.client.disconnect()
    assert [server.closed for server in made] == [True]


def test_endless_times_are_times(make: Make) -> None:
    """`math.inf` is how a program says that it does not care."""
    times = ("connect_timeout", "write_timeout", "response_timeout", "session_limit", "grace_time")
    with serving(answer_all()) as server:
        client = make(server.address, **dict.fromkeys(times, float("inf")))
        assert said(client.send_many(packages(3))) == [SEEN] * 3


# Each of them alone


def test_a_system_without_descriptors_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """By an error of our own, with a result, and without a hang."""

    def none_left() -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    with serving(never_answers) as server, QMTPClient(server.address) as client:
        monkeypatch.setattr("selectors.DefaultSelector", none_left)
        with pytest.raises(TransportError, match="Too many open files") as caught:
            client.send("s@x", "r@y", b"")
        assert not client.connected
    assert caught.value.result is not None
    assert caught.value.result.deferred
    assert not caught.value.result.in_doubt


def test_disconnecting_from_another_task_ends_a_send() -> None:
    """Or it would wait for a connection that is closed, for an hour."""
    has_it = threading.Event()

    def script(peer: Peer) -> None:
        peer.read_package()
        has_it.set()
        peer.read_package()

    async def main(server: str) -> None:
        async with AsyncQMTPClient(server) as client:
            sending = asyncio.create_task(client.send("s@x", "r@y", b"x"))
            await asyncio.to_thread(has_it.wait, 30)
            client.disconnect()
            with pytest.raises(TransportError, match="told to stop") as caught:
                await sending
            assert caught.value.result is not None
            assert caught.value.result.in_doubt
            await client.reconnect()
            assert client.connected

    with serving(script) as server:
        asyncio.run(asyncio.wait_for(main(server.address), 30))


def test_connecting_to_another_server_from_another_task_ends_a_send() -> None:
    """Or it would wait for a descriptor that is closed, and not even end by being cancelled."""
    has_it = threading.Event()

    def script(peer: Peer) -> None:
        peer.read_package()
        has_it.set()
        peer.read_package()

    async def main(first: str, second: str) -> None:
        async with AsyncQMTPClient(first) as client:
            sending = asyncio.create_task(client.send("s@x", "r@y", b"x"))
            await asyncio.to_thread(has_it.wait, 30)
            client.server = second
            await client.connect()
            await asyncio.wait((sending,), timeout=30)
            assert sending.done()
            assert isinstance(sending.exception(), TransportError)
            assert said([await client.send("s@x", "r@y", b"x")]) == [SEEN]

    with serving(script) as first, serving(answer_all()) as second:
        asyncio.run(asyncio.wait_for(main(first.address, second.address), 60))


def test_a_connection_that_comes_after_a_cancellation_is_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The thread that makes it cannot be stopped."""
    go = threading.Event()
    made: list[FakeServer] = []

    def connect(server: object, timeout_s: float, *more: object) -> FakeServer:
        go.wait(30)
        made.append(FakeServer(lambda me, package: None))
        return made[-1]

    async def main() -> None:
        client = AsyncQMTPClient("mail.example.org")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await client.connect()
        assert not client.connected
        go.set()
        while not (made and made[0].closed):
            await asyncio.sleep(0.001)

    monkeypatch.setattr("maildirqmtp.client.client.connect", connect)
    asyncio.run(asyncio.wait_for(main(), 30))


def test_disconnecting_while_another_task_connects_ends_its_send(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The mail went out after the program had disconnected, over a connection that stayed open."""
    dialled, go = threading.Event(), threading.Event()
    made: list[FakeServer] = []

    def connect(server: object, timeout_s: float, *more: object) -> FakeServer:
        dialled.set()
        go.wait(30)
        made.append(FakeServer(lambda me, package: me.respond(b"Kok")))
        return made[-1]

    async def main() -> None:
        client = AsyncQMTPClient("mail.example.org")
        sending = asyncio.create_task(client.send("s@x", "r@y", b"x"))
        await asyncio.to_thread(dialled.wait, 30)
        client.disconnect()
        client.disconnect()
        with pytest.raises(ConnectError, match="told to disconnect") as caught:
            await sending
        assert caught.value.result is not None
        assert not caught.value.result.in_doubt
        assert not client.connected
        go.set()
        while not (made and made[0].closed):
            await asyncio.sleep(0.001)
        assert said([await client.send("s@x", "r@y", b"x")]) == [SEEN]
        client.disconnect()

    monkeypatch.setattr("maildirqmtp.client.client.connect", connect)
    asyncio.run(asyncio.wait_for(main(), 60))


def test_a_connection_that_is_made_as_the_program_disconnects_is_closed() -> None:
    """It is there, and the task that waits for it has not run yet."""
    made = FakeServer(lambda me, package: None)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        dialling: asyncio.Future[Any] = loop.create_future()
        client = AsyncQMTPClient("mail.example.org")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(async_client, "_in_thread", lambda *arguments: dialling)
            connecting = asyncio.create_task(client.connect())
            await asyncio.sleep(0)
            dialling.set_result(made)
            client.disconnect()
            with pytest.raises(ConnectError, match="told to disconnect"):
                await connecting
        await asyncio.sleep(0)
        assert made.closed
        assert not client.connected

    asyncio.run(asyncio.wait_for(main(), 60))


def test_sending_inside_of_send_many_is_refused_and_harms_nothing() -> None:
    """The answers of one would be taken for the other's."""
    with serving(answer_all()) as server, QMTPClient(server.address) as client:
        results = []
        for result in client.send_many(packages(5)):
            with pytest.raises(RuntimeError, match="sending already"):
                client.send("s@x", "r@y", b"")
            results.append(result)
        assert said(results) == [SEEN] * 5
        client.send("s@x", "r@y", b"")
    assert len(server.packages) == 6


def test_a_client_that_is_disconnected_in_the_middle_says_so() -> None:
    """And whoever is in doubt is told of."""

    def script(peer: Peer) -> None:
        peer.read_package()
        peer.respond(b"Kok")
        peer.read_package()
        peer.read_package()
        peer.respond(b"Kok")
        peer.read_package()

    with serving(script) as server, QMTPClient(server.address) as client:
        stream = client.send_many(packages(3))
        assert said([next(stream), next(stream)]) == [SEEN] * 2
        client.disconnect()
        assert len(next(stream).in_doubt) == 1
        with pytest.raises(TransportError, match="told to stop"):
            next(stream)


#: Plain scripts, whose client closes its connection as the interpreter ends.
SCRIPTS = {
    "sync": """
client = QMTPClient(server, tls=tls)
assert client.send("s@x", "r@y", b"one").accepted
""",
    "async": """
import asyncio
from maildirqmtp import AsyncQMTPClient
client = AsyncQMTPClient(server, tls=tls)
assert asyncio.run(client.send("s@x", "r@y", b"one")).accepted
""",
    "amid a send_many": """
client = QMTPClient(server, tls=tls, window=1)
stream = client.send_many([Package("s@x", "r@y", b"x")] * 4)
assert next(stream).accepted
""",
}


@pytest.mark.parametrize("way", ["plain", "tls", "exec"])
@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_that_just_ends_says_nothing(
    authority: Authority, identity: Identity, tmp_path: Path, script: str, way: str
) -> None:
    """It ended with a traceback, and cron sends that to people, who take the mail for lost."""
    code = (
        "import sys; from maildirqmtp import Package, QMTPClient, Tls\n"
        "server, ca = sys.argv[1:]; tls = Tls(ca=ca) if ca else None\n"
    )
    path = make_maildir(tmp_path / "Maildir")
    answers = answer_all()
    ca = authority.file if way == "tls" else ""
    with serving(over_tls(identity.context(), answers) if way == "tls" else answers) as server:
        address = {
            "plain": server.address,
            "tls": f"qmtps://{server.address}",
            "exec": f"exec:{shlex.join([*command('qmtpmaildir'), '-q', '--stdio', str(path)])}",
        }[way]
        done = subprocess.run(
            [sys.executable, "-c", code + SCRIPTS[script], address, ca],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert (done.returncode, done.stderr) == (0, "")


#: A program that forks while a package waits for its answer, which has come when the child ends.
FORKS = """
import os, select, sys
from maildirqmtp import Package, QMTPClient, Tls

server, ca = sys.argv[1:]
client = QMTPClient(server, tls=Tls(ca=ca) if ca else None, response_timeout=20)
stream = client.send_many([Package("s@x", "r@y", b"one"), Package("s@x", "r@y", b"two")])
assert next(stream).accepted
print("answered", flush=True)
if not (child := os.fork()):
    select.select([client._session.transport.read_fd], [], [])
    client.disconnect()
    assert not client.connected
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
assert [bool(result.accepted) for result in stream] == [True]
if not (child := os.fork()):
    del client, stream
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
if not (child := os.fork()):
    assert client.send("s@x", "r@y", b"by the child").accepted
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
assert client.send("s@x", "r@y", b"three").accepted
"""


@pytest.mark.parametrize("tls", [True, False])
def test_a_fork_leaves_the_connection_of_its_parent_alone(
    authority: Authority, identity: Identity, tls: bool
) -> None:
    """It took an answer, or ended TLS: what the parent had sent was in doubt, and went twice.

    What a child sends itself goes over a connection of its own.
    """
    go_on = threading.Event()

    def script(peer: Peer) -> None:
        while (package := peer.read_package()) is not None:
            if package.text == b"two":
                go_on.wait(30)
            peer.respond(b"Kok")

    with serving(over_tls(identity.context(), script) if tls else script) as server:
        address = f"qmtps://{server.address}" if tls else server.address
        arguments = [sys.executable, "-c", FORKS, address, authority.file if tls else ""]
        with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as program:
            assert program.stdout is not None
            assert program.stdout.readline() == "answered\n"
            go_on.set()
            assert program.wait(60) == 0
    assert [package.text for package in server.packages] == [
        b"one",
        b"two",
        b"by the child",
        b"three",
    ]
    assert server.connections == 2


def test_tasks_take_turns() -> None:
    """Two tasks on one connection must not read each other's answers."""

    async def main(server: str) -> list[SendResult]:
        async with AsyncQMTPClient(server) as client:
            return await asyncio.gather(*[client.send("s@x", f"k{n}@y", b"x") for n in range(20)])

    with serving(answer_all(by_letter)) as server:
        results = asyncio.run(main(server.address))
    assert said(results) == [f"K for k{n}@y" for n in range(20)]
    assert server.connections == 1


def test_in_another_event_loop_it_goes_on() -> None:
    """A lock belongs to the loop in which a task has waited for it: RuntimeError, under load."""
    with serving(answer_all(by_letter)) as server:
        client = AsyncQMTPClient(server.address)

        async def main() -> list[SendResult]:
            return await asyncio.gather(*[client.send("s@x", f"k{n}@y", b"x") for n in range(3)])

        for _ in range(2):
            assert said(asyncio.run(main())) == [f"K for k{n}@y" for n in range(3)]
        client.disconnect()


def test_connecting_takes_no_thread_of_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has a few for all; those of connections that were given up would keep the others out."""

    async def main(server: str) -> str:
        loop = asyncio.get_running_loop()
        monkeypatch.setattr(loop, "run_in_executor", None)
        with blackhole() as dead:
            client = AsyncQMTPClient("127.0.0.1", port=dead, connect_timeout=DEADLINE_S)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(client.connect(), 0.01)
        async with AsyncQMTPClient(server) as healthy:
            result = await healthy.send("s@x", "k@y", b"x")
        return str(result[0].response)

    with serving(answer_all(by_letter)) as server:
        assert asyncio.run(main(server.address)).startswith("K")


def test_without_a_thread_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the machine has no more."""

    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    async def main() -> None:
        monkeypatch.setattr(threading.Thread, "start", start)
        with pytest.raises(ConnectError, match="can't start new thread"):
            await AsyncQMTPClient("127.0.0.1", port=closed_port()).connect()

    asyncio.run(main())


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize(
    ("kind_of", "method", "were_taken"),
    [(PackageInFlight, "__init__", 0), (Pipeline, "_pass_fence", 1), (Pipeline, "_answer", 1)],
)
def test_what_is_interrupted_leaves_nothing_on_the_connection(
    kind_of: type, method: str, were_taken: int, asynchronous: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """^C, or an alarm, that the program catches: each later answer was the one before."""

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    def send(*recipients: str) -> str:
        found: Any = client.send("s@x", recipients, b"x")
        result = loop.run_until_complete(found) if asynchronous else found
        return str(result[0].response)

    kind = AsyncQMTPClient if asynchronous else QMTPClient
    loop = asyncio.new_event_loop()
    with serving(answer_all(by_letter)) as server, contextlib.closing(loop):
        client = kind(server.address, defer_connect=True)
        with monkeypatch.context() as patch:
            patch.setattr(kind_of, method, interrupted)
            with pytest.raises(KeyboardInterrupt):
                send("k1@y", "k0@y")
        assert send("d2@y").startswith("D")
        assert send("k3@y").startswith("K")
        client.disconnect()
        assert server.connections == 2
    taken = [package.recipients for package in server.packages]
    assert taken[were_taken:] == [(b"d2@y",), (b"k3@y",)]


def test_an_end_that_is_interrupted_is_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """^C twice, while a command that is slow to end is waited for: the client was of no use."""

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    close = Pipeline.close

    def interrupted_close(pipeline: Any) -> None:
        close(pipeline)
        raise KeyboardInterrupt

    with serving(answer_all(by_letter)) as server, QMTPClient(server.address) as client:
        with monkeypatch.context() as patch:
            patch.setattr(PackageInFlight, "__init__", interrupted)
            patch.setattr(Pipeline, "close", interrupted_close)
            with pytest.raises(KeyboardInterrupt):
                client.send("s@x", "k1@y", b"x")
        assert str(client.send("s@x", "k2@y", b"x")[0].response).startswith("K")


def test_a_task_that_sends_inside_of_its_send_many_is_told() -> None:
    """It would wait for itself."""

    async def main(server: str) -> None:
        async with AsyncQMTPClient(server) as client:
            async for _ in client.send_many(packages(2)):
                with pytest.raises(RuntimeError, match="already"):
                    await client.send("s@x", "r@y", b"")

    with serving(answer_all()) as server:
        asyncio.run(main(server.address))


def test_an_asynchronous_source_that_sends_by_the_same_client_is_told() -> None:
    """Each waited for the other, for ever."""

    async def main(server: str) -> None:
        async with AsyncQMTPClient(server) as client:

            async def source() -> AsyncIterator[Package]:
                yield Package("s@x", "r@y", b"one")
                await client.send("s@x", "r@y", b"two")
                yield Package("s@x", "r@y", b"three")

            results = []

            async def send_all() -> None:
                async for result in client.send_many(source()):
                    results.append(result)

            with pytest.raises(RuntimeError, match="already"):
                await send_all()
            assert said(results) == [SEEN]
            assert said([await client.send("s@x", "r@y", b"four")]) == [SEEN]

    with serving(answer_all()) as server:
        asyncio.run(asyncio.wait_for(main(server.address), 30))
    assert [package.text for package in server.packages] == [b"one", b"four"]


def test_answers_are_taken_in_while_an_async_iterable_is_waited_for() -> None:
    """A queue that is empty for an hour must not hold back the results of what went before."""

    async def main(server: str) -> list[str]:
        queue: asyncio.Queue[Package | None] = asyncio.Queue()
        heard: list[str] = []

        async def source() -> AsyncIterator[Package]:
            while (package := await queue.get()) is not None:
                yield package

        todo = list(packages(5))
        async with AsyncQMTPClient(server) as client:
            queue.put_nowait(todo.pop())
            async for result in client.send_many(source()):
                heard += said([result])
                # Only now, when the last one's result is here, is there a next one.
                queue.put_nowait(todo.pop() if todo else None)
        return heard

    with serving(answer_all()) as server:
        assert asyncio.run(asyncio.wait_for(main(server.address), 30)) == [SEEN] * 5


def test_a_cancelled_send_leaves_a_client_that_works() -> None:
    """`asyncio.timeout` around a send is how programs limit it."""
    hold = threading.Event()

    def script(peer: Peer) -> None:
        package = peer.read_package()
        if package is not None and package.text == b"first":
            hold.wait(30)
        elif package is not None:
            peer.respond(b"Kok")

    async def main(server: str) -> SendResult:
        async with AsyncQMTPClient(server) as client:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await client.send("s@x", "r@y", b"first")
            assert not client.connected
            return await client.send("s@x", "r@y", b"second")

    with serving(script) as server:
        try:
            assert said([asyncio.run(main(server.address))]) == [SEEN]
        finally:
            hold.set()


def test_a_slow_iterable_is_no_timeout_of_the_servers() -> None:
    """The clock ran while the program itself was busy."""

    class Clock:
        now = 0.0

        def __call__(self) -> float:
            return self.now

    clock = Clock()
    answered = 0

    def script(peer: Peer) -> None:
        nonlocal answered
        while peer.read_package() is not None:
            peer.respond(b"Kok")
            answered += 1

    def slow() -> Iterator[Package]:
        for number, package in enumerate(packages(4), start=1):
            yield package
            wait_until(lambda number=number: answered == number, "its answer")  # type: ignore[misc]
            clock.now += 100_000.0

    with serving(script) as server:
        client = QMTPClient(server.address, defer_connect=True)
        old = client._session
        client._session = ClientSession(old._window, old._timeouts, clock)
        assert said(client.send_many(slow())) == [SEEN] * 4
        client.disconnect()
