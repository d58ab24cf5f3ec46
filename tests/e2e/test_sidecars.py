"""Messages to several recipients: each gets their own answer, never another's."""

from __future__ import annotations

import io
import json
import os
import random
import re
import subprocess
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest

from maildirqmtp.forwarder.batch import flush
from maildirqmtp.forwarder.report import Report
from maildirqmtp.forwarder.route import Route
from maildirqmtp.transport.endpoint import TcpEndpoint
from tests.documents import blocks, place
from tests.e2e.conftest import Run
from tests.helpers import (
    Peer,
    add_message,
    add_sidecar,
    answer_all,
    by_recipient,
    command,
    have_mailfront,
    mailfront,
    names,
    run,
    serving,
    sidecar,
    snapshot,
)


@pytest.mark.parametrize("answer", [b"Kok", b"Zno", b"Dno"])
def test_a_sidecar_replaced_in_flight_is_told_once_and_truly(maildir: Path, answer: bytes) -> None:
    """Told as held, the message is looked for where it is not; and 1 held is 1 that is left."""
    add_message(maildir, "1.m", b"text\n")
    add_sidecar(maildir, "1.m", "s@x", "a@y", "b@y")

    def script(peer: Peer) -> None:
        while package := peer.read_package():
            if b"a@y" in package.recipients:
                add_sidecar(maildir, "1.m", "s@x", "b@y", "new@y")
            peer.respond(*(answer if r == b"b@y" else b"Kok" for r in package.recipients))

    with serving(script) as server:
        result = run(maildir, server.address)
    said = "1.m: changed: its sidecar was replaced while it was being sent; kept, to be sent as it"
    assert result.stderr.count("was replaced") == result.stderr.count(said) == 1
    assert " 0 held, " in result.stderr
    assert "1.m: held" not in result.stderr
    assert b"new@y" in [r for package in server.packages for r in package.recipients]
    assert result.returncode == (0 if answer == b"Kok" else 111)
    assert names(maildir / "new") == (["1.m"] if answer == b"Zno" else [])


def test_an_address_that_is_named_twice_gets_one_copy(maildir: Path) -> None:
    """Two of the same message, or two bounces of it; and one that stayed would get a third."""
    add_message(maildir, "1.m", b"text\n")
    add_sidecar(maildir, "1.m", "s@x", "z@y", "k@y", "k@Y", "k@y", "z@y")
    with serving(answer_all(by_recipient)) as server:
        assert run(maildir, server.address).returncode == 111
    (package,) = server.packages
    assert package.recipients == (b"z@y", b"k@y", b"k@Y")
    assert sidecar(maildir, "1.m")["recipients"] == ["z@y"]


@pytest.mark.parametrize("how", ["options", "enqueued", "Envelope-to"])
def test_so_does_one_that_is_given_twice(maildir: Path, how: str) -> None:
    """By options, by whatever enqueues, by Exim: the first place is kept."""
    twice = ["--recipient=b@y", "--recipient=a@y", "--recipient=<b@y>"]
    if how == "enqueued":
        words = [*command(), "--enqueue", str(maildir), "--sender=s@x", *twice]
        subprocess.run(words, input=b"text\n", check=True, capture_output=True)
    elif how == "options":
        add_message(maildir, "1.m", b"text\n")
    else:
        top = b"Return-path: <s@x>\nEnvelope-to: b@y, a@y,\n <b@y>\n"
        add_message(maildir, "1.m", top + b"\ntext\n", None, None)
    with serving(answer_all()) as server:
        assert run(*(twice if how == "options" else ()), maildir, server.address).returncode == 0
    assert [package.recipients for package in server.packages] == [(b"b@y", b"a@y")]


def test_brackets_alone_are_the_null_sender_in_a_sidecar(maildir: Path, tmp_path: Path) -> None:
    """Sent as an address, its failure would be told to a user of that name."""
    add_message(maildir, "1.m", b"text\n")
    add_sidecar(maildir, "1.m", "<>", "d@y")
    with serving(answer_all(lambda package, recipient: b"Dno")) as server:
        bounces = tmp_path / "bounces"
        result = run("--bounce", f"--bounce-via=maildir:{bounces}", maildir, server.address)
    assert result.returncode == 111
    assert [package.sender for package in server.packages] == [b""]
    assert not bounces.exists()
    assert sidecar(maildir / ".Failed", "1.m")["sender"] == ""


