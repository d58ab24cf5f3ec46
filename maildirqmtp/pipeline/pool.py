"""The connections to one server: for each its pipeline, its window, and its registration."""

import selectors
from collections.abc import Callable, Sequence
from typing import Any, Generic

from maildirqmtp.pipeline.capabilities import Capabilities
from maildirqmtp.pipeline.outgoing import MessageT
from maildirqmtp.pipeline.pipeline import Pipeline
from maildirqmtp.pipeline.timeouts import Timeouts
from maildirqmtp.pipeline.window import Window
from maildirqmtp.transport.readiness import TransportRegistration
from maildirqmtp.transport.transport import Transport


class Connection(Generic[MessageT]):
    """A connection in use, in a selector.

    `idle_since` is the clock's time since when it may have been idle.
    Raises `OSError` if the selector cannot watch it.
    """

    __slots__ = ("_registration", "idle_since", "pipeline", "window")

    def __init__(
        self,
        transport: Transport,
        window: Window,
        capabilities: Capabilities,
        timeouts: Timeouts,
        unchanged: Callable[[MessageT], bool],
        clock: Callable[[], float],
        selector: selectors.BaseSelector,
    ) -> None:
        self.window = window
        self.pipeline = Pipeline(transport, window, capabilities, timeouts, unchanged, clock)
        self.idle_since = clock()
        self._registration = TransportRegistration(selector, transport, self)

    def watch(self) -> None:
        """Register with the selector for what the connection waits for."""
        self._registration.want_to(self.pipeline.wants_read, self.pipeline.wants_write)

    def turn(self, events: int) -> None:
        """Read and write as the selector's events allow."""
        readable, writable = events & selectors.EVENT_READ, events & selectors.EVENT_WRITE
        self.pipeline.turn(bool(readable), bool(writable))

    def is_over(self, now: float, idle_s: float, *, more_may_come: bool) -> bool:
        """Return whether nothing is in flight and the connection is of no more use.

        That is after `idle_s` seconds without work, or at once if no more can come.
        """
        if self.pipeline.packages_in_flight:
            return False
        if not more_may_come or self.pipeline.draining:
            return True
        return now - self.idle_since >= idle_s

    def close(self) -> list[MessageT]:
        """Close the connection; return what is unfinished, as `Pipeline.close` does."""
        self._registration.drop()
        return self.pipeline.close()


class ConnectionPool(Generic[MessageT]):
    """All connections to one server, `open`, and what they share.

    `windows` has one window for each connection that is not open, which limits their number;
    `most` may be less. `capabilities` is what the connections have shown of the server.
    """

    __slots__ = ("_clock", "_timeouts", "_unchanged", "capabilities", "most", "open", "windows")

    def __init__(
        self,
        windows: list[Window],
        timeouts: Timeouts,
        unchanged: Callable[[MessageT], bool],
        clock: Callable[[], float],
        capabilities: Capabilities,
    ) -> None:
        self.open: list[Connection[MessageT]] = []
        self.windows = windows
        self.most = len(windows)
        self.capabilities = capabilities
        self._timeouts = timeouts
        self._unchanged = unchanged
        self._clock = clock

    def add(self, transport: Transport, selector: selectors.BaseSelector) -> None:
        """Add a connection. Raises `OSError`, and closes it, if the selector cannot watch it."""
        try:
            connection = Connection(
                transport,
                self.windows[-1],
                self.capabilities,
                self._timeouts,
                self._unchanged,
                self._clock,
                selector,
            )
        except OSError:
            transport.close()
            raise
        self.windows.pop()
        self.open.append(connection)

    def over(self, now: float, idle_s: float, *, more_may_come: bool) -> list[Connection[MessageT]]:
        """Return the connections that have ended, or are of no more use; see `is_over`."""
        return [
            connection
            for connection in self.open
            if connection.pipeline.ended
            or connection.is_over(now, idle_s, more_may_come=more_may_come)
        ]

    def end(self, connection: Connection[MessageT]) -> list[MessageT]:
        """Close a connection; return what is unfinished. Its window can be used again."""
        unfinished = connection.close()
        self.open.remove(connection)
        self.windows.append(connection.window)
        return unfinished

    @property
    def in_flight(self) -> bool:
        """True while a connection has a package that is not answered."""
        return any(connection.pipeline.packages_in_flight for connection in self.open)

    def may_add(self) -> bool:
        """Return whether one more may be opened: not before the server has answered a message."""
        return bool(self.windows) and self.capabilities.proven

    @staticmethod
    def least_loaded(connections: Sequence[Connection[MessageT]]) -> Connection[MessageT]:
        """Return the one for the next message: with room, if any has it, and least in flight."""
        return min(connections, key=_load)


def _load(connection: Connection[Any]) -> tuple[bool, int]:
    return not connection.pipeline.has_room(), connection.pipeline.packages_in_flight
