"""A proxy that cuts one connection, after so many bytes in one direction, by FIN or RST."""

from __future__ import annotations

import contextlib
import selectors
import socket
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass

from tests.helpers import DEADLINE_S


@dataclass
class Proxy:
    """Sits between the forwarder and the server at `upstream`, a port of loopback.

    The first connection is cut once `after` bytes have gone to the server
    (`to_server`), or back. What comes then depends: with `stays`, later
    connections are passed on whole, or with `every_time` cut likewise; without, nobody listens
    any more.

    A FIN towards the server is passed on by it: the client sees what the server
    still has to say, and then its FIN. A reset hits both, when the server has
    done with what it got; its last answers are lost with it.
    """

    upstream: int
    after: int
    to_server: bool
    reset: bool
    stays: bool
    every_time: bool = False
    was_cut: bool = False

    def __post_init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        # Else the kernel takes many megabytes ahead, and what is cut off is at the proxy already.
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        self.port: int = self._listener.getsockname()[1]
        self.seen = {True: 0, False: 0}
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        first = True
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with client, socket.create_connection(("127.0.0.1", self.upstream)) as server:
                if first and not self.stays:
                    self._shut()
                with contextlib.suppress(OSError):
                    self._pass_on(client, server, first)
            first = self.every_time

    def _shut(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _pass_on(self, client: socket.socket, server: socket.socket, first: bool) -> None:
        """Pass bytes both ways until one side closes, or it is time to cut."""
        gone = {True: 0, False: 0}
        for sock in (client, server):
            # Pieces of any length, at once: not each 40 ms, when the last one is acknowledged.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with selectors.DefaultSelector() as selector:
            selector.register(client, selectors.EVENT_READ, True)
            selector.register(server, selectors.EVENT_READ, False)
            while True:
                if first and gone[self.to_server] == self.after:
                    self._cut(client, server)
                    return
                for key, _ in selector.select(DEADLINE_S):
                    source, target = (client, server) if key.data else (server, client)
                    room = 1 << 16
                    if first and key.data is self.to_server:
                        room = min(room, self.after - gone[key.data])
                    data = source.recv(room) if room else b""
                    if not data and room:
                        return
                    target.sendall(data)
                    gone[key.data] += len(data)
                    if first:
                        self.seen = dict(gone)

    def _cut(self, client: socket.socket, server: socket.socket) -> None:
        self.was_cut = True
        server.settimeout(DEADLINE_S)
        if not self.reset and self.to_server:
            server.shutdown(socket.SHUT_WR)
            while data := server.recv(1 << 16):
                client.sendall(data)
            self._end(client)
        elif not self.reset:
            self._end(client)
            server.shutdown(socket.SHUT_WR)
            while server.recv(1 << 16):
                pass
        else:
            if self.to_server:
                server.shutdown(socket.SHUT_WR)
                while server.recv(1 << 16):
                    pass
            for sock in (client, server):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    @staticmethod
    def _end(client: socket.socket) -> None:
        """Close in an orderly way: what the client still sends is read, so that no reset comes."""
        client.shutdown(socket.SHUT_WR)
        client.settimeout(DEADLINE_S)
        while client.recv(1 << 16):
            pass

    def close(self) -> None:
        """Stop, and wait for the last connection to end."""
        self._shut()
        self._thread.join(DEADLINE_S)
        assert not self._thread.is_alive()


@contextlib.contextmanager
def proxied(
    upstream: int, after: int, to_server: bool, reset: bool, stays: bool, every_time: bool = False
) -> Iterator[Proxy]:
    """Run a proxy for the length of a with block."""
    proxy = Proxy(upstream, after, to_server, reset, stays, every_time)
    try:
        yield proxy
    finally:
        proxy.close()
