"""The receiver's loop: one thread, one selector, several clients.

Work that waits for a disk or a server runs in a pool of threads, in batches of packages; a thread
that has finished a batch wakes the loop, which sends the responses.

Trouble on this machine ends at most one client: if memory runs out while a
client is served, or a call fails that nobody expects to, that client is closed;
if descriptors run out, the server pauses before it accepts again.
"""

import contextlib
import errno
import os
import selectors
import socket
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from maildirqmtp.descriptor_limit import reason
from maildirqmtp.errors import LocalError
from maildirqmtp.receiver.clients import Client, client_at
from maildirqmtp.receiver.connection import Connection
from maildirqmtp.receiver.destination import Destination
from maildirqmtp.receiver.listener import (
    open_listener,
    open_unix_listener,
    require_local,
    where,
)
from maildirqmtp.receiver.maildir_destination import MaildirDestination
from maildirqmtp.receiver.policy import (
    DEFAULT_POLICY,
    Log,
    Policy,
    Severity,
    ThrottledLog,
    silent,
)
from maildirqmtp.receiver.session import Session
from maildirqmtp.receiver.shares import Shares
from maildirqmtp.receiver.streams import SocketStream, Stream, peer_name
from maildirqmtp.transport.readiness import DescriptorRegistration, seconds_until
from maildirqmtp.transport.thread_pool import ThreadPool
from maildirqmtp.transport.wakeup import Wakeup

#: Clients at once; the others wait in the kernel (tcpserver's default as well).
MAX_CONNECTIONS = 40
#: Seconds without a byte either way after which a client is closed; mailfront's value.
TIMEOUT_S = 1_200.0
#: Seconds without accepting after an error that may last, such as no descriptors left.
ACCEPT_PAUSE_S = 1.0
#: Seconds to sleep after poll(2) failed for lack of memory.
SELECT_PAUSE_S = 0.2
#: Threads that store mail. A disk does several fsyncs in nearly the time of one.
THREADS = 8
#: Seconds that `close` waits for the threads, and then for those whose deliveries it has cut short.
CLOSE_S, ABORTED_S = 10.0, 2.0

# Errors of accept(2) about the network or a client that has gone; the next call may succeed.
_ONE_CLIENT = frozenset(
    {
        errno.ECONNABORTED,
        errno.EPROTO,
        errno.ENOPROTOOPT,
        errno.ENETDOWN,
        errno.ENETUNREACH,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.ENONET,
        errno.ETIMEDOUT,
    }
)
# Errors of that kind in a row after which they count as lasting.
_MAX_IN_A_ROW = 20


