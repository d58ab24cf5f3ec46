"""One route at work, with servers in memory and time that passes only when nothing happens."""

import errno
import io
import json
import os
import selectors
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from maildirqmtp.errors import ConnectError, LocalError, TransportError
from maildirqmtp.forwarder.forwarder import MORE_TIMEOUT_S, Forwarder
from maildirqmtp.forwarder.recovery import MAX_FROM_KNOWN_SERVER, MAX_WITHOUT_PROGRESS
from maildirqmtp.forwarder.report import Report
from maildirqmtp.forwarder.route import Route
from maildirqmtp.forwarder.stop import STOP_S
from maildirqmtp.maildir import writing
from maildirqmtp.maildir.files import Folder
from maildirqmtp.maildir.maildir import Maildir
from maildirqmtp.transport.endpoint import Endpoint, TcpEndpoint
from tests.fakes import (
    FakeClock,
    FakeScript,
    FakeServer,
    FileSystem,
    ServersInTurn,
    accept,
    broken,
    framed,
    never_wait,
)
from tests.helpers import Package, add_message, make_maildir, names, open_descriptors

NOW = 1_800_000_000.0


def hang_up(server: FakeServer, package: Package) -> None:
    """Close instead of answering."""
    server.hang_up()


class Run(ServersInTurn):
    """A maildir, the servers that are reached one after the other, and what came of it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
        super().__init__()
        self.path = make_maildir(path)
        self.options: dict[str, object] = {}
        self.clock = FakeClock()
        self.two_fds = False
        self.can_send_file = True
        self.log = io.StringIO()
        self.data = io.StringIO()
        self.progress: list[tuple[int, int]] = []
        self.report = Report(self.log, self.data, 1, self, self.clock)
        self.forwarder: Forwarder
        never_wait(monkeypatch, self.clock)

    def update(self, done: int, total: int) -> None:
        """See `report.Progress`."""
        self.progress.append((done, total))

    def close(self) -> None:
        """See `report.Progress`."""

    def connect(self, server: Endpoint, timeout_s: float) -> FakeServer:
        """Reach the next server."""
        assert timeout_s in (60.0, MORE_TIMEOUT_S)
        made = FakeServer(
            self.next_script(), two_fds=self.two_fds, can_send_file=self.can_send_file
        )
        self.servers.append(made)
        return made

    def go(self, **options: object) -> None:
        """Run a batch."""
        route = Route(
            os.fsencode(self.path),
            **({"server": TcpEndpoint("mail.example.org")} | self.options | options),  # type: ignore[arg-type]
        )
        before = open_descriptors()
        with Maildir(os.fsencode(self.path)) as maildir:
            self.forwarder = Forwarder(
                route, maildir, self.report, self.connect, self.clock, lambda: NOW
            )
            try:
                self.forwarder.run_batch(maildir.scan(route.include_cur))
            finally:
                self.forwarder.close()
        assert all(server.closed for server in self.servers)
        assert open_descriptors() == before, "descriptors are left open"

    def add(self, count: int, first: int = 1) -> None:
        """Put messages N.a with a recipient rN@y each into new/."""
        for number in range(first, first + count):
            add_message(self.path, f"{number}.a", b"text %d\n" % number, b"s@x", b"r%d@y" % number)

    def add_shared(self, name: str, *recipients: str) -> None:
        """Put a message with a sidecar into new/."""
        add_message(self.path, name)
        os.utime(self.path / "new" / name, (NOW, NOW))
        (self.path / "envelope").mkdir(exist_ok=True)
        content = {"version": 1, "sender": "s@x", "recipients": recipients}
        (self.path / "envelope" / f"{name}.json").write_text(json.dumps(content))

    @property
    def events(self) -> list[dict[str, object]]:
        """The report's events."""
        return [json.loads(line) for line in self.data.getvalue().splitlines()]

    def kinds(self) -> Counter[object]:
        """How many events of each kind there were."""
        return Counter(e["event"] for e in self.events)

    @property
    def received(self) -> Counter[tuple[bytes, ...]]:
        """To whom packages arrived, and how often."""
        return Counter(p.recipients for server in self.servers for p in server.received)

    @property
    def new(self) -> list[str]:
        """What is left."""
        return names(self.path / "new")

    @property
    def code(self) -> int:
        """The exit code."""
        return self.report.counters.exit_code


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """An empty maildir and a server that accepts."""
    return Run(monkeypatch, tmp_path / "Maildir")


# All is well


@pytest.mark.parametrize("two_fds", [False, True], ids=["socket", "pipes"])
def test_everything_goes_over_one_connection(run: Run, two_fds: bool) -> None:
    """In order, each once, and is removed."""
    run.two_fds = two_fds
    run.add(50)
    run.go()
    assert run.new == []
    assert [p.text for p in run.servers[0].received] == [b"text %d\n" % n for n in range(1, 51)]
    assert (run.reached, run.code) == (1, 0)
    assert run.kinds() == {"connected": 1, "accepted": 50}
    assert run.progress[-1] == (50, 50)


def test_an_empty_maildir_connects_to_nobody(run: Run) -> None:
    """Cron runs every minute."""
    run.go()
    assert (run.reached, run.code) == (0, 0)


def test_messages_that_are_not_ours_connect_to_nobody(run: Run) -> None:
    """serialmail ignores them silently."""
    run.add(3)
    run.go(prefix=b"p-")
    assert (run.reached, run.code, run.events) == (0, 0, [])
    assert len(run.new) == 3


