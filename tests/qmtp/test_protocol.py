"""The client's half of QMTP: what it writes, and whatever a server may answer."""

import tracemalloc
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maildirqmtp import netstring
from maildirqmtp.errors import Fault, NetstringError, ProtocolError
from maildirqmtp.qmtp import protocol
from maildirqmtp.qmtp.protocol import Response, ResponseReader, Status
from maildirqmtp.text import printable

CHECKED = settings(deadline=None)
K, Z, D = Status.ACCEPTED, Status.DEFERRED, Status.FAILED

# The example of the specification (qmtp.txt, section 6).
SPEC_TEXT = b"Subject: x\n\nhi\n\n"
SPEC_PACKAGE = b"17:\nSubject: x\n\nhi\n\n,3:a@b,16:5:c@d.e,5:f@g.h,,"
SPEC_ANSWER = b"23:Kok 1795398047 qp 12548,23:Kok 1795398047 qp 12548,"
SPEC_RESPONSE = Response(K, b"ok 1795398047 qp 12548")

# Two refusals of s/qmail and aQmail, announced one byte too short.
DOMAIN_TEXT = b" Sorry, that domain isn't in my list of allowed rcpthosts (#5.7.1)"
RECIPIENT_TEXT = b" Sorry, I can't handle that recipient (#5.1.3)"
DOMAIN_REFUSAL = b"66:D" + DOMAIN_TEXT + b","
RECIPIENT_REFUSAL = b"46:D" + RECIPIENT_TEXT + b","
DOMAIN, RECIPIENT = Response(D, DOMAIN_TEXT), Response(D, RECIPIENT_TEXT)

# What a server sends -> the responses in it.
GOOD: list[tuple[bytes, list[Response]]] = [
    (b"", []),
    (b"3:Kok,", [Response(K, b"ok")]),
    (SPEC_ANSWER, [SPEC_RESPONSE, SPEC_RESPONSE]),
    (b"1:K,1:Z,1:D,", [Response(K, b""), Response(Z, b""), Response(D, b"")]),
    (b"4:Z no,", [Response(Z, b" no")]),
    (b"8:Dno\nno\0\xff,", [Response(D, b"no\nno\0\xff")]),
    (b"8:K3:Kok,,,", [Response(K, b"3:Kok,,")]),
    (b"65536:K" + b"x" * 65_535 + b",", [Response(K, b"x" * 2_000)]),
    (b"2001:Z" + b"y" * 2_000 + b",", [Response(Z, b"y" * 2_000)]),
    (b"2000:Z" + b"y" * 1_999 + b",", [Response(Z, b"y" * 1_999)]),
    (b"9999:Z" + b"y" * 9_998 + b",", [Response(Z, b"y" * 2_000)]),
    (b"3000:D" + b"n" * 2_999 + b",", [Response(D, b"n" * 2_000)]),
    (DOMAIN_REFUSAL, [DOMAIN]),
    (RECIPIENT_REFUSAL, [RECIPIENT]),
    (DOMAIN_REFUSAL * 3 + RECIPIENT_REFUSAL * 2, [DOMAIN] * 3 + [RECIPIENT] * 2),
    (RECIPIENT_REFUSAL + b"3:Kok," + DOMAIN_REFUSAL, [RECIPIENT, Response(K, b"ok"), DOMAIN]),
    (
        b"3:Kok,3:Kok," + DOMAIN_REFUSAL + b"3:Kok,",
        [*[Response(K, b"ok")] * 2, DOMAIN, Response(K, b"ok")],
    ),
    # Framed rightly, as a server that was mended would.
    (b"67:D" + DOMAIN_TEXT + b",", [DOMAIN]),
    (b"47:D" + RECIPIENT_TEXT + b",", [RECIPIENT]),
    # Of the length that is announced for them, and all right.
    (b"66:D" + DOMAIN_TEXT[:-1] + b",", [Response(D, DOMAIN_TEXT[:-1])]),
    (b"46:K" + RECIPIENT_TEXT[:-1] + b",", [Response(K, RECIPIENT_TEXT[:-1])]),
]

# The same, of which no more comes; the server hung up, or is slow.
UNFINISHED: list[tuple[bytes, list[Response]]] = [
    (b"2", []),
    (b"23:", []),
    (b"23:Kok 17953", []),
    (b"3:Kok", []),
    (b"3:Kok,3:Zn", [Response(K, b"ok")]),
    (DOMAIN_REFUSAL[:-1], []),
    (DOMAIN_REFUSAL[:-2], []),
    (RECIPIENT_REFUSAL[:-1], []),
    (DOMAIN_REFUSAL + RECIPIENT_REFUSAL[:-1], [DOMAIN]),
    (b"65536:K" + b"x" * 65_535, []),
]

