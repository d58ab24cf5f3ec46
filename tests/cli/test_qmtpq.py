"""`qmtpq` without a daemon: what it lists, what it changes, and what it refuses."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from maildirqmtp import descriptor_limit
from maildirqmtp.cli import queue_changes, queue_output, status
from maildirqmtp.cli.qmtpq import main
from maildirqmtp.daemon import listing
from maildirqmtp.daemon.snapshot import Snapshot, WaitingMessage
from maildirqmtp.daemon.status import write as write_status
from maildirqmtp.errors import LocalError
from maildirqmtp.forwarder import queued_message
from maildirqmtp.forwarder.report import Counters
from maildirqmtp.forwarder.route import Route
from maildirqmtp.maildir import holds, locking
from maildirqmtp.maildir.maildir import Maildir
from maildirqmtp.transport.endpoint import TcpEndpoint
from tests.helpers import (
    add_message,
    add_sidecar,
    json_events,
    make_maildir,
    make_older,
    names,
    sidecar,
    snapshot,
)

Capture = pytest.CaptureFixture[str]


def fail(path: Path, name: str, *recipients: str, why: str = "Dno such user") -> None:
    """Put a message into a failed maildir, as the forwarder does."""
    add_message(path, name)
    add_sidecar(path, name, "s@x", *recipients)
    file = path / "envelope" / f"{name}.json"
    content = json.loads(file.read_text())
    at = "2026-01-31T12:00:00Z"
    content["failures"] = [{"recipient": r, "response": why, "at": at} for r in recipients]
    file.write_text(json.dumps(content))


@pytest.fixture
def failed(path: Path) -> Path:
    """The failed maildir of `path`."""
    return make_maildir(path / ".Failed")


def qmtpq(capsys: Capture, code: int, *words: str | Path) -> tuple[str, str]:
    """Run it; return what it prints on standard output and standard error."""
    try:
        found = main(list(map(str, words)))
    except SystemExit as stop:
        found = int(stop.code or 0)
    out, err = capsys.readouterr()
    assert found == code, err
    return out, err


def listed(capsys: Capture, *words: str | Path) -> list[dict[str, Any]]:
    """Return the objects of `qmtpq list --json`."""
    return json_events(qmtpq(capsys, 0, "list", "--json", *words)[0])


def wide(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    """Have standard output be a terminal of so many columns."""
    monkeypatch.setattr(queue_output, "columns", lambda: columns)


# List


@pytest.mark.parametrize("words", [["list", "--json"], ["hold", "--json", "--all"]])
def test_a_file_of_many_routes_is_read_to_its_end(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    """The daemon of this file serves them all; the 200th maildir could not be opened."""
    routes = []
    for number in range(30):
        path = make_maildir(tmp_path / f"{number}")
        add_message(path, f"{number}.a")
        routes.append(f'[[route]]\nmaildir = "{path}"\nserver = "127.0.0.1:1"\n')
    file = tmp_path / "qmtp.toml"
    file.write_text("".join(routes))
    monkeypatch.setattr(descriptor_limit, "_before", None)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    few = len(os.listdir("/proc/self/fd")) + 60
    resource.setrlimit(resource.RLIMIT_NOFILE, (few, hard))
    try:
        out, err = qmtpq(capsys, 0, *words, "--config", file)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert (len(json_events(out)), err) == (30, "")


def test_an_empty_queue(path: Path, capsys: Capture) -> None:
    """Exit code 0, as all that was asked was done."""
    assert qmtpq(capsys, 0, "list", path) == (f"{path}: 0 waiting; no daemon\n", "")
    assert listed(capsys, path) == []


def test_what_waits_and_what_has_failed(path: Path, failed: Path, capsys: Capture) -> None:
    """Each with its age, size, recipients and reason, the oldest first."""
    add_message(path, "1.a")
    make_older(path / "new" / "1.a", 7_200)
    add_message(path, "2.held", b"text\n", None, None)
    add_message(path, "3.many")
    add_sidecar(path, "3.many", "s@x", "a@y", "b@y", "c@y")
    fail(failed, "1.f", "no@y")
    before = snapshot(path)
    one, held, many, refused = listed(capsys, path)
    assert (one["message"], one["state"], one["sender"]) == ("1.a", "waiting", "sender@example.org")
    assert one["age_s"] == pytest.approx(7_200, abs=60)
    assert (held["state"], held["sender"], held["recipients"]) == ("held", None, [])
    assert held["reason"].startswith("no envelope")
    assert many["recipients"] == ["a@y", "b@y", "c@y"]
    assert (refused["state"], refused["reason"]) == ("failed", "no such user")
    assert refused["maildir"] == str(failed)
    lines = qmtpq(capsys, 0, "list", path)[0].splitlines()
    assert lines[0] == f"{path}: 3 waiting; no daemon"
    assert lines[1].split() == ["AGE", "SIZE", "TRIES", "NEXT", "NAME", "FOR"]
    assert lines[2].split()[0] == "2.0h"
    assert lines[2].split()[2:] == ["-", "-", "1.a", "recipient@example.net"]
    assert lines[4].startswith("        held: no envelope")
    assert lines[5].endswith("a@y and 2 more")
    assert lines[6] == f"{failed}: 1 failed"
    assert lines[9].strip() == "failed: no such user"
    assert snapshot(path) == before


@pytest.mark.parametrize("width", [60, 80, 132])
def test_a_list_fits_the_terminal(
    path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    """No line wraps, and the names that are shown mean one message each."""
    made = [f"1800000000.M12345{n}P77Q1.a-host-with-a-long-name.example.org" for n in range(9)]
    for name in made:
        add_message(path, name, recipient=b"somebody.with.a.long.name@example.net")
    add_message(path, "2.held", b"text\n", None, None)
    wide(monkeypatch, width)
    lines = qmtpq(capsys, 0, "list", path)[0].splitlines()
    assert max(map(len, lines)) <= width
    shown = [word for line in lines for word in line.split() if word.startswith("1800")]
    assert shown == [f"1800000000.M12345{n}+" for n in range(9)]
    for name, short in zip(made, shown, strict=True):
        assert [one["message"] for one in listed(capsys, path, short)] == [name]


def test_a_terminal_gets_a_hundred_and_a_pipe_all(
    path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A screen is not flooded, and a script misses none."""
    for number in range(103):
        add_message(path, f"{number + 1}.a")
    assert len(listed(capsys, path)) == 103
    assert qmtpq(capsys, 0, "list", path)[0].count("recipient@") == 103
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    wide(monkeypatch, 80)
    out, _ = qmtpq(capsys, 0, "list", path)
    assert out.count("recipient@") == 100
    assert out.endswith("  and 3 more; --limit lists them\n")
    assert len(listed(capsys, path, "--limit", "2")) == 2


