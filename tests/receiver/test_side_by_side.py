"""Mail of several clients stored at once: a slow disk, clients that go, a server that stops."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from maildirqmtp.maildir.files import Folder
from maildirqmtp.receiver import server as server_module
from maildirqmtp.receiver.connection import STOP_S
from maildirqmtp.receiver.destination import SHARED_FSYNC_PACKAGES
from maildirqmtp.receiver.server import THREADS, Server
from maildirqmtp.receiver.session import MAX_BATCHES
from tests.helpers import DEADLINE_S, names, wait_until
from tests.receiver.doubles import Clock, Log, serving_thread
from tests.receiver.test_server import Client, connect, package


class Disk:
    """fsync of files with `slow` in their text waits until the test says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.go_on = threading.Event()
        self.waiting = 0
        self._lock = threading.Lock()
        self._real = os.fsync
        monkeypatch.setattr(os, "fsync", self._fsync)

    def _fsync(self, fd: int) -> None:
        with contextlib.suppress(IsADirectoryError), open(f"/proc/self/fd/{fd}", "rb") as file:
            if b"slow" in file.read():
                with self._lock:
                    self.waiting += 1
                assert self.go_on.wait(DEADLINE_S)
        self._real(fd)

    def wait_for(self, count: int) -> None:
        """Wait until so many wait."""
        wait_until(lambda: self.waiting >= count, f"{count} fsyncs have begun")


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    """A disk that can be slow."""
    made = Disk(monkeypatch)
    yield made
    made.go_on.set()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "Maildir"


@pytest.fixture
def server(path: Path, log: Log) -> Iterator[Server]:
    """A server that runs."""
    with Server(path, listen=("127.0.0.1", 0), log=log) as made, serving_thread(made):
        yield made


def reset(client: Client) -> None:
    """Have the connection break."""
    linger = struct.pack("ii", 1, 0)
    client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    client.sock.close()


def texts(path: Path) -> list[bytes]:
    """What was stored, without the lines on top."""
    files = (path / "new").iterdir()
    return sorted(file.read_bytes().split(b"\n", 3)[3] for file in files)


def test_a_slow_fsync_holds_up_no_other_client(server: Server, path: Path, disk: Disk) -> None:
    """A disk that thinks for a second about one message must not stop all mail."""
    with connect(server) as slow, connect(server) as other:
        slow.send(package(b"slow\n"))
        disk.wait_for(1)
        for _ in range(3):
            other.send(package(b"quick\n"))
            assert other.responses(1) == "K"
        disk.go_on.set()
        assert slow.responses(1) == "K"
    assert texts(path) == [b"quick\n"] * 3 + [b"slow\n"]


def test_answers_of_a_connection_keep_their_order(server: Server, path: Path, disk: Disk) -> None:
    """Later packages are stored while the first waits; none of them is answered before it."""
    with connect(server) as client:
        client.send(package(b"slow\n"))
        disk.wait_for(1)
        client.send(package(b"2\n", recipients=(b"", b"c@d")) + package(b"3\n"))
        wait_until(lambda: len(names(path / "new")) == 2, "the later ones are stored")
        client.sock.settimeout(0.05)
        with pytest.raises(TimeoutError):
            client.sock.recv(1)
        client.sock.settimeout(DEADLINE_S)
        disk.go_on.set()
        assert client.responses(4) == "KDKK"


def test_one_client_cannot_have_all_threads(server: Server, path: Path, disk: Disk) -> None:
    """With a thousand packages on a slow disk it leaves some for the others."""
    with connect(server) as greedy, connect(server) as other:
        count = SHARED_FSYNC_PACKAGES * MAX_BATCHES * 3
        greedy.send(package(b"slow\n") * count)
        disk.wait_for(MAX_BATCHES)
        other.send(package(b"quick\n"))
        assert other.responses(1) == "K"
        assert disk.waiting <= MAX_BATCHES + 1 < THREADS
        disk.go_on.set()
        assert greedy.responses(count) == "K" * count
    assert len(texts(path)) == count + 1


