"""The envelope from the lines on top: guess wrong, and mail goes to the wrong people."""

import email
import email.policy
import re
import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from maildirqmtp.errors import EnvelopeError
from maildirqmtp.mail import addresses
from maildirqmtp.mail.envelope import (
    _CLASSIC,
    MAX_LINE,
    Trace,
    _read_block,
    ours,
    read_trace,
)

CHECKED = settings(deadline=None)

BODY = b"Received: by here\nFrom: f@g\nTo: h@i\n\nhi\n"
RP = b"Return-Path: <a@b>\n"
DT = b"Delivered-To: c@d\n"
XO = b"X-Original-To: alias@d\n"
ET = b"Envelope-to: e@f\n"
DD = b"Delivery-date: Sat, 31 Jan 2026 12:00:00 +0000\n"

# A file -> sender, recipients, and what is sent.
READ: list[tuple[str, bytes, bytes | None, tuple[bytes, ...], bytes]] = [
    ("qmail", RP + DT + BODY, b"a@b", (b"c@d",), BODY),
    ("other order", DT + RP + BODY, b"a@b", (b"c@d",), BODY),
    ("letter case", RP.lower() + DT.upper() + BODY, b"a@b", (b"C@D",), BODY),
    ("odd case", b"rETURN-pATH: <a@b>\nDELIVERED-to: c@d\n" + BODY, b"a@b", (b"c@d",), BODY),
    ("null sender", b"Return-Path: <>\n" + DT + BODY, b"", (b"c@d",), BODY),
    ("Postfix", RP + XO + DT + BODY, b"a@b", (b"c@d",), XO + BODY),
    ("Postfix, X-Original-To first", XO + DT + RP + BODY, b"a@b", (b"c@d",), XO + BODY),
    ("Postfix, last", RP + DT + XO + BODY, b"a@b", (b"c@d",), XO + BODY),
    ("Exim", RP + ET + DD + BODY, b"a@b", (b"e@f",), DD + BODY),
    ("Exim after Delivered-To", RP + ET + DD + DT + BODY, b"a@b", (b"c@d",), DD + BODY),
    ("Envelope-to before Delivered-To", ET + DT + RP + BODY, b"a@b", (b"c@d",), BODY),
    ("after classic, Envelope-to", RP + DT + ET + BODY, b"a@b", (b"c@d",), BODY),
    (
        "a second Delivered-To stays",
        RP + DT + b"Delivered-To: inner@d\n" + BODY,
        b"a@b",
        (b"c@d",),
        b"Delivered-To: inner@d\n" + BODY,
    ),
    (
        "a second Return-Path stays",
        RP + DT + b"return-path: <x@y>\n" + BODY,
        b"a@b",
        (b"c@d",),
        b"return-path: <x@y>\n" + BODY,
    ),
    (
        "those of the hops before stay, whatever their form",
        DT + RP + b"Delivered-To: \nReturn-Path: x\nDelivered-To: a\0b\n" + BODY,
        b"a@b",
        (b"c@d",),
        b"Delivered-To: \nReturn-Path: x\nDelivered-To: a\0b\n" + BODY,
    ),
    (
        "all Envelope-to go",
        RP + ET + DD + b"Envelope-to: x@y\n" + BODY,
        b"a@b",
        (b"e@f",),
        DD + BODY,
    ),
    (
        "a second Envelope-to, folded",
        RP + ET + b"Envelope-to: x@y,\n\tz@y\n" + BODY,
        b"a@b",
        (b"e@f",),
        BODY,
    ),
    (
        "Envelope-to below a second Delivered-To",
        RP + DT + b"Delivered-To: inner@d\n" + ET + BODY,
        b"a@b",
        (b"c@d",),
        b"Delivered-To: inner@d\n" + BODY,
    ),
    (
        "Envelope-to that is not used, and not understood",
        RP + b'Envelope-to: "x, <\n "y\n' + DT + BODY,
        b"a@b",
        (b"c@d",),
        BODY,
    ),
    (
        "long Envelope-to that is not used",
        RP + DT + b"Envelope-to: " + b"x" * MAX_LINE + b"\n" + BODY,
        b"a@b",
        (b"c@d",),
        BODY,
    ),
    (
        "several in Envelope-to",
        RP + b"Envelope-to: e@f, <g@h>,i@j\n" + BODY,
        b"a@b",
        (b"e@f", b"g@h", b"i@j"),
        BODY,
    ),
    (
        "quoted ones in Envelope-to",
        RP + b'Envelope-to: "a, b"@c, <"d \\" e"@f>,\n "g h"@i\n' + BODY,
        b"a@b",
        (b"a, b@c", b'd " e@f', b"g h@i"),
        BODY,
    ),
    (
        "folded Envelope-to",
        RP + b"Envelope-to: e@f,\r\n\tg@h,\n i@j\n" + DD + BODY,
        b"a@b",
        (b"e@f", b"g@h", b"i@j"),
        DD + BODY,
    ),
    (
        "folded Envelope-to, CRLF",
        RP + b"Envelope-to: e@f,\r\n\tg@h,\r\n i@j\r\n" + BODY,
        b"a@b",
        (b"e@f", b"g@h", b"i@j"),
        BODY,
    ),
    (
        "folded Envelope-to, first line empty",
        RP + b"Envelope-to:\n e@f,\n g@h\n" + BODY,
        b"a@b",
        (b"e@f", b"g@h"),
        BODY,
    ),
    ("folded Return-Path", b"Return-Path:\n <a@b>\n" + DT + BODY, b"a@b", (b"c@d",), BODY),
    (
        "folded Return-Path, CRLF",
        b"Return-Path: \r\n\t<a@b>\r\n" + DT + BODY,
        b"a@b",
        (b"c@d",),
        BODY,
    ),
    ("folded null sender", b"Return-Path:\n <>\n" + DT + BODY, b"", (b"c@d",), BODY),
    ("folded Delivered-To", RP + b"Delivered-To: \n\t c@d \n" + BODY, b"a@b", (b"c@d",), BODY),
    ("folded, in brackets", RP + b"Delivered-To:\r\n <c@d>\r\n" + BODY, b"a@b", (b"c@d",), BODY),
    (
        "folded once, then the message",
        RP + b"Delivered-To:\n c@d\n text\n\n",
        b"a@b",
        (b"c@d",),
        b" text\n\n",
    ),
    ("a body that begins with a blank", RP + DT + b" text\n", b"a@b", (b"c@d",), b" text\n"),
    ("a body that begins with a tab", DT + RP + b"\ttext\n", b"a@b", (b"c@d",), b"\ttext\n"),
    (
        "its own folded line",
        RP + DT + b"Delivered-To: own@d\n more\n" + ET + BODY,
        b"a@b",
        (b"c@d",),
        b"Delivered-To: own@d\n more\n" + ET + BODY,
    ),
    (
        "its own long first line",
        RP + DT + b"x" * 3 * MAX_LINE + b"\n",
        b"a@b",
        (b"c@d",),
        b"x" * 3 * MAX_LINE + b"\n",
    ),
    (
        "its own long Return-Path",
        RP + DT + b"Return-Path: " + b"x" * MAX_LINE + b"\n",
        b"a@b",
        (b"c@d",),
        b"Return-Path: " + b"x" * MAX_LINE + b"\n",
    ),
    (
        "a long line that is kept",
        XO[:-1] + b"x" * MAX_LINE + b"\n" + RP + DT + BODY,
        b"a@b",
        (b"c@d",),
        XO[:-1] + b"x" * MAX_LINE + b"\n" + BODY,
    ),
    (
        "quoted",
        b'Return-Path: <"a b"@c>\nDelivered-To: "d, e"@f\n' + BODY,
        b"a b@c",
        (b"d, e@f",),
        BODY,
    ),
    ("quoted, prefix within", RP + b'Delivered-To: "pre-a b"@c\n', b"a@b", (b"pre-a b@c",), b""),
    ("quoted and in brackets", RP + b'Delivered-To: <"a b"@c>\n', b"a@b", (b"a b@c",), b""),
    ("an empty quoted string", RP + b'Delivered-To: ""@c\n', b"a@b", (b'""@c',), b""),
    ("MAILER-DAEMON", b"Return-Path: <MAILER-DAEMON>\n" + DT + BODY, b"", (b"c@d",), BODY),
    ("brackets twice", b"Return-Path: <<>>\n" + DT + BODY, b"", (b"c@d",), BODY),
    ("quoted brackets", b'Return-Path: <"<>">\n' + DT + BODY, b"", (b"c@d",), BODY),
    ("Mailer-Daemon", b"Return-Path: <Mailer-Daemon>\n" + DT + BODY, b"", (b"c@d",), BODY),
    ("bare mailer-daemon", b"Return-Path: mailer-daemon\n" + DT + BODY, b"", (b"c@d",), BODY),
    (
        "MAILER-DAEMON of a domain",
        b"Return-Path: <MAILER-DAEMON@b>\n" + DT,
        b"MAILER-DAEMON@b",
        (b"c@d",),
        b"",
    ),
    ("to MAILER-DAEMON", RP + b"Delivered-To: MAILER-DAEMON\n", b"a@b", (b"MAILER-DAEMON",), b""),
    ("unknown sender (getmail)", b"Return-Path: <unknown>\n" + DT + BODY, None, (b"c@d",), BODY),
    ("bare unknown sender", b"Return-Path: unknown\n" + DT + BODY, None, (b"c@d",), BODY),
    ("unknown recipient (getmail)", RP + b"Delivered-To: unknown\n" + BODY, b"a@b", (), BODY),
    ("unknown, then Exim", RP + b"Delivered-To: unknown\n" + ET + BODY, b"a@b", (b"e@f",), BODY),
    (
        "unknown of a domain",
        b"Return-Path: <unknown@b>\nDelivered-To: unknown@d\n",
        b"unknown@b",
        (b"unknown@d",),
        b"",
    ),
    ("one space is taken off, no more", RP + b"Delivered-To:  c@d \n", b"a@b", (b" c@d ",), b""),
    (
        "empty places in Envelope-to",
        RP + b"Envelope-to: , e@f,,\t\n" + BODY,
        b"a@b",
        (b"e@f",),
        BODY,
    ),
    ("nobody in Envelope-to", RP + b"Envelope-to: \n" + BODY, b"a@b", (), BODY),
    (
        "folded lines of the others",
        XO + b"\tmore\n" + DD + b" more\n more\n" + RP + DT + BODY,
        b"a@b",
        (b"c@d",),
        XO + b"\tmore\n" + DD + b" more\n more\n" + BODY,
    ),
    ("CRLF", b"Return-Path: <a@b>\r\nDelivered-To: c@d\r\n" + BODY, b"a@b", (b"c@d",), BODY),
    (
        "CRLF, kept as it is",
        b"Return-Path: <a@b>\r\nX-Original-To: x\r\nDelivered-To: c@d\r\n\r\nhi\r\n",
        b"a@b",
        (b"c@d",),
        b"X-Original-To: x\r\n\r\nhi\r\n",
    ),
    ("no space after the colon", b"Return-Path:<a@b>\nDelivered-To:c@d\n", b"a@b", (b"c@d",), b""),
    ("tabs", b"Return-Path:\t<a@b>\t\nDelivered-To:\tc@d\n", b"a@b", (b"c@d",), b""),
    (
        "space before the colon",
        b"Return-Path : <a@b>\nDelivered-To\t: c@d\n",
        b"a@b",
        (b"c@d",),
        b"",
    ),
    ("more spaces", b"Return-Path:   <a@b>  \nDelivered-To:  <c@d>  \n", b"a@b", (b"c@d",), b""),
    ("brackets (Dovecot)", RP + b"Delivered-To: <c@d>\n" + BODY, b"a@b", (b"c@d",), BODY),
    ("half a bracket", RP + b"Delivered-To: c@d>\n" + BODY, b"a@b", (b"c@d>",), BODY),
    ("the other half", RP + b"Delivered-To: <c@d\n" + BODY, b"a@b", (b"<c@d",), BODY),
    ("spaces within", b"Return-Path: <a b@c>\nDelivered-To: c d@e\n", b"a b@c", (b"c d@e",), b""),
    ("brackets within", b"Return-Path: <a>b>\nDelivered-To: c<d>\n", b"a>b", (b"c<d>",), b""),
    ("8-bit", b"Return-Path: <\xe9>\nDelivered-To: \xff\n\n", b"\xe9", (b"\xff",), b"\n"),
    (
        "prefix as qmail writes it",
        RP + b"Delivered-To: alias-ppp-c@d\n",
        b"a@b",
        (b"alias-ppp-c@d",),
        b"",
    ),
    ("body at once", RP + DT + b"\nhi\n", b"a@b", (b"c@d",), b"\nhi\n"),
    ("nothing else", RP + DT, b"a@b", (b"c@d",), b""),
    ("nothing below the block", RP + DT, b"a@b", (b"c@d",), b""),
    ("no block", BODY, None, (), BODY),
    ("empty file", b"", None, (), b""),
    ("mbox line first", b"From a@b\n" + RP + DT + BODY, None, (), b"From a@b\n" + RP + DT + BODY),
    ("blank line first", b"\n" + RP + DT, None, (), b"\n" + RP + DT),
    ("folded from nowhere", b" " + RP + DT, None, (), b" " + RP + DT),
    ("longer name", b"Return-Path-X: <a>\n" + DT, None, (), b"Return-Path-X: <a>\n" + DT),
    ("no colon", b"Return-Path <a>\n" + DT, None, (), b"Return-Path <a>\n" + DT),
    ("only Return-Path", RP + BODY, b"a@b", (), BODY),
    ("only Delivered-To", DT + BODY, None, (b"c@d",), BODY),
    ("only Envelope-to", ET + BODY, None, (b"e@f",), BODY),
    ("only X-Original-To", XO + BODY, None, (), XO + BODY),
    (
        "below another line",
        RP + b"Received: x\n" + DT + BODY,
        b"a@b",
        (),
        b"Received: x\n" + DT + BODY,
    ),
    (
        "folded Received below",
        RP + DT + b"Received: x\n\ty\nDelivered-To: z\n\n",
        b"a@b",
        (b"c@d",),
        b"Received: x\n\ty\nDelivered-To: z\n\n",
    ),
    ("not in the body", BODY + RP + DT, None, (), BODY + RP + DT),
    (
        "999 bytes, classic",
        b"Return-Path: <%b>\nDelivered-To: %b\n" % (b"s" * 999, b"r" * 999),
        b"s" * 999,
        (b"r" * 999,),
        b"",
    ),
    (
        "999 bytes, long way",
        b"delivered-to: %b\nreturn-path: <%b>\n" % (b"r" * 999, b"s" * 999),
        b"s" * 999,
        (b"r" * 999,),
        b"",
    ),
    (
        "999 bytes, Exim",
        b"Envelope-to: %b\n" % (b"r" * 999),
        None,
        (b"r" * 999,),
        b"",
    ),
]

