"""An SMTP or LMTP server that answers by a script, for tests of the hand-off."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.helpers import DEADLINE_S

#: In a script, in place of a reply: close the connection; or say nothing, until the client closes.
CLOSE = b"(close)"
SILENCE = b"(silence)"

Answer = bytes | Sequence[bytes]
Script = Mapping[str, Answer]

#: What a well-behaved server says.
USUAL: Script = {
    "greeting": b"220 next.example ESMTP\r\n",
    "EHLO": b"250-next.example\r\n250-PIPELINING\r\n250-SIZE 1000000\r\n250 8BITMIME\r\n",
    "LHLO": b"250-next.example\r\n250-PIPELINING\r\n250 8BITMIME\r\n",
    "HELO": b"250 next.example\r\n",
    "MAIL": b"250 2.1.0 sender ok\r\n",
    "RCPT": b"250 2.1.5 recipient ok\r\n",
    "DATA": b"354 go on\r\n",
    "text": b"250 2.0.0 queued\r\n",
    "RSET": b"250 2.0.0 reset\r\n",
    "QUIT": b"221 2.0.0 bye\r\n",
}


@dataclass
class Conversation:
    """What one connection brought: the command lines, and the texts as they were sent."""

    commands: list[bytes] = field(default_factory=list)
    texts: list[bytes] = field(default_factory=list)

    @property
    def verbs(self) -> list[str]:
        """The commands' first words."""
        return [command.split(b" ")[0].decode() for command in self.commands]


class ScriptedServer:
    """Serves each connection by the next of `scripts`, the last one for all that follow.

    A script names what differs from `USUAL`. Where an answer is a list, each such
    command of a connection gets the next one, and the last serves for the rest.
    With LMTP the text gets one answer for each accepted recipient. With `tls`, what
    follows a 220 to STARTTLS is under TLS.
    """

    def __init__(
        self,
        *scripts: Script,
        lmtp: bool = False,
        path: Path | None = None,
        port: int = 0,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._tls = tls
        self._scripts = scripts or ({},)
        self._lmtp = lmtp
        self.conversations: list[Conversation] = []
        if path is None:
            self._listener = socket.create_server(("127.0.0.1", port))
            self.port = int(self._listener.getsockname()[1])
        else:
            self._listener = socket.socket(socket.AF_UNIX)
            self._listener.bind(str(path))
            self._listener.listen()
        self._threads: list[threading.Thread] = []
        self._open: list[socket.socket] = []
        self._accepting = threading.Thread(target=self._accept)
        self._accepting.start()

    def close(self) -> None:
        """Stop listening, and end every connection."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._accepting.join(DEADLINE_S)
        self.drop()
        for thread in self._threads:
            thread.join(DEADLINE_S)
            assert not thread.is_alive()

    def drop(self) -> None:
        """End every connection that is open."""
        for sock in self._open:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    @property
    def texts(self) -> list[bytes]:
        """The texts of all connections."""
        return [text for conversation in self.conversations for text in conversation.texts]

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            if sock.family != socket.AF_UNIX:  # else the client waits 40 ms for each reply
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            script = self._scripts[min(len(self.conversations), len(self._scripts) - 1)]
            conversation = Conversation()
            self.conversations.append(conversation)
            self._open.append(sock)
            one = _OneConnection(sock, {**USUAL, **script}, self._lmtp, conversation, self._tls)
            thread = threading.Thread(target=one.serve)
            self._threads.append(thread)
            thread.start()


class _OneConnection:
    def __init__(
        self,
        sock: socket.socket,
        script: Script,
        lmtp: bool,
        conversation: Conversation,
        tls: ssl.SSLContext | None,
    ) -> None:
        self._tls = tls
        self._sock = sock
        self._script = script
        self._lmtp = lmtp
        self._conversation = conversation
        self._given: dict[str, int] = {}
        self._accepted = 0

    def serve(self) -> None:
        with contextlib.suppress(OSError, EOFError):
            self._say("greeting")
            if self._talk() and self._tls is not None:
                with self._sock:
                    self._sock = self._tls.wrap_socket(self._sock, server_side=True)
                self._talk()
        self._sock.close()

    def _talk(self) -> bool:
        """Answer commands until the end; True where that is STARTTLS."""
        with self._sock.makefile("rb") as lines:
            while line := lines.readline():
                command = line.rstrip(b"\r\n")
                self._conversation.commands.append(command)
                verb = command.split(b" ")[0].decode("ascii", "replace").upper()
                said = self._say(verb if verb in self._script else "unknown")
                if verb == "MAIL":
                    self._accepted = 0
                elif verb == "RCPT":
                    self._accepted += said.startswith(b"2")
                elif verb == "DATA" and said.startswith(b"354"):
                    self._read_text(lines)
                elif verb == "STARTTLS" and said.startswith(b"220"):
                    return True
                elif verb == "QUIT":
                    return False
        return False

    def _read_text(self, lines: object) -> None:
        assert hasattr(lines, "readline")
        text = b""
        while (line := lines.readline()) != b".\r\n":
            if not line:
                raise EOFError
            text += line
        self._conversation.texts.append(text)
        for _ in range(self._accepted if self._lmtp else 1):
            self._say("text")

    def _say(self, what: str) -> bytes:
        answer = self._script.get(what, b"500 5.5.1 what?\r\n")
        if not isinstance(answer, bytes):
            place = self._given.get(what, 0)
            self._given[what] = place + 1
            answer = answer[min(place, len(answer) - 1)]
        if answer.endswith(CLOSE):
            self._sock.sendall(answer.removesuffix(CLOSE))
            raise EOFError
        if answer == SILENCE:
            while self._sock.recv(4_096):
                pass
            raise EOFError
        self._sock.sendall(answer)
        return answer


@contextlib.contextmanager
def scripted_server(
    *scripts: Script,
    lmtp: bool = False,
    path: Path | None = None,
    port: int = 0,
    tls: ssl.SSLContext | None = None,
) -> Iterator[ScriptedServer]:
    """Run a `ScriptedServer`."""
    server = ScriptedServer(*scripts, lmtp=lmtp, path=path, port=port, tls=tls)
    with contextlib.closing(server):
        yield server