def test_a_client_that_goes_while_its_mail_is_stored(
    server: Server, path: Path, disk: Disk, log: Log
) -> None:
    """It sends all of it again, and has it there once; its place is free at once."""
    with connect(server) as client:
        client.send(package(b"slow\n") + package(b"next\n"))
        disk.wait_for(1)
        reset(client)
        log.wait_for("connection broken")
        wait_until(lambda: not server._connections, "its place is free")
    with connect(server) as client:
        disk.go_on.set()
        client.send(package(b"slow\n") + package(b"next\n"))
        assert client.responses(2) == "KK"
    wait_until(lambda: names(path / "tmp") == [], "nothing is left in tmp/")
    wait_until(lambda: texts(path) == [b"next\n", b"slow\n"], "each is there once")


def test_a_client_that_says_no_more_gets_its_answers(server: Server, disk: Disk) -> None:
    """Emacs hangs up its half of the connection after the package."""
    with connect(server) as client:
        client.send(package(b"slow\n"))
        client.sock.shutdown(socket.SHUT_WR)
        disk.wait_for(1)
        disk.go_on.set()
        assert client.responses(1) == "K"
        assert client.at_end()


def test_stop_waits_for_what_is_being_stored(path: Path, disk: Disk, log: Log) -> None:
    """A restart amid an fsync: without the answer all of that would be sent a second time."""
    server = Server(path, listen=("127.0.0.1", 0), log=log)
    with server, connect(server) as client, serving_thread(server):
        client.send(package(b"slow\n"))
        disk.wait_for(1)
        server.stop()
        log.wait_for("stopping")
        disk.go_on.set()
        assert client.responses(1) == "K"
        assert client.at_end()
        client.sock.close()
    assert texts(path) == [b"slow\n"]


def test_stop_on_a_disk_that_hangs(
    path: Path, disk: Disk, log: Log, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The service ends all the same; the client, not told anything, keeps the mail."""
    monkeypatch.setattr(server_module, "CLOSE_S", 0.01)
    monkeypatch.setattr(server_module, "ABORTED_S", 0.01)
    server = Server(path, listen=("127.0.0.1", 0), log=log, clock=clock)
    with server, serving_thread(server), connect(server) as client:
        client.send(package(b"slow\n"))
        disk.wait_for(1)
        server.stop()
        deadline_s = time.monotonic() + DEADLINE_S
        while not log.has("could not be stored in time"):
            assert time.monotonic() < deadline_s
            clock.now_s += STOP_S
            server.stop()
        assert client.at_end()
    new = server._destination.storage._place.maildir.new  # type: ignore[attr-defined]
    assert os.path.samestat(os.fstat(new.fd), os.stat(path / "new")), "a thread may still use it"
    disk.go_on.set()
    assert server._pool.close(DEADLINE_S)
    assert texts(path) == [], "not committed, so taken back"
    server._destination.close()


def test_an_error_while_it_is_stored_ends_that_client(
    server: Server, path: Path, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No memory for a message, found out in a thread: the others go on."""

    def fail(*_: object, **__: object) -> None:
        raise MemoryError

    with connect(server) as other, connect(server) as one:
        with monkeypatch.context() as patch:
            patch.setattr(Folder, "sync", fail)
            one.send(package())
            with contextlib.suppress(ConnectionResetError):
                assert one.at_end()
            log.wait_for("out of memory; closing")
        other.send(package())
        assert other.responses(1) == "K"
    assert len(names(path / "new")) == 1


def test_the_threads_end_with_the_server(path: Path, log: Log) -> None:
    """A program that starts a server for each of its tests has no thread left."""
    with Server(path, listen=("127.0.0.1", 0), log=log) as server:
        with serving_thread(server), connect(server) as client:
            client.send(package())
            assert client.responses(1) == "K"
        assert [t for t in threading.enumerate() if re.match("storage", t.name)]
    assert not [t for t in threading.enumerate() if re.match("storage", t.name)]


def test_eight_clients_at_once(server: Server, path: Path) -> None:
    """Each has an answer for each of its messages, and each message is there once."""
    count, letters = 60, {}

    def send(number: int) -> None:
        with connect(server) as client:
            for turn in range(count):
                client.send(package(b"%d.%d\n" % (number, turn)))
            letters[number] = client.responses(count)

    _together(8, send)
    assert set(letters.values()) == {"K" * count}
    assert texts(path) == sorted(b"%d.%d\n" % (n, t) for n in range(8) for t in range(count))


def _together(count: int, action: Callable[[int], None]) -> None:
    threads = [threading.Thread(target=action, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
        assert not thread.is_alive()
