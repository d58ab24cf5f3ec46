"""What comes, moves or changes while a run is at work: none of it is left behind."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.daemons import watching
from tests.helpers import (
    Package,
    Peer,
    ScriptedServer,
    add_message,
    add_sidecar,
    answer_all,
    closed_port,
    importing_first,
    json_events,
    names,
    run,
    serving,
    start,
    wait_until,
)


def meanwhile(change: Callable[[], object], answer: bytes) -> Callable[[Peer], None]:
    """Return a server's script: something happens before its first answer; then it takes all."""
    answered = False

    def first(package: Package, recipient: bytes) -> bytes:
        nonlocal answered
        if answered:
            return b"Kok"
        change()
        answered = True
        return answer

    return answer_all(first)


@pytest.mark.parametrize("answer", [b"Kok", b"Ztry again"])
def test_what_comes_while_a_run_waits_for_the_server_goes_with_it(
    maildir: Path, answer: bytes
) -> None:
    """Its own run finds the maildir locked: nobody came back for it. What waits is tried once."""
    add_message(maildir, "1.first")

    def comes() -> None:
        add_message(maildir, "2.late", recipient=b"late@y")
        assert run(maildir, server.address).returncode == 111

    with serving(meanwhile(comes, answer)) as server:
        result = run(maildir, server.address)
    assert [package.recipients for package in server.packages[1:]] == [(b"late@y",)]
    deferred = answer[:1] == b"Z"
    assert names(maildir / "new") == ["1.first"] * deferred
    assert result.returncode == (111 if deferred else 0)


def test_with_cur_a_message_that_is_read_before_its_turn_goes_in_the_same_run(
    maildir: Path,
) -> None:
    """With a mail reader at work, a run ended with exit code 0 and mail left."""
    for number in range(3):
        add_message(maildir, f"{number}.m")

    def reads() -> None:
        for name in names(maildir / "new")[1:]:
            (maildir / "new" / name).rename(maildir / "cur" / f"{name}:2,S")

    with serving(meanwhile(reads, b"Kok")) as server:
        result = run("--cur", "--window=1", maildir, server.address)
        assert len(server.packages) == 3
    assert result.returncode == 0
    assert names(maildir / "new") == names(maildir / "cur") == []


def test_with_cur_a_daemon_sends_what_was_read_while_the_server_was_down(maildir: Path) -> None:
    """It had seen the message in new/, and sent it under no other name until a restart."""
    add_message(maildir, "1.m")
    port = closed_port()

    def waiting() -> int:
        (event,) = json_events(run("--status", "--json", maildir).stdout)
        return int(event["daemon"]["messages"]) if event["daemon"] else 0

    with watching("--watch", "--cur", maildir, f"127.0.0.1:{port}") as daemon:
        wait_until(lambda: waiting() == 1, "the daemon to know of it")
        (maildir / "new" / "1.m").rename(maildir / "cur" / "1.m:2,S")
        server = ScriptedServer(answer_all(), listen_on=port)
        try:
            daemon.send(signal.SIGALRM)
            wait_until(lambda: names(maildir / "cur") == [], "it to be sent")
            assert daemon.stop() == 0
        finally:
            server.close()
    assert len(server.packages) == 1


@pytest.mark.parametrize("answer", [b"Kok", b"Dno such user", b"Ztry again"])
def test_who_is_added_to_a_sidecar_in_flight_gets_the_message(maildir: Path, answer: bytes) -> None:
    """The sidecar was removed, or written over, unread: that recipient was lost."""
    add_message(maildir, "1.m", b"\n")
    add_sidecar(maildir, "1.m", "s@x", "first@y", "second@y")
    changed = meanwhile(lambda: add_sidecar(maildir, "1.m", "s@x", "added@y"), answer)
    with serving(changed) as server:
        run(maildir, server.address)
        run(maildir, server.address)
    assert (b"added@y",) in [package.recipients for package in server.packages]
    assert names(maildir / "new") == names(maildir / "envelope") == []


#: A writer closes its file while the program waits for that, however busy the machine is.
CLOSES = """
import os, time

wait = time.sleep

def sleep(seconds):
    time.sleep = wait
    open(os.environ["WAITS"], "w").close()
    while os.path.exists(os.environ["WAITS"]):
        wait(0.005)

time.sleep = sleep
"""


def begun_and_renamed(maildir: Path) -> int:
    """Put a message into new/, renamed within one tick of the clock; return its open file."""
    for _ in range(100):
        writer = os.open(maildir / "tmp" / "1.m", os.O_WRONLY | os.O_CREAT)
        os.write(writer, b"Return-Path: <s@x>\nDelivered-To: r@y\n\n")
        (maildir / "tmp" / "1.m").rename(maildir / "new" / "1.m")
        status = (maildir / "new" / "1.m").stat()
        if status.st_ctime_ns == status.st_mtime_ns:
            return writer
        os.close(writer)
    pytest.skip("NOT TESTED: the clock of this file system is too fine")


def test_a_message_that_its_writer_is_about_to_close_is_not_held(
    maildir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Written and renamed within one tick of the clock, it looks like one begun in new/."""
    (tmp_path / "patch").mkdir()
    (tmp_path / "patch" / "sitecustomize.py").write_text(CLOSES)
    waits = tmp_path / "waits"
    for name, value in {**importing_first(tmp_path / "patch"), "WAITS": str(waits)}.items():
        monkeypatch.setenv(name, value)
    said: list[str] = []
    with serving(answer_all()) as server:
        # What was written more than a second ago is not waited for: a busy machine may be so slow.
        while len(said) < 10 and not server.packages:
            writer = begun_and_renamed(maildir)
            with start(maildir, server.address) as process:
                wait_until(lambda: waits.exists() or process.poll() is not None, "it to wait")
                os.close(writer)
                waits.unlink(missing_ok=True)
                said.append(process.communicate()[1])
    assert len(server.packages) == 1, said
    assert names(maildir / "new") == []
