"""What a route of a daemon is up to: for its status file, its metrics and its log. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from maildirqmtp.values import Value

if TYPE_CHECKING:
    from typing import Any, Protocol

    from maildirqmtp.forwarder.route import Route

    class Counters(Protocol):
        """See `report.Counters`."""

        def as_dict(self) -> dict[str, int]:
            """Return all of them by name."""


class WaitingMessage(Value):
    """A message that waits: its name, tries so far, why, and when next (epoch; 0, now)."""

    __slots__ = ("name", "next_s", "reason", "tries")

    def __init__(self, name: bytes, tries: int, reason: str, next_s: float) -> None:
        self.name = name
        self.tries = tries
        self.reason = reason
        self.next_s = next_s


class Snapshot(Value):
    """A route at one moment. All times are seconds of the epoch, 0 for never or none.

    `state` is `starting`, `idle`, `connected`, `backing off` (until `connect_at_s`,
    because of `stop_reason`), `stuck` (the maildir cannot be changed), `no maildir`
    or `stopped`. `messages` wait, the oldest since `oldest_s`; `waiters` are
    some of them.
    """

    __slots__ = (
        "answered_s",
        "at_s",
        "connect_at_s",
        "counters",
        "messages",
        "oldest_s",
        "route",
        "state",
        "stop_reason",
        "waiters",
    )

    def __init__(
        self,
        route: Route,
        state: str,
        counters: Counters,
        *,
        at_s: float = 0.0,
        answered_s: float = 0.0,
        messages: int = 0,
        oldest_s: float = 0.0,
        connect_at_s: float = 0.0,
        stop_reason: str = "",
        waiters: tuple[WaitingMessage, ...] = (),
    ) -> None:
        self.route = route
        self.state = state
        self.counters: dict[str, int] = counters.as_dict()
        self.at_s = at_s
        self.answered_s = answered_s
        self.messages = messages
        self.oldest_s = oldest_s
        self.connect_at_s = connect_at_s
        self.stop_reason = stop_reason
        self.waiters = waiters

    def line(self) -> str:
        """Return it as one line for people."""
        c = self.counters
        parts = [f"{self.messages} waiting", self.state]
        if self.state == "backing off" and self.stop_reason:
            parts.append(self.stop_reason)
        parts.append(
            f"{c['accepted']} accepted, {c['deferred']} deferred, {c['failed']} failed, "
            f"{c['bounced']} bounced, {c['in_doubt']} in doubt"
        )
        return "; ".join(parts)

    def as_dict(self) -> dict[str, Any]:
        """Return it as what the status file holds; `status` documents that."""
        return {
            "state": self.state,
            "server": str(self.route.server),
            "prefix": self.route.prefix.decode("utf-8", "surrogateescape"),
            "at": self.at_s,
            "last_success": self.answered_s,
            "messages": self.messages,
            "oldest": self.oldest_s,
            "next_connect": self.connect_at_s,
            "excuse": self.stop_reason,
            "counters": self.counters,
            "waiting": {
                w.name.decode("utf-8", "surrogateescape"): {
                    "tries": w.tries,
                    "reason": w.reason,
                    "next": w.next_s,
                }
                for w in self.waiters
            },
        }
