"""Watch mode, end to end: mail goes as it comes, whatever becomes of events and servers."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from datetime import datetime
from pathlib import Path

import pytest

from tests.e2e.daemons import (
    Running,
    deliver,
    empties,
    is_connecting,
    now_name,
    supervisor,
    system_calls,
    watching,
)
from tests.helpers import (
    Package,
    Peer,
    ScriptedServer,
    add_message,
    answer_all,
    closed_port,
    importing_first,
    make_maildir,
    names,
    serving,
    wait_until,
)

#: Much longer than any test takes: what happens before it happens because of an event.
NEVER = ("--rescan", "1h")


def subjects(server: ScriptedServer) -> list[bytes]:
    """Return the first lines of what a server got."""
    return [package.text.split(b"\n", 1)[0] for package in server.packages]


# Coming and going


@pytest.mark.parametrize("flags", [(), ("--sent", "{tmp}/Sent")])
def test_what_comes_is_sent_at_once(maildir: Path, tmp_path: Path, flags: tuple[str, ...]) -> None:
    """Nobody waits for a rescan, also not for half a second after each message that went."""
    given = [flag.format(tmp=tmp_path) for flag in flags]
    with (
        serving(answer_all()) as server,
        watching("--watch", maildir, server.address, *NEVER, *given) as daemon,
    ):
        for number in range(30):
            deliver(maildir, now_name(number), b"%d\n" % number)
            wait_until(lambda: len(server.packages) > number, "the message")  # noqa: B023
            empties(maildir)
        assert subjects(server) == [b"%d" % number for number in range(30)]
        assert server.connections == 1
        assert daemon.stop() == 0
        assert len(names(tmp_path / "Sent" / "new")) == (30 if flags else 0)
        assert daemon.log.count(": accepted: ok") == 30


def test_what_was_there_before_is_sent(maildir: Path) -> None:
    """A daemon that starts finds what came while there was none, the oldest first."""
    for number in (3, 1, 2):
        add_message(maildir, f"100{number}.x", b"%d\n" % number)
    with serving(answer_all()) as server, watching("--watch", maildir, server.address, *NEVER):
        empties(maildir)
        assert subjects(server) == [b"1", b"2", b"3"]


def test_each_attempt_is_a_line_that_says_all(maildir: Path) -> None:
    """An administrator follows a message from log to log by its Message-ID."""
    with (
        serving(answer_all(lambda package, recipient: b"Ztry later")) as server,
        watching("--watch", maildir, server.address, *NEVER) as daemon,
    ):
        deliver(maildir, "1.x", b"Message-ID: <one@example.org>\n\ntext\n")
        daemon.wait_for("deferred")
        (line,) = [line for line in daemon.log.splitlines() if "deferred" in line]
        time_, _, said = line.partition(" ")
        assert abs(datetime.fromisoformat(time_).timestamp() - time.time()) < 3_600
        assert said.startswith(
            "maildirqmtp: 1.x: recipient@example.net: deferred: try later "
            "(from <sender@example.org>, <one@example.org>, 36 bytes, delay "
        )


def test_what_a_command_says_is_json_too(maildir: Path) -> None:
    """A line of ssh's amid the objects ends the program that reads them."""
    ssh = r"""exec:sh -c 'echo "no \"route\"" >&2; exit 255'"""
    with watching("--watch", "--log-format=json", maildir, ssh, *NEVER) as daemon:
        deliver(maildir, "1.x")
        daemon.wait_for('"command"')
        assert daemon.stop() == 0
        lines = [json.loads(line) for line in daemon.log.splitlines()]
    said = [one["text"] for one in lines if one["event"] == "command"]
    assert said[0] == 'sh: no "route"'


