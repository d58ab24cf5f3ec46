"""The header of a submitted message."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maildirqmtp.errors import EnvelopeError
from maildirqmtp.submission import heading
from maildirqmtp.submission.heading import Missing

DATE = b"Date: Thu, 26 Nov 2026 12:00:00 +0000\n"
MISSING = Missing(lambda: b"Me <me@x>", 1_795_694_400.0, lambda: b"<1@x>")
FULL = b"From: a@x\n" + DATE + b"Message-ID: <2@x>\n"


def completed(header: bytes, domain: bytes = b"") -> bytes:
    """Return a header as it is sent."""
    head, begin, rest = heading.read([header + b"\n", b"body"])
    assert begin + b"".join(rest) == b"body"
    return heading.completed(head, domain, MISSING)


@pytest.mark.parametrize(
    "blind",
    [
        b"Bcc: b@y\n",
        b"BCC:b@y\n",
        b"bcc : b@y,\n\tc@z\n d@z\n",
        b"Bcc:\n",
        b"Resent-Bcc: b@y\n",
        b"Bcc: no list @@\n",
    ],
)
def test_a_blind_copy_stays_blind(blind: bytes) -> None:
    """Nobody may see who else got it."""
    resent = b"Resent-From: a@x\nResent-Date: now\nResent-Message-ID: <3@x>\n"
    for before in (FULL, resent + FULL):
        sent = completed(before + blind + b"To: a@x\n")
        assert sent.endswith(before + b"To: a@x\n\n")
        assert b"bcc" not in sent.lower()


NAMES = ("Bcc", "bcc ", "BCC", "Resent-Bcc", "To", "Cc", "X-Bcc", "Subject", "Bcc-Note")
FOLDS = st.sampled_from(["", "\n ", "\n\t", " ", "\n \n "])


@given(
    st.lists(st.tuples(st.sampled_from(NAMES), FOLDS, FOLDS), max_size=8),
    st.lists(st.integers(1, 9), max_size=40),
)
def test_whatever_is_blind_goes_and_nothing_else(
    parts: list[tuple[str, str, str]], sizes: list[int]
) -> None:
    """However it is spelled and folded, and wherever a pipe cuts the header."""
    text = "".join(
        f"{name}:{before}first{n}@x,{after}second{n}@x\n"
        for n, (name, before, after) in enumerate(parts)
    ).encode()
    pieces, rest = [], text + b"\nbody"
    for size in sizes:
        pieces.append(rest[:size])
        rest = rest[size:]
    head, begin, left = heading.read([*pieces, rest])
    sent = heading.completed(head, b"", MISSING)
    assert begin + b"".join(left) == b"body"
    for n, (name, *_) in enumerate(parts):
        kept = name.strip().lower() not in ("bcc", "resent-bcc")
        assert (b"first%d@x" % n in sent) is kept
        assert (b"second%d@x" % n in sent) is kept


def test_what_is_missing_is_added() -> None:
    """RFC 5322, 3.6: without From and Date it is no message, and some servers refuse it."""
    assert completed(b"To: a@x\n") == (
        b"To: a@x\nFrom: Me <me@x>\n" + DATE + b"Message-ID: <1@x>\n\n"
    )
    assert completed(FULL) == FULL + b"\n"
    assert completed(FULL.upper()) == FULL.upper() + b"\n"


def test_what_is_there_is_not_made_anew() -> None:
    """To find out this machine's name can take seconds."""

    def never() -> bytes:
        raise AssertionError("nobody asked for it")

    head, *_ = heading.read([FULL])
    assert heading.completed(head, b"", Missing(never, 0.0, never)) == FULL + b"\n"


def test_of_a_resent_message_the_resent_fields_are_completed() -> None:
    """RFC 5322, 3.6.6; those of the first sending stay as they are."""
    assert completed(b"Resent-To: b@y\n" + FULL) == (
        b"Resent-From: Me <me@x>\nResent-Date: " + DATE[6:] + b"Resent-Message-ID: <1@x>\n"
        b"Resent-To: b@y\n" + FULL + b"\n"
    )


