"""A lane of the outbox: its next message, which may be half put into a connection."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from maildirqmtp.forwarder.queued_message import QueuedMessage
    from maildirqmtp.pipeline.pool import Connection


class Lane:
    """The next message of a lane, and the connection that has the first of its packages."""

    __slots__ = ("half_put_on", "next")

    def __init__(self) -> None:
        self.next: QueuedMessage | None = None
        self.half_put_on: Connection[QueuedMessage] | None = None

    def put(self, queued: QueuedMessage, connection: Connection[QueuedMessage]) -> bool:
        """Put a package of the next message; return False if the connection has no room."""
        if not connection.pipeline.can_take(queued):
            return False
        if connection.pipeline.put(queued):
            self.next = self.half_put_on = None
        else:
            self.half_put_on = connection
        return True
