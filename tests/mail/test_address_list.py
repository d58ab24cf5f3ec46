"""Lists of addresses: everybody in a To field gets the message, and nobody else."""

from __future__ import annotations

from email.utils import getaddresses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maildirqmtp.mail.address_list import parse
from maildirqmtp.mail.addresses import quote


def found(text: bytes) -> list[bytes]:
    """Return the addresses of a list."""
    return [mailbox.address for mailbox in parse(text)]


@pytest.mark.parametrize(
    ("text", "addresses"),
    [
        (b"", []),
        (b" \n", []),
        (b"a@x", [b"a@x"]),
        (b" a@x\n", [b"a@x"]),
        (b"<a@x>", [b"a@x"]),
        (b"Ann Bee <a@x>, b@y", [b"a@x", b"b@y"]),
        (b"Ann B. Bee <a@x>", [b"a@x"]),
        (b'"Bee, Ann" <a@x>, b@y', [b"a@x", b"b@y"]),
        (b'"a@z" <a@x>', [b"a@x"]),
        (b"a@z <a@x>", [b"a@x"]),
        (b"a@x (Ann, or (who knows) b@y)", [b"a@x"]),
        (b"(first) a (second) @ (third) x", [b"a@x"]),
        (b"Ann [home] <a@x>", [b"a@x"]),
        (b"root (Cron Daemon)", [b"root"]),
        (b"root, cron", [b"root", b"cron"]),
        (b"a@x,\n\tb@y,\n c@z\n", [b"a@x", b"b@y", b"c@z"]),
        (b"a@x,\r\n b@y\r\n", [b"a@x", b"b@y"]),
        (b"Ann\n Bee\n <a@x>", [b"a@x"]),
        (b"a@x,, ,b@y,", [b"a@x", b"b@y"]),
        # Groups (RFC 5322, 3.4).
        (b"undisclosed-recipients:;", []),
        (b"undisclosed-recipients:", []),
        (b"friends: a@x, Bob <b@y>;, c@z", [b"a@x", b"b@y", b"c@z"]),
        (b"friends: a@x; foes: b@y;", [b"a@x", b"b@y"]),
        (b'"old friends" of mine: a@x', [b"a@x"]),
        # Quoted local parts are raw in an envelope.
        (b'"jane x"@y', [b"jane x@y"]),
        (b'Jane <"jane\\"x"@y>', [b'jane"x@y']),
        (b'"a,b"@y, c@z', [b"a,b@y", b"c@z"]),
        (b'"jane".x@y', [b"jane.x@y"]),
        (b'""@y', [b'""@y']),
        # Obsolete forms (RFC 5322, 4.4).
        (b"jane . x @ y . z", [b"jane.x@y.z"]),
        (b"<@a.example,@b.example:c@d>", [b"c@d"]),
        (b"a@[192.0.2.1], b@[IPv6:::1]", [b"a@[192.0.2.1]", b"b@[IPv6:::1]"]),
        ("jürgen@öl.example".encode(), ["jürgen@öl.example".encode()]),
        (b"=?utf-8?q?a=2C_b?= <a@x>", [b"a@x"]),
        (b"a..b@x, .a@x, a.@x", [b"a..b@x", b".a@x", b"a.@x"]),
    ],
)
def test_a_list_as_programs_write_it(text: bytes, addresses: list[bytes]) -> None:
    """Each of them gets the message, and gets it at this address."""
    assert found(text) == addresses


@pytest.mark.parametrize(
    "text",
    [
        b"Ann Bee",
        b"a@x b@y",
        b"a@x; b@y",
        b"<a@x",
        b"a@x>",
        b"<>",
        b"Ann <>",
        b"<a@x> Ann",
        b"<a@x> <b@y>",
        b"<a@x, b@y>",
        b"a@",
        b"@x",
        b"a@b@c",
        b"a@@x",
        b'"a@x',
        b"(a@x",
        b"a@x)",
        b"a@[x",
        b"a@x[y]",
        b"a@[x].y",
        b'a"b"@x',
        b'a@"x"',
        b"[a]@x",
        b":a@x;",
        b"a: b: c@x;;",
        b"a@x: b@y;",
        b"<a:b@x>",
        b"a\0b@x",
        b"a\\b@x",
        b"<a;b@x>",
        b"g: <a@x; b@y>",
    ],
)
def test_what_is_no_address_is_told(text: bytes) -> None:
    """Left out, they would never get the message, and the sender believe that they did."""
    with pytest.raises(ValueError, match="not a list of addresses: '"):
        parse(text)


@pytest.mark.parametrize(
    ("text", "completed"),
    [
        (b"root", b"root@D"),
        (b"root (Cron Daemon)\n", b"root@D (Cron Daemon)\n"),
        (b"Root <root>", b"Root <root@D>"),
        (b"g: a, b@x;,\n c", b"g: a@D, b@x;,\n c@D"),
        (b'"jane x" (home)', b'"jane x"@D (home)'),
        (b"jane . x", b"jane . x@D"),
        (b"a@x", b"a@x"),
    ],
)
def test_where_a_domain_is_missing(text: bytes, completed: bytes) -> None:
    """A reply to `root` alone goes to the reader's own."""
    for at in reversed([m.domain_at for m in parse(text) if m.domain_at is not None]):
        text = text[:at] + b"@D" + text[at:]
    assert text == completed


ADDRESSES = st.builds(
    lambda local, domain: local + b"@" + domain,
    st.binary(min_size=1, max_size=20).filter(
        lambda local: not set(local) & set(b"\0\r\n") and local != b'""'
    ),
    st.from_regex(rb"[a-z0-9-]{1,10}(\.[a-z]{2,5}){0,2}", fullmatch=True),
)
NAMES = st.sampled_from([b"", b"Ann ", b'"Bee, Ann" ', b"A. B. ", b"(note, (deep)) ", b"\n "])


@given(st.lists(st.tuples(NAMES, ADDRESSES, st.booleans()), max_size=8))
def test_any_address_comes_back_raw(parts: list[tuple[bytes, bytes, bool]]) -> None:
    """Whatever is in the local part, quoted as headers have it."""
    written = [
        name + b"<" + quote(address) + b">" if angle or name.strip() else quote(address)
        for name, address, angle in parts
    ]
    assert found(b",\n ".join(written)) == [address for _, address, _ in parts]


@given(st.text(st.sampled_from('ab@.,:;<>()[]"\\ \n\tü'), max_size=40))
def test_anything_is_a_list_or_an_error(text: str) -> None:
    """And where it is a list, Python's parser finds no address in it that ours does not."""
    raw = text.encode()
    try:
        ours = found(raw)
    except ValueError:
        return
    assert all(address and b"\0" not in address for address in ours)
    simple = set("ab@.,<> ")
    if set(text) <= simple and ".." not in text:
        theirs = {address for _, address in getaddresses([text]) if "@" in address}
        assert {address.decode() for address in ours if b"@" in address} == theirs


@pytest.mark.parametrize(
    "text",
    [b"(" * 100_000, b'"' * 100_001, b"a@x," * 50_000 + b"<", b"<" * 100_000, b"a" * 1_000_000],
)
def test_a_hostile_list_takes_no_time(text: bytes) -> None:
    """A header of a megabyte must not keep a processor busy for minutes."""
    try:
        said = str(len(found(text)))
    except ValueError as error:
        said = str(error)
    assert 0 < len(said) < 200