# A file whose message is held -> what the reason says.
HELD: list[tuple[str, bytes, str]] = [
    ("no brackets", b"Return-Path: a@b\n" + DT, "not of the form <address>: a@b"),
    ("one bracket", b"Return-Path: <\n" + DT, "not of the form"),
    ("opened only", b"Return-Path: <a@b\n" + DT, "not of the form"),
    ("closed only", b"Return-Path: a@b>\n" + DT, "not of the form"),
    ("comment", b"Return-Path: <a@b> (x)\n" + DT, "not of the form"),
    ("empty Return-Path", b"Return-Path: \n" + DT, "not of the form"),
    ("escape sequence", b"Return-Path: \x1b[2J\n" + DT, "not of the form <address>: ?[2J"),
    ("empty Delivered-To", RP + b"Delivered-To:\n" + BODY, "recipient is empty"),
    ("empty brackets", RP + b"Delivered-To: <>\n" + BODY, "recipient is empty"),
    ("empty in Envelope-to", RP + b"Envelope-to: e@f, <>\n" + BODY, "recipient is empty"),
    ("one quote in Envelope-to", RP + b'Envelope-to: "a, b\n' + BODY, 'not understood: "a, b'),
    ("escape sequence in it", RP + b'Envelope-to: "\x1b\n' + BODY, 'not understood: "?'),
    ("a name in Envelope-to", RP + b"Envelope-to: Joe <a@b>\n" + BODY, "not understood: Joe <a@b>"),
    ("folded within an address", RP + b"Envelope-to: a\n b@c\n" + BODY, "not understood: a b@c"),
    *(
        (f"{name}, {eol!r}", text.replace(b"\n", eol), said)
        for eol in (b"\n", b"\r\n")
        for name, text, said in (
            ("encoded word", RP + b"Delivered-To: =?utf-8?b?asO8QHk=?=\n" + BODY, "encoded word"),
            (
                "encoded words",
                RP + b"Delivered-To: =?utf-8?q?a=2Eb?=\n =?utf-8?q?c=40d?=\n" + BODY,
                "Delivered-To has an encoded word (RFC 2047) for an address: =?utf-8?q?a=2Eb?=",
            ),
            (
                "encoded words below",
                RP + b"Delivered-To:\n =?utf-8?q?a=2Eb?=\n =?utf-8?q?c=40d?=\n" + BODY,
                "encoded word",
            ),
            ("encoded sender", b"Return-Path: =?utf-8?q?=3C?=\n =?utf-8?q?x?=\n" + DT, "encoded"),
            ("encoded within", b"Return-Path: <=?utf-8?q?a?=@b>\n" + DT, "encoded word"),
            ("encoded in a list", RP + b"Envelope-to: e@f, =?utf-8?q?g=40h?=\n" + BODY, "encoded"),
            (
                "folded within quotes",
                RP + b'Delivered-To: "a b\n c"@d\n' + BODY,
                'Delivered-To is folded within an address: "a b',
            ),
            ("folded quotes, closed late", RP + b'Delivered-To: "a \\"b\n c"@d\n' + BODY, "folded"),
            ("folded within brackets", RP + b"Delivered-To: <a\n @d>\n" + BODY, "folded within"),
            ("folded quoted sender", b'Return-Path: <"a b\n c"@d>\n' + DT, 'form <address>: <"a b'),
        )
    ),
    ("folded after a value", b"Return-Path: <a@\n b>\n" + DT, "not of the form <address>: <a@"),
    ("long sender's line", b"Return-Path: <" + b"a" * MAX_LINE + b">\n" + DT, "longer than 8192"),
    ("long recipient's line", RP + b"Delivered-To:" + b" " * MAX_LINE + b"c\n", "longer than 8192"),
    ("long folded line", RP + b"Envelope-to: a,\n " + b"," * MAX_LINE + b"\n", "longer than 8192"),
    ("blank folded Return-Path", b"Return-Path:\n \n" + DT, "not of the form"),
    ("NUL in a quote", RP + b'Delivered-To: "a\0b"@c\n', "has a NUL in it"),
    ("too many", RP + b"Envelope-to: a" + b",\n a" * 10_000 + b"\n\n", "more than 10000"),
    ("NUL in sender", b"Return-Path: <a\0b>\n" + DT, "sender a?b has a NUL in it"),
    ("NUL in recipient", RP + b"Delivered-To: a\0b\n", "recipient a?b has a NUL in it"),
    ("NUL in Envelope-to", RP + b"Envelope-to: e,a\0b\n", "recipient a?b has a NUL in it"),
    ("CR in sender", b"Return-Path: <a\rb>\n" + DT, "sender a?b has a CR in it"),
    ("CR in recipient", RP + b"Delivered-To: a\rb\n", "recipient a?b has a CR in it"),
    ("two CRs", RP + b"Delivered-To: a\r\r\n", "recipient a? has a CR in it"),
    ("CR in Envelope-to", RP + b"Envelope-to: e,a\rb\n", "recipient a?b has a CR in it"),
    ("long sender", b"Return-Path: <%b>\n" % (b"s" * 1000) + DT, "sender of 1000 bytes"),
    ("long recipient", RP + b"Delivered-To: %b\n" % (b"r" * 1000), "recipient of 1000 bytes"),
    ("long, Exim", RP + b"Envelope-to: e,%b\n" % (b"r" * 1000), "recipient of 1000 bytes"),
]  # fmt: skip


