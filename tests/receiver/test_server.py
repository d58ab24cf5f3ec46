"""The receiver's server: several clients, time, stopping, and clients that misbehave."""

import contextlib
import errno
import os
import select
import selectors
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest.mock import Mock

import pytest

from maildirqmtp.errors import ConfigError, LocalError
from maildirqmtp.qmtp.protocol import Response, ResponseReader, Status, package_head, package_tail
from maildirqmtp.receiver import server
from maildirqmtp.receiver.clients import Client as Peer
from maildirqmtp.receiver.clients import Origin, is_loopback
from maildirqmtp.receiver.connection import IDLE_S, SESSION_S, STOP_S, Connection
from maildirqmtp.receiver.listener import open_listener, show_address
from maildirqmtp.receiver.policy import Policy, Severity, only_domains
from maildirqmtp.receiver.server import Server
from maildirqmtp.receiver.session import Session
from maildirqmtp.receiver.streams import SocketStream, StdioStream, client_of, peer_name, stdio_peer
from tests.helpers import DEADLINE_S, names, wait_until
from tests.receiver.doubles import Clock, Log, serving_thread

REFUSED = Policy(refuse=only_domains([b"example.org"]))


def package(text: bytes = b"hi\n", recipients: tuple[bytes, ...] = (b"c@example.org",)) -> bytes:
    return package_head(len(text)) + text + package_tail(b"a@b", recipients)


SOMEBODY = Peer("p", Origin.UNKNOWN)