# What no server may send -> the responses before it, and what the error says.
BAD: list[tuple[bytes, list[Response], str]] = [
    (b"220 mail.example.org ESMTP\r\n", [], "it speaks SMTP, not QMTP"),
    (b"220-mail.example.org ESMTP\r\n", [], "it speaks SMTP, not QMTP"),
    (b"221 bye\r\n", [], "response is no netstring"),
    (b"\r\n", [], "response is no netstring"),
    (b"HTTP/1.1 400 Bad Request\r\n", [], "response is no netstring"),
    (b"\x15\x03\x01\x00\x02\x02F", [], "response is no netstring"),
    (b"+3:Kok,", [], "response is no netstring"),
    (b"-3:Kok,", [], "response is no netstring"),
    (b" 3:Kok,", [], "response is no netstring"),
    (b"3 :Kok,", [], "response is no netstring"),
    (b"03:Kok,", [], "leading zero"),
    (b"00:,", [], "leading zero"),
    (b":,", [], "begins with a colon"),
    (b"Kok,", [], "response is no netstring"),
    (b"0:,", [], "empty response"),
    (b"0:", [], "empty response"),
    (b"65537:K", [], "above 65536"),
    (b"99999:", [], "above 65536"),
    (b"18446744073709551619:Kok,", [], "above 65536"),
    (b"3:kok,", [], "none of K, Z and D"),
    (b"3:Xok,", [], "none of K, Z and D"),
    (b"3:\0ok,", [], "none of K, Z and D"),
    (b"3: ok,", [], "none of K, Z and D"),
    (b"2:Kok,", [], "without a comma"),
    (b"2:Zok,", [], "without a comma"),
    (b"3:Kok;", [], "without a comma"),
    (b"3:Kok3:Kok,", [], "without a comma"),
    (DOMAIN_REFUSAL.replace(b":D", b":K"), [], "without a comma"),
    (RECIPIENT_REFUSAL.replace(b":D", b":Z"), [], "without a comma"),
    (DOMAIN_REFUSAL.replace(b"66", b"65"), [], "without a comma"),
    (RECIPIENT_REFUSAL.replace(b"46", b"45"), [], "without a comma"),
    (b"46:D" + DOMAIN_TEXT + b",", [], "without a comma"),
    (DOMAIN_REFUSAL.replace(b"domain", b"Domain"), [], "without a comma"),
    (DOMAIN_REFUSAL[:-2] + b"],", [], "without a comma"),
    (DOMAIN_REFUSAL[:-1] + b"3:Kok,", [], "without a comma"),
    (RECIPIENT_REFUSAL[:-1] + RECIPIENT_REFUSAL, [], "without a comma"),
    (b"1:Dx,", [], "without a comma"),
    (b"3000:D" + b"n" * 3_000 + b",", [], "without a comma"),
    (b"2:Dnope,", [], "without a comma"),
    (b"3:Dno3:Kok,", [], "without a comma"),
    (b"3:Kok,\n", [Response(K, b"ok")], "response is no netstring"),
    (b"3:Kok,3:Zno,0:,", [Response(K, b"ok"), Response(Z, b"no")], "empty response"),
]


def ways_to_cut(data: bytes) -> Iterator[list[bytes]]:
    """Whole, byte by byte, and in two at every point (at some points, where it is long)."""
    yield [data]
    yield [data[i : i + 1] for i in range(len(data))]
    for point in range(1, len(data)):
        if len(data) < 400 or point < 10 or point > len(data) - 5:
            yield [data[:point], data[point:]]


def read(pieces: list[bytes]) -> tuple[list[Response], str | None]:
    """Return the responses, and the error if it came to one."""
    reader = ResponseReader()
    responses: list[Response] = []
    for piece in pieces:
        reader.feed(piece)
        try:
            while (response := reader.next()) is not None:
                responses.append(response)
        except ProtocolError as error:
            return responses, str(error)
    return responses, None


@pytest.mark.parametrize(("data", "responses"), GOOD)
def test_responses_are_the_same_however_they_arrive(data: bytes, responses: list[Response]) -> None:
    """A response that depends on how TCP cut it up would lose or double mail."""
    for pieces in ways_to_cut(data):
        assert read(pieces) == (responses, None)
    trailing = [*responses, Response(Z, b"later")]
    assert read([data + b"6:Zlater,"]) == (trailing, None)
    assert read([data + b"6:Zlate"]) == (responses, None)


@pytest.mark.parametrize(("data", "responses"), UNFINISHED)
def test_half_a_response_is_no_response(data: bytes, responses: list[Response]) -> None:
    """A K whose last byte is missing when the server hangs up must stay in doubt."""
    for pieces in ways_to_cut(data):
        assert read(pieces) == (responses, None)
    reader = ResponseReader()
    reader.feed(data)
    while reader.next() is not None:
        pass
    assert reader.pending > 0


