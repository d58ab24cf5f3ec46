"""A small LMTP server (RFC 2033) for `--demo`, in place of Dovecot or Postfix.

It keeps mail in memory, and understands only what the demo sends: it ignores parameters of
MAIL and RCPT, and does not detect commands out of order.
"""

import contextlib
import re
import socket
import socketserver
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

#: Returns the reply to RCPT for a recipient that is refused; None for one that is accepted.
Refuse = Callable[[bytes], bytes | None]

_ADDRESS = re.compile(rb"(?i:MAIL FROM|RCPT TO):<([^>]*)>")
_LHLO = b"250-localhost\r\n250-PIPELINING\r\n250-8BITMIME\r\n250 ENHANCEDSTATUSCODES"
#: Bytes of a line that are read at once; a longer line comes in pieces.
_LINE_BYTES = 1 << 16


class Mail(NamedTuple):
    """One recipient's copy: raw addresses, and the text as it was sent, its lines ending in LF."""

    sender: bytes
    recipient: bytes
    text: bytes


class LmtpServer(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """Listens on a Unix socket; `mailboxes` is what has been delivered.

    A context manager; leaving it ends every connection. Raises `OSError` if it
    cannot listen.
    """

    daemon_threads = True

    def __init__(self, path: Path, refuse: Refuse) -> None:
        self.mailboxes: list[Mail] = []
        self.refuse = refuse
        self._open: list[socket.socket] = []
        super().__init__(str(path), _Conversation)
        self._thread = threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def take(self, mail: Mail) -> None:
        """Deliver a message to one recipient."""
        self.mailboxes.append(mail)

    def get_request(self) -> tuple[socket.socket, str]:
        """Accept a connection, and keep its socket for `server_close` to shut down."""
        sock, _ = super().get_request()
        self._open.append(sock)
        return sock, ""

    def server_close(self) -> None:
        """Stop, and shut down the open connections: no client may wait for a server that ended."""
        self.shutdown()
        self._thread.join()
        super().server_close()
        for sock in self._open:
            with contextlib.suppress(OSError):  # the client was first
                sock.shutdown(socket.SHUT_RDWR)


class _Conversation(socketserver.StreamRequestHandler):
    server: LmtpServer

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):  # the demo is over
            self._say(b"220 localhost LMTP")
            self._talk()

    def _talk(self) -> None:
        sender, recipients = b"", list[bytes]()
        while line := self.rfile.readline(_LINE_BYTES):
            verb = line[:4].upper()
            match = _ADDRESS.match(line)
            if verb == b"MAIL" and match is not None:
                sender, recipients = match[1], []
                self._say(b"250 2.1.0 ok")
            elif verb == b"RCPT" and match is not None:
                refusal = self.server.refuse(match[1])
                if refusal is None:
                    recipients.append(match[1])
                self._say(refusal or b"250 2.1.5 ok")
            elif verb == b"DATA" and recipients:
                self._say(b"354 go on")
                text = self._text()
                for recipient in recipients:  # RFC 2033, 4.2: an answer for each
                    self.server.take(Mail(sender, recipient, text))
                    self._say(b"250 2.0.0 delivered")
            elif verb == b"QUIT":
                self._say(b"221 2.0.0 bye")
                return
            else:
                said = {
                    b"LHLO": _LHLO,
                    b"RSET": b"250 2.0.0 ok",
                    b"DATA": b"503 5.5.1 no recipient",
                }
                self._say(said.get(verb, b"500 5.5.2 what?"))

    def _text(self) -> bytes:
        """Read up to the lone dot (RFC 5321, 4.5.2). Raises `ConnectionError` if it never comes."""
        lines: list[bytes] = []
        at_start = True
        while (line := self.rfile.readline(_LINE_BYTES)) != b".\r\n" or not at_start:
            if not line:
                raise ConnectionError
            lines.append(line[1:] if at_start and line.startswith(b".") else line)
            at_start = line.endswith(b"\n")
        return b"".join(lines).replace(b"\r\n", b"\n")

    def _say(self, reply: bytes) -> None:
        self.wfile.write(reply + b"\r\n")
