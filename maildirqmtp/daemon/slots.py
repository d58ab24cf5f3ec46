"""Slots: the connections that all routes of a process may have to one server, and in what order.

    route --take--> a slot is free ------------------> connecting -> silent --answer--> live
               \\--> all are taken: it waits in line --turn comes--^

A connection that stays silent while the server answers others is in the backlog of a server
that takes fewer (`tcpserver -c 2`). It stays open: the server would read what it has sent, and
deliver it, even after it was closed. But from then on there are only as many slots as
connections that the server answers, and one more is tried from time to time.

While a route waits in line, or a connection in the backlog, an idle connection is closed at
once, and a busy one when its turn is over, the longest in use first.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence
    from typing import Any

    from maildirqmtp.pipeline.pool import Connection
    from maildirqmtp.transport.wakeup import Wakeup

#: When a connection without a first answer, while others get theirs, counts as in the server's
#: backlog: after this multiple of what first answers take, but at least and at most these seconds.
PATIENCE_FACTOR = 4.0
PATIENCE_LEAST_S = 1.0
PATIENCE_MOST_S = 5.0
_FIRST_ANSWER_WEIGHT = 0.2
#: Seconds after which one more connection is tried than the server seems to take.
PROBE_S = 60.0
#: Seconds of a turn while others wait, at most and at least, and of a round that gives each one.
TURN_MOST_S = 5.0
TURN_LEAST_S = 0.5
ROUND_S = 20.0
#: What a route may have in flight if several share a server, so that its turn can end soon:
#: seconds of work at the measured rate of answers, and the messages that are always allowed.
IN_FLIGHT_S = 3.0
IN_FLIGHT_LEAST = 8
#: Seconds over which the rate of answers is measured, and the least for a first measurement.
_RATE_S = 1.0
_RATE_LEAST_S = 0.05
#: Seconds for which the highest number of answered connections is remembered.
_PEAK_S = 10.0


class Turn(NamedTuple):
    """What a route may do in its next turn.

    `allowance`: messages that may be sent, None for as many as the window takes. `closes_idle`:
    idle connections are to be closed. `connections`: how many there may be. `look_at`: the clock's
    time by which the route must ask again, None for any. `news`: a line for the log, or empty.
    """

    allowance: int | None = None
    closes_idle: bool = False
    connections: int = 1
    look_at: float | None = None
    news: str = ""


class _SharedServer:
    """The slots of one server; all fields are guarded by `lock`.

    `room` is how many connections the server seems to take; None if it has shown no limit.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.lock = threading.Lock()
        self.clock = clock
        self.routes: set[RouteSlots] = set()
        #: The routes that have a slot: a few, out of what may be thousands.
        self.holders: set[RouteSlots] = set()
        self._limits = Counter[int]()
        self.line: deque[RouteSlots] = deque()
        self.room: int | None = None
        self.first_answer_s = 0.0
        self._told: int | None = None
        self._probe_at = 0.0
        self._peak = 0
        self._peak_at = 0.0

    # Slots

    def come(self, route: RouteSlots) -> None:
        """Add a route."""
        self.routes.add(route)
        self._limits[route.limit] += 1

    def leave(self, route: RouteSlots) -> None:
        """Remove a route."""
        self.routes.discard(route)
        self._limits[route.limit] -= 1
        self._limits += Counter()  # drops what is 0

    def hold(self, route: RouteSlots, slots: int) -> None:
        """Set how many slots a route holds."""
        route.held = slots
        if slots:
            self.holders.add(route)
        else:
            self.holders.discard(route)

    def is_free(self, now: float) -> bool:
        """Return whether there is a slot for one more connection."""
        used = sum(route.held for route in self.holders)
        if used >= min(self._limits):
            return False
        if self.room is None or used < self.room:
            return True
        if used > self.room or now < self._probe_at:
            return False
        self._probe_at = now + PROBE_S
        return True

    def queue(self, route: RouteSlots) -> None:
        """Put a route at the end of the line, and wake routes that may yield their slots to it."""
        if not route.waits:
            route.waits = True
            self.line.append(route)
            idle = [r for r in self.holders if r.live and r.is_idle and not r.yielding]
            if idle:
                first = min(idle, key=lambda one: one.answered_at)
                first.yielding = True
                first.wake.set()
            else:
                self.wake_holders()

    def unqueue(self, route: RouteSlots) -> None:
        """Take a route out of the line."""
        if route.waits:
            route.waits = False
            self.line.remove(route)

    def grant(self, now: float) -> None:
        """Give free slots to the first in line."""
        while self.line and self.is_free(now):
            route = self.line.popleft()
            route.waits = False
            self.hold(route, 1)
            route.wake.set()

    def wake_holders(self, most: int | None = None) -> None:
        """Wake routes that have an answered connection, to look at what has changed."""
        for route in [route for route in self.holders if route.live][:most]:
            route.wake.set()

    # What the server takes

    @property
    def patience_s(self) -> float:
        """Seconds without a first answer after which a connection counts as in the backlog."""
        return min(PATIENCE_MOST_S, max(PATIENCE_LEAST_S, PATIENCE_FACTOR * self.first_answer_s))

    def note_first_answer(self, took_s: float) -> None:
        """Learn how long first answers take, up to `patience_s`: a backlog's delay says little."""
        took_s = min(took_s, self.patience_s)
        weight = _FIRST_ANSWER_WEIGHT if self.first_answer_s else 1.0
        self.first_answer_s += weight * (took_s - self.first_answer_s)

    def starving(self, now: float) -> int:
        """Count the connections that are in the server's backlog."""
        live = [route for route in self.holders if route.live]
        if not live:
            return 0
        answers_at = max(now if route.is_idle else route.answered_at for route in live)
        by = now - self.patience_s
        silent = (since for route in self.holders for since in route.silent)
        return sum(since <= by and since < answers_at for since in silent)

    def next_starving_at(self, now: float) -> float | None:
        """Return when the next silent connection may count as in the backlog; None for never."""
        due = [since + self.patience_s for route in self.holders for since in route.silent]
        return min((at for at in due if at > now), default=None)

    def measure(self, now: float, starving: int) -> None:
        """Adapt `room` to the connections that the server answers now, and has answered lately."""
        live = sum(route.live for route in self.holders)
        if live >= self._peak or now >= self._peak_at + _PEAK_S:
            self._peak, self._peak_at = live, now
        if self.room is not None and live > self.room:
            # The extra connection is answered besides all others: try the next one.
            self.room, self._probe_at = live, now
        elif starving:
            self.shrink(now)

    def shrink(self, now: float) -> None:
        """Limit the slots to the connections that the server answers; if to none, it is down."""
        live = sum(route.live for route in self.holders)
        if live and (self.room is None or max(self._peak, live) < self.room):
            self.room, self._probe_at = max(self._peak, live), now + PROBE_S

    def news(self, name: str) -> str:
        """Return a line for the log if `room` is less than last reported, else an empty text."""
        if self.room is None or (self._told is not None and self.room >= self._told):
            return ""
        self._told = self.room
        return (
            f"{name} seems to take {self.room} connection{'s' * (self.room > 1)} at a time; "
            f"the routes to it take turns"
        )


