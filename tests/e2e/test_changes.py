"""What is no message, what is for others, and what changes while it is under way."""

from __future__ import annotations

import os
import socket
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from maildirqmtp.qmtp.protocol import package_head, package_tail
from tests.helpers import (
    Peer,
    Script,
    add_message,
    answer_all,
    log_lines,
    names,
    random_text,
    run,
    serving,
    snapshot,
)

# What is no message, and what is not ours


def test_only_messages_are_touched(maildir: Path, tmp_path: Path) -> None:
    """Links, devices and the like in new/ are neither sent, nor removed, nor waited for."""
    new = maildir / "new"
    outside = tmp_path / "outside"
    outside.write_bytes(b"Return-Path: <a@b>\nDelivered-To: k@y\nsecret\n")
    (new / "1.link").symlink_to(outside)
    (new / "1.dangling").symlink_to(tmp_path / "nowhere")
    os.mkfifo(new / "1.fifo")
    (new / "1.directory").mkdir()
    add_message(maildir, "inside", folder="new/1.directory")
    add_message(maildir, ".hidden")
    add_message(maildir, "1.tmp", folder="tmp")
    add_message(maildir, "1.cur", folder="cur")
    with socket.socket(socket.AF_UNIX) as sock:
        here = os.getcwd()
        try:
            os.chdir(new)  # the path of a socket must be short
            sock.bind("1.socket")
        finally:
            os.chdir(here)
        before = snapshot(tmp_path)
        add_message(maildir, "2.m", b"a message\n")
        with serving(answer_all()) as server:
            result = run(maildir, server.address)
            assert snapshot(tmp_path) == before
            dry = run("--dry-run", "--cur", maildir, server.address)
    assert [p.text for p in server.packages] == [b"a message\n"]
    assert result.returncode == 0
    assert len(log_lines(result.stderr)) == 1
    assert (new / "1.directory").is_dir()
    assert dry.stdout.startswith("1.cur: ")
    assert len(dry.stdout.splitlines()) == 1


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "no envelope: no Return-Path"),
        (b"Subject: x\n\n", "no envelope: no Return-Path"),
        (b"Return-Path: <a@b>\n\ntext\n", "no envelope: no Delivered-To"),
        (b"Delivered-To: a@b\n\ntext\n", "no envelope: no Return-Path"),
        (b"From: a@b\nReturn-Path: <a@b>\nDelivered-To: k@y\n", "no envelope: no Return-Path"),
        (b"Return-Path: a@b\nDelivered-To: k@y\n", "not of the form <address>"),
        (b"Return-Path: <a@b>\nDelivered-To: \n", "recipient is empty"),
        (b"Return-Path: <a@b>\nDelivered-To: " + b"a" * 1000 + b"\n", "1000 bytes"),
        (b"Return-Path: <a@b>\nDelivered-To: k@y\0\n", "NUL"),
    ],
)
def test_a_message_without_a_usable_envelope_is_held(
    maildir: Path, content: bytes, reason: str
) -> None:
    """Never guessed from From: or To:, never touched, said with its name, and counted."""
    (maildir / "new" / "1.m").write_bytes(content)
    before = snapshot(maildir)
    add_message(maildir, "2.m", b"a message\n")
    with serving(answer_all()) as server:
        result = run(maildir, server.address)
    assert snapshot(maildir) == before
    assert [p.text for p in server.packages] == [b"a message\n"]
    line, summary = log_lines(result.stderr)
    assert line.startswith("1.m: held: ")
    assert reason in line
    assert summary.startswith("1 accepted, 0 deferred, 0 failed, 1 held, ")
    assert result.returncode == 111


@pytest.mark.parametrize("ours", [0, 1])
def test_mail_without_the_prefix_is_somebody_elses(maildir: Path, ours: int) -> None:
    """Ignored without a word and without a bad exit code, as serialmail does."""
    for number, recipient in enumerate((b"other@y", b"PRE-k@y", b"pre", b"xpre-k@y")):
        add_message(maildir, f"{number}.m", recipient=recipient)
    add_message(maildir, "5.m", random_text(2_000_000), recipient=b"large@y")
    before = snapshot(maildir)
    for number in range(ours):
        add_message(maildir, f"6{number}.m", recipient=b"pre-k@y")
    with serving(answer_all()) as server:
        result = run(maildir, "pre-", server.address)
    assert [p.recipients for p in server.packages] == [(b"k@y",)] * ours
    assert server.connections == ours
    assert snapshot(maildir) == before
    (summary,) = log_lines(result.stderr)
    assert summary.startswith(f"{ours} accepted, 0 deferred, 0 failed, 0 held, 0 in doubt, ")
    assert result.returncode == 0


# What changes under our hands


def _grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"and more\n")


def _shrink(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def _replace(path: Path) -> None:
    content = path.read_bytes()
    other = path.parent.parent / "tmp" / "other"
    other.write_bytes(content.replace(b"Hello", b"HELLO"))
    other.replace(path)


def _rewrite(path: Path) -> None:
    status = path.stat()
    path.write_bytes(path.read_bytes().replace(b"Hello", b"HELLO"))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))