def test_filters_leave_the_others_out(path: Path, failed: Path, capsys: Capture) -> None:
    """By recipient, sender, age, reason and state."""
    add_message(path, "1.a", sender=b"", recipient=b"ann@one.example")
    make_older(path / "new" / "1.a", 90_000)
    add_message(path, "2.b", recipient=b"bob@two.example")
    add_message(path, "3.held", b"text\n", None, None)
    fail(failed, "4.f", "dan@two.example")

    def found(*words: str) -> list[str]:
        return [one["message"] for one in listed(capsys, path, *words)]

    assert found("--to", "@two.example") == ["2.b", "4.f"]
    assert found("--to", "ANN@one.example") == ["1.a"]
    assert found("--from", "") == found("--from", "<>") == ["1.a"]
    assert found("--older", "1d") == ["1.a"]
    assert found("--why", "no such") == found("--failed") == ["4.f"]
    assert found("--held") == ["3.held"]
    assert found("--waiting") == ["1.a", "2.b"]
    assert found("--to", "@two.example", "--waiting") == ["2.b"]
    assert found("--to", "@one.example", "--from", "nobody@x") == []


def test_a_daemon_tells_tries_and_reasons(path: Path, capsys: Capture) -> None:
    """What only its memory has."""
    add_message(path, "1.a")
    waiters = (WaitingMessage(b"1.a", 3, "busy\x1b[2J, later", time.time() + 700),)
    route = Route(os.fsencode(path), TcpEndpoint("mx.example.org"))
    with Maildir(os.fsencode(path)) as opened:
        opened.lock()
        write_status(Snapshot(route, "connected", Counters().as_dict(), waiters=waiters))
        (one,) = listed(capsys, path)
        assert (one["tries"], one["reason"]) == (3, "busy?[2J, later")
        assert one["next"] == pytest.approx(time.time() + 700, abs=60)
        lines = qmtpq(capsys, 0, "list", path)[0].splitlines()
        assert lines[0].endswith(f"process {os.getpid()}, connected, to mx.example.org:209")
        assert lines[2].split()[2:4] == ["3", "11.7m"]
        shown = qmtpq(capsys, 0, "show", path, "1.a")[0]
        assert "\ntries:     3, next in 11." in shown
    (one,) = listed(capsys, path)
    assert (one["tries"], one["next"], one["reason"]) == (None, None, "")


@pytest.mark.parametrize(("prefix", "cur"), [(b"", True), (b"a-", True), (b"a-", False)])
def test_what_is_in_cur_waits_where_the_daemon_takes_it(
    path: Path, capsys: Capture, prefix: bytes, cur: bool
) -> None:
    """Else what a user keeps there would be dropped with the rest; or be sent, though held."""
    add_message(path, "1.new", recipient=b"a-b@y")
    add_message(path, "2.read:2,S", recipient=b"a-b@y", folder="cur")
    route = Route(os.fsencode(path), TcpEndpoint("mx.example.org"), prefix=prefix, include_cur=cur)
    with Maildir(os.fsencode(path)) as opened:
        opened.lock()
        write_status(Snapshot(route, "connected", Counters().as_dict()))
        qmtpq(capsys, 0, "hold", path, "--to", "a-b@y")
        status.show_maildir(os.fsencode(path), {}, True)
        assert json_events(capsys.readouterr().out)[0]["messages"] == 1 + cur
    on_hold = [one["message"] for one in listed(capsys, path, "--cur", "--held")]
    assert on_hold == ["1.new", "2.read:2,S"][: 1 + cur]


def test_a_message_waits_whose_envelope_the_daemon_was_given(path: Path, capsys: Capture) -> None:
    """It is on its way, and is not to be dropped as one that cannot be sent."""
    add_message(path, "1.a", b"text\n", None, None)
    add_message(path, "2.b", bytes(2_000), None, None)
    given: dict[str, Any] = {
        "sender": b"me@x",
        "recipients": (b"you@y", b"\xff@y"),
        "max_bytes": 1_000,
    }
    route = Route(os.fsencode(path), TcpEndpoint("mx.example.org"), **given)
    with Maildir(os.fsencode(path)) as opened:
        opened.lock()
        write_status(Snapshot(route, "connected", Counters().as_dict()))
        assert [
            (one["state"], one["sender"], one["recipients"]) for one in listed(capsys, path)
        ] == [
            ("waiting", "me@x", ["you@y", "\udcff@y"]),
            ("held", "me@x", ["you@y", "\udcff@y"]),
        ]
        status.show_maildir(os.fsencode(path), {}, True)
        first, second = json_events(capsys.readouterr().out)[0]["waiting"]
        assert (first["sender"], first["reason"]) == ("me@x", "")
        assert "--max-size" in second["reason"]