def whole(top: bytes) -> Trace:
    """Read a file that is there whole."""
    trace = read_trace(top, complete=True)
    assert trace is not None
    return trace


def sent(top: bytes, trace: Trace) -> bytes:
    """What goes to the server."""
    return trace.kept + top[trace.offset :]


@pytest.mark.parametrize(
    ("top", "sender", "recipients", "message"),
    [row[1:] for row in READ],
    ids=[row[0] for row in READ],
)
def test_the_lines_that_delivery_agents_write(
    top: bytes, sender: bytes | None, recipients: tuple[bytes, ...], message: bytes
) -> None:
    """Each of these is somebody's mail server; the message must go where it was to go."""
    trace = whole(top)
    assert trace.sender == sender
    assert trace.recipients == recipients
    assert sent(top, trace) == message
    assert (trace.sender_fault, trace.recipients_fault) == ("", "")
    # The beginning of a large file says the same.
    long = top + b"Subject: x\n" if top.endswith(b"\n") else top + b"\nSubject: x\n"
    cut = read_trace(long, complete=False)
    assert cut is not None
    assert (cut.sender, cut.recipients) == (sender, recipients)


@pytest.mark.parametrize("complete", [True, False])
@pytest.mark.parametrize(("top", "says"), [row[1:] for row in HELD], ids=[row[0] for row in HELD])
def test_what_is_not_clear_is_no_address_and_has_its_reason(
    top: bytes, says: str, complete: bool
) -> None:
    """Guessing would send it to somebody else; the reason tells what to mend."""
    trace = read_trace(top if complete else top + b"Subject: x\n", complete)
    assert trace is not None
    fault = trace.sender_fault or trace.recipients_fault
    assert says in fault
    assert fault.isprintable()
    assert trace.sender is None or not trace.recipients


