"""`qmtpq` told to stop amid what it changes: no message is left half done, and the others stay."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from maildirqmtp.cli import queue_changes
from maildirqmtp.cli.qmtpq import main
from maildirqmtp.mail import dsn
from maildirqmtp.maildir import holds, requeue
from maildirqmtp.maildir.maildir import Maildir
from tests.fakes import FileSystem
from tests.helpers import add_message, add_sidecar, make_maildir, names, sidecar

Capture = pytest.CaptureFixture[str]
LEFT = "qmtpq: told to stop; the messages that are left stay as they are\n"


@pytest.fixture(params=[signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def number(request: pytest.FixtureRequest) -> Iterator[signal.Signals]:
    """What ends a command: an administrator, ^C, or the end of a remote session."""
    before = signal.signal(request.param, signal.SIG_DFL)  # whoever has started us may ignore it
    yield request.param
    signal.signal(request.param, before)


def signalled(doing: Callable[..., Any], number: signal.Signals) -> Callable[..., Any]:
    """Return what sends us a signal, and then does it."""

    def then(*arguments: Any) -> Any:
        os.kill(os.getpid(), number)
        return doing(*arguments)

    return then


def test_drop(
    path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    """A batch goes with its sidecars, the next one stays."""
    monkeypatch.setattr(requeue, "BATCH", 2)
    monkeypatch.setattr(requeue, "drop", signalled(requeue.drop, number))
    for name in ("1.a", "2.b", "3.c"):
        add_message(path, name)
        add_sidecar(path, name, "s@x", "a@y")
    assert main(["drop", "--yes", "--all", str(path)]) == 111
    out, err = capsys.readouterr()
    assert (out.count("dropped "), err) == (2, LEFT)
    assert names(path / "new") == ["3.c"]
    assert names(path / "envelope") == ["3.c.json"]


def test_resend(
    path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    """The one at hand is in the queue, and nowhere else."""
    failed = make_maildir(path / ".Failed")
    monkeypatch.setattr(requeue, "requeue", signalled(requeue.requeue, number))
    for name in ("1.a", "2.b"):
        add_message(failed, name)
        add_sidecar(failed, name, "s@x", "a@y")
    assert main(["resend", "--all", str(path)]) == 111
    assert capsys.readouterr().err == LEFT
    assert names(failed / "new") == ["2.b"]
    assert names(failed / "envelope") == ["2.b.json"]
    assert len(names(path / "new")) == len(names(path / "envelope")) == 1


@pytest.mark.parametrize("where", ["queue", "failed"])
def test_bounce(
    path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, where: str
) -> None:
    """Its sender was told, so it goes; the other one is not on hold for ever."""
    maildir = path if where == "queue" else make_maildir(path / ".Failed")
    monkeypatch.setattr(dsn, "build", signalled(dsn.build, number))
    add_message(maildir, "1.a", sender=b"s@x")
    add_message(maildir, "2.b", sender=b"s@x")
    told = make_maildir(path.parent / "told")
    words = ["bounce", "--yes", "--bounce-via", f"maildir:{told}", str(path), "1.a", "2.b"]
    assert main(words) == 111
    assert capsys.readouterr().err == LEFT
    assert len(names(told / "new")) == 1
    assert names(maildir / "new") == ["2.b"]
    assert main(["list", "--names", "--held", str(path)]) == 0
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGHUP])
def test_the_end_of_a_session_leaves_a_mailer_its_time(
    first: signal.Signals, number: signal.Signals
) -> None:
    """systemd sends SIGTERM and SIGHUP; killed at once, it may have sent a bounce all the same."""
    both = (signal.SIGTERM, signal.SIGHUP)
    before = {n: signal.signal(n, signal.SIG_DFL) for n in both}
    with queue_changes.stoppable() as stop:
        for n in sorted(both, key=first.__ne__):  # Python handles them in either order
            os.kill(os.getpid(), n)
        assert stop.mailer_s() > 0
        os.kill(os.getpid(), number)
        assert stop.mailer_s() == (0 if number != signal.SIGHUP else pytest.approx(5))
    for n, handler in before.items():
        signal.signal(n, handler)


def a_failed_one(path: Path) -> Path:
    """Put a message with a sidecar into the failed maildir; return that."""
    failed = make_maildir(path / ".Failed")
    add_message(failed, "1.a")
    add_sidecar(failed, "1.a", "s@x", "a@y")
    return failed


def takes_from_failed(path: Path, command: str) -> list[str]:
    """Return the words of a command that locks the failed maildir."""
    if command == "resend":
        return ["resend"]
    told = make_maildir(path.parent / "told")
    return ["bounce", "--yes", "--bounce-via", f"maildir:{told}"]


@pytest.mark.parametrize("command", ["resend", "bounce"])
def test_a_forwarder_that_removes_old_mail_is_waited_for(
    path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    """It has the failed maildir for moments; refused, the command would blame a forwarder."""
    failed = a_failed_one(path)
    words = takes_from_failed(path, command)
    with Maildir(os.fsencode(failed)) as other:
        other.lock()
        monkeypatch.setattr("maildirqmtp.cli.queue_changes.time.sleep", lambda _: other.unlock())
        assert main([*words, "--all", "--failed", str(path)]) == 0
    assert capsys.readouterr().err == ""
    assert names(failed / "new") == []


@pytest.mark.parametrize("command", ["resend", "bounce"])
def test_a_lock_that_ends_before_its_holder_is_looked_up_is_waited_for_too(
    path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    """/proc/locks lists nobody then; refused, the command would name a process that is done."""
    failed = a_failed_one(path)
    words = takes_from_failed(path, command)
    lock = Maildir.lock
    with Maildir(os.fsencode(failed)) as other:
        other.lock()

        def then_free(maildir: Maildir) -> None:
            try:
                lock(maildir)
            finally:
                other.unlock()

        monkeypatch.setattr(Maildir, "lock", then_free)
        assert main([*words, "--all", "--failed", str(path)]) == 0
    assert capsys.readouterr().err == ""
    assert names(failed / "new") == []


def test_a_failed_maildir_that_cannot_be_locked_is_said_at_once(
    path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing to wait for: the lock file is to be removed."""
    failed = make_maildir(path / ".Failed")
    add_message(failed, "1.a")
    (failed / ".maildirqmtp-lock").mkdir()
    monkeypatch.setattr("maildirqmtp.cli.queue_changes.time.sleep", pytest.fail)
    assert main(["resend", "--all", str(path)]) == 111
    assert "cannot open the lock file" in capsys.readouterr().err