class Client:
    """A client on a socket."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.sock.settimeout(DEADLINE_S)
        self.sent = 0
        self._reader = ResponseReader()

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def responses(self, count: int) -> str:
        """Wait for `count` responses; return their letters."""
        letters = ""
        while len(letters) < count:
            response = self._reader.next()
            if response is None:
                data = self.sock.recv(65_536)
                assert data, f"closed after {letters!r}"
                self._reader.feed(data)
            else:
                letters += response.status.value
        return letters

    def at_end(self) -> bool:
        """Wait for the server to close; false where it still had something to say."""
        return self._reader.pending == 0 and self.sock.recv(1) == b""


def connect(server: Server | tuple[str, int]) -> Client:
    address = server.address if isinstance(server, Server) else server
    assert address is not None
    return Client(socket.create_connection(address, DEADLINE_S))


def connect_narrowly(server: Server) -> Client:
    """Connect with buffers so small that a client that does not read is soon felt."""
    assert server.address is not None
    server._listeners[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4_096)
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
    sock.connect(server.address)
    return Client(sock)


def fill(client: Client, data: bytes) -> None:
    """Send, without reading, until the server takes no more."""
    client.sock.settimeout(0.5)
    with contextlib.suppress(TimeoutError):
        while True:
            client.sent += client.sock.send(data[client.sent % len(data) :])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "Maildir"


@pytest.fixture
def start(path: Path, log: Log) -> Iterator[Callable[..., Server]]:
    """Starts servers that end with the test."""
    with contextlib.ExitStack() as stack:

        def start(**options: object) -> Server:
            options = {"listen": ("127.0.0.1", 0), "log": log, **options}
            server = stack.enter_context(Server(path, **options))  # type: ignore[arg-type]
            stack.enter_context(serving_thread(server))
            return server

        yield start


def stored(path: Path) -> int:
    assert list((path / "tmp").iterdir()) == []
    return len(list((path / "new").iterdir()))


def test_delivers(start: Callable[..., Server], path: Path, log: Log) -> None:
    with connect(start()) as client:
        client.send(package() + package(recipients=(b"c@d", b"", b"e@f")))
        assert client.responses(4) == "KKDK"
    (line, *_) = (log.wait_for("accepted"),)
    assert line.startswith("[127.0.0.1]: <a@b> to <c@example.org>: accepted, ")
    assert stored(path) == 3


def test_ipv6(start: Callable[..., Server], path: Path, log: Log) -> None:
    try:
        server = start(listen=("::1", 0))
    except LocalError:
        pytest.skip("this machine has no IPv6")
    log.wait_for(r"listening on \[::1\]:\d+")
    with connect(server) as client:
        client.send(package())
        assert client.responses(1) == "K"
    (copy,) = (path / "new").iterdir()
    assert b"\nReceived: from [IPv6:::1] by " in copy.read_bytes()


def test_two_clients_at_once(start: Callable[..., Server], path: Path) -> None:
    """One amid its package must not keep the other waiting, nor mix with it."""
    server = start()
    data = package(b"x" * 100_000)
    with connect(server) as one, connect(server) as other:
        one.send(data[:50_000])
        other.send(data + data[:10])
        assert other.responses(1) == "K"
        one.send(data[50_000:])
        other.send(data[10:])
        assert one.responses(1) + other.responses(1) == "KK"
    assert {copy.read_bytes().count(b"xx") for copy in (path / "new").iterdir()} == {50_000}
    assert stored(path) == 3


def test_client_that_says_it_is_done(start: Callable[..., Server]) -> None:
    """A client may shut its side down at once and then collect every response."""
    with connect(start()) as client:
        client.send(package(recipients=(b"",)) * 1_000)
        client.sock.shutdown(socket.SHUT_WR)
        assert client.responses(1_000) == "D" * 1_000
        assert client.at_end()


def test_violation_with_more_behind_it(start: Callable[..., Server], log: Log) -> None:
    """Closing at once would reset the connection, and the K before it might get lost."""
    with connect(start()) as client:
        client.send(package() + b"EHLO\r\n" + b"x" * 200_000)
        assert client.responses(1) == "K"
        assert client.at_end()
        client.send(b"still talking")
    assert "EHLO" in log.wait_for("protocol violation")


def test_client_that_lingers_after_a_violation(
    start: Callable[..., Server], clock: Clock, log: Log
) -> None:
    """One that never closes its side is cut off, and its place is free again."""
    server = start(clock=clock, max_connections=1, timeout_s=2.0)
    with connect(server) as client:
        client.send(b"x")
        assert client.at_end()
        clock.now_s += 6.0
        client.send(b"wake up")
        with connect(server) as next_client:
            next_client.send(package())
            assert next_client.responses(1) == "K"


def test_client_that_vanishes_amid_a_package(
    start: Callable[..., Server], path: Path, log: Log
) -> None:
    with connect(start()) as client:
        client.send(package(b"x" * 1_000_000)[:-1])
    log.wait_for("went away in the middle of a package")
    assert stored(path) == 0


def test_client_that_resets(start: Callable[..., Server], path: Path, log: Log) -> None:
    """A crash of the client's machine is one log line, and nobody else notices."""
    server = start()
    with connect(server) as client:
        client.send(package() + b"100:\n")
        assert client.responses(1) == "K"
        client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    log.wait_for("connection broken: Connection reset by peer")
    with connect(server) as client:
        client.send(package())
        assert client.responses(1) == "K"
    assert stored(path) == 2


def test_client_that_never_reads(start: Callable[..., Server], clock: Clock, log: Log) -> None:
    """Its responses must not fill our memory, nor hold up the others; time ends it."""
    server = start(clock=clock, policy=REFUSED, timeout_s=100.0)
    data = package(b"", recipients=(b"x",) * 5_000)
    with connect_narrowly(server) as silent, connect(server) as other:
        deadline_s = time.monotonic() + DEADLINE_S
        while not log.has("took no response for 100 s"):
            assert time.monotonic() < deadline_s
            fill(silent, data)
            clock.now_s += 60.0
            other.send(package())
            assert other.responses(1) == "K"


@pytest.mark.parametrize("amid", [False, True])
def test_idle_client(start: Callable[..., Server], clock: Clock, log: Log, amid: bool) -> None:
    """Clients that went to sleep give their places back."""
    server = start(clock=clock, timeout_s=100.0)
    with connect(server) as idle, connect(server) as other:
        idle.send(package() + package()[: 5 if amid else 0])
        assert idle.responses(1) == "K"
        clock.now_s += 99.0
        other.send(package())
        assert other.responses(1) == "K"
        clock.now_s += 1.0
        other.send(package())
        assert idle.at_end()
        log.wait_for("sent nothing for 100 s, amid a package" if amid else "idle for 100 s")
        assert other.responses(1) == "K"


