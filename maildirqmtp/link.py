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
    number. What was seen of a server that answers once per package holds for
    all, for to find it out again costs duplicates. That it answers for each
    recipient must be seen on each: a name may stand for several servers, and
    one whose answers are counted wrongly loses mail.
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
        if link.pipeline.manners.answers_each is False:
            for manners in (self._manners, *[other.pipeline.manners for other in self.open]):
                if manners.answers_each is None:
                    manners.answers_each = False
        return unfinished

    def may_add(self) -> bool:
        """Say whether one more may be opened: when the first message has shown that it works."""
        return bool(self.windows) and any(link.answers_once for link in self.open)

    def for_next(self, waiting: int) -> Link | None:
        """Return the one for the next of so many messages; None where that has to wait.

        Of those with room, that with the least under way. While others wait for
        the answer to their first message, it leaves to each its share.
        """
        link = min(self.open, key=_load)
        if not all(other.answers_once for other in self.open):
            under_way = [other.pipeline.packages_in_flight for other in self.open]
            share = (waiting + sum(under_way)) // len(self.open) + 1
            if link.pipeline.packages_in_flight >= share:
                return None
        return link


def _load(link: Link) -> tuple[bool, int]:
    return not link.pipeline.has_room(), link.pipeline.packages_in_flight
