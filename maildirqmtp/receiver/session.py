"""A QMTP session: bytes in, response bytes out, no sockets.

What happens to a package, in this order; a crash between any two of the steps
loses nothing that was acknowledged:

    1  its text arrives            in memory, or in a file without a name
    2  its last byte arrives       the recipients are checked, one by one
    3  a copy for each recipient   tmp/X written and fsynced, linked to new/X
    4  all its copies are there    one fsync of new/, also for other packages
    5  the path is checked         is it still the maildir that was written to?
    6  its responses go out        all together; K only for what passed 4 and 5

The `workers` do steps 3 to 5 in batches of packages, several batches at once, while the next
packages arrive. The responses still go out in the order of the packages. Those of one package go
out together, because a client may take one response followed by silence as the sign of a server
that answers once for all recipients.

A client that goes away before step 2 gets no response, and nothing is stored
(qmtp.txt, section 3). Once it has gone, none of its batches is begun, and a batch that is not
committed is withdrawn; the copies of a committed batch stay, in doubt for the client.
"""

import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

from maildirqmtp import netstring
from maildirqmtp.errors import ProtocolError
from maildirqmtp.qmtp.package_reader import MessageData, MessageStart, PackageEnd, PackageReader
from maildirqmtp.qmtp.protocol import ENCODING_CRLF, MAX_MESSAGE, Response
from maildirqmtp.receiver.delivery import Batch, DeliveryAgent, Package
from maildirqmtp.receiver.destination import Destination
from maildirqmtp.receiver.package_log import PackageLog
from maildirqmtp.receiver.policy import DEFAULT_POLICY, Log, Policy, silent
from maildirqmtp.receiver.spool import Spool
from maildirqmtp.transport.thread_pool import Here, Job, Workers

#: Recipients checked in one `work`; other clients wait that long.
CHECKED_RECIPIENTS = 256
#: Bytes of a batch; the last package may exceed it.
BATCH_BYTES = 256 << 10
#: Batches of one client under way at once: it must not have all threads.
MAX_BATCHES = 4
#: Bytes of packages under way beyond which no further one is taken.
MAX_LOAD = 1 << 20


class Session:
    """One client's session, from its bytes to its responses.

    Call `feed`, then `work` while `can_work`, then `take_output`, and that again whenever a batch
    is `ready`; `receive` does all of this, if the workers run a batch at once. `ended` is true when
    no more packages will come: after a violation of the protocol, which `violation` names,
    or `wind_down`. `busy` is true while input is left to handle, perhaps later. Holds at most
    1 MiB of recipients, 256 KiB of text, the bytes of one `feed`, packages under way of `MAX_LOAD`
    bytes plus the last batch, and the responses not yet taken.

    `peer` is the client's address, for log and Received lines; `user` the ID of
    its user on this machine, if it is a local one.
    """

    def __init__(
        self,
        destination: Destination[Any],
        peer: str,
        policy: Policy = DEFAULT_POLICY,
        log: Log = silent,
        now: Callable[[], float] = time.time,
        workers: Workers | None = None,
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
        self._hurries = False
        # The package now arriving: its text, and the refusal of all its recipients.
        self._in_message = False
        self._text: Spool | None = None
        self._refusal: Response | None = None
        #: The batch being gathered; only its last package may have recipients to check.
        self._packages: list[Package] = []
        self._gathered = 0
        self._workers = workers or Here()
        self._under_way: deque[tuple[Batch, Job[None]]] = deque()
        self._load = 0

    @property
    def between_packages(self) -> bool:
        """True if the client may go away without losing anything."""
        return self._reader.between_packages and not (self._packages or self._under_way)

    @property
    def waiting(self) -> bool:
        """True while packages are being delivered, or their responses are not taken yet."""
        return bool(self._under_way)

    @property
    def ready(self) -> bool:
        """True if the next responses can be taken."""
        return bool(self._under_way) and self._under_way[0][1].done

    @property
    def can_work(self) -> bool:
        """True if `work` has something to do now."""
        return self.busy and len(self._under_way) < MAX_BATCHES and self._load <= MAX_LOAD

    def feed(self, data: bytes) -> None:
        """Take bytes from the client."""
        if not self.ended:
            self._reader.feed(data)
            self.busy = True

    def take_output(self) -> bytes:
        """Return the responses of the next batch, if it is ready, and log its packages.

        Raises what delivering them raised, such as `MemoryError`.
        """
        output = bytearray()
        if self.ready:
            batch, job = self._under_way.popleft()
            self._load -= batch.load
            job.result()
            for package in batch.packages:
                for answer in package.answers:
                    response = answer.outcome.response
                    output += netstring.encode(response.status.value.encode() + response.raw)
                self._package_log(package.sender, package.answers)
        return bytes(output)

    def receive(self, data: bytes) -> bytes:
        """Take bytes, deliver every complete package, and return the responses."""
        self.feed(data)
        output = b""
        while self.busy or self.ready:
            self.work()
            output += self.take_output()
        return output

    def wind_down(self) -> None:
        """End after the package now arriving; ignore what follows it."""
        self._last = True
        self.busy = not self.ended

    def hurry(self) -> None:
        """Have no more handed on to a next server: what is done by then is answered soon."""
        self._hurries = True
        for batch, _ in self._under_way:
            batch.no_more.set()

    def close(self) -> None:
        """Discard packages without a response; harmless twice."""
        for package in self._packages:
            package.discard()
        self._packages = []
        while self._under_way:
            batch, job = self._under_way.popleft()
            batch.abandon()
            if self._workers.cancel(job):
                batch.discard()
        self._load = 0
        self._end_session()
        self._package_log.close()

    def work(self) -> None:
        """Handle some of the input and hand on complete packages; `can_work` if more is left."""
        checked = 0
        while checked < CHECKED_RECIPIENTS and self.can_work:
            if self._packages and self._packages[-1].owed:
                self._agent.check(self._packages[-1])
                checked += 1
            elif (
                len(self._packages) >= self._destination.packages_together
                or self._gathered >= BATCH_BYTES
            ):
                self._hand_on()
            elif not self._advance():
                break
        if self._packages and not self._packages[-1].owed:
            self._hand_on()

    def _hand_on(self) -> None:
        """Submit the packages for delivery; if nothing is to be stored, deliver them at once."""
        batch = Batch(self._packages)
        if self._hurries:
            batch.no_more.set()
        self._packages = []
        self._gathered = 0
        workers = self._workers if batch.waits else Here()
        try:
            job = workers.submit(partial(_deliver, self._agent, batch))
        except BaseException:
            batch.abandon()
            batch.discard()  # `close` does not know it
            raise
        self._load += batch.load
        self._under_way.append((batch, job))

    def _end_session(self) -> None:
        self.ended = True
        self.busy = False
        self._in_message = False
        self._drop_text()

    def _advance(self) -> bool:
        """Handle the next event; return False if that needs more bytes, or the session ends."""
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
        # From here on the package owns the text.
        text, self._text = self._text, None
        package = self._agent.package(event.sender, event.recipients, text, self._refusal)
        self._packages.append(package)
        self._gathered += package.load

    def _drop_text(self) -> None:
        if self._text is not None:
            self._text.discard()
            self._text = None


def _deliver(agent: DeliveryAgent, batch: Batch) -> None:
    """Deliver a batch, in a worker's thread, and free its texts."""
    try:
        agent.deliver(batch)
    finally:
        batch.discard()
