"""`--dry-run`: what a run would send, hold and leave to others, and nothing is changed."""

import json
import os
import time
from pathlib import Path

import pytest

from maildirqmtp.cli import main as cli
from maildirqmtp.cli import qmtpq
from tests.helpers import add_message, make_maildir, names, snapshot

Out = pytest.CaptureFixture[str]


def test_dry_run_lists_and_changes_nothing(path: Path, capsys: Out) -> None:
    """A first look at what would happen to somebody's inbox."""
    add_message(path, "1.a", b"hello\n", b"s@x", b"p-r@y")
    add_message(path, "2.a", b"hello\n", b"", b"other@y")
    add_message(path, "3.a", b"x" * (1 << 20), b"", b"p-\xff\x1b@y")
    before = sorted(os.listdir(path / "new"))
    assert cli.main(["--dry-run", str(path), "p-", "h"]) == 0
    assert capsys.readouterr() == (
        f"1.a: <s@x> to r@y, 6 bytes\n3.a: <> to ??@y, {1 << 20} bytes\n",
        "maildirqmtp: 1 for others: no recipient begins with the prefix p-\n",
    )
    assert sorted(os.listdir(path / "new")) == before
    assert sorted(os.listdir(path)) == ["cur", "new", "tmp"]


def test_dry_run_as_json(path: Path, capsys: Out) -> None:
    """For scripts."""
    add_message(path, "1.a", b"hello\n", b"s@x", b"r@y")
    recipients = ["--recipient=a@y", "--recipient=b@y"]
    assert cli.main(["--dry-run", "--json", *recipients, str(path), "h"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "event": "would-send",
        "message": "1.a",
        "sender": "s@x",
        "recipients": ["a@y", "b@y"],
        "bytes": 6,
    }


def test_dry_run_as_json_leaves_nothing_out(path: Path, capsys: Out) -> None:
    """A script that acts on the listing must not take a maildir with held mail for clear."""
    add_message(path, "1.a", recipient=b"p-r@y")
    add_message(path, "2.held", b"From: a@b\n\n", None, None)
    add_message(path, "3.b", recipient=b"other@y")
    add_message(path, "4.c", recipient=b"p@y")
    assert cli.main(["--dry-run", "--json", str(path), "p-", "h"]) == 111
    captured = capsys.readouterr()
    sent, held, others = map(json.loads, captured.out.splitlines())
    assert (sent["event"], sent["message"]) == ("would-send", "1.a")
    assert (held["event"], held["message"]) == ("held", "2.held")
    assert held["reason"].startswith("no envelope: no Return-Path line")
    assert others == {"event": "for-others", "messages": 2}
    assert "2.held: held: " in captured.err


def test_dry_run_tells_what_would_be_held(path: Path, capsys: Out) -> None:
    """On standard error, with exit code 111; what is no message is passed over."""
    add_message(path, "1.a\x1b", b"From: a@b\n\n", None, None)
    add_message(path, "2.a")
    (path / "new" / "3.directory").mkdir()
    assert cli.main(["--dry-run", str(path), "h"]) == 111
    captured = capsys.readouterr()
    assert captured.out.startswith("2.a: ")
    assert captured.err == (
        "maildirqmtp: 1.a?: held: no envelope: no Return-Path line on top of it; give --sender "
        "and --recipient, or write a sidecar, as --enqueue does; see HELD MESSAGES in "
        "maildirqmtp(1)\n"
    )


def test_dry_run_knows_what_is_on_hold(path: Path, capsys: Out) -> None:
    """Told that it would be sent, nobody looks for why it is still there after the run."""
    add_message(path, "1.a:2,S")
    add_message(path, "2.a")
    add_message(path, "3.a", recipient=b"other@y")
    assert qmtpq.main(["hold", str(path), "1.a:2,S", "3.a"]) == 0
    capsys.readouterr()
    assert cli.main(["--dry-run", "--json", str(path), "h"]) == 111
    out, err = capsys.readouterr()
    events = [json.loads(line) for line in out.splitlines()]
    why = "an administrator holds it; qmtpq release lets it go"
    assert [(e["event"], e["message"], e.get("reason")) for e in events] == [
        ("held", "1.a:2,S", why),
        ("would-send", "2.a", None),
        ("held", "3.a", why),
    ]
    assert err == f"maildirqmtp: 1.a:2,S: held: {why}\nmaildirqmtp: 3.a: held: {why}\n"


@pytest.mark.parametrize(
    ("flags", "sender", "code"),
    [([], b"s@x", 111), (["--bounce"], b"s@x", 0), (["--bounce"], b"", 111)],
)
def test_dry_run_knows_a_loop(
    path: Path, capsys: Out, flags: list[str], sender: bytes, code: int
) -> None:
    """The run sends nothing of it: it bounces it, or moves it to the failed maildir (111)."""
    add_message(path, "1.a", b"Received: from a by b\n" * 100 + b"\ntext\n", sender)
    assert cli.main(["--dry-run", "--json", *flags, str(path), "h"]) == code
    out, err = capsys.readouterr()
    why = "mail loop: it has 100 Received lines (#5.4.6)"
    assert json.loads(out) == {"event": "would-fail", "message": "1.a", "reason": why}
    assert err == f"maildirqmtp: 1.a: would fail: {why}\n"


def test_dry_run_of_no_maildir(tmp_path: Path, capsys: Out) -> None:
    """111, as the run itself."""
    assert cli.main(["--dry-run", str(tmp_path), "h"]) == 111
    assert "is it a maildir?" in capsys.readouterr().err


def test_dry_run_with_cur(path: Path, capsys: Out) -> None:
    """It lists what the run would take."""
    add_message(path, "1.a:2,S", folder="cur")
    assert cli.main(["--dry-run", "--cur", str(path), "h"]) == 0
    assert capsys.readouterr().out.startswith("1.a:2,S: ")


@pytest.fixture
def keeping(path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A command line that keeps messages for a time, and two that are kept for longer."""
    sent = make_maildir(path.parent / "sent")
    add_message(sent, "1.old")
    add_message(sent, "2.old:2,S", folder="cur")
    add_message(make_maildir(path / ".Failed"), "3.young")
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 86_000)
    return [f"--sent={sent}", "--keep-sent=1h", "--keep-failed=1d", str(path), "h"]


def test_what_would_be_removed_is_counted(path: Path, keeping: list[str], capsys: Out) -> None:
    """Before a first run with the option removes the mail of years."""
    before = snapshot(path.parent)
    assert cli.main(["--dry-run", *keeping]) == 0
    said = f"maildirqmtp: keep-sent: 2 would be removed from {path.parent}/sent\n"
    assert capsys.readouterr() == ("", said)
    assert cli.main(["--dry-run", "--json", *keeping]) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    sent, failed = f"{path.parent}/sent", f"{path}/.Failed"
    assert events == [
        {"event": "would-expire", "maildir": sent, "messages": 2, "setting": "keep-sent"},
        {"event": "would-expire", "maildir": failed, "messages": 0, "setting": "keep-failed"},
    ]
    assert snapshot(path.parent) == before
    assert names(path.parent / "sent") == ["cur", "new", "tmp"]


def test_what_cannot_be_counted_is_said(path: Path, keeping: list[str], capsys: Out) -> None:
    """And is no mail that would be held."""
    (path.parent / "sent" / "cur" / "2.old:2,S").unlink()
    (path.parent / "sent" / "cur").rmdir()
    assert cli.main(["--dry-run", *keeping]) == 0
    assert "cannot open the maildir directory" in capsys.readouterr().err
