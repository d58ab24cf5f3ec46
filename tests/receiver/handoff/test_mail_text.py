"""The text as SMTP carries it: no line changed, no end of the text before the end."""

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maildirqmtp.receiver.handoff.mail_text import features, for_smtp

TABLE = [
    (b"", b".\r\n"),
    (b"a\n", b"a\r\n.\r\n"),
    (b"a", b"a\r\n.\r\n"),
    (b"a\r\n", b"a\r\n.\r\n"),
    (b"a\r\nb\nc", b"a\r\nb\r\nc\r\n.\r\n"),
    (b".\n", b"..\r\n.\r\n"),
    (b"a\n.\nb\n", b"a\r\n..\r\nb\r\n.\r\n"),
    (b"a\n..b\n", b"a\r\n...b\r\n.\r\n"),
    (b"a.b\n", b"a.b\r\n.\r\n"),
    (b"\n\n.", b"\r\n\r\n..\r\n.\r\n"),
    (b"a\r\n.\r\nb", b"a\r\n..\r\nb\r\n.\r\n"),
]


def bytewise(text: bytes) -> Iterator[bytes]:
    for byte in text:
        yield bytes([byte])


@pytest.mark.parametrize(("text", "sent"), TABLE)
def test_lines_and_dots(text: bytes, sent: bytes) -> None:
    """A dot that is not doubled ends the message early: the rest would be read as commands."""
    assert b"".join(for_smtp([text])) == sent
    assert b"".join(for_smtp(bytewise(text))) == sent


@pytest.mark.parametrize(("text", "sent"), TABLE)
def test_the_size_is_what_is_sent_without_doubled_dots(text: bytes, sent: bytes) -> None:
    """SIZE= smaller than the text is refused at the end, after a long way."""
    undoubled = sent.removesuffix(b".\r\n").replace(b"\r\n.", b"\r\n")
    size = len(undoubled) - sent.startswith(b"..")
    assert features([text]).size == features(bytewise(text)).size == size


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (b"a\0b", "NUL"),
        (b"a\rb", "CR"),
        (b"a\r", "CR"),
        (b"a\r\r\n", "CR"),
        (b"\ra\n", "CR"),
        (b"a\n\rb\n", "CR"),
        (b"a\r\nb\n", ""),
        (b"\xff\n", ""),
    ],
)
def test_what_no_server_reads_like_another(text: bytes, fault: str) -> None:
    """`CR . CR` is the end of a message for some servers: what follows is another, forged one."""
    for pieces in ([text], bytewise(text)):
        found = features(pieces).fault
        assert (fault in found) if fault else not found


@given(st.lists(st.sampled_from([b"\r\n", b"\n", b".", b"a", b"\xff", b""])))
def test_the_other_side_gets_the_lines_back(parts: list[bytes]) -> None:
    """In whatever pieces the text is read from its file."""
    text = b"".join(parts)
    sent = b"".join(for_smtp(parts))
    assert sent.endswith(b".\r\n")
    lines = sent.removesuffix(b".\r\n").split(b"\r\n")
    assert lines.pop() == b""
    assert b"." not in lines
    got = [line.removeprefix(b".") for line in lines]
    expected = text.replace(b"\r\n", b"\n").split(b"\n")
    assert got == (expected[:-1] if expected[-1] == b"" else expected)
    assert features(parts).size == sum(len(line) + 2 for line in got)
    assert features(parts).is_8bit == (b"\xff" in text)
