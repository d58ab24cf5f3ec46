"""Forms of addresses: the wrong one goes to somebody else, or to nobody."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maildirqmtp.mail.addresses import (
    bare,
    is_unknown,
    parse,
    quote,
    raw_sender,
    split,
    takes_no_bounce,
    unquote,
)

# As headers write it, and raw.
QUOTED = [
    (b'"jane x"@d', b"jane x@d"),
    (b'"jane \\"x\\" \\\\"@d', b'jane "x" \\@d'),
    (b'"a@b"@d', b"a@b@d"),
    (b'"a..b"@d', b"a..b@d"),
    (b'".a"@d', b".a@d"),
    (b'"a\tb"@d', b"a\tb@d"),
    (b'"alias-ppp-jane x"@d', b"alias-ppp-jane x@d"),
    (b'"\xc3\xa4 \xc3\xb6"@d', b"\xc3\xa4 \xc3\xb6@d"),
    (b'"jane x"', b"jane x"),
    (b'"<>"@d', b"<>@d"),
    (b'"a,b"@[IPv6:::1]', b"a,b@[IPv6:::1]"),
]

# The same in both forms.
PLAIN = [
    b"a@d", b"a.b@d", b"a+b=c@d", b"a", b"", b"\xc3\xa4@d", b"\xff@d", b"a@d e", b'""@d', b"@d",
    b"!#$%&'*+/=?^_`{|}~-@d", b"a@[127.0.0.1]",
]  # fmt: skip

# Not one well-formed quoted string: left as they are.
NOT_UNQUOTED = [
    b'""@d', b'"a@d', b'a"@d', b'"a"b@d', b'"a"b"@d', b'"a\\"@d', b'"a"@b@c', b'x"a b"@d',
    b'"a\rb"@d', b'"a\nb"@d', b'"a\0b"@d', b'"a\\\nb"@d', b'"', b'""', b' "a"@d', b'"a" @d',
]  # fmt: skip


@pytest.mark.parametrize(("quoted", "raw"), QUOTED)
def test_a_quoted_local_part_is_raw_in_the_envelope(quoted: bytes, raw: bytes) -> None:
    """qmail would quote the quotes again, and the mail would go to a mailbox nobody has."""
    assert unquote(quoted) == raw


@pytest.mark.parametrize(("quoted", "raw"), QUOTED)
def test_it_is_quoted_where_it_leaves(quoted: bytes, raw: bytes) -> None:
    """Unquoted, a blank or a comma in it would make it two addresses."""
    assert unquote(quote(raw)) == raw
    assert quote(raw) == quoted


@pytest.mark.parametrize("address", PLAIN)
def test_plain_addresses_are_the_same_in_both_forms(address: bytes) -> None:
    """Nearly all addresses: quotes around them confuse programs that compare."""
    assert unquote(address) == address
    assert quote(address) == address


@pytest.mark.parametrize("address", NOT_UNQUOTED)
def test_what_is_not_one_quoted_string_stays(address: bytes) -> None:
    """Half unquoted, it would be another address."""
    assert unquote(address) == address


RAW = st.tuples(
    st.binary(min_size=1, max_size=40), st.sampled_from([b"", b"@example.org", b"@[::1]", b"@"])
).map(lambda parts: b"".join(parts).translate(None, b"\0\r\n"))


@given(RAW)
def test_quoting_loses_nothing(raw: bytes) -> None:
    """A bounce must come back to the very address that the envelope had."""
    assert unquote(quote(raw)) == raw


@given(st.binary(max_size=30))
def test_no_address_raises(address: bytes) -> None:
    """One strange address must not stop the others."""
    assert isinstance(unquote(address), bytes)
    assert isinstance(quote(address), bytes)


@pytest.mark.parametrize(
    "text",
    [b"", b"MAILER-DAEMON", b"mailer-daemon", b"Mailer-Daemon", b'"MAILER-DAEMON"', b'"<>"', b"<>"],
)
def test_mailer_daemon_is_the_null_sender(text: bytes) -> None:
    """Postfix's pipe writes it so; bounces of bounces would go to whoever has that mailbox."""
    assert raw_sender(text) == b""


@pytest.mark.parametrize("text", [b"mailer-daemon@d", b"MAILER-DAEMON@", b"mailer", b" ", b"<>@d"])
def test_mailer_daemon_with_a_domain_is_an_address(text: bytes) -> None:
    """It is somebody's; their mail must not become a bounce's."""
    assert raw_sender(text) == text
    assert not takes_no_bounce(text)


@pytest.mark.parametrize("sender", [b"", b"#@[]", b"MAILER-DAEMON", b"mailer-Daemon", b"<>"])
def test_nobody_sends_a_bounce_to_what_sends_bounces(sender: bytes) -> None:
    """Two machines would bounce to each other for ever. Also a sidecar's, which is raw."""
    assert takes_no_bounce(sender)


