"""Handing bounces on: taken for good, or refused with an error, and never to anybody else."""

from __future__ import annotations

import errno
import os
import signal
from pathlib import Path

import pytest

from maildirqmtp.errors import LocalError
from maildirqmtp.forwarder import mailers
from maildirqmtp.forwarder.mailers import MaildirMailer, QueueMailer, SendmailMailer
from maildirqmtp.mail.envelope import read_trace
from maildirqmtp.mail.sidecar import Sidecar
from maildirqmtp.maildir import sidecars
from maildirqmtp.maildir.maildir import Maildir
from tests.fakes import FakeClock, FileSystem
from tests.helpers import make_maildir, names, runs, wait_until

BOUNCE = b"From: MAILER-DAEMON@x\n\n" + b"text\n" * 40_000


def script(tmp_path: Path, text: str) -> tuple[bytes, ...]:
    """Make a command that stands in for sendmail."""
    path = tmp_path / "sendmail"
    path.write_text(f"#!/bin/sh\ncd '{tmp_path}' || exit 9\n{text}\n")
    path.chmod(0o755)
    return (os.fsencode(path),)


RECORD = r"""printf '%s\n' "$#" "$@" > arguments; cat > text"""


# sendmail


def test_sendmail_gets_the_bounce_from_the_null_sender(tmp_path: Path) -> None:
    """With any other sender, a bounce that cannot be delivered comes back, for ever."""
    command = (*script(tmp_path, RECORD), b"-oX")
    assert SendmailMailer(command).send(BOUNCE, b"-oQ/tmp@example.org", "id") is None
    told = (tmp_path / "arguments").read_text().splitlines()
    assert told == ["6", "-oX", "-i", "-f", "", "--", "-oQ/tmp@example.org"]
    assert (tmp_path / "text").read_bytes() == BOUNCE


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("exit 75", "sendmail did not take a bounce: exit 75"),
        ("cat >/dev/null; echo 'no \033[31m\nroom' >&2; exit 1", "exit 1 no ?[31m room"),
        ("head -c 100000 /dev/zero | tr '\\0' x >&2; exit 1", f"exit 1 {'x' * 300}"),
        ("kill -9 $$", "exit -9"),
    ],
)
def test_a_sendmail_that_fails_is_told(tmp_path: Path, text: str, said: str) -> None:
    """Taken for success, the sender would never hear of the failure."""
    with pytest.raises(LocalError) as raised:
        SendmailMailer(script(tmp_path, text)).send(BOUNCE, b"a@x", "id")
    assert str(raised.value).endswith(said)


