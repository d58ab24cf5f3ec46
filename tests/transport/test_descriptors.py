"""Under a UCSPI client: descriptors 6 and 7, and nothing else."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from maildirqmtp.errors import TransportError
from maildirqmtp.transport.descriptors import DescriptorTransport

#: What a child does first.
HEAD = """
import os, sys
from maildirqmtp.transport.endpoint import UcspiEndpoint
from maildirqmtp.errors import ConnectError
from maildirqmtp.transport.connect import connect

def refused():
    try:
        connect(UcspiEndpoint(), 1.0)
    except ConnectError as error:
        return str(error)
    return "connected"
"""


def child(code: str, shell: str = "", **environment: str) -> str:
    """Run Python, started by a shell with descriptors as `shell` redirects them; its output."""
    done = subprocess.run(
        ["bash", "-c", f'exec "$@" {shell}', "bash", sys.executable, "-bb", "-W", "error", "-c",
         HEAD + textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={"PATH": os.environ["PATH"], **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def loop(tmp_path: Path) -> str:
    """Return a redirection that makes descriptors 6 and 7 a pipe."""
    os.mkfifo(tmp_path / "pipe")
    return f"6<>{tmp_path}/pipe 7>&6"


def test_bytes_go_out_on_7_and_come_in_on_6(loop: str) -> None:
    """As under tcpclient; what we start ourselves does not get them."""
    code = """
    t = connect(UcspiEndpoint(), 1.0)
    assert (t.read_fd, t.write_fd) == (6, 7)
    assert not os.get_inheritable(6) and not os.get_inheritable(7)
    assert t.receive(10) is None
    assert t.send(b"hello") == 5
    assert t.receive(10) == b"hello"
    while t.send(bytes(65536)):
        pass
    t.close()
    t.close()
    print(t.name)
    """
    assert child(code, loop) == "descriptors 6 and 7"


@pytest.mark.parametrize(
    ("environment", "name"),
    [
        ({"TCPREMOTEIP": "192.0.2.1", "TCPREMOTEPORT": "209"}, "192.0.2.1:209"),
        ({"TCPREMOTEIP": "192.0.2.1"}, "192.0.2.1"),
        ({"TCPREMOTEIP": "::1", "TCPREMOTEPORT": "209"}, "[::1]:209"),
        ({"TCP6REMOTEIP": "::1", "TCP6REMOTEPORT": "209"}, "[::1]:209"),
        ({"TCPREMOTEIP": "192.0.2.1", "TCPREMOTEPORT": "x"}, "192.0.2.1"),
        ({"TCPREMOTEIP": "a\x1b[2J"}, "descriptors 6 and 7"),
        ({"TCPREMOTEIP": "x" * 100}, "descriptors 6 and 7"),
        ({"TCPREMOTEIP": "", "TCPREMOTEPORT": "209"}, "descriptors 6 and 7"),
    ],
)
def test_the_server_is_named_as_the_client_tells(
    loop: str, environment: dict[str, str], name: str
) -> None:
    """A log line has to say which server it is about."""
    assert child("print(connect(UcspiEndpoint(), 1.0).name)", loop, **environment) == name


def test_there_is_only_one_connection(loop: str) -> None:
    """A second one would read and write whatever has got these numbers since."""
    code = """
    connect(UcspiEndpoint(), 1.0).close()
    print(refused())
    assert os.pipe()[0] == 3 and os.pipe() == (5, 6) and os.dup(0) == 7
    os.set_inheritable(6, True)
    os.set_inheritable(7, True)
    print(refused())
    """
    said = child(code, loop, TCPREMOTEIP="192.0.2.1").splitlines()
    assert (
        said
        == ["the connection to 192.0.2.1 is used up: a UCSPI client makes only one; run it again"]
        * 2
    )


@pytest.mark.parametrize("shell", ["", "6</dev/null", "6</dev/null 7>/dev/null", "6</ 7</"])
def test_without_a_ucspi_client_it_says_so(shell: str) -> None:
    """`maildirqmtp DIR -` on its own is a mistake that everybody makes once."""
    assert "is no connection; run this under a UCSPI client, as in: tcpclient HOST 209 " in child(
        "print(refused())", shell
    )


def test_our_own_files_are_not_taken_for_a_connection() -> None:
    """Where nobody has opened 6 and 7, a pipe or the maildir of ours gets these numbers."""
    code = """
    pipes = [os.pipe() for _ in range(3)]
    assert {6, 7} <= {fd for pipe in pipes for fd in pipe}
    print(refused())
    """
    assert "descriptor 6 is no connection" in child(code)


@pytest.fixture
def pipes() -> Iterator[tuple[DescriptorTransport, int, int]]:
    """A transport on two pipes, and the server's ends of them."""
    read_fd, theirs_out = os.pipe()
    theirs_in, write_fd = os.pipe()
    transport = DescriptorTransport(read_fd, write_fd, "mail")
    yield transport, theirs_in, theirs_out
    transport.close()
    for fd in (theirs_in, theirs_out):
        with contextlib.suppress(OSError):
            os.close(fd)