def test_a_session_lasts_an_hour(start: Callable[..., Server], clock: Clock, path: Path) -> None:
    """The protocol's limit; the package at hand is finished, the next is not begun."""
    server = start(clock=clock, timeout_s=1e12)
    with connect(server) as idle, connect(server) as amid:
        idle.send(package())
        assert idle.responses(1) == "K"
        amid.send(package() + package()[:5])
        assert amid.responses(1) == "K"
        clock.now_s += SESSION_S
        amid.send(package()[5:] + package())
        assert amid.responses(1) == "K"
        assert amid.at_end()
        assert idle.at_end()
    assert stored(path) == 3


def test_more_clients_than_places(start: Callable[..., Server]) -> None:
    """The second waits in the kernel, and is served as soon as the first is gone."""
    server = start(max_connections=1)
    with connect(server) as second:
        pass
    with connect(server) as first:
        first.send(package())
        assert first.responses(1) == "K"
        second = connect(server)
        second.send(package())
        first.send(package())
        assert first.responses(1) == "K"
        second.sock.settimeout(0.05)
        with pytest.raises(TimeoutError):
            second.responses(1)
        second.sock.settimeout(DEADLINE_S)
    with second:
        assert second.responses(1) == "K"


def failing_accept(
    monkeypatch: pytest.MonkeyPatch, errors: Iterator[BaseException | None]
) -> list[float]:
    """Let accept(2) fail with these; return the list of the calls that failed."""
    accept = socket.socket.accept
    calls: list[float] = []

    def fail_first(listener: socket.socket) -> tuple[socket.socket, object]:
        error = next(errors, None)
        if error is None:
            return accept(listener)
        calls.append(time.monotonic())
        raise error

    monkeypatch.setattr(socket.socket, "accept", fail_first)
    return calls


def os_error(number: int) -> OSError:
    return OSError(number, os.strerror(number))