def test_the_log_can_be_json(maildir: Path) -> None:
    """Each line an object, whatever a server says; nothing else on standard error."""
    evil = b'Z"no" \\ \xc3\xbc\x1b[31m\r\n{"event": "accepted"}'
    with (
        serving(answer_all(lambda package, recipient: evil)) as server,
        watching("--watch", "--log-format=json", maildir, server.address, *NEVER) as daemon,
    ):
        deliver(maildir, "1.x", b"Subject: test\n\ntext\n")
        daemon.wait_for('"deferred"')
        assert daemon.stop() == 0
        lines = [json.loads(line) for line in daemon.log.splitlines()]
    assert [one["event"] for one in lines] == ["note", "deferred", "note", "summary"]
    assert all(set(one) == {"time", "level", "route", "event", "text"} for one in lines)
    assert lines[1]["level"] == "warning"
    assert lines[1]["route"] == str(maildir)
    text = '1.x: recipient@example.net: deferred: "no" \\ \u00fc?[31m??{"event": "accepted"}'
    assert lines[1]["text"].startswith(text)


def test_a_deaf_watchdog_costs_one_rescan(maildir: Path, tmp_path: Path) -> None:
    """Events are hints: without any, all mail still goes."""
    (tmp_path / "deaf" / "watchdog" / "observers").mkdir(parents=True)
    (tmp_path / "deaf" / "watchdog" / "__init__.py").touch()
    (tmp_path / "deaf" / "watchdog" / "events.py").write_text(
        "class FileSystemEventHandler: pass\n"
        "class FileSystemEvent: pass\n"
        "FileCreatedEvent = FileMovedEvent = DirDeletedEvent = FileSystemEvent\n"
    )
    (tmp_path / "deaf" / "watchdog" / "observers" / "__init__.py").write_text(
        "class Observer:\n"
        "    emitters = []\n"
        "    def start(self): self.emitters = [self]\n"
        "    def schedule(self, *a, **k): pass\n"
        "    def is_alive(self): return True\n"
        "    def stop(self): pass\n"
        "    def join(self, timeout=None): pass\n"
    )
    deaf = importing_first(tmp_path / "deaf")
    with (
        serving(answer_all()) as server,
        watching("--watch", maildir, server.address, "--rescan", "0.5", environment=deaf) as daemon,
    ):
        for number in range(3):
            deliver(maildir, now_name(number))
            empties(maildir)
        assert len(server.packages) == 3
        assert daemon.stop() == 0


@pytest.mark.parametrize("how", ["renamed", "removed", "swapped"])
def test_new_that_is_replaced(maildir: Path, how: str) -> None:
    """A directory made again is another one: the events of the old one would say all is well."""
    with (
        serving(answer_all()) as server,
        watching("--watch", maildir, server.address, "--rescan", "0.5") as daemon,
    ):
        deliver(maildir, "1.x")
        empties(maildir)
        if how == "removed":
            (maildir / "new").rmdir()
            (maildir / "new").mkdir()
        else:
            (maildir / "other").mkdir()
            (maildir / "new").rename(maildir / "old")
            (maildir / "other").rename(maildir / "new")
        deliver(maildir, "2.x")
        empties(maildir)
        daemon.wait_for("opening it anew")
        deliver(maildir, "3.x")
        empties(maildir)
        assert len(server.packages) == 3
        assert daemon.stop() == 0


def test_after_new_was_replaced_events_work_again(maildir: Path) -> None:
    """Not only the rescan: what comes after it is there in no time."""
    with (
        serving(answer_all()) as server,
        watching("--watch", maildir, server.address, "--rescan", "2") as daemon,
    ):
        daemon_is_up(daemon, maildir, server)
        (maildir / "new").rename(maildir / "old")
        (maildir / "new").mkdir()
        daemon.wait_for("opening it anew")
        deliver(maildir, "2.x")
        empties(maildir)
        # Two in one interval of the rescan: one at least was an event's.
        before = daemon.log.count("accepted")
        for number in range(20):
            deliver(maildir, f"3.{number}")
            empties(maildir)
        assert daemon.log.count(": accepted: ") == before + 20


def daemon_is_up(daemon: Running, maildir: Path, server: ScriptedServer) -> None:
    """Wait until a first message has gone."""
    deliver(maildir, now_name(0))
    wait_until(lambda: bool(server.packages), "the first message")
    empties(maildir)