@pytest.mark.parametrize("bounce", [True, False])
def test_accepted_deferred_failed_accepted(maildir: Path, tmp_path: Path, bounce: bool) -> None:
    """Who has it never gets it again; who failed is told of; who waits gets it next time."""
    add_message(maildir, "1.m", b"text\n")
    add_sidecar(maildir, "1.m", "s@x", "k1@y", "z@y", "d@y", "k2@y")
    bounces = tmp_path / "bounces"
    flags = ("--bounce", f"--bounce-via=maildir:{bounces}") if bounce else ()
    with serving(answer_all(by_recipient)) as server:
        result = run(*flags, maildir, server.address)
    assert result.returncode == 111
    assert sidecar(maildir, "1.m") == {"version": 1, "sender": "s@x", "recipients": ["z@y"]}
    if bounce:
        (told,) = (path.read_bytes() for path in (bounces / "new").iterdir())
        assert told.count(b"Final-Recipient: rfc822; d@y\n") == told.count(b"Final-Recipient") == 1
        assert not (maildir / ".Failed").exists()
    else:
        (failure,) = sidecar(maildir / ".Failed", "1.m")["failures"]
        assert (failure["recipient"], failure["response"]) == ("d@y", "Dno such user (#5.1.1)")
        assert sidecar(maildir / ".Failed", "1.m")["recipients"] == ["d@y"]
    with serving(answer_all()) as server:
        assert run(*flags, maildir, server.address).returncode == 0
    (package,) = server.packages
    assert (package.recipients, package.text) == ((b"z@y",), b"text\n")
    assert names(maildir / "new") == names(maildir / "envelope") == []
    assert len(names(bounces / "new")) == bounce


# A server that answers once per package

Mails = dict[bytes, tuple[bytes, ...]]


def mixed(count: int, seed: int) -> Mails:
    """Make up messages, by their senders, with one or three recipients, some to be rejected."""
    choice = random.Random(seed).choice
    return {
        b"s%d@x" % number: tuple(
            b"%c%d.%d@y" % (choice(b"kkkd"), number, place) for place in range(choice((1, 3)))
        )
        for number in range(count)
    }


def fill(maildir: Path, mails: Mails) -> None:
    """Put them into the maildir, each with a sidecar."""
    for number, (sender, recipients) in enumerate(mails.items()):
        add_message(maildir, f"{number}.m", text_of(sender))
        add_sidecar(maildir, f"{number}.m", sender.decode(), *map(bytes.decode, recipients))


def text_of(sender: bytes) -> bytes:
    """Make a text that shows whose it is."""
    return b"Subject: %b\n\n\0\xff\r\nno newline" % sender


def once_per_package(peer: Peer, took: list[tuple[bytes, bytes]]) -> None:
    """Answer each package once, as mailfront does: one bad recipient fails them all."""
    while (package := peer.read_package()) is not None:
        bad = any(recipient.startswith(b"d") for recipient in package.recipients)
        if not bad:
            assert package.text == text_of(package.sender)
            took.extend((package.sender, recipient) for recipient in package.recipients)
        peer.respond(b"Dno such user" if bad else b"Kok")


def check(maildir: Path, mails: Mails, took: Iterable[tuple[bytes, bytes]]) -> None:
    """Every good recipient was served, every bad one is in the failed maildir, nobody else is."""
    owed = {(sender, r) for sender, recipients in mails.items() for r in recipients}
    good = {(sender, recipient) for sender, recipient in owed if recipient.startswith(b"k")}
    counted = Counter(took)
    assert set(counted) == good
    # Only the first package of several can have come twice: it found the server out.
    twice = [one for one, count in counted.items() if count > 1]
    assert len({sender for sender, _ in twice}) <= 1
    recorded = set()
    failed = maildir / ".Failed"
    for name in names(failed / "new"):
        said = sidecar(failed, name)
        recorded |= {(said["sender"].encode(), r.encode()) for r in said["recipients"]}
        assert (failed / "new" / name).read_bytes().endswith(text_of(said["sender"].encode()))
    assert recorded == owed - good
    assert names(maildir / "new") == names(maildir / "envelope") == []


@pytest.mark.parametrize("seed", range(6))
def test_a_server_that_answers_once_per_package_shifts_no_answer(maildir: Path, seed: int) -> None:
    """Shifted by one, a rejected message would be deleted as accepted."""
    mails = mixed(60, seed)
    fill(maildir, mails)
    took: list[tuple[bytes, bytes]] = []
    with serving(lambda peer: once_per_package(peer, took)) as server:
        # A short grace, which the command line does not have, to wait less for what never comes.
        route = Route(os.fsencode(maildir), TcpEndpoint("127.0.0.1", server.port), grace_s=0.2)
        assert flush(route, Report(io.StringIO())) == 111
    check(maildir, mails, took)


