"""`--status`: what waits and why, with a daemon, without one, and with a file full of lies."""

from __future__ import annotations

import errno
import io
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from maildirqmtp.cli import queue_output, status
from maildirqmtp.cli.main import main
from maildirqmtp.daemon.snapshot import Snapshot, WaitingMessage
from maildirqmtp.daemon.status import write as write_file
from maildirqmtp.forwarder import queued_message
from maildirqmtp.forwarder.report import Counters
from maildirqmtp.forwarder.route import Route
from maildirqmtp.maildir import locking
from maildirqmtp.maildir.maildir import Maildir
from maildirqmtp.settings import units
from maildirqmtp.transport.endpoint import TcpEndpoint
from tests.helpers import add_message, add_sidecar, make_maildir

SERVER = TcpEndpoint("mail.example.org")


@pytest.fixture
def locked(path: Path) -> Iterator[Path]:
    """A maildir that this process has locked, as a daemon does."""
    with Maildir(os.fsencode(path)) as maildir:
        maildir.lock()
        yield path


def route(path: Path, **options: Any) -> Route:
    """Return a route for a maildir."""
    return Route(os.fsencode(path), SERVER, **options)


def write(path: Path, state: str = "idle", prefix: bytes = b"", **values: Any) -> None:
    """Write the status file of a daemon."""
    write_file(Snapshot(route(path, prefix=prefix), state, Counters().as_dict(), **values))


def look(
    capsys: pytest.CaptureFixture[str], path: Path, code: int, **options: Any
) -> dict[str, Any]:
    """Return what `--status --json` says."""
    assert status.show([route(path, **options)], True) == code
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert found.pop("event") == "status"
    return found


def table(capsys: pytest.CaptureFixture[str], path: Path, code: int, **options: Any) -> list[str]:
    """Return what `--status` says."""
    assert status.show([route(path, **options)], False) == code
    return capsys.readouterr().out.splitlines()


def the_file(path: Path) -> Path:
    """Return the path of the status file."""
    return path / ".maildirqmtp-status.json"


# Without a daemon


