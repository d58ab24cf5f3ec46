"""A connection to an SMTP or LMTP server. Only this module imports smtplib.

smtplib connects, says EHLO or LHLO and does STARTTLS. Replies are read here, because
smtplib reads without limits, and its `sendmail` supports neither LMTP's replies nor
a text that is streamed.
"""

from __future__ import annotations

import select
import smtplib
import socket
import time
from typing import TYPE_CHECKING

from maildirqmtp.receiver.clients import is_loopback
from maildirqmtp.receiver.handoff.replies import Reply, ReplyError, ReplyReader
from maildirqmtp.transport.tls_socket import client_context

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from maildirqmtp.receiver.handoff.how import SmtpAddress

#: Seconds to connect, for each address; Postfix's smtp_connect_timeout.
CONNECT_S = 30.0
# Seconds for each reply, and for each piece of the text (RFC 5321, 4.5.3.2).
OPENING_S = 300.0
COMMAND_S = 300.0
DATA_S = 120.0
PIECE_S = 180.0
END_OF_TEXT_S = 600.0
#: Seconds for the rest of a reply that the server sends unasked.
UNASKED_S = 2.0
#: Bytes that must be sent within `PIECE_S`.
_PIECE_BYTES = 64 << 10
_READ_BYTES = 16 << 10


class Broken(Exception):
    """The connection cannot be used any more, for this reason; `reply` is the server's, if any."""

    def __init__(self, reason: str, reply: Reply | None = None) -> None:
        super().__init__(reason)
        self.reply = reply


class Silent(Broken):
    """No complete reply has come in time."""


class _Connection(smtplib.SMTP):
    """smtplib's connection, with replies read by `ReplyReader` and within a time limit."""

    def __init__(self, server: SmtpAddress, our_name: str) -> None:
        self._server = server
        self._reader = ReplyReader()
        self.last_reply: Reply | None = None
        self.ehlo_msg = "LHLO" if server.lmtp else "EHLO"
        # smtplib connects if it is given a host; STARTTLS compares the certificate with that.
        try:
            super().__init__(server.host or "localhost", server.port, our_name, CONNECT_S)
        except BaseException:
            self.close()
            raise

    def _get_socket(self, host: str, port: int, timeout: float) -> socket.socket:
        """Override smtplib's, to connect to Unix sockets as well."""
        if not self._server.path:
            connected = socket.create_connection((host, port), timeout)
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return connected
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.settimeout(timeout)
            sock.connect(self._server.path)
        except BaseException:
            sock.close()
            raise
        return sock

    def getreply(self) -> tuple[int, bytes]:
        """Override smtplib's, which reads without limits."""
        reply = self.read_reply(OPENING_S)
        return reply.code, b"\n".join(reply.lines)

    def read_reply(self, timeout_s: float) -> Reply:
        """Return the next reply, which must be complete within `timeout_s` seconds.

        Raises `Broken` if it is not, if the connection breaks, and for a reply 421.
        """
        assert self.sock is not None
        deadline_s = time.monotonic() + timeout_s
        try:
            while (reply := self._reader.next()) is None:
                self.sock.settimeout(max(0.001, deadline_s - time.monotonic()))
                data = self.sock.recv(_READ_BYTES)
                if not data:
                    raise Broken("the server closed the connection")
                self._reader.feed(data)
        except TimeoutError:
            raise Silent(f"no reply within {timeout_s:.0f} s") from None
        except ReplyError as error:
            raise Broken(str(error)) from None
        except OSError as error:
            raise Broken(f"connection broken: {_reason(error)}") from error
        self.last_reply = reply
        if reply.code == 421:  # RFC 5321, 3.8: the server closes after it
            raise Broken("the server closes the connection", reply)
        return reply

    @property
    def unread(self) -> bool:
        """True if part of a reply was received that nobody has read."""
        return not self._reader.empty