def test_no_descriptor_for_its_start(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A traceback would not say what to do."""
    monkeypatch.setattr(os, "pipe2", Mock(side_effect=os_error(errno.EMFILE)))
    with pytest.raises(LocalError, match="cannot make a pipe: Too many open files"):
        Server(path, listen=None)


def test_no_descriptors_left(
    start: Callable[..., Server], monkeypatch: pytest.MonkeyPatch, log: Log
) -> None:
    """The server says so and tries again, instead of dying or burning the processor."""
    failing_accept(monkeypatch, map(os_error, [errno.EMFILE, errno.ECONNABORTED]))
    monkeypatch.setattr(server, "ACCEPT_PAUSE_S", 0.01)
    with connect(start()) as client:
        client.send(package())
        assert client.responses(1) == "K"
    log.wait_for("cannot accept a connection: Too many open files")


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENOMEM, errno.EPERM, errno.EINVAL, None])
def test_an_error_that_lasts_does_not_spin(
    start: Callable[..., Server],
    monkeypatch: pytest.MonkeyPatch,
    clock: Clock,
    log: Log,
    number: int | None,
) -> None:
    """200,000 lines of log in 3 seconds, and a processor, were the price of a full table."""
    broken = False
    error = MemoryError() if number is None else os_error(number)
    calls = failing_accept(monkeypatch, iter(lambda: error if broken else None, 0))
    with connect(start(clock=clock)) as client:
        client.send(package())
        assert client.responses(1) == "K"
        broken = True
        with connect(server_of(client)) as waiting:
            log.wait_for("cannot accept a connection: ")
            for _ in range(50):  # rounds of the loop; the clock stands still
                client.send(package())
                assert client.responses(1) == "K"
            assert len(calls) == 1
            clock.now_s += server.ACCEPT_PAUSE_S
            client.send(package())
            assert client.responses(1) == "K"
            wait_until(lambda: len(calls) == 2, "another try")
            broken = False
            clock.now_s += server.ACCEPT_PAUSE_S
            client.send(package() + package())
            assert client.responses(2) == "KK"
            waiting.send(package())
            assert waiting.responses(1) == "K"
    assert not log.has("cannot accept"), "at most one line a minute"


def test_clients_that_are_gone_at_once_do_not_spin(
    start: Callable[..., Server], monkeypatch: pytest.MonkeyPatch, clock: Clock, log: Log
) -> None:
    """One of them is no reason to pause; the same error again and again is."""
    broken = False
    error = os_error(errno.ECONNABORTED)
    calls = failing_accept(monkeypatch, iter(lambda: error if broken else None, 0))
    with connect(start(clock=clock)) as client:
        client.send(package())
        assert client.responses(1) == "K"
        broken = True
        with connect(server_of(client)):
            log.wait_for("cannot accept a connection: Software caused connection abort")
            client.send(package())
            assert client.responses(1) == "K"
        assert len(calls) == 20


# More clients than places


def server_of(client: Client) -> tuple[str, int]:
    """Return the address that a client is connected to."""
    host, port = client.sock.getpeername()
    return host, port


def connect_from(source: str, server: Server) -> Client:
    """Connect from another address of loopback: another client."""
    assert server.address is not None
    return Client(socket.create_connection(server.address, DEADLINE_S, (source, 0)))


def test_one_client_cannot_have_all_places(start: Callable[..., Server], log: Log) -> None:
    """40 connections of one machine shut everybody out for 20 minutes."""
    server = start(max_connections=4)
    with contextlib.ExitStack() as stack:
        greedy = [stack.enter_context(connect(server)) for _ in range(2)]
        for client in greedy:
            client.send(package() + package()[:5])
            assert client.responses(1) == "K"
        for _ in range(10):
            with connect(server) as refused:
                assert refused.at_end()
        other = stack.enter_context(connect_from("127.0.0.2", server))
        other.send(package())
        assert other.responses(1) == "K"
        for client in greedy:
            client.send(package()[5:])
            assert client.responses(1) == "K"
    log.wait_for(r"\[127.0.0.1\]: 2 connections already, and no more for one client")
    assert not log.has("connections already"), "at most one line a minute"


def test_an_idle_connection_makes_way_for_the_same_client(
    start: Callable[..., Server], clock: Clock
) -> None:
    """A client that has forgotten its connections can still send mail."""
    server = start(max_connections=4, clock=clock)
    with connect(server) as old, connect(server) as busy:
        for client in (old, busy):
            client.send(package())
            assert client.responses(1) == "K"
        busy.send(package()[:5])
        clock.now_s += IDLE_S
        with connect(server) as new:
            new.send(package())
            assert new.responses(1) == "K"
        assert old.at_end()
        busy.send(package()[5:])
        assert busy.responses(1) == "K"


def test_idle_ones_go_first_when_others_wait(
    start: Callable[..., Server], clock: Clock, log: Log
) -> None:
    """The one that is idle for longest; those at work stay."""
    server = start(max_connections=3, clock=clock)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connect_from(f"127.0.0.{n}", server)) for n in range(1, 4)]
        for client in clients:
            client.send(package())
            assert client.responses(1) == "K"
            clock.now_s += 1.0
        busy, longest, idle = clients
        busy.send(package()[:5])
        clock.now_s += IDLE_S
        with connect_from("127.0.0.9", server) as new:
            new.send(package())
            assert new.responses(1) == "K"
        assert longest.at_end()
        log.wait_for(r"\[127.0.0.2\]: idle, while others wait; closing")
        busy.send(package()[5:])
        idle.send(package())
        assert busy.responses(1) + idle.responses(1) == "KK"


def test_a_full_server_waits_without_spinning(start: Callable[..., Server], clock: Clock) -> None:
    """Where nobody may be sent away, the one that waits costs nothing."""
    server = start(max_connections=1, clock=clock)
    rounds: list[int] = []
    real = server._select
    server._select = lambda: rounds.append(1) or real()  # type: ignore[func-returns-value,method-assign]
    with connect(server) as client:
        client.send(package()[:5])
        with connect_from("127.0.0.2", server) as waiting:
            wait_until(lambda: server._others_wait, "the server to know of it")
            before = len(rounds)
            client.send(package()[5:])
            assert client.responses(1) == "K"
            assert len(rounds) - before < 10
            client.sock.close()
            waiting.send(package())
            assert waiting.responses(1) == "K"


@pytest.mark.parametrize(
    ("address", "client"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::9", "2001:db8:1:2::/64"),
        ("fe80::1%lo", "fe80::/64"),
        ("::1", "::/64"),
    ],
)
def test_what_counts_as_one_client(address: str, client: str) -> None:
    """Whoever has one address of a /64 has 2^64 of them."""
    assert client_of(address) == client


# Trouble of this machine


def test_no_memory_for_a_client_ends_that_client(
    start: Callable[..., Server], monkeypatch: pytest.MonkeyPatch, log: Log
) -> None:
    """Not the process, and with it everybody's mail."""
    server = start()
    feed = Session.feed

    def greedy(session: Session, data: bytes) -> None:
        if data.endswith(b"greedy"):
            raise MemoryError
        feed(session, data)

    monkeypatch.setattr(Session, "feed", greedy)
    with connect(server) as one, connect(server) as other:
        one.send(b"greedy")
        assert one.at_end()
        log.wait_for(r"\[127.0.0.1\]: out of memory; closing")
        other.send(package())
        assert other.responses(1) == "K"


@pytest.mark.parametrize("error", [os_error(errno.ENOMEM), MemoryError()])
@pytest.mark.parametrize("what", ["work", "__init__"])
def test_no_memory_for_a_session(
    start: Callable[..., Server], monkeypatch: pytest.MonkeyPatch, what: str, error: Exception
) -> None:
    """Nor at any other point; a copy that is half written goes."""
    server = start()

    def fail(*_: object, **__: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(Session, what, fail)
        with connect(server) as one:
            one.send(package())
            with contextlib.suppress(ConnectionResetError):
                assert one.sock.recv(1) == b""
    with connect(server) as other:
        other.send(package())
        assert other.responses(1) == "K"


@pytest.mark.parametrize("error", [os_error(errno.ENOMEM), MemoryError()])
def test_no_memory_to_wait_for_clients(
    path: Path, monkeypatch: pytest.MonkeyPatch, log: Log, error: Exception
) -> None:
    """poll(2) may say so; the next time it may work again."""
    real = selectors.PollSelector.select
    failures = [error] * 3

    def fail_first(selector: selectors.PollSelector, timeout: float | None = None) -> object:
        if failures:
            raise failures.pop()
        return real(selector, timeout)

    monkeypatch.setattr(selectors.PollSelector, "select", fail_first)
    monkeypatch.setattr(server, "SELECT_PAUSE_S", 0.01)
    with contextlib.ExitStack() as stack:
        serving = stack.enter_context(Server(path, listen=("127.0.0.1", 0), log=log))
        stack.enter_context(serving_thread(serving))
        client = stack.enter_context(connect(serving))
        client.send(package())
        assert client.responses(1) == "K"
    log.wait_for("cannot wait for clients: ")
    assert not log.has("cannot wait"), "at most one line a minute"


def test_stop_answers_what_is_complete(path: Path, log: Log) -> None:
    """A restart of the server loses nothing and doubles nothing that it had read."""
    with Server(path, listen=("127.0.0.1", 0), log=log) as server, connect(server) as client:
        with serving_thread(server):
            client.send(package() * 200 + package()[:5])
            assert client.responses(1) == "K"
            server.stop()
            assert client.responses(199) == "K" * 199
            assert client.at_end()
            client.sock.close()
        assert stored(path) == 200
        server.stop()
    server.stop()
    server.close()


def test_stop_with_nobody_there(path: Path, log: Log) -> None:
    """The usual restart: at once, and with its port free again."""
    with Server(path, listen=("127.0.0.1", 0), log=log) as server:
        address = server.address
        assert address is not None
        with serving_thread(server):
            log.wait_for("listening")
    with socket.create_server(address):
        pass


def test_stop_with_a_client_that_never_reads(path: Path, clock: Clock, log: Log) -> None:
    """It cannot keep the machine from shutting down."""
    listen = ("127.0.0.1", 0)
    server = Server(path, listen=listen, log=log, clock=clock, policy=REFUSED, timeout_s=1e12)
    with server, connect_narrowly(server) as silent, serving_thread(server):
        fill(silent, package(b"", recipients=(b"x",) * 5_000))
        server.stop()
        deadline_s = time.monotonic() + DEADLINE_S
        while not log.has("did not take its responses"):
            assert time.monotonic() < deadline_s
            clock.now_s += STOP_S
            server.stop()


def test_stop_with_stdio(path: Path, log: Log) -> None:
    """sshd or tcpserver is told to end: the response owed is written, and that is all."""
    ours, theirs = socket.socketpair()
    with Client(theirs) as client, Server(path, listen=None, log=log) as server:
        outcome: list[bool] = []
        serve = lambda: outcome.append(server.serve_stream(SocketStream(ours), SOMEBODY))  # noqa: E731
        thread = threading.Thread(target=serve)
        thread.start()
        client.send(package() + package()[:5])
        assert client.responses(1) == "K"
        server.stop()
        assert client.at_end()
        client.sock.close()
        thread.join(DEADLINE_S)
    assert outcome == [True]


def test_serving_without_an_address(path: Path) -> None:
    """A stop that comes first is not forgotten."""
    with Server(path, listen=None) as server:
        server.stop()
        assert server.address is None
        server.serve()
    assert names(path / "new") == []


def test_close_with_a_client_there(path: Path, log: Log) -> None:
    """A program that ends on an exception of its own leaves no descriptor open."""
    one, other = socket.socketpair()
    with other:
        with Server(path, listen=None, log=log) as server:
            server._add_client(SocketStream(one), SOMEBODY)
        assert one.fileno() == -1


def test_policy_of_a_program(start: Callable[..., Server]) -> None:
    """--demo, and tests of clients, answer what they like."""

    def refuse(recipient: bytes) -> Response | None:
        return Response(Status.DEFERRED, b"later") if recipient == b"z" else None

    with connect(start(policy=Policy(refuse=refuse))) as client:
        client.send(package(recipients=(b"y", b"z", b"y")))
        assert client.responses(3) == "KZK"


def test_beyond_loopback_only_with_a_policy(path: Path) -> None:
    """Nobody becomes an open relay by leaving an option out."""
    with pytest.raises(ConfigError, match=r"0\.0\.0\.0:\d+.*--domain"):
        Server(path, listen=("0.0.0.0", 0))
    with Server(path, listen=("0.0.0.0", 0), policy=REFUSED) as server:
        assert server.address is not None
        assert server.address[0] == "0.0.0.0"


@pytest.mark.parametrize(
    ("address", "answer"),
    [
        ("127.0.0.1", True),
        ("127.255.0.9", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("::", False),
        ("0.0.0.0", False),
        ("128.0.0.1", False),
        ("fe80::1%lo", False),
        ("::ffff:10.0.0.1", False),
    ],
)
def test_what_is_loopback(address: str, answer: bool) -> None:
    assert is_loopback(address) is answer


def test_addresses_that_cannot_be_listened_on(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each says what was tried and, where that is known, what to do."""
    with (
        Server(path, listen=("127.0.0.1", 0)) as server,
        pytest.raises(LocalError, match=r"cannot listen on 127\.0\.0\.1:\d+: Address already in"),
    ):
        Server(path, listen=server.address)
    with pytest.raises(LocalError, match="not a host name"):
        Server(path, listen=("x" * 64, 0))
    with pytest.raises(LocalError, match="cannot listen on no such host:9"):
        open_listener("no such host", 9)

    def bind(_: socket.socket, address: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(socket.socket, "bind", bind)
    with pytest.raises(LocalError, match="Permission denied; ports below 1024 are root's"):
        open_listener("127.0.0.1", 209)
    with pytest.raises(LocalError, match=r"Permission denied$"):
        open_listener("127.0.0.1", 2_090)


def test_maildirs_that_cannot_be_used(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_text("")
    with pytest.raises(LocalError, match="Not a directory"):
        Server(path)
    path.unlink()

    def fsync(fd: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        with pytest.raises(LocalError, match="Input/output error"):
            Server(path)
    real_open = os.open

    def open_but_parents(name: bytes, flags: int, *mode: int, **options: int) -> int:
        if name == b"..":
            raise PermissionError
        return real_open(name, flags, *mode, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", open_but_parents)
        Server(path, listen=None).close()


def test_show_address() -> None:
    assert show_address("127.0.0.1", 209) == "127.0.0.1:209"
    assert show_address("::1", 209) == "[::1]:209"
    assert peer_name("192.0.2.1") == "[192.0.2.1]"


def test_stdio_on_a_socket(path: Path, log: Log) -> None:
    """Under tcpserver and inetd: responses reach the client also after a violation."""
    ours, theirs = socket.socketpair()
    with ours, Client(theirs) as client, Server(path, listen=None, log=log) as server:
        outcome: list[bool] = []
        stream = StdioStream(ours.fileno(), ours.fileno())
        thread = threading.Thread(
            target=lambda: outcome.append(server.serve_stream(stream, SOMEBODY))
        )
        thread.start()
        client.send(package() + b"x" * 100_000)
        assert client.responses(1) == "K"
        assert client.at_end()
        client.sock.close()
        thread.join(DEADLINE_S)
        assert outcome == [False]


def test_stdio_on_pipes(path: Path) -> None:
    """Under ssh; a write of more than a pipe takes would block the whole server."""
    client_in, server_out = os.pipe()
    server_in, client_out = os.pipe()
    with contextlib.ExitStack() as stack:
        for fd in (client_in, server_in, server_out):
            stack.callback(os.close, fd)
        server = stack.enter_context(Server(path, listen=None, policy=REFUSED))
        outcome: list[bool] = []
        stream = StdioStream(server_in, server_out)
        thread = threading.Thread(
            target=lambda: outcome.append(server.serve_stream(stream, SOMEBODY))
        )
        thread.start()
        with open(client_out, "wb") as pipe:
            pipe.write(package(b"", recipients=(b"x",) * 5_000))
        reader = ResponseReader()
        count = 0
        while count < 5_000:
            reader.feed(os.read(client_in, 65_536))
            while reader.next() is not None:
                count += 1
        thread.join(DEADLINE_S)
        assert outcome == [True]
        assert not stream.half_close()


def test_stdio_never_writes_more_than_a_pipe_takes(path: Path) -> None:
    """Behind a pipe that others share, and that blocks, nothing else would go on."""
    read_fd, write_fd = os.pipe()
    stream = StdioStream(0, write_fd)
    written: list[int] = []
    thread = threading.Thread(target=lambda: written.append(stream.write(b"x" * 1_000_000)))
    thread.start()
    thread.join(5.0)
    hung = thread.is_alive()
    os.close(read_fd)
    thread.join(DEADLINE_S)
    os.close(write_fd)
    assert not hung
    assert written == [select.PIPE_BUF]


@pytest.mark.parametrize(
    ("variable", "value", "peer"),
    [
        ("TCPREMOTEIP", "192.0.2.1", "[192.0.2.1]"),
        ("TCP6REMOTEIP", "2001:db8::1", "[IPv6:2001:db8::1]"),
        ("SSH_CONNECTION", "192.0.2.7 40000 192.0.2.1 22", "[192.0.2.7]"),
        ("TCPREMOTEIP", "\x1b[2J", "stdin"),
        ("TCPREMOTEIP", "", "stdin"),
    ],
)
def test_who_is_behind_stdin(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, peer: str
) -> None:
    """The Received line says where mail came from, also under a super-server."""
    for name in ("TCPREMOTEIP", "TCP6REMOTEIP", "SSH_CONNECTION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, value)
    read_fd, write_fd = os.pipe()
    monkeypatch.setattr(os, "dup", lambda fd, dup=os.dup: dup(read_fd if fd == 0 else fd))
    assert stdio_peer() == peer
    os.close(read_fd)
    os.close(write_fd)


def test_who_is_behind_an_inetd_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TCPREMOTEIP", "TCP6REMOTEIP", "SSH_CONNECTION"):
        monkeypatch.delenv(name, raising=False)
    dup = os.dup
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()),
        listener.accept()[0] as accepted,
    ):
        monkeypatch.setattr(os, "dup", lambda _: dup(accepted.fileno()))
        assert stdio_peer() == "[127.0.0.1]"
    one, other = socket.socketpair()
    with one, other:
        monkeypatch.setattr(os, "dup", lambda _: dup(one.fileno()))
        assert stdio_peer() == "stdin"


class Broken:
    """A stream whose client is gone, or takes nothing."""

    read_fd = write_fd = 99
    handshaking = read_wants_write = False

    def __init__(self, error: OSError | None = None) -> None:
        self.error = error
        self.incoming = [package(recipients=(b"",))]

    def read(self) -> bytes | None:
        if self.error is not None and self.error.errno != errno.EPIPE:
            raise self.error
        return self.incoming.pop() if self.incoming else None

    def write(self, data: bytes | bytearray) -> int:
        if self.error is not None:
            raise self.error
        return 0

    def half_close(self) -> bool:
        return True

    def close(self) -> None:
        pass


def broken_connection(path: Path, log: Log, clock: Clock, error: OSError | None) -> Connection:
    with Server(path, listen=None) as server:
        session = Session(server._destination, "p", log=log)
    connection = Connection(Broken(error), session, 100.0, clock, log)
    connection.handle(1)
    connection.turn()
    return connection


def test_responses_that_cannot_be_written(path: Path, log: Log, clock: Clock) -> None:
    """A client that is gone when its response is ready: one line, and no more of it."""
    connection = broken_connection(path, log, clock, BrokenPipeError(errno.EPIPE, "Broken pipe"))
    connection.handle(3)
    assert connection.closed
    assert connection.failed
    log.wait_for("p: connection broken: Broken pipe")
    connection.handle(3)
    connection.turn()
    assert connection.closed


@pytest.mark.parametrize(
    ("handshaking", "error", "failed"),
    [
        (False, ConnectionResetError(errno.ECONNRESET, "reset"), False),
        (True, ConnectionResetError(errno.ECONNRESET, "reset"), False),
        (True, OSError(errno.EACCES, "its certificate is not permitted"), True),
    ],
)
def test_a_probe_is_no_news(
    path: Path, log: Log, clock: Clock, handshaking: bool, error: OSError, failed: bool
) -> None:
    """A balancer connects and resets every ten seconds: 8,640 lines a day."""
    with Server(path, listen=None) as server:
        session = Session(server._destination, "p")
    stream = Broken(error)
    stream.handshaking = handshaking
    connection = Connection(stream, session, 100.0, clock, log)
    connection.handle(1)
    assert connection.closed
    assert connection.failed is failed
    line = log.wait_for("connection broken")
    assert log.severities[line] is (Severity.NOTICE if failed else Severity.INFO)


def test_reset_while_lingering(path: Path, log: Log, clock: Clock) -> None:
    """After everything was said a reset is no news."""
    one, other = socket.socketpair()
    with Server(path, listen=None) as server, one, other:
        session = Session(server._destination, "p", log=log)
        stream = SocketStream(one)
        connection = Connection(stream, session, 100.0, clock, log)
        connection.stop()
        connection.turn()
        assert connection.interest() == {one.fileno(): 1}
        clock.now_s += 200.0
        assert connection.deadline_s < clock.now_s
        connection.stream = Broken(ConnectionResetError(errno.ECONNRESET, "reset"))
        connection.handle(1)
        assert connection.closed
        assert not connection.failed
    assert not log.has("broken")


def test_no_room_is_no_progress(path: Path, log: Log, clock: Clock) -> None:
    """Readiness without a byte going through must not keep a dead client alive for ever."""
    connection = broken_connection(path, log, clock, None)
    assert connection.interest() == {99: 3}
    clock.now_s += 99.0
    connection.handle(3)
    connection.turn()
    assert not connection.closed
    clock.now_s += 1.0
    connection.handle(3)
    connection.turn()
    assert connection.closed


def test_socket_that_is_not_ready() -> None:
    """Readiness may be a false alarm; the loop must not wait for one client."""
    one, other = socket.socketpair()
    with one, other:
        stream = SocketStream(one)
        assert stream.read() is None
        while stream.write(b"x" * 65_536):
            pass
        other.close()
        stream.close()
        assert not stream.half_close()