@pytest.mark.parametrize(("data", "responses", "says"), BAD)
def test_anything_else_is_a_violation_however_it_arrives(
    data: bytes, responses: list[Response], says: str
) -> None:
    """Guessing where the next response begins would credit it to another message."""
    for pieces in [*ways_to_cut(data), [data + b",3:Kok,"], [data, b"\0"]]:
        taken, error = read(pieces)
        assert taken == responses
        assert error is not None
        assert says in error
        assert error.isprintable()


def test_a_violation_stays_one() -> None:
    """A caller that asks again after an error must not get a response after all."""
    reader = ResponseReader()
    reader.feed(b"2:Kok,")
    for _ in range(2):
        with pytest.raises(ProtocolError):
            reader.next()
    reader.feed(b"3:Kok,")
    with pytest.raises(ProtocolError):
        reader.next()


def test_a_violation_shows_what_came_and_is_safe_to_print() -> None:
    """The administrator sees that port 209 is an SMTP server; the terminal obeys nothing."""
    _, error = read([b"220 \x1b[2Jmail.example.org ESMTP" + b"!" * 500])
    assert error is not None
    assert "220 ?[2Jmail.example.org ESMTP" in error
    assert len(error) < 200


def test_a_violation_shows_the_bad_response_not_an_earlier_one() -> None:
    """Else the log blames a response that was right."""
    _, error = read([b"3:Kok,3:Xno,"])
    assert error is not None
    assert "3:Xno," in error
    assert "Kok" not in error


def test_a_violation_is_the_server_s_fault_and_no_netstring_error() -> None:
    """The report says who has to do something."""
    reader = ResponseReader()
    reader.feed(b"no\n")
    with pytest.raises(ProtocolError) as raised:
        reader.next()
    assert raised.value.fault is Fault.SERVER
    assert not isinstance(raised.value, NetstringError)


@pytest.mark.parametrize("data", [b"65537", b"70000", b"100000", b"9" * 100_000])
def test_a_too_large_length_raises_before_anything_is_waited_for(data: bytes) -> None:
    """A server must not make us collect what it promises."""
    reader = ResponseReader()
    reader.feed(data)
    with pytest.raises(ProtocolError, match="above 65536"):
        reader.next()


def test_what_was_taken_is_forgotten() -> None:
    """A million responses on one connection must not pile up in memory."""
    reader = ResponseReader()
    chunk = b"50000:K" + b"x" * 49_999 + b","
    tracemalloc.start()
    try:
        for _ in range(200):
            reader.feed(chunk)
            assert reader.next() == Response(K, b"x" * 2_000)
            assert reader.pending == 0
            assert reader.next() is None
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_pending_counts_the_bytes_of_an_unfinished_response() -> None:
    """What a close cut off is to be seen in the report."""
    reader = ResponseReader()
    assert reader.pending == 0
    reader.feed(b"3:Kok,3:K")
    assert reader.pending == 9
    assert reader.next() == Response(K, b"ok")
    assert reader.pending == 3
    reader.feed(b"o")
    assert reader.pending == 4


@CHECKED
@given(
    st.lists(st.tuples(st.sampled_from(Status), st.binary(max_size=2_100)), max_size=8),
    st.lists(st.integers(1, 500), min_size=1, max_size=8),
)
def test_every_response_is_read_as_it_was_written(
    answers: list[tuple[Status, bytes]], sizes: list[int]
) -> None:
    """Round trip, cut anywhere: one response for each, in order, none shifted."""
    data = b"".join(netstring.encode(s.value.encode() + text) for s, text in answers)
    pieces: list[bytes] = []
    while data:
        size = sizes[len(pieces) % len(sizes)]
        pieces.append(data[:size])
        data = data[size:]
    assert read(pieces) == ([Response(s, text[:2_000]) for s, text in answers], None)


@CHECKED
@given(
    st.binary(max_size=60)
    | st.lists(
        st.sampled_from([b"3:Kok,", b"2:Dok,", b"1:Z", b",", b"0", b"6", b":", DOMAIN_REFUSAL])
    ).map(b"".join)
)
def test_no_answer_raises_anything_but_a_violation(data: bytes) -> None:
    """And however it is cut, it says the same; else a rare packet boundary is a lost message."""
    expected = read([data])
    responses, error = read([data[i : i + 1] for i in range(len(data))])
    assert responses == expected[0]
    assert (error is None) == (expected[1] is None)