def test_a_maildir_that_goes_away_and_comes_back(maildir: Path) -> None:
    """A disk that is unmounted for a while is no reason to die, nor to fill the log."""
    with (
        serving(answer_all()) as server,
        watching("--watch", maildir, server.address, "--rescan", "0.3") as daemon,
    ):
        daemon_is_up(daemon, maildir, server)
        maildir.rename(maildir.with_name("away"))
        daemon.wait_for("cannot open the maildir directory")
        maildir.with_name("away").rename(maildir)
        deliver(maildir, "2.x")
        empties(maildir)
        daemon.wait_for("in order again")
        assert daemon.log.count("cannot open the maildir directory") == 1
        assert daemon.stop() == 0


@pytest.mark.timeout(300)
def test_a_burst_of_messages(maildir: Path) -> None:
    """More than the kernel's queue of events holds: nothing is left behind."""
    holds = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())  # usually 16,384
    count = min(holds + 1_000, 30_000)
    with (
        serving(answer_all()) as server,
        watching("--watch", maildir, server.address, "--rescan", "2", "-q") as daemon,
    ):
        daemon_is_up(daemon, maildir, server)
        os.kill(daemon.process.pid, signal.SIGSTOP)  # so that the queue does overflow
        try:
            for number in range(count):
                deliver(maildir, f"1.{number}", b"%d\n" % number)
        finally:
            os.kill(daemon.process.pid, signal.SIGCONT)
        empties(maildir)
        assert len(server.packages) == count + 1
        assert daemon.stop() == 0


def test_no_inotify_instance_is_left(maildir: Path) -> None:
    """Other programs may have used them all up: that is said once, and mail goes."""
    # In a user namespace, which has a limit of its own (namespaces(7)): to take all instances of
    # this user would leave none to the tests that run at the same time.
    limit = "/proc/sys/user/max_inotify_instances"
    none_left = f'echo 0 >{limit} && exec "$@"'
    inside = ("unshare", "--user", "--map-root-user", "sh", "-c", none_left, "sh")
    if subprocess.run([*inside, "true"], capture_output=True, check=False).returncode:
        pytest.skip("NOT TESTED: no user namespace may be made here")
    with (
        serving(answer_all()) as server,
        watching("--watch", maildir, server.address, "--rescan=0.3", prelude=inside) as daemon,
    ):
        for number in range(3):
            deliver(maildir, now_name(number))
            empties(maildir)
        assert daemon.log.count("cannot wait for events") == 1
        assert "max_user_instances" in daemon.log
        enter = ["nsenter", "--user", "--preserve-credentials", "-t", str(daemon.process.pid)]
        subprocess.run([*enter, "sh", "-c", f"echo 128 >{limit}"], check=True)
        daemon.wait_for("watching for events again")
        assert daemon.stop() == 0


def test_messages_without_an_envelope_are_reported_once(maildir: Path) -> None:
    """Not with every look: a log that repeats itself is not read."""
    add_message(maildir, "1.x", sender=None, recipient=None)
    add_message(maildir, "2.x", recipient=b"other@example.net")
    with (
        serving(answer_all()) as server,
        watching(
            "--watch", maildir, "example-", server.address, "--rescan", "0.1", "--no-bounce"
        ) as daemon,
    ):
        daemon.wait_for("held")
        for number in range(5):
            add_message(maildir, f"3.{number}", recipient=b"example-r@example.net", folder="tmp")
            os.rename(maildir / "tmp" / f"3.{number}", maildir / "new" / f"3.{number}")
            wait_until(lambda: len(server.packages) > number, "the message")  # noqa: B023
        daemon.send(signal.SIGALRM)
        daemon.send(signal.SIGUSR1)
        daemon.wait_for("waiting")
        assert daemon.log.count("held") == 1
        wait_until(lambda: names(maildir / "new") == ["1.x", "2.x"], "the last removal")
        assert daemon.stop() == 0


def test_a_message_begun_in_new_is_sent_whole(maildir: Path) -> None:
    """A writer that knows no tmp/ is waited for: its last line arrives."""
    with (
        serving(answer_all()) as server,
        watching("--watch", maildir, server.address, "--rescan", "0.3") as daemon,
    ):
        daemon_is_up(daemon, maildir, server)
        with (maildir / "new" / "1.slow").open("wb") as file:
            file.write(b"Return-Path: <a@b>\nDelivered-To: c@d\n\nfirst line\n")
            file.flush()
            daemon.wait_for("is being written to")
            file.write(b"last line\n")
        empties(maildir)
        assert server.packages[-1].text == b"\nfirst line\nlast line\n"


