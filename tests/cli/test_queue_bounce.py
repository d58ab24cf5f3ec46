"""`qmtpq bounce` without a daemon: who is told what, what goes, and what stays."""

from __future__ import annotations

import email
import email.policy
import io
import json
import os
import sys
import time
from email.message import EmailMessage, Message
from pathlib import Path

import pytest

from maildirqmtp.cli import queue_bounce
from maildirqmtp.maildir import locking
from maildirqmtp.maildir.maildir import Maildir
from maildirqmtp.maildir.state import State
from tests.cli.test_qmtpq import Capture, fail, qmtpq
from tests.helpers import add_message, add_sidecar, json_events, make_maildir, names, snapshot


@pytest.fixture
def told(tmp_path: Path) -> Path:
    """The maildir that bounces go to."""
    return make_maildir(tmp_path / "told")


def bounces(told: Path) -> list[EmailMessage]:
    """Return the bounces, by the order of their names."""
    found = []
    for name in names(told / "new"):
        data = (told / "new" / name).read_bytes()
        found.append(email.message_from_bytes(data, policy=email.policy.default))
    return found


def statuses(bounce: EmailMessage) -> list[dict[str, str]]:
    """Return the fields of each recipient of a bounce (RFC 3464, 2.3)."""
    (report,) = [p for p in bounce.walk() if p.get_content_type() == "message/delivery-status"]
    parts = report.get_payload()
    assert isinstance(parts, list)
    fields = [part for part in parts[1:] if isinstance(part, Message)]
    return [{key: str(value) for key, value in part.items()} for part in fields]


def send(capsys: Capture, code: int, path: Path, told: Path, *words: str | Path) -> tuple[str, str]:
    """Run `qmtpq bounce --yes`, with bounces into a maildir."""
    return qmtpq(capsys, code, "bounce", "--yes", "--bounce-via", f"maildir:{told}", path, *words)


def held_for_good(path: Path, name: str) -> bool:
    """Return whether a message is on hold until somebody releases it, whatever bounces next."""
    state = json.loads((path / ".maildirqmtp-state.json").read_text())
    return isinstance(state["held"][name], int)


def test_the_sender_is_told_and_the_message_goes(path: Path, told: Path, capsys: Capture) -> None:
    """Each recipient is named, the message quoted, and nothing is left of it."""
    add_message(path, "1.a", b"Subject: lost\n\nbody\n")
    add_sidecar(path, "1.a", "s@x", "a@y", "b@y")
    add_message(path, "2.b")
    out, err = send(capsys, 0, path, told, "1.a")
    assert (out, err) == (f"bounced {path}/new/1.a\n", "")
    (bounce,) = bounces(told)
    assert (bounce["Return-Path"], bounce["Delivered-To"], bounce["To"]) == ("<>", "s@x", "s@x")
    a, b = statuses(bounce)
    assert (a["Final-Recipient"], b["Final-Recipient"]) == ("rfc822; a@y", "rfc822; b@y")
    assert (a["Action"], a["Status"]) == ("failed", "5.0.0")
    assert "cancelled by an administrator" in a["Diagnostic-Code"]
    assert "Remote-MTA" not in a
    assert "Subject: lost" in bounce.as_string()
    assert names(path / "new") == ["2.b"]
    assert names(path / "envelope") == []
    assert "held" not in json.loads((path / ".maildirqmtp-state.json").read_text())


def test_the_sender_of_a_message_that_is_too_large_is_told(
    path: Path, told: Path, capsys: Capture, tmp_path: Path
) -> None:
    """The route holds it for its size; its envelope is as good as any other."""
    add_message(path, "1.a", bytes(1_500))
    file = tmp_path / "qmtp.toml"
    file.write_text(f'[[route]]\nmaildir = "{path}"\nserver = "127.0.0.1:1"\nmax-size = "1k"\n')
    listed = json_events(qmtpq(capsys, 0, "list", "--json", "--config", file)[0])
    assert [(one["state"], one["sender"]) for one in listed] == [("held", "sender@example.org")]
    assert "--max-size" in listed[0]["reason"]
    words = ("bounce", "--yes", "--bounce-via", f"maildir:{told}", "--config", file)
    out, err = qmtpq(capsys, 0, *words, "--to", "recipient@example.net")
    assert (out, err) == (f"bounced {path}/new/1.a\n", "")
    (bounce,) = bounces(told)
    assert "--max-size" in statuses(bounce)[0]["Diagnostic-Code"]