@pytest.mark.parametrize("reason", [holds.REASON, holds.BOUNCING])
def test_a_message_that_is_released_is_not_said_to_be_on_hold(
    path: Path, capsys: Capture, reason: str
) -> None:
    """With the server down, the daemon's status file said so for hours after the release."""
    add_message(path, "1.a")
    route = Route(os.fsencode(path), TcpEndpoint("mx.example.org"))
    waiters = (WaitingMessage(b"1.a", 1, reason, 1_900_000_000.0),)
    with Maildir(os.fsencode(path)) as opened:
        opened.lock()
        write_status(Snapshot(route, "backing off", Counters().as_dict(), waiters=waiters))
        (entry,) = listed(capsys, path)
        assert (entry["state"], entry["reason"], entry["tries"]) == ("waiting", "", 1)
        status.show_maildir(os.fsencode(path), {}, True)
        assert json_events(capsys.readouterr().out)[0]["waiting"][0]["reason"] == ""
        qmtpq(capsys, 0, "hold", path, "1.a")
        (entry,) = listed(capsys, path)
        assert (entry["state"], entry["reason"]) == ("held", reason)
        status.show_maildir(os.fsencode(path), {}, True)
        shown = json_events(capsys.readouterr().out)[0]["waiting"][0]["reason"]
        assert shown == f"held: {holds.REASON}"


@pytest.mark.parametrize("configured", [True, False])
def test_a_recipient_may_be_named_as_the_log_does(
    path: Path,
    capsys: Capture,
    prefixed: Callable[..., list[str | Path]],
    configured: bool,
) -> None:
    """Without the prefix, which log and bounces leave out; held were none, without a word."""
    add_message(path, "1.a", recipient=b"alias-ppp-eve@y")
    add_message(path, "2.b", recipient=b"alias-ppp-bob@y")
    route = Route(os.fsencode(path), TcpEndpoint("mx.example.org"), prefix=b"alias-ppp-")
    with Maildir(os.fsencode(path)) as opened:
        opened.lock()
        write_status(Snapshot(route, "connected", Counters().as_dict()))
        where = prefixed("alias-ppp-") if configured else [path]
        for wanted in ("eve@y", "alias-ppp-EVE@y"):
            (one,) = listed(capsys, *where, "--to", wanted)
            assert one["message"] == "1.a"
        assert listed(capsys, *where, "--to", "ppp-eve@y") == []


def test_a_recipient_of_a_failed_message_may_be_named_as_the_log_does(
    path: Path, failed: Path, capsys: Capture
) -> None:
    """`resend --to` found nothing, and said nothing, while the daemon could tell the prefix."""
    fail(failed, "1.f", "alias-ppp-eve@y")
    fail(failed, "2.f", "alias-ppp-bob@y")
    route = Route(os.fsencode(path), TcpEndpoint("mx.example.org"), prefix=b"alias-ppp-")
    with Maildir(os.fsencode(path)) as opened:
        opened.lock()
        write_status(Snapshot(route, "connected", Counters().as_dict()))
        (one,) = listed(capsys, path, "--failed", "--to", "eve@y")
        assert one["message"] == "1.f"


def test_a_summary_counts_by_domain_and_reason(path: Path, failed: Path, capsys: Capture) -> None:
    """What differs from message to message, like an address or an id, makes no group of its own."""
    for number in range(3):
        to = [f"{n}@{domain}" for n in (1, 2) for domain in ("One.example", "two.example")]
        add_message(path, f"{number + 1}.a")
        add_sidecar(path, f"{number + 1}.a", "s@x", *to)
        why = f"D550 5.1.1 <u{number}@y>: no such user, id 4fXY12Z{number}AB"
        fail(failed, f"{number + 1}.f", f"u{number}@y", why=why)
    make_older(path / "new" / "2.a", 7_200)
    found = json_events(qmtpq(capsys, 0, "list", "--summary", "--json", path)[0])
    for one, domain in zip(found[:2], ("one.example", "two.example"), strict=True):
        assert (one["domain"], one["messages"], one["recipients"]) == (domain, 3, 6)
        assert one["oldest_s"] == pytest.approx(7_200, abs=60)
    assert [one["reason"] for one in found[2:]] == ["550 5.1.1 ... no such user, id ..."]
    assert (found[2]["state"], found[2]["messages"]) == ("failed", 3)
    lines = qmtpq(capsys, 0, "list", "--summary", path)[0].splitlines()
    assert lines[1].split() == ["MESSAGES", "OLDEST", "DOMAIN", "WHY"]
    assert lines[2].split() == ["3", "2.0h", "one.example"]
    assert lines[-1].split(maxsplit=3)[3] == "failed: 550 5.1.1 ... no such user, id ..."


def test_names_only(path: Path, failed: Path, capsys: Capture) -> None:
    """What a shell completes, and a script gives to the next command."""
    add_message(path, "1.a")
    add_message(path, "2.b", recipient=b"other@y")
    fail(failed, "3.f", "no@y")
    assert qmtpq(capsys, 0, "list", "--names", path)[0] == "1.a\n2.b\n3.f\n"
    assert qmtpq(capsys, 0, "list", "--names", "--to", "other@y", path)[0] == "2.b\n"
    assert qmtpq(capsys, 0, "list", "--names", "--limit", "1", path)[0] == "1.a\n3.f\n"


def test_names_and_addresses_cannot_write_to_the_terminal(path: Path, capsys: Capture) -> None:
    """Whoever may deliver chooses them; JSON has them as they are."""
    add_message(path, b"1.\x1b[2J\xff", recipient=b"a\x1b]0;x\x07@y")
    (one,) = listed(capsys, path)
    assert os.fsencode(one["message"]) == b"1.\x1b[2J\xff"
    assert one["recipients"] == ["a\x1b]0;x\x07@y"]
    assert "\x1b" not in qmtpq(capsys, 0, "list", path)[0]
    assert "\x1b" not in qmtpq(capsys, 0, "show", path, "1.+")[0]


def test_one_maildir_that_cannot_be_read_does_not_hide_the_others(
    tmp_path: Path, path: Path, capsys: Capture
) -> None:
    """And the exit code says that something is missing."""
    add_message(path, "1.a")
    file = tmp_path / "m.toml"
    routes = [f'[[route]]\nmaildir = "{m}"\nserver = "h"\n' for m in (tmp_path / "none", path)]
    file.write_text("".join(routes))
    out, err = qmtpq(capsys, 111, "list", "--config", file)
    assert out.startswith(f"{path}: 1 waiting")
    assert err.startswith("qmtpq: cannot open the maildir directory")


