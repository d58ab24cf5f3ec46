"""The servers of a route: which one the next connection goes to, and what is known of each.

    1. in the order of preference, but for those that were of no use within 5 minutes
    2. then these, the one that was of no use longest ago first

A server is of no use if it cannot be connected to, or if `recovery` judges so by how a connection
ended. Then the next connection goes to another one. When all have been of no use, one after the
other without an answer in between, the run gives up, or the daemon backs off.

All connections that are open at the same time lead to one server, `current`. Each server has its
own capabilities, window, and messages that it may dislike.

    accepted by mx1? --not answered--> in doubt at mx1 --mx1 comes back-----> sent to mx1 again
                                             |
                                             +--after `in_doubt_wait_s`--> sent to any of them
"""

from __future__ import annotations

from errno import ECONNREFUSED, ECONNRESET, EPROTO
from time import gmtime, strftime
from typing import TYPE_CHECKING

from maildirqmtp.errors import ConnectError, TransportError
from maildirqmtp.forwarder.kept import Wait
from maildirqmtp.forwarder.recovery import Recovery
from maildirqmtp.forwarder.server_memory import ServerMemory
from maildirqmtp.forwarder.slow_answers import SlowAnswers
from maildirqmtp.pipeline.pool import ConnectionPool
from maildirqmtp.pipeline.timeouts import Timeouts
from maildirqmtp.pipeline.window import shares
from maildirqmtp.transport.connect import connect
from maildirqmtp.transport.endpoint import TcpEndpoint

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from maildirqmtp.forwarder.large_messages import LargeMessages
    from maildirqmtp.forwarder.queue import Queue
    from maildirqmtp.forwarder.queued_message import QueuedMessage
    from maildirqmtp.forwarder.report import Report
    from maildirqmtp.forwarder.route import Route
    from maildirqmtp.forwarder.settle import Settler
    from maildirqmtp.maildir.maildir import Maildir
    from maildirqmtp.maildir.state import State
    from maildirqmtp.pipeline.pipeline import Pipeline
    from maildirqmtp.pipeline.pool import Connection
    from maildirqmtp.transport.endpoint import Endpoint
    from maildirqmtp.transport.transport import Transport

#: Seconds for which a server that was of no use goes behind the others.
USELESS_S = 300.0
#: Seconds that connecting may take, at most, if the server was of no use the last time and another
#: one can be used: a router that drops packets must not hold the mail up each time.
AGAIN_TIMEOUT_S = 5.0
#: Errors of connecting that are an answer of the server's host, the last one under TLS.
_BY_THE_SERVER = (ECONNREFUSED, ECONNRESET, EPROTO)
#: Times that a server is tried for the messages that are in doubt there, while they wait for it.
_PROBES = 5


class RouteServer:
    """One server of a route.

    `useless_at`: the clock's time at which it last was of no use. `waiting`: the messages that
    wait for it, because they are in doubt there, each with the time of the clock until which it
    waits. `slow_answers` is None if mail goes over several connections.
    """

    __slots__ = (
        "endpoint",
        "memory",
        "name",
        "pool",
        "recovery",
        "slow_answers",
        "useless_at",
        "waiting",
    )

    def __init__(
        self,
        endpoint: Endpoint,
        memory: ServerMemory,
        pool: ConnectionPool[QueuedMessage],
        recovery: Recovery,
        slow_answers: SlowAnswers | None,
    ) -> None:
        self.endpoint = endpoint
        self.name = str(endpoint)
        self.memory = memory
        self.pool = pool
        self.recovery = recovery
        self.slow_answers = slow_answers
        self.useless_at: float | None = None
        self.waiting: dict[bytes, float] = {}

    def is_useless(self, now: float) -> bool:
        """Return whether it was of no use within the last 5 minutes."""
        return self.useless_at is not None and now - self.useless_at < USELESS_S


