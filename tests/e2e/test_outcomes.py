"""What the server says, and what becomes of the files.

The server is scripted; the command is the installed one.
"""

from __future__ import annotations

import json
import os
import re
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from maildirqmtp.qmtp.protocol import package_head, package_tail
from tests.helpers import (
    Peer,
    Script,
    add_message,
    add_sidecar,
    answer_all,
    by_recipient,
    make_maildir,
    names,
    run,
    serving,
    sidecar,
    snapshot,
)


def random_text(size: int) -> bytes:
    """Make bytes that do not begin with a space: that would be a folded trace line."""
    return b"\n" + os.urandom(size - 1)


def events(stdout: str) -> list[dict[str, Any]]:
    """Read what --json writes: nothing but objects, one a line, each with its event."""
    found = [json.loads(line) for line in stdout.splitlines()]
    assert all(isinstance(event, dict) and isinstance(event["event"], str) for event in found)
    return found


def log(stderr: str) -> list[str]:
    """Return the lines on standard error, each of which says who speaks; without that."""
    lines = stderr.splitlines()
    assert all(line.startswith("maildirqmtp: ") for line in lines), stderr
    return [line.removeprefix("maildirqmtp: ") for line in lines]


def age(path: Path, seconds: float) -> None:
    """Make a file look older."""
    then = time.time() - seconds
    os.utime(path, (then, then))


# Accepted


def test_accepted_messages_go_and_exit_0(maildir: Path) -> None:
    """Mail that the server has taken would otherwise be sent again for ever."""
    texts = [b"Subject: %d\n\nbody\n" % number for number in range(50)]
    for number, text in enumerate(texts):
        add_message(maildir, f"{number}.m", text, b"s@x", b"k@y")
    with serving(answer_all()) as server:
        result = run(maildir, server.address)
    assert [package.text for package in server.packages] == texts
    assert {(p.sender, p.recipients, p.encoding) for p in server.packages} == {
        (b"s@x", (b"k@y",), b"\n")
    }
    assert result.returncode == 0
    assert result.stdout == ""
    assert snapshot(maildir) == {}
    bytes_ = sum(map(len, texts))
    summary = rf"50 accepted, 0 deferred, 0 failed, 0 held, 0 in doubt, {bytes_} bytes, \d+\.\d\d s"
    (line,) = log(result.stderr)
    assert re.fullmatch(summary, line)


def test_an_empty_maildir_needs_no_server(maildir: Path) -> None:
    """cron runs this every minute, mostly for nothing, and often without a network."""
    with serving(answer_all()) as server:
        result = run(maildir, server.address)
    assert server.connections == 0
    assert result.returncode == 0
    assert log(result.stderr)[0].startswith("0 accepted, 0 deferred, 0 failed, 0 held, 0 in doubt")


@pytest.mark.parametrize("existing", [False, True])
def test_sent_keeps_accepted_messages_byte_for_byte(
    maildir: Path, tmp_path: Path, existing: bool
) -> None:
    """--sent is somebody's archive: the whole file, trace lines too, and only what was accepted."""
    sent = tmp_path / "sent"
    if existing:
        make_maildir(sent)
        add_message(sent, "1.m", b"somebody else's\n")
    small = add_message(maildir, "1.m", b"\0\r\nsmall", recipient=b"k@y")
    large = add_message(maildir, "2.m", random_text(3_000_000), recipient=b"k@y")
    age(maildir / "new" / "2.m", 500)
    before = (maildir / "new" / "2.m").stat()
    deferred = add_message(maildir, "3.m", recipient=b"z@y")
    failed = add_message(maildir, "4.m", recipient=b"d@y")
    with serving(answer_all(by_recipient)) as server:
        result = run("--sent", sent, maildir, server.address)
    assert result.returncode == 111
    moved = "1.m.1" if existing else "1.m"
    assert names(sent / "new") == (["1.m", "1.m.1", "2.m"] if existing else ["1.m", "2.m"])
    assert (sent / "new" / moved).read_bytes() == small
    assert (sent / "new" / "2.m").read_bytes() == large
    assert (sent / "new" / "2.m").stat().st_mtime_ns == before.st_mtime_ns
    assert names(sent / "tmp") == names(sent / "cur") == []
    assert (maildir / "new" / "3.m").read_bytes() == deferred
    assert (maildir / ".Failed" / "new" / "4.m").read_bytes() == failed
    assert names(maildir / "new") == ["3.m"]


