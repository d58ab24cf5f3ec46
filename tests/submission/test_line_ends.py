"""Lines as programs write them to sendmail."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maildirqmtp.submission.line_ends import UntilDot, unix_lines

TEXTS = st.text(st.sampled_from("a.\r\n"), max_size=30).map(str.encode)
CUTS = st.lists(st.integers(1, 5), max_size=30)


def cut(text: bytes, sizes: list[int]) -> Iterator[bytes]:
    """Yield a text in pieces of these sizes, the rest at once."""
    for size in sizes:
        yield text[:size]
        text = text[size:]
    yield text


@given(TEXTS, CUTS)
def test_crlf_becomes_lf_wherever_a_pipe_cuts_it(text: bytes, sizes: list[int]) -> None:
    """PHP and git write CR LF; left so, each line would end with a CR that is shown."""
    assert b"".join(unix_lines(cut(text, sizes))) == text.replace(b"\r\n", b"\n")


@given(TEXTS, CUTS)
def test_a_dot_alone_ends_it_wherever_a_pipe_cuts_it(text: bytes, sizes: list[int]) -> None:
    """Every other line stays, also those with more than a dot."""
    ended = re.split(rb"(?m)^\.(?:\n|\Z)", text.replace(b"\r", b"a"), maxsplit=1)
    lines = UntilDot(cut(text.replace(b"\r", b"a"), sizes))
    assert b"".join(lines) == ended[0]
    assert not lines.more or ended[1].strip()


@pytest.mark.parametrize(
    ("text", "kept", "more"),
    [
        (b"a\n.\n", b"a\n", False),
        (b"a\n.\n\n", b"a\n", False),
        (b"a\n.\nb\n", b"a\n", True),
        (b".\nb", b"", True),
        (b"a\n..\nb\n", b"a\n..\nb\n", False),
        (b"a.\nb\n", b"a.\nb\n", False),
        (b"a\n.", b"a\n", False),
    ],
)
def test_what_follows_the_dot_is_noticed(text: bytes, kept: bytes, more: bool) -> None:
    """So that a message that was cut short is told."""
    lines = UntilDot([text])
    assert (b"".join(lines), lines.more) == (kept, more)
