"""A connection of an engine: its pipeline, its window, and what the selector watches of it."""

import selectors
from collections.abc import Callable

from maildirqmtp.delivery import Delivery
from maildirqmtp.pipeline import Limits, Manners, Pipeline
from maildirqmtp.transport import Transport
from maildirqmtp.waiting import Interest
from maildirqmtp.window import Window


class Link:
    """A connection in use, in a selector.

    `idle_since` is the clock's time since which it may have had nothing to do.
    Raises `OSError` where the selector cannot watch it.
    """

    __slots__ = ("_interest", "idle_since", "pipeline", "window")

    def __init__(
        self,
        transport: Transport,
        window: Window,
        manners: Manners,
        limits: Limits,
        unchanged: Callable[[Delivery], bool],
        clock: Callable[[], float],
        selector: selectors.BaseSelector,
    ) -> None:
        self.window = window
        self.pipeline = Pipeline(transport, window, manners, limits, unchanged, clock)
        self.idle_since = clock()
        self._interest = Interest(selector, transport, self)

    def watch(self) -> None:
        """Have the selector tell of what the connection waits for."""
        self._interest.want(self.pipeline.wants_read, self.pipeline.wants_write)

    def turn(self, events: int) -> None:
        """Read and write what the selector says can be."""
        readable, writable = events & selectors.EVENT_READ, events & selectors.EVENT_WRITE
        self.pipeline.turn(bool(readable), bool(writable))

    def close(self) -> list[Delivery]:
        """Close the connection; return what is unfinished, as `Pipeline.close` does."""
        self._interest.drop()
        return self.pipeline.close()
