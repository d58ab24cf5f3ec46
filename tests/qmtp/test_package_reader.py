"""The server's half of QMTP, alone and joined to the client's without a socket."""

import tracemalloc
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maildirqmtp import netstring
from maildirqmtp.errors import ProtocolError
from maildirqmtp.qmtp import protocol
from maildirqmtp.qmtp.package_reader import (
    MAX_RECIPIENTS_BYTES,
    MAX_SENDER,
    Event,
    MessageData,
    MessageStart,
    PackageEnd,
    PackageReader,
)
from maildirqmtp.qmtp.protocol import MAX_RECIPIENTS, Response, ResponseReader, Status

CHECKED = settings(deadline=None)
LIMIT = 100

SPEC_PACKAGE = b"17:\nSubject: x\n\nhi\n\n,3:a@b,16:5:c@d.e,5:f@g.h,,"
SPEC_EVENTS: list[Event] = [
    MessageStart(16, b"\n"),
    MessageData(b"Subject: x\n\nhi\n\n"),
    PackageEnd(b"a@b", (b"c@d.e", b"f@g.h")),
]
NO_TEXT: list[Event] = [MessageStart(0, b"\n"), PackageEnd(b"", (b"x",))]

# What a client sends -> what it means; after each, the reader is between packages.
GOOD: list[tuple[bytes, list[Event]]] = [
    (b"", []),
    (SPEC_PACKAGE, SPEC_EVENTS),
    (SPEC_PACKAGE * 2, SPEC_EVENTS * 2),
    (b"1:\n,0:,4:1:x,,", NO_TEXT),
    (b"1:\n,0:,4:1:x,," + SPEC_PACKAGE, NO_TEXT + SPEC_EVENTS),
    (
        b"5:\rhi\r\n,0:,4:1:x,,",
        [MessageStart(4, b"\r"), MessageData(b"hi\r\n"), PackageEnd(b"", (b"x",))],
    ),
    (
        b"5:\n,\0\r\xff,1:\xe9,3:0:,,",
        [MessageStart(4, b"\n"), MessageData(b",\0\r\xff"), PackageEnd(b"\xe9", (b"",))],
    ),
    (b"1:\n,0:,0:,", [MessageStart(0, b"\n"), PackageEnd(b"", ())]),
    (
        b"101:\n" + b"x" * LIMIT + b",0:,0:,",
        [MessageStart(LIMIT, b"\n"), MessageData(b"x" * LIMIT), PackageEnd(b"", ())],
    ),
]

# What no client may send -> the events before it, and what the error says.
BAD: list[tuple[bytes, list[Event], str]] = [
    (b"EHLO client\r\n", [], "begins with"),
    (b"\r\n", [], "begins with"),
    (b"-1:", [], "begins with"),
    (b"017:\n", [], "leading zero"),
    (b":", [], "begins with a colon"),
    (b"0:,", [], "without even its encoding byte"),
    (b"102:", [], "above 101"),
    (b"1000", [], "above 101"),
    (b"3:hi", [], "neither LF nor CR"),
    (b"3:\0hi", [], "neither LF nor CR"),
    (b"1:,", [], "neither LF nor CR"),
    (b"1:\nx", [MessageStart(0, b"\n")], "no comma after the message"),
    (
        b"3:\nhi;",
        [MessageStart(2, b"\n"), MessageData(b"hi")],
        "no comma after the message",
    ),
    (b"1:\n,x", [MessageStart(0, b"\n")], "begins with"),
    (b"1:\n,00:", [MessageStart(0, b"\n")], "leading zero"),
    (b"1:\n,1:ab", [MessageStart(0, b"\n")], "no comma"),
    (b"1:\n,65537:", [MessageStart(0, b"\n")], "above 65536"),
    (b"1:\n,0:,1048577:", [MessageStart(0, b"\n")], "above 1048576"),
    (b"1:\n,0:,3:1:xx", [MessageStart(0, b"\n")], "no comma"),
    (b"1:\n,0:,1:x,", [MessageStart(0, b"\n")], "begins with"),
    (b"1:\n,0:,3:5:a,", [MessageStart(0, b"\n")], "cut short"),
    (b"1:\n,0:,4:1:xy,", [MessageStart(0, b"\n")], "no comma"),
    (b"1:\n,0:,4:1:x,,\n", NO_TEXT, "begins with"),
]


