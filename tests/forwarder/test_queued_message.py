"""From a name to a queued message: the wrong envelope sends somebody's mail to somebody else."""

import json
import os
from pathlib import Path

import pytest

from maildirqmtp.errors import EnvelopeError, FileChangedError, LocalError, SidecarError
from maildirqmtp.forwarder import queued_message
from maildirqmtp.forwarder.queued_message import PassedOver, QueuedMessage, prepare
from maildirqmtp.forwarder.route import Route
from maildirqmtp.maildir.maildir import Maildir
from maildirqmtp.qmtp.protocol import Response, Status
from maildirqmtp.transport.endpoint import TcpEndpoint
from tests.fakes import queued
from tests.helpers import add_message, open_descriptors

SERVER = TcpEndpoint("mail.example.org")


def opened(
    path: Path,
    name: bytes = b"1.a",
    *,
    prefix: bytes = b"",
    sender: bytes | None = None,
    recipients: tuple[bytes, ...] = (),
    default_sender: bytes | None = None,
) -> QueuedMessage | None:
    """Prepare a message of new/ by a route with these options."""
    route = Route(
        os.fsencode(path),
        SERVER,
        prefix=prefix,
        sender=sender,
        recipients=recipients,
        default_sender=default_sender,
    )
    with Maildir(os.fsencode(path)) as maildir:
        maildir.scan()
        found = prepare(maildir, route, maildir.new, name)
        if isinstance(found, PassedOver):
            return None
        found.message.close()
        return found


@pytest.mark.parametrize(
    ("top", "side", "way_out"),
    [
        (b"Subject: x\n\n", None, "give --sender and --recipient, or write a sidecar"),
        (b"Return-Path: <s@x>\nSubject: x\n\n", None, "give --recipient ADDRESS, or write a"),
        (b"Return-Path: s@x\nDelivered-To: r@y\n\n", None, "give --sender ADDRESS, or write a"),
        (b"Delivered-To: r@y\n\n", None, "give --default-sender ADDRESS, or write a sidecar"),
        (b"Return-Path: <s@x>\nDelivered-To: p-\n\n", None, "give --sender and --recipient"),
        (b"Return-Path: <s@x>\nDelivered-To: p-r@y\n\n", "{", "correct its sidecar"),
        (b"Return-Path: <s@x>\nDelivered-To: p-r@y\n\n", "p-", "correct its sidecar"),
    ],
)
def test_the_reason_names_the_way_out(
    path: Path, top: bytes, side: str | None, way_out: str
) -> None:
    """An administrator reads it at night, and has not written this program."""
    (path / "new" / "1.a").write_bytes(top)
    if side == "{":
        add_sidecar(path, "1.a", "a@y")
        (path / "envelope" / "1.a.json").write_text(side)
    elif side is not None:
        add_sidecar(path, "1.a", side)
    with pytest.raises(EnvelopeError) as raised:
        opened(path, prefix=b"p-")
    assert way_out in str(raised.value)
    assert str(raised.value).endswith("; see HELD MESSAGES in maildirqmtp(1)")


def add_sidecar(path: Path, name: str = "1.a", *recipients: str, sender: str = "side@car") -> None:
    """Put a sidecar beside a message."""
    (path / "envelope").mkdir(exist_ok=True)
    content = {"version": 1, "sender": sender, "recipients": recipients}
    (path / "envelope" / f"{name}.json").write_text(json.dumps(content))


def test_the_trace_lines_say_who(path: Path) -> None:
    """And are left out of what is sent."""
    add_message(path, "1.a", b"Subject: x\n\nhi\n", b"s@x", b"r@y")
    found = opened(path)
    assert found is not None
    assert (found.sender, found.recipients, found.kept) == (b"s@x", (b"r@y",), b"")
    assert found.message.data[found.offset :] == b"Subject: x\n\nhi\n"
    assert found.length == 15
    assert (found.answers, found.unanswered, found.owed()) == ([None], 1, [0])


def test_kept_lines_count_in_the_length(path: Path) -> None:
    """A length one off breaks the connection."""
    add_message(path, "1.a", b"X-Original-To: z\nSubject: x\n\nhi\n", b"s@x", b"r@y")
    found = opened(path)
    assert found is not None
    assert (
        found.kept + found.message.data[found.offset :] == b"X-Original-To: z\nSubject: x\n\nhi\n"
    )
    assert found.length == 32


def test_who_is_still_owed() -> None:
    """Those without any answer, whatever the others were told."""

    one = queued(b"1.a", b"a@y", b"b@y", b"c@y")
    one.answers[1] = Response(Status.DEFERRED, b"later")
    assert one.owed() == [0, 2]


@pytest.mark.parametrize(
    ("sender", "recipient", "missing"),
    [(None, b"r@y", "Return-Path"), (b"s@x", None, "Delivered-To"), (None, None, "Return-Path")],
)
def test_without_an_envelope_it_is_held(
    path: Path, sender: bytes | None, recipient: bytes | None, missing: str
) -> None:
    """Never guessed from From: and To:."""
    add_message(path, "1.a", b"From: a@b\nTo: c@d\n\n", sender, recipient)
    with pytest.raises(EnvelopeError, match=f"no {missing} line"):
        opened(path)


