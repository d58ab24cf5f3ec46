"""How the last attempts to send each waiting message ended: times and texts, by name.

A part of the state file (see `state`):

    "attempts": {"texts": ["greylisted (#4.7.1)"],
                 "messages": {"UNIQUE NAME": "12 1800000000 0 1799998800 0"}}

A message has the number of its attempts and then, newest first, the time of each recent attempt in
seconds of the epoch and the index of its text. In memory, too, a message stays one short string, so
that a run neither parses nor formats the entries that it does not touch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from maildirqmtp.text import LAST_S

if TYPE_CHECKING:
    from typing import Any

    #: The number of attempts, and time and text of the last ones, newest first.
    Attempts = tuple[int, tuple[tuple[int, str], ...]]

#: Attempts kept for a message, and characters kept of a text.
LAST = 5
TEXT_MAX = 120
#: Messages, and distinct texts, that are kept; when full, no new message is added.
MOST = 5_000
MOST_TEXTS = 2_000
#: Seconds after its last attempt when a message makes room for others, and when it is forgotten.
GIVES_WAY_S = 86_400
FORGOTTEN_S = 30 * 86_400
#: Seconds between two searches for what can be forgotten.
SEARCH_S = 600
NONE: Attempts = (0, ())
# Stands for a text for which there was no room.
_NO_TEXT = "-"


class AttemptHistory:
    """The attempts of a maildir's messages; `key` is a message's name as from `holds.key`."""

    def __init__(self) -> None:
        self._lines: dict[str, str] = {}
        self._texts: list[str] = []
        self._numbers: dict[str, int] = {}
        self._room_at = self._texts_at = 0.0

    def __len__(self) -> int:
        return len(self._lines)

    def note(self, key: str, text: str, now_s: float) -> bool:
        """Record how an attempt ended; return whether there was room for it."""
        is_full = len(self._lines) >= MOST
        if is_full and key not in self._lines and not self._make_room(now_s):
            return False
        number = self._number_of(text[:TEXT_MAX], now_s)  # may write all lines anew
        line = self._lines.get(key)
        if line is None:
            if number == _NO_TEXT:
                return False
            self._lines[key] = f"1 {int(now_s)} {number}"
            return True
        tries, *last = line.split(" ", 2 * LAST - 1)[: 2 * LAST - 1]
        count = int(tries) if tries.isdecimal() and len(tries) < 10 else 0
        self._lines[key] = " ".join([str(count + 1), str(int(now_s)), number, *last])
        return True

    def of(self, key: str) -> Attempts:
        """Return what is known of a message; `NONE` if that is nothing, or malformed."""
        line = self._lines.get(key)
        if line is None:
            return NONE
        tries, *rest = line.split(" ", 2 * LAST + 1)
        pairs = list(zip(rest[::2], rest[1::2], strict=False))[:LAST]
        try:
            found = tuple([(int(at), self._text_of(number)) for at, number in pairs])
            count = int(tries)
        except (ValueError, IndexError):
            return NONE
        is_right = 0 < count < LAST_S and all(0 <= at < LAST_S for at, _ in found)
        return (count, found) if is_right else NONE

    def forget(self, key: str) -> bool:
        """Forget a message that is done; return whether it was known."""
        return self._lines.pop(key, None) is not None

    def _text_of(self, number: str) -> str:
        return "" if number == _NO_TEXT else self._texts[int(number)]

    # Bounds

    def _number_of(self, text: str, now_s: float) -> str:
        number = self._numbers.get(text)
        if number is None:
            if len(self._texts) >= MOST_TEXTS and not self._make_room_for_texts(now_s):
                return _NO_TEXT
            number = self._numbers[text] = len(self._texts)
            self._texts.append(text)
        return str(number)

    def _make_room(self, now_s: float) -> bool:
        """Forget messages not tried for a day; return whether there is room for another."""
        if 0 <= self._room_at - now_s <= SEARCH_S:
            return False
        self._room_at = now_s + SEARCH_S
        self.forget_older(now_s - GIVES_WAY_S)
        return len(self._lines) < MOST

    def _make_room_for_texts(self, now_s: float) -> bool:
        """Drop unused texts, or else all but each message's last; return whether there is room."""
        if 0 <= self._texts_at - now_s <= SEARCH_S:
            return False
        self._keep_last(LAST)
        if len(self._texts) > MOST_TEXTS // 2:
            self._keep_last(1)
        if len(self._texts) > MOST_TEXTS // 2:
            self._texts_at = now_s + SEARCH_S
        return len(self._texts) < MOST_TEXTS

    def _keep_last(self, most: int) -> None:
        """Keep the newest `most` attempts of each message, and only the texts that they use."""
        before = [(key, self.of(key)) for key in self._lines]
        self._texts, self._numbers, self._lines = [], {}, {}
        for key, (tries, last) in before:
            line = [str(tries)]
            for at_s, text in last[:most]:
                number = self._numbers.setdefault(text, len(self._texts))
                if number == len(self._texts):
                    self._texts.append(text)
                line += [str(at_s), str(number)]
            if last:
                self._lines[key] = " ".join(line)

    def forget_older(self, than_s: float) -> None:
        """Forget messages whose last attempt was before this time."""
        for key, line in list(self._lines.items()):
            at = line.split(" ", 2)[1:2]
            if not (at and at[0].isdecimal() and len(at[0]) < 13 and int(at[0]) >= than_s):
                del self._lines[key]

    def halve(self) -> None:
        """Forget the half of the messages that was added last."""
        for key in list(self._lines)[len(self._lines) // 2 :]:
            del self._lines[key]
        self._keep_last(LAST)

    # The file

    def content(self) -> dict[str, Any]:
        """Return the history in the form of the state file."""
        return {"texts": self._texts, "messages": self._lines}

    def take(self, content: Any) -> None:
        """Load the history from the state file; ignore content of any other form."""
        texts = content.get("texts") if isinstance(content, dict) else None
        lines = content.get("messages") if isinstance(content, dict) else None
        if not isinstance(texts, list) or not isinstance(lines, dict):
            return
        if not all(isinstance(text, str) for text in [*texts, *lines.values()]):
            return
        self._texts = [text[:TEXT_MAX] for text in texts[:MOST_TEXTS]]
        self._numbers = {text: number for number, text in enumerate(self._texts)}
        self._lines = dict(list(lines.items())[:MOST])