def test_held_messages_are_told_once_and_stop_nothing(run: Run) -> None:
    """One bad file never stops the others, nor fills the log with each connection."""
    run.add(3)
    add_message(run.path, "2.bad", b"From: a@b\n\n", None, None)
    add_message(run.path, "0.bad", b"From: a@b\n\n", None, None)
    run.scripts = [hang_up, accept]
    run.go()
    assert run.new == ["0.bad", "2.bad"]
    held = [e["message"] for e in run.events if e["event"] == "held"]
    assert held == ["0.bad", "2.bad"]
    assert run.code == 111


def test_answers_are_settled_before_more_is_sent(run: Run) -> None:
    """At most the window is ever sent and not settled."""
    run.add(20)

    def script(server: FakeServer, package: Package) -> None:
        assert len(run.new) - 20 + len(server.received) <= 4
        server.respond(b"Kok")

    run.scripts = [script]
    run.go(window_messages=4)
    assert run.new == []


def test_a_server_that_answers_late_is_waited_for(run: Run) -> None:
    """Within its time; and removals become durable meanwhile."""
    run.add(2)

    def script(server: FakeServer, package: Package) -> None:
        run.clock.at(run.clock() + 3500, lambda: server.respond(b"Kok"))

    run.scripts = [script]
    run.go()
    assert run.new == []
    assert run.clock() >= 1_000 + 3500


@pytest.mark.parametrize("can_send_file", [True, False])
def test_a_large_message_goes_between_small_ones(run: Run, can_send_file: bool) -> None:
    """Whole, and its descriptor is closed."""
    run.can_send_file = can_send_file
    run.add(3)
    add_message(run.path, "2.large", b"x" * (3 << 20))
    run.go()
    assert run.new == []
    assert sorted(len(p.text) for p in run.servers[0].received) == [7, 7, 7, 3 << 20]


def test_with_cur(run: Run) -> None:
    """Both directories, oldest first."""
    run.add(1, first=2)
    add_message(run.path, "1.a:2,S", b"read\n", b"s@x", b"c@y", folder="cur")
    run.go(include_cur=True)
    assert run.new == names(run.path / "cur") == []
    assert [p.recipients for p in run.servers[0].received] == [(b"c@y",), (b"r2@y",)]


# Before it begins


