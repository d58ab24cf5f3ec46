"""A large message in front of small ones at 64 kbit/s: when are the small ones through?"""

import io
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable

from bench_cases import Result, Setting, in_turns, ratio, walls
from bench_harness import BenchError, Run
from bench_maildir import Stock, large_stock, stock
from slow_server import read

BYTES_PER_S = 8_000
ROUND_TRIP_S = 0.6
PIECE_BYTES = 400
LARGE_BYTES = 1_000_000
DEADLINE_S = 200.0


class ThinLink(io.RawIOBase):
    """What comes on a socket, at the rate of the link."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Read a piece, and take the time that it takes on the link."""
        count = self.sock.recv_into(buffer[:PIECE_BYTES])
        time.sleep(count / BYTES_PER_S)
        return count


def serve(listener: socket.socket, small: int, through: threading.Event) -> None:
    """Answer each package a round trip later; say when so many small ones have come."""
    while True:
        try:
            sock, _ = listener.accept()
        except OSError:
            return
        with sock, io.BufferedReader(ThinLink(sock), PIECE_BYTES) as file:
            try:
                while file.peek(1):
                    message, _, _ = read(file), read(file), read(file)
                    if len(message) < LARGE_BYTES // 2:
                        small -= 1
                        threading.Timer(ROUND_TRIP_S, answer, (sock,)).start()
                    if not small:
                        through.set()
            except (EOFError, OSError):
                continue


def answer(sock: socket.socket) -> None:
    """Answer one package, if the client is still there."""
    try:
        sock.sendall(b"3:Kok,")
    except OSError:
        return


def until_small_are_through(setting: Setting, box: Stock) -> Run:
    """Run the forwarder until the small ones have come; it is killed amid the large one."""
    through = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener, setting.log.open("wb") as log:
        threading.Thread(target=serve, args=(listener, box.count, through), daemon=True).start()
        server = f"127.0.0.1:{listener.getsockname()[1]}"
        began = time.perf_counter()
        process = subprocess.Popen(
            [*setting.forwarder, str(box.path), server], env=setting.env, stdout=log, stderr=log
        )
        try:
            if not through.wait(DEADLINE_S):
                raise BenchError(f"the small messages are not through after {DEADLINE_S:g} s")
            wall_s = time.perf_counter() - began
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
        listener.shutdown(socket.SHUT_RDWR)
    shutil.rmtree(box.path)
    return Run(wall_s, 0, 0)


def with_large(box: Stock) -> Stock:
    """Put a large message in front of the others."""
    large = large_stock(box.path.parent / "large", LARGE_BYTES)
    (name,) = os.listdir(large.path / "new")
    os.rename(large.path / "new" / name, box.path / "new" / f"1.{name}")
    shutil.rmtree(large.path)
    return box


def thin(setting: Setting) -> Result:
    """20 messages of 2 KB behind one of 1 MB at 64 kbit/s, against the same without it."""
    count, pairs = setting.size(20, 4), setting.size(3, 1)
    place = setting.memory()
    a, b = in_turns(
        pairs,
        lambda: until_small_are_through(setting, with_large(stock(place / "box", count))),
        lambda: until_small_are_through(setting, stock(place / "box", count)),
    )
    notes = ["until the small ones are through; the link also has a round trip of 600 ms"]
    return Result("thin", "s", walls(a), walls(b), ratio(walls(a), walls(b)), "x", 1.1, notes=notes)


CASES: dict[str, Callable[[Setting], Result]] = {"thin": thin}
