"""The header: a loop that is not seen sends mail round and round; one seen wrongly loses mail."""

import pytest

from maildirqmtp.mail.header import (
    MAX_HEADER,
    MAX_RECEIVED,
    count_received,
    header_end,
    loop_lines,
    message_id,
)

R = b"Received: from a by b; Sat, 31 Jan 2026 12:00:00 +0000\n"

COUNTED = [
    ("none", b"Subject: x\n\nhi\n", 0),
    ("empty", b"", 0),
    ("one", R + b"\n", 1),
    ("no line end", b"Received: x", 1),
    ("letter case", b"RECEIVED: x\nreceived: y\nReceived: z\n\n", 3),
    ("CRLF", b"Received: x\r\nReceived: y\r\n\r\nReceived: z\r\n", 2),
    ("blank before the colon", b"Received : x\nReceived\t: y\n\n", 2),
    ("folded", b"Received: x\n\tReceived: y\n Received: z\n\n", 1),
    ("other fields", b"Received-SPF: pass\nX-Received: x\nReceivedx: y\n\n", 0),
    ("in the body", R * 3 + b"\n" + R * 100, 3),
    ("in the body, with CRLF", b"Subject: x\r\n\r\n" + R * 100, 0),
    ("no header", b"\n" + R * 100, 0),
    ("no header, CRLF", b"\r\n" + R * 100, 0),
    ("99", R * 99 + b"\nhi\n", 99),
    ("100, below trace lines", b"Return-Path: <>\nDelivered-To: a@b\n" + R * 100 + b"\n", 100),
    ("within 64 KiB", b"X: " + b"x" * (MAX_HEADER - 3 - 1 - 2 * len(R)) + b"\n" + R * 9, 2),
    ("mixed line ends", b"Received: x\r\nReceived: y\n\nReceived: z\n", 2),
]


@pytest.mark.parametrize(("top", "count"), [c[1:] for c in COUNTED], ids=[c[0] for c in COUNTED])
def test_received_lines_of_the_header_are_counted(top: bytes, count: int) -> None:
    """A quoted header in the body is no loop: counted, an innocent message would be refused."""
    assert count_received(top) == count
    assert loop_lines(top) == (count if count >= MAX_RECEIVED else 0)


def test_the_header_ends_before_its_empty_line() -> None:
    """What stands below it is text, whatever it looks like."""
    assert header_end(b"A: b\n\nC: d\n\n") == 4
    assert header_end(b"A: b\r\n\r\nC: d\n\n") == 5
    assert header_end(b"A: b\n") == 5
    assert header_end(b"\nA: b\n\n") == 0


def test_the_message_id_is_that_of_the_header() -> None:
    """Somebody follows a message by it; one from a quoted message would lead to another."""
    assert message_id(b"Message-ID: <a@b>\n\n") == b"<a@b>"
    assert message_id(b"message-id:\r\n\t<a@b>\r\n\r\n") == b"<a@b>"
    assert message_id(b"Subject: x\n\nMessage-ID: <quoted@b>\n") == b""
    assert message_id(b"\nMessage-ID: <quoted@b>\n") == b""