class SmtpClient:
    """A connection to the next server, opened and greeted. All its calls may wait.

    Raises `Broken` if it cannot be opened; then `reply` is the refusal, if the
    server answered. Beyond loopback TLS is required and the certificate
    compared with the server's name, unless `plain`; `ca` is a file of certificate
    authorities in place of this system's.
    """

    def __init__(
        self, server: SmtpAddress, our_name: str, plain: bool = False, ca: str | None = None
    ) -> None:
        self.server = server
        self._ca = ca
        try:
            self._connection = _Connection(server, our_name)
        except smtplib.SMTPConnectError as error:
            raise Broken("the server greets with a refusal", _reply_of(error)) from error
        except (OSError, UnicodeError) as error:
            raise Broken(f"cannot connect: {_reason(error)}") from error
        try:
            self._hello()
            if not plain and not self._is_local():
                self._start_tls()
        except smtplib.SMTPResponseException as error:
            self.close()
            raise Broken("the server refuses STARTTLS", self._connection.last_reply) from error
        except smtplib.SMTPException as error:
            self.close()
            raise Broken(_reason(error)) from error
        except OSError as error:
            self.close()
            raise Broken(f"TLS: {_reason(error)}") from error
        except BaseException:
            self.close()
            raise

    def _hello(self) -> None:
        code, _ = self._connection.ehlo()
        if code >= 500 and not self.server.lmtp:
            code, _ = self._connection.helo()
        if not 200 <= code < 300:
            raise Broken("the server refuses our EHLO", self._connection.last_reply)

    def _is_local(self) -> bool:
        assert self._connection.sock is not None
        if self.server.path:
            return True
        return is_loopback(str(self._connection.sock.getpeername()[0]))

    def _start_tls(self) -> None:
        if not self.has("starttls"):
            raise Broken(
                f"{self.server} is beyond this machine and has no STARTTLS; "
                f"--deliver-plain sends mail to it in plain text"
            )
        self._connection.starttls(context=client_context(self._ca))
        if self._connection.unread:
            # Injected before TLS by somebody between us and the server (CVE-2011-0411).
            raise Broken("the server said more before TLS than its reply to STARTTLS")
        self._hello()

    def has(self, extension: str) -> bool:
        """Return whether the server has announced an extension, named in lower case."""
        return self._connection.does_esmtp and self._connection.has_extn(extension)

    @property
    def max_size(self) -> int:
        """The largest message in bytes that the server takes (RFC 1870); 0 if unannounced."""
        limit = self._connection.esmtp_features.get("size", "").strip()
        return int(limit) if limit.isascii() and limit.isdigit() and len(limit) < 20 else 0

    def is_quiet(self) -> bool:
        """Return whether an idle connection can be used: it is open, and nothing was received."""
        sock = self._connection.sock
        if sock is None or self._connection.unread:
            return False
        waiting = select.poll()
        waiting.register(sock, select.POLLIN | select.POLLHUP | select.POLLERR)
        return not waiting.poll(0)

    def _listen(self) -> None:
        """Raise `Broken` if the server has sent something unasked.

        Taken for the reply to what is sent next, it could become a K for mail that the
        server does not have.
        """
        if self.is_quiet():
            return
        try:
            reply = self._connection.read_reply(UNASKED_S)
        except Silent:
            if self._connection.unread:
                raise
            return  # messages of TLS itself are no replies
        raise Broken("the server spoke before it was asked", reply)

    def say(self, commands: Sequence[bytes]) -> None:
        """Send commands, each a line without its end.

        Raises `Broken` if that fails, or the server has sent something unasked.
        """
        self._listen()
        self._send(b"".join([command + b"\r\n" for command in commands]), COMMAND_S)

    def reply(self, timeout_s: float) -> Reply:
        """Return the next reply; see `_Connection.read_reply`, also for when it raises `Broken`."""
        return self._connection.read_reply(timeout_s)

    def send_text(self, pieces: Iterable[bytes]) -> None:
        """Send the text.

        Raises `Broken` as `say` does, and what reading `pieces` raises.
        """
        waiting = bytearray()  # small pieces go together
        for piece in pieces:
            waiting += piece
            while len(waiting) >= _PIECE_BYTES:
                self._listen()
                self._send(waiting[:_PIECE_BYTES], PIECE_S)
                del waiting[:_PIECE_BYTES]
        self._listen()
        self._send(waiting, PIECE_S)

    def _send(self, data: bytes | bytearray, timeout_s: float) -> None:
        sock = self._connection.sock
        assert sock is not None
        try:
            sock.settimeout(timeout_s)
            sock.sendall(data)
        except TimeoutError:
            raise Broken(f"the server took nothing for {timeout_s:.0f} s") from None
        except OSError as error:
            raise Broken(f"connection broken: {_reason(error)}") from error

    def abort(self) -> None:
        """Make calls of other threads on this connection fail soon. For any thread."""
        sock = self._connection.sock
        if sock is not None:
            try:
                socket.socket.shutdown(sock, socket.SHUT_RDWR)
            except OSError:
                return  # gone already

    def quit(self) -> None:
        """Send QUIT, and close without waiting for its reply."""
        sock = self._connection.sock
        if sock is not None:
            try:
                sock.settimeout(1.0)
                sock.sendall(b"QUIT\r\n")
            except OSError:
                pass  # it is gone, which is what QUIT asks for
        self.close()

    def close(self) -> None:
        """Close the connection; harmless twice."""
        self._connection.close()


def _reply_of(error: smtplib.SMTPConnectError) -> Reply:
    text = error.smtp_error
    raw = text.encode() if isinstance(text, str) else text
    return Reply(error.smtp_code, tuple(raw.split(b"\n")))


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "timed out"
    return getattr(error, "strerror", None) or str(error)
