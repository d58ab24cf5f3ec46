"""A small HTTP server for what a daemon shows about itself: one thread, few clients.

Any local user can connect to it, so limits keep what a client can cost the daemon low:

    clients at once             10; if another waits, the oldest is dropped after a second
    time for a whole exchange   5 s
    bytes of a request          8 KiB
    new clients                 50 a second

GET and HEAD only, one request for each connection (RFC 9112, 9.6).
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import time
from threading import Thread
from typing import TYPE_CHECKING, NamedTuple

from maildirqmtp.descriptor_limit import reason
from maildirqmtp.errors import LocalError
from maildirqmtp.text import printable_text
from maildirqmtp.transport.wakeup import Wakeup

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_CLIENTS = 10
#: Seconds that a client has to send its request and to take the response.
EXCHANGE_S = 5.0
#: Seconds after which a client is dropped if another one waits.
MAKE_WAY_S = 1.0
#: Seconds between two new clients.
ACCEPT_PAUSE_S = 0.02
#: Seconds without new clients after accept(2) failed, as it does when descriptors run out.
ERROR_PAUSE_S = 1.0
#: Bytes of a request's head.
MAX_REQUEST = 8 << 10
_BACKLOG = 16
_READ, _WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE


class Request(NamedTuple):
    """A request: the path without its query, and the header fields by lower-case name."""

    path: str
    fields: dict[str, str]


class Reply(NamedTuple):
    """A response; `status` includes the reason phrase, as in `200 OK`."""

    body: bytes
    content_type: str = "text/plain; charset=utf-8"
    status: str = "200 OK"


NOT_FOUND = Reply(b"not found\n", status="404 Not Found")


class _Client:
    """A connection, with the request so far, and then what is left to send of the response."""

    def __init__(self, sock: socket.socket, since_s: float) -> None:
        self.sock = sock
        self.since_s = since_s
        self.request = bytearray()
        self.response = b""


class HttpServer:
    """Serves in a thread from `start` to `stop`.

    `reply` is called in that thread for each request. `clock` is monotonic
    seconds. Raises `LocalError` if `address` (host and port) cannot be listened on.
    """

    def __init__(
        self,
        address: tuple[str, int],
        reply: Callable[[Request], Reply],
        clock: Callable[[], float] = time.monotonic,
        complain: Callable[[str], None] = lambda said: None,
    ) -> None:
        self._reply = reply
        self._complain = complain
        self._said = ""
        self._clock = clock
        self._clients: list[_Client] = []
        self._accept_after_s = 0.0
        self._someone_waits = False
        self._stopping = False
        with contextlib.ExitStack() as stack:
            try:
                family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
                # Else [::] would be all addresses but those of IPv4.
                dual = family == socket.AF_INET6 and socket.has_dualstack_ipv6()
                self._listener = socket.create_server(
                    address, family=family, backlog=_BACKLOG, dualstack_ipv6=dual
                )
                stack.callback(self._listener.close)
                self._wake = Wakeup()
                stack.callback(self._wake.close)
                self._selector = selectors.DefaultSelector()
            except OSError as error:
                where = f"[{address[0]}]" if ":" in address[0] else address[0]
                raise LocalError(
                    f"cannot listen on {where}:{address[1]}: {reason(error)}"
                ) from error
            stack.pop_all()
        self._listener.setblocking(False)
        self._selector.register(self._wake.fd, _READ)
        self._thread = Thread(target=self._run, name="http", daemon=True)

    def start(self) -> None:
        """Begin to serve. Raises `LocalError` if no thread can be started."""
        try:
            self._thread.start()
        except RuntimeError as error:
            self._close()
            raise LocalError(f"cannot serve over HTTP: {error}") from error

    def stop(self) -> None:
        """End the thread, and close every connection."""
        self._stopping = True
        self._wake.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            while not self._stopping:
                self._turn()
        finally:
            self._close()

    def _close(self) -> None:
        for client in list(self._clients):
            self._drop(client)
        self._selector.close()
        self._listener.close()
        self._wake.close()

    def _turn(self) -> None:
        self._arrange_listener()
        for key, _ in self._selector.select(self._pause_s()):
            if key.fileobj is self._listener:
                self._accept()
            elif isinstance(key.data, _Client):
                self._handle(key.data)
            else:
                self._wake.clear()
        self._drop_late()

    def _pause_s(self) -> float | None:
        """Return how long to wait, in seconds; None without limit."""
        times_s = []
        if self._clients:
            oldest_s = self._clients[0].since_s
            times_s.append(oldest_s + (MAKE_WAY_S if self._someone_waits else EXCHANGE_S))
        if self._accept_after_s:
            times_s.append(self._accept_after_s)
        return max(0.0, min(times_s) - self._clock()) if times_s else None

    def _drop_late(self) -> None:
        """Drop the clients whose time is over, the oldest first."""
        while self._clients:
            age_s = self._clock() - self._clients[0].since_s
            if age_s < (MAKE_WAY_S if self._someone_waits else EXCHANGE_S):
                return
            self._drop(self._clients[0])
            self._someone_waits = False

    def _arrange_listener(self) -> None:
        if self._accept_after_s and self._clock() >= self._accept_after_s:
            self._accept_after_s = 0.0
        wanted = not (self._accept_after_s or self._someone_waits)
        if wanted != (self._listener.fileno() in self._selector.get_map()):
            if wanted:
                self._selector.register(self._listener, _READ)
            else:
                self._selector.unregister(self._listener)

    def _accept(self) -> None:
        if len(self._clients) >= MAX_CLIENTS:
            self._someone_waits = True
            return
        pause_s = ACCEPT_PAUSE_S
        try:
            sock, _ = self._listener.accept()
        except BlockingIOError:
            return
        except OSError:
            pause_s = ERROR_PAUSE_S
        else:
            sock.setblocking(False)
            client = _Client(sock, self._clock())
            self._clients.append(client)
            self._selector.register(sock, _READ, client)
        self._accept_after_s = self._clock() + pause_s

    def _handle(self, client: _Client) -> None:
        """Read or write what is possible now; drop the client when it is done or gone."""
        try:
            if client.response:
                client.response = client.response[client.sock.send(client.response) :]
                if not client.response:
                    self._drop(client)
                return
            data = client.sock.recv(MAX_REQUEST)
        except BlockingIOError:
            return
        except OSError:
            self._drop(client)  # it is gone; only its own request is lost
            return
        client.request += data
        if b"\r\n\r\n" in client.request or b"\n\n" in client.request:
            client.response = self._respond(bytes(client.request))
            self._selector.modify(client.sock, _WRITE, client)
        elif not data or len(client.request) >= MAX_REQUEST:
            self._drop(client)

    def _drop(self, client: _Client) -> None:
        self._clients.remove(client)
        with contextlib.suppress(KeyError):
            self._selector.unregister(client.sock)
        client.sock.close()
        if len(self._clients) < MAX_CLIENTS:
            self._someone_waits = False

    def _respond(self, request: bytes) -> bytes:
        lines = request.decode("latin-1").splitlines()
        method, _, rest = lines[0].partition(" ")
        if method not in ("GET", "HEAD"):
            reply = Reply(b"GET only\n", status="405 Method Not Allowed")
        else:
            pairs = (line.partition(":") for line in lines[1:])
            fields = {name.lower(): value.strip() for name, _, value in pairs}
            path = rest.partition(" ")[0].partition("?")[0]
            try:
                reply = self._reply(Request(path, fields))
            except Exception as error:  # the thread goes on; the details are not for everybody
                said = f"cannot answer for {printable_text(path)}: {error!r}"
                if said != self._said:
                    self._said = said
                    self._complain(said)
                reply = Reply(b"see the daemon's log\n", status="500 Internal Server Error")
        head = (
            f"HTTP/1.1 {reply.status}\r\nContent-Type: {reply.content_type}\r\n"
            f"Content-Length: {len(reply.body)}\r\nConnection: close\r\n\r\n"
        )
        return head.encode() + (b"" if method == "HEAD" else reply.body)
