"""A QMTP session: bytes in, response bytes out, no sockets.

What happens to a package, in this order; a crash between any two of the steps
loses nothing that was acknowledged:

    1  its text arrives            in memory, or in a file without a name
    2  its last byte arrives       the recipients are checked, one by one
    3  a copy for each recipient   tmp/X written and fsynced, linked to new/X
    4  all its copies are there    one fsync of new/, also for other packages
    5  the path is checked         is it still the maildir that was written to?
    6  its responses go out        all together; K only for what passed 4 and 5

Together, because a client may take one response, and silence after it, for a
server that answers once for all recipients.

A client that goes away before step 2 gets no response, and nothing is stored
(qmtp.txt, section 3).
"""

import time
from collections.abc import Callable
from typing import Any

from maildirqmtp import netstring
from maildirqmtp.errors import ProtocolError
from maildirqmtp.qmtp.package_reader import MessageData, MessageStart, PackageEnd, PackageReader
from maildirqmtp.qmtp.protocol import ENCODING_CRLF, MAX_MESSAGE, Response
from maildirqmtp.receiver.delivery import DeliveryAgent, Package
from maildirqmtp.receiver.destination import Destination
from maildirqmtp.receiver.package_log import PackageLog
from maildirqmtp.receiver.policy import DEFAULT_POLICY, Log, Policy, silent
from maildirqmtp.receiver.spool import Spool

#: Recipients delivered to in one `work`; other clients wait that long.
BATCH_RECIPIENTS = 64
#: Bytes written in one `work`; the last copy may exceed it.
BATCH_BYTES = 32 << 20


class Session:
    """One client's session, from its bytes to its responses.

    `feed` bytes, then call `work` while `busy`, then `take_output`; `receive`
    does it all at once. `ended` is true when nothing more will come: after a
    violation of the protocol, which `violation` names, or `wind_down`. Holds
    at most 1 MiB of recipients, 256 KiB of text and a few times what one `feed`
    brought, and the responses not yet taken: of one batch and one package.

    `peer` is the client's address, for log and Received lines; `user` the number
    of its user, where it is a local one.
    """

    def __init__(
        self,
        destination: Destination[Any],
        peer: str,
        policy: Policy = DEFAULT_POLICY,
        log: Log = silent,
        now: Callable[[], float] = time.time,
        user: int | None = None,
    ) -> None:
        self.peer = peer
        self.busy = False
        self.ended = False
        self.violation: str | None = None
        self._destination = destination
        self._agent = DeliveryAgent(destination, peer, policy, log, now, user)
        self._package_log = PackageLog(peer, log)
        self._reader = PackageReader(max(MAX_MESSAGE, policy.max_size))
        self._last = False
        self._output = bytearray()
        # The package that arrives: its text, and why it is refused for all recipients.
        self._in_message = False
        self._text: Spool | None = None
        self._refusal: Response | None = None
        #: Packages without responses; only the last one has recipients without an answer.
        self._packages: list[Package] = []

    @property
    def between_packages(self) -> bool:
        """True where a client may go away without losing anything."""
        return self._reader.between_packages and not self._packages

    def feed(self, data: bytes) -> None:
        """Take bytes from the client."""
        if not self.ended:
            self._reader.feed(data)
            self.busy = True

    def take_output(self) -> bytes:
        """Return the responses that can go out now."""
        output = bytes(self._output)
        self._output.clear()
        return output

    def receive(self, data: bytes) -> bytes:
        """Take bytes, deliver every package that is complete, return the responses."""
        self.feed(data)
        while self.busy:
            self.work()
        return self.take_output()

    def wind_down(self) -> None:
        """End after the package at hand; what follows it is not looked at."""
        self._last = True
        self.busy = not self.ended

    def close(self) -> None:
        """Throw away what has no response; harmless twice."""
        packages, self._packages = self._packages, []
        self._agent.withdraw(packages)
        for package in packages:
            package.discard_text()
        self._end_session()
        self._package_log.close()

    def work(self) -> None:
        """Deliver one batch, and commit what is complete; `busy` tells whether there is more."""
        answered = written = 0
        while answered < BATCH_RECIPIENTS and written < BATCH_BYTES:
            if self._packages and self._packages[-1].owed:
                written += self._agent.answer(self._packages[-1])
                answered += 1
            elif not self._advance():
                break
        # Only the last one can be incomplete. Its responses go out together, later.
        incomplete = self._packages[-1:] if self._packages and self._packages[-1].owed else []
        complete = self._packages[: len(self._packages) - len(incomplete)]
        self._packages = incomplete
        if complete:
            self._commit(complete)

    def _end_session(self) -> None:
        self.ended = True
        self.busy = False
        self._in_message = False
        self._drop_text()

    def _advance(self) -> bool:
        """Handle what comes next; False where that needs more bytes, or never comes."""
        if not self._in_message and (self._last or self.ended):
            self._end_session()
            return False
        try:
            event = self._reader.next()
        except ProtocolError as error:
            self.violation = str(error)
            self._end_session()
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
        self._refusal = self._agent.refuse_length(event.length)
        if self._refusal is None:
            self._text = Spool(self._destination, event.encoding == ENCODING_CRLF)

    def _end(self, event: PackageEnd) -> None:
        self._in_message = False
        if self._text is not None:
            self._text.finish()
        package = self._agent.package(event.sender, event.recipients, self._text, self._refusal)
        self._packages.append(package)
        self._text = None  # the package's now

    def _drop_text(self) -> None:
        if self._text is not None:
            self._text.discard()
            self._text = None

    def _commit(self, packages: list[Package]) -> None:
        """Carry out all deliveries, and only then let the responses out."""
        self._agent.commit(packages)
        for package in packages:
            for answer in package.answers:
                response = answer.outcome.response
                self._output += netstring.encode(response.status.value.encode() + response.raw)
            self._package_log(package.sender, package.answers)
            package.discard_text()
