"""What the installed command says of what it did: lines, events and listings."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.e2e.daemons import deliver, empties, watching
from tests.helpers import (
    add_message,
    add_sidecar,
    answer_all,
    by_recipient,
    json_events,
    log_lines,
    make_maildir,
    make_older,
    random_text,
    run,
    serving,
    sidecar,
    snapshot,
    wait_until,
)

NASTY = b"\x1b]0;owned\x07 one\ntwo\r\0\x7f\x9b \xff \xe2\x80\xae end \xc3\xbc"
HARMLESS = "?]0;owned? one?two???? ? ? end ü"

#: What is said of a message with no trace line, and what to do about it.
HELD = (
    "no envelope: no Return-Path line on top of it; give --sender and --recipient, or write a "
    "sidecar, as --enqueue does; see HELD MESSAGES in maildirqmtp(1)"
)


@pytest.mark.parametrize("status", ["K", "Z", "D"])
def test_a_server_cannot_write_to_the_terminal(maildir: Path, status: str) -> None:
    """Control characters of a response never reach a terminal, a log or a file."""
    add_message(maildir, "1.m")
    with serving(answer_all(lambda package, recipient: status.encode() + NASTY)) as server:
        result = run("-v", "--json", maildir, server.address)
    word = {"K": "accepted", "Z": "deferred", "D": "failed"}[status]
    where = f" (moved to {maildir}/.Failed/new/1.m)" if status == "D" else ""
    assert f"1.m: recipient@example.net: {word}: {HARMLESS}{where}" in log_lines(result.stderr)
    (event,) = [e for e in json_events(result.stdout) if e["event"] == word]
    assert event["text"] == HARMLESS
    if status == "D":
        (failure,) = sidecar(maildir / ".Failed", "1.m")["failures"]
        assert failure["response"] == "D" + HARMLESS


def test_a_message_cannot_write_to_the_terminal(maildir: Path) -> None:
    """Nor can file names and addresses, which come from strangers as well."""
    add_message(maildir, b"1.\x1b[31m\xff\nname", sender=b"\x1b[1m\xff@x", recipient=b"z\x07@y")
    add_message(maildir, b"2.\x1b[32m\nname", sender=None, recipient=None)
    with serving(answer_all(lambda package, recipient: b"Zbusy")) as server:
        flush = run("--json", maildir, server.address)
        dry = run("--dry-run", maildir, server.address)
        dry_json = run("--json", "--dry-run", maildir, server.address)
    assert "1.?[31m??name: z?@y: deferred: busy" in log_lines(flush.stderr)
    assert any(line.startswith("2.?[32m?name: held: ") for line in log_lines(flush.stderr))
    assert {e.get("message") for e in json_events(flush.stdout)} >= {
        "1.?[31m??name",
        "2.?[32m?name",
    }
    assert dry.stdout.startswith("1.?[31m??name: <?[1m?@x> to z?@y, ")
    assert json_events(dry_json.stdout)[0]["sender"] == "?[1m?@x"
    for output in (flush.stdout, flush.stderr, dry.stdout, dry.stderr):
        assert all(line.isprintable() for line in output.splitlines())


def _one_of_each(maildir: Path) -> None:
    for number, name in enumerate("kzd", 1):
        add_message(maildir, f"{number}.m", b"12345", b"s@x", name.encode() + b"@y")
    add_message(maildir, "4.m", sender=None, recipient=None)


@pytest.mark.parametrize(
    ("flags", "shown"),
    [
        ((), ["deferred", "failed", "held", "summary"]),
        (("-v",), ["connected", "accepted", "deferred", "failed", "held", "summary"]),
        (("-q",), []),
    ],
)
def test_how_much_is_said(maildir: Path, flags: tuple[str, ...], shown: list[str]) -> None:
    """Default: what was not accepted; -v: all; -q: cron mails nothing but errors."""
    _one_of_each(maildir)
    with serving(answer_all(by_recipient)) as server:
        result = run(*flags, maildir, server.address)
    said = {
        "connected": f"connected to {server.address}",
        "accepted": "1.m: k@y: accepted: ok",
        "deferred": "2.m: z@y: deferred: busy",
        "failed": f"3.m: d@y: failed: no such user (#5.1.1) (moved to {maildir}/.Failed/new/3.m)",
        "held": f"4.m: held: {HELD}",
        "summary": "1 accepted, 1 deferred, 1 failed, 1 held, 0 in doubt, 5 bytes, ",
    }
    lines = [re.sub(r"[\d.]+ s$", "", line) for line in log_lines(result.stderr)]
    assert sorted(lines) == sorted(said[what] for what in shown)
    assert lines[-1:] == [said["summary"]] * ("summary" in shown)
    assert result.returncode == 111
    assert result.stdout == ""


@pytest.mark.parametrize("flags", [(), ("-q",), ("-v",)])
def test_json_tells_scripts_everything(maildir: Path, flags: tuple[str, ...]) -> None:
    """One object a line on standard output, however much the log says."""
    _one_of_each(maildir)
    with serving(answer_all(by_recipient)) as server:
        result = run("--json", *flags, maildir, server.address)
    found = {event.pop("event"): event for event in json_events(result.stdout)}
    common = {"sender": "s@x", "bytes": 5, "message_id": "", "server": server.address}
    for event in ("accepted", "deferred", "failed"):
        assert 0 <= found[event].pop("delay_s") < 60
    assert found.pop("summary").pop("seconds") >= 0
    assert found == {
        "connected": {"server": server.address},
        "accepted": {"message": "1.m", "recipient": "k@y", "text": "ok", **common},
        "deferred": {"message": "2.m", "recipient": "z@y", "text": "busy", **common},
        "failed": {
            "message": "3.m",
            "recipient": "d@y",
            "text": "no such user (#5.1.1)",
            "moved_to": f"{maildir}/.Failed/new/3.m",
            **common,
        },
        "held": {"message": "4.m", "reason": HELD},
    }
    assert json_events(result.stdout)[-1] == {
        "event": "summary",
        "accepted": 1,
        "deferred": 1,
        "failed": 1,
        "bounced": 0,
        "held": 1,
        "in_doubt": 0,
        "left": 0,
        "others": 0,
        "messages": 1,
        "bytes": 5,
        "seconds": json_events(result.stdout)[-1]["seconds"],
        "exit_code": 111,
    }


@pytest.mark.parametrize("as_json", [False, True])
def test_dry_run_sends_nothing_and_changes_nothing(maildir: Path, as_json: bool) -> None:
    """To see what would happen, on a maildir that one does not dare to touch."""
    for number in (3, 1, 2):
        add_message(maildir, f"{number}.m", b"x" * number, b"s@x", b"pre-%d@y" % number)
    add_message(maildir, "4.m", recipient=b"other@y")
    add_message(maildir, "5.m", random_text(2_000_000), b"", b"unused@y")
    add_sidecar(maildir, "5.m", "", "pre-a@y", "other@y", "pre-b@y")
    old = maildir / "tmp" / "old"
    old.write_bytes(b"rubbish")
    make_older(old, 99 * 86_400)
    before = snapshot(maildir)
    flags = ("--json",) if as_json else ()
    with serving(answer_all()) as server:
        result = run("--dry-run", *flags, maildir, "pre-", server.address)
        assert server.connections == 0
    assert snapshot(maildir) == before
    assert result.returncode == 0
    others = "1 for others: no recipient begins with the prefix pre-"
    assert result.stderr == f"maildirqmtp: {others}\n"
    if as_json:
        listed = json_events(result.stdout)
        assert listed.pop() == {"event": "for-others", "messages": 1}
        assert [e["message"] for e in listed] == ["1.m", "2.m", "3.m", "5.m"]
        assert listed[-1] == {
            "event": "would-send",
            "message": "5.m",
            "sender": "",
            "recipients": ["a@y", "b@y"],
            "bytes": 2_000_000,
        }
    else:
        assert result.stdout.splitlines() == [
            "1.m: <s@x> to 1@y, 1 bytes",
            "2.m: <s@x> to 2@y, 2 bytes",
            "3.m: <s@x> to 3@y, 3 bytes",
            "5.m: <> to a@y, b@y, 2000000 bytes",
        ]


def test_dry_run_says_what_would_be_held(maildir: Path) -> None:
    """The reasons go to standard error, so that the listing stays data."""
    add_message(maildir, "1.m", sender=None, recipient=None)
    result = run("--dry-run", maildir, "nosuch.invalid")
    assert log_lines(result.stderr) == [f"1.m: held: {HELD}"]
    assert result.stdout == ""
    assert result.returncode == 111


def test_dry_run_as_json_says_what_would_be_held_too(maildir: Path) -> None:
    """A script that reads it would take the maildir for empty."""
    add_message(maildir, "1.m", sender=None, recipient=None)
    add_message(maildir, "2.m")
    result = run("--dry-run", "--json", maildir, "nosuch.invalid")
    said = json_events(result.stdout)
    assert [event["event"] for event in said] == ["held", "would-send"]
    held, would_send = said
    assert held == {"event": "held", "message": "1.m", "reason": HELD}
    assert would_send["message"] == "2.m"
    assert result.returncode == 111


@pytest.mark.parametrize("as_json", [False, True])
def test_status_shows_what_has_failed(maildir: Path, as_json: bool) -> None:
    """Nobody looks into a folder that they do not know of; its mail lay there for ever."""
    add_message(maildir, "1.m")
    with serving(answer_all(lambda package, recipient: b"Dno such user (#5.1.1)")) as server:
        run(maildir, server.address)
    result = run("--status", *(["--json"] if as_json else []), maildir)
    assert "1.m" in result.stdout
    assert "no such user (#5.1.1)" in result.stdout
    assert str(maildir / ".Failed") in result.stdout


def test_a_configuration_that_begins_with_a_byte_order_mark_is_read(
    maildir: Path, tmp_path: Path
) -> None:
    """Notepad writes one; `Invalid statement (at line 1, column 1)` helps nobody."""
    file = tmp_path / "m.toml"
    text = f'[[route]]\nmaildir = "{maildir}"\nserver = "mail.example.org"\n'
    file.write_bytes(b"\xef\xbb\xbf" + text.encode())
    result = run("--config", file, "--check-config")
    assert (result.returncode, result.stderr) == (0, "")
    assert "mail.example.org" in result.stdout


def test_a_daemon_waits_for_a_maildir_that_is_not_there_and_says_so(tmp_path: Path) -> None:
    """It may be on a disk that is mounted later: the daemon had gone by then."""
    path = tmp_path / "Maildir"
    with (
        serving(answer_all()) as server,
        watching("--watch", path, server.address, "--rescan", "0.2") as daemon,
    ):
        daemon.wait_for(f"{path}: No such file or directory; check the path")
        wait_until(
            lambda: "trying again every 0.2 s" in daemon.log or daemon.process.poll() is not None,
            "what it does about it",
        )
        assert daemon.process.poll() is None
        make_maildir(path)
        deliver(path, "1.m")
        empties(path)
        assert daemon.stop() == 0