def test_the_null_sender_is_a_sender(path: Path) -> None:
    """A bounce that is held is a bounce lost."""
    add_message(path, "1.a", b"x\n", b"", b"r@y")
    found = opened(path)
    assert found is not None
    assert found.sender == b""


def test_options_replace_what_the_lines_say(path: Path) -> None:
    """Each on its own, and both."""
    add_message(path, "1.a", b"x\n", b"s@x", b"r@y")
    results = [
        opened(path, sender=b"o@x"),
        opened(path, recipients=(b"a@y", b"b@y")),
        opened(path, sender=b"", recipients=(b"a@y",)),
    ]
    assert [(d.sender, d.recipients) for d in results if d] == [
        (b"o@x", (b"r@y",)),
        (b"s@x", (b"a@y", b"b@y")),
        (b"", (b"a@y",)),
    ]
    assert all(d is not None and d.length == 2 for d in results)


def test_options_make_up_for_lines_that_are_missing_or_bad(path: Path) -> None:
    """A message from anywhere can be sent by them."""
    text = b"Return-Path: nonsense\nhello\n"
    add_message(path, "1.a", text, None, None)
    with pytest.raises(EnvelopeError):
        opened(path)
    with pytest.raises(EnvelopeError):
        opened(path, sender=b"o@x")
    with pytest.raises(EnvelopeError):
        opened(path, recipients=(b"a@y",))
    found = opened(path, sender=b"o@x", recipients=(b"a@y",))
    assert found is not None
    assert text[found.offset :] == b"hello\n"


def test_a_sidecar_beats_everything(path: Path) -> None:
    """Its recipients are those still owed; the lines name some who have it already."""
    add_message(path, "1.a", b"x\n", b"s@x", b"r@y")
    add_sidecar(path, "1.a", "a@y", "b@y")
    found = opened(path, sender=b"o@x", recipients=(b"c@y",))
    assert found is not None
    assert (found.sender, found.recipients, found.length) == (b"side@car", (b"a@y", b"b@y"), 2)
    assert found.sidecar is not None


def test_with_a_sidecar_bad_lines_are_text(path: Path) -> None:
    """They are not needed, so they hold nothing up."""
    add_message(path, "1.a", b"Return-Path: nonsense\nx\n", None, None)
    add_sidecar(path, "1.a", "a@y")
    found = opened(path)
    assert found is not None
    assert (found.length, found.recipients) == (2, (b"a@y",))


@pytest.mark.parametrize("top", [b"Return-Path: <unknown>\n", b"", b"X-Original-To: z@y\n"])
@pytest.mark.parametrize("default", [b"d@x", b""])
def test_the_default_sender_counts_where_the_headers_give_none(
    path: Path, top: bytes, default: bytes
) -> None:
    """OpenSMTPD writes no Return-Path for bounces: without it each of them is held."""
    add_message(path, "1.a", top + b"Delivered-To: r@y\n\nx\n", None, None)
    with pytest.raises(EnvelopeError, match=r"--default-sender ADDRESS, or .*sidecar.*HELD"):
        opened(path)
    found = opened(path, default_sender=default)
    assert found is not None
    assert (found.sender, found.recipients) == (default, (b"r@y",))
    found = opened(path, default_sender=default, sender=b"o@x")
    assert found is not None
    assert found.sender == b"o@x"


def test_the_default_sender_replaces_no_other(path: Path) -> None:
    """Bounces would go to the wrong one; and what is not clear is not guessed."""
    add_message(path, "1.a", b"\nx\n", b"s@x", b"r@y")
    found = opened(path, default_sender=b"d@x")
    assert found is not None
    assert found.sender == b"s@x"
    add_sidecar(path, "1.a", "a@y")
    found = opened(path, default_sender=b"d@x")
    assert found is not None
    assert found.sender == b"side@car"
    (path / "envelope" / "1.a.json").unlink()
    add_message(path, "1.a", b"Return-Path: nonsense\nDelivered-To: r@y\n\nx\n", None, None)
    with pytest.raises(EnvelopeError, match=r"not of the form.*--sender ADDRESS"):
        opened(path, default_sender=b"d@x")


def test_a_message_without_recipients_says_what_to_do(path: Path) -> None:
    """Held without a way out named, mail stays behind for good."""
    add_message(path, "1.a", b"\nx\n", b"s@x", None)
    with pytest.raises(EnvelopeError, match=r"no Delivered-To .*--recipient ADDRESS.*HELD"):
        opened(path)
    add_message(path, "1.a", b"Delivered-To: %b\n\nx\n" % (b"r" * 1_000), b"s@x", None)
    with pytest.raises(EnvelopeError, match=r"of 1000 bytes.*--recipient ADDRESS.*HELD"):
        opened(path)