@pytest.mark.skipif(not have_mailfront(), reason="MAILFRONT IS NOT INSTALLED: apt-get install it")
def test_mailfront_with_messages_of_one_and_three(
    maildir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_quickly: Run
) -> None:
    """The same with the real one, byte for byte."""
    mails = mixed(60, seed=7)
    fill(maildir, mails)
    rules = tmp_path / "rules"
    rules.write_text("d*:d*:No such user.\n")
    monkeypatch.setenv("MAILRULES", str(rules))
    queue = tmp_path / "queue"
    with mailfront(queue, "queuedir", "mailrules", "accept") as server:
        result = run_quickly(maildir, server)
    took = []
    for path in (queue / "new").iterdir():
        data = path.read_bytes()
        text = text_of(data.partition(b"\0")[0])
        assert data.endswith(b"\0" + text)
        sender, *recipients = data.removesuffix(b"\0" + text).split(b"\0")
        took += [(sender, recipient) for recipient in recipients]
    check(maildir, mails, took)
    assert "No such user." in result.stderr
    assert result.returncode == 111


def test_an_honest_server_gets_packages_for_several(maildir: Path) -> None:
    """Found honest, it gets each message once, whatever the number of recipients."""
    mails = mixed(60, seed=8)
    fill(maildir, mails)
    with serving(answer_all(by_recipient)) as server:
        run(maildir, server.address)
        assert server.connections == 1
    assert Counter(p.recipients for p in server.packages) == Counter(mails.values())
    accepted = [(p.sender, r) for p in server.packages for r in p.recipients if r[:1] == b"k"]
    check(maildir, mails, accepted)


# Bad ones

GOOD = {"version": 1, "sender": "s@x", "recipients": ["a@y"]}


def bad(**changed: object) -> bytes:
    """Make a sidecar that is good but for this."""
    return json.dumps(GOOD | changed).encode()


BAD = {
    "empty": b"",
    "blank": b" \n",
    "cut off": json.dumps(GOOD).encode()[:-5],
    "no JSON": b"To: a@y\n",
    "two in one": json.dumps(GOOD).encode() * 2,
    "NUL": b"\0" * 100,
    "not UTF-8 outside of text": b"\xff" + json.dumps(GOOD).encode(),
    "UTF-16": json.dumps(GOOD).encode("utf-16"),
    "a list": b"[]",
    "null": b"null",
    "a number": b"1",
    "endless number": b"1" * 10_000,
    "no version": b'{"sender": "s@x", "recipients": ["a@y"]}',
    "version 2": bad(version=2),
    "version true": bad(version=True),
    "version as text": bad(version="1"),
    "unknown key": bad(recipient="a@y"),
    "no sender": b'{"version": 1, "recipients": ["a@y"]}',
    "sender null": bad(sender=None),
    "sender with LF": bad(sender="s\n@x"),
    "sender too long": bad(sender="s" * 1_000),
    "no recipients": b'{"version": 1, "sender": "s@x"}',
    "nobody": bad(recipients=[]),
    "recipients as text": bad(recipients="a@y"),
    "a recipient that is a list": bad(recipients=[["a@y"]]),
    "a recipient that is empty": bad(recipients=["a@y", ""]),
    "a recipient with NUL": bad(recipients=["a\0@y"]),
    "a recipient with CR": bad(recipients=["a\r@y"]),
    "a recipient too long": bad(recipients=["a" * 1_000]),
    "a lone surrogate": b'{"version": 1, "sender": "s@x", "recipients": ["\\ud800@y"]}',
    "10,001 recipients": bad(recipients=["a@y"] * 10_001),
    "failures as text": bad(failures="a@y"),
    "a failure without a time": bad(failures=[{"recipient": "a@y", "response": "Dno"}]),
    "more than 1 MiB": json.dumps(GOOD).encode() + b" " * (1 << 20),
    "deep": b"[" * 100_000 + b"]" * 100_000,
    "deep objects": b'{"a":' * 50_000,
}


def hold(maildir: Path, what: str = "its sidecar ") -> None:
    """Run, and see that nothing was sent or touched, and the other message was."""
    other = add_message(maildir, "2.m", b"other\n", recipient=b"other@y")
    assert other
    before = snapshot(maildir / "new")
    with serving(answer_all()) as server:
        result = run(maildir, server.address)
    assert [package.recipients for package in server.packages] == [(b"other@y",)]
    assert result.returncode == 111
    assert re.search(rf"1\.m: held: .*{what}", result.stderr)
    del before["2.m"]
    assert snapshot(maildir / "new") == before