@pytest.mark.parametrize(
    ("top", "field"),
    [
        (RP + DT[:-1], "Delivered-To"),
        (RP + DT[:-1] + b"\r", "Delivered-To"),
        (RP + b"Delivered-To: k", "Delivered-To"),
        (DT + RP[:-1], "Return-Path"),
        (RP + b"Envelope-to: a@b, c@example.co", "Envelope-to"),
        (RP + b"Envelope-to: a@b,\n c@example.co", "Envelope-to"),
    ],
)
def test_a_file_that_is_cut_within_an_address_is_held(top: bytes, field: str) -> None:
    """A copy that ran out of room: kim@example.co is somebody else than kim@example.com."""
    trace = whole(top)
    fault = f"its {field} line does not end: the file may be cut off"
    assert fault in (trace.sender_fault, trace.recipients_fault)
    assert trace.sender is None or not trace.recipients


@pytest.mark.parametrize("length", [40, 70, 76, 80, 100, 200, 500])
@pytest.mark.parametrize("local", [b"list-%b", b'"a list %b"', "j\u00e4ne-%b".encode()])
def test_what_a_filter_in_python_writes_is_understood_or_held(local: bytes, length: int) -> None:
    """The first half of an address is another address; the second half is no header of ours."""
    address = local % (b"x" * (length - 30) + b".y" * 5) + b"@lists.example.net"
    fields = b"Return-Path: <%b>\nDelivered-To: %b\n" % (address, address)
    for policy in (email.policy.default, email.policy.SMTP, email.policy.compat32):
        message = email.message_from_bytes(fields + BODY, policy=policy)
        trace = whole(top := message.as_bytes())
        assert trace.sender in (None, addresses.unquote(address))
        assert trace.recipients in ((), (addresses.unquote(address),))
        assert (trace.sender is None) == bool(trace.sender_fault)
        assert bool(trace.recipients) != bool(trace.recipients_fault)
        assert sent(top, trace).replace(b"\r\n", b"\n") == BODY


