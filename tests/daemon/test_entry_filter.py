"""Which messages a filter means: a wrong one drops somebody's mail."""

from __future__ import annotations

from typing import Any

import pytest

from maildirqmtp.daemon.entry_filter import EntryFilter, domain_of
from maildirqmtp.daemon.listing import FAILED, HELD, Entry
from maildirqmtp.mail.sidecar import Failure
from maildirqmtp.maildir.files import Folder

NOW_S = 1_800_000_000.0
FOLDER = Folder(-1, b"M/new")


def entry(**values: Any) -> Entry:
    """Return a message that came a minute ago."""
    given: dict[str, Any] = {
        "state": "waiting",
        "sender": b"Ann@Example.org",
        "recipients": (b"bob@example.net", b"carol@sub.example.net"),
        "reason": "Connection refused",
    }
    return Entry(FOLDER, b"1.a", (1, 2, 3, int((NOW_S - 60) * 1e9)), **(given | values))


@pytest.mark.parametrize(
    ("asked", "matches"),
    [
        ({}, True),
        ({"to": b"BOB@example.net"}, True),
        ({"to": b"carol@sub.example.net"}, True),
        ({"to": b"ob@example.net"}, False),
        ({"to": b"@example.net"}, True),
        ({"to": b"@net"}, False),
        ({"to": b"@sub.example.net"}, True),
        ({"sender": b"ann@example.org"}, True),
        ({"sender": b"@EXAMPLE.org"}, True),
        ({"sender": b""}, False),
        ({"older_s": 60.0}, True),
        ({"older_s": 60.5}, False),
        ({"why": "REFUSED"}, True),
        ({"why": "no such"}, False),
        ({"state": "waiting"}, True),
        ({"state": HELD}, False),
        ({"to": b"bob@example.net", "sender": b"other@x"}, False),
    ],
)
def test_all_that_is_asked_must_be_so(asked: dict[str, Any], matches: bool) -> None:
    """Whole addresses and whole domains, letter case apart."""
    assert EntryFilter(**asked).matches(entry(), NOW_S) is matches


def test_the_null_sender_and_no_sender_are_two_things() -> None:
    """`--from ''` means bounces, not messages whose envelope cannot be read."""
    assert EntryFilter(sender=b"").matches(entry(sender=b""), NOW_S)
    assert not EntryFilter(sender=b"").matches(entry(sender=None), NOW_S)


def test_those_who_failed_are_recipients_too() -> None:
    """That is who is asked for in a failed maildir."""
    one = entry(state=FAILED, recipients=(), failures=(Failure(b"dan@y", "Dno", "then"),))
    assert EntryFilter(to=b"dan@y", state=FAILED).matches(one, NOW_S)


def test_a_domain_is_what_follows_the_last_at() -> None:
    """A local part may have one, and an address may have none."""
    assert domain_of(b'"a@b"@Example.NET') == b"example.net"
    assert domain_of(b"local") == b""