def test_the_end_is_empty(pipes: tuple[DescriptorTransport, int, int]) -> None:
    """And not `None`, which means later."""
    transport, _, theirs_out = pipes
    os.close(theirs_out)
    assert transport.receive(10) == b""


def test_a_broken_pipe_names_the_server(pipes: tuple[DescriptorTransport, int, int]) -> None:
    """An errno alone does not tell an administrator where to look."""
    transport, theirs_in, _ = pipes
    os.close(theirs_in)
    with pytest.raises(TransportError, match="connection to mail broke while sending: Broken pipe"):
        transport.send(b"x")
    with pytest.raises(TransportError, match="connection to mail broke while sending a file"):
        transport.send_file(-1, 0, 1)


def test_reading_trouble_names_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """A socket under tcpclient is reset like any other."""

    def read(*_: object) -> bytes:
        raise ConnectionResetError(104, "Connection reset by peer")

    read_fd, write_fd = os.pipe()
    transport = DescriptorTransport(read_fd, write_fd, "mail")
    try:
        with monkeypatch.context() as patch:
            patch.setattr(os, "read", read)
            with pytest.raises(TransportError, match="mail broke while reading: Connection reset"):
                transport.receive(1)
    finally:
        transport.close()


def test_files_go_into_sockets_by_the_kernel(tmp_path: Path) -> None:
    """Under tcpclient a large message is no slower than without."""
    (tmp_path / "file").write_bytes(b"0123456789")
    file = os.open(tmp_path / "file", os.O_RDONLY)
    ours, theirs = socket.socketpair()
    with theirs:
        transport = DescriptorTransport(os.dup(ours.fileno()), ours.detach(), "mail")
        assert transport.can_send_file
        assert transport.send_file(file, 2, 5) == 5
        assert theirs.recv(100) == b"23456"
        while transport.send(bytes(65_536)):
            pass
        assert transport.send_file(file, 0, 10) is None
        transport.close()
    os.close(file)


def test_whoever_shares_the_descriptors_may_wait_again() -> None:
    """The flag belongs to the pipe, not to us: a shell's pipeline would fail after us."""
    read_fd, write_fd = os.pipe()
    kept = [os.dup(read_fd), os.dup(write_fd)]
    transport = DescriptorTransport(read_fd, write_fd, "mail")
    assert not any(map(os.get_blocking, kept))
    transport.close()
    assert all(map(os.get_blocking, kept))
    for fd in kept:
        os.close(fd)


def test_a_fork_that_closes_its_copy_does_not_make_its_parent_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Both share the mode; a parent whose write waits reads no answers meanwhile."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        copy = os.dup(ours.fileno())
        transport = DescriptorTransport(copy, os.dup(copy), "descriptors 6 and 7")
        child = os.getpid() + 1
        monkeypatch.setattr(os, "getpid", lambda: child)
        transport.close()
        assert not os.get_blocking(ours.fileno())
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(copy)
