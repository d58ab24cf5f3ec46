"""Names of this machine's users: aliases, completion, the envelope sender."""

from __future__ import annotations

import socket

import pytest

from maildirqmtp.errors import ConfigError
from maildirqmtp.settings.submission import Submission
from maildirqmtp.submission import local_names
from maildirqmtp.submission.local_names import LocalNames, NoSuchUser

ALIASES = {
    b"root": (b"admin@example.net",),
    b"cron": (b"Root", b"ops"),
    b"ops": (b"a@x", b"root@localhost", b"jane"),
}


@pytest.fixture(autouse=True)
def _on_a_laptop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "laptop")
    monkeypatch.setattr(local_names, "full_host_name", lambda: "laptop.corp.example")


def names(domain: str | None = "example.org", sender: bytes | None = None) -> LocalNames:
    """Return the names of a machine with aliases."""
    return LocalNames(Submission(domain=domain, sender=sender, aliases=ALIASES))


@pytest.mark.parametrize(
    ("given", "addresses"),
    [
        ([b"a@b"], [b"a@b"]),
        ([b"jane"], [b"jane@example.org"]),
        ([b"jane@localhost"], [b"jane@example.org"]),
        ([b"jane@Laptop"], [b"jane@example.org"]),
        ([b"jane@localhost.localdomain"], [b"jane@example.org"]),
        ([b"jane@laptop.corp.example"], [b"jane@laptop.corp.example"]),
        ([b"jane x"], [b"jane x@example.org"]),
        # Aliases, letter case ignored, before completion.
        ([b"root"], [b"admin@example.net"]),
        ([b"ROOT@LOCALHOST"], [b"admin@example.net"]),
        ([b"root@laptop"], [b"admin@example.net"]),
        ([b"root@laptop.corp.example"], [b"admin@example.net"]),
        ([b"root@Laptop.Corp.Example."], [b"admin@example.net"]),
        ([b"root@example.org"], [b"root@example.org"]),
        ([b"root@laptop.example"], [b"root@laptop.example"]),
        ([b"root@example.net"], [b"root@example.net"]),
        # Each once, in the order they come.
        ([b"cron"], [b"admin@example.net", b"a@x", b"jane@example.org"]),
        ([b"jane", b"cron", b"root"], [b"jane@example.org", b"admin@example.net", b"a@x"]),
        ([b"a@X", b"a@x", b"A@x"], [b"a@X", b"A@x"]),
        ([b"MAILER-DAEMON"], [b"MAILER-DAEMON@example.org"]),
    ],
)
def test_recipients(given: list[bytes], addresses: list[bytes]) -> None:
    """A machine's own mail gets to a person, once."""
    assert list(names().recipients(given)) == addresses


@pytest.mark.parametrize("name", [b"jane", b"jane@localhost", b"cron"])
def test_without_a_domain_an_unknown_name_is_nobody(name: bytes) -> None:
    """Sent on without one, it would be somebody else's at the server."""
    with pytest.raises(NoSuchUser, match="no such user: jane"):
        names(domain=None).recipients([b"a@b", name])


def test_without_a_domain_aliases_hold() -> None:
    """And whole addresses do."""
    assert names(domain=None).recipients([b"root", b"a@b"]) == (b"admin@example.net", b"a@b")


def chain(length: int) -> dict[bytes, tuple[bytes, ...]]:
    """Return aliases that lead from `a0` to an address, so many of them."""
    inner: dict[bytes, tuple[bytes, ...]] = {
        b"a%d" % n: (b"a%d" % (n + 1),) for n in range(length - 1)
    }
    return inner | {b"a%d" % (length - 1): (b"end@x",)}


def test_ten_deep_and_no_deeper() -> None:
    """Deeper ones are a mistake."""
    assert LocalNames(Submission(aliases=chain(10))).recipients([b"a0"]) == (b"end@x",)
    with pytest.raises(ConfigError, match=r"a0 is more than 10 deep: a0 -> a1 .*-> a10$"):
        LocalNames(Submission(aliases=chain(11))).recipients([b"a0"])


@pytest.mark.parametrize(
    ("aliases", "shown"),
    [
        ({b"a": (b"a",)}, "a -> a"),
        ({b"a": (b"x@y", b"b"), b"b": (b"A@localhost",)}, "a -> b -> a"),
        ({b"a": (b"b",), b"b": (b"c",), b"c": (b"b",)}, "a -> b -> c -> b"),
        ({b"a": (b"a@laptop.corp.example",)}, "a -> a"),
    ],
)
def test_a_loop_is_an_error(aliases: dict[bytes, tuple[bytes, ...]], shown: str) -> None:
    """Of the configuration; what is said of one part of it would hide the others."""
    with pytest.raises(ConfigError, match=f"leads back to itself: {shown}$"):
        LocalNames(Submission(domain="example.org", aliases=aliases)).recipients([b"a"])


def test_many_ways_to_one_name_take_no_time() -> None:
    """Each name is looked up once: ten levels of ten would be ten thousand million."""
    wide: dict[bytes, tuple[bytes, ...]] = {b"a%d" % n: (b"a%d" % (n + 1),) * 10 for n in range(9)}
    wide[b"a9"] = (b"end@x",)
    assert LocalNames(Submission(aliases=wide)).recipients([b"a0"]) == (b"end@x",)


@pytest.mark.parametrize(
    ("address", "plain", "configured"),
    [
        (b"", b"", b""),
        (b"jane", b"jane@example.org", b"me@isp.example"),
        (b"root", b"root@example.org", b"me@isp.example"),
        (b"jane@localhost", b"jane@example.org", b"me@isp.example"),
        (b"jane@laptop", b"jane@example.org", b"me@isp.example"),
        (b"jane@laptop.corp.example", b"jane@example.org", b"me@isp.example"),
        (b"jane@example.org", b"jane@example.org", b"jane@example.org"),
        (b"jane@other.example", b"jane@other.example", b"jane@other.example"),
    ],
)
def test_the_envelope_sender(address: bytes, plain: bytes, configured: bytes) -> None:
    """`jane@laptop` is refused by most servers; the null sender stays what it is."""
    assert names().sender(address) == plain
    assert names(sender=b"me@isp.example").sender(address) == configured
    assert names(domain=None).sender(b"jane") == b"jane@laptop.corp.example"


@pytest.mark.parametrize(
    ("domain", "sender"),
    [("example.org", b"me@example.org"), (None, b"me@laptop.corp.example")],
)
def test_a_configured_sender_may_lack_its_domain(domain: str | None, sender: bytes) -> None:
    """The server would complete it by its own, and somebody else there get the bounces."""
    for address in (b"jane", b"jane@localhost"):
        assert names(domain, sender=b"me").sender(address) == sender
        assert names(domain, sender=b"").sender(address) == b""


def test_the_dns_is_not_asked_for_most_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Offline it takes seconds to answer."""

    def ask() -> str:
        raise AssertionError("the DNS was asked")

    monkeypatch.setattr(local_names, "full_host_name", ask)
    assert names().recipients([b"root@example.net", b"cron", b"a@laptops.example"])
    assert names().sender(b"a@b") == b"a@b"
    assert names().host == b"example.org"
