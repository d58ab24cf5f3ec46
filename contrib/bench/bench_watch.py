"""The benchmark of watch mode: from the rename into new/ until the server has the whole package.

The server is in this process, so that both moments are read from one clock. In turns with each
message the same package is sent by hand over a connection of its own: the floor, that is what the
server and the loopback take.
"""

import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from statistics import median, quantiles

from bench_harness import CHECKOUT, BenchError
from bench_maildir import MESSAGE_BYTES, empty_maildir, text, trace_lines

sys.path.insert(0, str(CHECKOUT))

from maildirqmtp.qmtp.package_reader import PackageEnd, PackageReader
from maildirqmtp.qmtp.protocol import package_head, package_tail

DEADLINE_S = 30.0


class Receiver:
    """A server that notes when it has each package, and answers it."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._arrived = threading.Semaphore(0)
        self._at_s = 0.0
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        reader = PackageReader()
        while data := connection.recv(1 << 18):
            reader.feed(data)
            while (event := reader.next()) is not None:
                if isinstance(event, PackageEnd):
                    self._at_s = time.perf_counter()
                    connection.sendall(b"3:Kok,")
                    self._arrived.release()

    def wait(self) -> float:
        """Wait for the next package; return when it was there."""
        if not self._arrived.acquire(timeout=DEADLINE_S):
            raise BenchError(f"no package came within {DEADLINE_S:g} s")
        return self._at_s


def wait_for_empty(new: Path) -> None:
    """Wait until the forwarder has removed what it sent."""
    give_up = time.perf_counter() + DEADLINE_S
    while os.listdir(new):
        if time.perf_counter() > give_up:
            raise BenchError(f"{new} is not empty after {DEADLINE_S:g} s")
        time.sleep(0.001)


def delays(
    forwarder: list[str], env: dict[str, str], place: Path, count: int, log: Path, *, sent: bool
) -> tuple[list[float], list[float]]:
    """Return the seconds that each of so many messages took by us, and by hand."""
    maildir = empty_maildir(place / "box")
    receiver = Receiver()
    flags = ["--sent", str(place / "sent")] if sent else []
    ours, by_hand = [], []
    with log.open("wb") as output:
        daemon = subprocess.Popen(
            [*forwarder, "--watch", str(maildir), f"127.0.0.1:{receiver.port}", *flags],
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    try:
        with socket.create_connection(("127.0.0.1", receiver.port)) as hand:
            hand.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for number in range(-5, count):  # the first ones only start things up
                ours.append(_one(maildir, receiver, number))
                by_hand.append(_by_hand(hand, receiver))
        daemon.terminate()
        if daemon.wait(DEADLINE_S) != 0:
            raise BenchError(f"the daemon ended with {daemon.returncode}")
    finally:
        daemon.kill()
        daemon.wait()
    return ours[5:], by_hand[5:]


def deliver(maildir: Path, number: int) -> float:
    """Put a message into new/; return when it was there."""
    name = f"{int(time.time())}.M{number:06d}.bench"
    top = trace_lines(0)
    (maildir / "tmp" / name).write_bytes(top + text(MESSAGE_BYTES - len(top), 0))
    began = time.perf_counter()
    os.rename(maildir / "tmp" / name, maildir / "new" / name)
    return began


def _one(maildir: Path, receiver: Receiver, number: int) -> float:
    began = deliver(maildir, number + 5)
    delay_s = receiver.wait() - began
    wait_for_empty(maildir / "new")
    return delay_s


def _by_hand(connection: socket.socket, receiver: Receiver) -> float:
    body = text(MESSAGE_BYTES, 0)
    package = package_head(len(body)) + body + package_tail(b"s@example.org", [b"u@example.net"])
    began = time.perf_counter()
    connection.sendall(package)
    delay_s = receiver.wait() - began
    connection.recv(64)
    return delay_s


def percentiles(values: list[float]) -> tuple[float, float]:
    """Return the median and the 99th percentile."""
    return median(values), quantiles(values, n=100)[98]
