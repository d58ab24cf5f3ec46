"""Large messages, which must not stand in the way of small ones.

A package cannot be interrupted: on a link of 64 kbit/s a message of 1 MB keeps everything behind it
on the same connection waiting for two minutes, and one that cannot get through between two failures
of the link would do so in every run. So

    a small message    goes as if there were no large one
    a large message    goes on a connection that has nothing else: at once if several are allowed,
                       one of which is left to the small ones; else when no small one waits
    after 5 minutes    the next large message has its turn, whatever waits
    one that broke     has had its attempt in this run, and goes behind the other large ones in
    the connection     this run and in the next

Once one has broken a connection, the large messages of this run go one by one: then the next break
spoils only one attempt. Messages that ended a connection while alone on it also go last.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Generic, TypeVar

from maildirqmtp.errors import ConnectError

if TYPE_CHECKING:
    from collections.abc import Callable

    from maildirqmtp.forwarder.queued_message import QueuedMessage
    from maildirqmtp.maildir.state import State
    from maildirqmtp.pipeline.pipeline import Pipeline
    from maildirqmtp.pipeline.pool import Connection, ConnectionPool

#: Seconds after which a large message has its turn although small ones wait.
TURN_S = 300.0
#: Seconds for which it waits for the answers to small ones in flight: a server that takes longer is
#: no reason to leave the link idle.
ANSWERS_S = 3.0

T = TypeVar("T")


class Postponed(Generic[T]):
    """A queue's candidates that go behind all others; those that broke a connection go last."""

    __slots__ = ("_broken", "_first")

    def __init__(self) -> None:
        self._first: deque[T] = deque()
        self._broken: deque[T] = deque()

    def __len__(self) -> int:
        return len(self._first) + len(self._broken)

    def add(self, candidates: list[T], *, broken: bool = False, first: bool = False) -> None:
        """Put these behind the others; if `broken`, behind those that broke a connection.

        `first` puts them before those instead.
        """
        place = self._broken if broken else self._first
        if first:
            place.extendleft(reversed(candidates))
        else:
            place.extend(candidates)

    def take(self) -> T | None:
        """Take the next one; return None if there is none."""
        candidates = self._first or self._broken
        return candidates.popleft() if candidates else None