def test_what_is_wrong_with_the_sender_is_not_said_of_the_recipients() -> None:
    """--sender is all that such a message needs."""
    trace = whole(b"Return-Path: a@b\n" + DT + BODY)
    assert (trace.recipients, trace.recipients_fault) == ((b"c@d",), "")
    trace = whole(RP + b"Delivered-To: a\0b\n" + BODY)
    assert (trace.sender, trace.sender_fault) == (b"a@b", "")


def test_a_reason_does_not_repeat_a_long_line() -> None:
    """Eight kilobytes of one log line hide the others."""
    for top in (b"Return-Path: %b\n" % (b"x" * 8_000), b'Envelope-to: "%b\n' % (b"x" * 8_000)):
        trace = whole(top)
        assert 200 < len(trace.sender_fault or trace.recipients_fault) < 300


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_a_line_of_the_envelope_has_8_kib_at_most(end: bytes) -> None:
    """The limit counts the line's end, and each line of a folded field."""
    for line in (b"Envelope-to: a@b", b"Envelope-to: a@b,\n c@d"):
        first = line.rfind(b"\n") + 1
        fits = line + b"," * (MAX_LINE - len(line[first:]) - len(end)) + end
        assert len(fits) - first == MAX_LINE
        assert whole(fits).recipients
        assert "longer than 8192 bytes" in whole(line + b"," + fits[len(line) :]).recipients_fault