# What a server says, and what a terminal may see of it.
PRINTABLE = [
    (b"", ""),
    (b"ok 1795398047 qp 12548", "ok 1795398047 qp 12548"),
    (b"\x1b[2J\x1b]0;owned\x07", "?[2J?]0;owned?"),
    (b"one\r\ntwo\tthree\0\x7f", "one??two?three??"),
    ("K\u00f6ln \u2603 \U0001f600".encode(), "K\u00f6ln \u2603 \U0001f600"),
    ("\u009b2J".encode(), "?2J"),
    ("abc\u202edef\u2066".encode(), "abc?def?"),
    ("a\u200db\u200f\ufeff".encode(), "a?b??"),
    ("a\u2028b\u2029c\u0085".encode(), "a?b?c?"),
    ("a\u00a0b".encode(), "a?b"),
    ("\ue000\U000e0041".encode(), "??"),
    ("\ufffd".encode(), "?"),
    (b"caf\xe9", "caf?"),
    (b"\xff\xfe", "??"),
    (b"\xed\xa0\x80", "???"),
    ("\u00e9".encode()[:1], "?"),
]


@pytest.mark.parametrize(("raw", "text"), PRINTABLE)
def test_texts_are_made_safe_for_a_terminal(raw: bytes, text: str) -> None:
    """A server that can clear a screen or forge a log line can hide what it did."""
    assert printable(raw) == text
    assert Response(D, raw).text == text
    assert str(Response(D, raw)) == "D" + text
    assert str(Response(Z, raw)) == "Z" + text


@CHECKED
@given(st.binary(max_size=200))
def test_no_text_escapes(raw: bytes) -> None:
    """Whatever the bytes: one printable line, that UTF-8 can write."""
    text = printable(raw)
    assert text.isprintable()
    assert len(text) <= len(raw)
    text.encode()


@pytest.mark.parametrize("length", [0, 1, 999])
def test_addresses_that_servers_take(length: int) -> None:
    """qmail-qmtpd takes up to 999 bytes; the null sender is valid."""
    assert protocol.check_address(b"x" * length, "sender") is None


@pytest.mark.parametrize("address", ["\u00fc@example.org".encode(), b"\xff", b' "a b"@c', b"#@[]"])
def test_addresses_are_bytes_and_not_judged(address: bytes) -> None:
    """8-bit, spaces and quotes go through: the server knows its users."""
    assert protocol.check_address(address, "recipient") is None


@pytest.mark.parametrize(
    ("address", "says"),
    [
        (b"x" * 1_000, "recipient of 1000 bytes; servers take at most 999"),
        (b"a\0b", "recipient a?b has a NUL in it"),
        (b"a\nb", "recipient a?b has a LF in it"),
        (b"a\rb", "recipient a?b has a CR in it"),
        (b"\0", "recipient ? has a NUL in it"),
    ],
)
def test_addresses_that_no_server_takes(address: bytes, says: str) -> None:
    """Found here, it costs one message; found by qmail-qmtpd, the connection."""
    assert protocol.check_address(address, "recipient") == says


@pytest.mark.parametrize(
    ("encoding", "text", "sender", "recipients", "wire"),
    [
        (b"\n", SPEC_TEXT, b"a@b", [b"c@d.e", b"f@g.h"], SPEC_PACKAGE),
        (b"\n", b"", b"", [b"x"], b"1:\n,0:,4:1:x,,"),
        (b"\r", b"hi\r\n", b"", [b"x"], b"5:\rhi\r\n,0:,4:1:x,,"),
        (b"\n", b"\0\xff", b"\xe9", [b"1:x,"], b"3:\n\0\xff,1:\xe9,7:4:1:x,,,"),
    ],
)
def test_packages_are_written_as_the_specification_says(
    encoding: bytes, text: bytes, sender: bytes, recipients: list[bytes], wire: bytes
) -> None:
    """One byte off and the server hangs up, on every message after this one too."""
    head = protocol.package_head(len(text), encoding)
    assert head + text + protocol.package_tail(sender, recipients) == wire
    assert head + text + protocol.package_tail(sender, tuple(recipients)) == wire


def test_unix_files_are_the_default_encoding() -> None:
    """mailfront refuses the other one."""
    assert protocol.package_head(0) == b"1:\n"


# Many at once


def test_accepting_responses_are_taken_together() -> None:
    """Their texts are of no interest where nothing is said of accepted messages."""
    reader = ResponseReader()
    reader.feed(b"3:Kok,1:K,12:Kok 17000000,3:Zno,3:Kok,")
    assert reader.take_accepted(2) == 2
    assert reader.take_accepted(9) == 1
    assert reader.take_accepted(9) == 0
    assert str(reader.next()) == "Zno"
    assert reader.take_accepted(9) == 1
    assert reader.pending == 0


@pytest.mark.parametrize("frame", [b"3:Kok", b"3:Ko", b"3:", b"", b"03:Kok,", b"3:KokX", b"0:,"])
def test_what_is_not_a_whole_usual_response_is_left(frame: bytes) -> None:
    """Half an answer, or one that breaks the rules, is for the reader that looks closely."""
    reader = ResponseReader()
    reader.feed(frame)
    assert reader.take_accepted(9) == 0
    assert reader.pending == len(frame)