def test_a_failed_maildir_that_stays_locked_is_left_alone(
    path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another resend, for instance; and it says which process that is."""
    failed = a_failed_one(path)
    monkeypatch.setattr(queue_changes, "_LOCK_S", 0.1)
    with Maildir(os.fsencode(failed)) as other:
        other.lock()
        assert main(["resend", "--all", str(path)]) == 111
    assert f"is locked by process {os.getpid()}" in capsys.readouterr().err
    assert names(failed / "new") == ["1.a"]


@pytest.mark.parametrize("command", ["drop", "bounce"])
def test_who_fails_while_the_question_waits_is_not_forgotten(
    path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    """A forwarder adds them to the failed message; gone with it, nobody would know of them."""
    failed = make_maildir(path / ".Failed")
    add_message(failed, "1.a")
    add_sidecar(failed, "1.a", "s@x", "a@y")

    def confirmed(*_: object) -> bool:
        add_sidecar(failed, "1.a", "s@x", "a@y", "late@y")
        return True

    def build(*arguments: Any, **more: Any) -> Any:
        add_sidecar(failed, "1.a", "s@x", "a@y", "late@y")
        return real(*arguments, **more)

    real = dsn.build
    told = make_maildir(path.parent / "told")
    words = ["bounce", "--yes", "--bounce-via", f"maildir:{told}"]
    if command == "drop":
        words = ["drop"]
    monkeypatch.setattr(queue_changes, "confirmed", confirmed)
    monkeypatch.setattr(dsn, "build", build)
    assert main([*words, "--failed", "--all", str(path)]) == 111
    assert "it has changed since it was looked at" in capsys.readouterr().err
    assert names(failed / "new") == ["1.a"]
    assert sidecar(failed, "1.a")["recipients"] == ["a@y", "late@y"]


def test_a_hangup_that_is_ignored_stays_so(
    path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under nohup(1) all are dropped."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    monkeypatch.setattr(requeue, "BATCH", 1)
    monkeypatch.setattr(requeue, "drop", signalled(requeue.drop, signal.SIGHUP))
    add_message(path, "1.a")
    add_message(path, "2.b")
    try:
        assert main(["drop", "--yes", "--all", str(path)]) == 0
    finally:
        signal.signal(signal.SIGHUP, before)
    assert names(path / "new") == []


# Holds of messages that are gone


def held(path: Path) -> set[str]:
    """Return the names on hold."""
    content = json.loads((path / ".maildirqmtp-state.json").read_text())
    return set(content.get("held", {}))


@pytest.mark.parametrize("command", ["hold", "bounce"])
def test_messages_that_are_gone_do_not_count_as_held(
    path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    """rm, or a mail reader; after 5,000 of them nothing could be held or bounced any more."""
    monkeypatch.setattr(holds, "MOST", 2)
    for name in ("1.\udce4", "2.b"):
        add_message(path, os.fsencode(name))
    assert main(["hold", "--all", str(path)]) == 0
    (path / "new" / "1.\udce4").unlink()
    (path / "new" / "2.b").unlink()
    add_message(path, "3.c")
    told = make_maildir(path.parent / "told")
    words = ["bounce", "--yes", "--bounce-via", f"maildir:{told}"]
    if command == "hold":
        words = ["hold"]
    assert main([*words, "--all", str(path)]) == 0
    assert held(path) == ({"3.c"} if command == "hold" else set())


def test_messages_that_a_mail_reader_has_moved_stay_on_hold(path: Path) -> None:
    """And those that it has numbered: the daemon must not send them."""
    for name in ("1.a", "2.b", "3.c", "4.d"):
        add_message(path, name)
    assert main(["hold", str(path), "1.a", "2.b", "3.c"]) == 0
    (path / "new" / "1.a").rename(path / "cur" / "1.a,S=9:2,S")
    (path / "new" / "2.b").rename(path / "new" / "2.b,U=7")
    assert main(["hold", str(path), "4.d"]) == 0
    assert held(path) == {"1.a", "2.b", "3.c", "4.d"}


def test_a_hold_goes_only_after_its_message(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A power cut may bring the message back, and its sender may know that it was not sent."""
    for name in ("1.a", "2.b"):
        add_message(path, name)
    assert main(["hold", str(path), "1.a"]) == 0
    (path / "new" / "1.a").unlink()
    system = FileSystem(monkeypatch, path)
    assert main(["hold", str(path), "2.b"]) == 0
    renamed = system.calls.index(next(c for c in system.calls if c.startswith("rename")))
    assert {"fsync new", "fsync cur"} <= set(system.calls[:renamed])


def test_a_key_that_is_no_name_is_left_alone(path: Path) -> None:
    """The maildir's owner may have written it; it is no traceback."""
    content = {"version": 1, "held": {"\ud800": 1, "1.gone": 1}}
    (path / ".maildirqmtp-state.json").write_text(json.dumps(content))
    add_message(path, "2.b")
    assert main(["hold", str(path), "2.b"]) == 0
    assert held(path) == {"\ud800", "2.b"}
