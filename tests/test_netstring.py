"""Netstrings: a length that is believed wrongly shifts every byte after it."""

import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maildirqmtp import netstring
from maildirqmtp.errors import Fault, NetstringError, ProtocolError

CHECKED = settings(deadline=None)

# (bytes, limit) -> (length, offset of the first byte after the colon)
LENGTHS = [
    (b"0:", 10, (0, 2)),
    (b"9:", 9, (9, 2)),
    (b"10:", 10, (10, 3)),
    (b"12:hello", 65_536, (12, 3)),
    (b"65536:", 65_536, (65_536, 6)),
    (b"200000001:", 200_000_001, (200_000_001, 10)),
    (b"0:", 0, (0, 2)),
]

# (bytes, limit, what the error says)
BAD_LENGTHS = [
    (b":", 10, "begins with a colon"),
    (b"+1:", 10, "begins with '+1'"),
    (b"-1:", 10, "begins with '-1'"),
    (b" 1:", 10, "begins with ' 1'"),
    (b"1 :", 10, "begins with '1 '"),
    (b"1_0:", 1000, "begins with '1_0'"),
    (b"0x1:", 1000, "begins with '0x1'"),
    (b"\xb2:", 10, r"begins with '\xb2'"),
    (b"\xd9\xa1:", 1000, r"begins with '\xd9\xa1'"),
    (b"220 mail", 65_536, "begins with '220 ma'"),
    (b"\0", 10, r"begins with '\x00'"),
    (b"01:", 10, "'01' has a leading zero"),
    (b"00:", 10, "'00' has a leading zero"),
    (b"00", 10, "'00' has a leading zero"),
    (b"11:", 10, "'11' is above 10"),
    (b"11", 10, "'11' is above 10"),
    (b"100", 10, "'100' is above 10"),
    (b"65537", 65_536, "'65537' is above 65536"),
    (b"100000", 65_536, "'100000' is above 65536"),
    (b"9" * 5000, 65_536, "'999999' is above 65536"),
    (b"1:", 0, "'1' is above 0"),
]


@pytest.mark.parametrize("after", [b"", b":", b"5:hello,", b"\xff"])
@pytest.mark.parametrize("before", [b"", b"3:abc,"])
@pytest.mark.parametrize(("data", "limit", "found"), LENGTHS)
def test_a_length_is_read_wherever_it_stands(
    data: bytes, limit: int, found: tuple[int, int], before: bytes, after: bytes
) -> None:
    """A buffer holds several netstrings; an offset that is off by one loses them all."""
    length, offset = found
    assert netstring.parse_length(before + data + after, len(before), limit) == (
        length,
        len(before) + offset,
    )
    digits = data[: data.index(b":")]
    for end in range(len(digits) + 1):
        assert netstring.parse_length(bytearray(digits[:end]), 0, limit) is None


@pytest.mark.parametrize("before", [b"", b"3:abc,"])
@pytest.mark.parametrize(("data", "limit", "says"), BAD_LENGTHS)
def test_a_wrong_length_raises_and_more_bytes_do_not_help(
    data: bytes, limit: int, says: str, before: bytes
) -> None:
    """A peer that speaks something else is found out, and never waited for."""
    with pytest.raises(NetstringError) as raised:
        netstring.parse_length(before + data, len(before), limit)
    assert says in str(raised.value)
    raising = False
    for end in range(min(len(data), 20) + 1):
        try:
            assert netstring.parse_length(data[:end], 0, limit) is None
            assert not raising
        except NetstringError:
            raising = True
    for trailing in (b":", b"1:", b"0", b"\0", b"x" * 100):
        with pytest.raises(NetstringError):
            netstring.parse_length(data + trailing, 0, limit)


def test_a_length_above_the_limit_raises_before_its_colon() -> None:
    """Else somebody could make us set aside memory by sending digits only."""
    with pytest.raises(NetstringError):
        netstring.parse_length(b"65537", 0, 65_536)
    assert netstring.parse_length(b"6553", 0, 65_536) is None


def test_the_error_is_the_other_side_s_fault() -> None:
    """A caller that catches `ProtocolError` must not miss a bad netstring."""
    assert issubclass(NetstringError, ProtocolError)
    assert NetstringError.fault is Fault.SERVER


@pytest.mark.parametrize("after", [b"", b",", b"5:hello,", b"\xff"])
@pytest.mark.parametrize("payload", [b"", b"a", b",", b"3:abc,", b"\0\r\n", b"x" * 300])
def test_a_payload_is_found_only_when_its_comma_is_there(payload: bytes, after: bytes) -> None:
    """A payload handed on before its comma could be a half one."""
    data = netstring.encode(payload)
    for end in range(len(data)):
        assert netstring.parse(data[:end], 0, 1000) is None
    found = netstring.parse(bytearray(b"??" + data + after), 2, 1000)
    assert found is not None
    first, end = found
    assert (b"??" + data)[first:end] == payload
    assert end + 1 == 2 + len(data)


@pytest.mark.parametrize("data", [b"0:x", b"0:0:,", b"3:abcd", b"3:abc\n", b"3:abc;,"])
def test_no_comma_after_the_payload_raises(data: bytes) -> None:
    """What is framed wrongly must not be taken for what it looks like."""
    with pytest.raises(NetstringError, match=r"no comma after the \d bytes"):
        netstring.parse(data, 0, 10)


