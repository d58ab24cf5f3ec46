"""A QMTP session into a maildir: bytes in, response bytes out, no sockets.

What happens to a package, in this order; a crash between any two of the steps
loses nothing that was acknowledged:

    1  its text arrives            in memory, or in a file without a name
    2  its last byte arrives       the recipients are checked, one by one
    3  a copy for each recipient   tmp/X written and fsynced, linked to new/X
    4  the batch is complete       one fsync of new/
    5  the responses go out        K only for what step 4 made durable

A client that goes away before step 2 is owed nothing, and nothing is stored
(qmtp.txt, section 3).
"""

import os
import socket
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count

from maildirqmtp import netstring
from maildirqmtp.errors import LocalError, ProtocolError
from maildirqmtp.maildir import writing
from maildirqmtp.maildir.maildir import Maildir
from maildirqmtp.qmtp.package_reader import MessageData, MessageStart, PackageEnd, PackageReader
from maildirqmtp.qmtp.protocol import ENCODING_CRLF, MAX_MESSAGE, Response, Status, check_address
from maildirqmtp.receiver.policy import DEFAULT_POLICY, Importance, Log, Policy, silent
from maildirqmtp.receiver.spool import Spool
from maildirqmtp.text import printable, rfc5322_date

#: Recipients answered between two fsyncs of new/; other clients wait that long.
BATCH_RECIPIENTS = 64
#: Bytes written between two fsyncs of new/, and what the last copy goes beyond.
BATCH_BYTES = 32 << 20
#: Bytes of an address that are shown in a log line.
_SHOWN = 200

_TROUBLE = Response(Status.DEFERRED, b"451 cannot store it now, try again later (#4.3.0)")
_NO_RECIPIENT = Response(Status.FAILED, b"553 the recipient is empty (#5.1.3)")

_sequence = count(1)


@dataclass(frozen=True, slots=True)
class _Answer:
    """What a recipient will be told, once the copy called `name`, if any, is durable."""

    sender: bytes
    recipient: bytes
    response: Response
    name: bytes = b""
    size: int = 0


