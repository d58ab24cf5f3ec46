"""A message on standard input: what is there when it has ended."""

from __future__ import annotations

import os
import pty
import tty
from collections.abc import Iterator

import pytest

from maildirqmtp.submission.message_input import Input


@pytest.fixture
def pipe() -> Iterator[tuple[Input, int]]:
    """Return the input, and the descriptor to write to."""
    reader, writer = os.pipe()
    yield Input(reader), writer
    os.close(reader)
    os.close(writer)


@pytest.mark.parametrize(
    ("text", "more"), [(b"", False), (b"\n", False), (b" \r\n", False), (b"x", True)]
)
def test_text_that_waits_is_noticed(pipe: tuple[Input, int], text: bytes, more: bool) -> None:
    """And text that may still come is not waited for: the writer may wait for the exit code."""
    given, writer = pipe
    os.write(writer, text)
    assert given.has_more() is more
    assert given.has_more() is False


def test_the_end_is_no_more_text() -> None:
    """As a file has it."""
    with open(os.devnull, "rb") as file:
        assert Input(file.fileno()).has_more() is False


def test_what_is_typed_ahead_is_left_to_the_shell() -> None:
    """A dot ends a message that somebody types; the next command is none of it."""
    master, terminal = pty.openpty()
    tty.setraw(terminal)
    os.write(master, b"ls\n")
    assert Input(terminal).has_more() is False
    assert os.read(terminal, 10) == b"ls\n"
    os.close(master)
    os.close(terminal)
