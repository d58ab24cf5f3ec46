"""A TCP forwarder on loopback that delays every byte, one way and the other, by the same time.

    delay_proxy.py SERVER_PORT ONE_WAY_MS

prints the port it listens on. Bandwidth is unlimited: what is read at a
time waits in memory until it is due, however much that is. What it cannot delay is the client's
connect(), which the kernel answers at once.
"""

import selectors
import socket
import sys
import time
from collections import deque

CHUNK_BYTES = 1 << 20
END = b""


class Flow:
    """One direction of one connection: what was read and when it is due."""

    def __init__(self, source: socket.socket, target: socket.socket, delay_s: float) -> None:
        self.source = source
        self.target = target
        self.delay_s = delay_s
        self.queue: deque[tuple[float, bytes]] = deque()
        self.reading = True
        self.blocked = False
        self.done = False

    def due(self) -> float | None:
        """When something can be written, unless that depends on the target only."""
        return self.queue[0][0] if self.queue and not self.blocked else None

    def read(self, now: float) -> None:
        """Take in what the source has; its end is queued and delayed like data."""
        try:
            data = self.source.recv(CHUNK_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = END
        self.queue.append((now + self.delay_s, data))
        self.reading = data != END

    def write(self, now: float) -> None:
        """Pass on what is due, as far as the target takes it."""
        self.blocked = False
        while self.queue and self.queue[0][0] <= now:
            due, data = self.queue.popleft()
            try:
                sent = self.pass_on(data)
            except BlockingIOError:
                sent = 0
            except OSError:
                self.give_up()
                return
            if sent < len(data):
                self.queue.appendleft((due, data[sent:]))
                self.blocked = True
                return

    def pass_on(self, data: bytes) -> int:
        """Send data, or the end of it."""
        if data != END:
            return self.target.send(data)
        self.done = True
        self.target.shutdown(socket.SHUT_WR)
        return 0

    def give_up(self) -> None:
        """The target takes nothing any more: throw the rest away."""
        self.queue.clear()
        self.reading = False
        self.done = True


class Proxy:
    """All connections to one server, in one thread."""

    def __init__(self, server_port: int, delay_s: float) -> None:
        self.server_port = server_port
        self.delay_s = delay_s
        self.selector = selectors.DefaultSelector()
        self.pairs: list[tuple[Flow, Flow]] = []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listener.getsockname()[1]
        self.selector.register(self.listener, selectors.EVENT_READ)

    def run(self) -> None:
        """Forward for ever."""
        while True:
            dues = [due for pair in self.pairs for flow in pair if (due := flow.due()) is not None]
            timeout_s = max(0.0, min(dues) - time.monotonic()) if dues else None
            ready = self.selector.select(timeout_s)
            if any(key.fileobj is self.listener for key, _ in ready):
                self.accept()
            # Whatever the events were: with a handful of connections, trying each is cheap.
            for pair in list(self.pairs):
                self.serve(pair)

    def accept(self) -> None:
        """Join a new client with a connection of its own to the server."""
        client, _ = self.listener.accept()
        server = socket.create_connection(("127.0.0.1", self.server_port))
        for each in (client, server):
            each.setblocking(False)
            each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.selector.register(each, selectors.EVENT_READ)
        self.pairs.append(
            (Flow(client, server, self.delay_s), Flow(server, client, self.delay_s)),
        )

    def serve(self, pair: tuple[Flow, Flow]) -> None:
        """Read and write both directions as far as possible without waiting."""
        now = time.monotonic()
        for flow in pair:
            if flow.reading:
                flow.read(now)
            flow.write(now)
        if pair[0].done and pair[1].done:
            self.pairs.remove(pair)
            for flow in pair:
                self.watch(flow.source, 0)
                flow.source.close()
            return
        for flow, other in (pair, pair[::-1]):
            reads = selectors.EVENT_READ if flow.reading else 0
            writes = selectors.EVENT_WRITE if other.blocked else 0
            self.watch(flow.source, reads | writes)

    def watch(self, sock: socket.socket, events: int) -> None:
        """Wait for these events of the socket from now on, or (0) for none."""
        key = self.selector.get_map().get(sock)
        if key is None:
            if events:
                self.selector.register(sock, events)
        elif not events:
            self.selector.unregister(sock)
        elif key.events != events:
            self.selector.modify(sock, events)


def main() -> None:
    """Print the port and forward until killed."""
    if len(sys.argv) != 3:
        raise SystemExit("usage: delay_proxy.py SERVER_PORT ONE_WAY_MS")
    proxy = Proxy(int(sys.argv[1]), float(sys.argv[2]) / 1000)
    print(proxy.port, flush=True)
    proxy.run()


if __name__ == "__main__":
    main()