class LargeMessages:
    """Decides which connection the next large message of a route may go on, and when.

    `large_bytes` is the size above which a message is large. `clock` is monotonic seconds. `state`
    remembers the messages that broke a connection.
    """

    def __init__(self, large_bytes: int, state: State, clock: Callable[[], float]) -> None:
        self.large_bytes = large_bytes
        self._state = state
        self._clock = clock
        self._carrying: list[Connection[QueuedMessage]] = []
        # Of these, those that had unanswered small messages when the large one was put.
        self._mixed: list[Connection[QueuedMessage]] = []
        self._turn_at: float | None = None
        # By connection: how many packages had been put into it, and since when none was added.
        self._quiet: dict[int, tuple[int, float]] = {}
        #: True once a connection has broken over a large message: these go one by one then.
        self.one_by_one = False
        #: True once the run was told to stop: then no message is to blame for a connection's end.
        self.stopping = False

    # The order

    def broke_before(self, name: bytes) -> bool:
        """Return whether a message has broken a connection, in this run or an earlier one."""
        return self._state.broken(name) is not None

    def waits(self) -> None:
        """Note that a large message waits, from now on unless one does already."""
        if self._turn_at is None:
            self._turn_at = self._clock() + TURN_S

    def none_waits(self) -> None:
        """Note that no large message waits, so that the next one is not due at once."""
        self._turn_at = None

    @property
    def is_due(self) -> bool:
        """True if a large message has waited for so long that the small ones have to wait."""
        return self._turn_at is not None and self._clock() >= self._turn_at

    # The connections

    def carrying(self) -> list[Connection[QueuedMessage]]:
        """Return the connections that have large messages in flight."""
        if self._carrying:
            self._carrying = [c for c in self._carrying if c.pipeline.packages_in_flight]
            self._mixed = [c for c in self._mixed if c in self._carrying]
        return self._carrying

    def small_in_flight(self, pool: ConnectionPool[QueuedMessage]) -> bool:
        """Return whether a small message may be in flight."""
        large_only = [c for c in self.carrying() if c not in self._mixed]
        return any(c.pipeline.packages_in_flight for c in pool.open if c not in large_only)

    def for_small(
        self, pool: ConnectionPool[QueuedMessage], large_waits: bool
    ) -> Connection[QueuedMessage] | None:
        """Return the connection for the next small message; None if it has to wait."""
        carrying = self.carrying()
        free = [c for c in pool.open if c not in carrying] if carrying else pool.open
        if large_waits and self.is_due and len(carrying) < _most(pool):
            free = free[:-1]  # the last one is to become empty
        if len(free) < 2:
            return free[0] if free else None
        return pool.least_loaded(free)

    def for_large(
        self, pool: ConnectionPool[QueuedMessage], small_waits: bool
    ) -> Connection[QueuedMessage] | None:
        """Return a connection that takes the next large message now; None if there is none."""
        if small_waits and not self.is_due:
            return None
        carrying = self.carrying()
        if not self.one_by_one:
            for connection in carrying:
                if not small_waits and connection.pipeline.has_room():
                    return connection
        if len(carrying) >= _most(pool):
            return None
        for connection in reversed(pool.open):
            free = connection not in carrying and connection.pipeline.has_room()
            if free and (self._is_quiet(connection) or not connection.pipeline.packages_in_flight):
                return connection
        return None

    def _is_quiet(self, connection: Connection[QueuedMessage]) -> bool:
        """Return whether nothing was put into a connection for `ANSWERS_S`, and all was sent."""
        pipeline, now = connection.pipeline, self._clock()
        put = pipeline.answered + pipeline.packages_in_flight
        before, since = self._quiet.get(id(connection), (-1, now))
        if put != before or pipeline.wants_write:
            self._quiet[id(connection)] = put, now
            return False
        return now >= since + ANSWERS_S

    def next_deadline(self) -> float | None:
        """Return the clock's time at which a connection is quiet enough for a large message."""
        now = self._clock()
        due = [since + ANSWERS_S for _, since in self._quiet.values()]
        return min((at for at in due if at > now), default=None)

    def takes_all(self, pool: ConnectionPool[QueuedMessage]) -> bool:
        """Return whether every connection has large messages in flight: small ones have none."""
        return len(self.carrying()) == len(pool.open)

    def needs_connection(self, pool: ConnectionPool[QueuedMessage]) -> bool:
        """Return whether one more connection would let a large message go now."""
        if len(self.carrying()) >= _most(pool):
            return False
        return all(connection.pipeline.packages_in_flight for connection in pool.open)

    def put_on(self, connection: Connection[QueuedMessage]) -> None:
        """Note that a large message was put on this connection, and has had its turn."""
        self._quiet = {}
        if connection not in self._carrying:
            self._carrying.append(connection)
            if connection.pipeline.packages_in_flight > 1:
                self._mixed.append(connection)
        self._turn_at = None

    # What becomes of them

    def is_large(self, queued: QueuedMessage) -> bool:
        """Return whether a message is large."""
        return queued.message.size > self.large_bytes

    def find_broken(
        self, pipeline: Pipeline[QueuedMessage], unfinished: list[QueuedMessage]
    ) -> QueuedMessage | None:
        """Return the large message over which a connection broke, None if it was not over one.

        It is the oldest unfinished large message of which a part has arrived.
        """
        error = pipeline.error
        if error is None or isinstance(error, ConnectError) or self.stopping:
            return None
        begun = (queued for queued in unfinished if self.is_large(queued) and queued.bytes_out)
        return next(begun, None)

    def note_broken(self, queued: QueuedMessage) -> str:
        """Remember how far a message got when it broke the connection; return that in words."""
        self.one_by_one = True
        self._state.note_broken(queued.message.name, queued.bytes_out, queued.length)
        return how_far(queued.bytes_out, queued.length)


def how_far(bytes_out: int, length: int) -> str:
    """Return in words how far a large message got."""
    if bytes_out >= length:
        return f"the connection broke before the answer to all of its {length} bytes"
    return f"the connection broke after {bytes_out} of {length} bytes"


def _most(pool: ConnectionPool[QueuedMessage]) -> int:
    """Return how many connections may carry large messages: all that are allowed but one."""
    return max(1, min(pool.most, len(pool.open) + len(pool.windows)) - 1)