def ways_to_cut(data: bytes) -> Iterator[list[bytes]]:
    """Whole, byte by byte, and in two at every point."""
    yield [data]
    yield [data[i : i + 1] for i in range(len(data))]
    for point in range(1, len(data)):
        yield [data[:point], data[point:]]


def read(reader: PackageReader, pieces: list[bytes]) -> tuple[list[Event], str | None]:
    """Return the events, the pieces of a text put together, and the error if it came to one."""
    events: list[Event] = []
    for piece in pieces:
        reader.feed(piece)
        try:
            while (event := reader.next()) is not None:
                if isinstance(event, MessageData):
                    assert event.data
                    if isinstance(events[-1], MessageData):
                        event = MessageData(events.pop().data + event.data)  # type: ignore[union-attr]
                events.append(event)
        except ProtocolError as error:
            return events, str(error)
    return events, None


@pytest.mark.parametrize(("data", "events"), GOOD)
def test_packages_are_the_same_however_they_arrive(data: bytes, events: list[Event]) -> None:
    """A package that depends on how TCP cut it up would deliver something else."""
    for pieces in ways_to_cut(data):
        reader = PackageReader(LIMIT)
        assert read(reader, pieces) == (events, None)
        assert reader.between_packages
    reader = PackageReader(LIMIT)
    assert read(reader, [data + SPEC_PACKAGE[:-1]]) == (events + SPEC_EVENTS[:-1], None)
    assert not reader.between_packages


@pytest.mark.parametrize(("data", "events", "says"), BAD)
def test_anything_else_is_a_violation_however_it_arrives(
    data: bytes, events: list[Event], says: str
) -> None:
    """What is no package must never be delivered, and never acknowledged."""
    for pieces in [*ways_to_cut(data), [data + SPEC_PACKAGE], [data, b"\0"]]:
        taken, error = read(PackageReader(LIMIT), pieces)
        assert error is not None
        assert says in error
        assert taken == events


def test_a_client_that_goes_away_in_the_middle_leaves_no_package() -> None:
    """qmtp.txt, section 3: closed before the last byte, the package is to be thrown away."""
    for end in range(1, len(SPEC_PACKAGE)):
        reader = PackageReader()
        events, error = read(reader, [SPEC_PACKAGE[:end]])
        assert error is None
        assert not any(isinstance(event, PackageEnd) for event in events)
        assert not reader.between_packages


def test_bytes_of_the_next_package_mean_that_a_close_loses_something() -> None:
    """`between_packages` looks at what was fed, not only at what was asked for."""
    reader = PackageReader()
    assert reader.between_packages
    reader.feed(b"1")
    assert not reader.between_packages
    assert reader.next() is None
    assert not reader.between_packages


def test_a_message_of_the_largest_size_is_let_in_and_one_above_is_not() -> None:
    """The limit is the text's, without the encoding byte, for the default too."""
    reader = PackageReader()
    reader.feed(b"200000001:\n")
    assert reader.next() == MessageStart(200_000_000, b"\n")
    reader = PackageReader()
    reader.feed(b"200000002:\n")
    with pytest.raises(ProtocolError, match="above 200000001"):
        reader.next()


def test_the_longest_sender_and_recipients_are_read() -> None:
    """It is for the server to refuse them, one by one, with a D."""
    sender = b"s" * MAX_SENDER
    recipient = b"r" * (MAX_RECIPIENTS_BYTES - len("1048567:,"))
    data = b"1:\n" + protocol.package_tail(sender, [recipient])
    assert len(netstring.encode(recipient)) == MAX_RECIPIENTS_BYTES
    events, error = read(PackageReader(), [data])
    assert error is None
    assert events[-1] == PackageEnd(sender, (recipient,))


def test_ten_thousand_recipients_and_no_more() -> None:
    """A package of a million empty recipients would cost the server dearly."""
    many = [b""] * MAX_RECIPIENTS
    events, error = read(PackageReader(), [b"1:\n" + protocol.package_tail(b"", many)])
    assert error is None
    assert events[-1] == PackageEnd(b"", tuple(many))
    events, error = read(PackageReader(), [b"1:\n" + protocol.package_tail(b"", [*many, b""])])
    assert error is not None
    assert "more than 10000" in error
    assert len(events) == 1