def test_a_sendmail_whose_exit_code_nobody_knows_is_told(tmp_path: Path) -> None:
    """In a program that ignores SIGCHLD; taken for success, the sender would never hear of it."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        with pytest.raises(LocalError, match="exit code unknown"):
            SendmailMailer(script(tmp_path, "exit 75")).send(BOUNCE, b"a@x", "id")
    finally:
        signal.signal(signal.SIGCHLD, before)


@pytest.mark.parametrize("missing", [b"/nonexistent/sendmail", b"", b"/etc/passwd"])
def test_a_sendmail_that_is_missing_is_told(missing: bytes) -> None:
    """On a machine without one the failed mail is kept, and the administrator told why."""
    with pytest.raises(LocalError, match="cannot run, to send a bounce,"):
        SendmailMailer((missing,)).send(BOUNCE, b"a@x", "id")


def test_a_sendmail_that_does_not_read_is_no_trouble(tmp_path: Path) -> None:
    """It says that it has the bounce; how is its business."""
    SendmailMailer(script(tmp_path, "exit 0")).send(BOUNCE, b"a@x", "id")


def test_a_sendmail_that_leaves_something_running_is_not_waited_for(tmp_path: Path) -> None:
    """Some deliver in the background, with standard error still open."""
    os.mkfifo(tmp_path / "wait")
    mailed = SendmailMailer(script(tmp_path, "cat wait & exit 0"))
    mailed.send(BOUNCE, b"a@x", "id")
    (tmp_path / "wait").write_text("")  # it waits until somebody writes: it is still there


def test_a_sendmail_that_hangs_is_killed_and_left_alone_for_an_hour(tmp_path: Path) -> None:
    """A hundred failures must not hold the mail up for a hundred time-outs."""
    command = script(
        tmp_path, "echo run >> runs; sh -c 'echo $$ > child; exec sleep 1000'; echo > late"
    )
    clock = FakeClock()
    for mailed in [SendmailMailer(command, 0.3, clock) for _ in range(3)]:  # bounces, warnings
        with pytest.raises(LocalError, match=r"sendmail took more than 0\.3 s"):
            mailed.send(BOUNCE, b"a@x", "id")
    assert (tmp_path / "runs").read_text() == "run\n"
    child = int((tmp_path / "child").read_text())
    wait_until(lambda: not runs(child), "what it had started to die as well")
    assert not (tmp_path / "late").exists()
    clock.now += mailers.SENDMAIL_REST_S
    script(tmp_path, RECORD)
    mailed.send(BOUNCE, b"a@x", "id")
    assert (tmp_path / "text").exists()


def test_told_to_stop_a_sendmail_that_hangs_is_killed_and_not_run_again(tmp_path: Path) -> None:
    """Each failure would keep the process for as long again; the next run begins anew."""
    command = script(tmp_path, "echo run >> runs; sh -c 'echo $$ > child; exec sleep 1000'")

    def limit_s() -> float:
        return 0.0 if (tmp_path / "child").exists() else 60.0

    mailed = SendmailMailer(command, limit_s=limit_s)
    with pytest.raises(mailers.MailerTimeout, match="sendmail was ended, for this was told to"):
        mailed.send(BOUNCE, b"a@x", "id")
    child = int((tmp_path / "child").read_text())
    wait_until(lambda: not runs(child), "what it had started to die as well")
    (tmp_path / "child").unlink()
    with pytest.raises(LocalError, match="sendmail is not run, for this was told to stop"):
        mailed.send(BOUNCE, b"a@x", "id")
    assert (tmp_path / "runs").read_text() == "run\n"
    script(tmp_path, RECORD)
    SendmailMailer(command).send(BOUNCE, b"a@x", "id")
    assert (tmp_path / "text").exists(), "an hour's rest is for one that hangs by itself"


def test_at_the_end_no_sendmail_is_begun(tmp_path: Path) -> None:
    """It would be killed amid its work, and the bounce be in doubt."""
    mailed = SendmailMailer(script(tmp_path, RECORD), limit_s=lambda: 0.0)
    with pytest.raises(LocalError, match="is not run"):
        mailed.send(BOUNCE, b"a@x", "id")
    assert not (tmp_path / "text").exists()


def test_told_to_stop_a_sendmail_that_works_is_waited_for(tmp_path: Path) -> None:
    """Its sender would get the bounce twice."""
    os.mkfifo(tmp_path / "go")
    command = script(tmp_path, f"{RECORD}; cat go")
    looks = 0

    def limit_s() -> float:
        nonlocal looks
        looks += 1
        if looks == 3:  # it has been running for a while
            (tmp_path / "go").write_text("")
        return 60.0

    assert SendmailMailer(command, limit_s=limit_s).send(BOUNCE, b"a@x", "id") is None
    assert looks >= 3


@pytest.mark.parametrize(
    "address",
    [
        b"a@example.org",
        b"root",
        b"-oX@example.org",
        b"owner-list-joe=x.org@example.org",
        b"o'brien@example.org",
        b"a@[192.0.2.1]",
        b"a@[IPv6:2001:db8::1]",
        "jürgen@exämple.org".encode(),
        b"jane x@example.org",
        b"a..b@example.org",
    ],
)
def test_sendmail_can_reach_an_address(address: bytes) -> None:
    """These are one address each, whatever sendmail it is."""
    assert SendmailMailer((b"x",)).can_reach(address)


@pytest.mark.parametrize(
    "address",
    [
        b"a@x, b@y",
        b"a@x,b@y",
        b"a@x b@y",
        b"a@x;b@y",
        b"a@x\tb@y",
        b"group:b@y",
        b":include:/etc/passwd",
        b"|/bin/sh",
        b"/etc/passwd",
        b"<a@x>",
        b"a(comment)@x",
        b'"a b"@x',
        b"a b",
        b"|a b@x\ny",
        b"a|b c@x",
        b"a b@[x",
        b"a b@c@x",
        b"a\\ b@x",
        b"\\root",
        b"a\x01@x",
        b"a[@x",
        b"a@",
        b"@x",
        b"",
    ],
)
def test_sendmail_is_not_given_what_it_may_take_for_more(address: bytes) -> None:
    """sendmail reads a list of addresses, files and programs: the bounce would go there."""
    assert not SendmailMailer((b"x",)).can_reach(address)


# A maildir


def test_a_maildir_gets_the_bounce_with_its_envelope(tmp_path: Path) -> None:
    """As a delivery agent writes it; the maildir is made."""
    path = tmp_path / "Bounces"
    mailed = MaildirMailer(os.fsencode(path))
    assert mailed.can_reach(b'"a b"@x')
    assert mailed.send(BOUNCE, b"a@x", "id") is None
    assert names(path / "new") == ["bounce.id"]
    assert names(path / "tmp") == names(path / "cur") == []
    text = (path / "new" / "bounce.id").read_bytes()
    assert text == b"Return-Path: <>\nDelivered-To: a@x\n" + BOUNCE


def test_a_maildir_gets_a_quoted_address_that_is_understood_again(tmp_path: Path) -> None:
    """Raw in a header, it would be two words; the bounce is forwarded from there."""
    MaildirMailer(os.fsencode(tmp_path / "B")).send(BOUNCE, b"jane x@x", "id")
    text = (tmp_path / "B" / "new" / "bounce.id").read_bytes()
    assert text.startswith(b'Return-Path: <>\nDelivered-To: "jane x"@x\n')
    trace = read_trace(text, complete=True)
    assert trace is not None
    assert trace.recipients == (b"jane x@x",)


def test_the_same_bounce_again_replaces_the_first(tmp_path: Path) -> None:
    """A crash between the bounce and the removal must not have the sender told twice."""
    mailed = MaildirMailer(os.fsencode(tmp_path / "Bounces"))
    for text in (b"one", b"two"):
        mailed.send(text, b"a@x", "id")
    (path,) = (tmp_path / "Bounces" / "new").iterdir()
    assert path.read_bytes().endswith(b"two")


def test_a_bounce_is_durable_before_it_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After it the failed message goes; a power cut must not take both."""
    make_maildir(tmp_path / "B")
    calls = FileSystem(monkeypatch, tmp_path)
    MaildirMailer(os.fsencode(tmp_path / "B")).send(BOUNCE, b"a@x", "id")
    assert calls.of("fsync", "rename")[-3:] == [
        "fsync B/tmp/*",
        "rename B/tmp/* -> B/new/bounce.id",
        "fsync B/new",
    ]


