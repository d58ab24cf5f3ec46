"""One flush: lock, forward, clean up, exit code; and signals that end it in good order."""

import functools
import io
import os
import signal
from pathlib import Path

import pytest

from maildirqmtp.errors import LocalError
from maildirqmtp.forwarder import forwarder
from maildirqmtp.forwarder.batch import flush
from maildirqmtp.forwarder.report import Report
from maildirqmtp.forwarder.route import Route
from maildirqmtp.maildir.maildir import Maildir
from maildirqmtp.transport.endpoint import Endpoint, TcpEndpoint
from tests.fakes import FakeServer
from tests.helpers import Package, add_message, answer_all, make_maildir, names, serving


@pytest.fixture
def path(path: Path) -> Path:
    """A maildir with two messages."""
    for name in ("1.a", "2.a"):
        add_message(path, name)
    return path


class Flush:
    """What a flush came to."""

    def __init__(self, path: Path, port: int = 1) -> None:
        self.log = io.StringIO()
        self.report = Report(self.log)
        self.code = flush(
            Route(os.fsencode(path), TcpEndpoint("127.0.0.1", port), window_messages=1), self.report
        )

    @property
    def lines(self) -> list[str]:
        """The log, line by line."""
        return self.log.getvalue().splitlines()


def test_it_forwards_cleans_up_and_says_so(path: Path) -> None:
    """The whole of a cron job."""
    (path / "tmp" / "old").write_bytes(b"")
    os.utime(path / "tmp" / "old", (1, 1))
    with serving(answer_all()) as server:
        done = Flush(path, server.port)
    assert done.code == 0
    assert names(path / "new") == names(path / "tmp") == []
    assert done.lines[-1].startswith("maildirqmtp: 2 accepted, 0 deferred")


def test_an_empty_maildir_is_done_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And old files in tmp/ go all the same."""
    path = make_maildir(tmp_path / "Maildir")
    (path / "tmp" / "old").write_bytes(b"")
    os.utime(path / "tmp" / "old", (1, 1))
    monkeypatch.setattr(forwarder, "Forwarder", None)
    done = Flush(path)
    assert done.code == 0
    assert names(path / "tmp") == []
    assert len(done.lines) == 1


def test_a_maildir_that_is_none_is_told(tmp_path: Path) -> None:
    """Exit 111: tomorrow it may be mounted."""
    done = Flush(tmp_path / "nowhere")
    assert done.code == 111
    assert "nowhere" in done.lines[0]
    assert "0 accepted" in done.lines[1]


def test_a_second_one_does_nothing(path: Path) -> None:
    """The first has the lock."""
    with Maildir(os.fsencode(path)) as first:
        first.lock()
        done = Flush(path)
    assert done.code == 111
    assert "locked by" in done.lines[0]
    assert names(path / "new") == ["1.a", "2.a"]


def test_trouble_in_the_run_is_told_and_signals_are_as_before(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No traceback for what is this machine's trouble."""

    def run_batch(self: forwarder.Forwarder, candidates: object) -> None:
        raise LocalError("the disk is on fire")

    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(forwarder.Forwarder, "run_batch", run_batch)
    done = Flush(path)
    assert done.code == 111
    assert done.lines[0] == "maildirqmtp: the disk is on fire"
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
    assert signal.set_wakeup_fd(-1) == -1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_finishes_what_is_in_flight(
    path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    """Shutting down the machine must not leave mail in doubt."""

    def signalled(server: FakeServer, package: Package) -> None:
        os.kill(os.getpid(), number)
        server.respond(b"Kok")

    made: list[FakeServer] = []

    def connect(server: Endpoint, timeout_s: float) -> FakeServer:
        made.append(FakeServer(signalled))
        return made[-1]

    real = forwarder.Forwarder
    monkeypatch.setattr(forwarder, "Forwarder", functools.partial(real, connector=connect))
    done = Flush(path)
    assert done.code == 111
    assert names(path / "new") == ["2.a"]
    assert len(made) == 1
    assert "stopped before the end (1 left)" in done.lines[0]