def test_an_empty_maildir(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 0: nothing is left."""
    assert table(capsys, path, 0) == [f"{path}: 0 waiting; no daemon"]
    assert look(capsys, path, 0) == {
        "maildir": str(path),
        "prefix": "",
        "shard": None,
        "messages": 0,
        "last_run": "",
        "daemon": None,
        "waiting": [],
    }


def test_what_waits(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each message with its age, size, recipients, and what it is held for."""
    add_message(path, "1.a", b"text\n")
    os.utime(path / "new" / "1.a", (time.time() - 7200, time.time() - 7200))
    add_message(path, "2.held", b"text\n", None, None)
    add_message(path, "3.many")
    add_sidecar(path, "3.many", "s@x", "a@y", "b@y", "c@y")
    first, held, many = look(capsys, path, 111)["waiting"]
    assert (first["message"], first["bytes"]) == ("1.a", 5)
    assert (first["sender"], first["recipients"]) == (
        "sender@example.org",
        ["recipient@example.net"],
    )
    assert first["age_s"] == pytest.approx(7200, abs=60)
    assert (first["tries"], first["next"], first["reason"]) == (None, None, "")
    assert (held["age_s"], held["recipients"]) == (None, [])
    assert held["reason"].startswith("held: no envelope: no Return-Path line")
    assert many["recipients"] == ["a@y", "b@y", "c@y"]
    lines = table(capsys, path, 111)
    assert lines[0] == f"{path}: 3 waiting; no daemon"
    assert lines[1].split() == ["AGE", "TRIES", "NEXT", "BYTES", "MESSAGE", "FOR", "WHY"]
    assert lines[2].split() == ["2.0h", "-", "-", "5", "1.a", "recipient@example.net"]
    assert lines[3].split()[:6] == ["-", "-", "-", "-", "2.held", "-"]
    assert "held: no envelope" in lines[3]
    assert "a@y and 2 more" in lines[4]


def test_a_sidecar_nobody_can_use(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The message is held, and it says why."""
    add_message(path, "1.a")
    add_sidecar(path, "1.a", "s@x", "a@y")
    (path / "envelope" / "1.a.json").write_text("{")
    (held,) = look(capsys, path, 111)["waiting"]
    assert held["reason"].startswith("held: ")
    assert held["failures"] == []


def test_failures_of_the_past_are_shown(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A failed maildir is looked at in the same way: whom, what was answered, when."""
    add_message(path, "1.a")
    (path / "envelope").mkdir()
    failure = {"recipient": "a@y", "response": "Dno such user", "at": "2026-01-31T12:00:00Z"}
    content = {"version": 1, "sender": "s@x", "recipients": ["a@y"], "failures": [failure]}
    (path / "envelope" / "1.a.json").write_text(json.dumps(content))
    (one,) = look(capsys, path, 111)["waiting"]
    assert one["failures"] == [failure]


def test_what_is_no_message_or_anothers_is_not_shown(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Links, directories, and what is for another prefix."""
    add_message(path, "1.a", recipient=b"p-a@y")
    add_message(path, "2.b", recipient=b"q-a@y")
    (path / "new" / "3.link").symlink_to(path / "new" / "1.a")
    (path / "new" / "4.dir").mkdir()
    os.mkfifo(path / "new" / "5.fifo")
    found = look(capsys, path, 111, prefix=b"p-")
    assert [one["message"] for one in found["waiting"]] == ["1.a"]
    assert found["prefix"] == "p-"
    assert table(capsys, path, 111, prefix=b"p-")[0] == f"{path} p-: 1 waiting; no daemon"


def test_a_routes_own_settings_count(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What the daemon takes from cur/, or sends to a recipient of its own, is no held message."""
    add_message(path, "1.a", b"text\n", None, None)
    add_message(path, "2.b:2,S", b"text\n", None, None, folder="cur")
    options = {"sender": b"me@x", "recipients": (b"you@y",), "include_cur": True}
    first, second = look(capsys, path, 111, **options)["waiting"]
    assert (first["message"], second["message"]) == ("1.a", "2.b:2,S")
    assert first["reason"] == second["reason"] == ""
    assert first["recipients"] == second["recipients"] == ["you@y"]


def test_one_maildir_that_cannot_be_read_does_not_hide_the_others(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And the exit code says that something is wrong."""
    assert status.show([route(path / "none"), route(path)], False) == 111
    out, err = capsys.readouterr()
    assert "0 waiting" in out
    assert err.startswith("maildirqmtp: cannot open the maildir directory")


def test_names_cannot_write_to_the_terminal(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whoever may deliver chooses the name."""
    add_message(path, b"1.\x1b[2J\xff", recipient=b"a\x1b]0;x\x07@y")
    lines = "\n".join(table(capsys, path, 111))
    assert lines.isprintable() or "\x1b" not in lines.replace("\n", "")
    assert "1.?[2J?" in lines
    look(capsys, path, 111)


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(None, "-"), (0.0, "0s"), (59.4, "59s"), (90, "1.5m"), (5400, "1.5h"), (129_600, "1.5d")],
)
def test_ages_are_for_people(seconds: float | None, shown: str) -> None:
    """The largest unit that fits."""
    assert units.ago(seconds) == shown


# What has failed


def failures(*recipients: str) -> dict[str, Any]:
    """Return the sidecar of a message that has failed for these recipients."""
    return {
        "version": 1,
        "sender": "s@x",
        "recipients": list(recipients),
        "failures": [
            {"recipient": r, "response": "Dno such user", "at": "2026-01-31T12:00:00Z"}
            for r in recipients
        ],
    }


def add_failed(path: Path, name: str, *recipients: str) -> None:
    """Put a message into a failed maildir, with its sidecar where there are recipients."""
    add_message(path, name, b"text\n")
    if recipients:
        (path / "envelope").mkdir(exist_ok=True)
        (path / "envelope" / f"{name}.json").write_text(json.dumps(failures(*recipients)))


def test_what_has_failed_is_shown_with_the_reason(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nobody looks into .Failed by themselves; it does not wait, so the exit code is 0."""
    failed = make_maildir(path / ".Failed")
    assert table(capsys, path, 0) == [f"{path}: 0 waiting; no daemon"]
    add_failed(failed, "1.a", "a@y", "b@y")
    add_failed(failed, "2.b")
    (failed / "new" / "3.link").symlink_to(failed / "new" / "1.a")
    first, title, heads, *rows = table(capsys, path, 0)
    assert first == f"{path}: 0 waiting; no daemon"
    assert title == f"{failed}: 2 failed"
    assert heads.split() == ["AGE", "BYTES", "MESSAGE", "FOR", "WHY"]
    assert [row.split(maxsplit=4)[2:] for row in rows] == [
        ["1.a", "a@y", "no such user"],
        ["1.a", "b@y", "no such user"],
        ["2.b", "-", "no sidecar says why"],
    ]
    elsewhere = make_maildir(tmp_path / "Bad")
    add_failed(elsewhere, "9.z", "c@y")
    lines = table(capsys, path, 0, failed=os.fsencode(elsewhere))
    assert lines[1] == f"{elsewhere}: 1 failed"


def test_a_failed_maildir_of_several_routes_is_shown_once(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As JSON it is an event of its own, for it belongs to no single route."""
    failed = make_maildir(path / ".Failed")
    add_failed(failed, "1.a", "a@y")
    assert status.show([route(path, prefix=b"a-"), route(path, prefix=b"b-")], True) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [event["event"] for event in events] == ["status", "status", "failed-maildir"]
    assert events[2]["maildir"] == str(failed)
    (message,) = events[2]["messages"]
    assert (message["message"], message["bytes"]) == ("1.a", (failed / "new/1.a").stat().st_size)
    assert message["failures"] == failures("a@y")["failures"]


def test_a_failed_maildir_that_is_none_hides_nothing(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A link in its place is not followed, for root may look; and it is said."""
    elsewhere = make_maildir(path / "elsewhere")
    add_failed(elsewhere, "1.a", "a@y")
    (path / ".Failed").symlink_to(elsewhere)
    assert status.show([route(path)], False) == 111
    out, err = capsys.readouterr()
    assert out == f"{path}: 0 waiting; no daemon\n"
    assert err.startswith("maildirqmtp: cannot open the maildir directory")


# With a daemon


def test_what_the_daemon_knows(locked: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """How often it has tried, why in vain, and when next."""
    add_message(locked, "1.a")
    add_message(locked, "2.b", b"", None, None)
    now = time.time()
    waiters = (
        WaitingMessage(b"1.a", 3, "mailbox full", now + 5_400),
        WaitingMessage(b"2.b", 1, "no envelope", 0.0),
        WaitingMessage(b"3.gone", 1, "gone", 0.0),
    )
    write(locked, "backing off", waiters=waiters, stop_reason="refused", messages=2)
    found = look(capsys, locked, 111)
    assert found["daemon"]["pid"] == os.getpid()
    assert found["daemon"]["state"] == "backing off"
    assert "waiting" not in found["daemon"]
    first, second = found["waiting"]
    assert (first["tries"], first["reason"]) == (3, "mailbox full")
    assert first["next"] == pytest.approx(now + 5_400)
    assert (second["tries"], second["next"]) == (1, None)
    assert second["reason"].startswith("held: "), "what the message itself says comes first"
    lines = table(capsys, locked, 111)
    assert lines[0] == (
        f"{locked}: 2 waiting; process {os.getpid()}, backing off, to mail.example.org:209 "
        "(refused)"
    )
    assert lines[2].split()[1:3] == ["3", "1.5h"]


def test_a_file_is_of_use_only_while_its_process_has_the_lock(
    path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A daemon that was killed left `connected` behind; a batch has the lock, and no file."""
    write(path, "connected")
    assert look(capsys, path, 0)["daemon"] is None
    with Maildir(os.fsencode(path)) as maildir:
        maildir.lock()
        assert look(capsys, path, 0)["daemon"]["state"] == "connected"
        monkeypatch.setattr(locking, "holder", lambda root, shard: os.getpid() + 1)
        assert look(capsys, path, 0)["daemon"] is None
        monkeypatch.setattr(locking, "holder", lambda root, shard: None)
        assert look(capsys, path, 0)["daemon"] is None


def test_each_prefix_has_its_file(locked: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two routes on one maildir do not write over each other's."""
    write(locked, "idle")
    write(locked, "connected", b"a-")
    write(locked, "stuck", b"\xff/" * 300)
    assert look(capsys, locked, 0)["daemon"]["state"] == "idle"
    assert look(capsys, locked, 0, prefix=b"a-")["daemon"]["state"] == "connected"
    assert look(capsys, locked, 0, prefix=b"\xff/" * 300)["daemon"]["state"] == "stuck"
    assert look(capsys, locked, 0, prefix=b"b-")["daemon"] is None
    assert len(list(locked.glob(".maildirqmtp-status*"))) == 3


def shown(capsys: pytest.CaptureFixture[str], path: Path, code: int) -> list[tuple[str, str, int]]:
    """Return prefix, state and number of messages of each route that `--status DIR` shows."""
    assert status.show_maildir(os.fsencode(path), {"include_cur": False}, True) == code
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    states = [one["daemon"]["state"] if one["daemon"] else "none" for one in found]
    return [(f["prefix"], s, len(f["waiting"])) for f, s in zip(found, states, strict=True)]


def test_a_maildir_is_shown_as_its_daemon_has_it(
    locked: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whoever asks knows the maildir, not with which prefix serialmail's form was written."""
    add_message(locked, "1.x", recipient=b"a-r@y")
    assert shown(capsys, locked, 111) == [("", "none", 1)]
    write(locked, "connected", b"a-")
    assert shown(capsys, locked, 111) == [("a-", "connected", 1)]
    write(locked, "idle", b"\xff/" * 300)
    write(locked, "stopped", b"b-")
    assert shown(capsys, locked, 111) == [("a-", "connected", 1), ("?/" * 300, "idle", 0)]
    write(locked, "idle")
    assert shown(capsys, locked, 111)[0] == ("", "idle", 1)


@pytest.mark.parametrize("prefix", ["b-", 7, None, "\ud800"])
def test_a_status_file_of_another_name_is_of_no_route(
    locked: Path, capsys: pytest.CaptureFixture[str], prefix: object
) -> None:
    """Whatever it says, and whoever has copied it there."""
    write(locked, "connected", b"a-")
    (path,) = locked.glob(".maildirqmtp-status-*")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"prefix": prefix}))
    assert shown(capsys, locked, 0) == [("", "none", 0)]


def test_the_table_fits_a_terminal(
    path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With names as delivery agents make them it wrapped, and could not be read.

    The reason, which is what one looks for, is whole.
    """
    name = "1764191885.M123456P77Q1_{}.a-mail-server.example.org"
    add_message(path, name.format(1), recipient=b"r" * 60 + b"@example.net")
    add_message(path, name.format(2), b"text\n", None, None)
    failed = make_maildir(path / ".Failed")
    add_message(failed, name.format(3))
    monkeypatch.chdir(path.parent)
    whole = " ".join(" ".join(table(capsys, Path(path.name), 111)).split())
    monkeypatch.setattr(queue_output, "columns", lambda: 80)
    lines = table(capsys, Path(path.name), 111)
    assert max(map(len, lines)) <= 80
    said = " ".join(" ".join(lines).split())
    reason = "held: no envelope: no Return-Path line on top of it; give --sender and --recipient,"
    assert reason in whole
    assert reason in said
    assert "see HELD MESSAGES in maildirqmtp(1)" in said
    assert "no sidecar says why" in said


@pytest.mark.parametrize("told", [True, False])
def test_a_maildir_is_shown_as_a_run_with_these_options_would_have_it(
    locked: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], told: bool
) -> None:
    """What the run sends was called held, and what failed there was not shown."""
    add_message(locked, "1.x", b"text\n", None, None)
    failed = make_maildir(tmp_path / "F")
    add_message(failed, "2.f")
    if told:
        write(locked, "idle")
    words = ["--sender", "s@x", "--recipient", "r@y", "--failed", str(failed), "--window", "5"]
    assert main(["--status", str(locked), "--json", *words]) == 111
    waits, has_failed = map(json.loads, capsys.readouterr().out.splitlines())
    (one,) = waits["waiting"]
    assert (one["sender"], one["recipients"], one["reason"]) == ("s@x", ["r@y"], "")
    assert (has_failed["maildir"], has_failed["count"]) == (str(failed), 1)


def test_an_error_that_cannot_be_written_hides_no_other_maildir(
    path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A log on a full disk is when one looks."""

    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(sys, "stderr", Full())
    assert status.show([route(path / "none"), route(path)], False) == 111
    assert capsys.readouterr().out == f"{path}: 0 waiting; no daemon\n"


def test_a_maildir_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is said once."""
    assert status.show_maildir(os.fsencode(tmp_path / "none"), {}, False) == 111
    assert capsys.readouterr().err.count("No such file") == 1


# Lies


def plant(path: Path, **values: Any) -> None:
    """Write a status file that this process might have written, but for these values."""
    content = {"version": 1, "pid": os.getpid(), "state": "idle", "waiting": {}} | values
    the_file(path).write_text(json.dumps(content))


def test_a_link_is_not_read(
    locked: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It would show what is in somebody else's file."""
    plant(locked)
    the_file(locked).rename(tmp_path / "elsewhere")
    the_file(locked).symlink_to(tmp_path / "elsewhere")
    assert look(capsys, locked, 0)["daemon"] is None


def test_a_fifo_is_not_waited_for(locked: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It would hang for ever."""
    os.mkfifo(the_file(locked))
    assert look(capsys, locked, 0)["daemon"] is None


def test_a_directory_is_no_file(locked: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nor a traceback."""
    the_file(locked).mkdir()
    assert look(capsys, locked, 0)["daemon"] is None


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b"1",
        b'"x"',
        b"\xff\xfe",
        b"{}",
        b'{"version": 2, "pid": PID}',
        b'{"version": 1}',
        b'{"version": 1, "pid": "PID"}',
        b'{"version": 1, "pid": null}',
        b'{"version": 1, "pid": [PID]}',
        b"[" * 1_000_000,
        b'{"a":' * 100_000,
        b"9" * 100_000,
    ],
    ids=lambda content: content[:30],
)
def test_what_is_no_status_file_is_none(
    locked: Path, capsys: pytest.CaptureFixture[str], content: bytes
) -> None:
    """What waits is told without it."""
    the_file(locked).write_bytes(content.replace(b"PID", b"%d" % os.getpid()))
    assert look(capsys, locked, 0)["daemon"] is None


def test_a_huge_file_is_not_taken_into_memory(
    locked: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Sixteen megabytes of it, and those make no sense."""
    plant(locked)
    with the_file(locked).open("ab") as file:
        file.truncate(1 << 40)
    assert look(capsys, locked, 0)["daemon"] is None


@pytest.mark.parametrize("waiting", [None, [], "x", 5, {"1.a": None}, {"1.a": []}, {"1.a": "x"}])
def test_what_waits_of_the_wrong_type(
    locked: Path, capsys: pytest.CaptureFixture[str], waiting: object
) -> None:
    """It counts as not known."""
    add_message(locked, "1.a")
    plant(locked, waiting=waiting)
    (one,) = look(capsys, locked, 111)["waiting"]
    assert (one["tries"], one["reason"], one["next"]) == (None, "", None)
    table(capsys, locked, 111)


@pytest.mark.parametrize(
    "value",
    [None, [], {}, "x", -1, 0, 1e308, float("inf"), float("nan"), -float("inf"), 10**400, True],
    ids=repr,
)
def test_values_of_the_wrong_type_or_size(
    locked: Path, capsys: pytest.CaptureFixture[str], value: object
) -> None:
    """No traceback, whatever a number is."""
    add_message(locked, "1.a")
    plant(locked, waiting={"1.a": {"tries": value, "reason": value, "next": value}}, state=value)
    table(capsys, locked, 111)
    status.show([route(locked)], True)


@pytest.mark.parametrize("key", ["state", "server", "excuse"])
def test_text_of_the_daemon_cannot_write_to_the_terminal(
    locked: Path, capsys: pytest.CaptureFixture[str], key: str
) -> None:
    """Root may look at a user's maildir."""
    add_message(locked, "1.a")
    lie = "\ud800\x1b[2J\u202e"
    waiting = {"1.a": {"tries": 1, "reason": lie, "next": 0}}
    plant(locked, **({"state": "backing off", "waiting": waiting, key: lie}))
    shown = "".join(table(capsys, locked, 111))
    assert "\x1b" not in shown
    assert "\u202e" not in shown
    assert "[2J" in shown


@pytest.mark.parametrize("key", ["state", "server", "excuse", "counters", "other"])
@pytest.mark.parametrize(
    "lie",
    ["\x1b[2J\u202e", ["\x1b[2J"], {"\x1b[2J": {"\u202e": "\x1b"}}, float("nan"), float("-inf")],
    ids=ascii,
)
def test_json_of_a_forged_file_is_json_and_safe_to_print(
    locked: Path, capsys: pytest.CaptureFixture[str], key: str, lie: object
) -> None:
    """Root pipes it through `jq -r`, to a terminal; and a reader that is strict refuses NaN."""
    add_message(locked, "1.a")
    waiting = {"1.a": {"tries": 1, "reason": lie, "next": lie}}
    plant(locked, **({"waiting": waiting, key: lie}))
    assert status.show([route(locked)], True) == 111
    found = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert found["daemon"]["pid"] == os.getpid()
    shown = json.dumps(found, ensure_ascii=False)
    assert "\\u001b" not in shown
    assert "\u202e" not in shown


def test_json_of_a_number_too_large_for_a_float_is_json(
    locked: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Python reads 1e999 as infinity, and would write that as no JSON."""
    plant(locked, at=0)
    forged = the_file(locked).read_text().replace('"at": 0', '"at": 1e999')
    the_file(locked).write_text(forged)
    assert look(capsys, locked, 0)["daemon"]["at"] is None


# Very many messages


def test_so_many_are_listed_and_the_others_counted(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A terminal full of a million lines tells less than one line."""
    for number in range(12):
        add_message(path, f"17000000{number:02}.x")
    assert status.show([route(path)], False, 3) == 111
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith(": 12 waiting; no daemon")
    assert [line.split()[4] for line in lines[2:5]] == [f"170000000{n}.x" for n in range(3)]
    assert lines[5:] == ["  and 9 more"]
    assert status.show([route(path)], False, 0) == 111
    assert capsys.readouterr().out.splitlines()[1:] == []
    assert status.show([route(path)], True, 3) == 111
    found = json.loads(capsys.readouterr().out)
    assert found["messages"] == 12
    assert len(found["waiting"]) == 3


def test_the_rest_is_counted_without_a_look(
    path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A million files are not opened for a summary."""
    monkeypatch.setattr(status, "LOOK", 4)
    for number in range(12):
        add_message(path, f"17000000{number:02}.x", recipient=b"p-a@x" if number % 2 else b"b@x")
    opened: list[bytes] = []
    real = queued_message.prepare

    def prepare(maildir: Any, route: Any, folder: Any, name: bytes) -> Any:
        opened.append(name)
        return real(maildir, route, folder, name)

    monkeypatch.setattr("maildirqmtp.cli.status.prepare", prepare)
    assert status.show([route(path, prefix=b"p-")], True, 1) == 111
    found = json.loads(capsys.readouterr().out)
    assert len(opened) == 4
    assert found["messages"] == 2 + 8
    assert len(found["waiting"]) == 1


def test_so_many_failed_ones_are_listed(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A day with a broken server fills a failed maildir, too."""
    failed = make_maildir(path / ".Failed")
    for number in range(5):
        add_message(failed, f"170000000{number}.x")
    assert status.show([route(path)], False, 2) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].endswith(": 5 failed")
    assert lines[-1] == "  and 3 more"
    assert len(lines) == 6