@pytest.mark.parametrize(
    "top",
    [
        b"",
        b"Return-Pa",
        b"Return-Path",
        b"return-PATH \t",
        RP[:-1],
        RP,
        b"Return-Path:\n",
        b"Return-Path:\r\n <a@",
        RP + DT[:-1],
        RP + DT,
        RP + DT + b"E",
        RP + DT + b"Envelope",
        RP + DT + b"Envelope-to" + b" " * MAX_LINE,
        RP + DT + ET,
        RP + DT + ET + b" more",
        XO + RP + DT + b"return-path",
        XO + b" folded",
    ],
)
def test_where_the_block_may_go_on_below_the_cut_more_is_needed(top: bytes) -> None:
    """Of a large file only the top is read; half a trace line must not be sent as text."""
    assert read_trace(top, complete=False) is None


@pytest.mark.parametrize(
    "text", [b"z", b" x", b"\n", b"Subject", b"\0", b"Return-Path-X", b"x" * 99]
)
def test_a_cut_below_the_block_is_no_trouble(text: bytes) -> None:
    """A large message whose first line of text never ends is still a message."""
    assert read_trace(text, complete=False) == Trace(None, (), b"", 0)
    for block in (RP + DT, XO + RP + DT):
        trace = read_trace(block + text, complete=False)
        assert trace is not None
        assert trace == whole(block + text)
        assert trace.recipients == (b"c@d",)


# Blocks made line by line, so that what is to be removed is known.
# Nothing that a rule of its own is about: spellings of the null sender, quotes, encoded words.
ADDRESS = st.binary(max_size=30).map(lambda a: re.sub(rb'[\0\r\n \t<>"=]|mailer|unknown', b"", a))
EOL = st.sampled_from([b"\n", b"\r\n"])


