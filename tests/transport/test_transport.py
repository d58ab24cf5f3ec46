"""TCP and Unix sockets: every error becomes one that names the server and what was tried."""

import contextlib
import errno
import os
import select
import signal
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from maildirqmtp.errors import ConnectError, ConnectTimeout, TransportError
from maildirqmtp.transport.connect import connect
from maildirqmtp.transport.endpoint import Endpoint, TcpEndpoint, UnixEndpoint
from maildirqmtp.transport.sockets import SocketTransport
from tests.helpers import DEADLINE_S, closed_port

Pair = tuple[SocketTransport, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    """A transport and the server's end of it."""
    ours, theirs = socket.socketpair()
    made = SocketTransport(ours, "mail.example.org:209")
    yield made, theirs
    made.close()
    theirs.close()


def test_bytes_go_both_ways(pair: Pair, tmp_path: Path) -> None:
    """In memory and from a file."""
    ours, theirs = pair
    assert ours.send(b"hello ") == 6
    (tmp_path / "file").write_bytes(b"0123456789")
    fd = os.open(tmp_path / "file", os.O_RDONLY)
    assert ours.send_file(fd, 2, 5) == 5
    assert ours.send_file(fd, 10, 5) == 0
    os.close(fd)
    assert theirs.recv(100) == b"hello 23456"
    theirs.sendall(b"3:Kok,")
    assert ours.receive(4) == b"3:Ko"
    assert ours.receive(100) == b"k,"


def test_it_never_waits(pair: Pair, tmp_path: Path) -> None:
    """Waiting to send while the server waits for us to read is a deadlock."""
    ours, _ = pair
    assert ours.receive(100) is None
    while ours.send(b"x" * 65536):
        pass
    (tmp_path / "file").write_bytes(b"x" * 65536)
    fd = os.open(tmp_path / "file", os.O_RDONLY)
    assert ours.send_file(fd, 0, 65536) is None
    os.close(fd)


def test_the_end_is_empty(pair: Pair) -> None:
    """And not `None`, which means later."""
    ours, theirs = pair
    theirs.close()
    assert ours.receive(100) == b""


def test_closing_twice_is_harmless(pair: Pair) -> None:
    """Error paths meet."""
    ours, theirs = pair
    ours.close()
    ours.close()
    assert theirs.recv(1) == b""


def test_a_broken_connection_names_the_server(pair: Pair, tmp_path: Path) -> None:
    """An errno alone does not tell an administrator where to look."""
    ours, theirs = pair
    theirs.close()
    with pytest.raises(TransportError, match=r"mail\.example\.org:209 broke while sending") as one:
        ours.send(b"x")
    assert one.value.errno == errno.EPIPE
    (tmp_path / "file").write_bytes(b"x")
    fd = os.open(tmp_path / "file", os.O_RDONLY)
    with pytest.raises(TransportError, match="while sending a file"):
        ours.send_file(fd, 0, 1)
    os.close(fd)


def test_a_reset_names_the_server() -> None:
    """Firewalls and restarted servers do that."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = connect(TcpEndpoint("127.0.0.1", listener.getsockname()[1]), 5)
        theirs, _ = listener.accept()
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        theirs.close()
        select.select([ours.read_fd], [], [], DEADLINE_S)
        with pytest.raises(TransportError, match="broke while reading") as raised:
            ours.receive(10)
        assert raised.value.errno == errno.ECONNRESET
        ours.close()


def test_connected_sockets_do_not_wait_for_acknowledgements() -> None:
    """Nagle would hold the last packages of a run back."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = connect(TcpEndpoint("127.0.0.1", listener.getsockname()[1]), 5)
        assert ours.name == f"127.0.0.1:{listener.getsockname()[1]}"
        with socket.socket(fileno=os.dup(ours.read_fd)) as same:
            assert same.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert not os.get_blocking(ours.read_fd)
        assert ours.can_send_file
        assert ours.read_fd == ours.write_fd
        ours.close()


def test_a_time_out_of_a_month_is_one() -> None:
    """The system's calls end at 24 days; `--connect-timeout 30d` is no traceback."""
    with pytest.raises(ConnectError, match="refused"):
        connect(TcpEndpoint("127.0.0.1", closed_port()), 30 * 86_400.0)
    with pytest.raises(ConnectError, match="refused"):
        connect(TcpEndpoint("127.0.0.1", closed_port()), float("inf"))


@pytest.mark.parametrize("server", [TcpEndpoint("127.0.0.1"), UnixEndpoint("/nonexistent")])
def test_without_a_descriptor_nobody_is_reached(
    server: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A daemon waits for better times; an error of another kind would end it."""

    def none_left(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(socket, "socket", none_left)
    with pytest.raises(ConnectError, match=f"cannot connect to {server}: .*Too many open files"):
        connect(server, 5)


def test_a_refused_connection_says_who_and_why() -> None:
    """The commonest trouble of all."""
    port = closed_port()
    with pytest.raises(ConnectError, match=f"cannot connect to 127.0.0.1:{port}.*refused") as e:
        connect(TcpEndpoint("127.0.0.1", port), 5)
    assert not isinstance(e.value, TimeoutError)
    assert e.value.errno == errno.ECONNREFUSED


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
        connect(TcpEndpoint("mail.example.org"), 5)


def test_ipv6() -> None:
    """By its address, as it is written."""
    try:
        listener = socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError:
        pytest.skip("NOT TESTED: this machine has no IPv6")
    with listener:
        port = listener.getsockname()[1]
        transport = connect(TcpEndpoint("::1", port), 5)
        assert transport.name == f"[::1]:{port}"
        transport.close()


def test_a_unix_socket(tmp_path: Path) -> None:
    """Bytes go both ways, and files by the kernel."""
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        ours = connect(UnixEndpoint(path), 5)
        assert ours.name == f"unix:{path}"
        assert ours.can_send_file
        assert not os.get_blocking(ours.read_fd)
        theirs, _ = listener.accept()
        with theirs:
            (tmp_path / "file").write_bytes(b"0123456789")
            fd = os.open(tmp_path / "file", os.O_RDONLY)
            assert ours.send(b"hello ") == 6
            assert ours.send_file(fd, 2, 5) == 5
            os.close(fd)
            assert theirs.recv(100) == b"hello 23456"
            theirs.sendall(b"3:Kok,")
            assert ours.receive(100) == b"3:Kok,"
        ours.close()


def test_a_unix_socket_on_a_machine_of_32_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Since Debian 13 its time-outs have 64 bits there, and its long has 32."""
    path, pack = tmp_path / "socket", struct.pack
    monkeypatch.setattr(socket, "SO_SNDTIMEO", 67)
    monkeypatch.setattr(struct, "pack", lambda kind, *n: pack(kind.replace("l", "i"), *n))
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as listener:
        listener.bind(str(path))
        listener.listen()
        connect(UnixEndpoint(str(path)), DEADLINE_S).close()


def test_a_unix_socket_that_cannot_be_used_says_why(tmp_path: Path) -> None:
    """Missing, nobody there, no socket, a path too long for one."""
    left = tmp_path / "left"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(left))
    (tmp_path / "file").touch()
    for path, why in (
        (tmp_path / "none", "No such file or directory"),
        (left, "Connection refused"),
        (tmp_path / "file", "Connection refused"),
        (tmp_path / ("x" * 200), "path too long"),
    ):
        with pytest.raises(ConnectError) as raised:
            connect(UnixEndpoint(str(path)), 5)
        assert str(raised.value).startswith(f"cannot connect to unix:{path}: ")
        assert why in str(raised.value)
        assert not isinstance(raised.value, TimeoutError)


def test_a_busy_unix_socket_is_waited_for(tmp_path: Path) -> None:
    """Where others wait before us the kernel would say so at once; it takes a time-out."""
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as listener, contextlib.ExitStack() as others:
        listener.bind(path)
        listener.listen(0)
        others.enter_context(contextlib.closing(connect(UnixEndpoint(path), 5)))
        with pytest.raises(ConnectTimeout, match=r"no answer in 0\.05 s"):
            connect(UnixEndpoint(path), 0.05)


def test_a_signal_does_not_end_the_wait_for_a_busy_unix_socket(tmp_path: Path) -> None:
    """It was taken for connected; the first package broke it, and the server was blamed."""
    path = str(tmp_path / "socket")
    before = signal.signal(signal.SIGUSR1, lambda *_: None)
    waiting = threading.get_ident()
    with socket.socket(socket.AF_UNIX) as listener, contextlib.ExitStack() as others:
        listener.bind(path)
        listener.listen(0)
        others.enter_context(contextlib.closing(connect(UnixEndpoint(path), 5)))

        def disturb() -> None:
            pause = threading.Event()
            for _ in range(20):
                signal.pthread_kill(waiting, signal.SIGUSR1)
                pause.wait(0.005)
            others.enter_context(listener.accept()[0])

        thread = threading.Thread(target=disturb)
        thread.start()
        try:
            transport = connect(UnixEndpoint(path), DEADLINE_S)
            others.callback(transport.close)
            assert transport.send(b"x") == 1
        finally:
            thread.join(DEADLINE_S)
            signal.signal(signal.SIGUSR1, before)


@pytest.mark.parametrize("error", [ConnectError("told to stop"), KeyboardInterrupt()])
def test_being_told_to_stop_leaves_no_unix_socket(
    error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It goes through, the descriptor does not stay."""
    made: list[socket.socket] = []

    class Interrupted(socket.socket):
        def connect(self, _: object) -> None:
            made.append(self)
            raise error

    monkeypatch.setattr(socket, "socket", Interrupted)
    with pytest.raises(type(error)) as raised:
        connect(UnixEndpoint("/nonexistent"), 5)
    assert raised.value is error
    assert made[0].fileno() == -1
