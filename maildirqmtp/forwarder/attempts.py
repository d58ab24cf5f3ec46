"""Notes about attempts to send a message, to be read later, also after a restart."""

from __future__ import annotations

from typing import TYPE_CHECKING

from maildirqmtp.text import printable

if TYPE_CHECKING:
    from collections.abc import Iterable

    from maildirqmtp.forwarder.queued_message import QueuedMessage
    from maildirqmtp.maildir.state import State


def last_answer(attempts: tuple[tuple[int, str], ...], recipient: bytes) -> str:
    """Return the last reason noted for a recipient; empty if there is none.

    `attempts` are time and text, newest first; `recipient` is without the prefix.
    """
    about = _about(recipient)
    own = [text.removeprefix(about) for _, text in attempts if text.startswith(about)]
    of_all = [text for _, text in attempts if not text.startswith("<")]
    return next(filter(None, own + of_all), "")


def _about(recipient: bytes) -> str:
    """Return how a text begins that is about one of several recipients."""
    return f"<{printable(recipient)}>: "


class AttemptNotes:
    """Notes attempts in the state file of a maildir; keeps nothing if `state` is None."""

    __slots__ = ("_state",)

    def __init__(self, state: State | None) -> None:
        self._state = state

    def note(self, queued: QueuedMessage, text: str, index: int | None = None) -> None:
        """Note why a message is to be tried again; `index` is the recipient that this is about."""
        if self._state is None:
            return
        if index is not None and len(queued.recipients) + len(queued.others) > 1:
            text = _about(queued.recipients[index]) + text
        self._state.note_attempt(queued.message.name, text)

    def earlier(self, queued: QueuedMessage, indexes: Iterable[int]) -> tuple[tuple[int, str], ...]:
        """Return time (seconds of the epoch) and text of the last attempts, newest first.

        Of those that were about one of several recipients, those about the recipients `indexes`.
        """
        if self._state is None:
            return ()
        about = tuple(_about(queued.recipients[index]) for index in indexes)
        return tuple(
            (at_s, text)
            for at_s, text in self._state.attempts(queued.message.name)[1]
            if not text.startswith("<") or text.startswith(about)
        )
