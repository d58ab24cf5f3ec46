"""The slots of one route with each of its servers, of which one is in use at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from maildirqmtp.daemon.slots import RouteSlots, ServerSlots
    from maildirqmtp.transport.endpoint import Endpoint
    from maildirqmtp.transport.wakeup import Wakeup


class SlotsByServer:
    """Joins the slots of a server when mail first goes there; see `slots.ServerSlots.join`."""

    def __init__(self, servers: ServerSlots, limit: int, wake: Wakeup) -> None:
        self._servers = servers
        self._limit = limit
        self._wake = wake
        self._joined: dict[Endpoint, RouteSlots] = {}
        self._current: RouteSlots | None = None

    def of(self, server: Endpoint) -> RouteSlots:
        """Return the slots of the server that mail goes to now; those of another are given back."""
        if server not in self._joined:
            self._joined[server] = self._servers.join(server, self._limit, self._wake)
        slots = self._joined[server]
        if self._current is not None and self._current is not slots:
            self._current.give_back()
        self._current = slots
        return slots

    @property
    def waits(self) -> bool:
        """True while the route waits in line."""
        return self._current is not None and self._current.waits

    def leave(self) -> None:
        """Give back all slots, and stop being a route to these servers."""
        for slots in self._joined.values():
            slots.leave()
