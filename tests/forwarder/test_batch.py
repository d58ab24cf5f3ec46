"""One flush: lock, forward, clean up, exit code; and signals that end it in good order."""

import errno
import functools
import io
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from maildirqmtp.errors import LocalError
from maildirqmtp.forwarder import delay_warnings, forwarder, housekeeping, queue
from maildirqmtp.forwarder.batch import flush
from maildirqmtp.forwarder.queued_message import prepare
from maildirqmtp.forwarder.report import Report
from maildirqmtp.forwarder.retention import Retention
from maildirqmtp.forwarder.route import Route
from maildirqmtp.maildir.files import Folder
from maildirqmtp.maildir.maildir import Maildir
from maildirqmtp.transport.endpoint import Endpoint, TcpEndpoint
from tests.fakes import FakeServer, FileSystem
from tests.helpers import (
    Package,
    Peer,
    Script,
    add_message,
    answer_all,
    make_maildir,
    names,
    serving,
)


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


@pytest.mark.usefixtures("hang_up")
@pytest.mark.parametrize(
    "numbers",
    [
        [signal.SIGTERM],
        [signal.SIGINT],
        pytest.param([signal.SIGHUP], id="the terminal, or the connection of ssh, is gone"),
        pytest.param([signal.SIGTERM, signal.SIGHUP], id="systemd ends a session"),
        pytest.param([signal.SIGHUP, signal.SIGTERM], id="the same, on a busy processor"),
    ],
)
def test_a_signal_finishes_what_is_in_flight(
    path: Path, monkeypatch: pytest.MonkeyPatch, numbers: list[signal.Signals]
) -> None:
    """Shutting down the machine must not leave mail in doubt."""

    def signalled(server: FakeServer, package: Package) -> None:
        for number in numbers:
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