def test_sent_on_another_file_system(maildir: Path, tmp_path: Path) -> None:
    """The archive may be a mount of its own, where no link leads to."""
    other = Path("/dev/shm")
    if not other.is_dir() or other.stat().st_dev == maildir.stat().st_dev:
        pytest.skip("NO SECOND FILE SYSTEM HERE: /dev/shm is missing, or where the tests are")
    sent = other / f"maildirqmtp-test-{os.getpid()}"
    try:
        content = add_message(maildir, "1.m", random_text(3_000_000))
        age(maildir / "new" / "1.m", 500)
        before = (maildir / "new" / "1.m").stat()
        with serving(answer_all()) as server:
            assert run("--sent", sent, maildir, server.address).returncode == 0
        assert (sent / "new" / "1.m").read_bytes() == content
        assert (sent / "new" / "1.m").stat().st_mtime_ns == before.st_mtime_ns
        assert names(sent / "tmp") == names(maildir / "new") == []
    finally:
        for path in sorted(sent.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        sent.rmdir()


def test_cur_takes_messages_that_somebody_has_seen(maildir: Path, tmp_path: Path) -> None:
    """Without --cur, what a mail reader has moved to cur/ is not sent; with it, it is."""
    add_message(maildir, "2.m", b"new\n")
    add_message(maildir, "1.m:2,S", b"cur\n", folder="cur")
    with serving(answer_all()) as server:
        assert run(maildir, server.address).returncode == 0
        assert [p.text for p in server.packages] == [b"new\n"]
        assert names(maildir / "cur") == ["1.m:2,S"]
        add_message(maildir, "2.m", b"new\n")
        sent = tmp_path / "sent"
        assert run("--cur", "--sent", sent, maildir, server.address).returncode == 0
    assert [p.text for p in server.packages[1:]] == [b"cur\n", b"new\n"]
    assert names(maildir / "cur") == names(maildir / "new") == []
    assert names(sent / "new") == ["1.m", "2.m"]


def test_oldest_first(maildir: Path) -> None:
    """By the seconds in the name, as numbers; by mtime where a name has none."""
    now = int(time.time())
    order = {"999.x": 0, "1000.x": 0, "zoo": now - 200, f"{now - 100}.x": 0, "abc": now - 50}
    for name, mtime in order.items():
        add_message(maildir, name, name.encode())
        if mtime:
            os.utime(maildir / "new" / name, (mtime, mtime))
    with serving(answer_all()) as server:
        assert run(maildir, server.address).returncode == 0
    assert [p.text.decode() for p in server.packages] == list(order)


@pytest.mark.parametrize(
    ("flags", "envelope"),
    [
        ((), (b"s@x", (b"k@y",))),
        (("--sender", "other@x"), (b"other@x", (b"k@y",))),
        (("--sender", ""), (b"", (b"k@y",))),
        (("--recipient", "k@z"), (b"s@x", (b"k@z",))),
        (("--sender", "ö@x", "--recipient", "ü@z"), ("ö@x".encode(), ("ü@z".encode(),))),
    ],
)
def test_sender_and_recipient_replace_what_the_message_says(
    maildir: Path, flags: tuple[str, ...], envelope: tuple[bytes, tuple[bytes, ...]]
) -> None:
    """Each on its own, and the trace lines do not travel either way."""
    add_message(maildir, "1.m", b"text\n", b"s@x", b"k@y")
    with serving(answer_all()) as server:
        assert run(*flags, maildir, server.address).returncode == 0
    (package,) = server.packages
    assert (package.sender, package.recipients) == envelope
    assert package.text == b"text\n"


def test_sender_and_recipient_make_any_file_a_message(maildir: Path) -> None:
    """With an envelope from the command line, empty files and mail from elsewhere go too."""
    (maildir / "new" / "1.m").write_bytes(b"")
    (maildir / "new" / "2.m").write_bytes(b"From: a@b\n\nno trace\n")
    with serving(answer_all()) as server:
        result = run("--sender", "s@x", "--recipient", "k@y", maildir, server.address)
    assert result.returncode == 0
    assert [p.text for p in server.packages] == [b"", b"From: a@b\n\nno trace\n"]
    assert names(maildir / "new") == []


# Deferred and failed


def test_deferred_messages_are_not_touched(maildir: Path) -> None:
    """Try again later means: the same file, in the same place, and no sidecar for nothing."""
    add_message(maildir, "1.m", recipient=b"z@y")
    add_sidecar(maildir, "1.m", "s@x", "z@y", "z@elsewhere")
    add_message(maildir, "2.m", recipient=b"z@y")
    add_message(maildir, "3.m", random_text(2_000_000), recipient=b"z@y")
    add_message(maildir, "4.m", recipient=b"k@y")
    (maildir / "new" / "4.m").rename(tmp := maildir / "tmp" / "4.m")
    before = snapshot(maildir)
    tmp.rename(maildir / "new" / "4.m")
    with serving(answer_all(by_recipient)) as server:
        result = run(maildir, server.address)
    before.pop("tmp/4.m")
    assert snapshot(maildir) == before
    assert result.returncode == 111
    *lines, summary = log(result.stderr)
    assert lines == [
        "1.m: z@y: deferred: busy",
        "1.m: z@elsewhere: deferred: busy",
        "2.m: z@y: deferred: busy",
        "3.m: z@y: deferred: busy",
    ]
    assert summary.startswith("1 accepted, 4 deferred, 0 failed, 0 held, 0 in doubt, ")


@pytest.mark.parametrize("flag", [False, True])
@pytest.mark.parametrize("size", [10, 2_000_000])
def test_failed_messages_move_with_the_reason(
    maildir: Path, tmp_path: Path, flag: bool, size: int
) -> None:
    """Rejected mail is kept whole, out of the way, and says who refused it, why and when."""
    failed = tmp_path / "elsewhere" if flag else maildir / ".Failed"
    content = add_message(maildir, "1.m", random_text(size), b"s@x", b"d@y")
    inode = (maildir / "new" / "1.m").stat().st_ino
    with serving(answer_all(by_recipient)) as server:
        earliest = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        flags = ("--failed", failed) if flag else ()
        result = run(*flags, maildir, server.address)
        latest = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    assert result.returncode == 111
    assert names(maildir / "new") == names(maildir / "tmp") == names(failed / "tmp") == []
    assert names(maildir / "envelope") == []
    assert (failed / "new" / "1.m").read_bytes() == content
    assert (failed / "new" / "1.m").stat().st_ino == inode
    assert names(failed / "envelope") == ["1.m.json"]
    said = sidecar(failed, "1.m")
    assert earliest <= said["failures"][0].pop("at") <= latest
    assert said == {
        "version": 1,
        "sender": "s@x",
        "recipients": ["d@y"],
        "failures": [{"recipient": "d@y", "response": "Dno such user (#5.1.1)"}],
    }
    line, summary = log(result.stderr)
    assert line == f"1.m: d@y: failed: no such user (#5.1.1) (moved to {failed}/new/1.m)"
    assert summary.startswith("0 accepted, 0 deferred, 1 failed, 0 held, 0 in doubt, ")
    assert (failed.stat().st_mode & 0o777) == 0o700, "rejected mail is nobody else's business"


def test_a_second_failure_does_not_replace_the_first(maildir: Path) -> None:
    """Two messages of one name, on two days: both are kept, each with its own reason."""
    with serving(answer_all(by_recipient)) as server:
        first = add_message(maildir, "1.m", b"first\n", recipient=b"d@y")
        run(maildir, server.address)
        second = add_message(maildir, "1.m", b"the second\n", recipient=b"d@z")
        run(maildir, server.address)
    failed = maildir / ".Failed"
    assert {p.read_bytes() for p in (failed / "new").iterdir()} == {first, second}
    assert names(failed / "envelope") == ["1.m.1.json", "1.m.json"]
    assert sidecar(failed, "1.m")["recipients"] == ["d@y"]
    assert sidecar(failed, "1.m.1")["recipients"] == ["d@z"]


@pytest.mark.parametrize(
    ("lifetime", "age_s", "gives_up"),
    [
        ((), 13 * 86_400, False),
        ((), 15 * 86_400, True),
        (("--lifetime", "1h"), 3_000, False),
        (("--lifetime", "1h"), 4_000, True),
        (("--lifetime", "0"), 0, True),
    ],
)
def test_a_deferral_fails_once_the_message_is_too_old(
    maildir: Path, lifetime: tuple[str, ...], age_s: float, gives_up: bool
) -> None:
    """Mail that nobody will ever take must come to somebody's notice, and not before."""
    content = add_message(maildir, "1.m", recipient=b"z@y")
    age(maildir / "new" / "1.m", age_s)
    with serving(answer_all(by_recipient)) as server:
        result = run(*lifetime, maildir, server.address)
    assert result.returncode == 111
    if gives_up:
        assert names(maildir / "new") == []
        assert (maildir / ".Failed" / "new" / "1.m").read_bytes() == content
        (failure,) = sidecar(maildir / ".Failed", "1.m")["failures"]
        assert failure["response"].startswith("Zbusy (too old: ")
        assert "1.m: z@y: failed: busy (too old: " in result.stderr
    else:
        assert (maildir / "new" / "1.m").read_bytes() == content
        assert not (maildir / ".Failed").exists()


def test_age_alone_fails_nothing(maildir: Path) -> None:
    """A laptop that was off for a month sends what it has; only a deferral is too late."""
    add_message(maildir, "1.m", recipient=b"k@y")
    age(maildir / "new" / "1.m", 99 * 86_400)
    with serving(answer_all(by_recipient)) as server:
        assert run(maildir, server.address).returncode == 0
    assert names(maildir / "new") == []
    assert not (maildir / ".Failed").exists()


def test_each_of_several_recipients_gets_what_it_was_answered(maildir: Path) -> None:
    """Who has it does not get it again; who refused it is not asked again; the rest is."""
    text = b"Subject: three\n\nbody\n"
    content = add_message(maildir, "1.m", text)
    to = [flag for name in "kzd" for flag in ("--recipient", f"{name}@y")]
    with serving(answer_all(by_recipient)) as server:
        result = run(*to, maildir, server.address)
        assert server.packages[0].recipients == (b"k@y", b"z@y", b"d@y")
        assert result.returncode == 111
        assert "1 accepted, 1 deferred, 1 failed, 0 held, 0 in doubt, " in result.stderr
        assert sidecar(maildir, "1.m") == {
            "version": 1,
            "sender": "sender@example.org",
            "recipients": ["z@y"],
        }
        assert sidecar(maildir / ".Failed", "1.m")["recipients"] == ["d@y"]
        assert (maildir / "new" / "1.m").read_bytes() == content
        assert (maildir / ".Failed" / "new" / "1.m").read_bytes() == content
        # The sidecar counts, whatever the command line says.
        run(*to, maildir, server.address)
        assert server.packages[1].recipients == (b"z@y",)
    with serving(answer_all()) as server:
        assert run(maildir, server.address).returncode == 0
    (last,) = server.packages
    assert (last.sender, last.recipients) == (b"sender@example.org", (b"z@y",))
    assert last.text == text
    assert names(maildir / "new") == names(maildir / "envelope") == names(maildir / "tmp") == []
    assert names(maildir / ".Failed" / "new") == ["1.m"]


def test_a_failed_message_moved_back_is_sent_to_whom_its_sidecar_lists(maildir: Path) -> None:
    """The administrator mended the address book, and moves the mail back with its sidecar."""
    add_message(maildir, "1.m", b"text\n", recipient=b"pre-d@y")
    with serving(answer_all(by_recipient)) as server:
        assert run("--no-bounce", maildir, "pre-", server.address).returncode == 111
    failed = maildir / ".Failed"
    assert sidecar(failed, "1.m")["recipients"] == ["pre-d@y"]
    (maildir / "envelope").mkdir(exist_ok=True)
    (failed / "envelope" / "1.m.json").rename(maildir / "envelope" / "1.m.json")
    (failed / "new" / "1.m").rename(maildir / "new" / "1.m")
    with serving(answer_all()) as server:
        assert run(maildir, "pre-", server.address).returncode == 0
    (package,) = server.packages
    assert (package.recipients, package.text) == ((b"d@y",), b"text\n")
    assert names(maildir / "new") == names(maildir / "envelope") == []
    assert names(failed / "new") == names(failed / "envelope") == []


def test_recipients_of_a_sidecar_without_the_prefix_stay_in_it(maildir: Path) -> None:
    """They are another route's: sent by us, they would be mail to the wrong address."""
    content = add_message(maildir, "1.m")
    add_sidecar(maildir, "1.m", "s@x", "pre-k@y", "other@y", "pre-d@y")
    with serving(answer_all(by_recipient)) as server:
        result = run("--no-bounce", maildir, "pre-", server.address)
        assert server.packages[0].recipients == (b"k@y", b"d@y")
        assert result.returncode == 111
        assert sidecar(maildir, "1.m")["recipients"] == ["other@y"]
        assert sidecar(maildir / ".Failed", "1.m")["recipients"] == ["pre-d@y"]
        assert (maildir / "new" / "1.m").read_bytes() == content
        assert run(maildir, "pre-", server.address).returncode == 0
        assert server.connections == 1


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b'{"version": 1}',
        b'{"version": 1, "sender": "s@x", "recipients": []}',
        None,
    ],
)
def test_a_sidecar_that_cannot_be_used_holds_its_message(
    maildir: Path, content: bytes | None
) -> None:
    """To fall back to the headers would send mail to people who have it already."""
    add_message(maildir, "1.m")
    add_message(maildir, "2.m", b"good\n")
    (maildir / "envelope").mkdir()
    if content is None:
        (maildir / "envelope" / "1.m.json").symlink_to("/etc/passwd")
    else:
        (maildir / "envelope" / "1.m.json").write_bytes(content)
    with serving(answer_all()) as server:
        result = run(maildir, server.address)
    assert result.returncode == 111
    assert [p.text for p in server.packages] == [b"good\n"]
    assert names(maildir / "new") == ["1.m"]
    assert names(maildir / "envelope") == ["1.m.json"]
    assert "1.m: held: its sidecar " in result.stderr