@pytest.mark.parametrize("content", BAD.values(), ids=BAD.keys())
def test_a_bad_sidecar_holds_its_message_and_no_other(maildir: Path, content: bytes) -> None:
    """By its headers it would go to people who have it, or who never were to get it."""
    add_message(maildir, "1.m", recipient=b"wrong@y")
    (maildir / "envelope").mkdir()
    (maildir / "envelope" / "1.m.json").write_bytes(content)
    hold(maildir)
    assert (maildir / "envelope" / "1.m.json").read_bytes() == content


@pytest.mark.parametrize("kind", ["link", "dangling link", "directory", "FIFO", "huge"])
def test_a_sidecar_that_is_no_file_holds_its_message(maildir: Path, kind: str) -> None:
    """Followed, a link would read what somebody else put elsewhere; a FIFO would never end."""
    add_message(maildir, "1.m", recipient=b"wrong@y")
    (maildir / "envelope").mkdir()
    path = maildir / "envelope" / "1.m.json"
    if kind == "link":
        (maildir / "elsewhere").write_bytes(json.dumps(GOOD).encode())
        path.symlink_to(maildir / "elsewhere")
    elif kind == "dangling link":
        path.symlink_to("nowhere")
    elif kind == "directory":
        path.mkdir()
    elif kind == "FIFO":
        os.mkfifo(path)
    else:
        path.touch()
        os.truncate(path, 1 << 30)
    hold(maildir)


@pytest.mark.parametrize("option", [(), ("--sender", "s@x", "--recipient", "given@y")])
def test_options_are_no_way_around_a_bad_sidecar(maildir: Path, option: tuple[str, ...]) -> None:
    """It may have been the list of those who have it already."""
    add_message(maildir, "1.m", recipient=b"wrong@y")
    (maildir / "envelope").mkdir()
    (maildir / "envelope" / "1.m.json").write_bytes(b"{")
    with serving(answer_all()) as server:
        assert run(*option, maildir, server.address).returncode == 111
    assert server.packages == []


@pytest.mark.parametrize("what", ["file", "link"])
def test_envelope_that_is_no_directory_stops_the_run(maildir: Path, what: str) -> None:
    """Taken for a maildir without sidecars, every message would go by its headers."""
    add_message(maildir, "1.m", recipient=b"wrong@y")
    if what == "file":
        (maildir / "envelope").write_text("")
    else:
        (maildir / "envelope").symlink_to(maildir.parent)
    with serving(answer_all()) as server:
        result = run(maildir, server.address)
    assert server.packages == []
    assert result.returncode == 111
    assert "envelope" in result.stderr


# Orphans


def test_a_young_orphan_waits_for_its_message(maildir: Path) -> None:
    """A writer puts the sidecar in place first; a run in between must not take it away."""
    add_sidecar(maildir, "1.m", "s@x", "a@y")
    with serving(answer_all()) as server:
        assert run(maildir, server.address).returncode == 0
        assert names(maildir / "envelope") == ["1.m.json"]
        add_message(maildir, "1.m", recipient=b"wrong@y")
        assert run(maildir, server.address).returncode == 0
    assert [package.recipients for package in server.packages] == [(b"a@y",)]
    assert names(maildir / "envelope") == []


def test_an_old_orphan_goes(maildir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a writer that died left behind does not pile up for ever."""
    add_sidecar(maildir, "1.m", "s@x", "a@y")
    later = time.time() + 37 * 3_600
    monkeypatch.setattr("maildirqmtp.forwarder.housekeeping.time.time", lambda: later)
    with serving(answer_all()) as server:
        route = Route(os.fsencode(maildir), TcpEndpoint("127.0.0.1", server.port))
        assert flush(route, Report(io.StringIO())) == 0
    assert names(maildir / "envelope") == []


def test_a_script_may_write_by_the_recipe(maildir: Path) -> None:
    """The document's lines for a writer that is not ours."""
    (recipe,) = [block for block in blocks("python") if block.text.startswith("# A writer")]
    namespace: dict[str, object] = {"maildir": os.fspath(maildir)}
    exec(compile(recipe.text, place(recipe), "exec"), namespace)
    with serving(answer_all()) as server:
        assert run(maildir, server.address).returncode == 0
    (package,) = server.packages
    assert package.recipients == (b"a@example.net", b"b@example.net")
    assert package.text.startswith(b"Subject: ")
    assert snapshot(maildir) == {}