def test_what_comes_while_a_stopped_run_ends_is_left(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit code 0 said that nothing was."""
    (path / "new" / "2.a").unlink()

    def signalled(server: FakeServer, package: Package) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        add_message(path, "late.1")
        add_message(path, "late.2")
        server.respond(b"Kok")

    real = forwarder.Forwarder
    connector = functools.partial(real, connector=lambda server, timeout_s: FakeServer(signalled))
    monkeypatch.setattr(forwarder, "Forwarder", connector)
    done = Flush(path)
    assert names(path / "new") == ["late.1", "late.2"]
    assert done.code == 111
    assert done.lines[0] == "maildirqmtp: stopped before the end (2 left)"
    assert "1 accepted, " in done.lines[1]
    assert " 2 left, " in done.lines[1]


def test_nohup(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run goes on when the session has ended."""

    def signalled(server: FakeServer, package: Package) -> None:
        os.kill(os.getpid(), signal.SIGHUP)
        server.respond(b"Kok")

    real = forwarder.Forwarder
    connector = functools.partial(real, connector=lambda server, timeout_s: FakeServer(signalled))
    monkeypatch.setattr(forwarder, "Forwarder", connector)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    done = Flush(path)
    signal.signal(signal.SIGHUP, before)
    assert done.code == 0, done.lines
    assert names(path / "new") == []


# What comes meanwhile


def arriving(path: Path, count: int, recipient: bytes = b"late@y") -> Script:
    """Make a server during whose answers another message arrives, `count` times."""
    arrivals = iter(range(count))

    def script(peer: Peer) -> None:
        while peer.read_package():
            number = next(arrivals, None)
            if number is not None:
                add_message(path, f"late.{number}", recipient=recipient)
            peer.respond(b"Kok")

    return script


def test_what_arrives_while_it_waits_for_an_answer_goes_in_the_same_run(path: Path) -> None:
    """It stayed with exit code 0, and cron would not look for another hour."""
    with serving(arriving(path, 5)) as server:
        done = Flush(path, server.port)
        assert (done.code, len(server.packages), server.connections) == (0, 7, 1)
    assert names(path / "new") == []


def test_a_run_that_gets_ever_more_mail_ends_and_says_what_is_left(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lock that is held for ever keeps a daemon, or the next version, out of the maildir."""
    monkeypatch.setattr(queue, "RESCAN_FOR_S", 0.0)
    with serving(arriving(path, 1_000)) as server:
        done = Flush(path, server.port)
    assert done.code == 111
    assert "stopped after an hour (2 left)" in done.lines[0]
    assert names(path / "new") == ["late.0", "late.1"]


@pytest.mark.parametrize("is_empty", [False, True])
def test_mail_whose_own_run_was_turned_away_is_not_left_behind(
    path: Path, monkeypatch: pytest.MonkeyPatch, is_empty: bool
) -> None:
    """Its run found the maildir locked, after the first run had looked for the last time."""
    if is_empty:
        for name in names(path / "new"):
            (path / "new" / name).unlink()
    turned_away: list[Flush] = []

    def clean(maildir: Maildir, now_s: float) -> None:
        if not turned_away:
            add_message(path, "late.1")
            turned_away.append(Flush(path, server.port))

    monkeypatch.setattr(housekeeping, "clean", clean)
    with serving(answer_all()) as server:
        done = Flush(path, server.port)
    assert [one.code for one in turned_away] == [111]
    assert done.code == 0
    assert names(path / "new") == []


def test_what_was_tried_is_not_tried_again_in_the_same_run(path: Path) -> None:
    """A server that defers must not be asked again at once, over and over."""
    add_message(path, "3.held", b"\n", None, None)
    with serving(answer_all(lambda package, recipient: b"Zlater")) as server:
        done = Flush(path, server.port)
        assert (done.code, len(server.packages)) == (111, 2)
    assert names(path / "new") == ["1.a", "2.a", "3.held"]
    assert sum("3.held: held" in line for line in done.lines) == 1


def test_others_messages_and_things_that_are_none_do_not_keep_it_going(path: Path) -> None:
    """Of another prefix, a directory, a dangling link: they stay, and are not ours."""
    (path / "new" / "directory").mkdir()
    (path / "new" / "dangling").symlink_to("nowhere")
    report = Report(io.StringIO())
    with serving(answer_all()) as server:
        route = Route(os.fsencode(path), TcpEndpoint("127.0.0.1", server.port), prefix=b"pre-")
        assert flush(route, report) == 0
        assert len(server.packages) == 0
    assert names(path / "new") == ["1.a", "2.a", "dangling", "directory"]


@pytest.mark.parametrize("when", ["before it is opened", "between two scans"])
def test_with_cur_a_reader_at_work_hides_nothing(path: Path, when: str) -> None:
    """A message that moves to cur/ before its turn goes in the same run, with exit code 0."""
    moved = False

    def script(peer: Peer) -> None:
        nonlocal moved
        while package := peer.read_package():
            if not moved:
                moved = True
                name = "2.a" if when == "before it is opened" else "late.1"
                if name == "late.1":
                    add_message(path, name)
                (path / "new" / name).rename(path / "cur" / f"{name}:2,S")
            peer.respond(*[b"Kok"] * len(package.recipients))

    report = Report(io.StringIO())
    with serving(script) as server:
        route = Route(
            os.fsencode(path),
            TcpEndpoint("127.0.0.1", server.port),
            include_cur=True,
            window_messages=1,
        )
        assert flush(route, report) == 0
    assert names(path / "new") == names(path / "cur") == []


# Warnings of delays


class Mailer:
    """Takes warnings, but for some addresses."""

    def __init__(self) -> None:
        self.told: list[bytes] = []
        self.refused: set[bytes] = set()

    def can_reach(self, recipient: bytes) -> bool:
        """See `mailers.Mailer`."""
        return True

    def send(self, bounce: bytes, recipient: bytes, identifier: str) -> bytes | None:
        """See `mailers.Mailer`."""
        if recipient in self.refused:
            raise LocalError(f"exit 67 {recipient!r}")
        self.told.append(recipient)
        return None


@pytest.fixture
def mailer(monkeypatch: pytest.MonkeyPatch) -> Mailer:
    """What takes warnings."""
    made = Mailer()
    monkeypatch.setattr("maildirqmtp.forwarder.bounces.make_mailer", lambda *_: made)
    return made


def warn(path: Path, port: int = 1, prefix: bytes = b"") -> str:
    """Flush a maildir all of whose messages are late; return the log."""
    log = io.StringIO()
    server = TcpEndpoint("127.0.0.1", port)
    flush(
        Route(os.fsencode(path), server, prefix=prefix, bounce=True, warn_after_s=1.0), Report(log)
    )
    return log.getvalue()


def make_late(path: Path) -> None:
    """Give all messages a time long ago."""
    for name in names(path / "new"):
        os.utime(path / "new" / name, (1e9, 1e9))


def test_senders_whom_the_mailer_refuses_keep_no_other_from_being_told(
    path: Path, mailer: Mailer
) -> None:
    """Each run of cron began with the same ones, and ended with them."""
    for number in range(4):
        add_message(path, f"0.{number}", sender=b"bad%d@x" % number)
        mailer.refused.add(b"bad%d@x" % number)
    add_message(path, "3.a", sender=b"good@x")
    make_late(path)
    for _ in range(200):
        warn(path)
        if b"good@x" in mailer.told:
            return
    pytest.fail("never told")


def test_what_is_accepted_and_stays_is_not_told_to_be_late(
    path: Path, mailer: Mailer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its sender would send it again."""
    make_late(path)
    FileSystem(monkeypatch, path).always_fail("unlink new/1", errno.EROFS)
    with serving(answer_all()) as server:
        assert "nothing more is taken" in warn(path, server.port)
    assert mailer.told == []


def test_messages_of_other_routes_are_not_read_again_to_be_warned_of(
    path: Path, mailer: Mailer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A maildir of ten thousand of theirs would be read twice in each run."""
    add_message(path, "3.ours", recipient=b"pre-z@y", sender=b"s@x")
    make_late(path)
    read: list[bytes] = []

    def counted(maildir: Maildir, route: Route, folder: Folder, name: bytes) -> object:
        read.append(name)
        return prepare(maildir, route, folder, name)

    monkeypatch.setattr(delay_warnings, "prepare", counted)
    with serving(answer_all(lambda package, recipient: b"Zlater")) as server:
        warn(path, server.port, b"pre-")
    assert read == [b"3.ours"]
    assert mailer.told == [b"s@x"]


# Old mail


class Keeping(Flush):
    """A flush of a route that keeps accepted mail for a second, three seconds from now."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch, port: int = 1) -> None:
        real = time.time
        later = SimpleNamespace(time=lambda: real() + 3, monotonic=time.monotonic)
        monkeypatch.setattr(housekeeping, "time", later)
        self.log = io.StringIO()
        self.report = Report(self.log)
        server = TcpEndpoint("127.0.0.1", port)
        sent = os.fsencode(path.parent / "sent")
        self.code = flush(Route(os.fsencode(path), server, sent=sent, keep_sent_s=1.0), self.report)


@pytest.fixture
def sent(tmp_path: Path) -> Path:
    """Where accepted mail is kept, with an old message."""
    made = make_maildir(tmp_path / "sent")
    add_message(made, "1.old")
    return made


@pytest.mark.parametrize("mail", ["none", "sent", "unreachable"])
def test_old_mail_goes_whatever_became_of_the_rest(
    path: Path, monkeypatch: pytest.MonkeyPatch, sent: Path, mail: str
) -> None:
    """Also from a maildir that is empty, or whose server is away for weeks."""
    if mail == "none":
        for name in names(path / "new"):
            (path / "new" / name).unlink()
    with serving(answer_all()) as server:
        done = Keeping(path, monkeypatch, 1 if mail == "unreachable" else server.port)
    assert done.code == (111 if mail == "unreachable" else 0)
    assert "1.old" not in names(sent / "new")
    assert done.lines[-2].startswith("maildirqmtp: keep-sent: ")
    assert done.lines[-2].endswith(f" removed from {sent}")


def test_old_mail_keeps_no_other_run_waiting(
    path: Path, monkeypatch: pytest.MonkeyPatch, sent: Path
) -> None:
    """To remove a million takes a minute; what arrives meanwhile has a run of its own."""
    others: list[Flush] = []

    def portions(self: Retention) -> Iterator[None]:
        add_message(path, "3.late")
        others.append(Flush(path, server.port))
        yield

    monkeypatch.setattr(Retention, "portions", portions)
    with serving(answer_all()) as server:
        done = Keeping(path, monkeypatch, server.port)
    assert [done.code, *[other.code for other in others]] == [0, 0]
    assert names(path / "new") == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_told_to_stop_amid_old_mail_ends_in_order(
    path: Path, monkeypatch: pytest.MonkeyPatch, sent: Path, number: signal.Signals
) -> None:
    """All mail has gone: whoever started it must not take that for a failure."""
    done: list[int] = []

    def portions(self: Retention) -> Iterator[None]:
        for portion in range(100):
            os.kill(os.getpid(), number)
            done.append(portion)
            yield

    monkeypatch.setattr(Retention, "portions", portions)
    with serving(answer_all()) as server:
        keeping = Keeping(path, monkeypatch, server.port)
    assert keeping.code == 0
    assert len(done) == 1
    assert "2 accepted" in keeping.lines[-1]


def test_a_run_that_is_told_to_stop_removes_no_old_mail(
    path: Path, monkeypatch: pytest.MonkeyPatch, sent: Path
) -> None:
    """It has a few seconds, for what is in flight."""

    def script(peer: Peer) -> None:
        package = peer.read_package()
        assert package is not None
        os.kill(os.getpid(), signal.SIGTERM)
        peer.respond(b"Kok")

    with serving(script) as server:
        Keeping(path, monkeypatch, server.port)
    assert "1.old" in names(sent / "new")


def test_old_mail_that_cannot_be_removed_is_no_mail_that_is_left(
    path: Path, monkeypatch: pytest.MonkeyPatch, sent: Path
) -> None:
    """Exit code 0 says that all of ours is sent, and it is."""
    FileSystem(monkeypatch, path.parent).always_fail("unlink sent/new/1.old", errno.EACCES)
    with serving(answer_all()) as server:
        done = Keeping(path, monkeypatch, server.port)
    assert done.code == 0
    said = f"keep-sent: cannot remove {sent}/new/1.old: Permission denied"
    assert [line for line in done.lines if said in line] == [f"maildirqmtp: {said}"]
