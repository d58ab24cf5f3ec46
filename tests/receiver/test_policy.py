"""Whom the receiver takes mail for."""

from __future__ import annotations

import pytest

from maildirqmtp.qmtp.protocol import Status
from maildirqmtp.receiver.policy import Policy, accept_all, only_domains


@pytest.mark.parametrize(
    ("recipient", "taken"),
    [
        (b"a@example.org", True),
        (b"a@EXAMPLE.org", True),
        (b"a@b@example.org", True),
        (b"a@example.org@evil", False),
        (b"a@example.net", False),
        (b"a@sub.example.org", False),
        (b"a@", False),
        (b"example.org", False),
        (b"", False),
    ],
)
def test_mail_is_taken_for_the_domains_that_were_given(recipient: bytes, taken: bool) -> None:
    """Anything else makes an open relay."""
    refusal = only_domains([b"Example.ORG"])(recipient)
    assert (refusal is None) is taken
    assert refusal is None or refusal.status is Status.FAILED


@pytest.mark.parametrize(
    "recipient",
    [
        b"victim%evil.example@example.org",
        b"evil.example!victim@example.org",
        b"victim@evil.example@example.org",
        b"@evil.example:victim@example.org",
        b"@evil.example,@b:victim@EXAMPLE.ORG",
        b"%@example.org",
    ],
)
def test_no_way_on_through_a_domain_that_is_served(recipient: bytes) -> None:
    """Postfix takes it from its own machine, and sends it on to evil.example: an open relay."""
    assert only_domains([b"example.org"])(recipient) is None
    refusal = only_domains([b"example.org"], routing=False)(recipient)
    assert refusal is not None
    assert refusal.status is Status.FAILED
    assert only_domains([b"example.org"], routing=False)(b"a+b=c.d@example.org") is None


def test_a_policy_knows_whether_it_refuses_anybody() -> None:
    """A server beyond loopback that refuses nobody does not start."""
    assert not Policy().restricted
    assert not Policy(refuse=accept_all).restricted
    assert Policy(refuse=only_domains([])).restricted