# The server


def test_a_server_that_is_down_at_the_start(maildir: Path) -> None:
    """One line for each step of the back-off, not one for each message; then all goes."""
    for number in range(50):
        add_message(maildir, f"1.{number}")
    port = closed_port()
    with watching("--watch", maildir, f"127.0.0.1:{port}", *NEVER) as daemon:
        daemon.wait_for("next try in", 2)
        # And the first line, which says what is watched.
        assert daemon.log.count("\n") == 1 + daemon.log.count("next try in")
        assert "50 waiting" in daemon.log
        with serving(answer_all(), port) as server:
            empties(maildir)
            assert len(server.packages) == 50
            assert daemon.stop() == 0


def test_alarm_means_now(maildir: Path) -> None:
    """ifup hooks send it: who waits for minutes, and what was deferred, is tried at once."""
    answers = [b"Ztoo early", b"Kok"]
    with (
        serving(answer_all(lambda package, recipient: answers[len(server.packages) > 1])) as server,
        watching("--watch", maildir, server.address, *NEVER) as daemon,
    ):
        deliver(maildir, "1.x")
        daemon.wait_for("too early")
        assert len(server.packages) == 1
        daemon.send(signal.SIGALRM)
        empties(maildir)
        assert daemon.stop() == 0


def test_a_deferred_message_waits_its_turn(maildir: Path) -> None:
    """The next try is at birth + (sqrt(age) + 20)^2, not with each rescan or new message."""
    with (
        serving(answer_all(lambda p, r: b"Zno" if p.text.startswith(b"0\n") else b"Kok")) as server,
        watching("--watch", maildir, server.address, "--rescan", "0.1") as daemon,
    ):
        deliver(maildir, now_name(0), b"0\n")
        daemon.wait_for("deferred")
        for number in range(1, 6):
            deliver(maildir, now_name(number), b"%d\n" % number)
            wait_until(lambda: len(server.packages) > number, "the message")  # noqa: B023
        assert subjects(server).count(b"0") == 1


def test_a_server_that_closes_while_idle_is_no_error(maildir: Path) -> None:
    """Servers do; the next message opens a new connection, and the log says nothing."""
    gone = threading.Semaphore(0)

    def one_each(peer: Peer) -> None:
        package = peer.read_package()
        if package is not None:
            peer.respond(b"Kok")
            peer.finish()
            gone.release()

    with (
        serving(one_each) as server,
        watching("--watch", maildir, server.address, *NEVER) as daemon,
    ):
        for number in range(5):
            deliver(maildir, now_name(number))
            empties(maildir)
            assert gone.acquire(timeout=30)  # else the next message may meet the end
        assert len(server.packages) == 5
        assert daemon.stop() == 0
        others = [line for line in daemon.log.splitlines() if "accepted: ok" not in line]
        # What it watches, that it stops, and the summary.
        assert len(others) == 3, others


def test_an_idle_connection_is_closed_and_opened_again(maildir: Path) -> None:
    """Nobody keeps a server's process for mail that may come tomorrow."""
    ended = threading.Event()

    def script(peer: Peer) -> None:
        answer_all()(peer)
        ended.set()

    with (
        serving(script) as server,
        watching("--watch", maildir, server.address, *NEVER, "--idle-timeout", "0.3") as daemon,
    ):
        daemon_is_up(daemon, maildir, server)
        assert ended.wait(30)
        deliver(maildir, "2.x")
        empties(maildir)
        assert server.connections == 2