@pytest.mark.parametrize("sender", [b"", b"#@[]"])
def test_the_null_sender_is_never_told(
    path: Path, told: Path, capsys: Capture, sender: bytes
) -> None:
    """A bounce of a bounce goes round for ever; the message stays, and the others go."""
    add_message(path, "1.null", sender=sender)
    add_message(path, "2.b")
    _, err = send(capsys, 111, path, told, "--all")
    assert "1.null: it came from <" in err
    assert "drop removes it" in err
    assert names(path / "new") == ["1.null"]
    assert [bounce["To"] for bounce in bounces(told)] == ["sender@example.org"]


def test_without_an_envelope_nobody_can_be_told(path: Path, told: Path, capsys: Capture) -> None:
    """It stays, and the reason names the ways out."""
    add_message(path, "1.held", b"text\n", None, None)
    _, err = send(capsys, 111, path, told, "1.held")
    assert "1.held: nobody can be told: no envelope" in err
    assert names(path / "new") == ["1.held"]
    assert bounces(told) == []


def test_what_was_refused_is_told_as_the_server_said_it(
    path: Path, told: Path, capsys: Capture
) -> None:
    """From the failed maildir, where nobody was told until now."""
    failed = make_maildir(path / ".Failed")
    fail(failed, "1.f", "no@y", why="D550 5.1.1 no such user")
    add_message(path, "1.a")
    send(capsys, 0, path, told, "--failed", "--to", "@y")
    (bounce,) = bounces(told)
    (one,) = statuses(bounce)
    assert (one["Status"], one["Diagnostic-Code"]) == (
        "5.1.1",
        "x-qmtp; D550 5.1.1 no such user",
    )
    assert names(failed / "new") == names(failed / "envelope") == []
    assert names(path / "new") == ["1.a"]


@pytest.mark.parametrize("hold", [False, True])
def test_the_last_answer_is_told_also_of_what_was_on_hold(
    path: Path, told: Path, capsys: Capture, hold: bool
) -> None:
    """On a network file system, hold comes first; that is why it waits, but not why it failed."""
    add_message(path, "1.a")
    with Maildir(os.fsencode(path)) as opened:
        state = State(opened.root, time.monotonic, time.time)
        state.note_attempt(b"1.a", "452 4.2.2 mailbox full")
        state.save()
    if hold:
        qmtpq(capsys, 0, "hold", path, "1.a")
    send(capsys, 0, path, told, "1.a")
    (one,) = statuses(bounces(told)[0])
    cancelled = "delivery was cancelled by an administrator"
    assert (one["Status"], one["Diagnostic-Code"]) == (
        "4.2.2",
        f"x-qmtp; Z452 4.2.2 mailbox full ({cancelled})",
    )


def test_no_recipient_is_told_the_answer_to_another(
    tmp_path: Path, path: Path, told: Path, capsys: Capture
) -> None:
    """The sender would be told that a mailbox is full that takes mail; answers have no prefix."""
    add_message(path, "1.a")
    add_sidecar(path, "1.a", "s@x", "p-a@y", "p-b@y")
    file = tmp_path / "m.toml"
    file.write_text(f'[[route]]\nmaildir = "{path}"\nserver = "h"\nprefix = "p-"\n')
    with Maildir(os.fsencode(path)) as opened:
        state = State(opened.root, time.monotonic, time.time)
        state.note_attempt(b"1.a", "<a@y>: 452 4.2.2 mailbox full")
        state.save()
    words = ("bounce", "--yes", "--bounce-via", f"maildir:{told}", "--config", file, "1.a")
    qmtpq(capsys, 0, *words)
    a, b = statuses(bounces(told)[0])
    assert (a["Status"], b["Status"]) == ("4.2.2", "5.0.0")
    assert "mailbox full" not in b["Diagnostic-Code"]


def test_a_prefix_stays_on_this_machine(
    tmp_path: Path, path: Path, told: Path, capsys: Capture
) -> None:
    """Senders know their recipients without it; each route of the maildir has its own."""
    add_message(path, "1.a")
    add_sidecar(path, "1.a", "s@x", "one-a@y", "one-b@y", "two-c@y")
    file = tmp_path / "m.toml"
    routes = [
        f'[[route]]\nmaildir = "{path}"\nserver = "h"\nprefix = "{prefix}"\n'
        for prefix in ("one-", "two-")
    ]
    file.write_text(f'[defaults]\nbounce-via = "maildir:{told}"\n' + "".join(routes))
    qmtpq(capsys, 0, "bounce", "--yes", "--config", file, "1.a")
    found = sorted(one["Final-Recipient"] for b in bounces(told) for one in statuses(b))
    assert found == ["rfc822; a@y", "rfc822; b@y", "rfc822; c@y"]
    assert names(path / "new") == []


