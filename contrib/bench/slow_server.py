"""A QMTP server that takes its time over each message, as one with a scanner behind it does.

    slow_server.py ANSWER_MS

listens on 127.0.0.1, prints the port, and answers "Kok" for each recipient ANSWER_MS after the
package has come: on each connection one after the other, on several at the same time. On SIGTERM it
prints what it counted to stderr, as sink.c does, and exits.
"""

import signal
import socket
import sys
import threading
import time
from dataclasses import asdict, dataclass, field
from typing import BinaryIO

DIGITS_MAX = 12


@dataclass
class Totals:
    """What all connections have brought; for one thread at a time."""

    packages: int = 0
    recipients: int = 0
    message_bytes: int = 0
    connections: int = 0
    cut: int = 0
    broken: int = 0


@dataclass
class Server:
    """What the threads share."""

    answer_s: float
    totals: Totals = field(default_factory=Totals)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, **more: int) -> None:
        """Add to the totals."""
        with self.lock:
            for name, number in more.items():
                setattr(self.totals, name, getattr(self.totals, name) + number)

    def serve(self, sock: socket.socket) -> None:
        """Answer one client until it goes."""
        self.count(connections=1)
        with sock, sock.makefile("rb") as file:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            try:
                while file.peek(1):
                    message, _, recipients = read(file), read(file), count_of(read(file))
                    time.sleep(self.answer_s)
                    self.count(
                        packages=1, recipients=recipients, message_bytes=len(message) - 1
                    )  # but for the byte that says how lines end
                    sock.sendall(b"3:Kok," * recipients)
            except EOFError:
                self.count(cut=1)
            except (OSError, ValueError):
                self.count(broken=1)

    def accept(self, listener: socket.socket) -> None:
        """Take whoever comes, for ever."""
        while True:
            sock, _ = listener.accept()
            threading.Thread(target=self.serve, args=(sock,), daemon=True).start()


def read(file: BinaryIO) -> bytes:
    """Read a netstring. Raises `ValueError` for what is none, `EOFError` where it ends early."""
    digits = b""
    while (byte := file.read(1)) != b":":
        digits += byte
        if not byte:
            raise EOFError
        if not byte.isdigit() or len(digits) > DIGITS_MAX:
            raise ValueError(digits)
    data = file.read(int(digits))
    comma = file.read(1)
    if not comma:
        raise EOFError
    if comma != b",":
        raise ValueError(comma)
    return data


def count_of(recipients: bytes) -> int:
    """How many netstrings there are in one."""
    count = 0
    while recipients:
        digits, _, rest = recipients.partition(b":")
        recipients = rest[int(digits) + 1 :]
        count += 1
    return count


def main() -> None:
    """Print the port and serve until told to stop."""
    if len(sys.argv) != 2:
        raise SystemExit("usage: slow_server.py ANSWER_MS")
    server = Server(float(sys.argv[1]) / 1000)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        print(listener.getsockname()[1], flush=True)
        threading.Thread(target=server.accept, args=(listener,), daemon=True).start()
        signal.sigwait({signal.SIGTERM})
        with server.lock:
            counted = " ".join(f"{name}={value}" for name, value in asdict(server.totals).items())
        print(counted, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