def test_a_server_that_dies_under_load(maildir: Path) -> None:
    """Ten times: what it had taken is gone, what it had not is sent again."""
    total, lock = 3_000, threading.Lock()
    got: set[bytes] = set()

    def dying(peer: Peer) -> None:
        for _ in range(total // 12 if server.connections <= 10 else total):
            package = peer.read_package()
            if package is None:
                return
            with lock:
                got.add(package.text)
            peer.respond(b"Kok")

    with (
        serving(dying) as server,
        watching("--watch", maildir, server.address, "--rescan", "1", "-q") as daemon,
    ):
        for number in range(total):
            deliver(maildir, f"1.{number}", b"%d\n" % number)
        empties(maildir)
        assert server.connections > 10
        assert got == {b"%d\n" % number for number in range(total)}
        assert daemon.stop() == 0


# Stopping


def test_term_finishes_what_is_in_flight(maildir: Path) -> None:
    """1,000 messages whose answers come late: all are settled, none is sent again."""
    stopped = threading.Event()

    def late(peer: Peer) -> None:
        first = peer.read_package()
        assert first is not None
        peer.respond(b"Kok")
        taken = 0
        for _ in range(999):
            if peer.read_package() is not None:
                taken += 1
        stopped.wait(30)
        peer.respond(*[b"Kok"] * taken)
        while peer.read_package() is not None:  # what came before the signal was taken in
            peer.respond(b"Kok")

    for number in range(1_000):
        add_message(maildir, f"1.{number:04}", b"%d\n" % number)
    with serving(late) as server, watching("--watch", maildir, server.address, *NEVER) as daemon:
        wait_until(lambda: len(server.packages) == 1_000, "all in flight")
        deliver(maildir, "2.x")
        daemon.send(signal.SIGTERM)
        stopped.set()
        assert daemon.process.wait(30) == 0
        assert names(maildir / "new") in ([], ["2.x"])
        assert len({package.text for package in server.packages}) == len(server.packages)


@pytest.mark.timeout(150)
@pytest.mark.long
def test_term_amid_a_large_message(maildir: Path) -> None:
    """A server that takes no more of it: it ends in time, and the message is still there."""
    with (maildir / "new" / "1.large").open("wb") as file:
        file.write(b"Return-Path: <a@b>\nDelivered-To: c@d\n\n")
        file.truncate(200_000_000 - 1_000)

    def stubborn(peer: Peer) -> None:
        peer.socket.recv(1_000_000)
        began.set()
        ended.wait(120)

    began, ended = threading.Event(), threading.Event()
    with (
        serving(stubborn) as server,
        watching("--watch", maildir, server.address, *NEVER) as daemon,
    ):
        assert began.wait(30)
        daemon.send(signal.SIGTERM)
        assert daemon.process.wait(60) == 0
        ended.set()
        assert names(maildir / "new") == ["1.large"]
        assert "in doubt" in daemon.log
        assert "0 in doubt" in daemon.log


def test_a_second_term_means_at_once(maildir: Path) -> None:
    """An administrator in a hurry is not made to wait for a server."""
    with (
        serving(lambda peer: hang(peer)) as server,
        watching("--watch", maildir, server.address, *NEVER) as daemon,
    ):
        deliver(maildir, "1.x")
        wait_until(lambda: len(server.packages) == 1, "the message in flight")
        daemon.send(signal.SIGTERM)
        daemon.wait_for("stopping")
        daemon.send(signal.SIGTERM)
        assert daemon.process.wait(10) == 111
        assert names(maildir / "new") == ["1.x"]
        daemon.wait_for("1 in doubt")


def hang(peer: Peer) -> None:
    """Read a package and never answer."""
    peer.read_package()
    peer.read_package()


def test_while_connecting_it_ends_at_once(maildir: Path) -> None:
    """A server that does not answer the phone keeps nobody waiting."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        port = listener.getsockname()[1]
        blockers = []
        for _ in range(3):
            blocker = socket.socket()
            blocker.setblocking(False)
            blocker.connect_ex(("127.0.0.1", port))
            blockers.append(blocker)
        with watching("--watch", maildir, f"127.0.0.1:{port}", *NEVER) as daemon:
            deliver(maildir, "1.x")
            wait_until(lambda: is_connecting(daemon.process.pid), "a connection on its way")
            daemon.send(signal.SIGTERM)
            assert daemon.process.wait(15) == 0
        for blocker in blockers:
            blocker.close()
    assert names(maildir / "new") == ["1.x"]


# Idle means idle


@pytest.mark.skipif(not shutil.which("strace"), reason="NOT TRIED: strace is not installed")
def test_idle_means_idle(maildir: Path) -> None:
    """Laptops live on batteries: hardly a system call while there is no mail."""
    with (
        serving(answer_all()) as server,
        watching("--watch", maildir, server.address) as daemon,
    ):
        daemon_is_up(daemon, maildir, server)
        wait_until(lambda: '"accepted": 1' in status_file(maildir), "the last of the status")
        daemon.send(signal.SIGUSR1)
        daemon.wait_for("0 waiting; connected; 1 accepted")
        # A second later the removal is made durable.
        wait_until(lambda: system_calls(daemon.process.pid, 3.0) < 12, "a daemon that is idle")


def status_file(maildir: Path) -> str:
    """Return the status file, empty where there is none yet."""
    path = maildir / ".maildirqmtp-status.json"
    return path.read_text() if path.exists() else ""


# systemd


@pytest.mark.parametrize("abstract", [False, True])
def test_systemd_is_told(maildir: Path, tmp_path: Path, abstract: bool) -> None:
    """READY when it works, STATUS with what it does, WATCHDOG while it turns, STOPPING."""
    path = f"@maildirqmtp-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    told = {"NOTIFY_SOCKET": path, "WATCHDOG_USEC": "200000"}
    with (
        serving(answer_all()) as server,
        supervisor(path) as systemd,
        watching("--watch", maildir, server.address, environment=told) as daemon,
    ):
        systemd.wait_for("READY=1")
        systemd.wait_for("WATCHDOG=1", 3)
        deliver(maildir, "1.x")
        wait_until(lambda: any("1 accepted" in said for said in systemd.said), "STATUS")
        assert daemon.stop() == 0
        systemd.wait_for("STOPPING=1")


def test_the_journal_gets_priorities(maildir: Path) -> None:
    """`journalctl -p err` shows what is wrong, and nothing else."""
    with (
        serving(answer_all()) as server,
        watching("--watch", maildir, server.address) as daemon,
    ):
        daemon_is_up(daemon, maildir, server)
        assert "<" not in daemon.log[:1]
    code = (
        "import os, sys; s = os.fstat(2); os.environ['JOURNAL_STREAM'] = f'{s.st_dev}:{s.st_ino}'; "
        "os.execv(sys.argv[1], sys.argv[1:])"
    )
    port = closed_port()
    with watching(
        "--watch", maildir, f"127.0.0.1:{port}", prelude=(shutil.which("python3") or "", "-c", code)
    ) as daemon:
        deliver(maildir, "2.x")
        daemon.wait_for("<3>maildirqmtp: cannot connect")
        daemon.send(signal.SIGUSR1)
        daemon.wait_for("<6>maildirqmtp: 1 waiting; backing off")


def test_one_recipient_of_two_routes(tmp_path: Path) -> None:
    """Two routes on one maildir, a message for both: each gets its own, once."""
    maildir = make_maildir(tmp_path / "Maildir")
    config = tmp_path / "config.toml"
    (maildir / "envelope").mkdir()
    got: list[tuple[str, bytes]] = []

    def script(name: str) -> object:
        def answer(package: Package, recipient: bytes) -> bytes:
            got.append((name, recipient))
            return b"Kok"

        return answer_all(answer)

    with serving(script("a")) as a, serving(script("b")) as b:  # type: ignore[arg-type]
        config.write_text(
            f'[defaults]\nmaildir-unused = 1\n[[route]]\nmaildir = "{maildir}"\nprefix = "a-"\n'
            f'server = "{a.address}"\n[[route]]\nmaildir = "{maildir}"\nprefix = "b-"\n'
            f'server = "{b.address}"\n'.replace("maildir-unused = 1\n", "")
        )
        with watching("--config", config) as daemon:
            for number in range(50):
                (maildir / "envelope" / f"1.{number}.json").write_text(
                    '{"version": 1, "sender": "", "recipients": '
                    f'["a-1.{number}@x", "b-1.{number}@x", "a-2.{number}@x"]}}'
                )
                deliver(maildir, f"1.{number}")
            empties(maildir)
            assert daemon.stop() == 0
    wanted = [
        pair
        for number in range(50)
        for pair in (
            ("a", b"1.%d@x" % number),
            ("a", b"2.%d@x" % number),
            ("b", b"1.%d@x" % number),
        )
    ]
    assert sorted(got) == sorted(wanted)
