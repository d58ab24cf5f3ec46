"""The HTTP server of a daemon: whatever clients do, it costs the daemon next to nothing."""

from __future__ import annotations

import contextlib
import errno
import os
import selectors
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from maildirqmtp.daemon import http_server
from maildirqmtp.daemon.http_server import (
    ACCEPT_PAUSE_S,
    EXCHANGE_S,
    MAKE_WAY_S,
    MAX_CLIENTS,
    MAX_REQUEST,
    NOT_FOUND,
    HttpServer,
    Reply,
    Request,
)
from maildirqmtp.errors import LocalError
from tests.fakes import FakeClock
from tests.helpers import DEADLINE_S, closed_port, open_descriptors, wait_until

GET = b"GET /metrics?x=y HTTP/1.1\r\nHost: localhost\r\nAccept: text/plain\r\n\r\n"


def reply(request: Request) -> Reply:
    """Say what was asked for."""
    if request.path == "/broken":
        raise ValueError("out of order")
    if request.path == "/large":
        return Reply(b"x" * 5_000_000)
    return Reply(f"{request.path} {request.fields.get('accept')}".encode())


class Served:
    """A server whose turns a test makes by itself, with its clock standing still."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.port = closed_port()
        self.server = HttpServer(("127.0.0.1", self.port), reply, clock)

    def connect(self) -> socket.socket:
        sock = socket.create_connection(("127.0.0.1", self.port), DEADLINE_S)
        sock.settimeout(DEADLINE_S)
        return sock

    def turn(self, seconds: float = ACCEPT_PAUSE_S) -> None:
        """Make a turn that finds something to do, or the time over."""
        self.clock.advance(seconds)
        self.server._wake.set()
        self.server._turn()


@pytest.fixture
def served(clock: FakeClock) -> Iterator[Served]:
    made = Served(clock)
    yield made
    made.server._close()


@pytest.fixture
def port() -> Iterator[int]:
    """The port of a server that runs in its thread."""
    number = closed_port()
    server = HttpServer(("127.0.0.1", number), reply)
    server.start()
    yield number
    server.stop()


def ask(port: int, *pieces: bytes) -> bytes:
    """Send a request in pieces; return the whole response."""
    with socket.create_connection(("127.0.0.1", port), DEADLINE_S) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for piece in pieces:
            sock.sendall(piece)
        response = b""
        with contextlib.suppress(ConnectionResetError):
            while data := sock.recv(65_536):
                response += data
        return response


def test_a_request(port: int) -> None:
    """In whatever pieces it comes."""
    whole = ask(port, GET)
    assert whole == (
        b"HTTP/1.1 200 OK\r\nContent-Type: text/plain; charset=utf-8\r\n"
        b"Content-Length: 19\r\nConnection: close\r\n\r\n/metrics text/plain"
    )
    assert ask(port, *[GET[n : n + 1] for n in range(len(GET))]) == whole
    assert ask(port, GET.replace(b"GET", b"HEAD")) == whole.partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
    assert ask(port, b"GET /\n\n").endswith(b"\r\n\r\n/ None")


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"POST / HTTP/1.1\r\n\r\n", b"405"),
        (b"\r\n\r\n", b"405"),
        (b"GET /broken HTTP/1.1\r\n\r\n", b"500"),
    ],
)
def test_what_is_no_request_for_it(port: int, request_: bytes, status: bytes) -> None:
    """It says so, and goes on."""
    assert ask(port, request_).split()[1] == status
    assert ask(port, GET).split()[1] == b"200"


def test_a_fault_of_ours_is_told_in_the_log_once_and_not_to_everybody() -> None:
    """Any local user may ask; what is wrong may name a file of somebody else."""
    number, said = closed_port(), list[str]()
    server = HttpServer(("127.0.0.1", number), reply, complain=said.append)
    server.start()
    try:
        for _ in range(2):
            answer = ask(number, b"GET /broken HTTP/1.1\r\n\r\n")
            assert b"out of order" not in answer
            assert answer.endswith(b"\r\n\r\nsee the daemon's log\n")
    finally:
        server.stop()
    assert said == ["cannot answer for /broken: ValueError('out of order')"]


def test_a_request_without_end_is_dropped(port: int) -> None:
    """Not kept in memory until there is none left."""
    assert ask(port, b"GET /" + b"x" * (MAX_REQUEST + 10)) == b""
    assert ask(port, GET).split()[1] == b"200"


def test_a_large_response(port: int) -> None:
    """More than the kernel takes at once."""
    assert len(ask(port, b"GET /large HTTP/1.1\r\n\r\n")) > 5_000_000


def test_idle_clients_take_no_more_than_their_places(served: Served) -> None:
    """1,300 idle connections of a local user stopped all forwarding."""
    with contextlib.ExitStack() as stack:
        for _ in range(3 * MAX_CLIENTS):
            if served.server._someone_waits:
                break
            stack.enter_context(served.connect())
            served.turn()
        assert len(served.server._clients) == MAX_CLIENTS
        pause_s = served.server._pause_s()
        assert pause_s is not None
        assert pause_s > 0.5, "while all places are taken, it sleeps"
        client = stack.enter_context(served.connect())
        client.sendall(GET)
        served.turn(MAKE_WAY_S)
        for _ in range(10):
            served.turn()
        assert client.recv(15) == b"HTTP/1.1 200 OK"


def test_clients_that_come_and_go_are_taken_in_slowly(served: Served) -> None:
    """A loop of connects must not take the processor away from the forwarding."""
    with served.connect(), served.connect():
        for _ in range(10):
            served.turn(0.0)
        assert len(served.server._clients) == 1
        served.turn()
        assert len(served.server._clients) == 2


def test_an_exchange_takes_five_seconds_at_most(served: Served) -> None:
    """Neither a request that trickles nor a response that nobody takes keeps a place."""
    with served.connect() as slow:
        served.turn()
        for _ in range(4):
            slow.sendall(b"G")
            served.turn(1.0)
            assert len(served.server._clients) == 1
        served.turn(EXCHANGE_S - 4.0)
        assert served.server._clients == []
        assert slow.recv(1) == b""
    with served.connect() as deaf:
        deaf.sendall(b"GET /large HTTP/1.1\r\n\r\n")
        for _ in range(5):
            served.turn()
        assert len(served.server._clients) == 1
        served.turn(EXCHANGE_S)
        assert served.server._clients == []
    assert served.server._pause_s() is None or served.server._accept_after_s


def test_no_descriptors_left(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """It waits a second; the daemon, which needs them for mail, goes on."""
    calls: list[int] = []

    def accept(_: socket.socket) -> None:
        calls.append(1)
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with served.connect():
        with monkeypatch.context() as patch:
            patch.setattr(socket.socket, "accept", accept)
            for _ in range(10):
                served.turn(0.0)
            assert len(calls) == 1
        served.turn(http_server.ERROR_PAUSE_S)
        served.turn()
        assert len(served.server._clients) == 1


def test_a_client_that_resets_is_only_its_own_loss(served: Served) -> None:
    """The thread goes on."""
    with served.connect() as sock:
        served.turn()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    served.turn()
    assert served.server._clients == []


def test_it_stops_with_clients_there() -> None:
    """At once: a daemon that is told to end must not wait for strangers."""
    number = closed_port()
    server = HttpServer(("127.0.0.1", number), reply)
    server.start()
    with socket.create_connection(("127.0.0.1", number), DEADLINE_S) as sock:
        wait_until(lambda: len(server._clients) == 1, "the client to be known")
        server.stop()
        assert sock.recv(1) == b""
    with socket.create_server(("127.0.0.1", number)):
        pass


def test_without_a_thread_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the start, with the address free again."""
    number = closed_port()
    server = HttpServer(("127.0.0.1", number), lambda request: NOT_FOUND)

    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        with pytest.raises(LocalError, match="can't start new thread"):
            server.start()
    with socket.create_server(("127.0.0.1", number)):
        pass