def test_nothing_is_sent_from_a_maildir_that_cannot_be_changed(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of it would be sent again by every run."""
    run.add(2)
    FileSystem(monkeypatch, run.path).always_fail("unlink new", 30)
    with pytest.raises(LocalError, match="Read-only"):
        run.go()
    assert run.reached == 0


def test_nothing_is_sent_where_sent_cannot_be_written(run: Run, tmp_path: Path) -> None:
    """The same."""
    run.add(1)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(LocalError):
        run.go(sent=os.fsencode(tmp_path / "file" / "Sent"))
    assert run.reached == 0


@pytest.mark.parametrize(
    ("prefix", "ours"), [(b"", (b"k@y", b"z@y")), (b"k", (b"@y",))], ids=["several", "one of ours"]
)
def test_on_a_full_disk_nobody_gets_mail_again_with_each_run(
    run: Run, monkeypatch: pytest.MonkeyPatch, prefix: bytes, ours: tuple[bytes, ...]
) -> None:
    """Mail to several recipients waits for room, for no sidecar could tell who has it."""
    run.add_shared("1.a", "k@y", "z@y")
    run.add_shared("2.a", "k2@y")

    def script(server: FakeServer, package: Package) -> None:
        server.respond(*[b"Zlater" if r == b"z@y" else b"Kok" for r in package.recipients])

    run.scripts = [script]
    system = FileSystem(monkeypatch, run.path)
    system.always_fail("fsync tmp", errno.EDQUOT)
    for _ in range(3):
        run.go(prefix=prefix)
    assert sum(run.received.values()) == 1
    assert run.new == ["1.a"]
    assert run.code == 111
    (held,) = {e["reason"] for e in run.events if e["event"] == "held"}
    assert "it has several recipients, and no sidecar can be written: " in str(held)
    assert names(run.path / "tmp") == []
    system.heal()
    run.go(prefix=prefix)
    assert run.received[ours] == 1
    assert json.loads((run.path / "envelope" / "1.a.json").read_text())["recipients"] == ["z@y"]


def test_with_a_full_disk_for_sent_mail_nobody_gets_mail_again_with_each_run(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What is accepted would stay in new/, and cron sent it again every five minutes.

    Two volumes of a container are on one device, and no link leads from one to the other.
    """

    def no_copy(*_: object) -> bytes:
        raise LocalError("cannot write Sent/tmp/1: No space left on device")

    link = os.link

    def no_link(name: bytes, new_name: bytes, *, src_dir_fd: int, **more: Any) -> None:
        if os.readlink(f"/proc/self/fd/{src_dir_fd}") == str(run.path / "new"):
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        link(name, new_name, src_dir_fd=src_dir_fd, **more)

    sent, free = make_maildir(tmp_path / "Sent"), 0
    with monkeypatch.context() as patch:
        patch.setattr(writing, "write_tmp", no_copy)
        patch.setattr(os, "link", no_link)
        patch.setattr(Folder, "free_bytes", lambda _: free)
        run.add(2)
        for _ in range(3):
            run.go(sent=os.fsencode(sent), window_bytes=1_000)
        assert run.received == {}
        assert run.code == 111
        free = 1_000  # not enough for one that goes while others are in flight
        run.go(sent=os.fsencode(sent), window_bytes=1_000)
        assert run.received == {}
        size = (run.path / "new" / "1.a").stat().st_size
        held = [str(e["reason"]) for e in run.events if e["event"] == "held"]
        assert f"Sent afterwards: less than {1_000 + size} bytes are free there" in held[0]
    run.go(sent=os.fsencode(sent))
    assert names(sent / "new") == ["1.a", "2.a"]
    assert sum(run.received.values()) == 2


@pytest.mark.parametrize("is_made", [True, False])
def test_where_no_sidecar_may_be_put_nobody_gets_mail_again_with_each_run(
    run: Run, monkeypatch: pytest.MonkeyPatch, is_made: bool
) -> None:
    """The maildir, or its envelope/, may be root's, and only new/ and tmp/ the user's own."""
    top = b"Return-Path: <s@x>\nEnvelope-to: k@y,\n\tz@y\n"
    (run.path / "new" / "1.a").write_bytes(top + b"\ntext\n")
    if is_made:
        (run.path / "envelope").mkdir()

    def script(server: FakeServer, package: Package) -> None:
        server.respond(b"Kok", b"Zlater")

    run.scripts = [script]
    system = FileSystem(monkeypatch, run.path)
    for call in ("mkdir envelope", "rename tmp/* -> envelope/", "rename tmp/* -> .maildirqmtp-r"):
        system.always_fail(call, errno.EACCES)
    for _ in range(3):
        run.go()
    assert run.received == {}
    assert run.code == 111
    (held,) = {e["reason"] for e in run.events if e["event"] == "held"}
    assert "no sidecar can be written: " in str(held)


def test_on_a_full_disk_sent_mail_is_linked(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """That takes no room, and the queue need not wait for any."""
    monkeypatch.setattr(Folder, "free_bytes", lambda _: 0)
    run.add(2)
    run.go(sent=os.fsencode(tmp_path / "Sent"))
    assert names(tmp_path / "Sent" / "new") == ["1.a", "2.a"]
    assert names(tmp_path / "Sent" / "tmp") == []
    assert run.code == 0


def test_a_disk_that_fills_up_meanwhile_stops_mail_to_several(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A daemon proves not only once that there is room."""
    for number in (1, 2):
        run.add_shared(f"{number}.a", "k@y", f"z{number}@y")
    system = FileSystem(monkeypatch, run.path)

    def script(server: FakeServer, package: Package) -> None:
        run.clock.advance(60.0)
        system.always_fail("fsync tmp", errno.ENOSPC)
        server.respond(b"Kok", b"Kok")

    run.scripts = [script]
    run.go(window_messages=1)
    assert sum(run.received.values()) == 1
    assert run.new == ["2.a"]


def test_a_server_out_of_reach_changes_nothing(run: Run) -> None:
    """Neither a rejection nor a deferral: serialmail's rule."""
    run.add(3)
    run.scripts = [ConnectError("cannot connect to mail.example.org:209: refused")]
    run.go()
    assert run.new == ["1.a", "2.a", "3.a"]
    assert names(run.path) == ["cur", "new", "tmp"]
    assert run.reached == 1
    (event,) = run.events
    assert event["event"] == "trouble"
    assert "refused; nothing has happened to the messages that are left (3 left)" in str(
        event["reason"]
    )
    assert run.report.counters.left == 3
    assert run.code == 111


def test_a_server_that_goes_out_of_reach_is_told_with_what_is_left(run: Run) -> None:
    """What was in doubt is counted as left."""
    run.add(3)

    def one_only(server: FakeServer, package: Package) -> None:
        if package.recipients == (b"r1@y",):
            server.respond(b"Kok")
        else:
            server.hang_up()

    run.scripts = [one_only, ConnectError("no route")]
    run.go()
    assert run.report.counters.left == 2
    assert run.new == ["2.a", "3.a"]


# Connections that end


def test_all_packages_of_a_message_go_over_one_connection(run: Run) -> None:
    """They have one result; what of it came over another connection would be lost with that."""
    run.add(3)
    run.add_shared("9.a", "a@y", "b@y", "c@y")
    run.go(connections=2, window_messages=2, one_recipient=True)
    assert run.new == []
    assert len(run.servers) == 2
    to = [{r for p in server.received for r in p.recipients} for server in run.servers]
    assert sum({b"a@y", b"b@y", b"c@y"} <= recipients for recipients in to) == 1
    assert not to[0] & to[1]


def test_it_reconnects_as_long_as_there_is_progress(run: Run) -> None:
    """A server that hangs up after each answer is slow, not broken."""
    run.add(8)

    def one_each(server: FakeServer, package: Package) -> None:
        if len(server.received) == 1:
            server.respond(b"Kok")
            server.hang_up()

    run.scripts = [one_each]
    run.go(window_messages=1)
    assert run.new == []
    assert run.reached == 8
    assert set(run.received.values()) == {1}


def test_a_server_that_dies_on_every_message_is_given_up(run: Run) -> None:
    """A dead server must not be hammered; each message is still there."""
    run.add(10)
    run.scripts = [hang_up]
    run.go()
    assert len(run.new) == 10
    # Fewer in flight after the first is progress.
    assert run.reached == 1 + MAX_WITHOUT_PROGRESS
    assert run.report.counters.deferred == 0
    assert run.report.counters.left == 10
    assert "making no progress" in str(run.events[-1]["reason"])
    assert run.code == 111


def test_a_server_that_closes_at_once_without_reading(run: Run) -> None:
    """tcpserver out of slots: nothing is in doubt, nothing is deferred."""
    run.add(3)

    class Closing(FakeServer):
        def send(self, data: bytes | bytearray | memoryview) -> int:
            raise broken("broken pipe")

    def connect(server: Endpoint, timeout_s: float) -> FakeServer:
        run.reached += 1
        made = Closing(accept)
        run.servers.append(made)
        return made

    run.connect = connect  # type: ignore[method-assign]
    run.go()
    assert len(run.new) == 3
    assert run.report.counters.in_doubt == 0
    assert MAX_WITHOUT_PROGRESS <= run.reached <= MAX_WITHOUT_PROGRESS + 2


def test_the_window_shrinks_until_the_culprit_is_alone(run: Run) -> None:
    """One poisonous message must not keep a thousand others from going."""
    run.add(100)

    def allergic(server: FakeServer, package: Package) -> None:
        if b"r57@y" in package.recipients:
            server.hang_up()
        elif not any(b"r57@y" in p.recipients for p in server.received):
            server.respond(b"Kok")

    run.scripts = [allergic]
    run.go()
    assert run.new == ["57.a"]
    deferred = [e for e in run.events if e["event"] == "deferred"]
    assert [e["message"] for e in deferred] == ["57.a"]
    assert "hung up twice on this message alone" in str(deferred[0]["text"])
    assert run.received[(b"r57@y",)] < 10
    assert run.code == 111


def test_a_culprit_in_front_stops_nothing(run: Run) -> None:
    """The same for the first message of all, on which every run would break off."""
    run.add(5)

    def allergic(server: FakeServer, package: Package) -> None:
        if package.recipients == (b"r1@y",):
            server.hang_up()
        else:
            server.respond(b"Kok")

    run.scripts = [allergic]
    run.go()
    assert run.new == ["1.a"]
    assert run.report.counters.deferred == 1


def test_two_culprits_in_front_stop_nothing(run: Run) -> None:
    """Else each run would give up on these two, and what is behind them never goes."""
    run.add(5)

    def allergic(server: FakeServer, package: Package) -> None:
        if package.recipients in ((b"r1@y",), (b"r2@y",)):
            server.hang_up()
        else:
            server.respond(b"Kok")

    run.scripts = [allergic]
    run.go()
    assert run.new == ["1.a", "2.a"]
    assert run.report.counters.deferred == 2


def test_what_was_in_doubt_is_sent_again_and_counted(run: Run) -> None:
    """The report says who may have it twice."""
    run.add(20)
    seen: list[int] = []

    def after_ten(server: FakeServer, package: Package) -> None:
        seen.append(1)
        if len(seen) == 10:
            server.hang_up()
        elif len(seen) < 6 or len(seen) > 10:
            server.respond(b"Kok")

    run.scripts = [after_ten, accept]
    run.go()
    assert run.new == []
    twice = sorted(r for r, count in run.received.items() if count == 2)
    doubted = sorted(str(e["recipient"]) for e in run.events if e["event"] == "in-doubt")
    assert [r[0].decode() for r in twice] == doubted
    assert run.report.counters.in_doubt == len(twice) > 0
    assert run.code == 0
    assert run.kinds()["closed"] == 1


def test_a_server_that_does_not_speak_qmtp_is_given_up(run: Run) -> None:
    """An SMTP server on that port will not change its mind, whatever the message."""
    run.add(3)

    def smtp(server: FakeServer, package: Package) -> None:
        server.say(b"220 mail.example.org ESMTP\r\n")

    run.scripts = [smtp]
    run.go()
    assert run.reached == 1 + MAX_WITHOUT_PROGRESS
    assert len(run.new) == 3
    assert "is of no use" in str(run.events[-1]["reason"])
    assert "giving up (3 left)" in str(run.events[-1]["reason"])


def test_a_violation_after_answers_is_tried_again(run: Run) -> None:
    """It got somewhere."""
    run.add(4)

    def violates(server: FakeServer, package: Package) -> None:
        server.respond(b"Kok", b"X")

    run.scripts = [violates]
    run.go()
    assert run.new == []
    assert run.reached == 4


def test_what_waits_when_a_connection_ends_is_not_found_a_second_time(run: Run) -> None:
    """The scan for what has come meanwhile would list it again, and each would go twice."""
    run.add(6)

    def once_too_often(server: FakeServer, package: Package) -> None:
        server.respond(b"Kok", b"Kok")

    def refuses(server: FakeServer, package: Package) -> None:
        server.respond(b"Dno")

    run.scripts = [once_too_often, refuses]
    run.go(window_messages=1)
    assert set(run.received.values()) == {1}
    assert run.report.counters.failed == 5
    assert run.kinds()["held"] == 0


def test_a_silent_server_times_out_and_is_given_up(run: Run) -> None:
    """With ten messages, then with each of three; more of them would help nobody."""
    run.add(10)
    run.scripts = [lambda server, package: None]
    run.go()
    assert run.reached == 1 + MAX_WITHOUT_PROGRESS
    assert run.clock() == 1_000 + 4 * 3_600
    assert len(run.new) == 10
    assert run.report.counters.in_doubt == 10 + 3


def meet(run: Run, count: int) -> None:
    """Have the server answer once, so that it is known; then put so many messages into new/."""
    run.add(1)
    run.go()
    run.servers.clear()
    run.add(count, first=2)


@pytest.mark.parametrize("connections", [1, 2, 4, 8])
def test_with_several_connections_a_silent_server_is_given_up(run: Run, connections: int) -> None:
    """For each that had timed out another was made, hour by hour, until all was put aside."""
    meet(run, 40)
    run.scripts = [lambda server, package: None]
    run.go(connections=connections)
    assert "making no progress, giving up (40 left)" in str(run.events[-1]["reason"])
    assert run.report.counters.deferred == 0
    assert len(run.servers) <= (3 + MAX_WITHOUT_PROGRESS) * connections
    assert max(run.received.values()) <= 3


@pytest.mark.parametrize("connections", [1, 8])
def test_a_server_that_never_answered_is_tried_as_often_whatever_connections(
    run: Run, connections: int
) -> None:
    """It gets one connection at a time; with 8, a mistyped server kept the lock for a day."""
    run.add(40)
    run.scripts = [lambda server, package: None]
    run.go(connections=connections)
    assert run.reached == 1 + MAX_WITHOUT_PROGRESS


def test_a_server_that_answers_on_one_connection_is_not_given_up(run: Run) -> None:
    """It counts as alive; the others may be stuck for a reason of their own."""
    meet(run, 100)

    def slow(server: FakeServer, package: Package) -> None:
        if server is run.servers[0]:
            run.clock.at(run.clock() + 3_000, lambda: server.respond(b"Kok"))

    run.scripts = [slow]
    run.go(connections=4, window_messages=8, session_s=1e9)
    assert len(run.servers) > 3 * MAX_WITHOUT_PROGRESS
    assert "giving up" not in run.data.getvalue()
    assert run.report.counters.left == 0


def test_an_answer_after_it_was_given_up_has_it_go_on(run: Run) -> None:
    """One slow connection works, the others are refused at once, again and again."""
    meet(run, 100)

    def slow(server: FakeServer, package: Package) -> None:
        if server is run.servers[0]:
            run.clock.at(run.clock() + 1_000, lambda: server.respond(b"Kok"))
        else:
            server.hang_up()

    run.scripts = [slow]
    run.go(connections=8, window_messages=64, session_s=1e9)
    assert len(run.servers[0].received) > 8
    assert len(run.servers) > 8 * MAX_FROM_KNOWN_SERVER, "others are tried again as well"
    assert run.report.counters.left == 0


def test_many_connections_that_are_cut_at_once_are_one_failure(run: Run) -> None:
    """The link was down for a moment, twice; with eight of them, the run ended with all left."""
    meet(run, 100)

    def cut_twice(server: FakeServer, package: Package) -> None:
        if server in run.servers[:16]:
            server.hang_up()
        else:
            server.respond(b"Kok")

    run.scripts = [cut_twice]
    run.go(connections=8, window_messages=64)
    assert len(run.servers) > 16
    assert run.new == []


def test_after_its_session_time_the_connection_is_replaced(run: Run) -> None:
    """Before the server's alarm(3600) cuts it off with mail in flight."""
    run.add(10)

    def slow(server: FakeServer, package: Package) -> None:
        run.clock.at(run.clock() + 1000, lambda: server.respond(b"Kok"))

    run.scripts = [slow]
    run.go(window_messages=1)
    assert run.new == []
    assert [len(s.received) for s in run.servers] == [3, 3, 3, 1]
    assert run.report.counters.in_doubt == 0
    assert run.kinds()["closed"] == 0


# Servers that answer once


def once(server: FakeServer, package: Package) -> None:
    """Answer once per package, as mailfront does."""
    server.respond(b"Kok")


def test_a_server_that_answers_once_is_found_out_and_gets_single_packages(run: Run) -> None:
    """Else every later answer belongs to the wrong message."""
    run.add_shared("1.a", "a@y", "b@y", "c@y")
    run.add_shared("2.a", "d@y", "e@y")
    run.add(2, first=3)
    run.scripts = [once]
    run.go()
    assert run.new == []
    assert run.received == {
        (b"a@y", b"b@y", b"c@y"): 1,
        (b"b@y",): 1,
        (b"c@y",): 1,
        (b"d@y",): 1,
        (b"e@y",): 1,
        (b"r3@y",): 1,
        (b"r4@y",): 1,
    }
    assert run.kinds()["note"] == 1
    assert run.report.counters.in_doubt == 2
    assert names(run.path / "envelope") == []


def each_until(count: int) -> FakeScript:
    """Answer for each recipient, and hang up at the package of that number."""
    seen: list[Package] = []

    def script(server: FakeServer, package: Package) -> None:
        seen.append(package)
        if len(seen) == count:
            server.hang_up()
        elif len(seen) < count:
            server.respond(*[b"Kok"] * len(package.recipients))

    return script


def test_another_connection_may_lead_to_another_server(run: Run) -> None:
    """The first answers for each recipient, the next once per package: no answer is shifted."""
    refused = (b"r5@y",)

    def once_but(server: FakeServer, package: Package) -> None:
        server.respond(b"Dno" if package.recipients == refused else b"Kok")

    run.add(1)
    run.add_shared("2.a", "a@y", "b@y")
    run.add_shared("3.a", "c@y", "d@y")
    run.add_shared("4.a", "e@y", "f@y")
    run.add(4, first=5)
    run.scripts = [each_until(3), once_but]
    run.go(window_messages=8)
    (failed,) = [event for event in run.events if event["event"] == "failed"]
    assert failed["recipient"] == "r5@y"
    accepted = {event["recipient"] for event in run.events if event["event"] == "accepted"}
    assert accepted == {f"{who}@y" for who in ("r1", *"abcdef", "r6", "r7", "r8")}
    assert run.new == []


def test_what_was_found_out_of_one_server_is_kept_for_the_next(run: Run) -> None:
    """That it answers once per package: to find it out again would cost duplicates each time."""
    run.add_shared("1.a", "a@y", "b@y")
    run.add_shared("2.a", "c@y", "d@y")

    def one_more(server: FakeServer, package: Package) -> None:
        server.respond(b"Kok")
        server.hang_up()

    run.scripts = [once, one_more, once]
    run.go()
    assert run.new == []
    assert [len(who) for who in run.received] == [2, 1, 1, 1]


def test_a_message_partly_put_starts_anew_from_the_disk(run: Run) -> None:
    """Its recipients who have it must not get it again over the next connection."""
    run.add_shared("1.a", "a@y", "b@y")
    run.add_shared("2.a", *[f"r{n}@y" for n in range(9)])
    seen: list[int] = []

    def cut_off(server: FakeServer, package: Package) -> None:
        seen.append(1)
        if len(seen) == 5:
            server.hang_up()
        elif len(seen) != 4:
            server.respond(b"Kok")

    run.scripts = [once, cut_off, once]
    run.go(window_messages=2)
    assert run.new == []
    assert len(run.received) == 1 + 1 + 9
    assert sum(run.received.values()) <= 1 + 1 + 9 + 2


def test_one_whose_packages_were_all_answered_so_far_too(run: Run) -> None:
    """It is not in flight then, and still not done."""
    run.add_shared("1.a", "a@y", "b@y")
    run.add_shared("2.a", "c@y", "d@y", "e@y")

    def one_each(server: FakeServer, package: Package) -> None:
        server.respond(b"Kok")
        if len(server.received) == 2:
            server.hang_up()

    run.scripts = [once, one_each]
    run.go(window_messages=1)
    assert run.new == []
    assert run.received[(b"c@y",)] == run.received[(b"d@y",)] == run.received[(b"e@y",)] == 1


def test_one_that_the_session_cuts_in_two_goes_on_over_the_next(run: Run) -> None:
    """Nothing of it is in flight then; its sidecar says where to go on."""
    run.add_shared("1.a", *[f"r{n}@y" for n in range(5)])

    def slow(server: FakeServer, package: Package) -> None:
        run.clock.at(run.clock() + 1000, lambda: server.respond(b"Kok"))

    run.scripts = [slow]
    run.go(window_messages=1)
    assert run.new == []
    singles = [p.recipients for s in run.servers[1:] for p in s.received]
    assert singles == [(b"r%d@y" % n,) for n in range(1, 5)]
    assert [len(s.received) for s in run.servers[1:]] == [3, 1]
    assert run.report.counters.accepted == 5


def test_after_a_deferral_the_rest_of_a_message_waits(run: Run) -> None:
    """Told to try later, we do not try again over the very next connection."""
    run.add_shared("1.a", "a@y", "b@y")
    run.add_shared("2.a", "c@y", "d@y", "e@y")
    run.add(1, first=3)
    seen: list[int] = []

    def defers(server: FakeServer, package: Package) -> None:
        seen.append(1)
        if len(seen) == 2:
            server.respond(b"Zlater")
        elif len(seen) == 3:
            server.hang_up()
        else:
            server.respond(b"Kok")

    run.scripts = [once, defers]
    run.go(window_messages=4)
    assert run.new == ["2.a"]
    content = json.loads((run.path / "envelope" / "2.a.json").read_text())
    assert content["recipients"] == ["c@y", "d@y", "e@y"]
    assert run.received[(b"c@y",)] == run.received[(b"d@y",)] == 1
    assert run.report.counters.deferred == 3
    assert run.code == 111


def test_several_recipients_wait_their_turn(run: Run) -> None:
    """A package with several goes alone until the server is known."""
    run.add(3)
    run.add_shared("2.shared", "a@y", "b@y")
    in_flight: list[int] = []

    def script(server: FakeServer, package: Package) -> None:
        if len(package.recipients) > 1:
            in_flight.append(len(run.new))
        accept(server, package)

    run.scripts = [script]
    run.go()
    assert run.new == []
    assert in_flight == [2]


# Files that change


def test_a_large_file_that_shrinks_is_held_and_the_others_go(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server throws it away; the connection is made anew for the rest."""
    run.add(1)
    add_message(run.path, "2.large", b"x" * (3 << 20))
    run.add(2, first=3)
    real = FakeServer.send_file

    def shrinks(self: FakeServer, fd: int, offset: int, count: int) -> int | None:
        os.truncate(run.path / "new" / "2.large", 2 << 20)
        return real(self, fd, offset, count)

    monkeypatch.setattr(FakeServer, "send_file", shrinks)
    run.go()
    assert run.received == {(b"r1@y",): 1, (b"r3@y",): 1, (b"r4@y",): 1}
    assert run.new == ["2.large"]
    assert run.reached == 2
    assert run.report.counters.in_doubt == 0
    held = [e for e in run.events if e["event"] == "held"]
    assert [e["message"] for e in held] == ["2.large"]
    assert run.kinds()["closed"] == 0


def test_a_large_file_that_cannot_be_looked_at_is_not_sent(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not known to be the same is not the same."""
    add_message(run.path, "1.large", b"x" * (2 << 20))
    run.add(1, first=2)

    def is_same(self: Maildir, message: object) -> bool:
        raise LocalError("cannot look at it")

    monkeypatch.setattr(Maildir, "is_same", is_same)
    run.go()
    assert run.new == ["1.large"]
    assert run.received == {(b"r2@y",): 1}
    assert run.kinds()["held"] == 1


# Trouble on this side


def test_after_trouble_nothing_more_is_taken(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is in flight is finished, what is left is counted."""
    run.add(10)
    system = FileSystem(monkeypatch, run.path)
    system.always_fail("unlink new/2.a", 30)
    run.go(window_messages=2)
    assert "2.a" in run.new
    assert sum(run.received.values()) <= 5
    assert set(run.received.values()) == {1}
    assert "stopped before the end" in run.log.getvalue()
    assert "the server has taken 2.a" in run.log.getvalue()
    left = run.report.counters.left
    assert left == len(run.new) - 1 > 0
    assert run.code == 111


def test_a_connection_that_cannot_be_watched_is_closed_and_tried_again(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel has no memory for it now; that must not cost the route its connection for good."""
    run.add(3)
    refused = ["the first", "the second"]

    class Short(selectors.DefaultSelector):
        def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
            if data is not None and refused:
                raise OSError(errno.ENOMEM, f"no memory for {refused.pop(0)}")
            return super().register(fileobj, events, data)

    monkeypatch.setattr(selectors, "DefaultSelector", Short)
    route = Route(os.fsencode(run.path), TcpEndpoint("mail.example.org"))
    with Maildir(os.fsencode(run.path)) as maildir:
        forwarder = Forwarder(route, maildir, run.report, run.connect, run.clock, lambda: NOW)
        for what in ("first", "second"):
            forwarder.run_batch(maildir.scan())
            said = f"cannot wait for mail.example.org:209: no memory for the {what}"
            assert said in run.log.getvalue()
            assert len(run.new) == 3
        forwarder.run_batch(maildir.scan())
        forwarder.close()
    assert run.new == []
    assert [server.closed for server in run.servers] == [True] * 3


def test_a_second_connection_that_cannot_be_watched_is_closed_too(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing else has it: it, and the command behind it, would stay for as long as we do."""
    run.add(200)
    watched = 0

    class Short(selectors.DefaultSelector):
        def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
            nonlocal watched
            watched += data is not None
            if watched == 2:
                raise OSError(errno.ENOMEM, "no memory")
            return super().register(fileobj, events, data)

    def connect(server: Endpoint, timeout_s: float) -> FakeServer:
        run.servers.append(FakeServer(accept))
        return run.servers[-1]

    run.connect = connect  # type: ignore[method-assign]
    monkeypatch.setattr(selectors, "DefaultSelector", Short)
    run.go(connections=2)
    assert len(run.servers) == 2
    assert "cannot wait for mail.example.org:209: no memory" in run.log.getvalue()


# Being stopped


def test_stop_finishes_what_is_in_flight(run: Run) -> None:
    """TERM at shutdown: nothing is left in doubt by a server that answers."""
    run.add(10)

    def script(server: FakeServer, package: Package) -> None:
        if len(server.received) == 3:
            run.forwarder.interrupt()
            os.write(run.forwarder.wake.write_fd, b"\0")
        server.respond(b"Kok")

    run.scripts = [script]
    run.go(window_messages=1)
    assert sum(run.received.values()) == 3
    assert len(run.new) == 7
    assert run.report.counters.in_doubt == 0
    assert "stopped before the end (7 left)" in run.log.getvalue()
    assert run.code == 111


def test_stop_ends_at_its_second(run: Run) -> None:
    """Woken by the signal's byte, as the real one is."""
    run.add(1)

    def stop() -> None:
        run.forwarder.interrupt()
        os.write(run.forwarder.wake.write_fd, b"\x0f")

    def silent(server: FakeServer, package: Package) -> None:
        run.clock.at(run.clock() + 5, stop)

    run.scripts = [silent]
    run.go()
    assert run.clock() == 1_000 + 5 + STOP_S
    assert "told to stop" in run.log.getvalue()


def test_a_second_stop_gives_up_at_once(run: Run) -> None:
    """Whoever presses ^C twice is not made to wait; and is told what is in doubt."""
    run.add(1)

    def stop() -> None:
        run.forwarder.interrupt()
        os.write(run.forwarder.wake.write_fd, b"\x02")

    def silent(server: FakeServer, package: Package) -> None:
        run.clock.at(run.clock() + 5, stop)
        run.clock.at(run.clock() + 6, stop)

    run.scripts = [silent]
    run.go()
    assert run.clock() == 1_000 + 6
    assert run.report.counters.in_doubt == 1
    assert len(run.new) == 1


def test_stop_before_anything_sends_nothing(run: Run) -> None:
    """The signal came while the maildir was read."""
    run.add(2)
    route = Route(os.fsencode(run.path), TcpEndpoint("mail.example.org"))
    with Maildir(os.fsencode(run.path)) as maildir:
        forwarder = Forwarder(route, maildir, run.report, run.connect, run.clock, lambda: NOW)
        forwarder.interrupt()
        forwarder.run_batch(maildir.scan())
        forwarder.close()
    assert run.reached == 0
    assert run.report.counters.left == 2


def test_stop_while_connecting_ends_that_at_once(run: Run) -> None:
    """A minute for each address is too long for a shutdown."""
    run.add(2)
    run.before = lambda: run.forwarder.interrupt()
    run.go()
    assert run.reached == 1
    assert run.servers == []
    assert run.report.counters.left == 2
    assert "told to stop while connecting" in run.log.getvalue()


def test_stop_between_two_connections_makes_no_other(run: Run) -> None:
    """What is in doubt stays owed."""
    run.add(4)

    def script(server: FakeServer, package: Package) -> None:
        run.forwarder.interrupt()
        server.hang_up()

    run.scripts = [script]
    run.go()
    assert run.reached == 1
    assert len(run.new) == 4


def test_stop_right_after_connecting_sends_nothing(run: Run) -> None:
    """The connection is closed again."""
    run.add(2)
    connect = run.connect

    def then_stop(server: Endpoint, timeout_s: float) -> FakeServer:
        made = connect(server, timeout_s)
        run.forwarder.told_to_stop.tell()
        return made

    run.connect = then_stop  # type: ignore[method-assign]
    run.go()
    assert sum(run.received.values()) == 0
    assert run.report.counters.left == 2


class HungMailer:
    """A mailer that is ended by a stop, twice where that is asked for; notes what was left then."""

    def __init__(self, run: Run, signals: int = 1) -> None:
        self.left: list[list[str]] = []
        self._run = run
        self._signals = signals

    def can_reach(self, recipient: bytes) -> bool:
        """See `mailers.Mailer`."""
        return True

    def send(self, bounce: bytes, recipient: bytes, identifier: str) -> bytes | None:
        """See `mailers.Mailer`."""
        self.left.append(self._run.new)
        for _ in range(self._signals):
            self._run.forwarder.interrupt()
        raise LocalError("told to stop")


@pytest.mark.parametrize("connections", [1, 2])
def test_what_is_accepted_is_settled_before_a_mailer_may_hang(
    run: Run, monkeypatch: pytest.MonkeyPatch, connections: int
) -> None:
    """Killed meanwhile, the next run would send it all again; also on another connection."""
    mailer = HungMailer(run)
    monkeypatch.setattr("maildirqmtp.forwarder.bounces.make_mailer", lambda *_: mailer)
    run.add(1 + 2)
    waiting: dict[FakeServer, list[bytes]] = {}

    def script(server: FakeServer, package: Package) -> None:
        number = package.recipients[0][1:-2]
        if number == b"1":
            server.respond(b"Kok")  # so that there may be a second connection
            return
        waiting.setdefault(server, []).append(b"Dno" if number == b"2" else b"Kok")
        if number == b"3":
            for one, answers in waiting.items():
                one.respond(*answers)

    run.scripts = [script] * connections
    run.go(bounce=True, connections=connections, window_messages=2 // connections)
    assert run.reached == connections
    assert mailer.left == [["2.a"]]
    assert run.new == ["2.a"]
    assert run.code == 111


def test_a_mailer_ended_by_a_second_stop_is_not_followed_by_more_mail(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What goes out then is in doubt at once, and the next run sends it again."""
    connect = run.connect

    def full(server: Endpoint, timeout_s: float) -> FakeServer:
        made = connect(server, timeout_s)
        made.takes.append(0)  # nothing has gone out when the mailer begins
        return made

    run.connect = full  # type: ignore[method-assign]
    mailer = HungMailer(run, signals=2)
    monkeypatch.setattr("maildirqmtp.forwarder.bounces.make_mailer", lambda *_: mailer)
    run.add(1)
    add_message(run.path, "2.a", b"Received: x\n" * 100 + b"\n", b"s@x")
    run.scripts = [lambda server, package: None]
    run.go(bounce=True)
    assert mailer.left == [["1.a", "2.a"]]
    assert sum(run.received.values()) == 0
    assert run.report.counters.in_doubt == 0
    assert run.new == ["1.a", "2.a"]


# Outcomes, together


def test_all_outcomes_in_one_run(run: Run) -> None:
    """Each message where it belongs, and the exit code that says so."""
    run.add(6)
    answers = {1: b"Kok", 2: b"Zlater", 3: b"Dno", 4: b"Kok", 5: b"Dno", 6: b"Zlater"}

    def script(server: FakeServer, package: Package) -> None:
        server.respond(answers[int(package.recipients[0][1:-2])])

    os.utime(run.path / "new" / "6.a", (1, 1))
    first = {"version": 1, "first_deferred": {"6.a": NOW - 86_400.0}}
    (run.path / ".maildirqmtp-state.json").write_text(json.dumps(first))
    for name in ("2.a", "3.a"):
        os.utime(run.path / "new" / name, (NOW, NOW))
    run.scripts = [script]
    run.go()
    assert run.new == ["2.a"]
    assert names(run.path / ".Failed" / "new") == ["3.a", "5.a", "6.a"]
    counters = run.report.counters
    assert (counters.accepted, counters.deferred, counters.failed) == (2, 1, 3)
    assert run.code == 111


def test_a_broken_read_with_answers_before_it(run: Run) -> None:
    """The connection is reset right after the answers."""
    run.add(3)

    def script(server: FakeServer, package: Package) -> None:
        server.say(framed(b"Kok"))
        if len(server.received) == 2:
            server.say(broken())

    run.scripts = [script, accept]
    run.go()
    assert run.new == []
    assert run.reached == 2


def test_transport_errors_while_connecting_of_any_kind(run: Run) -> None:
    """TLS or DNS trouble: nothing happens to any message."""
    run.add(1)
    run.scripts = [TransportError("handshake failed")]
    run.go()
    assert run.new == ["1.a"]


@pytest.mark.parametrize("size", [100, 2 << 20])
def test_a_loop_is_left_where_nothing_may_be_sent(run: Run, size: int) -> None:
    """It was forgotten: not counted, its file left open, and no other route could have it."""
    add_message(run.path, "1.a", b"Received: x\n" * 150 + b"\n" + b"x" * size)
    (run.path / "sent").write_text("no maildir")
    before = open_descriptors()
    with pytest.raises(LocalError, match="sent: Not a directory"):
        run.go(sent=os.fsencode(run.path / "sent"))
    assert open_descriptors() == before
    assert run.new == ["1.a"]
    assert run.forwarder.outbox.left == 1
