"""Against the QMTP server that Debian ships: mailfront, under tcpserver.

It takes our packages with a parser that is not ours, and keeps what it got.
"""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest

from tests.e2e.conftest import Run
from tests.helpers import (
    add_message,
    have_mailfront,
    mailfront,
    make_maildir,
    names,
    queuedir_messages,
    run,
    snapshot,
)

pytestmark = pytest.mark.skipif(
    not have_mailfront(),
    reason="THE ONLY TEST AGAINST A FOREIGN SERVER IS NOT RUN: "
    "apt-get install --no-install-recommends mailfront ucspi-tcp",
)

Mail = tuple[bytes, tuple[bytes, ...], bytes]

TEXTS = (
    b"",
    b"\n",
    b"x",
    b"\0",
    b"Subject: no final newline\n\nbody",
    b"Subject: blank lines at the end\n\n\n\n\n",
    b"\nbody without a header\n",
    b"\0 in it\0\n\0\0",
    bytes(range(256)),
    b"Subject: every byte\n\n" + bytes(range(256)) * 40,
    b"Subject: CRLF\r\n\r\nas on DOS\r\n.\r\n",
    b"Subject: mixed\r\n\nline\rline\n\r\n\r",
    b"Subject: dots\n\n.\n..\n...\n.\n",
    b".",
    b".\r\nQUIT\r\n",
    b"From somebody Sat Jan  1 00:00:00 2022\nSubject: mbox\n\nFrom here\n>From there\n",
    b"Subject: \xe4\xf6\xfc\n\nL\xc3\xbcbeck\n",
    b"Subject: one long line\n\n" + b"x" * 100_000,
    b"5:hello,3:a@b,6:3:c@d,,",
    b"To: a@b\nDelivered-To: below the block@example.org\nReturn-Path: <too>\n\nkept\n",
)

#: Just below and above what is read whole, and well above what a socket buffers.
LARGE_TEXTS = (
    b"Subject: read whole\n\n" + b"\xff" * ((1 << 20) - 200),
    b"Subject: streamed\n\n" + b"\0" * (1 << 20),
    b"Subject: 3 MB\n\n" + random.Random(3).randbytes(3_000_000),
)

ADDRESSES = (
    b"plain@example.org",
    b"two words@example.org",
    b" @example.org",
    b'"quoted \\" and @ local"@example.org',
    b"it's@example.org",
    "jürgen@exämple.org".encode(),
    "宛先@例え.jp".encode(),
    b"\xff\xfe\x80@example.org",
    b"\x01\x1b[31m@example.org",
    b"no-domain",
    b"UPPER@Example.ORG",
    b"a,b@example.org",
    b"a<b>c@example.org",
    b"owner-@example.org-@[]",
    b"l" * 900 + b"@example.org",
)
SENDERS = (b"", b"#@[]", b"<angle>@example.org", *ADDRESSES)
RECIPIENTS = tuple(address.lstrip() for address in ADDRESSES)