class Server:
    """A QMTP server that delivers to a destination, which it closes in the end.

    `destination` is the path of a maildir, which is made if it is missing, or a
    `Destination`. `listen` is (host, port), with port 0 for any; or the path of a Unix
    socket; None for a server that is only used by `serve_stream`, or that has
    `listeners`: sockets that listen already, which it closes in the end. `address` is
    the host and port that the first TCP socket is bound to. `wrap` makes a stream of a
    connected socket, as `TlsServer.wrap` does. `max_per_client` is the most connections
    of one IP address (IPv6: of one /64); None for half of `max_connections`. `serve`
    returns after `stop`, which any thread or signal handler may call; `wakeup_fd` is for
    `signal.set_wakeup_fd`. `threads` is how many threads deliver mail. A context manager;
    leaving it, or `close`, releases everything.

    Raises `LocalError` if the maildir or the address cannot be used or no descriptor is
    left, and `ConfigError` for an address beyond loopback with a policy that is not
    `restricted`.
    """

    def __init__(
        self,
        destination: str | bytes | os.PathLike[str] | Destination[Any],
        *,
        listen: tuple[str, int] | bytes | None = ("127.0.0.1", 209),
        listeners: Sequence[socket.socket] = (),
        policy: Policy = DEFAULT_POLICY,
        wrap: Callable[[socket.socket], Stream] = SocketStream,
        max_connections: int = MAX_CONNECTIONS,
        max_per_client: int | None = None,
        timeout_s: float = TIMEOUT_S,
        log: Log = silent,
        clock: Callable[[], float] = time.monotonic,
        threads: int = THREADS,
    ) -> None:
        self._policy = policy
        self._make_stream = wrap
        self._max_connections = max_connections
        self._max_per_client = max_per_client or (max_connections + 1) // 2
        self._timeout_s = timeout_s
        self._log = log
        self._trouble = ThrottledLog(log, clock)
        self._crowded = ThrottledLog(log, clock)
        self._clock = clock
        self._connections: list[Connection] = []
        self._registrations: dict[Connection, DescriptorRegistration] = {}
        self._accept_after_s = 0.0
        self._accept_failures = 0
        #: True while all places are taken and a client waits in the kernel.
        self._others_wait = False
        self._stop_asked = False
        self._stopping = False
        with contextlib.ExitStack() as undo:
            try:
                self._wakeup = Wakeup()
            except OSError as error:
                raise LocalError(f"cannot make a pipe: {reason(error)}") from error
            undo.callback(self._wakeup.close)
            self._pool = ThreadPool(threads, self._wakeup.set, "storage")
            self._shares = Shares(self._pool, threads)
            if isinstance(destination, (str, bytes, os.PathLike)):
                path = os.fsencode(destination)
                destination = MaildirDestination(path, policy.max_size)
            self._destination: Destination[Any] = destination
            undo.callback(self._close_destination)
            self._listeners = [undo.enter_context(listener) for listener in listeners]
            if isinstance(listen, bytes):
                self._listeners.append(undo.enter_context(open_unix_listener(listen)))
            elif listen is not None:
                self._listeners.append(undo.enter_context(open_listener(*listen)))
            if not policy.restricted:
                for listener in self._listeners:
                    require_local(listener)
            internet = [s for s in self._listeners if s.family != socket.AF_UNIX]
            #: The host and port of the first TCP socket; None without one.
            self.address = _host_and_port(internet[0]) if internet else None
            self._selector = undo.enter_context(selectors.PollSelector())
            self._selector.register(self._wakeup.fd, selectors.EVENT_READ, self._woken)
            self._close = undo.pop_all().close
        self.wakeup_fd = self._wakeup.write_fd

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Drop every client and release everything; harmless twice."""
        for connection in self._connections:
            connection.release()
        self._connections.clear()
        self._registrations.clear()
        self._close()

    def _close_destination(self) -> None:
        # What another server decides on meanwhile can still be remembered (`--once`).
        has_ended = self._pool.close(CLOSE_S)
        if not has_ended:
            self._destination.abort()
            has_ended = self._pool.close(ABORTED_S)
        # A thread still in it, on a disk that hangs, must not find its descriptors reused.
        if has_ended:
            self._destination.close()

    def stop(self) -> None:
        """Ask `serve` to answer complete packages, and return. For any thread."""
        self._stop_asked = True
        self._wakeup.set()

    def serve(self) -> None:
        """Serve the clients that connect, until `stop`."""
        for listener in self._listeners:
            self._log(Severity.NOTICE, f"listening on {where(listener)}")
        while self._connections or not self._stopping:
            self._round()

    def serve_stream(self, stream: Stream, client: Client) -> bool:
        """Serve one client until it is done, or `stop`.

        Returns False if something was lost: by a violation of the protocol, a
        package cut short, or responses that could not be written.
        """
        connection = self._add_client(stream, client)
        while self._connections:
            self._round()
        return not connection.failed

    def _round(self) -> None:
        self._arrange_listeners()
        for connection in self._connections:
            self._contain(connection, partial(self._arrange, connection))
        for key, events in self._select():
            if isinstance(key.data, Connection):
                self._contain(key.data, partial(key.data.handle, events))
            else:
                key.data(events)
        if self._stop_asked and not self._stopping:
            self._begin_stop()
        self._make_way()
        for connection in list(self._connections):
            self._contain(connection, connection.turn)
            if connection.closed:
                self._drop(connection)

    def _select(self) -> list[tuple[selectors.SelectorKey, int]]:
        try:
            return self._selector.select(self._pause_s())
        except (OSError, MemoryError) as error:
            self._trouble(Severity.ERROR, f"cannot wait for clients: {_reason(error)}")
            time.sleep(SELECT_PAUSE_S)
            return []

    def _contain(self, connection: Connection, action: Callable[[], None]) -> None:
        """Run an action for a client; if this machine fails it, close only that client."""
        try:
            action()
        except (OSError, MemoryError) as error:
            connection.abort(_reason(error))

    def _drop(self, connection: Connection) -> None:
        self._arrange(connection)
        del self._registrations[connection]
        self._connections.remove(connection)
        self._contain(connection, connection.release)

    def _begin_stop(self) -> None:
        self._stopping = True
        self._log(Severity.NOTICE, "stopping")
        self._arrange_listeners()
        for listener in self._listeners:
            listener.close()
        for connection in self._connections:
            connection.stop()

    def _pause_s(self) -> float | None:
        """Return how long the selector may wait, in seconds; None for no limit."""
        times_s = [connection.deadline_s for connection in self._connections]
        if self._others_wait:
            times_s += [connection.expendable_s for connection in self._connections]
        if self._listeners and self._accept_after_s:
            times_s.append(self._accept_after_s)
        return seconds_until(min(times_s, default=None), self._clock())

    @property
    def _full(self) -> bool:
        return len(self._connections) >= self._max_connections

    def _make_way(self) -> None:
        """If a client waits for a place, close the one that has been idle or slow for longest."""
        if self._others_wait and self._full:
            self._close_expendable(self._connections)
        if not self._full:
            self._others_wait = False

    def _close_expendable(self, connections: Iterable[Connection]) -> bool:
        """Close the one that has been expendable for longest; return False if none is."""
        found = min(connections, key=lambda c: c.expendable_s, default=None)
        if found is None or found.expendable_s > self._clock():
            return False
        found.make_way()
        self._drop(found)
        return True

    def _arrange(self, connection: Connection) -> None:
        """Make the selector wait for what the connection is interested in, and nothing else."""
        wanted = {} if connection.closed else connection.interest()
        self._registrations[connection].want(wanted)

    def _arrange_listeners(self) -> None:
        if self._accept_after_s and self._clock() >= self._accept_after_s:
            self._accept_after_s = 0.0
        # While all places are taken, listening serves only to learn whether a client waits.
        knows = self._full and self._others_wait
        wanted = not (self._stopping or knows or self._accept_after_s)
        for listener in self._listeners:
            if listener.fileno() < 0 or wanted == (listener.fileno() in self._selector.get_map()):
                continue
            if wanted:
                accept = partial(self._accept, listener)
                self._selector.register(listener, selectors.EVENT_READ, accept)
            else:
                self._selector.unregister(listener)

    def _accept(self, listener: socket.socket, _: int) -> None:
        self._others_wait = self._full
        while not self._full:
            try:
                sock, address = listener.accept()
            except BlockingIOError:
                return
            except (OSError, MemoryError) as error:
                self._accept_failed(error)
                return
            self._accept_failures = 0
            try:
                client = client_at(sock)
                if self._has_place(client.group):
                    self._add_client(self._make_stream(sock), client)
                    continue
                limit = f"{self._max_per_client} connections already, and no more for one client"
                self._crowded(Severity.NOTICE, f"{client.name}: {limit}")
            except (OSError, MemoryError) as error:
                peer = peer_name(address[0]) if address else "unix"
                self._log(Severity.INFO, f"{peer}: closed at once: {_reason(error)}")
            sock.close()

    def _accept_failed(self, error: OSError | MemoryError) -> None:
        """Go on at once if only one client is affected; pause if the error may last."""
        self._accept_failures += 1
        one_client = isinstance(error, OSError) and error.errno in _ONE_CLIENT
        if not one_client or self._accept_failures >= _MAX_IN_A_ROW:
            self._trouble(Severity.ERROR, f"cannot accept a connection: {_reason(error)}")
            self._accept_after_s = self._clock() + ACCEPT_PAUSE_S

    def _has_place(self, group: str) -> bool:
        """Return whether this client may connect once more; an expendable one makes way."""
        own = [connection for connection in self._connections if connection.client == group]
        if not group or len(own) < self._max_per_client:
            return True
        return self._close_expendable(own)

    def _add_client(self, stream: Stream, client: Client) -> Connection:
        policy = self._policy.for_client(client)
        session = Session(
            self._destination,
            client.name,
            policy,
            self._log,
            workers=self._shares.of(client.group),
            user=client.user,
        )
        connection = Connection(
            stream, session, self._timeout_s, self._clock, self._log, client.group
        )
        self._connections.append(connection)
        self._registrations[connection] = DescriptorRegistration(self._selector, connection)
        return connection

    def _woken(self, _: int) -> None:
        # Each round looks for responses to send anyway.
        self._wakeup.clear()


def _reason(error: OSError | MemoryError) -> str:
    return "out of memory" if isinstance(error, MemoryError) else reason(error)


def _host_and_port(listener: socket.socket) -> tuple[str, int]:
    host, port = listener.getsockname()[:2]
    return host, port
