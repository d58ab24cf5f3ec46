"""An LMTP server that accepts everything and keeps nothing, to be handed mail.

Prints its port; on SIGTERM, on standard error, how many texts it took and their bytes.
"""

import contextlib
import signal
import socket
import sys
import threading
from types import FrameType

HELLO = b"250-sink\r\n250-PIPELINING\r\n250 8BITMIME\r\n"
END = b"\r\n.\r\n"


class Client:
    """One connection."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock = sock
        self.messages = self.bytes = self.recipients = 0

    def serve(self) -> None:
        """Answer until the client goes away, by a reset maybe."""
        with contextlib.suppress(ConnectionError), self.sock:
            self.talk()

    def talk(self) -> None:
        """Answer; the replies to what came together go together."""
        self.sock.sendall(b"220 sink\r\n")
        waiting, in_text = b"", False
        while data := self.sock.recv(1 << 18):
            waiting, said = waiting + data, b""
            while True:
                what, end, rest = waiting.partition(END if in_text else b"\r\n")
                if not end:
                    break
                waiting = rest
                if in_text:
                    self.messages += 1
                    self.bytes += len(what)
                    said += b"250 ok\r\n" * self.recipients
                    in_text = False
                else:
                    said += self.obey(what)
                    if what.upper() == b"DATA":
                        waiting, in_text = b"\r\n" + waiting, True
            if said:
                self.sock.sendall(said)

    def obey(self, line: bytes) -> bytes:
        """Return the reply to a command."""
        verb = line[:4].upper()
        if verb == b"LHLO":
            return HELLO
        if verb == b"MAIL":
            self.recipients = 0
        elif verb == b"RCPT":
            self.recipients += 1
        return {b"DATA": b"354 go on\r\n", b"QUIT": b"221 bye\r\n"}.get(verb, b"250 ok\r\n")


def main() -> None:
    """Serve until SIGTERM."""
    clients: list[Client] = []

    def on_term(signal_number: int, frame: FrameType | None) -> None:
        texts, size = sum(c.messages for c in clients), sum(c.bytes for c in clients)
        print(f"messages={texts} bytes={size}", file=sys.stderr, flush=True)
        raise SystemExit

    signal.signal(signal.SIGTERM, on_term)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(listener.getsockname()[1], flush=True)
        while True:
            client = Client(listener.accept()[0])
            clients.append(client)
            threading.Thread(target=client.serve, daemon=True).start()


if __name__ == "__main__":
    main()