def test_addresses_without_a_domain_are_completed() -> None:
    """A reply to `root` would go to the reader's own root."""
    header = b"From: root (Cron Daemon)\nTo: a@x, jane,\n Bob <bob>\nSubject: root, jane\n"
    assert completed(header + DATE + b"Message-ID: x\n", b"D") == (
        b"From: root@D (Cron Daemon)\nTo: a@x, jane@D,\n Bob <bob@D>\nSubject: root, jane\n"
        + DATE
        + b"Message-ID: x\n\n"
    )
    assert b"\nCc: no list, jane @@\n" in completed(b"To: a@x\nCc: no list, jane @@\n", b"D")


def test_a_list_of_many_local_names_takes_no_time() -> None:
    """It was copied whole for each: a long header kept a processor busy for minutes."""
    names = b",".join([b"a"] * 200_000)
    header = completed(FULL + b"To: " + names + b"\n", b"D")
    assert header == FULL + b"To: " + names.replace(b"a", b"a@D") + b"\n\n"


@pytest.mark.parametrize(
    ("header", "recipients"),
    [
        (b"", []),
        (b"Subject: a@x\nFrom: b@y\nReply-To: c@z\n", []),
        (b"To: a@x\nCc: g: b@y, c@z;\nBcc: d@z\n", [b"a@x", b"b@y", b"c@z", b"d@z"]),
        (b"To: a@x\nSubject: x\nTo: b@y\n", [b"a@x", b"b@y"]),
        (b"TO:\n a@x,\n\tb@y\n", [b"a@x", b"b@y"]),
        (b"Resent-To: a@x\nResent-Bcc: b@y\nTo: c@z\nBcc: d@z\n", [b"a@x", b"b@y"]),
        (b"Resent-From: a@x\nTo: c@z\n", []),
        (b"X-Resent-To: a@x\nTo: c@z\n", [b"c@z"]),
    ],
)  # fmt: skip
def test_recipients_of_the_header(header: bytes, recipients: list[bytes]) -> None:
    """A message that is sent once more goes to whom it is sent now, as with Postfix."""
    head, *_ = heading.read([header + b"\nTo: body@x\n"])
    assert heading.recipients(head) == recipients


def test_a_field_that_is_no_list_is_told() -> None:
    """With its name; nobody gets the message then, instead of some."""
    head, *_ = heading.read([b"To: a@x\nCc: Ann Bee, b@y\n"])
    with pytest.raises(EnvelopeError, match=r"^Cc: not a list of addresses: 'Ann Bee'"):
        heading.recipients(head)


def test_the_body_is_not_read_for_the_header() -> None:
    """Nor is a header without end taken into memory."""
    head, begin, rest = heading.read(iter([b"To: a", b"@x\n", b"\nbo", b"dy", b""]))
    assert [field.value for field in head.fields] == [b" a@x\n"]
    assert (begin, list(rest)) == (b"bo", [b"dy", b""])
    endless = (b"To: a@x,\n b@y,\n" for _ in iter(int, 1))
    with pytest.raises(EnvelopeError, match="header is larger than 1048576 bytes"):
        heading.read(endless)


@pytest.mark.parametrize("length", [1, 1 << 16, 1 << 21])
def test_the_largest_header(length: int) -> None:
    """One byte more is too much in whatever pieces it comes, though it is complete by then."""
    name, end = b"Subject: ", b"\n\n"
    largest = name + b"x" * (heading.MAX_BYTES - len(name + end)) + end

    def read(text: bytes) -> bytes:
        pieces = (text[at : at + length] for at in range(0, len(text), length))
        _head, begin, rest = heading.read(pieces)
        return begin + b"".join(rest)

    assert read(largest + b"body") == b"body"
    with pytest.raises(EnvelopeError, match="header is larger than 1048576 bytes"):
        read(largest.replace(b"x", b"xx", 1) + b"body")


@pytest.mark.parametrize(
    ("name", "address", "written"),
    [
        ("Ann Bee", b"a@x", b"Ann Bee <a@x>"),
        ("", b"a@x", b"a@x"),
        ("J\xfcrgen", b"j x@y", b'=?utf-8?b?SsO8cmdlbg==?= <"j x"@y>'),
    ],
)
def test_the_author(name: str, address: bytes, written: bytes) -> None:
    """As RFC 5322 has it."""
    assert heading.author(name, address) == written