CHANGES = [_grow, _shrink, _replace, _rewrite]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("answer", [b"Kok", b"Dno"])
@pytest.mark.parametrize("sent", [False, True])
def test_a_file_that_changes_in_flight_is_sent_again_as_it_is_now(
    maildir: Path, change: Any, answer: bytes, sent: bool
) -> None:
    """The server has the old text; what the file holds now has not been sent by anybody."""
    path = maildir / "new" / "1.m"
    add_message(maildir, "1.m")
    now = b""

    def script(peer: Peer) -> None:
        nonlocal now
        while peer.read_package():
            if not now:
                change(path)
                now = path.read_bytes()
            peer.respond(answer)

    archive = maildir.parent / "sent"
    with serving(script) as server:
        result = run(*(("--sent", archive) if sent else ()), maildir, server.address)
        assert result.stderr.count("changed while it was being sent; kept, to be sent as") == 1
        assert "held: " not in result.stderr
        assert " 0 held, " in result.stderr
        assert len(server.packages) == 2
        assert now.endswith(server.packages[1].text)
        assert server.packages[1].text != server.packages[0].text
    assert result.returncode == (0 if answer == b"Kok" else 111)
    assert names(maildir / "new") == names(archive / "tmp") == []
    kept_in = archive if answer == b"Kok" else maildir / ".Failed"
    if sent or answer != b"Kok":
        assert (kept_in / "new" / "1.m").read_bytes() == now


def _vanish(path: Path) -> None:
    path.unlink()


def _halve(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _streaming_server(change: Any, path: Path) -> Script:
    """Answer small packages; change a large message's file once some of it has come."""

    def script(peer: Peer) -> None:
        if peer.server.connections == 1:
            for _ in range(5):
                assert peer.read_package() is not None
                peer.respond(b"Kok")
            # Not read from, the client is stuck long before the end: so much no socket buffers.
            peer.socket.recv(1, socket.MSG_PEEK)
            change(path)
        answer_all()(peer)

    return script


@pytest.mark.parametrize("change", [_halve, _vanish, *CHANGES])
def test_a_large_message_that_changes_while_it_is_streamed_is_not_delivered(
    maildir: Path, change: Any
) -> None:
    """Half of an old text and half of a new one must not arrive as a message."""
    path = maildir / "new" / "3.m"
    add_message(maildir, "1.m", b"one\n")
    add_message(maildir, "2.m", b"two\n")
    add_message(maildir, "3.m", b"Hello" * 12_000_000)
    add_message(maildir, "4.m", b"four\n")
    add_message(maildir, "5.m", b"five\n")
    add_message(maildir, "6.m", b"six\n")
    now = b""

    def change_it(path: Path) -> None:
        nonlocal now
        change(path)
        now = path.read_bytes() if path.exists() else b""

    with serving(_streaming_server(change_it, path)) as server:
        result = run(maildir, server.address)
    # The server has seen every byte that we sent: the large one was complete once, if at all.
    small, large = server.packages[:5], server.packages[5:]
    assert [p.text for p in small] == [b"one\n", b"two\n", b"four\n", b"five\n", b"six\n"]
    assert [now.endswith(p.text) for p in large] == ([] if change is _vanish else [True])
    assert names(maildir / "new") == []
    held = 1 - len(large)
    assert f"{6 - held} accepted, 0 deferred, 0 failed, {held} held, 0 in doubt" in result.stderr
    assert "changed while it was being sent" in result.stderr
    assert result.returncode == (111 if held else 0)


def test_what_was_sent_before_a_large_message_that_changes_counts(maildir: Path) -> None:
    """The connection is only given up once the answers to earlier messages are in."""
    add_message(maildir, "1.m", b"1" * 300_000, b"s@x", b"k@y")
    add_message(maildir, "2.m", b"2" * 300_000, b"s@x", b"k@y")
    add_message(maildir, "3.m", b"x" * 60_000_000, b"s@x", b"k@y")
    path = maildir / "new" / "3.m"
    trace = path.stat().st_size - 60_000_000
    tail = package_tail(b"s@x", (b"k@y",))

    def take(peer: Peer, count: int) -> None:
        while count:
            count -= len(peer.socket.recv(min(count, 1 << 20))) or pytest.fail("closed too early")

    def script(peer: Peer) -> None:
        if peer.server.connections > 1:
            return answer_all()(peer)
        take(peer, len(package_head(300_000)) + 300_000 + len(tail))
        peer.respond(b"Kok")
        take(peer, len(package_head(300_000)) + 300_000 + len(tail))
        peer.socket.recv(1, socket.MSG_PEEK)
        os.truncate(path, trace + 30_000_000)
        take(peer, len(package_head(60_000_000)) + 30_000_000)
        # All is here that can come. Now it is for the client to wait for this:
        peer.respond(b"Kok")
        assert peer.socket.recv(1) == b""

    with serving(script) as server:
        result = run(maildir, server.address)
    assert names(maildir / "new") == []
    assert "3 accepted, 0 deferred, 0 failed, 0 held, 0 in doubt, " in result.stderr
    assert server.connections == 2
    assert result.returncode == 0


def test_many_changing_large_files_do_not_stop_the_mail_behind_them(maildir: Path) -> None:
    """One bad file never stops the others, nor do four, however often we connect."""
    size = 30_000_000
    for number in range(4):
        add_message(maildir, f"{number}.m", b"\0" * size)
    add_message(maildir, "5.m", b"good\n")
    numbers = count()

    def script(peer: Peer) -> None:
        number = next(numbers)
        if number == 0:
            assert peer.read_package() is not None
            peer.respond(b"Kok")
        if number < 4:
            peer.socket.recv(1, socket.MSG_PEEK)
            os.truncate(maildir / "new" / f"{number}.m", 1000)
        answer_all()(peer)

    with serving(script) as server:
        result = run(maildir, server.address)
        if "is being written to" in result.stderr:  # just then: it is left to the next run
            assert result.returncode == 111
            result = run(maildir, server.address)
    assert server.packages[0].text == b"good\n"
    assert [len(p.text) < 1000 for p in server.packages[1:]] == [True] * 4, "as they are now"
    assert names(maildir / "new") == []
    assert result.returncode == 0