def test_a_message_of_any_size_passes_through_little_memory() -> None:
    """A client must not fill the server's memory with one message."""
    reader = PackageReader()
    size = 20 << 20
    chunk = b"x" * 65_536
    reader.feed(protocol.package_head(size))
    assert reader.next() == MessageStart(size, b"\n")
    tracemalloc.start()
    try:
        for _ in range(size // len(chunk)):
            reader.feed(chunk)
            assert reader.next() == MessageData(chunk)
            assert reader.next() is None
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()
    reader.feed(protocol.package_tail(b"", [b"x"]))
    assert reader.next() == PackageEnd(b"", (b"x",))


PACKAGES = st.lists(
    st.tuples(
        st.sampled_from([b"\n", b"\r"]),
        st.binary(max_size=300),
        st.binary(max_size=20),
        st.lists(st.binary(max_size=20), max_size=5),
    ),
    max_size=5,
)
SIZES = st.lists(st.integers(1, 200), min_size=1, max_size=6)


def cut(data: bytes, sizes: list[int]) -> list[bytes]:
    """Cut into pieces of these sizes, over and over."""
    pieces: list[bytes] = []
    while data:
        size = sizes[len(pieces) % len(sizes)]
        pieces.append(data[:size])
        data = data[size:]
    return pieces


@CHECKED
@given(PACKAGES, SIZES)
def test_what_the_client_writes_the_server_reads(
    packages: list[tuple[bytes, bytes, bytes, list[bytes]]], sizes: list[int]
) -> None:
    """Any message, any envelope, any chunks: byte for byte, none mixed up."""
    wire = b""
    expected: list[Event] = []
    for encoding, text, sender, recipients in packages:
        wire += protocol.package_head(len(text), encoding) + text
        wire += protocol.package_tail(sender, recipients)
        expected.append(MessageStart(len(text), encoding))
        if text:
            expected.append(MessageData(text))
        expected.append(PackageEnd(sender, tuple(recipients)))
    reader = PackageReader()
    assert read(reader, cut(wire, sizes)) == (expected, None)
    assert reader.between_packages


@CHECKED
@given(
    st.binary(max_size=80) | st.lists(st.sampled_from([b"1:\n,", b"0:,", b"3", b":"])).map(b"".join)
)
def test_no_bytes_raise_anything_but_a_violation(data: bytes) -> None:
    """A crash on strange bytes would take the receiver down with it; chunks change nothing."""
    events, error = read(PackageReader(), [data])
    by_bytes, error_by_bytes = read(PackageReader(), [data[i : i + 1] for i in range(len(data))])
    assert events == by_bytes
    assert (error is None) == (error_by_bytes is None)


@CHECKED
@given(PACKAGES, SIZES, SIZES, st.lists(st.sampled_from(Status), min_size=1, max_size=7))
def test_client_and_server_joined_agree_on_every_recipient(
    packages: list[tuple[bytes, bytes, bytes, list[bytes]]],
    sizes: list[int],
    sizes_back: list[int],
    verdicts: list[Status],
) -> None:
    """Pipelined: the nth response is the nth recipient's, or mail is deleted as accepted."""
    wire = b"".join(
        protocol.package_head(len(text), encoding) + text + protocol.package_tail(sender, to)
        for encoding, text, sender, to in packages
    )
    server, back = PackageReader(), bytearray()
    said: list[Response] = []
    for piece in cut(wire, sizes):
        server.feed(piece)
        while (event := server.next()) is not None:
            if isinstance(event, PackageEnd):
                for recipient in event.recipients:
                    verdict = verdicts[len(said) % len(verdicts)]
                    said.append(Response(verdict, b"for " + recipient))
                    back += netstring.encode(verdict.value.encode() + b"for " + recipient)
    client = ResponseReader()
    heard = []
    for piece in cut(bytes(back), sizes_back):
        client.feed(piece)
        while (response := client.next()) is not None:
            heard.append(response)
    assert heard == said
    assert [r.raw for r in heard] == [b"for " + to for p in packages for to in p[3]]
    assert client.pending == 0


def test_the_specification_s_example_goes_both_ways() -> None:
    """qmtp.txt, section 6, read by the server and answered to the client."""
    assert read(PackageReader(), [SPEC_PACKAGE]) == (SPEC_EVENTS, None)
    client = ResponseReader()
    client.feed(netstring.encode(b"Kok 1795398047 qp 12548") * 2)
    assert client.next() == client.next() == Response(Status.ACCEPTED, b"ok 1795398047 qp 12548")
    assert client.next() is None