def test_hidden_recipients_do_not_go_out_with_a_large_message(path: Path) -> None:
    """Of a message of more than 1 MiB only the top is in memory, and this line is longer."""
    hidden = b"Envelope-to: r@y,\n" + b" blind@y,\n" * 20_000 + b" last@y\n"
    text = b"Subject: x\n\n" + b"x" * (1 << 20)
    add_message(path, "1.a", hidden + text, b"s@x", b"r@y")
    found = opened(path)
    assert found is not None
    assert (found.recipients, found.kept, found.length) == ((b"r@y",), b"", len(text))
    found.close()


def test_trace_lines_without_end_hold_a_large_message(path: Path) -> None:
    """What names hidden recipients cannot be removed where its end is not seen."""
    add_message(path, "1.a", b"Envelope-to: " + b"x," * (1 << 20), b"s@x", b"r@y")
    with pytest.raises(EnvelopeError, match="do not end within 1048576 bytes"):
        opened(path)


def test_a_message_in_a_loop_is_refused(path: Path) -> None:
    """Two machines that forward to each other would do so for ever."""
    add_message(path, "1.a", b"Received: x\n" * 99 + b"\n" + b"Received: x\n" * 9)
    found = opened(path)
    assert found is not None
    assert found.refusal is None
    add_message(path, "1.a", b"Received: x\n" * 100 + b"\n")
    found = opened(path)
    assert found is not None
    assert str(found.refusal) == "Dmail loop: it has 100 Received lines (#5.4.6)"


def test_a_sidecar_that_owes_nobody_holds_the_message(path: Path) -> None:
    """Its lines must not be taken instead: all of them have it."""
    add_message(path, "1.a")
    add_sidecar(path, "1.a")
    with pytest.raises(EnvelopeError, match="no recipient"):
        opened(path)


def test_a_sidecar_that_cannot_be_used_holds_the_message(path: Path) -> None:
    """Falling back to the lines would send to those who are done."""
    add_message(path, "1.a")
    (path / "envelope").mkdir()
    (path / "envelope" / "1.a.json").write_text("{")
    with pytest.raises(SidecarError):
        opened(path)


def test_only_recipients_with_the_prefix_are_ours(path: Path) -> None:
    """serialmail's rule: the others belong to another run."""
    add_message(path, "1.a", b"x\n", b"s@x", b"alias-ppp-r@y")
    add_message(path, "2.a", b"x\n", b"s@x", b"r@y")
    add_message(path, "3.a", b"x\n", b"s@x", b"Alias-ppp-r@y")
    found = opened(path, prefix=b"alias-ppp-")
    assert found is not None
    assert found.recipients == (b"r@y",)
    assert opened(path, b"2.a", prefix=b"alias-ppp-") is None
    assert opened(path, b"3.a", prefix=b"alias-ppp-") is None


def test_a_sidecar_may_have_recipients_of_several_routes(path: Path) -> None:
    """Each takes its own."""
    add_message(path, "1.a")
    add_sidecar(path, "1.a", "p-a@y", "q-b@y", "p-c@y")
    found = opened(path, prefix=b"p-")
    assert found is not None
    assert found.recipients == (b"a@y", b"c@y")


def test_what_is_no_message_is_passed_over(path: Path) -> None:
    """A directory or link in new/ stops nothing."""
    (path / "new" / "1.a").mkdir()
    (path / "new" / "2.a").symlink_to("/etc/passwd")
    assert opened(path, b"1.a") is None
    assert opened(path, b"2.a") is None
    assert opened(path, b"gone") is None


def test_more_than_servers_take_is_held(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """qmail-qmtpd exits at such lengths, again and again, and nothing else gets through."""
    monkeypatch.setattr(queued_message, "MAX_MESSAGE", 100)
    add_message(path, "1.a", b"x" * 100)
    add_message(path, "2.a", b"x" * 101)
    assert opened(path, b"1.a") is not None
    with pytest.raises(EnvelopeError, match="101 bytes"):
        opened(path, b"2.a")


@pytest.mark.parametrize("kind", ["ours", "not ours", "held"])
def test_descriptors_are_closed_but_for_what_is_sent(path: Path, kind: str) -> None:
    """A thousand large messages that are not ours would use up all descriptors."""
    recipient = {"ours": b"p-r@y", "not ours": b"r@y", "held": None}[kind]
    add_message(path, "1.a", b"x" * (1 << 20), b"s@x", recipient)
    before = open_descriptors()
    if kind == "held":
        with pytest.raises(EnvelopeError):
            opened(path, prefix=b"p-")
    else:
        assert (opened(path, prefix=b"p-") is not None) is (kind == "ours")
    assert open_descriptors() == before


def test_errors_of_the_file_come_through(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The forwarder holds the message for either and goes on."""
    add_message(path, "1.a")
    real = os.read
    monkeypatch.setattr(os, "read", lambda fd, n: real(fd, n) + b"more")
    with pytest.raises(FileChangedError):
        opened(path)

    def fails(fd: int, count: int) -> bytes:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "read", fails)
    with pytest.raises(LocalError, match="Input/output error"):
        opened(path)