@pytest.mark.parametrize("failed", [False, True])
def test_each_route_of_a_maildir_bounces_in_its_own_way(
    tmp_path: Path, path: Path, told: Path, capsys: Capture, failed: bool
) -> None:
    """The first route's mailer, and its name of this host, were taken for all of them."""
    where = make_maildir(path / ".Failed") if failed else path
    for number, recipient in enumerate(("one-a@y", "two-b@y", "else-c@y")):
        add_message(where, f"{number}.a")
        add_sidecar(where, f"{number}.a", f"s{number}@x", recipient)
    other = make_maildir(tmp_path / "other")
    file = tmp_path / "m.toml"
    routes = [
        f'[[route]]\nmaildir = "{path}"\nserver = "h"\nprefix = "{prefix}-"\n'
        f'bounce-via = "maildir:{way}"\nhostname = "{prefix}.example.org"\n'
        for prefix, way in (("one", told), ("two", other))
    ]
    file.write_text("".join(routes))
    qmtpq(capsys, 0, "bounce", "--yes", "--config", file, "0.a", "1.a", "2.a")
    first, second = (
        {b["To"]: b["From"].addresses[0].domain for b in bounces(way)} for way in (told, other)
    )
    assert first == {"s0@x": "one.example.org", "s2@x": "one.example.org"}
    assert second == {"s1@x": "two.example.org"}
    add_message(where, "4.a")
    add_sidecar(where, "4.a", "s4@x", "two-d@y")
    words = ("--bounce-via", f"maildir:{told}", "--hostname", "given.example.org")
    qmtpq(capsys, 0, "bounce", "--yes", *words, "--config", file, "4.a")
    assert {b["To"]: b["From"].addresses[0].domain for b in bounces(told)}["s4@x"] == (
        "given.example.org"
    )


@pytest.mark.parametrize("failed", [False, True])
def test_a_bounce_for_the_server_goes_into_the_queue(
    tmp_path: Path, path: Path, capsys: Capture, failed: bool
) -> None:
    """Also that of a message in the failed maildir, from which nothing is sent."""
    if failed:
        fail(make_maildir(path / ".Failed"), "1.f", "no@y")
    else:
        add_message(path, "1.f", sender=b"s@x")
    file = tmp_path / "m.toml"
    file.write_text(f'[[route]]\nmaildir = "{path}"\nserver = "h"\nbounce-via = "server"\n')
    qmtpq(capsys, 0, "bounce", "--yes", "--config", file, "1.f")
    (name,) = names(path / "new")
    assert name.startswith("bounce.")
    content = json.loads((path / "envelope" / f"{name}.json").read_text())
    assert (content["sender"], content["recipients"]) == ("", ["s@x"])
    assert names(path / ".Failed" / "new") == []


@pytest.mark.parametrize("failed", [False, True])
def test_no_bounce_is_queued_where_nothing_tells_the_prefix(
    path: Path, told: Path, capsys: Capture, failed: bool
) -> None:
    """Without it the bounce is never sent, and the message was gone; other ways need none."""
    if failed:
        fail(make_maildir(path / ".Failed"), "1.f", "pre-no@y")
    else:
        add_message(path, "1.f", recipient=b"pre-no@y")
    before = snapshot(path)
    words = ("bounce", "--yes", "--bounce-via", "server", path, "1.f")
    _, err = qmtpq(capsys, 111, *words)
    assert f"no daemon serves {path}, and nothing else tells the prefix" in err
    after = snapshot(path)
    assert {name: after[name] for name in before} == before
    assert names(path / "new") == ([] if failed else ["1.f"])
    send(capsys, 0, path, told, "1.f")
    assert len(bounces(told)) == 1


