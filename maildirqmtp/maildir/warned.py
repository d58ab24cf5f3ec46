"""Of which messages the sender was told that they wait, and when: a part of the state file.

    "warned": {"UNIQUE NAME": 1800000000, "UNIQUE NAME/PREFIX": 1800000000}

The prefix is that of the route that told, where it has one: another route of the same maildir has
other recipients to tell of. No file's name has a slash.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Set

#: Seconds for which that is remembered, where the message does not go.
WARNED_S = 400 * 86_400.0
#: Messages of which it is remembered, and characters of their names.
MOST_WARNED, _CHARACTERS = 5_000, 256 << 10


class Noted(Enum):
    """What became of a note that a sender is told."""

    #: It is on disk: the sender may be told.
    NEW = auto()
    #: The sender was told before.
    ALREADY = auto()
    #: There is no room for another one.
    FULL = auto()
    #: The state file could not be written.
    FAILED = auto()


class WarnedMessages:
    """Those of a maildir; `key` is a message's name as `holds.key` has it."""

    def __init__(self) -> None:
        self._times: dict[str, dict[str, float]] = {}

    def __len__(self) -> int:
        return len(self._times)

    def has(self, key: str, prefix: str) -> bool:
        """Say whether a route of this prefix has told."""
        return prefix in self._times.get(key, ())

    def add(self, key: str, prefix: str, now_s: float) -> bool:
        """A route of this prefix tells now; False where there is no room to note it."""
        content = self.content()
        characters = sum(map(len, content)) + len(key) + len(prefix)
        if len(content) >= MOST_WARNED or characters > _CHARACTERS:
            return False
        self._times.setdefault(key, {})[prefix] = now_s
        return True

    def remove(self, key: str, prefix: str) -> bool:
        """Forget that a route of this prefix has told; say whether that was known."""
        times = self._times.get(key, {})
        known = times.pop(prefix, None) is not None
        if not times:
            self._times.pop(key, None)
        return known

    def forget(self, key: str) -> bool:
        """Forget a message that is done; say whether it was known."""
        return self._times.pop(key, None) is not None

    def keep(self, keys: Set[str], prefix: str) -> bool:
        """Forget what routes of this prefix told of all but these; say whether that was any."""
        gone = [key for key in self._times if key not in keys]
        return any([self.remove(key, prefix) for key in gone])

    def forget_older(self, than_s: float) -> None:
        """Forget what was told before this time."""
        self.take({name: at_s for name, at_s in self.content().items() if at_s > than_s})

    # The file

    def content(self) -> dict[str, float]:
        """Return it as the state file has it."""
        return {
            f"{key}/{prefix}" if prefix else key: at_s
            for key, times in self._times.items()
            for prefix, at_s in times.items()
        }

    def take(self, content: dict[str, float]) -> None:
        """Take over what the state file has."""
        self._times = {}
        for name, at_s in content.items():
            key, _, prefix = name.partition("/")
            self._times.setdefault(key, {})[prefix] = at_s