def _mails(count: int) -> list[Mail]:
    """Make messages that are all different, and have every oddity above in them."""
    texts = TEXTS + LARGE_TEXTS
    mails: list[Mail] = []
    for number in range(count):
        # Large ones once each; their number is no common divisor with the addresses'.
        text = texts[number] if number < len(texts) else TEXTS[number % len(TEXTS)]
        if number >= len(texts):
            text += b"%d" % number
        sender = SENDERS[number % len(SENDERS)]
        recipient = RECIPIENTS[number // 2 % len(RECIPIENTS)]
        mails.append((sender, (recipient,), text))
    return mails


#: A quoted local part is raw in the envelope of QMTP, as in qmail's addresses(5).
UNQUOTED = {b'"quoted \\" and @ local"@example.org': b'quoted " and @ local@example.org'}


def _as_sent(mails: list[Mail]) -> list[Mail]:
    """Return the messages with their envelopes as they go over the wire."""
    return [
        (sender, tuple(UNQUOTED.get(r, r) for r in recipients), text)
        for sender, recipients, text in _with_raw_senders(mails)
    ]


def _with_raw_senders(mails: list[Mail]) -> list[Mail]:
    """Return the messages as they go where a prefix stands before what would be the quotation."""
    return [(UNQUOTED.get(sender, sender), recipients, text) for sender, recipients, text in mails]


def _fill(maildir: Path, mails: list[Mail], prefix: bytes = b"") -> None:
    for number, (sender, (recipient,), text) in enumerate(mails):
        add_message(maildir, f"{1_700_000_000 + number}.m.host", text, sender, prefix + recipient)


def test_300_odd_messages_arrive_byte_for_byte_with_their_envelopes(tmp_path: Path) -> None:
    """Nothing in a message or an address is touched, and nothing comes twice."""
    maildir = make_maildir(tmp_path / "maildir")
    mails = _mails(300)
    assert {m[0] for m in mails} == set(SENDERS)
    assert {m[1][0] for m in mails} == set(RECIPIENTS)
    _fill(maildir, mails)
    with mailfront(tmp_path / "queue") as server:
        result = run(maildir, server)
    assert Counter(queuedir_messages(tmp_path / "queue")) == Counter(_as_sent(mails))
    assert result.stderr.startswith("maildirqmtp: 300 accepted, 0 deferred, 0 failed, 0 held, ")
    assert result.returncode == 0
    assert names(maildir / "new") == []


def test_classic_form_sends_what_has_the_prefix_and_without_it(tmp_path: Path) -> None:
    """`maildirqmtp DIR PREFIX SERVER`: scripts written for serialmail go on working."""
    maildir = make_maildir(tmp_path / "maildir")
    mails = _mails(150)
    _fill(maildir, mails, prefix=b"alias-ppp-")
    for number, recipient in enumerate((b"somebody@example.org", b"ALIAS-PPP-a@b", b"alias-pp")):
        add_message(maildir, f"1.other{number}", recipient=recipient)
    with mailfront(tmp_path / "queue") as server:
        result = run(maildir, "alias-ppp-", server)
    assert Counter(queuedir_messages(tmp_path / "queue")) == Counter(_with_raw_senders(mails))
    assert result.returncode == 0
    assert names(maildir / "new") == ["1.other0", "1.other1", "1.other2"]


def test_several_recipients_with_a_server_that_answers_once_per_package(
    tmp_path: Path, run_quickly: Run
) -> None:
    """Mailfront's single answer must neither hang the run nor count for the wrong message."""
    maildir = make_maildir(tmp_path / "maildir")
    texts = [b"Subject: %d\n\ntext\n" % number for number in range(5)]
    for number, text in enumerate(texts):
        add_message(maildir, f"{number}.m", text, sender=b"%d@example.org" % number)
    with mailfront(tmp_path / "queue") as server:
        result = run_quickly(maildir, "--recipient", "a@b", "--recipient", "c@d", server)
    served = set()
    for path in (tmp_path / "queue" / "new").iterdir():
        sender, rest = path.read_bytes().split(b"\0", 1)
        for recipient in (b"a@b\0", b"c@d\0"):
            if rest.startswith(recipient):
                served.add((sender, recipient[:-1]))
                rest = rest.removeprefix(recipient)
        assert rest == texts[int(sender[:1])]
    expected = {(b"%d@example.org" % n, r) for n in range(5) for r in (b"a@b", b"c@d")}
    assert served == expected
    assert "answers once per package" in result.stderr
    assert "10 accepted, 0 deferred, 0 failed, 0 held, 1 in doubt" in result.stderr
    assert result.returncode == 0
    assert names(maildir / "new") == []
    assert names(maildir / "envelope") == []


def test_what_mailfront_rejects_goes_to_the_failed_maildir(tmp_path: Path) -> None:
    """A real server's D and its reason are understood."""
    maildir = make_maildir(tmp_path / "maildir")
    content = [add_message(maildir, f"{number}.m") for number in range(3)]
    with mailfront(tmp_path / "queue", "queuedir", "reject") as server:
        result = run(maildir, server)
    failed = maildir / ".Failed" / "new"
    assert [path.read_bytes() for path in sorted(failed.iterdir())] == content
    assert names(maildir / "new") == []
    assert "not configured to accept that sender" in result.stderr
    assert result.returncode == 111


def test_what_mailfront_cannot_store_now_stays(tmp_path: Path) -> None:
    """A real server's Z, as with its disk full, touches no message; the next run sends it."""
    maildir = make_maildir(tmp_path / "maildir")
    mails = _mails(3)
    _fill(maildir, mails)
    before = snapshot(maildir)
    queue = tmp_path / "queue"
    with mailfront(queue) as server:
        (queue / "tmp").rmdir()
        result = run(maildir, server)
        assert snapshot(maildir) == before
        assert "0 accepted, 3 deferred, " in result.stderr
        assert result.returncode == 111
        (queue / "tmp").mkdir()
        assert run(maildir, server).returncode == 0
    assert Counter(queuedir_messages(queue)) == Counter(mails)
