"""What the servers have shown of themselves, and when that was last seen.

A part of the state file (see `state`), with servers by their names as they were given:

    "servers": {"mx.example.org": {"one_recipient": 1800000000, "proven": 1800000000}}
"""

from __future__ import annotations

#: Seconds for which what a server has shown is remembered: 30 days.
SERVER_S = 30 * 86_400.0
# A server seen again is written down once in so many seconds, not with each run.
_SEEN_AGAIN_S = 86_400.0


class ShownByServers:
    """What is known of a maildir's servers; times are seconds of the epoch."""

    __slots__ = ("_at_s",)

    def __init__(self, at_s: dict[str, dict[str, float]] | None = None) -> None:
        self._at_s = {} if at_s is None else at_s

    def has(self, server: str, what: str, now_s: float) -> bool:
        """Return whether a server has shown `what` within the last 30 days."""
        at_s = self._at_s.get(server, {}).get(what)
        return at_s is not None and now_s - at_s < SERVER_S

    def note(self, server: str, what: str, now_s: float) -> bool:
        """Note that a server has shown `what`; return whether that is to be written down."""
        shown = self._at_s.setdefault(server, {})
        if 0 <= now_s - shown.get(what, 0.0) < _SEEN_AGAIN_S:
            return False
        shown[what] = now_s
        return True

    def forget(self, server: str, what: str) -> bool:
        """Note that `what` no longer holds for a server; return whether it did."""
        return self._at_s.get(server, {}).pop(what, None) is not None

    def forget_older(self, than_s: float) -> None:
        """Forget what was last seen at this time or before."""
        self._at_s = {
            server: kept
            for server, shown in self._at_s.items()
            if (kept := {what: at_s for what, at_s in shown.items() if at_s > than_s})
        }

    def content(self) -> dict[str, dict[str, float]]:
        """Return it in the form of the state file."""
        return self._at_s