@pytest.mark.parametrize("call", ["fsync B/tmp", "rename", "fsync B/new", "fsync B"])
def test_a_maildir_that_cannot_take_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """And nothing half-written is left."""
    make_maildir(tmp_path / "B")
    FileSystem(monkeypatch, tmp_path).fail(call, errno.ENOSPC)
    with pytest.raises(LocalError, match="No space left"):
        MaildirMailer(os.fsencode(tmp_path / "B")).send(BOUNCE, b"a@x", "id")
    assert names(tmp_path / "B" / "tmp") == []


# The server


def test_the_queue_gets_the_bounce_with_a_sidecar(maildir: Maildir, tmp_path: Path) -> None:
    """The bounce quotes what strangers wrote: its own top must never count as the envelope."""
    evil = b"Return-Path: <victim@x>\nDelivered-To: pre-victim@y\n\n"
    assert QueueMailer(maildir, b"pre-").send(evil, b"a@x", "id") == b"bounce.id"
    assert (tmp_path / "Maildir" / "new" / "bounce.id").read_bytes() == evil
    assert sidecars.read(maildir, b"bounce.id") == Sidecar(b"", (b"pre-a@x",))


def test_in_the_queue_the_sidecar_comes_first(
    maildir: Maildir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A crash in between must not leave a bounce without it."""
    calls = FileSystem(monkeypatch, tmp_path)
    QueueMailer(maildir, b"").send(BOUNCE, b"a@x", "id")
    assert calls.of("fsync", "rename")[-6:] == [
        "fsync Maildir/tmp/*",
        "rename Maildir/tmp/* -> Maildir/envelope/bounce.id.json",
        "fsync Maildir/envelope",
        "fsync Maildir/tmp/*",
        "rename Maildir/tmp/* -> Maildir/new/bounce.id",
        "fsync Maildir/new",
    ]


def test_a_bounce_that_is_in_the_queue_stays_as_it_is(
    maildir: Maildir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Replaced while it is on its way, it would be sent a second time; it may not be on disk."""
    queue = QueueMailer(maildir, b"")
    queue.send(b"one", b"a@x", "id")
    calls = FileSystem(monkeypatch, tmp_path)
    assert queue.send(b"two", b"a@x", "id") is None
    assert (tmp_path / "Maildir" / "new" / "bounce.id").read_bytes() == b"one"
    assert calls.calls == ["fsync Maildir/new"]


def test_an_address_that_the_prefix_makes_too_long_cannot_be_reached(maildir: Maildir) -> None:
    """The bounce would be held for ever."""
    assert QueueMailer(maildir, b"x").can_reach(b"a" * 998)
    assert not QueueMailer(maildir, b"x").can_reach(b"a" * 999)