def test_encode_is_the_published_example() -> None:
    """netstrings.txt: `12:hello world!,` and `0:,`."""
    assert netstring.encode(b"hello world!") == b"12:hello world!,"
    assert netstring.encode(b"") == b"0:,"
    assert netstring.decode(b"12:hello world!,", 12) == b"hello world!"


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "cut short"),
        (b"3", "cut short"),
        (b"3:ab", "cut short"),
        (b"3:abc", "cut short"),
        (b"3:abc,x", "1 bytes follow"),
        (b"3:abc,3:abc,", "6 bytes follow"),
        (b"11:hello world,", "above 10"),
    ],
)
def test_decode_takes_exactly_one_netstring(data: bytes, says: str) -> None:
    """A file or an argument that holds more or less than one is not what was meant."""
    with pytest.raises(NetstringError, match=says):
        netstring.decode(data, 10)


@pytest.mark.parametrize(
    ("data", "payloads"),
    [
        (b"", ()),
        (b"0:,", (b"",)),
        (b"5:c@d.e,5:f@g.h,", (b"c@d.e", b"f@g.h")),
        (b"0:,0:,1:,,", (b"", b"", b",")),
    ],
)
def test_decode_all_splits_a_list(data: bytes, payloads: tuple[bytes, ...]) -> None:
    """The recipients of the specification's example come out apart."""
    assert netstring.decode_all(data, 10, 3) == payloads


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"5:c@d.e,5:f@g", "cut short"),
        (b"5:c@d.e,5", "cut short"),
        (b"5:c@d.e,\n", "begins with"),
        (b"5:c@d.ex5:f@g.h,", "no comma"),
        (b"0:," * 4, "more than 3"),
        (b"11:hello world,", "above 10"),
    ],
)
def test_decode_all_takes_nothing_but_a_list(data: bytes, says: str) -> None:
    """A recipient list that is not whole must not lose its last recipient silently."""
    with pytest.raises(NetstringError, match=says):
        netstring.decode_all(data, 10, 3)


@CHECKED
@given(st.lists(st.binary(max_size=300), max_size=8))
def test_whatever_is_encoded_is_decoded(payloads: list[bytes]) -> None:
    """Round trip, one by one and run together."""
    data = b"".join(map(netstring.encode, payloads))
    assert netstring.decode_all(data, 300, 8) == tuple(payloads)
    for payload in payloads:
        assert netstring.decode(netstring.encode(payload), 300) == payload


@CHECKED
@given(st.binary(max_size=40) | st.text("0123456789:,K", max_size=20).map(str.encode))
def test_no_bytes_raise_anything_else_and_only_netstrings_are_taken(data: bytes) -> None:
    """A crash on strange bytes would take the forwarder down with it."""
    try:
        payload = netstring.decode(data, 30)
    except NetstringError:
        return
    assert netstring.encode(payload) == data


@pytest.mark.parametrize(
    ("data", "valid"),
    [
        (b"0:,", True),
        (b"5:hello,", True),
        (b"12:hello, world,", True),
        (b"", False),
        (b"5:hello", False),
        (b"5:hello,,", False),
        (b"05:hello,", False),
        (b"4:hello,", False),
        (b"99999999999999:,", False),
        (b"hello", False),
    ],
)
def test_is_valid(data: bytes, valid: bool) -> None:
    """Text::Netstring's netstring_verify: exactly one, and never an exception."""
    assert netstring.is_valid(data) is valid


def test_decode_without_a_limit() -> None:
    """The data is in memory already."""
    assert netstring.decode(netstring.encode(b"x" * 100_000)) == b"x" * 100_000


class OneByOne(io.BytesIO):
    """A connection that brings a byte at a time, and notes how many were asked for."""

    most = 0

    def read(self, size: int | None = -1) -> bytes:
        """Return a byte, or the end."""
        assert size is not None
        assert size > 0
        self.most = max(self.most, size)
        return super().read(1)


@pytest.mark.parametrize("kind", [io.BytesIO, OneByOne])
def test_read_takes_one_after_the_other(kind: type[io.BytesIO]) -> None:
    """And not a byte of the next: that may be somebody else's to read."""
    large = b"y" * 200_000
    file = kind(b"5:hello,0:,3:a,b," + netstring.encode(large) + b"rest")
    assert [netstring.read(file) for _ in range(4)] == [b"hello", b"", b"a,b", large]
    assert file.getvalue()[file.tell() :] == b"rest"
    assert netstring.read(io.BytesIO(b"")) is None


def test_read_asks_for_little_at_a_time() -> None:
    """A length that lies must not make us set aside memory for it."""
    file = OneByOne(b"199999999:x")
    with pytest.raises(NetstringError, match="cut short"):
        netstring.read(file)
    assert file.most <= 65_536


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"5", "cut short"),
        (b"5:", "cut short"),
        (b"5:hello", "cut short"),
        (b"5:hellox", "no comma"),
        (b"x", "begins with 'x'"),
        (b":", "begins with a colon"),
        (b"01:x,", "leading zero"),
        (b"11:hello world,", "above 10"),
    ],
)
def test_read_takes_nothing_else(data: bytes, says: str) -> None:
    """The end in the middle of one is not the end of the file."""
    with pytest.raises(NetstringError, match=says):
        netstring.read(io.BytesIO(data), 10)