def test_only_unknown_alone_is_unknown() -> None:
    """getmail writes it where it knows no address; sent to, it would bounce or reach a stranger."""
    assert is_unknown(b"unknown")
    assert not any(map(is_unknown, (b"", b"unknown@d", b"unknown-user", b"un known")))


def test_brackets_are_removed_where_they_are_a_pair() -> None:
    """Dovecot writes them."""
    assert bare(b" <a@b> ") == b"a@b"
    assert bare(b"<>") == b""
    assert bare(b" a@b ") == b" a@b "
    assert bare(b"<a@b") == b"<a@b"


SPLIT = [
    (b"", []),
    (b" , ,\t", []),
    (b"a@b", [b"a@b"]),
    (b"a@b,c@d , <e@f>,", [b"a@b", b"c@d", b"e@f"]),
    (b'"a, b"@c, d@e', [b'"a, b"@c', b"d@e"]),
    (b'<"a> b"@c>', [b'"a> b"@c']),
    (b'"a\\", b"@c,d', [b'"a\\", b"@c', b"d"]),
    (b'alias-"a b"@c', [b'alias-"a b"@c']),
    (b"<>", [b""]),
]


@pytest.mark.parametrize(("text", "addresses"), SPLIT)
def test_a_list_is_split_at_its_commas_only(text: bytes, addresses: list[bytes]) -> None:
    """Split in a quoted address, the mail would go to two wrong ones."""
    assert split(text) == addresses


@pytest.mark.parametrize(
    "text",
    [
        b"Joe <a@b>", b"a@b c@d", b'"a', b'"a@b, c@d', b"a@b (x y)", b"<a@b", b"a>b", b"<a b>",
        b"<a>b",
    ],
)  # fmt: skip
def test_what_is_no_list_of_addresses_is_not_guessed_at(text: bytes) -> None:
    """The message is held instead: a guess would send it elsewhere."""
    with pytest.raises(ValueError, match="not a list"):
        split(text)


@pytest.mark.parametrize(
    "text", [b" " * 1_000_000 + b'"', b"a," * 500_000 + b'"', b'"' + b"\\a" * 500_000, b"<" * 10**6]
)
def test_a_hard_list_takes_no_quadratic_time(text: bytes) -> None:
    """One message made for it would stop all that come after it."""
    with pytest.raises(ValueError, match="not a list"):
        split(text)


PARSED = [
    (b"", b""),
    (b"<>", b""),
    (b" <> ", b""),
    (b"a@b", b"a@b"),
    (b" <a@b> ", b"a@b"),
    (b'"jane x"@b', b"jane x@b"),
    (b'<"a, b"@c>', b"a, b@c"),
    (b"mailer-daemon", b""),
    (b"<MAILER-DAEMON>", b""),
    (b"unknown", b"unknown"),
    (b"a", b"a"),
]


@pytest.mark.parametrize(("text", "address"), PARSED)
def test_an_option_is_one_address_whatever_its_form(text: bytes, address: bytes) -> None:
    """With its brackets or quotes in the envelope, the mail would go to nobody."""
    assert parse(text, "sender") == address
    if address:
        assert parse(text, "recipient") == address
    elif b"a" not in text.lower():
        with pytest.raises(ValueError, match="recipient must not be empty"):
            parse(text, "recipient")


# Odd, and somebody's.
TAKEN = [
    (b"root", b"root"),
    (b"a%b@c", b"a%b@c"),
    (b"host!a@c", b"host!a@c"),
    (b".a..b.@c", b".a..b.@c"),  # some providers have these, though RFC 5321 has not
    (b"a@[192.0.2.1]", b"a@[192.0.2.1]"),
    (b"a@[IPv6:2001:db8::1]", b"a@[IPv6:2001:db8::1]"),
    (b"a@b.example.", b"a@b.example."),
    ("j\u00f6e@m\u00fcnchen.example".encode(), "j\u00f6e@m\u00fcnchen.example".encode()),
    (b"\xff@c", b"\xff@c"),
    (b'"a(b"@c', b"a(b@c"),
    (b'"a@b"@c', b"a@b@c"),
    (b'"\\"a\\", \x01"@[]', b'"a", \x01@[]'),
    (b'""@c', b'""@c'),
]