def test_routes_of_one_maildir_list_it_once(tmp_path: Path, path: Path, capsys: Capture) -> None:
    """With all recipients, whatever the prefixes, and the envelope that the routes give."""
    add_message(path, "1.a", recipient=b"p-a@y")
    add_message(path, "2.b", sender=None, recipient=b"q-b@y")
    add_message(path, "3.c:2,S", recipient=b"q-c@y", folder="cur")
    fail(make_maildir(tmp_path / "F"), "4.f", "p-d@y")
    file = tmp_path / "m.toml"
    file.write_text(
        f'[defaults]\nserver = "h"\ndefault-sender = "me@x"\nfailed = "{tmp_path / "F"}"\n'
        f'[[route]]\nmaildir = "{path}"\nprefix = "p-"\n'
        f'[[route]]\nmaildir = "{path}"\nprefix = "q-"\n'
    )
    found = listed(capsys, "--config", file)
    assert [one["message"] for one in found] == ["1.a", "2.b", "3.c:2,S", "4.f"]
    assert [one["sender"] for one in found][1] == "me@x"
    qmtpq(capsys, 0, "resend", "--config", file, "4.f")
    (again,) = set(names(path / "new")) - {"1.a", "2.b"}
    assert sidecar(path, again)["recipients"] == ["p-d@y"]


# Show


def test_all_that_is_known_of_a_message(path: Path, failed: Path, capsys: Capture) -> None:
    """Envelope, what was answered, and its header; the text is nobody's business."""
    fail(failed, "1.f", "no@y", "none@y")
    out, _ = qmtpq(capsys, 0, "show", path, "1.f")
    for line in (
        f"file:      {failed}/new/1.f",
        "state:     failed",
        "sender:    <s@x>",
        "recipient: <no@y>",
        "failed:    <none@y> at 2026-01-31T12:00:00Z: no such user",
        "  Subject: test",
    ):
        assert line in out.splitlines()
    assert "Hello" not in out
    (found,) = json_events(qmtpq(capsys, 0, "show", "--json", path, "1.f")[0])
    assert "Subject: test" in found["header"]
    assert [f["recipient"] for f in found["failures"]] == ["no@y", "none@y"]


def test_a_held_message_can_be_shown(path: Path, capsys: Capture) -> None:
    """It is the one that people ask about."""
    add_message(path, "1.a", b"Subject: lost\n\n", None, None)
    out, _ = qmtpq(capsys, 0, "show", path, f"{path}/new/1.a")
    assert "state:     held" in out
    assert "why:       no envelope" in out
    assert "  Subject: lost" in out


@pytest.mark.parametrize("command", ["show", "list", "drop", "resend"])
def test_a_name_that_is_not_there_is_told(path: Path, capsys: Capture, command: str) -> None:
    """Also one that only begins like another: that is another message."""
    add_message(path, "1.abc")
    _, err = qmtpq(capsys, 111, command, path, "1.ab")
    assert "no message 1.ab: it was sent or removed" in err
    assert names(path / "new") == ["1.abc"]


