"""Where the receiver listens: Unix sockets, and names that others have left behind."""

import contextlib
import errno
import os
import socket
import threading
from pathlib import Path

import pytest

from maildirqmtp.errors import LocalError
from maildirqmtp.qmtp.protocol import package_head, package_tail
from maildirqmtp.receiver.clients import user_name
from maildirqmtp.receiver.listener import open_listener, open_unix_listener
from maildirqmtp.receiver.server import Server
from tests.helpers import DEADLINE_S

PACKAGE = package_head(3) + b"hi\n" + package_tail(b"a@b", (b"c@example.org",))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "socket"


def dial(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(DEADLINE_S)
    try:
        sock.connect(str(path))
    except OSError:
        sock.close()
        raise
    return sock


def test_mail_over_a_unix_socket(path: Path, tmp_path: Path) -> None:
    """Without --domain: only its owner can come in."""
    lines: list[str] = []
    server = Server(
        tmp_path / "Maildir", listen=os.fsencode(path), log=lambda _, text: lines.append(text)
    )
    with server:
        assert server.address is None
        assert path.stat().st_mode & 0o777 == 0o600
        thread = threading.Thread(target=server.serve)
        thread.start()
        with dial(path) as client:
            client.sendall(PACKAGE)
            assert client.recv(100).split(b":")[1].startswith(b"K")
        server.stop()
        thread.join(DEADLINE_S)
    assert not path.exists()
    assert lines[0] == f"listening on unix:{path}"
    (stored,) = (tmp_path / "Maildir" / "new").iterdir()
    user = os.fsencode(user_name(os.geteuid()))
    assert b"\nReceived: from %b by " % user in stored.read_bytes()


def test_nobody_else_can_connect(path: Path) -> None:
    """Not for a moment, whatever the umask."""
    before = os.umask(0)
    try:
        with open_unix_listener(os.fsencode(path)):
            assert path.stat().st_mode & 0o777 == 0o600
    finally:
        os.umask(before)


def test_a_socket_that_was_left_behind_is_replaced(path: Path) -> None:
    """After kill -9 the receiver must start again by itself."""
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    assert path.exists()
    with open_unix_listener(os.fsencode(path)), dial(path):
        assert [entry.name for entry in path.parent.iterdir()] == ["socket"]
    assert list(path.parent.iterdir()) == []


def test_a_socket_that_somebody_listens_on_stays(path: Path) -> None:
    """A second receiver must not take the first one's clients away; even while it is busy."""
    with socket.socket(socket.AF_UNIX) as listener, contextlib.ExitStack() as clients:
        listener.bind(str(path))
        listener.listen(0)
        for busy in (False, True):
            with contextlib.suppress(BlockingIOError):
                while busy:
                    clients.enter_context(contextlib.closing(dial(path)))
            with pytest.raises(LocalError, match="another process listens there already"):
                open_unix_listener(os.fsencode(path))
        assert [entry.name for entry in path.parent.iterdir()] == ["socket"]
        inode = path.stat().st_ino
        listener.accept()[0].close()
        assert path.stat().st_ino == inode


@pytest.mark.parametrize("kind", ["file", "directory", "link"])
def test_what_is_no_socket_stays(path: Path, kind: str) -> None:
    """A slip in the path must not cost a file; a link is never followed."""
    target = path.with_name("target")
    if kind == "file":
        path.write_text("precious")
    elif kind == "directory":
        path.mkdir()
    else:
        with socket.socket(socket.AF_UNIX) as left:
            left.bind(str(target))
        path.symlink_to(target)
    before = path.lstat()
    with pytest.raises(LocalError, match="it exists and is no socket"):
        open_unix_listener(os.fsencode(path))
    assert path.lstat().st_ino == before.st_ino
    assert {entry.name for entry in path.parent.iterdir()} <= {"socket", "target"}


def test_a_name_that_has_become_somebody_else_s_stays(path: Path) -> None:
    """The new receiver was started before the old one had ended."""
    old = open_unix_listener(os.fsencode(path))
    path.unlink()
    with open_unix_listener(os.fsencode(path)):
        old.close()
        old.close()
        dial(path).close()


@pytest.mark.parametrize("length", range(96, 108))
def test_every_path_that_a_socket_may_have(tmp_path: Path, length: int) -> None:
    """Whatever number the process has: it is part of the name under which the socket is made."""
    directory = tmp_path / ("d" * (length - len(os.fsencode(tmp_path)) - 3))
    directory.mkdir()
    path = directory / "s"
    assert len(os.fsencode(path)) == length
    with open_unix_listener(os.fsencode(path)):
        dial(path).close()
    assert list(directory.iterdir()) == []


@pytest.mark.parametrize(
    ("where", "number"), [("[::1]:0", errno.EAFNOSUPPORT), ("unix", errno.EMFILE)]
)
def test_a_socket_that_cannot_be_made_is_an_error(
    path: Path, monkeypatch: pytest.MonkeyPatch, where: str, number: int
) -> None:
    """A kernel without IPv6, or no descriptor left: a line that names the address, no traceback."""

    def refused(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    def listen() -> socket.socket:
        return open_unix_listener(os.fsencode(path)) if where == "unix" else open_listener("::1", 0)

    with monkeypatch.context() as patch:
        patch.setattr(socket.socket, "__init__", refused)
        with pytest.raises(LocalError) as raised:
            listen()
    shown = f"unix:{path}" if where == "unix" else where
    assert str(raised.value) == f"cannot listen on {shown}: {os.strerror(number)}"
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize("where", ["missing/socket", "x" * 120])
def test_a_path_that_cannot_be_is_named(tmp_path: Path, where: str) -> None:
    """With the reason; a socket's path has some hundred bytes."""
    with pytest.raises(LocalError) as raised:
        open_unix_listener(os.fsencode(tmp_path / where))
    assert str(raised.value).startswith(f"cannot listen on unix:{tmp_path / where}: ")
