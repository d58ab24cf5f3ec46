"""Replies of the next server: what is one, and what ends the connection."""

import pytest

from maildirqmtp.receiver.handoff.replies import MAX_LINE, MAX_LINES, Reply, ReplyError, ReplyReader


def replies(data: bytes) -> list[Reply]:
    reader = ReplyReader()
    reader.feed(data)
    return list(iter(reader.next, None))


TABLE = [
    (b"250 2.1.0 ok\r\n", [Reply(250, (b"2.1.0 ok",))]),
    (b"250\r\n", [Reply(250, (b"",))]),
    (b"250 \r\n", [Reply(250, (b"",))]),
    (b"250 ok\n", [Reply(250, (b"ok",))]),
    (b"250-a\r\n250-\r\n250 c\r\n", [Reply(250, (b"a", b"", b"c"))]),
    (b"250 one\r\n550 5.1.1 two\r\n", [Reply(250, (b"one",)), Reply(550, (b"5.1.1 two",))]),
    (b"250-not yet\r\n", []),
    (b"25", []),
]


@pytest.mark.parametrize(("data", "expected"), TABLE)
def test_replies_whole_and_byte_by_byte(data: bytes, expected: list[Reply]) -> None:
    """However the network cuts them, recipients get their own answers."""
    assert replies(data) == expected
    reader = ReplyReader()
    found = []
    for byte in data:
        reader.feed(bytes([byte]))
        found += list(iter(reader.next, None))
    assert found == expected


@pytest.mark.parametrize(
    "data",
    [
        b"hello\r\n",
        b"\r\n",
        b"25\r\n",
        b"2500 ok\r\n",
        b"150 early\r\n",
        b"650 late\r\n",
        b"250_ok\r\n",
        b"250-one\r\n550 two\r\n",
        b"250 " + b"x" * MAX_LINE + b"\r\n",
        b"2" * (MAX_LINE + 1),
        b"250-x\r\n" * (MAX_LINES + 1),
    ],
)
def test_what_is_no_reply_ends_the_connection(data: bytes) -> None:
    """Taken for an answer, it would be one recipient's K or D by accident, or fill the memory."""
    with pytest.raises(ReplyError):
        replies(data)


def test_a_text_fits_into_one_response() -> None:
    """A response goes into logs, sidecars and bounces, which are read by lines."""
    (reply,) = replies(b"550-5.1.1 no\x1b[2J\x00\t such\r\n550 5.1.1 user\r\n")
    assert reply.text == b"550 5.1.1 no [2J such 5.1.1 user"
    assert reply.enhanced == "5.1.1"
    assert len(Reply(550, (b"x" * 9_999,)).text) == 500


@pytest.mark.parametrize(
    ("text", "code"), [(b"5.1.1 x", "5.1.1"), (b"5.1.1", "5.1.1"), (b"5.1 x", ""), (b"x", "")]
)
def test_the_enhanced_code(text: bytes, code: str) -> None:
    """It decides between Z and D where the reply is about us or about the sender."""
    assert Reply(550, (text,)).enhanced == code
