"""A connection of an engine: its pipeline, its window, and what the selector watches of it."""

import selectors
from collections.abc import Callable

from maildirqmtp.delivery import Delivery
from maildirqmtp.pipeline import Limits, Manners, Pipeline
from maildirqmtp.transport import Transport
from maildirqmtp.window import Window


class Link:
    """A connection in use, in a selector.

    `idle_since` is the clock's time since which it may have had nothing to do.
    Raises `OSError` where the selector cannot watch it.
    """

    __slots__ = ("_selector", "_writing", "idle_since", "pipeline", "window")

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
        self._selector = selector
        self._writing = False
        selector.register(transport.read_fd, selectors.EVENT_READ, self)

    def watch(self) -> None:
        """Have the selector watch for room to write, where there is something to send."""
        wanted = self.pipeline.wants_write
        if wanted is self._writing:
            return
        self._writing = wanted
        transport, selector = self.pipeline.transport, self._selector
        if transport.read_fd == transport.write_fd:
            events = selectors.EVENT_READ | (selectors.EVENT_WRITE if wanted else 0)
            selector.modify(transport.read_fd, events, self)
        elif wanted:
            selector.register(transport.write_fd, selectors.EVENT_WRITE, self)
        else:
            selector.unregister(transport.write_fd)

    def turn(self, events: int) -> None:
        """Read and write what the selector says can be."""
        pipeline = self.pipeline
        if events & selectors.EVENT_READ and not pipeline.ended:
            pipeline.read()
        if events & selectors.EVENT_WRITE and not pipeline.ended:
            pipeline.write()

    def close(self) -> list[Delivery]:
        """Close the connection; return what is unfinished, as `Pipeline.close` does."""
        transport = self.pipeline.transport
        watched = self._selector.get_map() or {}  # None: it has been closed before
        for fd in {transport.read_fd, transport.write_fd}:
            if fd in watched:
                self._selector.unregister(fd)
        return self.pipeline.close()