@st.composite
def name_of(draw: st.DrawFn, name: bytes) -> bytes:
    """A field name in any letter case, with its colon."""
    ups = draw(st.lists(st.booleans(), min_size=len(name), max_size=len(name)))
    cased = b"".join(
        name[i : i + 1].upper() if up else name[i : i + 1].lower() for i, up in enumerate(ups)
    )
    return cased + draw(st.sampled_from([b":", b": ", b" :\t"]))


@st.composite
def trace_line(draw: st.DrawFn) -> tuple[bytes, bytes | None, bytes | None]:
    """A line of the block, with the sender or the recipient that it names."""
    kind = draw(st.sampled_from(["return-path", "delivered-to", "x-original-to", "delivery-date"]))
    head = draw(name_of(kind.encode()))
    eol = draw(EOL)
    if kind == "return-path":
        sender = draw(ADDRESS)
        return head + b"<" + sender + b">" + eol, sender, None
    if kind == "delivered-to":
        recipient = b"r" + draw(ADDRESS)
        form = draw(st.sampled_from([b"%b", b"<%b>"]))
        return head + form % recipient + eol, None, recipient
    folds = draw(st.lists(st.sampled_from([b" more\n", b"\tmore\r\n", b" \n"]), max_size=2))
    return head + draw(ADDRESS) + eol + b"".join(folds), None, None


@CHECKED
@given(
    st.lists(trace_line(), max_size=7),
    st.sampled_from([b"", b"\n", b"\r\n", b"Received: x\n", b"From a\n", b"To:\n x\n"]),
    st.binary(max_size=40),
)
def test_only_the_first_return_path_and_delivered_to_are_removed(
    lines: list[tuple[bytes, bytes | None, bytes | None]], first: bytes, rest: bytes
) -> None:
    """Everything else is sent byte for byte, or signatures break; later ones show loops."""
    after = first + rest if first else b""
    top = b"".join(line for line, _, _ in lines) + after
    trace = whole(top)
    senders = [n for n, (_, s, _) in enumerate(lines) if s is not None][:1]
    recipients = [n for n, (_, _, r) in enumerate(lines) if r is not None][:1]
    assert trace.sender == (lines[senders[0]][1] if senders else None)
    assert trace.recipients == tuple(lines[n][2] for n in recipients)
    gone = {*senders, *recipients}
    kept = b"".join(line for n, (line, _, _) in enumerate(lines) if n not in gone)
    assert sent(top, trace) == kept + after


# Pieces that make hard cases when they are run together.
PIECES = [
    RP, DT, XO, ET, DD, b"Return-Path:", b"return-path: <>", b"Delivered-To: ", b"Delivered-To",
    b"Envelope-to:", b"<", b">", b"a@b", b",", b"\n", b"\r", b"\r\n", b" ", b"\t", b"\0", b":",
    b'"', b"x", b"Received: y\n", b"\n\n", b"\xff", b"Return-Path: <", b"s" * 998, b"r" * 999,
]  # fmt: skip
PUZZLE = st.lists(st.sampled_from(PIECES), max_size=12).map(b"".join) | st.binary(max_size=60)


@settings(deadline=None, max_examples=500)
@given(PUZZLE)
def test_no_file_raises_and_nothing_but_trace_lines_is_removed(top: bytes) -> None:
    """One strange file must not stop the others, nor lose a line of its text."""
    trace = whole(top)
    assert (trace.sender_fault + trace.recipients_fault).isprintable()
    assert b"" not in trace.recipients
    assert all(
        len(a) <= 999 and not re.search(rb"[\0\r\n]", a)
        for a in (trace.sender or b"", *trace.recipients)
    )
    for line in re.findall(rb"[^\n]*\n|[^\n]+\Z", top[: trace.offset]):
        field = re.match(rb"(?i)(envelope-to|return-path|delivered-to)?", line)
        assert field is not None
        if line[:1] not in (b" ", b"\t") and not field[1]:
            assert line in trace.kept
    assert not re.search(rb"(?im)^envelope-to[ \t]*:", trace.kept)


CLASSIC = st.tuples(
    st.just(b"Return-Path: <"),
    st.binary(max_size=20) | st.sampled_from([b"s" * 999, b">", b"<a>", b"a> "]),
    st.just(b">\nDelivered-To: "),
    st.binary(max_size=20) | st.sampled_from([b"r" * 999, b"a>", b"a ", b"a<b>"]),
    st.just(b"\n"),
    PUZZLE,
).map(b"".join)


