"""What is sent: a kind of it that lacks a part must say so, not send nothing."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from maildirqmtp.pipeline.outgoing import OutgoingMessage


@pytest.mark.parametrize(
    "use",
    [
        lambda message: message.append_to(bytearray()),
        lambda message: message.release(),
        lambda message: message.close(),
        lambda message: message.label,
    ],
)
def test_a_kind_without_a_text_cannot_be_sent(use: Callable[[OutgoingMessage], object]) -> None:
    """An empty message under somebody's name would be worse than an error."""
    with pytest.raises(NotImplementedError):
        use(OutgoingMessage(b"s@x", (b"r@y",), 0))