class Session:
    """One client's session, from its bytes to its responses.

    `feed` bytes, then call `work` while `busy`, then `take_output`; `receive`
    does it all at once. After `ended` nothing more will come: after a
    violation of the protocol, which `violation` names, or `wind_down`. Holds
    at most 1 MiB of recipients, 256 KiB of text, what one `feed` brought, and
    the responses not yet taken; `work` adds at most `BATCH_RECIPIENTS`.

    `peer` says in log and Received lines where the mail comes from.
    """

    def __init__(
        self,
        maildir: Maildir,
        peer: str,
        policy: Policy = DEFAULT_POLICY,
        log: Log = silent,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.peer = peer
        self.busy = False
        self.ended = False
        self.violation: str | None = None
        self._maildir = maildir
        self._policy = policy
        self._log = log
        self._now = now
        self._host = socket.gethostname()
        self._reader = PackageReader(max(MAX_MESSAGE, policy.max_size))
        self._last = False
        self._output = bytearray()
        # The package at hand: its text, who sent it, who is still owed an answer.
        self._in_message = False
        self._text: Spool | None = None
        self._sender = b""
        self._owed: deque[bytes] = deque()
        self._refusal: Response | None = None

    @property
    def between_packages(self) -> bool:
        """True where a client may go away without losing anything."""
        return self._reader.between_packages and not self._owed

    def feed(self, data: bytes) -> None:
        """Take bytes in."""
        if not self.ended:
            self._reader.feed(data)
            self.busy = True

    def take_output(self) -> bytes:
        """Return the responses that can go out now."""
        output = bytes(self._output)
        self._output.clear()
        return output

    def receive(self, data: bytes) -> bytes:
        """Take bytes in, deliver every package that is complete, return the responses."""
        self.feed(data)
        while self.busy:
            self.work()
        return self.take_output()

    def wind_down(self) -> None:
        """End after the package at hand; what follows it is not looked at."""
        self._last = True
        self.busy = not self.ended

    def close(self) -> None:
        """Throw away what is not complete; harmless twice."""
        self.ended = True
        self.busy = False
        self._in_message = False
        self._owed.clear()
        self._drop_text()

    def work(self) -> None:
        """Deliver one batch and make it durable; `busy` says whether there is more."""
        batch: list[_Answer] = []
        written = 0
        while len(batch) < BATCH_RECIPIENTS and written < BATCH_BYTES:
            if self._owed:
                answer = self._answer(self._owed.popleft())
                batch.append(answer)
                written += answer.size
            elif not self._advance():
                break
        self._commit(batch)

    def _advance(self) -> bool:
        """Handle what comes next; False where that needs more bytes, or never comes."""
        if not self._in_message:
            self._drop_text()
            if self._last or self.ended:
                self.close()
                return False
        try:
            event = self._reader.next()
        except ProtocolError as error:
            self.violation = str(error)
            self.close()
            return False
        if event is None:
            self.busy = False
            return False
        if isinstance(event, MessageStart):
            self._start(event)
        elif isinstance(event, MessageData):
            if self._text is not None:
                self._text.append(event.data)
        else:
            self._end(event)
        return True

    def _start(self, event: MessageStart) -> None:
        self._in_message = True
        self._refusal = None
        limit = self._policy.max_size
        if event.length > limit:
            self._refusal = _refusal(
                f"552 message of {event.length} bytes; at most {limit} are taken (#5.3.4)"
            )
        else:
            self._text = Spool(self._maildir, event.encoding == ENCODING_CRLF)

    def _end(self, event: PackageEnd) -> None:
        self._in_message = False
        self._sender = event.sender
        self._owed.extend(event.recipients)
        if self._text is not None:
            self._text.finish()
            if self._text.trouble is not None:
                self._log(Importance.ERROR, f"{self.peer}: {self._text.trouble}")
        reason = check_address(event.sender, "sender")
        if reason is not None and self._refusal is None:
            self._refusal = _refusal(f"553 {reason} (#5.1.7)")

    def _drop_text(self) -> None:
        if self._text is not None:
            self._text.discard()
            self._text = None

    def _answer(self, recipient: bytes) -> _Answer:
        """Deliver to one recipient, or say why not."""
        response = self._refuse(recipient)
        if response is not None:
            return _Answer(self._sender, recipient, response)
        text = self._text
        assert text is not None
        if text.trouble is not None:
            return _Answer(self._sender, recipient, _TROUBLE)
        try:
            header = self._header(recipient)
            name = writing.write_tmp(self._maildir, text.pieces(header))
            writing.publish(self._maildir, name)
        except LocalError as error:
            self._log(Importance.ERROR, f"{self.peer}: {error}")
            return _Answer(self._sender, recipient, _TROUBLE)
        accepted = f"ok {int(self._now())} qp {os.getpid()}.{next(_sequence)}"
        response = Response(Status.ACCEPTED, accepted.encode())
        return _Answer(self._sender, recipient, response, name, len(header) + text.size)

    def _refuse(self, recipient: bytes) -> Response | None:
        if self._refusal is not None:
            return self._refusal
        if not recipient:
            return _NO_RECIPIENT
        reason = check_address(recipient, "recipient")
        if reason is not None:
            return _refusal(f"553 {reason} (#5.1.3)")
        return self._policy.refuse(recipient)

    def _header(self, recipient: bytes) -> bytes:
        received = f"from {self.peer} by {self._host} with QMTP; {rfc5322_date(self._now())}"
        return b"Return-Path: <%b>\nDelivered-To: %b\nReceived: %b\n" % (
            self._sender,
            recipient,
            received.encode("utf-8", "surrogateescape"),
        )

    def _commit(self, batch: list[_Answer]) -> None:
        """Make the batch durable, and only then let its responses out."""
        names = [answer.name for answer in batch if answer.name]
        durable = True
        if names:
            try:
                self._maildir.new.sync()
            except LocalError as error:
                durable = False
                self._log(Importance.ERROR, f"{self.peer}: {error}; {len(names)} copies withdrawn")
                self._withdraw(names)
        for answer in batch:
            response = answer.response if durable or not answer.name else _TROUBLE
            self._output += netstring.encode(response.status.value.encode() + response.raw)
            self._tell(answer, response)

    def _withdraw(self, names: list[bytes]) -> None:
        """Take back what the client will send again."""
        for name in names:
            try:
                self._maildir.new.discard(name)
            except LocalError as error:
                # It stays, and is there twice after the client's next try: better than never.
                self._log(Importance.ERROR, f"{self.peer}: {error}")

    def _tell(self, answer: _Answer, response: Response) -> None:
        who = f"{self.peer}: <{_shown(answer.sender)}> to <{_shown(answer.recipient)}>"
        if response.status is Status.ACCEPTED:
            name = printable(answer.name)
            self._log(Importance.DETAIL, f"{who}: accepted, {answer.size} bytes as {name}")
        else:
            word = "refused" if response.status is Status.FAILED else "deferred"
            self._log(Importance.NOTICE, f"{who}: {word}: {response.text}")


def _refusal(text: str) -> Response:
    return Response(Status.FAILED, text.encode())


def _shown(address: bytes) -> str:
    return printable(address[:_SHOWN])