def test_an_address_of_ipv6() -> None:
    """In brackets where it is shown."""
    try:
        taken = socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError:
        pytest.skip("this machine has no IPv6")
    with taken:
        number = taken.getsockname()[1]
        with pytest.raises(LocalError, match=rf"\[::1\]:{number}: Address already in use"):
            HttpServer(("::1", number), reply)


def test_all_addresses_are_those_of_ipv4_as_well() -> None:
    """A kubelet that probes by IPv4 restarted a pod that listened on [::] again and again."""
    if not socket.has_dualstack_ipv6():
        pytest.skip("this machine has no IPv6")
    number = closed_port()
    server = HttpServer(("::", number), reply)
    server.start()
    try:
        for host in ("::1", "127.0.0.1"):
            with socket.create_connection((host, number), DEADLINE_S) as sock:
                sock.sendall(GET)
                assert sock.recv(100).startswith(b"HTTP/1.1 200 OK")
    finally:
        server.stop()


@pytest.mark.parametrize("left", range(4))
def test_no_descriptor_for_it(monkeypatch: pytest.MonkeyPatch, left: int) -> None:
    """HUP that asks for pages says so, and the daemon goes on; nothing is left open."""
    number, before = closed_port(), open_descriptors()
    real = (socket.create_server, os.pipe2, selectors.DefaultSelector)
    made: list[str] = []

    def short(name: str, make: Callable[..., Any]) -> Callable[..., Any]:
        def limited(*args: Any, **options: Any) -> Any:
            made.append(name)
            if len(made) > left:
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            return make(*args, **options)

        return limited

    monkeypatch.setattr(socket, "create_server", short("listener", real[0]))
    monkeypatch.setattr("maildirqmtp.transport.wakeup.os.pipe2", short("pipe", real[1]))
    monkeypatch.setattr(selectors, "DefaultSelector", short("selector", real[2]))
    if left < 3:
        with pytest.raises(LocalError, match="raise LimitNOFILE="):
            HttpServer(("127.0.0.1", number), reply)
    else:
        server = HttpServer(("127.0.0.1", number), reply)
        server.start()
        server.stop()
    assert open_descriptors() == before
