"""Where a message goes when the queue's socket cannot be used."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from maildirqmtp.errors import ConnectError
from maildirqmtp.settings.submission import Submission
from maildirqmtp.submission import queue_client
from maildirqmtp.submission.hand_over import Envelope, hand_over
from maildirqmtp.submission.held_text import MEMORY_BYTES, HeldText
from maildirqmtp.submission.message_input import Stoppable
from tests.helpers import names

ENVELOPE = Envelope(b"s@x", (b"a@y",))


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (errno.ENOENT, 75),
        (errno.ECONNREFUSED, 75),
        (errno.EAGAIN, 75),
        (errno.EACCES, 77),
        (errno.EPERM, 77),
        (None, 75),
    ],
)
def test_a_socket_that_cannot_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int | None, code: int
) -> None:
    """With a maildir of one's own it is no trouble; without one, it is told."""

    def fail(path: bytes, stoppable: Stoppable) -> None:
        raise ConnectError(number, "cannot connect")

    monkeypatch.setattr(queue_client, "connect", fail)
    told: list[str] = []
    with HeldText([b"hi\n"]) as text:
        assert hand_over(Submission(), ENVELOPE, text, Stoppable(), told.append) == code
        (line,) = told
        assert line.startswith(
            "cannot connect; and no maildir is configured to keep the message in"
        )
        assert "[submission] of ~/.config/maildirqmtp.toml" in line
        settings = Submission(maildir=bytes(tmp_path / "out"))
        assert hand_over(settings, ENVELOPE, text, Stoppable(), told.append) == 0
    assert len(told) == 1
    assert len(names(tmp_path / "out" / "new")) == 1


@pytest.mark.parametrize("size", [0, 1, MEMORY_BYTES, MEMORY_BYTES + 1, 3 * MEMORY_BYTES])
def test_a_text_can_be_handed_over_twice(size: int) -> None:
    """Into the queue, and what it does not take into the maildir; whole each time."""
    body = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    with HeldText([body[: size // 2], body[size // 2 :]]) as text:
        text.put_before(b"head\n")
        assert text.length == size + 5
        for _ in range(2):
            assert b"".join(text.pieces()) == b"head\n" + body