class RouteSlots:
    """The slots of one route; its methods are for the route's own thread.

    `limit` is how many connections it allows all routes to this server together; `wake` is set
    when it gets a slot, or is to yield one. `_SharedServer` uses the other fields: slots `held`,
    connections that are answered (`live`, since `began`, last at `answered_at`), and since when
    others are `silent`. It `waits` in line, or is `yielding` its slots to a route that does.
    """

    def __init__(self, server: _SharedServer, limit: int, wake: Wakeup) -> None:
        self.limit = limit
        self.wake = wake
        self.waits = False
        self.held = 0
        self.live = 0
        self.silent: tuple[float, ...] = ()
        self.is_idle = True
        self.answered_at = 0.0
        self._server = server
        self.yielding = False
        self.began = 0.0
        self._answered = 0
        self._sent: dict[Connection[Any], tuple[int, float]] = {}
        self._rate = 0.0
        self._measured = (0.0, 0)

    def take(self) -> bool:
        """Return whether a connection may be made; if not, put the route in line."""
        server, now = self._server, self._server.clock()
        with server.lock:
            if not self.held and not server.line and server.is_free(now):
                server.hold(self, 1)
            if not self.held:
                server.queue(self)
                server.grant(now)
            if not self.held:
                return False
            self._answered = 0
            self._measured = now, 0
            self._rate = 0.0
            # Another route has to notice that it is not answered: connecting may block until then.
            self.silent = (now,)
            server.wake_holders(1)
            return True

    def give_back(self, failed: bool = False) -> None:
        """Give back all slots, and leave the line; `failed`: the server answered nothing."""
        server, now = self._server, self._server.clock()
        with server.lock:
            if not (self.held or self.waits):
                return
            self.live = 0
            server.hold(self, 0)
            self.silent = ()
            self._sent.clear()
            self.yielding = False
            server.unqueue(self)
            if failed:
                server.shrink(now)
            server.grant(now)

    def leave(self) -> None:
        """Give back all slots, and stop being a route to this server."""
        self.give_back()
        with self._server.lock:
            self._server.leave(self)

    def before_turn(
        self, connections: Sequence[Connection[Any]], has_more: bool, wants_more: bool
    ) -> Turn:
        """Report the state of the connections; return what the route may do in its next turn.

        `has_more`: there is mail to be sent; `wants_more`: one more connection would be of use.
        """
        server = self._server
        if len(server.routes) == 1 and len(connections) == 1 and not wants_more:
            answered = connections[0].pipeline.answered
            if bool(answered) == bool(self.live):  # the first one tells how long answers take
                self._answered = answered
                return Turn()
        now = server.clock()
        with server.lock:
            self._observe(connections, now, has_more)
            starving = server.starving(now)
            server.measure(now, starving)
            if wants_more and not server.line and not starving and server.is_free(now):
                server.hold(self, self.held + 1)
            server.grant(now)
            self._decide(len(server.line) + starving, now)
            look_at = server.next_starving_at(now) if self.live else None
            if self.live and not self.yielding and (server.line or starving):
                look_at = min(look_at or now + TURN_LEAST_S, now + TURN_LEAST_S)
            return Turn(
                self._allowance(connections),
                self.yielding,
                self.held,
                look_at,
                server.news(connections[0].pipeline.transport.name),
            )

    def _observe(self, connections: Sequence[Connection[Any]], now: float, has_more: bool) -> None:
        was_live, silent, sent = self.live, [], {}
        answered = self.live = 0
        busy = False
        for connection in connections:
            pipeline = connection.pipeline
            answered += pipeline.answered
            if pipeline.answered:
                self.live += 1
                busy = busy or bool(pipeline.packages_in_flight)
                continue
            out, since = self._sent.get(connection, (0, now))
            if out != pipeline.bytes_sent:
                out, since = pipeline.bytes_sent, now
            sent[connection] = out, since
            if has_more or pipeline.packages_in_flight:
                silent.append(since)
        if self.live and not was_live:
            self.began = now
            self._server.note_first_answer(now - min(self.silent, default=now))
        if answered > self._answered:
            self.answered_at = now
        self._server.hold(self, len(connections))
        self.silent = tuple(silent)
        self.is_idle = not busy and not has_more
        self._sent = sent
        self._answered = answered
        self._measure(now)

    def _measure(self, now: float) -> None:
        """Update the rate of answers: of the last second with work, or of this one if higher."""
        since, count = self._measured
        if self.is_idle or self._answered < count:
            self._measured = now, self._answered
        elif now - since >= _RATE_LEAST_S:
            rate = (self._answered - count) / (now - since)
            if now - since >= _RATE_S:
                self._rate = rate
                self._measured = now, self._answered
            else:
                self._rate = max(self._rate, rate)

    def _decide(self, waiting: int, now: float) -> None:
        """Decide whether to yield the slot, if a route or a connection waits."""
        if not waiting or not self.live:
            self.yielding = False
            return
        if self.yielding:
            return
        others = [route for route in self._server.holders if route.live and route is not self]
        if sum(route.yielding for route in others) >= waiting:
            return
        if not self.is_idle:
            turn_s = max(TURN_LEAST_S, min(TURN_MOST_S, ROUND_S * (len(others) + 1) / waiting))
            if now - self.began < turn_s:
                return
            if sum(route.began < self.began for route in others) >= waiting:
                return
        self.yielding = True

    def _allowance(self, connections: Sequence[Connection[Any]]) -> int | None:
        if self.yielding:
            return 0
        if len(self._server.routes) == 1:
            return None
        in_flight = sum(connection.pipeline.packages_in_flight for connection in connections)
        return max(0, max(IN_FLIGHT_LEAST, int(self._rate * IN_FLIGHT_S)) - in_flight)


class ServerSlots:
    """The slots of all servers of a process. `clock` is monotonic seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._servers: dict[Hashable, _SharedServer] = {}

    def join(self, server: Hashable, limit: int, wake: Wakeup) -> RouteSlots:
        """Add a route to this server and return its slots; `RouteSlots.leave` removes it."""
        with self._lock:
            found = self._servers.setdefault(server, _SharedServer(self._clock))
            route = RouteSlots(found, limit, wake)
            with found.lock:
                found.come(route)
                found.wake_holders()  # there is somebody to share with now
            return route