@pytest.mark.parametrize("failed", [False, True])
def test_no_bounce_is_queued_for_mail_that_no_route_sends(
    tmp_path: Path, path: Path, told: Path, capsys: Capture, failed: bool
) -> None:
    """A mistyped prefix: the bounce would wait for nobody, or lose another prefix to a route."""
    where = make_maildir(path / ".Failed") if failed else path
    add_message(where, "1.f")
    add_sidecar(where, "1.f", "p1-s@x", "p1-a@y", "typo-b@y")
    file = tmp_path / "m.toml"
    route = f'[[route]]\nmaildir = "{path}"\nserver = "h"\nprefix = "p1-"\n'
    file.write_text(f'{route}bounce-via = "server"\n')
    before = snapshot(path)
    _, err = qmtpq(capsys, 111, "bounce", "--yes", "--config", file, "1.f")
    assert "no route sends to typo-b@y, so that the bounce would wait, too" in err
    after = snapshot(path)
    assert {name: after[name] for name in before} == before
    assert names(path / "new") == ([] if failed else ["1.f"])
    way = ("--bounce-via", f"maildir:{told}")
    qmtpq(capsys, 0, "bounce", "--yes", "--config", file, *way, "1.f")
    assert len(bounces(told)) == 2


@pytest.mark.parametrize("prefix", ["", "pre-"])
def test_a_daemon_tells_the_prefix(path: Path, capsys: Capture, prefix: str) -> None:
    """Its bounce waits under it, and is sent; the daemon's status names it."""
    add_message(path, "1.f", sender=b"s@x", recipient=prefix.encode() + b"no@y")
    which = f"-{prefix.encode().hex()}" if prefix else ""
    status = path / f".maildirqmtp-status{which}.json"
    told = {"version": 1, "pid": os.getpid(), "state": "running", "prefix": prefix}
    status.write_text(json.dumps(told))
    with Maildir(os.fsencode(path)) as daemon:
        daemon.lock()
        qmtpq(capsys, 0, "bounce", "--yes", "--bounce-via", "server", path, "1.f")
    (name,) = names(path / "new")
    content = json.loads((path / "envelope" / f"{name}.json").read_text())
    assert content["recipients"] == [f"{prefix}s@x"]


def test_what_the_mailer_does_not_take_stays(tmp_path: Path, path: Path, capsys: Capture) -> None:
    """And is sent as before: it is on hold only where it was so."""
    add_message(path, "1.a")
    add_message(path, "2.held")
    qmtpq(capsys, 0, "hold", path, "2.held")
    before = snapshot(path / "new")
    _, err = qmtpq(capsys, 111, "bounce", "--yes", "--sendmail", "/bin/false", path, "--all")
    assert err.count("did not take a bounce: exit 1") == 2
    assert snapshot(path / "new") == before
    assert list(json.loads((path / ".maildirqmtp-state.json").read_text())["held"]) == ["2.held"]


