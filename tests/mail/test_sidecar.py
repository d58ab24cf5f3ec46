"""The sidecar: read wrongly, a message goes to those who have it, or to nobody."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maildirqmtp.errors import EnvelopeError, Fault, SidecarError
from maildirqmtp.mail import sidecar
from maildirqmtp.mail.sidecar import MAX_BYTES, MAX_RECIPIENTS, Failure, Sidecar

CHECKED = settings(deadline=None)
AT = "2026-01-31T12:00:00Z"


def text(**changes: object) -> bytes:
    """A valid sidecar with some keys changed; None takes a key away."""
    content: dict[str, object] = {"version": 1, "sender": "a@b", "recipients": ["c@d"]}
    content |= changes
    return json.dumps({k: v for k, v in content.items() if v is not None}).encode()


def failure(**changes: object) -> bytes:
    """A valid sidecar with one failure, of which some keys are changed."""
    entry: dict[str, object] = {"recipient": "e@f", "response": "Dno", "at": AT}
    return text(failures=[entry | changes])


GOOD = [
    (text(), Sidecar(b"a@b", (b"c@d",))),
    (text(sender=""), Sidecar(b"", (b"c@d",))),
    (text(recipients=[]), Sidecar(b"a@b", ())),
    (text(recipients=["c@d", "e@f", "c@d", "C@d"]), Sidecar(b"a@b", (b"c@d", b"e@f", b"C@d"))),
    (text(sender="<>"), Sidecar(b"", (b"c@d",))),
    (text(sender="x" * 999), Sidecar(b"x" * 999, (b"c@d",))),
    (text(failures=[]), Sidecar(b"a@b", (b"c@d",))),
    (failure(), Sidecar(b"a@b", (b"c@d",), (Failure(b"e@f", "Dno", AT),))),
    (failure(response="", at=""), Sidecar(b"a@b", (b"c@d",), (Failure(b"e@f", "", ""),))),
    (text(sender="\udcff@b"), Sidecar(b"\xff@b", (b"c@d",))),
    (text(sender="\u00fc@b"), Sidecar("\u00fc@b".encode(), (b"c@d",))),
    (failure(response="D\udcff"), Sidecar(b"a@b", (b"c@d",), (Failure(b"e@f", "D\udcff", AT),))),
    (
        b' { "recipients" : [ "\xff" ] ,\r\n\t"sender":"\xc3\xbc","version":1}\n\n',
        Sidecar("\u00fc".encode(), (b"\xff",)),
    ),
    (text() + b" " * (MAX_BYTES - len(text())), Sidecar(b"a@b", (b"c@d",))),
    (text(recipients=["x"] * MAX_RECIPIENTS), Sidecar(b"a@b", (b"x",))),
]

BAD = [
    ("empty", b"", "no JSON"),
    ("cut short", text()[:-1], "no JSON"),
    ("two of them", text() * 2, "no JSON"),
    ("byte order mark", b"\xef\xbb\xbf" + text(), "no JSON"),
    ("UTF-16", text().decode().encode("utf-16"), "no JSON"),
    ("binary", b"\0\xff", "no JSON"),
    ("newline in a text", text(sender="x").replace(b"x", b"\n"), "no JSON"),
    ("deep list", b"[" * 200_000, "no JSON"),
    ("deep list, closed", b"[" * 200_000 + b"]" * 200_000, "no JSON"),
    ("deep object", b'{"a":' * 200_000, "no JSON"),
    ("endless number", b'{"version": ' + b"1" * 100_000 + b"}", "no JSON"),
    ("too large", text() + b" " * (MAX_BYTES - len(text()) + 1), "more than 1048576 bytes"),
    ("list", b"[]", "not of version 1"),
    ("null", b"null", "not of version 1"),
    ("text", b'"version"', "not of version 1"),
    ("number", b"1", "not of version 1"),
    ("no version", text(version=None), "not of version 1"),
    ("version 2", text(version=2), "not of version 1"),
    ("version 0", text(version=0), "not of version 1"),
    ("version true", text(version=True), "not of version 1"),
    ("version 1.0", text(version=1.0), "not of version 1"),
    ("version as text", text(version="1"), "not of version 1"),
    ("version as list", text(version=[1]), "not of version 1"),
    ("unknown key", text(zebra=1, bcc=["x@y"]), "unknown key 'bcc'"),
    ("strange key", text(**{"\x1b\ud800": 1}), r"unknown key '\x1b\ud800'"),
    ("no sender", text(sender=None), "a sender that is no text"),
    ("sender a list", text(sender=["a@b"]), "a sender that is no text"),
    ("sender false", text(sender=False), "a sender that is no text"),
    ("NUL in sender", text(sender="a\0b"), "sender a?b has a NUL"),
    ("LF in sender", text(sender="a\nb"), "sender a?b has a LF"),
    ("CR in sender", text(sender="a\rb"), "sender a?b has a CR"),
    ("long sender", text(sender="x" * 1000), "sender of 1000 bytes"),
    ("long in bytes", text(sender="\u00fc" * 500), "sender of 1000 bytes"),
    ("surrogate in sender", text(sender="\ud800"), "a sender with a lone surrogate"),
    ("low surrogate", text(sender="\udc7f"), "a sender with a lone surrogate"),
    ("no recipients", text(recipients=None), "no list of at most 10000 under 'recipients'"),
    ("recipients a text", text(recipients="c@d"), "under 'recipients'"),
    ("recipients an object", text(recipients={"c@d": 1}), "under 'recipients'"),
    ("10,001 recipients", text(recipients=["x"] * 10_001), "under 'recipients'"),
    ("recipient null", text(recipients=["c@d", 0]), "a recipient that is no text"),
    ("recipient a list", text(recipients=[["c@d"]]), "a recipient that is no text"),
    ("recipient empty", text(recipients=["c@d", ""]), "empty recipient"),
    ("NUL in recipient", text(recipients=["c\0d"]), "recipient c?d has a NUL"),
    ("long recipient", text(recipients=["x" * 1000]), "recipient of 1000 bytes"),
    ("surrogate in recipient", text(recipients=["\udbff"]), "a recipient with a lone surrogate"),
    ("failures null", text().replace(b"}", b', "failures": null}'), "under 'failures'"),
    ("failures an object", text(failures={}), "under 'failures'"),
    ("10,001 failures", text(failures=[0] * 10_001), "under 'failures'"),
    ("failure a text", text(failures=["e@f"]), "not recipient, response and at"),
    ("failure empty", text(failures=[{}]), "not recipient, response and at"),
    ("failure, one more key", failure(why="x"), "not recipient, response and at"),
    ("failure's response", failure(response=5), "no text"),
    ("failure's time", failure(at=5), "no text"),
    ("failure's recipient", failure(recipient=5), "a recipient that is no text"),
    ("failure's recipient empty", failure(recipient=""), "empty recipient"),
    ("failure's recipient, NUL", failure(recipient="e\0f"), "recipient e?f has a NUL"),
    ("surrogate, recipient", failure(recipient="\ud800"), "recipient with a lone surrogate"),
    ("surrogate, response", failure(response="D\ud800"), "failure with a lone surrogate"),
    ("surrogate, time", failure(at="\udfff"), "failure with a lone surrogate"),
]


@pytest.mark.parametrize(("data", "content"), GOOD)
def test_a_sidecar_says_what_it_says(data: bytes, content: Sidecar) -> None:
    """And written again, as after a partial outcome, it still does."""
    assert sidecar.decode(data) == content
    assert sidecar.decode(sidecar.encode(content)) == content


@pytest.mark.parametrize(("data", "says"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
def test_a_sidecar_that_cannot_be_used_holds_its_message(data: bytes, says: str) -> None:
    """Sent by its headers instead, the message would go to people who have it already."""
    with pytest.raises(SidecarError) as raised:
        sidecar.decode(data)
    assert says in str(raised.value)
    assert str(raised.value).isprintable()
    assert isinstance(raised.value, EnvelopeError)
    assert raised.value.fault is Fault.MESSAGE


def test_the_file_is_the_documented_one() -> None:
    """Administrators read it with their eyes and with jq, and write it themselves."""
    content = Sidecar(b"\xff@b", ("\u00fc@d".encode(),), (Failure(b"e@f", 'Dno "such" \x1b', AT),))
    data = sidecar.encode(content)
    assert json.loads(data.decode("utf-8", "surrogateescape")) == {
        "version": 1,
        "sender": "\udcff@b",
        "recipients": ["\u00fc@d"],
        "failures": [{"recipient": "e@f", "response": 'Dno "such" \x1b', "at": AT}],
    }
    assert b"\xc3\xbc@d" in data
    assert data.endswith(b"}\n")
    assert data.count(b"\n") > 5
    assert sidecar.encode(Sidecar(b"", (b"x",))) == (
        b'{\n "version": 1,\n "sender": "",\n "recipients": [\n  "x"\n ]\n}\n'
    )


def test_a_sidecar_of_the_largest_size_can_be_written_again() -> None:
    """Written less densely than it was, it would hold its message from the first retry on."""

    def dense(recipients: list[str]) -> bytes:
        content = {"version": 1, "sender": "", "recipients": recipients}
        return json.dumps(content, separators=(",", ":")).encode()

    recipients = [f"{number:0113d}" for number in range(9_031)]
    recipients.append("r" * (MAX_BYTES - len(dense(recipients)) - len(',""')))
    data = dense(recipients)
    assert len(data) == MAX_BYTES
    content = sidecar.decode(data)
    assert len(content.recipients) == 9_032
    assert sidecar.encode(content) == data


def test_failures_that_are_too_long_together_are_cut() -> None:
    """A server with much to say must not make a sidecar that cannot be read."""
    response = "D" + "no" * 999
    failures = tuple(Failure(b"f%d@g" % i, response, AT) for i in range(1_000))
    content = sidecar.decode(sidecar.encode(Sidecar(b"a@b", (b"c@d",), failures)))
    assert content.recipients == (b"c@d",)
    assert content.failures == tuple(Failure(f.recipient, response[:100], AT) for f in failures)


def test_failures_that_cannot_be_cut_enough_are_left_out() -> None:
    """Whom it is still owed is what counts; the log has the rest."""
    failures = (Failure(b"f" * 999, "Dno", AT),) * 2_000
    content = sidecar.decode(sidecar.encode(Sidecar(b"a@b", (b"c@d",), failures)))
    assert content == Sidecar(b"a@b", (b"c@d",))


ADDRESS = (
    st.binary(max_size=30)
    .map(lambda a: bytes(b for b in a if b not in b"\0\r\n"))
    .filter(lambda a: a != b"<>")
)
RECIPIENT = ADDRESS.map(lambda a: b"r" + a)


@CHECKED
@given(
    ADDRESS,
    st.lists(RECIPIENT, max_size=5, unique=True),
    st.lists(st.builds(Failure, RECIPIENT, st.text(max_size=20), st.text(max_size=20)), max_size=3),
)
def test_any_valid_address_comes_back_as_it_was(
    sender: bytes, recipients: list[bytes], failures: list[Failure]
) -> None:
    """Addresses are bytes; one that changed on the way through JSON is another address."""
    content = Sidecar(sender, tuple(recipients), tuple(failures))
    assert sidecar.decode(sidecar.encode(content)) == content


STRANGE = st.text(max_size=5) | st.sampled_from(
    ["\ud800", "\udc80", "\udcff", "\udcc3\udcbc", "\udfff", "\0", "\n", "\x1b", "x" * 1000]
)
ENTRY = st.fixed_dictionaries({"recipient": STRANGE, "response": STRANGE, "at": STRANGE})
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | STRANGE,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(STRANGE, inner, max_size=3),
    max_leaves=5,
)
DOCUMENT = st.fixed_dictionaries(
    {"version": st.just(1), "sender": STRANGE, "recipients": st.lists(STRANGE, max_size=3)},
    optional={"failures": st.lists(ENTRY | ANYTHING, max_size=2)},
) | st.fixed_dictionaries(
    {"version": st.just(1) | ANYTHING, "sender": ANYTHING, "recipients": ANYTHING},
    optional={"failures": ANYTHING, "x": ANYTHING},
)


@settings(deadline=None, max_examples=400)
@given(
    DOCUMENT.map(json.dumps).map(str.encode)
    | ANYTHING.map(json.dumps).map(str.encode)
    | st.binary(max_size=50)
)
def test_no_file_raises_anything_else_and_what_is_read_can_be_written(data: bytes) -> None:
    """A sidecar that is taken and then cannot be rewritten would crash after the sending."""
    try:
        content = sidecar.decode(data)
    except SidecarError:
        return
    again = sidecar.encode(content)
    assert sidecar.decode(again).recipients == content.recipients
    assert sidecar.decode(again).sender == content.sender
    assert sidecar.encode(sidecar.decode(again)) == again
