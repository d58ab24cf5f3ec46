"""What the server says, and what becomes of the files.

The server is scripted; the command is the installed one.
"""

from __future__ import annotations

import json
import os
import re
import time
from pathlib import Path

import pytest

from tests.helpers import (
    add_message,
    add_sidecar,
    answer_all,
    by_recipient,
    log_lines,
    make_maildir,
    make_older,
    names,
    random_text,
    run,
    serving,
    sidecar,
    snapshot,
)

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
    (line,) = log_lines(result.stderr)
    assert re.fullmatch(summary, line)


def test_an_empty_maildir_needs_no_server(maildir: Path) -> None:
    """cron runs this every minute, mostly for nothing, and often without a network."""
    with serving(answer_all()) as server:
        result = run(maildir, server.address)
    assert server.connections == 0
    assert result.returncode == 0
    assert log_lines(result.stderr)[0].startswith(
        "0 accepted, 0 deferred, 0 failed, 0 held, 0 in doubt"
    )


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
    make_older(maildir / "new" / "2.m", 500)
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
        make_older(maildir / "new" / "1.m", 500)
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
    *lines, summary = log_lines(result.stderr)
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
    line, summary = log_lines(result.stderr)
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


DAY_S = 86_400.0


@pytest.mark.parametrize(
    ("lifetime", "age_s", "deferred_s", "gives_up"),
    [
        ((), 13.0 * DAY_S, 13.0 * DAY_S, False),
        ((), 15.0 * DAY_S, 2.0 * DAY_S, True),
        ((), 15.0 * DAY_S, 0.9 * DAY_S, False),
        ((), 30.0 * DAY_S, None, False),
        (("--lifetime", "1h"), 3_000.0, 3_000.0, False),
        (("--lifetime", "1h"), 4_000.0, 4_000.0, True),
        (("--lifetime", "1h"), 4_000.0, None, False),
        (("--lifetime", "0"), 0.0, None, True),
    ],
)
def test_a_deferral_fails_once_the_message_is_too_old(
    maildir: Path,
    lifetime: tuple[str, ...],
    age_s: float,
    deferred_s: float | None,
    gives_up: bool,
) -> None:
    """Mail that nobody will ever take must come to somebody's notice, and not before.

    Nor at the first greylisting after weeks without a connection.
    """
    content = add_message(maildir, "1.m", recipient=b"z@y")
    make_older(maildir / "new" / "1.m", age_s)
    state = maildir / ".maildirqmtp-state.json"
    if deferred_s is not None:
        first = {"1.m": time.time() - deferred_s}
        state.write_text(json.dumps({"version": 1, "first_deferred": first}))
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
        assert names(maildir / "new") == ["1.m"], result.stderr
        assert (maildir / "new" / "1.m").read_bytes() == content
        assert not (maildir / ".Failed").exists()
        if age_s > 14 * DAY_S and deferred_s is None:
            assert "1.m" in json.loads(state.read_text())["first_deferred"], "for the next run"
            assert state.stat().st_mode & 0o777 == 0o600


def test_age_alone_fails_nothing(maildir: Path) -> None:
    """A laptop that was off for a month sends what it has; only a deferral is too late."""
    add_message(maildir, "1.m", recipient=b"k@y")
    make_older(maildir / "new" / "1.m", 99 * 86_400)
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


def test_the_sender_that_one_route_sets_is_not_that_of_another(maildir: Path) -> None:
    """Replies and bounces of the other branch would go to the owner of this one's list."""
    trace = b"Return-Path: <author@x>\nEnvelope-to: a-r@y, b-q@z\n"
    (maildir / "new" / "1.m").write_bytes(trace + b"\ntext\n")
    with serving(answer_all()) as server:
        assert run("--sender", "owner@hub", maildir, "a-", server.address).returncode == 0
        assert run(maildir, "b-", server.address).returncode == 0
    assert [(p.sender, p.recipients) for p in server.packages] == [
        (b"owner@hub", (b"r@y",)),
        (b"author@x", (b"q@z",)),
    ]
    assert names(maildir / "new") == names(maildir / "envelope") == []


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