def test_a_daemon_tries_again_what_could_not_be_bounced(
    path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has passed it over while it was on hold, and would come to it half a day later."""
    woken: list[list[str]] = []
    monkeypatch.setattr(queue_bounce, "wake", lambda _: woken.append(names(path / "new")))
    add_message(path, "1.a")
    add_message(path, "2.a")
    words = ("bounce", "--yes", "--sendmail", "/bin/false", path)
    qmtpq(capsys, 111, *words, "1.a")
    assert woken == [["1.a", "2.a"]]
    qmtpq(capsys, 0, "bounce", "--yes", "--sendmail", "/bin/true", path, "1.a")
    assert woken == [["1.a", "2.a"]], "nothing is left that it could try"


def test_a_message_that_is_replaced_while_its_sender_is_told_stays(
    tmp_path: Path, path: Path, capsys: Capture
) -> None:
    """What has come under its name is another message."""
    add_message(path, "1.a")
    mailer = tmp_path / "mailer"
    mailer.write_text(f"#!/bin/sh\ncat >/dev/null\necho new >{path}/tmp/x\n"
                      f"mv {path}/tmp/x {path}/new/1.a\n")  # fmt: skip
    mailer.chmod(0o700)
    _, err = qmtpq(capsys, 111, "bounce", "--yes", "--sendmail", mailer, path, "1.a")
    assert "its sender was told, but it has changed" in err
    assert "it stays on hold" in err
    assert (path / "new" / "1.a").read_text() == "new\n"
    # Its sender believes that it was not delivered.
    assert qmtpq(capsys, 0, "list", "--names", "--held", path)[0] == "1.a\n"
    assert held_for_good(path, "1.a")


def test_a_message_of_two_routes_whose_second_bounce_fails_stays_on_hold(
    tmp_path: Path, path: Path, capsys: Capture
) -> None:
    """Its sender was told of the first route's recipients: these must not get it after all."""
    add_message(path, "1.a")
    add_sidecar(path, "1.a", "s@x", "one-a@y", "two-b@y")
    config = tmp_path / "routes.toml"
    config.write_text(
        "".join(
            f"[[route]]\nmaildir = '{path}'\nprefix = '{prefix}'\nserver = 'localhost'\n"
            for prefix in ("one-", "two-")
        )
    )
    mailer = tmp_path / "mailer"
    mailer.write_text(f"#!/bin/sh\ncat >/dev/null\nmkdir {tmp_path}/first 2>/dev/null || exit 75\n")
    mailer.chmod(0o700)
    words = ("--config", config, "--sendmail", mailer, path, "1.a")
    _, err = qmtpq(capsys, 111, "bounce", "--yes", *words)
    assert "it stays on hold" in err
    assert qmtpq(capsys, 0, "list", "--names", "--held", path)[0] == "1.a\n"
    assert held_for_good(path, "1.a")


def test_it_asks_first(
    path: Path, told: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Strangers get mail by it; anything but yes changes nothing."""
    add_message(path, "1.a")
    add_message(path, "2.b")
    before = snapshot(path)
    for answer, code in (("", 111), ("n\n", 111), ("yes\n", 0)):
        monkeypatch.setattr(sys, "stdin", io.StringIO(answer))
        _, err = qmtpq(capsys, code, "bounce", "--bounce-via", f"maildir:{told}", path, "--all")
        assert "tell the senders that these 2 messages will not be delivered" in err
        if code:
            assert snapshot(path) == before
    assert names(path / "new") == []
    assert len(bounces(told)) == 2


def test_more_than_one_batch(
    path: Path, told: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of them, as one object a line; no hold is left."""
    monkeypatch.setattr(queue_bounce, "BATCH", 2)
    for number in range(5):
        add_message(path, f"{number}.a", recipient=b"r%d@y" % number)
    events = json_events(send(capsys, 0, path, told, "--all", "--json")[0])
    assert [one["message"] for one in events] == [f"{number}.a" for number in range(5)]
    assert {(one["event"], one["maildir"]) for one in events} == {("bounced", str(path))}
    assert len(bounces(told)) == 5
    assert "held" not in json.loads((path / ".maildirqmtp-state.json").read_text())


def test_while_another_bounces_nothing_is_done(path: Path, told: Path, capsys: Capture) -> None:
    """The sender would be told twice; the second administrator hears who is at it."""
    add_message(path, "1.a")
    with Maildir(os.fsencode(path)) as opened:
        lock = locking.acquire_for_bounces(opened.root)
        _, err = send(capsys, 111, path, told, "1.a")
        lock.close()
    assert f"process {os.getpid()} is bouncing messages of {path}" in err
    assert names(path / "new") == ["1.a"]
    assert bounces(told) == []


def test_a_forwarder_goes_on_meanwhile(path: Path, told: Path, capsys: Capture) -> None:
    """Its lock is another one."""
    add_message(path, "1.a")
    with Maildir(os.fsencode(path)) as opened:
        opened.lock()
        send(capsys, 0, path, told, "1.a")
    assert names(path / "new") == []


def test_a_failed_maildir_of_two_queues_needs_another_way(
    tmp_path: Path, path: Path, capsys: Capture
) -> None:
    """A bounce in the wrong queue would go to the wrong server."""
    shared = make_maildir(tmp_path / "F")
    fail(shared, "1.f", "no@y")
    second = make_maildir(tmp_path / "second")
    file = tmp_path / "m.toml"
    routes = [f'[[route]]\nmaildir = "{m}"\nserver = "h"\n' for m in (path, second)]
    file.write_text(f'[defaults]\nfailed = "{shared}"\nbounce-via = "server"\n' + "".join(routes))
    _, err = qmtpq(capsys, 111, "bounce", "--yes", "--config", file, "1.f")
    assert "is the failed maildir of several" in err
    assert names(shared / "new") == ["1.f"]
    told = make_maildir(tmp_path / "told")
    way = f"maildir:{told}"
    qmtpq(capsys, 0, "bounce", "--yes", "--bounce-via", way, "--config", file, "1.f")
    assert len(bounces(told)) == 1
