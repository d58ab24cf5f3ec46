"""What systemd is told, and where it is not there."""

import errno
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from maildirqmtp.daemon.systemd import Notifier, to_journal
from maildirqmtp.errors import LocalError
from tests.helpers import open_descriptors

PID = str(os.getpid())


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[socket.socket]:
    """A supervisor's socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as made:
        made.bind(str(tmp_path / "notify"))
        made.settimeout(30)
        yield made


def test_it_tells(listener: socket.socket) -> None:
    """Assignments, one a line, in one datagram."""
    notifier = Notifier({"NOTIFY_SOCKET": listener.getsockname()})
    notifier.send("READY=1")
    notifier.send("READY=1", "STATUS=10 waiting \u20ac")
    assert listener.recv(4096) == b"READY=1"
    assert listener.recv(4096) == "READY=1\nSTATUS=10 waiting \u20ac".encode()
    notifier.close()


def test_an_abstract_address() -> None:
    """systemd's user instances and containers use such ones: @ is NUL on the wire."""
    name = f"maildirqmtp-test-{PID}-{time.monotonic_ns()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(f"\0{name}")
        listener.settimeout(30)
        notifier = Notifier({"NOTIFY_SOCKET": f"@{name}"})
        notifier.send("READY=1")
        assert listener.recv(4096) == b"READY=1"
        notifier.close()


def test_text_that_is_no_utf8_is_no_reason_to_stop(listener: socket.socket) -> None:
    """A status line may hold what a server or a file name had in it."""
    notifier = Notifier({"NOTIFY_SOCKET": listener.getsockname()})
    notifier.send("STATUS=\udcff")
    assert listener.recv(4096) == b"STATUS=?"
    notifier.close()


def test_no_descriptor_for_the_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    """A full table of descriptors at the start is said in a line, not by a traceback."""

    def none_left(*arguments: object) -> socket.socket:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(socket, "socket", none_left)
    with pytest.raises(LocalError, match=r"^cannot open a socket to /run/n: Too many open files"):
        Notifier({"NOTIFY_SOCKET": "/run/n"})


@pytest.mark.parametrize("path", ["", "relative", "vsock:2:1234"])
def test_without_a_supervisor_nothing_is_told(path: str) -> None:
    """On a terminal, under runit, in a container."""
    for environment in ({}, {"NOTIFY_SOCKET": path}):
        notifier = Notifier(environment)
        notifier.send("READY=1")
        notifier.reloading()
        notifier.close()
        assert notifier.watchdog_s is None


def test_a_supervisor_that_is_gone_stops_nothing(tmp_path: Path) -> None:
    """Mail goes on, whatever becomes of the socket."""
    before = open_descriptors()
    for path in (tmp_path / "none", tmp_path, tmp_path / ("x" * 200)):
        notifier = Notifier({"NOTIFY_SOCKET": str(path)})
        notifier.send("READY=1")
        assert len(open_descriptors() - before) == 1
        notifier.close()
        notifier.send("READY=1")
        assert open_descriptors() == before


def test_a_supervisor_that_does_not_read_stops_nothing(listener: socket.socket) -> None:
    """A full socket must not make the daemon wait."""
    notifier = Notifier({"NOTIFY_SOCKET": listener.getsockname()})

    def talk() -> None:
        for _ in range(2_000):
            notifier.send("STATUS=x" * 100)

    worker = threading.Thread(target=talk)
    worker.daemon = True
    worker.start()
    worker.join(30)
    assert not worker.is_alive()
    notifier.close()


def test_reloading_has_the_time_that_systemd_compares(listener: socket.socket) -> None:
    """Type=notify-reload: microseconds of CLOCK_MONOTONIC, or the reload never ends."""
    notifier = Notifier({"NOTIFY_SOCKET": listener.getsockname()})
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    notifier.reloading()
    after = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    first, second = listener.recv(4096).decode().split("\n")
    assert first == "RELOADING=1"
    key, value = second.split("=")
    assert key == "MONOTONIC_USEC"
    assert before <= int(value) <= after
    notifier.close()


@pytest.mark.parametrize(
    ("environment", "seconds"),
    [
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "500000", "WATCHDOG_PID": PID}, 0.5),
        ({"WATCHDOG_USEC": "500000", "WATCHDOG_PID": ""}, 0.5),
        ({"WATCHDOG_USEC": "500000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": ""}, None),
        ({"WATCHDOG_USEC": "-5"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({}, None),
    ],
)
def test_how_often_it_is_to_be_told(environment: dict[str, str], seconds: float | None) -> None:
    """Told too rarely, systemd kills a daemon that is well; WATCHDOG_PID says whose it is."""
    notifier = Notifier(environment)
    assert notifier.watchdog_s == seconds
    notifier.close()


def test_the_journal_is_known_by_its_stream(tmp_path: Path) -> None:
    """Redirected to a file, lines have no priorities in front of them."""
    with (tmp_path / "log").open("wb") as log:
        status = os.fstat(log.fileno())
        stream = f"{status.st_dev}:{status.st_ino}"
        assert to_journal({"JOURNAL_STREAM": stream}, log.fileno())
        assert not to_journal({"JOURNAL_STREAM": f"{stream}0"}, log.fileno())
        assert not to_journal({}, log.fileno())
        fd = log.fileno()
    assert not to_journal({"JOURNAL_STREAM": stream}, fd)
