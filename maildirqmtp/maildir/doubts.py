"""Which of a route's several servers may have a message, and since when, by name.

A part of the state file (see `state`):

    "in_doubt": {"UNIQUE NAME": {"mx.example.org": 1800000000}}
"""

from __future__ import annotations

#: Seconds after which the servers at which a message was in doubt are forgotten: longer than anyone
#: waits for a server (`--in-doubt-wait`).
FORGOTTEN_S = 30 * 86_400.0
#: Seconds after which the same doubt is a new one.
RENEWED_S = 86_400.0


class Doubts:
    """The doubts about a maildir's messages; `key` is a message's name as from `holds.key`."""

    __slots__ = ("_since_s",)

    def __init__(self, since_s: dict[str, dict[str, float]] | None = None) -> None:
        self._since_s = {} if since_s is None else {k: at for k, at in since_s.items() if at}

    def __len__(self) -> int:
        return len(self._since_s)

    def note(self, key: str, server: str, now_s: float) -> bool:
        """Note that a server may have a message; return whether that is news.

        Only the first time counts until the server answers, for a day: one whose connections break
        again and again would keep the message for ever.
        """
        servers = self._since_s.setdefault(key, {})
        if now_s - servers.get(server, float("-inf")) >= RENEWED_S:
            servers[server] = now_s
        return servers[server] == now_s

    def end(self, key: str, server: str) -> bool:
        """Note that a server has answered for a message; return whether there was a doubt."""
        servers = self._since_s.get(key, {})
        was_there = servers.pop(server, None) is not None
        if not servers:
            self._since_s.pop(key, None)
        return was_there

    def of(self, key: str) -> dict[str, float]:
        """Return the servers that may have a message, and since when (seconds of the epoch)."""
        return dict(self._since_s.get(key, {}))

    def forget(self, key: str) -> bool:
        """Forget a message that is done; return whether it was known."""
        return self._since_s.pop(key, None) is not None

    def forget_older(self, than_s: float) -> None:
        """Forget doubts that began at this time or before."""
        for key, servers in [*self._since_s.items()]:
            for server in [name for name, at_s in servers.items() if at_s <= than_s]:
                self.end(key, server)

    def content(self) -> dict[str, dict[str, float]]:
        """Return the doubts in the form of the state file."""
        return self._since_s
