"""The connections of an engine: for each its pipeline, its window, and what is watched of it."""

import selectors
from collections.abc import Callable

from maildirqmtp.delivery import Delivery
from maildirqmtp.manners import Manners
from maildirqmtp.pipeline import Limits, Pipeline
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

    @property
    def answers_once(self) -> bool:
        """True once a first package was answered as it should be."""
        return self.pipeline.manners.answers_once

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


class Links:
    """All connections of an engine, `open`, and what they share.

    `windows` are those of connections that are not open, and the limit to their
    number. What one connection has shown of the server holds for the others as
    `Manners.heir` says.
    """

    __slots__ = ("_clock", "_limits", "_manners", "_unchanged", "open", "windows")

    def __init__(
        self,
        windows: list[Window],
        limits: Limits,
        unchanged: Callable[[Delivery], bool],
        clock: Callable[[], float],
    ) -> None:
        self.open: list[Link] = []
        self.windows = windows
        self._manners = Manners()
        self._limits = limits
        self._unchanged = unchanged
        self._clock = clock

    def forget(self) -> None:
        """Have the next message go alone, as the first: the server's software may be another."""
        self._manners.answers_once = False

    def add(self, transport: Transport, selector: selectors.BaseSelector) -> None:
        """Use a connection. Raises `OSError` where the selector cannot watch it; it is closed."""
        try:
            link = Link(
                transport,
                self.windows[-1],
                self._manners.heir(),
                self._limits,
                self._unchanged,
                self._clock,
                selector,
            )
        except OSError:
            transport.close()
            raise
        self.windows.pop()
        self.open.append(link)

    def end(self, link: Link) -> list[Delivery]:
        """Close a connection; return what is unfinished. Its window can be used again."""
        unfinished = link.close()
        self.open.remove(link)
        self.windows.append(link.window)
        seen = link.pipeline.manners
        self._manners.answers_once = self._manners.answers_once or seen.answers_once
        if seen.answers_each is False:
            for manners in (self._manners, *[other.pipeline.manners for other in self.open]):
                if manners.answers_each is None:
                    manners.answers_each = False
        return unfinished

    def may_add(self) -> bool:
        """Say whether one more may be opened: when the first message has shown that it works."""
        if not self.windows:
            return False
        if not self._manners.answers_once:
            self._manners.answers_once = any(link.answers_once for link in self.open)
        return self._manners.answers_once

    def for_next(self) -> Link:
        """Return that for the next message: of those with room, the one with least in flight."""
        return min(self.open, key=_load)


def _load(link: Link) -> tuple[bool, int]:
    return not link.pipeline.has_room(), link.pipeline.packages_in_flight