@pytest.mark.parametrize("command", ["show", "drop", "hold", "release", "retry"])
def test_a_thousand_names_are_looked_for_at_once(
    path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    """One listing of the maildir for each took 23 seconds for 3,000 of them."""
    for number in range(5):
        add_message(path, f"{number}.a")
    listings: list[Maildir] = []

    def scan(maildir: Maildir, include_cur: bool) -> Any:
        listings.append(maildir)
        return found(maildir, include_cur)

    found = Maildir.scan
    monkeypatch.setattr(Maildir, "scan", scan)
    words = ["--yes"] if command == "drop" else []
    main([command, *words, str(path), "0.a", "1.a", "2.+", f"{path}/new/3.a"])
    capsys.readouterr()
    assert len(listings) == 1


def test_a_whole_name_with_plus_at_its_end_is_meant_before_longer_ones(
    path: Path, capsys: Capture
) -> None:
    """`drop` refused it: it was more than one message."""
    for name in ("1.a+", "1.ab", "1.a+c"):
        add_message(path, name)
    qmtpq(capsys, 0, "drop", "--yes", path, "1.a+", "1.ab")
    assert names(path / "new") == ["1.a+c"]


def test_a_name_is_not_said_to_be_gone_where_the_maildir_cannot_be_listed(
    path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may well be there: nobody has looked."""
    add_message(path, "1.a")

    def scan(*_: object) -> None:
        raise LocalError("cannot list it")

    monkeypatch.setattr(Maildir, "scan", scan)
    _, err = qmtpq(capsys, 111, "drop", "--yes", path, "1.a")
    assert "cannot list it" in err
    assert "no message 1.a where it could be looked for" in err


@pytest.mark.parametrize("words", [["drop", "--yes", "--all"], ["hold", "--all"]])
def test_it_is_told_where_nobody_reads_what_was_done(
    path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    """After `| head` the messages that are left were taken for held, or dropped."""
    for number in range(3):
        add_message(path, f"{number}.a")
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w", buffering=1) as broken:
        monkeypatch.setattr(sys, "stdout", broken)
        assert main([*words, str(path)]) == 111
        monkeypatch.undo()
    assert "standard output: Broken pipe; messages may be left as" in capsys.readouterr().err


@pytest.mark.parametrize("all_of_them", [False, True])
def test_a_file_that_cannot_be_looked_at_stops_no_other(
    path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, all_of_them: bool
) -> None:
    """As one that another host has just removed (NFS), or a bad block: the rest was not listed."""
    for number in range(30):
        add_message(path, f"{number}.a")

    def stat(name: Any, *arguments: Any, **options: Any) -> os.stat_result:
        ours = isinstance(name, bytes) and name.endswith(b".a")
        if ours and (all_of_them or name == b"1.a"):
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return found(name, *arguments, **options)

    found = os.stat
    monkeypatch.setattr(os, "stat", stat)
    out, err = qmtpq(capsys, 111, "list", "--names", path)
    assert len(out.splitlines()) == (0 if all_of_them else 29)
    assert err.count("cannot look at") == (20 if all_of_them else 1)
    out, err = qmtpq(capsys, 111, "drop", "--yes", path, "1.a", "2.a")
    assert "no message 1.a where it could be looked for" in err
    assert out == ("" if all_of_them else f"dropped {path}/new/2.a\n")


@pytest.mark.parametrize("flag", ["from", "why", "older", "config", "failed-maildir"])
def test_two_dashes_are_no_value(path: Path, capsys: Capture, flag: str) -> None:
    """For argparse it was a list: a traceback, and with --from the bounces were dropped."""
    add_message(path, "1.a", sender=b"")
    _, err = qmtpq(capsys, 100, "drop", "--yes", f"--{flag}=--", path)
    assert "-- ends the options, and is no value" in err
    assert names(path / "new") == ["1.a"]


# Drop


@pytest.mark.parametrize("words", [("drop", "--yes", "--older", "1d"), ("release", "--held")])
def test_a_name_that_the_filters_leave_out_is_not_said_to_be_gone(
    path: Path, capsys: Capture, words: tuple[str, ...]
) -> None:
    """Who reads that it was sent does not look for it again."""
    add_message(path, "1.a")
    _, err = qmtpq(capsys, 111, *words, path, "1.a")
    assert err == "qmtpq: 1.a is there, but is not what the other options ask for\n"
    assert names(path / "new") == ["1.a"]


def test_drop_asks(path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only yes is yes; the end of the input is not."""
    add_message(path, "1.a")
    for answer in ("", "\n", "n\n", "yess\n"):
        monkeypatch.setattr(sys, "stdin", io.StringIO(answer))
        out, err = qmtpq(capsys, 111, "drop", path, "1.a")
        assert "drop this message for good, telling nobody? [y/N]" in err
        assert "1.a   recipient@example.net" in err
        assert (out, names(path / "new")) == ("", ["1.a"])
    monkeypatch.setattr(sys, "stdin", io.StringIO("Y\n"))
    assert qmtpq(capsys, 0, "drop", path, "1.a")[0] == f"dropped {path}/new/1.a\n"
    assert names(path / "new") == []


@pytest.mark.parametrize("how", ["touched", "moved by a mail reader"])
def test_what_changes_before_the_yes_is_still_on_hold(
    path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """An administrator held it: the daemon must not send it because it could not be dropped."""
    add_message(path, "1.a")
    add_message(path, "2.b")
    assert qmtpq(capsys, 0, "hold", path, "1.a", "2.b")[1] == ""

    class Yes:
        def readline(self) -> str:
            if how == "touched":
                os.utime(path / "new" / "1.a", (5, 5))
            else:
                (path / "new" / "1.a").rename(path / "cur" / "1.a:2,S")
            return "y\n"

    monkeypatch.setattr(sys, "stdin", Yes())
    out, err = qmtpq(capsys, 111, "drop", path, "1.a", "2.b")
    assert out == f"dropped {path}/new/2.b\n"
    assert "1.a: it " in err
    listed = qmtpq(capsys, 0, "list", "--names", "--held", "--cur", path)[0]
    assert [Path(line).name.partition(":")[0] for line in listed.splitlines()] == ["1.a"]


def test_drop_by_filter_leaves_failed_ones_alone(path: Path, failed: Path, capsys: Capture) -> None:
    """They are dropped where --failed says so."""
    add_message(path, "1.a")
    add_message(path, "2.b", recipient=b"other@y")
    fail(failed, "3.f", "recipient@example.net")
    (event,) = json_events(
        qmtpq(capsys, 0, "drop", "--yes", "--json", path, "--to", "recipient@example.net")[0]
    )
    assert event == {"event": "dropped", "maildir": str(path), "message": "1.a"}
    assert (names(path / "new"), names(failed / "new")) == (["2.b"], ["3.f"])
    qmtpq(capsys, 0, "drop", "--yes", path, "--failed", "--all")
    assert (names(path / "new"), names(failed / "new")) == (["2.b"], [])
    assert names(failed / "envelope") == []


def test_a_message_is_not_dropped_for_a_recipient_that_was_corrected(
    path: Path, failed: Path, capsys: Capture
) -> None:
    """Its sidecar still tells that the wrong one failed; the right one would never get it."""
    fail(failed, "1.f", "dan@exmaple.net")
    qmtpq(capsys, 0, "resend", path, "1.f", "--recipient", "dan@example.net")
    (waits,) = names(path / "new")
    add_message(path, "2.b", recipient=b"bob@exmaple.net")
    qmtpq(capsys, 0, "drop", "--yes", path, "--to", "@exmaple.net")
    assert names(path / "new") == [waits]


def test_a_name_in_both_maildirs_must_be_told_apart(
    path: Path, failed: Path, capsys: Capture
) -> None:
    """Some recipients failed, and others still wait for it."""
    add_message(path, "1.a")
    fail(failed, "1.a", "no@y")
    _, err = qmtpq(capsys, 111, "drop", "--yes", path, "1.a")
    assert "1.a is more than one message" in err
    assert names(path / "new") == names(failed / "new") == ["1.a"]
    qmtpq(capsys, 0, "drop", "--yes", path, "1.a", "--failed")
    assert (names(path / "new"), names(failed / "new")) == (["1.a"], [])


@pytest.mark.parametrize("command", [["drop", "--yes"], ["show"]])
def test_a_path_says_which_of_two_is_meant(
    path: Path, failed: Path, capsys: Capture, command: list[str]
) -> None:
    """The path that the refusal itself shows was refused again, and two in one maildir for ever."""
    for where, folder in ((path, "new"), (path, "cur"), (failed, "new")):
        add_message(where, "1.a", folder=folder)
    _, err = qmtpq(capsys, 111, "drop", "--yes", "--cur", path, "1.a")
    for one in (f"{path}/cur/1.a", f"{path}/.Failed/new/1.a", f"{path}/new/1.a"):
        assert one in err
        out, _ = qmtpq(capsys, 0, *command, "--cur", path, one)
        assert out.count("/1.a") == 1
        assert one in out


def test_a_short_name_that_means_two_drops_none(path: Path, capsys: Capture) -> None:
    """One of them is not meant."""
    add_message(path, "1.ab")
    add_message(path, "1.ac")
    _, err = qmtpq(capsys, 111, "drop", "--yes", path, "1.a+")
    assert "more than one message" in err
    assert names(path / "new") == ["1.ab", "1.ac"]
    qmtpq(capsys, 0, "drop", "--yes", path, "1.ab+", "1.ab")
    assert names(path / "new") == ["1.ac"]


def test_a_name_that_a_script_has_not_set_drops_nothing(path: Path, capsys: Capture) -> None:
    """`"$NAME+"` would mean whatever is there."""
    add_message(path, "1.a")
    _, err = qmtpq(capsys, 111, "drop", "--yes", path, "+")
    assert "no message +" in err
    assert names(path / "new") == ["1.a"]


def test_what_cannot_be_sent_can_be_dropped(path: Path, capsys: Capture) -> None:
    """A message is held, and its sidecar of no use: both go."""
    add_message(path, "1.a")
    add_sidecar(path, "1.a", "s@x", "a@y")
    (path / "envelope" / "1.a.json").write_text("{")
    qmtpq(capsys, 0, "drop", "--yes", path, "--held", "--all")
    assert names(path / "new") == names(path / "envelope") == []


def test_a_message_that_cannot_be_removed_does_not_hide_those_that_were(
    path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A script reads which are gone, and none of these stays on hold for ever."""
    for name in ("1.a", "2.b", "3.c"):
        add_message(path, name)
        add_sidecar(path, name, "s@x", "a@y")
    qmtpq(capsys, 0, "hold", path, "--all")
    unlink = os.unlink

    def broken(name: str | bytes, **fds: int) -> None:
        if os.fsdecode(name) in ("2.b", "3.c.json"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        unlink(name, **fds)

    monkeypatch.setattr(os, "unlink", broken)
    out, err = qmtpq(capsys, 111, "drop", "--yes", "--json", path, "--all")
    assert [event["message"] for event in json_events(out)] == ["1.a", "3.c"]
    assert "2.b: Input/output error" in err
    assert names(path / "new") == ["2.b"]
    assert set(json.loads((path / ".maildirqmtp-state.json").read_text())["held"]) == {"2.b"}


def test_a_state_file_that_cannot_be_written_does_not_hide_what_was_dropped(
    path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both is told: what is gone, and that its hold is left."""
    add_message(path, "1.a")
    qmtpq(capsys, 0, "hold", path, "1.a")

    def full(*_: object, **__: object) -> None:
        raise LocalError("No space left on device")

    monkeypatch.setattr(holds, "change", full)
    out, err = qmtpq(capsys, 111, "drop", "--yes", path, "1.a")
    assert (out, err) == (f"dropped {path}/new/1.a\n", "qmtpq: No space left on device\n")


def test_more_than_one_batch_is_dropped(
    path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of it."""
    monkeypatch.setattr("maildirqmtp.maildir.requeue.BATCH", 2)
    for number in range(5):
        add_message(path, f"{number + 1}.a")
    assert qmtpq(capsys, 0, "drop", "--yes", "--all", path)[0].count("dropped ") == 5
    assert names(path / "new") == []


@pytest.mark.parametrize("command", ["release", "hold", "retry"])
def test_a_failed_message_is_not_said_to_be_gone(
    path: Path, failed: Path, capsys: Capture, command: str
) -> None:
    """`list` has just shown it; the way to send it again is another one."""
    fail(failed, "1.f", "no@y")
    _, err = qmtpq(capsys, 111, command, path, "1.f")
    assert "has failed (qmtpq list --failed; qmtpq resend sends it again)" in err
    _, err = qmtpq(capsys, 111, "list", path, "2.f")
    assert err == "qmtpq: no message 2.f: it was sent or removed, or was never there\n"


def test_a_message_that_waits_is_not_said_to_be_gone(
    path: Path, failed: Path, capsys: Capture
) -> None:
    """`resend --recipient` looks like the way out for one without an envelope."""
    _, err = qmtpq(capsys, 111, "resend", path, "1.w", "--recipient", "a@y")
    assert "no message 1.w: it was sent or removed, or waits (qmtpq list --waiting; " in err


# Resend


def test_failed_messages_are_sent_again_to_those_who_failed(
    path: Path, failed: Path, capsys: Capture
) -> None:
    """Or to those who are named instead; what failed before is forgotten for them."""
    fail(failed, "1.f", "no@y", "none@y")
    fail(failed, "2.g", "dan@y")
    out, _ = qmtpq(capsys, 0, "resend", path, "1.f")
    (name,) = names(path / "new")
    assert out == f"resent {failed}/new/1.f as {name}\n"
    assert sidecar(path, name) == {
        "version": 1,
        "sender": "s@x",
        "recipients": ["no@y", "none@y"],
    }
    words = ("resend", "--json", path, "--all", "--recipient", "eve@y", "--recipient", "<fay@y>")
    (event,) = json_events(qmtpq(capsys, 0, *words)[0])
    content = sidecar(path, event["new_name"])
    assert content["recipients"] == ["eve@y", "fay@y"]
    assert [f["recipient"] for f in content["failures"]] == ["dan@y"]
    assert names(failed / "new") == names(failed / "envelope") == []


@pytest.fixture
def prefixed(path: Path, tmp_path: Path) -> Callable[..., list[str | Path]]:
    """Return what makes a configuration of routes with these prefixes; its option."""

    def make(*prefixes: str) -> list[str | Path]:
        file = tmp_path / "qmtp.toml"
        route = '[[route]]\nmaildir = "{}"\nprefix = "{}"\nserver = "127.0.0.1:1"\n'
        file.write_text("".join(route.format(path, prefix) for prefix in prefixes))
        return ["--config", file]

    return make


@pytest.mark.parametrize("wanted", ["eve@y", "alias-ppp-eve@y"])
def test_a_new_recipient_gets_the_prefix_of_the_route(
    path: Path,
    failed: Path,
    capsys: Capture,
    prefixed: Callable[..., list[str | Path]],
    wanted: str,
) -> None:
    """Without it, it would be for others, and the message wait for ever, with exit code 0."""
    fail(failed, "1.f", "alias-ppp-no@y")
    words = ("resend", *prefixed("alias-ppp-"), "--all", "--recipient", wanted)
    qmtpq(capsys, 0, *words)
    (name,) = names(path / "new")
    assert sidecar(path, name)["recipients"] == ["alias-ppp-eve@y"]


def test_a_running_daemon_tells_the_prefix_of_a_new_recipient(
    path: Path, failed: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for bounces; who names the directory need not know it."""
    monkeypatch.setattr(queue_changes, "served", lambda queue: [(b"p-", None)])
    fail(failed, "1.f", "p-no@y")
    qmtpq(capsys, 0, "resend", path, "--all", "--recipient", "eve@y")
    (name,) = names(path / "new")
    assert sidecar(path, name)["recipients"] == ["p-eve@y"]


def test_a_new_recipient_that_no_route_sends_to_is_refused(
    path: Path, failed: Path, capsys: Capture, prefixed: Callable[..., list[str | Path]]
) -> None:
    """Which of two routes is meant, only the administrator knows."""
    fail(failed, "1.f", "a-no@y")
    routes = prefixed("a-", "b-")
    _, err = qmtpq(capsys, 111, "resend", *routes, "--all", "--recipient", "eve@y")
    assert err == (
        f"qmtpq: no route of {path} sends to eve@y; write it with one of the prefixes a-, b-\n"
    )
    assert names(path / "new") == []
    assert names(failed / "new") == ["1.f"]
    qmtpq(capsys, 0, "resend", *routes, "--all", "--recipient", "b-eve@y")
    fail(failed, "2.g", "no@y")
    words = ("resend", "--json", *prefixed("a-", ""), "--all", "--recipient", "eve@y")
    (event,) = json_events(qmtpq(capsys, 0, *words)[0])
    assert sidecar(path, event["new_name"])["recipients"] == ["eve@y"]


def test_resend_from_a_failed_maildir_elsewhere(
    tmp_path: Path, path: Path, capsys: Capture
) -> None:
    """Where the daemon has --failed."""
    other = make_maildir(tmp_path / "F")
    fail(other, "1.f", "no@y")
    qmtpq(capsys, 0, "resend", path, "--failed-maildir", other, "--to", "@y")
    assert len(names(path / "new")) == 1
    assert names(other / "new") == []


def test_a_failed_maildir_of_two_queues_must_be_told_which(
    tmp_path: Path, path: Path, capsys: Capture
) -> None:
    """A route to another server could not deliver it."""
    shared = make_maildir(tmp_path / "F")
    fail(shared, "1.f", "no@y")
    second = make_maildir(tmp_path / "second")
    file = tmp_path / "m.toml"
    routes = [f'[[route]]\nmaildir = "{m}"\nserver = "h"\n' for m in (path, second)]
    file.write_text(f'[defaults]\nfailed = "{shared}"\n' + "".join(routes))
    _, err = qmtpq(capsys, 111, "resend", "--config", file, "1.f")
    assert f"is the failed maildir of several: {path}, {second}" in err
    assert names(shared / "new") == ["1.f"]


def test_one_that_cannot_be_sent_does_not_stop_the_others(
    path: Path, failed: Path, capsys: Capture
) -> None:
    """It stays, and it says why."""
    for name in ("1.bad", "2.good"):
        fail(failed, name, "no@y")
    (failed / "envelope" / "1.bad.json").write_text("{")
    _, err = qmtpq(capsys, 111, "resend", path, "--all")
    assert f"{failed}/new/1.bad: its sidecar is no JSON" in err
    assert names(failed / "new") == ["1.bad"]
    assert len(names(path / "new")) == 1


def test_two_administrators_do_not_send_it_twice(path: Path, failed: Path, capsys: Capture) -> None:
    """The second one is told who is at it."""
    fail(failed, "1.f", "no@y")
    with Maildir(os.fsencode(failed)) as first:
        first.lock()
        _, err = qmtpq(capsys, 111, "resend", path, "1.f")
    assert f"locked by process {os.getpid()}" in err
    assert names(failed / "new") == ["1.f"]
    assert names(path / "new") == []


# Retry, and wrong usage


@pytest.mark.parametrize("command", ["retry", "flush"])
def test_without_a_daemon_nobody_is_woken(path: Path, capsys: Capture, command: str) -> None:
    """Silence would say that it is being tried. A batch run would be killed by the signal."""
    with Maildir(os.fsencode(path)) as opened:
        opened.lock()
        out, err = qmtpq(capsys, 111, command, path)
    assert out == ""
    assert f"no daemon forwards {path}" in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("", "COMMAND"),
        ("list", "DIR or --config FILE is needed"),
        ("purge M", "invalid choice: 'purge'"),
        ("show M", "show needs the NAME"),
        ("drop M", "drop needs NAME"),
        ("drop M --waiting", "drop needs NAME"),
        ("resend M", "resend needs NAME"),
        ("drop M --why=", "--why: a text is needed"),
        ("drop M --all 1.a", "--all means all"),
        ("drop M --all --to a@y", "--all means all"),
        ("drop M 1.a --json", "write --yes as well"),
        ("resend M --all --held", "resend is about failed messages"),
        ("list M --held --failed", "leave nothing"),
        ("list M --all", "--all only makes sense with drop or bounce or resend or hold or release"),
        ("list M --yes", "--yes only makes sense with drop or bounce"),
        ("drop M 1.a --limit 3", "--limit only makes sense with list"),
        ("list M --recipient a@y", "--recipient only makes sense with resend"),
        ("list M --summary --limit 3", "--summary counts all messages"),
        ("list M --older soon", "--older: a time is a number"),
        ("list M --to a@y,b@y", "--to: "),
        ("hold M", "hold needs NAME"),
        ("release M --all --failed", "release is about messages that wait"),
        ("flush M 1.a", "flush takes only DIR"),
        ("retry M --to a@y", "write it without filters"),
        ("summary M 1.a", "a summary counts all messages"),
        ("list M --summary 1.a", "a summary counts all messages"),
        ("summary M --limit 3", "--limit only makes sense with list"),
        ("list M --names --json", "--names lists names only"),
        ("drop M 1.a --names", "--names only makes sense with list"),
        ("bounce M", "bounce needs NAME"),
        ("bounce M --failed", "bounce needs NAME"),
        ("bounce M 1.a --json", "bounce --json asks nobody; write --yes as well"),
        ("drop M 1.a --bounce-via server", "--bounce-via only makes sense with bounce"),
        ("bounce M 1.a --bounce-via pigeon", "--bounce-via"),
        ("list --config /nowhere.toml", "/nowhere.toml"),
        ("list --config /nowhere.toml --failed-maildir F", "stands in the file"),
    ],
)
def test_wrong_usage_changes_nothing(words: str, said: str, capsys: Capture) -> None:
    """And says what to write; exit code 100."""
    out, err = qmtpq(capsys, 100, *words.split())
    assert said in err
    assert out == ""
    assert "Traceback" not in err
    assert len(err.splitlines()) == 1


def test_help_and_version(capsys: Capture) -> None:
    """In 80 columns."""
    out, _ = qmtpq(capsys, 0, "--help")
    assert max(map(len, out.splitlines())) < 80
    assert "resend" in out
    assert qmtpq(capsys, 0, "--version")[0].startswith("qmtpq ")


# Words and sizes


@pytest.mark.parametrize(
    ("size", "shown"),
    [(0, "0"), (999, "999"), (1_000, "1.0k"), (999_949, "999.9k"), (999_950, "1.0M"),
     (40_600_000, "40.6M"), (3 * 10**16, "30000.0T")],
)  # fmt: skip
def test_sizes_are_for_people(size: int, shown: str) -> None:
    """The largest unit that fits."""
    assert queue_output.size_text(size) == shown


def test_a_short_name_is_no_other_names() -> None:
    """One name may be the beginning of another."""
    found = queue_output.shortest(["1800000000.M1P2.host", "1800000000.M1P2.host.1", "2.b"])
    assert found == ["1800000000.M1P2.host", "1800000000.M1P2.host.1", "2.b"]
    assert queue_output.shortest(["1800000000.M1P2.host"]) == ["1800000000.M+"]


def test_an_answer_that_is_no_text_is_no(
    path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ended with a traceback, where the locale is strict."""
    add_message(path, "1.a")
    answer = io.TextIOWrapper(io.BytesIO(b"\xff\n"), encoding="utf-8")
    monkeypatch.setattr(sys, "stdin", answer)
    _, complaint = qmtpq(capsys, 111, "drop", path, "--all")
    assert "nothing was dropped" in complaint
    assert names(path / "new") == ["1.a"]


def test_what_a_mail_reader_moves_meanwhile_is_found(
    path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With mutt on a large mailbox, a part was put on hold, and the rest was sent."""
    for number in range(3):
        add_message(path, f"{number}.a")
    real = listing.look_at

    def look_at(maildir: Maildir, place: Any, folder: Any, name: bytes, told: Any = None) -> Any:
        for file in (path / "new").iterdir():
            file.rename(path / "cur" / f"{file.name}:2,S")
        return real(maildir, place, folder, name, told)

    monkeypatch.setattr(listing, "look_at", look_at)
    output, _ = qmtpq(capsys, 0, "hold", path, "--cur", "--to", "recipient@example.net")
    assert output.count("held ") == 3
    monkeypatch.undo()
    for name in names(path / "cur"):
        assert holds.key(os.fsencode(name)) in held_now(path)


def held_now(path: Path) -> dict[str, object]:
    """Return what is on hold, by the state file."""
    found: dict[str, object] = json.loads((path / ".maildirqmtp-state.json").read_text())["held"]
    return found


def test_a_message_that_goes_while_it_is_looked_at_is_no_trouble(
    path: Path, failed: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one that another administrator has just resent it said that no sidecar says why."""
    fail(failed, "1.a", "a@y")
    fail(failed, "2.a", "b@y")
    real = queued_message.prepare

    def prepare(maildir: Maildir, route: Route, folder: Any, name: bytes) -> Any:
        if name == b"1.a":
            (failed / "new" / "1.a").unlink(missing_ok=True)
            (failed / "envelope" / "1.a.json").unlink(missing_ok=True)
        return real(maildir, route, folder, name)

    monkeypatch.setattr(listing, "prepare", prepare)
    output, complaint = qmtpq(capsys, 0, "resend", path, "--all")
    assert output.count("resent ") == 1
    assert complaint == ""


def test_what_is_being_bounced_is_not_released(path: Path, capsys: Capture) -> None:
    """It was sent, and its sender was told that it is not."""
    add_message(path, "1.a")
    with Maildir(os.fsencode(path)) as maildir:
        queue_changes.change_holds(maildir, hold=[b"1.a"], release=(), bouncing=True)
        with contextlib.closing(locking.acquire_for_bounces(maildir.root)):
            _, complaint = qmtpq(capsys, 111, "release", path, "--held", "--all")
        assert "is bouncing messages of" in complaint
        assert "1.a" in held_now(path)
        qmtpq(capsys, 0, "release", path, "--held", "--all")  # that run was killed
    assert "held" not in json.loads((path / ".maildirqmtp-state.json").read_text())
