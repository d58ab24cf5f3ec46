"""The next server: connections that are kept, and a pause while it is down.

| a connection              | what happens                                              |
| ------------------------- | --------------------------------------------------------- |
| was not used for a minute | QUIT                                                      |
| was closed meanwhile      | another is used, or a new one                             |
| breaks, or is silent, at  | all kept ones are closed, and a new one is used           |
| its next MAIL             |                                                           |
| cannot be opened          | Z; Z at once for the pause: 1 s, doubling up to a minute  |
|                           | after it, one thread tries, and the others still say Z    |
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from maildirqmtp.receiver.handoff import verdicts
from maildirqmtp.receiver.handoff.mail_text import features
from maildirqmtp.receiver.handoff.smtp_client import Broken, SmtpClient
from maildirqmtp.receiver.handoff.smtp_transaction import (
    MAX_RECIPIENTS,
    OutgoingMail,
    Transaction,
    broken,
)
from maildirqmtp.text import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from maildirqmtp.qmtp.protocol import Response
    from maildirqmtp.receiver.handoff.how import SmtpAddress
    from maildirqmtp.receiver.handoff.replies import Reply

#: Seconds after which a connection that is not used is closed.
IDLE_S = 60.0
#: Seconds of the first pause after the server could not be reached, and of the longest.
FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 60.0


class NextServer:
    """Hands mail on to an SMTP or LMTP server. For several threads, each with a connection.

    `our_name` is what EHLO says; `plain` allows plain text beyond loopback; `ca` is a file of
    certificate authorities for TLS there, in place of this system's;
    `complain` gets a line each time the server cannot be reached;
    `clock` is monotonic seconds.
    """

    def __init__(
        self,
        server: SmtpAddress,
        our_name: str,
        plain: bool = False,
        complain: Callable[[str], None] = lambda text: None,
        clock: Callable[[], float] = time.monotonic,
        ca: str | None = None,
    ) -> None:
        self._server = server
        self._our_name = our_name if our_name.isascii() else "localhost"
        self._plain = plain
        self._ca = ca
        self._complain = complain
        self._clock = clock
        self._lock = threading.Lock()
        #: Each with the time of its last use; the one used most recently comes last.
        self._idle: list[tuple[float, SmtpClient]] = []
        self._timer: threading.Timer | None = None
        self._busy: set[SmtpClient] = set()
        self._aborted = False
        self._failures = 0
        self._down_until_s = float("-inf")
        self._trying = False
        #: Not an exception: raised again and again, it would keep all that mail in memory.
        self._why_down: tuple[str, Reply | None] = ("", None)

    def deliver(
        self,
        sender: bytes,
        recipients: Sequence[bytes],
        pieces: Callable[[], Iterator[bytes]],
        may_begin: Callable[[], bool] = lambda: True,
    ) -> list[Response]:
        """Hand a text on to raw recipients; return an answer for each.

        `pieces` reads the text from its beginning, at each call. May wait as long
        as SMTP allows the server to take; no transaction is begun once `may_begin`
        returns false.
        """
        try:
            mail = OutgoingMail(sender, features(pieces()), pieces)
        except OSError as error:
            trouble = verdicts.deferred(f"451 cannot read the message: {error.strerror} (#4.3.0)")
            return [trouble] * len(recipients)
        responses: list[Response] = []
        for start in range(0, len(recipients), MAX_RECIPIENTS):
            some = recipients[start : start + MAX_RECIPIENTS]
            if not may_begin():
                responses += [verdicts.NO_TIME] * len(some)
                continue
            try:
                responses += self._transact(mail, some)
            except Broken as error:
                responses += [broken(self._server, error)] * len(some)
        return responses

    def _transact(self, mail: OutgoingMail, recipients: Sequence[bytes]) -> list[Response]:
        """Run a transaction. Raises `Broken` if no connection can be opened."""
        client = self._take()
        if client is not None:
            transaction = self._run(client, mail, recipients)
            if not transaction.unheard:
                return transaction.responses
            # A server that has frozen answers on no other kept one either, each time after minutes.
            self._quit_idle()
        transaction = self._run(self._open(), mail, recipients)
        if transaction.unheard:
            self._failed(transaction.trouble)
        return transaction.responses

    def _run(
        self, client: SmtpClient, mail: OutgoingMail, recipients: Sequence[bytes]
    ) -> Transaction:
        transaction = Transaction(client, mail, recipients)
        try:
            transaction.run()
        finally:
            self._give_back(client, transaction.reusable)
        return transaction

    def _take(self) -> SmtpClient | None:
        """Return the most recently used connection that is still good; None if there is none."""
        while True:
            with self._lock:
                if not self._idle or self._aborted:
                    return None
                _, client = self._idle.pop()
                self._busy.add(client)
            if client.is_quiet():
                return client
            self._give_back(client, reusable=False)

    def _give_back(self, client: SmtpClient, reusable: bool) -> None:
        with self._lock:
            self._busy.discard(client)
            keep = reusable and not self._aborted
            if keep:
                self._idle.append((self._clock(), client))
                self._start_timer()
        if not keep:
            client.close()

    def _open(self) -> SmtpClient:
        with self._lock:
            if self._aborted:
                raise Broken("the receiver stops")
            if self._trying or self._clock() < self._down_until_s:
                raise Broken(*self._why_down)
            self._trying = self._failures > 0
        try:
            client = SmtpClient(self._server, self._our_name, self._plain, self._ca)
        except Broken as error:
            self._failed(error)
            raise
        finally:
            with self._lock:
                self._trying = False
        with self._lock:
            self._failures = 0
            self._busy.add(client)
            aborted = self._aborted
        if aborted:  # while it was opened: nobody would learn the answer
            self._give_back(client, reusable=False)
            raise Broken("the receiver stops")
        return client

    def _failed(self, error: Broken) -> None:
        """Begin the next pause; only one if several threads fail at once."""
        with self._lock:
            if self._clock() < self._down_until_s:
                return
            pause_s = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** min(self._failures, 20))
            self._failures += 1
            self._down_until_s = self._clock() + pause_s
            self._why_down = str(error), error.reply
        said = f": {printable(error.reply.text)}" if error.reply else ""
        self._complain(f"{self._server}: {error}{said}; not tried again for {pause_s:.0f} s")

    def _start_timer(self) -> None:
        """Schedule `close_idle` for when the connection idle for longest is to be closed."""
        if self._timer is None:
            left_s = self._idle[0][0] + IDLE_S - self._clock()
            self._timer = threading.Timer(max(0.0, left_s), self.close_idle)
            self._timer.daemon = True
            try:
                self._timer.start()
            except (RuntimeError, MemoryError):
                self._timer = None  # no thread can be started now: tried again with the next mail

    def close_idle(self) -> None:
        """Close the connections that were not used for `IDLE_S` seconds."""
        limit_s = self._clock() - IDLE_S
        with self._lock:
            self._timer = None
            old = [client for used_s, client in self._idle if used_s <= limit_s]
            self._idle = [(used_s, client) for used_s, client in self._idle if used_s > limit_s]
            if self._idle:
                self._start_timer()
        for client in old:
            client.quit()

    def abort(self) -> None:
        """Make the threads in `deliver` return soon, with Z."""
        with self._lock:
            self._aborted = True
            busy = list(self._busy)
        for client in busy:
            client.abort()

    def close(self) -> None:
        """Close all connections that no thread uses; harmless twice."""
        with self._lock:
            self._aborted = True
            if self._timer is not None:
                self._timer.cancel()
        self._quit_idle()

    def _quit_idle(self) -> None:
        with self._lock:
            idle, self._idle = self._idle, []
        for _, client in idle:
            client.quit()