def test_a_broken_sidecar_in_the_failed_maildir_stops_nobody(maildir: Path) -> None:
    """One file that somebody edited there must not keep all other mail from going."""
    add_message(maildir, "1.m", recipient=b"d@y")
    add_message(maildir, "2.m", b"good\n", recipient=b"k@y")
    make_maildir(maildir / ".Failed")
    (maildir / ".Failed" / "envelope").mkdir()
    (maildir / ".Failed" / "envelope" / "1.m.json").write_bytes(b"{")
    with serving(answer_all(by_recipient)) as server:
        result = run(maildir, server.address)
    assert result.returncode == 111
    assert "2.m" not in names(maildir / "new")
    assert b"good\n" in [p.text for p in server.packages]
    assert names(maildir / ".Failed" / "new") == ["1.m"]
    assert sidecar(maildir / ".Failed", "1.m")["recipients"] == ["d@y"]


# What is said


NASTY = b"\x1b]0;owned\x07 one\ntwo\r\0\x7f\x9b \xff \xe2\x80\xae end \xc3\xbc"
HARMLESS = "?]0;owned? one?two???? ? ? end ü"


@pytest.mark.parametrize("status", ["K", "Z", "D"])
def test_a_server_cannot_write_to_the_terminal(maildir: Path, status: str) -> None:
    """Control characters of a response never reach a terminal, a log or a file."""
    add_message(maildir, "1.m")
    with serving(answer_all(lambda package, recipient: status.encode() + NASTY)) as server:
        result = run("-v", "--json", maildir, server.address)
    word = {"K": "accepted", "Z": "deferred", "D": "failed"}[status]
    where = f" (moved to {maildir}/.Failed/new/1.m)" if status == "D" else ""
    assert f"1.m: recipient@example.net: {word}: {HARMLESS}{where}" in log(result.stderr)
    (event,) = [e for e in events(result.stdout) if e["event"] == word]
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
    assert "1.?[31m??name: z?@y: deferred: busy" in log(flush.stderr)
    assert any(line.startswith("2.?[32m?name: held: ") for line in log(flush.stderr))
    assert {e.get("message") for e in events(flush.stdout)} >= {"1.?[31m??name", "2.?[32m?name"}
    assert dry.stdout.startswith("1.?[31m??name: <?[1m?@x> to z?@y, ")
    assert events(dry_json.stdout)[0]["sender"] == "?[1m?@x"
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
        "held": "4.m: held: no envelope: no Return-Path line on top of it",
        "summary": "1 accepted, 1 deferred, 1 failed, 1 held, 0 in doubt, 5 bytes, ",
    }
    lines = [re.sub(r"[\d.]+ s$", "", line) for line in log(result.stderr)]
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
    found = {event.pop("event"): event for event in events(result.stdout)}
    common = {"sender": "s@x", "bytes": 5, "message_id": ""}
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
        "held": {"message": "4.m", "reason": "no envelope: no Return-Path line on top of it"},
    }
    assert events(result.stdout)[-1] == {
        "event": "summary",
        "accepted": 1,
        "deferred": 1,
        "failed": 1,
        "bounced": 0,
        "held": 1,
        "in_doubt": 0,
        "left": 0,
        "messages": 1,
        "bytes": 5,
        "seconds": events(result.stdout)[-1]["seconds"],
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
    age(old, 99 * 86_400)
    before = snapshot(maildir)
    flags = ("--json",) if as_json else ()
    with serving(answer_all()) as server:
        result = run("--dry-run", *flags, maildir, "pre-", server.address)
        assert server.connections == 0
    assert snapshot(maildir) == before
    assert result.returncode == 0
    assert result.stderr == ""
    if as_json:
        listed = events(result.stdout)
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
    assert log(result.stderr) == ["1.m: held: no envelope: no Return-Path line on top of it"]
    assert result.stdout == ""
    assert result.returncode == 111


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
    assert len(log(result.stderr)) == 1
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
    line, summary = log(result.stderr)
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
    (summary,) = log(result.stderr)
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
def test_a_file_that_changes_in_flight_is_kept_as_it_is_now(
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
        assert result.returncode == 111
        assert path.read_bytes() == now
        assert names(archive / "new") == names(archive / "tmp") == []
        assert names(maildir / ".Failed" / "new") == names(maildir / ".Failed" / "tmp") == []
        assert "1.m: held: " in result.stderr
        assert "changed while it was being sent" in result.stderr
        if answer == b"Kok":
            assert run(maildir, server.address).returncode == 0
            assert now.endswith(server.packages[1].text)
            assert server.packages[1].text != server.packages[0].text
            assert names(maildir / "new") == []


def _vanish(path: Path) -> None:
    path.unlink()


def _halve(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _streaming_server(change: Any, path: Path) -> Script:
    """Answer small packages; change a large message's file once some of it has come."""

    def script(peer: Peer) -> None:
        for _ in range(2):
            if peer.read_package() is None:
                return
            peer.respond(b"Kok")
        if peer.server.connections == 1:
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
    with serving(_streaming_server(change, path)) as server:
        result = run(maildir, server.address)
    # The server has seen every byte that we sent: no package but the small ones was complete.
    assert [p.text for p in server.packages] == [
        b"one\n", b"two\n", b"four\n", b"five\n", b"six\n"
    ]  # fmt: skip
    assert names(maildir / "new") == ([] if change is _vanish else ["3.m"])
    assert "5 accepted, 0 deferred, 0 failed, 1 held, 0 in doubt, " in result.stderr
    assert "changed while it was being sent" in result.stderr
    assert result.returncode == 111


def test_what_was_sent_before_a_large_message_that_changes_counts(maildir: Path) -> None:
    """The connection is only given up once the answers to earlier messages are in."""
    add_message(maildir, "1.m", b"one\n", b"s@x", b"k@y")
    add_message(maildir, "2.m", b"two\n", b"s@x", b"k@y")
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
        take(peer, len(package_head(4)) + 4 + len(tail))
        peer.respond(b"Kok")
        take(peer, len(package_head(4)) + 4 + len(tail))
        os.truncate(path, trace + 30_000_000)
        take(peer, len(package_head(60_000_000)) + 30_000_000)
        # All is here that can come. Now it is for the client to wait for this:
        peer.respond(b"Kok")
        assert peer.socket.recv(1) == b""

    with serving(script) as server:
        result = run(maildir, server.address)
    assert names(maildir / "new") == ["3.m"]
    assert "2 accepted, 0 deferred, 0 failed, 1 held, 0 in doubt, " in result.stderr
    assert server.connections == 1
    assert result.returncode == 111


def test_many_changing_large_files_do_not_stop_the_mail_behind_them(maildir: Path) -> None:
    """One bad file never stops the others, nor do four, however often we connect."""
    size = 30_000_000
    for number in range(4):
        add_message(maildir, f"{number}.m", b"\0" * size)
    add_message(maildir, "5.m", b"good\n")

    def script(peer: Peer) -> None:
        if peer.server.connections <= 4:
            peer.socket.recv(1, socket.MSG_PEEK)
            os.truncate(maildir / "new" / f"{peer.server.connections - 1}.m", 1000)
        answer_all()(peer)

    with serving(script) as server:
        result = run(maildir, server.address)
    assert [p.text for p in server.packages] == [b"good\n"]
    assert names(maildir / "new") == ["0.m", "1.m", "2.m", "3.m"]
    assert result.returncode == 111