REFUSED = {
    b"Joe <a@b>": "in quotes", b"a@b,c@d": "in quotes", b"a b@c": "in quotes",
    b"a@b,": "in quotes", b",a@b": "in quotes", b"<a@b": "in quotes", b" ": "in quotes",
    b",": "in quotes", b'"a': "in quotes", b"a@b c@d": "in quotes", b"<a@b>c": "in quotes",
    b"<a@b>, <c@d>": "in quotes", b"<<a@b>>": "in quotes", b"< >": "in quotes",
    b"undisclosed-recipients:;": "in quotes", b"mailto:a@b": "in quotes",
    b"(c)a@b": "in quotes", b"a@b(c)": "in quotes", b"a@b;": "in quotes", b"[a]@b": "in quotes",
    b"a\\b@c": "in quotes", b'a"b@c': "in quotes", b'x-"a b"@c': "in quotes",
    b'"a"b@c': "in quotes", b"a\x01@b": "in quotes", b"a\x7f@b": "in quotes",
    b"a@b\tc": "in quotes",
    b"a@b..c": "in quotes", b"a@.b": "in quotes", b"a@[b": "in quotes", b"a@[b]c": "in quotes",
    b"@": "nothing stands before", b"@a": "nothing stands before", b"@a@b": "nothing stands before",
    b"a@": "no domain", b'"a b"@': "no domain",
    b"a@b@c": "more than one @", b'"a b"@c@d': "more than one @",
    b"@a,@b:c@d": "a route", b"<@a:c@d>": "a route",
}  # fmt: skip


@pytest.mark.parametrize("what", ["sender", "recipient"])
@pytest.mark.parametrize(("text", "address"), TAKEN)
def test_an_odd_address_is_taken(text: bytes, address: bytes, what: str) -> None:
    """Its owner would get no mail."""
    assert parse(text, what) == address


@pytest.mark.parametrize("what", ["sender", "recipient"])
@pytest.mark.parametrize(("text", "why"), REFUSED.items())
def test_an_option_that_is_not_one_address_is_refused(text: bytes, why: str, what: str) -> None:
    """It would go out as one address that nobody has; who wrote it is told what to write."""
    with pytest.raises(ValueError, match=f"is not one address: .*{why}"):
        parse(text, what)


def test_the_sender_that_qmail_makes_a_verp_of_is_taken() -> None:
    """A list whose bounces are told apart by qmail-send at the other end could not be sent."""
    assert parse(b"list-1-@lists.example-@[]", "sender") == b"list-1-@lists.example-@[]"
    assert parse(b"#@[]", "sender") == b"#@[]"
    with pytest.raises(ValueError, match="more than one @"):
        parse(b"list-1-@lists.example-@[]", "recipient")


LOCAL_PART = st.binary(min_size=1, max_size=40).map(lambda part: part.translate(None, b"\0\r\n"))


@given(LOCAL_PART.filter(bool), st.sampled_from([b"example.org", b"[::1]", b"[]", b"x."]))
def test_every_local_part_can_be_written(local: bytes, domain: bytes) -> None:
    """qmail delivers to any; and what a file is shown to say must be taken in a file."""
    raw = local + b"@" + domain
    assert parse(quote(raw), "recipient") == raw
    assert parse(b"<" + quote(raw) + b">", "sender") == raw


SPECIAL = st.sampled_from([*b'()<>[]:;\\", \t\x01\x1b\x7f@'])


@given(st.binary(min_size=1, max_size=9), SPECIAL, st.binary(min_size=1, max_size=9))
def test_no_special_is_taken_bare(before: bytes, special: int, after: bytes) -> None:
    """A comment, a list or a URL would be the local part of an address that nobody has."""
    local = (before + bytes([special]) + after).translate(None, b'\0\r\n"\\')
    with pytest.raises(ValueError, match="is not one address"):
        parse(b"a" + local + bytes([special]) + b"b@example.org", "recipient")


@given(st.binary(max_size=30), st.sampled_from(["sender", "recipient"]))
def test_whatever_is_taken_is_one_address(text: bytes, what: str) -> None:
    """Quoted again for SMTP or a header, it must be the same one."""
    try:
        address = parse(text, what)
    except ValueError:
        return
    assert unquote(quote(address)) == address
    assert address or what == "sender"
    assert not address.startswith(b"@") or text.lstrip(b" \t<").startswith(b'"')


@pytest.mark.parametrize(
    "text", [b"a." * 500_000 + b"@", b"a@" + b"b." * 500_000 + b"@", b'"' + b"\\a" * 500_000]
)
def test_a_hard_address_takes_no_quadratic_time(text: bytes) -> None:
    """A daemon's configuration, or a script's argument, must not stop it."""
    with pytest.raises(ValueError, match="servers take at most"):
        parse(text, "sender")


@pytest.mark.parametrize("text", [b"a\0b", b"a\rb", b"a\nb", b"a" * 1_000])
def test_an_option_that_servers_do_not_take_is_refused(text: bytes) -> None:
    """Before it costs a connection."""
    with pytest.raises(ValueError, match=r"has a|of 1000 bytes|not one address"):
        parse(text, "recipient")
