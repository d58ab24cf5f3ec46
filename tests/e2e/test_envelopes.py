"""What delivery agents and mail programs write on top: nobody gets what is not theirs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers import (
    Package,
    add_message,
    answer_all,
    json_events,
    names,
    run,
    serving,
)

TEXT = b"Subject: x\n\nhi\n"


def sent(maildir: Path, *flags: str, prefix: str = "", code: int = 0) -> list[Package]:
    """Run once against a server that takes everything; return what it got."""
    with serving(answer_all()) as server:
        result = run(*flags, maildir, *([prefix] if prefix else []), server.address)
    assert result.returncode == code, result.stderr
    return server.packages


def put(maildir: Path, text: bytes) -> None:
    """Put a message into new/ as it stands, all its lines included."""
    add_message(maildir, "1.m", text, sender=None, recipient=None)


@pytest.mark.parametrize("comma", [b", ", b",\n "])
@pytest.mark.parametrize("first", [True, False])
def test_nobody_is_told_of_a_blind_recipient(maildir: Path, comma: bytes, first: bool) -> None:
    """Exim writes all of them into one line, and removes it when it forwards."""
    exim = b"Return-path: <s@x>\nEnvelope-to: to@y" + comma + b"blind@y\nDelivery-date: now\n"
    to = b"Delivered-To: to@y\n"
    put(maildir, (to + exim if first else exim + to) + TEXT)
    (package,) = sent(maildir)
    assert (package.sender, package.recipients) == (b"s@x", (b"to@y",))
    assert b"blind" not in package.text
    assert package.text.endswith(TEXT)


@pytest.mark.parametrize(
    ("top", "own"),
    [
        # Python's email package puts an address that is long into a line of its own.
        (b"Return-Path:\n <%b@x>\nDelivered-To: r@y\n" % (b"s" * 70), TEXT),
        (b"Return-Path: <s@x>\nDelivered-To:\n %b@y\n" % (b"r" * 70), TEXT),
        # The message's own, below a complete envelope.
        (b"Return-Path: <s@x>\nDelivered-To: r@y\n", b"Delivered-To:\n list@z\n" + TEXT),
        (b"Return-Path: <s@x>\nDelivered-To: r@y\n", b"Return-Path:\n <own@z>\n" + TEXT),
        (
            b"Return-Path: <s@x>\nDelivered-To: r@y\n",
            b"Delivered-To: " + b"x" * 9_000 + b"\n" + TEXT,
        ),
        (b"Return-Path: <s@x>\nDelivered-To: r@y\n", b" no header, and a blank in front\n"),
    ],
)
def test_a_folded_or_long_line_keeps_no_message_back(maildir: Path, top: bytes, own: bytes) -> None:
    """It was held for ever, also for lines that are not of its envelope."""
    put(maildir, top + own)
    (package,) = sent(maildir)
    assert (package.sender[:1], package.recipients[0][:1]) == (b"s", b"r")
    assert package.text == own
    assert names(maildir / "new") == []


def test_a_bounce_without_a_return_path_can_be_sent(maildir: Path) -> None:
    """OpenSMTPD writes none for the null sender; other messages keep theirs."""
    put(maildir, b"Delivered-To: r@y\n" + TEXT)
    add_message(maildir, "2.m", TEXT, sender=b"s@x")
    packages = sent(maildir, "--default-sender=")
    assert [(package.sender, package.text) for package in packages] == [(b"", TEXT), (b"s@x", TEXT)]


@pytest.mark.parametrize("sender", [b"MAILER-DAEMON", b"mailer-daemon"])
def test_a_bounce_of_a_bounce_is_not_sent(maildir: Path, tmp_path: Path, sender: bytes) -> None:
    """Postfix's pipe(8) writes the null sender so; two machines would send bounces for ever."""
    add_message(maildir, "1.m", TEXT, sender=sender)
    flags = ("--bounce", f"--bounce-via=maildir:{tmp_path / 'bounces'}")
    with serving(answer_all(lambda package, recipient: b"Dno such user")) as server:
        result = run(*flags, maildir, server.address)
    assert [package.sender for package in server.packages] == [b""]
    assert names(tmp_path / "bounces" / "new") == []
    assert names(maildir / ".Failed" / "new") == ["1.m"]
    assert result.returncode == 111


@pytest.mark.parametrize(
    ("quoted", "raw"),
    [
        (b'"jane x"@x', b"jane x@x"),
        ('"jürgen"@x'.encode(), "jürgen@x".encode()),
        (rb'"a\"b"@x', b'a"b@x'),
    ],
)
def test_a_quoted_local_part_reaches_its_mailbox(maildir: Path, quoted: bytes, raw: bytes) -> None:
    """Behind qmail the quotes are part of the name, and nobody has that; bounces are lost so."""
    add_message(maildir, "1.m", TEXT, sender=quoted, recipient=quoted)
    (package,) = sent(maildir)
    assert (package.sender, package.recipients) == (raw, (raw,))


def test_later_trace_lines_stay_so_that_loops_are_found(maildir: Path) -> None:
    """Only the first of each is ours; without the others a loop looks like a new message."""
    own = b"Delivered-To: earlier@z\nReturn-Path: <own@z>\n" + TEXT
    put(maildir, b"Return-Path: <s@x>\nDelivered-To: r@y\n" + own)
    (package,) = sent(maildir)
    assert package.text == own


@pytest.mark.parametrize(
    "top",
    [
        b"Return-Path: <unknown>\nDelivered-To: r@y\n",
        b"Return-Path: <s@x>\nDelivered-To: unknown\n",
    ],
)
def test_unknown_is_nobodys_address(maildir: Path, top: bytes) -> None:
    """getmail writes it where it does not know: at the server it is a local user's."""
    put(maildir, top + TEXT)
    assert sent(maildir, code=111) == []
    assert names(maildir / "new") == ["1.m"]


def test_an_address_in_brackets_is_the_address(maildir: Path) -> None:
    """Some agents write Delivered-To as others write Return-Path."""
    add_message(maildir, "1.m", TEXT, recipient=b"<r@y>")
    (package,) = sent(maildir)
    assert package.recipients == (b"r@y",)


def test_a_recipient_that_is_nothing_but_the_prefix_stays(maildir: Path) -> None:
    """serialmail sends it to the empty address, which servers take and throw away."""
    add_message(maildir, "1.m", TEXT, recipient=b"p-")
    add_message(maildir, "2.m", TEXT, recipient=b"p-r@y")
    packages = sent(maildir, prefix="p-", code=111)
    assert [package.recipients for package in packages] == [(b"r@y",)]
    assert names(maildir / "new") == ["1.m"]


@pytest.mark.parametrize(
    ("top", "ways"),
    [
        (b"", ["--sender", "--recipient", "--enqueue", "maildirqmtp(1)"]),
        (b"Return-Path: <s@x>\n", ["--recipient", "maildirqmtp(1)"]),
        (b"Delivered-To: r@y\n", ["--default-sender", "maildirqmtp(1)"]),
    ],
)
def test_the_reason_of_a_held_message_names_the_way_out(
    maildir: Path, top: bytes, ways: list[str]
) -> None:
    """Whoever reads `no Return-Path line` in the morning does not know what to do about it."""
    put(maildir, top + TEXT)
    with serving(answer_all()) as server:
        result = run("--json", maildir, server.address)
    (held,) = (event for event in json_events(result.stdout) if event["event"] == "held")
    for way in ways:
        assert way in held["reason"]
        assert way in result.stderr
