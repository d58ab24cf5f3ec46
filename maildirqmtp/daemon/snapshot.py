"""The state of a daemon's route at one moment, for its status file, metrics and log. Pure."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from maildirqmtp.daemon.queue_entry import QueueEntry
    from maildirqmtp.forwarder.route import Route


@dataclass(frozen=True, slots=True)
class WaitingMessage:
    """A message that waits: name, tries so far, reason, next try (seconds of the epoch; 0: now)."""

    name: bytes
    tries: int
    reason: str
    next_s: float


def waiters(entries: Iterable[QueueEntry], epoch_s: float) -> tuple[WaitingMessage, ...]:
    """Return these entries of a queue, whose clock was 0 at `epoch_s`, as a snapshot has them."""
    return tuple(
        WaitingMessage(e.name, e.tries, e.reason, 0.0 if e.due is None else epoch_s + e.due)
        for e in entries
    )


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A route at one moment. All times are seconds of the epoch, 0 for never or none.

    `state` is `starting`, `idle`, `connected`, `waiting for a slot`, `backing off`
    (until `connect_at_s`, because of `stop_reason`), `stuck` (the maildir cannot be
    changed), `no maildir` or `stopped`. `messages` wait, the oldest since `oldest_s`;
    `waiters` are some of them. `server` is the one that answered last; empty means the
    preferred one. `by_server` has the counters of each that was connected to.
    """

    route: Route
    state: str
    counters: dict[str, int]
    _: KW_ONLY
    at_s: float = 0.0
    answered_s: float = 0.0
    messages: int = 0
    oldest_s: float = 0.0
    connect_at_s: float = 0.0
    stop_reason: str = ""
    waiters: tuple[WaitingMessage, ...] = ()
    server: str = ""
    by_server: dict[str, dict[str, int]] = field(default_factory=dict)

    @property
    def answering(self) -> str:
        """The server that answered last; before any has, the preferred one."""
        return self.server or str(self.route.server)

    def line(self) -> str:
        """Return the snapshot as one line for people."""
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
        """Return the snapshot as an object of the status file (see `status`)."""
        return {
            "state": self.state,
            "server": self.answering,
            "servers": [str(server) for server in self.route.servers],
            "prefix": _text(self.route.prefix),
            "cur": self.route.include_cur,
            "sender": _text(self.route.sender),
            "default_sender": _text(self.route.default_sender),
            "recipients": [_text(recipient) for recipient in self.route.recipients],
            "max_size": self.route.max_bytes,
            "at": self.at_s,
            "last_success": self.answered_s,
            "messages": self.messages,
            "oldest": self.oldest_s,
            "next_connect": self.connect_at_s,
            "excuse": self.stop_reason,
            "counters": self.counters,
            "waiting": {
                _text(w.name): {
                    "tries": w.tries,
                    "reason": w.reason,
                    "next": w.next_s,
                }
                for w in self.waiters
            },
        }


def _text(raw: bytes | None) -> str | None:
    return None if raw is None else raw.decode("utf-8", "surrogateescape")
