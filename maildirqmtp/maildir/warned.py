"""The messages whose senders were warned of a delay, and when: a part of the state file.

    "warned": {"UNIQUE NAME": 1800000000, "UNIQUE NAME/PREFIX": 1800000000}

The prefix is that of the route that has warned, if it has one: another route of the same maildir
warns of other recipients. The slash is unambiguous, because no file name has one.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import TYPE_CHECKING

from maildirqmtp.maildir.state_content import newer

if TYPE_CHECKING:
    from collections.abc import Set

#: Seconds for which a warning is remembered if the message stays.
WARNED_S = 400 * 86_400.0
#: The most warnings that are remembered, and the most characters of their names.
MOST_WARNED, _CHARACTERS = 5_000, 256 << 10


class Noted(Enum):
    """What became of the attempt to note that a sender is warned."""

    #: It is on disk: the sender may be warned.
    NEW = auto()
    #: The sender was warned before.
    ALREADY = auto()
    #: There is no room for another one.
    FULL = auto()
    #: The state file could not be written.
    FAILED = auto()


class WarnedMessages:
    """The warnings of a maildir; `key` is a message's name as from `holds.key`."""

    def __init__(self) -> None:
        self._times: dict[str, dict[str, float]] = {}

    def __len__(self) -> int:
        return len(self._times)

    def has(self, key: str, prefix: str) -> bool:
        """Return whether a route of this prefix has warned the message's sender."""
        return prefix in self._times.get(key, ())

    def add(self, key: str, prefix: str, now_s: float) -> bool:
        """Note that a route of this prefix warns now; return False if there is no room for that."""
        content = self.content()
        characters = sum(map(len, content)) + len(key) + len(prefix)
        if len(content) >= MOST_WARNED or characters > _CHARACTERS:
            return False
        self._times.setdefault(key, {})[prefix] = now_s
        return True

    def remove(self, key: str, prefix: str) -> bool:
        """Forget that a route of this prefix has warned; return whether that was known."""
        times = self._times.get(key, {})
        known = times.pop(prefix, None) is not None
        if not times:
            self._times.pop(key, None)
        return known

    def forget(self, key: str) -> bool:
        """Forget a message that is done; return whether it was known."""
        return self._times.pop(key, None) is not None

    def keep(self, keys: Set[str], prefix: str) -> bool:
        """Forget this prefix's warnings for all messages but `keys`; return whether any were."""
        gone = [key for key in self._times if key not in keys]
        return any([self.remove(key, prefix) for key in gone])

    def forget_older(self, than_s: float) -> None:
        """Forget the warnings from before this time."""
        self.take(newer(self.content(), than_s))

    # The file

    def content(self) -> dict[str, float]:
        """Return the warnings in the form of the state file."""
        return {
            f"{key}/{prefix}" if prefix else key: at_s
            for key, times in self._times.items()
            for prefix, at_s in times.items()
        }

    def take(self, content: dict[str, float]) -> None:
        """Load the warnings from the state file."""
        self._times = {}
        for name, at_s in content.items():
            key, _, prefix = name.partition("/")
            self._times.setdefault(key, {})[prefix] = at_s
