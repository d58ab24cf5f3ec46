"""The receiver's loop: one thread, one selector, several clients.

The fsyncs block everybody, but only for one batch at a time: each client with
packages to deliver gets one batch per round.
"""

import contextlib
import errno
import os
import selectors
import socket
import time
from collections.abc import Callable
from functools import partial

from maildirqmtp.errors import LocalError
from maildirqmtp.maildir import writing
from maildirqmtp.maildir.cleanup import clean
from maildirqmtp.maildir.maildir import Maildir
from maildirqmtp.receiver.connection import Connection
from maildirqmtp.receiver.listener import open_listener, open_unix_listener, show_address
from maildirqmtp.receiver.policy import DEFAULT_POLICY, Importance, Log, Policy, silent
from maildirqmtp.receiver.session import Session
from maildirqmtp.receiver.streams import SocketStream, Stream, peer_name
from maildirqmtp.text import printable

#: Clients at once; the others wait in the kernel (tcpserver's default as well).
MAX_CONNECTIONS = 40
#: Seconds without a byte either way; mailfront's value.
TIMEOUT_S = 1_200.0
#: Seconds without accepting anybody after the descriptors ran out.
ACCEPT_PAUSE_S = 1.0

# Seconds; poll(2) counts milliseconds in an int.
_LONGEST_PAUSE_S = 86_400.0
# What accept() says when this machine, not the client, is the reason.
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Server:
    """A QMTP server that delivers into a maildir, which is made if it is missing.

    `listen` is (host, port), with port 0 for any; or the path of a Unix socket;
    None for a server that only `serve_stream` will use. `address` is the host
    and port it is bound to. `wrap` makes a stream of a socket that has
    connected, as `tls.Gate.welcome` does. `serve` returns
    after `stop`, which any thread or signal handler may call; `wakeup_fd` is
    for `signal.set_wakeup_fd`. A context manager; leaving it, or `close`, lets
    go of everything.

    Raises `LocalError` where the maildir or the address cannot be used, and
    `ConfigError` for an address beyond loopback with a policy that refuses
    nobody.
    """

    def __init__(
        self,
        maildir: str | bytes | os.PathLike[str],
        *,
        listen: tuple[str, int] | bytes | None = ("127.0.0.1", 209),
        policy: Policy = DEFAULT_POLICY,
        wrap: Callable[[socket.socket], Stream] = SocketStream,
        max_connections: int = MAX_CONNECTIONS,
        timeout_s: float = TIMEOUT_S,
        log: Log = silent,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._policy = policy
        self._make_stream = wrap
        self._max_connections = max_connections
        self._timeout_s = timeout_s
        self._log = log
        self._clock = clock
        self._connections: list[Connection] = []
        self._accept_after_s = 0.0
        self._stop_asked = False
        self._stopping = False
        with contextlib.ExitStack() as undo:
            self._maildir = undo.enter_context(_open_maildir(os.fsencode(maildir)))
            self._listener: socket.socket | None = None
            self.address: tuple[str, int] | None = None
            self._where = ""
            if isinstance(listen, bytes):
                self._listener = undo.enter_context(open_unix_listener(listen))
                self._where = f"unix:{printable(listen)}"
            elif listen is not None:
                self._listener = undo.enter_context(
                    open_listener(*listen, loopback_only=not policy.restricted)
                )
                host, port = self._listener.getsockname()[:2]
                self.address = (host, port)
                self._where = show_address(host, port)
            self._selector = undo.enter_context(selectors.PollSelector())
            self._wake_in, self._wake_out = map(undo.enter_context, socket.socketpair())
            for sock in (self._wake_in, self._wake_out):
                sock.setblocking(False)
            self._selector.register(self._wake_out, selectors.EVENT_READ, self._drain_wake)
            self._close = undo.pop_all().close
        self.wakeup_fd = self._wake_in.fileno()

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Drop every client and let go of everything; harmless twice."""
        for connection in self._connections:
            connection.release()
        self._connections.clear()
        self._close()

    def stop(self) -> None:
        """Ask `serve` to answer what is complete, and return. For any thread."""
        self._stop_asked = True
        with contextlib.suppress(OSError):  # full, so it wakes anyhow; or closed already
            self._wake_in.send(b"\0")

    def serve(self) -> None:
        """Serve whoever connects, until `stop`."""
        if self._where:
            self._log(Importance.NOTICE, f"listening on {self._where}")
        while self._connections or not self._stopping:
            self._round()

    def serve_stream(self, stream: Stream, peer: str) -> bool:
        """Serve one client until it is done, or `stop`.

        Returns False where it ended with something lost: a violation of the
        protocol, a package cut short, responses that could not be written.
        """
        connection = self._welcome(stream, peer)
        while self._connections:
            self._round()
        return not connection.failed

    def _round(self) -> None:
        self._arrange_listener()
        for connection in self._connections:
            self._arrange(connection)
        for key, events in self._selector.select(self._pause_s()):
            key.data(events)
        if self._stop_asked and not self._stopping:
            self._begin_stop()
        for connection in list(self._connections):
            connection.turn()
            if connection.closed:
                self._arrange(connection)
                connection.release()
                self._connections.remove(connection)

    def _begin_stop(self) -> None:
        self._stopping = True
        self._log(Importance.NOTICE, "stopping")
        self._arrange_listener()
        if self._listener is not None:
            self._listener.close()
        for connection in self._connections:
            connection.stop()

    def _pause_s(self) -> float | None:
        """Return how long the selector may wait; None for ever."""
        times_s = [connection.deadline_s for connection in self._connections]
        if self._listener is not None and self._accept_after_s:
            times_s.append(self._accept_after_s)
        return min(max(0.0, min(times_s) - self._clock()), _LONGEST_PAUSE_S) if times_s else None

    def _arrange(self, connection: Connection) -> None:
        """Make the selector wait for what the connection wants, and for nothing else."""
        wanted = {} if connection.closed else connection.interest()
        for fd in connection.registered.keys() - wanted.keys():
            self._selector.unregister(fd)
        for fd, events in wanted.items():
            if fd not in connection.registered:
                self._selector.register(fd, events, connection.handle)
            elif connection.registered[fd] != events:
                self._selector.modify(fd, events, connection.handle)
        connection.registered = wanted

    def _arrange_listener(self) -> None:
        if self._listener is None or self._listener.fileno() < 0:
            return
        if self._accept_after_s and self._clock() >= self._accept_after_s:
            self._accept_after_s = 0.0
        full = len(self._connections) >= self._max_connections
        wanted = not (self._stopping or full or self._accept_after_s)
        if wanted != (self._listener.fileno() in self._selector.get_map()):
            if wanted:
                accept = partial(self._accept, self._listener)
                self._selector.register(self._listener, selectors.EVENT_READ, accept)
            else:
                self._selector.unregister(self._listener)

    def _accept(self, listener: socket.socket, _: int) -> None:
        while len(self._connections) < self._max_connections:
            try:
                sock, address = listener.accept()
            except OSError as error:
                if error.errno in _EXHAUSTED:
                    self._log(Importance.ERROR, f"cannot accept a connection: {error.strerror}")
                    self._accept_after_s = self._clock() + ACCEPT_PAUSE_S
                return  # nobody there any more, or gone before we looked
            peer = peer_name(address[0]) if address else "unix"
            try:
                stream = self._make_stream(sock)
            except OSError as error:
                sock.close()
                self._log(Importance.DETAIL, f"{peer}: gone at once: {error.strerror}")
                continue
            self._welcome(stream, peer)

    def _welcome(self, stream: Stream, peer: str) -> Connection:
        session = Session(self._maildir, peer, self._policy, self._log)
        connection = Connection(stream, session, self._timeout_s, self._clock, self._log)
        self._connections.append(connection)
        return connection

    def _drain_wake(self, _: int) -> None:
        self._wake_out.recv(4_096)


def _open_maildir(path: bytes) -> Maildir:
    """Open the maildir, made if it is missing, and clean its tmp/."""
    writing.create(path)
    maildir = Maildir(path)
    try:
        clean(maildir, time.time())
    except LocalError:
        maildir.close()
        raise
    return maildir