class Servers:
    """The servers of one route: one, or a list.

    `state` remembers which messages are in doubt at which server, also from one run to the next;
    `large` is for the route's large messages, whichever server they go to. `connector` is for
    tests. `clock` is monotonic seconds, `wall_clock` seconds of the epoch.
    """

    def __init__(
        self,
        route: Route,
        maildir: Maildir,
        settler: Settler,
        report: Report,
        state: State,
        large: LargeMessages,
        connector: Callable[[Endpoint, float], Transport] | None,
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
    ) -> None:
        def make(endpoint: Endpoint) -> RouteServer:
            memory = ServerMemory(endpoint, route.one_recipient, state)
            pool: ConnectionPool[QueuedMessage] = ConnectionPool(
                shares(route.window_messages, route.window_bytes, route.connections),
                Timeouts(
                    route.write_timeout_s, route.response_timeout_s, route.grace_s, route.session_s
                ),
                lambda queued: maildir.is_same(queued.message),
                clock,
                memory.capabilities,
            )
            recovery = Recovery(settler, report, endpoint, large)
            slow_answers = SlowAnswers(report, state, clock) if route.connections == 1 else None
            return RouteServer(endpoint, memory, pool, recovery, slow_answers)

        self._servers = [make(endpoint) for endpoint in route.servers]
        #: The one that connections lead to, or led to last.
        self.current = self._servers[0]
        #: The name of the one that answered last; before any has, that of the preferred one.
        self.answered_by = self.current.name
        self.several = len(self._servers) > 1
        #: False if the last attempt did not get as far as the server: the link or the DNS is down.
        self.reached = True
        self._route = route
        self._report = report
        self._connector = connector or self._to_server
        self._in_doubt_wait_s = route.in_doubt_wait_s
        self._state = state
        self._clock = clock
        self._wall_clock = wall_clock
        # In this round, since the last answer of any server: those that were of no use, and why.
        self._of_no_use: dict[str, str] = {}
        self._probing: RouteServer | None = None

    # Which one

    def next(self) -> RouteServer:
        """Return the server that a first connection goes to now."""
        if self._probing is not None or not self.several:
            return self._probing or self.current
        now = self._clock()

        def rank(server: RouteServer) -> tuple[float, bool]:
            since = server.useless_at if server.is_useless(now) else None
            return (
                float("-inf") if since is None else since,
                server.name in self._of_no_use,
            )

        return min(self._servers, key=rank)

    def choose(self) -> bool:
        """Make the server for the next connections `current`; return whether there is a choice."""
        if self.several:
            self.current, self._probing = self.next(), None
        return self.several

    @property
    def target(self) -> RouteServer:
        """The server that messages go to: that of the open connections, else of the next one."""
        return self.current if self.current.pool.open else self.next()

    @property
    def timeout_s(self) -> float:
        """The seconds that connecting to `current` may take, for each of its addresses."""
        most_s, now = self._route.connect_timeout_s, self._clock()
        others = [server for server in self._servers if server is not self.current]
        if self.current.useless_at is None or all(one.is_useless(now) for one in others):
            return most_s
        return min(most_s, AGAIN_TIMEOUT_S)

    def connect(self, timeout_s: float) -> Transport:
        """Connect to `current`. Raises `TransportError` if that fails."""
        try:
            transport = self._connector(self.current.endpoint, timeout_s)
        except TransportError as error:
            self.reached = error.errno in _BY_THE_SERVER
            raise
        self.reached = True
        return transport

    def _to_server(self, endpoint: Endpoint, timeout_s: float) -> Transport:
        route = self._route
        # In a list with TLS, the servers without it are on this machine.
        is_plain = not (isinstance(endpoint, TcpEndpoint) and endpoint.tls)
        tls = None if self.several and is_plain else route.tls
        log, write_timeout_s = self._report.command_said, route.write_timeout_s
        return connect(endpoint, timeout_s, tls, log, write_timeout_s)

    # What they are good for

    @property
    def has_spare(self) -> bool:
        """True if another server than `current` is still to be tried in this round."""
        return any(
            one is not self.current and one.name not in self._of_no_use for one in self._servers
        )

    def failed(self, why: str) -> str:
        """Note that `current` is of no use; return why to give up, empty if another may help."""
        self.current.useless_at = self._clock()
        self._of_no_use[self.current.name] = why
        if self.has_spare:
            self._report.note(f"{why}; going on with {self.next().name}")
            return ""
        reasons = "; ".join(self._of_no_use.values())
        self._of_no_use.clear()
        return reasons

    def forget_failures(self) -> None:
        """Begin with the preferred server again, for instance because the link is up."""
        self._of_no_use.clear()
        for server in self._servers:
            server.useless_at = None

    @property
    def suspects(self) -> Collection[bytes]:
        """The names of the messages that go alone, because `current` may dislike them."""
        return self.current.recovery.suspects

    def note_answers(self, pipeline: Pipeline[QueuedMessage], count: int, waiting: int) -> None:
        """Note that `current` answered `count` messages; `waiting` are not in flight yet."""
        self.answered_by = self.current.name
        if self.current.slow_answers is not None:
            self.current.slow_answers.answered(pipeline, count, waiting)

    def clear_up(
        self,
        connection: Connection[QueuedMessage],
        unfinished: list[QueuedMessage],
        queue: Queue,
        stopping: bool,
    ) -> str:
        """Clear up after a connection that has ended, and judge whether to go on, and where.

        `stopping`: the run is told to stop. Return why to give up; empty if a connection may help.
        """
        server, is_last = self.current, not self.current.pool.open
        self.reached = not isinstance(connection.pipeline.error, ConnectError)
        server.memory.learn(connection.pipeline)
        if connection.pipeline.answered or not connection.pipeline.ended:
            server.useless_at = None
            self._of_no_use.clear()
        if self.several and self._in_doubt_wait_s:
            for queued in unfinished:
                if queued.doubtful:
                    self._state.note_in_doubt(queued.message.name, server.name)
        has_spare = is_last and not stopping and self.has_spare
        pool = server.pool
        at_once = len(pool.open) + len(pool.windows) if pool.capabilities.proven else 1
        why = server.recovery.clear_up(
            connection, unfinished, queue, has_spare=has_spare, at_once=at_once
        )
        if why and is_last:  # not while others are open, which were made before this was known
            server.recovery.begin_anew()
        if is_last and not stopping:
            why = why and self.failed(why)
            queue.hurry(self.take_ready())
        return why

    # Messages in doubt

    def end_doubts(self, answered: Iterable[QueuedMessage]) -> None:
        """Note that `current` has answered for these: what breaks later is a doubt of its own."""
        for queued in answered if self.several else ():
            self._state.end_doubt(queued.message.name, self.current.name)

    def must_wait(self, name: bytes) -> Wait | None:
        """Return until when a message may not be sent to `target`; None if it may be sent now."""
        noted = self._state.in_doubt(name)
        if not noted:
            return None
        target, now, now_s = self.target, self._clock(), self._wall_clock()
        for server in self._servers:
            left_s = noted.get(server.name, float("-inf")) + self._in_doubt_wait_s - now_s
            # More than the whole time is left if the wall clock was set back.
            if server is not target and 0 < left_s <= self._in_doubt_wait_s:
                server.waiting[name] = now + left_s
                probe_at = self._probe_at(server)
                due = probe_at if probe_at > now else now + self._interval_s
                at = strftime("%Y-%m-%dT%H:%M:%SZ", gmtime(now_s + left_s))
                return Wait(
                    min(now + left_s, due),
                    f"in doubt at {server.name}, and waits for it; from {at} on it goes to any",
                )
        for server in self._servers:
            server.waiting.pop(name, None)
        return None

    def take_ready(self) -> list[bytes]:
        """Return the messages that have waited for `target`, and can go there now."""
        target = self.target
        ready, target.waiting = [*target.waiting], {}
        return ready

    @property
    def _interval_s(self) -> float:
        return self._in_doubt_wait_s / _PROBES

    def _probe_at(self, server: RouteServer) -> float:
        return 0.0 if server.useless_at is None else server.useless_at + self._interval_s

    def probe(self) -> list[bytes]:
        """With nothing else to send, choose a server to try for the messages in doubt there.

        Return these; the next connection goes there. None are returned while a connection is open.
        """
        now = self._clock()
        for server in self._servers if not self.current.pool.open else ():
            if server.waiting and self._probe_at(server) <= now:
                ready = [name for name, until in server.waiting.items() if until > now]
                server.waiting = {}
                if ready:
                    self._probing = server
                    return ready
        return []