@settings(deadline=None, max_examples=500)
@given(CLASSIC | PUZZLE, st.booleans())
@example(RP + DT, False)
@example(RP + DT + b"Delivered-", False)
@example(RP + DT + b"delivery-DATE \t:", True)
@example(RP + DT + b"x" * MAX_LINE, False)
def test_the_fast_path_says_what_the_long_way_says(top: bytes, complete: bool) -> None:
    """Mail must not go elsewhere because its lines look like those of qmail."""
    if _CLASSIC.match(top):
        assert read_trace(top, complete) == _read_block(top, complete)


def test_the_fast_path_is_taken() -> None:
    """Else the property above would hold of nothing."""
    assert _CLASSIC.match(RP + DT + BODY)
    assert _CLASSIC.match(b"Return-Path: <>\n" + DT + b"\nhi\n")


@settings(deadline=None, max_examples=500)
@given(PUZZLE, st.integers(0, 3000))
def test_the_top_of_a_file_says_what_the_whole_says_or_nothing(top: bytes, length: int) -> None:
    """A message of 2 MiB must go where the same message of 2 KiB goes."""
    cut = read_trace(top[:length], complete=False)
    assert cut is None or cut == whole(top)


MIB = 1 << 20
LARGE = [
    b"Return-Path: <" + b"a" * MIB,
    b"Return-Path: <" + b">" * MIB + b"\n",
    b"Return-Path: <" + b"a" * 999 + b"\nReturn-Path: <" * (MIB // 15),
    b"Return-Path" + b" " * MIB,
    b"Return-Path" + b" \t" * (MIB // 2) + b":",
    b"Return-Path: <a>\nDelivered-To: b\nReturn-Path" + b" " * MIB,
    RP + DT + b"X-Original-To: a\n" + b" \n" * (MIB // 2),
    b"Envelope-to: " + b"\n " * (MIB // 2),
    b"Envelope-to: " + b"," * MIB,
    b"Envelope-to: a" + b",\n a" * (MIB // 4),
    b"X-Original-To: " + b"\r" * MIB + b"\n",
    b"X-Original-To: " + b"\r" * 8_000 + b"\n" + (b" " + b"\r" * 8_000 + b"\n") * 130,
    b"X-Original-To:\n" * (MIB // 15),
    b"Delivered-To: x\n" * (MIB // 16),
    b"Delivered-To: " + b" " * MIB + b"\n",
    b"\n" * MIB,
    b"\0" * MIB,
    b" " * MIB,
    b"a" * MIB,
]


@pytest.mark.parametrize("complete", [True, False])
@pytest.mark.parametrize("top", LARGE, ids=[ascii(top[:30]) for top in LARGE])
def test_a_mebibyte_made_to_be_hard_is_got_over_with(top: bytes, complete: bool) -> None:
    """Quadratic time on one message would stop all that come after it."""
    before = time.process_time()
    assert read_trace(top, complete) is not None or not complete
    assert time.process_time() - before < 10, "that is not linear: it takes 0.1 s at most"


# recipients, prefix -> those that are ours
OURS = [
    ((b"c@d",), b"", (b"c@d",)),
    ((), b"", ()),
    ((), b"x-", ()),
    ((b"alias-ppp-c@d",), b"alias-ppp-", (b"c@d",)),
    ((b"Alias-ppp-c@d",), b"alias-ppp-", ()),
    ((b"alias-pp",), b"alias-ppp-", ()),
    ((b"x-alias-ppp-c@d",), b"alias-ppp-", ()),
    ((b"x-a", b"y-b", b"x-c", b"x-a"), b"x-", (b"a", b"c", b"a")),
    ((b"x-x-a",), b"x-", (b"x-a",)),
    ((b"\xffa",), b"\xff", (b"a",)),
]


@pytest.mark.parametrize(("recipients", "prefix", "expected"), OURS)
def test_only_recipients_with_the_prefix_are_ours(
    recipients: tuple[bytes, ...], prefix: bytes, expected: tuple[bytes, ...]
) -> None:
    """serialmail: the prefix goes, once; somebody else's mail in the maildir stays."""
    assert ours(recipients, prefix) == expected


def test_a_recipient_that_is_nothing_but_the_prefix_is_held() -> None:
    """Nothing is left to send it to; silently ignored, it would never be noticed."""
    with pytest.raises(EnvelopeError, match="nothing but the prefix alias-ppp-"):
        ours((b"alias-ppp-c@d", b"alias-ppp-"), b"alias-ppp-")
