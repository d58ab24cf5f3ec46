"""Delivery of a package: which recipients are refused, what the destination gets, the answers.

Recipients are checked in the selector's thread. Everything that waits for a disk or a
server is in `DeliveryAgent.deliver`, which runs in another thread.
"""

import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from maildirqmtp.errors import LocalError
from maildirqmtp.mail.header import MAX_HEADER, loop_lines
from maildirqmtp.qmtp.protocol import Response, Status, check_address
from maildirqmtp.receiver.destination import Delivery, Destination, Mail, Outcome
from maildirqmtp.receiver.package_log import Answer
from maildirqmtp.receiver.policy import (
    DEFAULT_POLICY,
    MAX_PACKAGE_RECIPIENTS,
    Log,
    Policy,
    Severity,
    silent,
)
from maildirqmtp.receiver.spool import Spool
from maildirqmtp.text import rfc5322_date

#: Most characters of `check_address`'s reason that a refusal quotes.
_REASON = 200
#: Approximate bytes that a recipient and its answer take.
_RECIPIENT_BYTES = 400

_TROUBLE = Response(Status.DEFERRED, b"451 cannot store it now, try again later (#4.3.0)")
_DISK_FULL = Response(Status.DEFERRED, b"452 not enough disk space, try again later (#4.3.1)")
_TOO_MANY = Response(Status.DEFERRED, b"452 too many recipients in one package (#4.5.3)")
_NO_RECIPIENT = Response(Status.FAILED, b"553 the recipient is empty (#5.1.3)")


@dataclass(slots=True)
class Package:
    """A package whose last byte has arrived.

    `refusal`, if there is one, answers all recipients, and `text` may be None; `owed` are
    the recipients that are not checked yet. `taken` are the indexes in `answers` of the
    recipients that `delivery` answers; `delivered` is how many of them it was given.
    """

    sender: bytes
    owed: deque[bytes]
    text: Spool | None
    refusal: Response | None
    answers: list[Answer] = field(default_factory=list)
    delivery: Delivery | None = None
    taken: list[int] = field(default_factory=list)
    delivered: int = 0

    @property
    def load(self) -> int:
        """The approximate bytes that it holds in memory or in a file."""
        text = self.text.size if self.text is not None else 0
        return text + _RECIPIENT_BYTES * (len(self.answers) + len(self.owed))

    def discard(self) -> None:
        """Free its text; harmless twice."""
        if self.text is not None:
            self.text.discard()


class Batch:
    """Packages of one client that are delivered together, in a thread.

    `abandoned` says that the client has gone, and nobody needs the answers; `no_more`, that
    nothing more of it is to be handed on.
    """

    __slots__ = ("abandoned", "load", "no_more", "packages")

    def __init__(self, packages: list[Package]) -> None:
        self.packages = packages
        self.load = sum(package.load for package in packages)
        self.abandoned = False
        self.no_more = threading.Event()

    @property
    def waits(self) -> bool:
        """False if every answer is known already, so that nothing is to be stored."""
        return any(package.taken for package in self.packages)

    def abandon(self) -> None:
        """Note that the client has gone. For any thread."""
        self.abandoned = True
        self.no_more.set()

    def discard(self) -> None:
        """Free the texts; harmless twice."""
        for package in self.packages:
            package.discard()


class DeliveryAgent:
    """Delivers the packages of one client.

    `peer` is its address, for log and Received lines; `user` the ID of a local user.
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
        self._destination = destination
        self._peer = peer
        self._policy = policy
        self._log = log
        self._now = now
        self._user = user
        self._host = socket.gethostname()

    def refuse_length(self, length: int) -> Response | None:
        """Return why a message of `length` bytes is not taken; None if it is."""
        limit = self._policy.max_size
        if length > limit:
            return _refusal(f"552 message of {length} bytes; at most {limit} are taken (#5.3.4)")
        if not self._policy.min_free:
            return None
        try:
            free = self._destination.free_bytes()
        except LocalError as error:
            self._complain(error)
            return _TROUBLE
        return _DISK_FULL if free - length < self._policy.min_free else None

    def package(
        self,
        sender: bytes,
        recipients: Iterable[bytes],
        text: Spool | None,
        refusal: Response | None,
    ) -> Package:
        """Return the package, with the refusal of all its recipients if there is one."""
        if text is not None and text.trouble is not None:
            self._complain(text.trouble)
        if refusal is None:
            refusal = self._refuse_package(sender, text)
        return Package(sender, deque(recipients), text, refusal)

    def _refuse_package(self, sender: bytes, text: Spool | None) -> Response | None:
        reason = check_address(sender, "sender")
        if reason is not None:
            return _refusal(f"553 {reason[:_REASON]} (#5.1.7)")
        try:
            received = 0 if text is None else loop_lines(text.top(MAX_HEADER))
        except LocalError as error:
            self._complain(error)
            return _TROUBLE
        if received:
            return _refusal(f"554 {received} Received lines: a mail loop (#5.4.6)")
        return None

    def check(self, package: Package) -> None:
        """Refuse the next recipient, or leave the answer to the delivery."""
        recipient = package.owed.popleft()
        refusal = self._refuse(package, recipient)
        if refusal is None:
            package.taken.append(len(package.answers))
        # A recipient that is taken counts as deferred until the commit has succeeded.
        package.answers.append(Answer(recipient, Outcome(refusal or _TROUBLE)))

    def _refuse(self, package: Package, recipient: bytes) -> Response | None:
        if package.refusal is not None:
            return package.refusal
        if len(package.answers) >= MAX_PACKAGE_RECIPIENTS:
            return _TOO_MANY
        if not recipient:
            return _NO_RECIPIENT
        reason = check_address(recipient, "recipient")
        if reason is not None:
            return _refusal(f"553 {reason[:_REASON]} (#5.1.3)")
        return self._policy.refuse(recipient)

    def deliver(self, batch: "Batch") -> None:
        """Deliver packages that were checked, and set their answers. For any thread.

        Once the batch is abandoned nothing more is begun, and what is not committed is
        withdrawn; likewise after an exception such as `MemoryError`, which is raised again.
        """
        try:
            for package in batch.packages:
                if not batch.abandoned:
                    self._deliver(package, batch.no_more)
            if not batch.abandoned:
                self._commit(batch.packages)
                return
        except BaseException:
            self._withdraw(batch.packages)
            raise
        self._withdraw(batch.packages)

    def _deliver(self, package: Package, no_more: threading.Event) -> None:
        text = package.text
        if not package.taken or text is None or text.trouble is not None:
            return
        try:
            now_s = self._now()
            received = self._received(now_s)
            mail = Mail(package.sender, text, received, now_s, self._user, no_more)
            package.delivery = self._destination.begin(mail)
            for place in package.taken:
                package.delivery.deliver(package.answers[place].recipient)
                package.delivered += 1
        except LocalError as error:
            # The next recipients of the same text would meet the same trouble.
            self._complain(error)

    def _received(self, now_s: float) -> bytes:
        line = f"Received: from {self._peer} by {self._host} with QMTP; {rfc5322_date(now_s)}"
        return line.encode("utf-8", "surrogateescape") + b"\n"

    def _commit(self, packages: Sequence[Package]) -> None:
        """Have the destination commit what was delivered to it, and take its answers.

        If that fails, the recipients of all these packages are deferred.
        """
        under_way = [package for package in packages if package.delivered]
        if not under_way:
            return
        deliveries = [package.delivery for package in under_way]
        try:
            self._destination.commit(deliveries)
        except LocalError as error:
            recipients = sum(package.delivered for package in under_way)
            self._complain(f"{error}; {recipients} recipients deferred")
            self._withdraw(under_way)
            return
        for package in under_way:
            assert package.delivery is not None
            places = package.taken[: package.delivered]
            for place, outcome in zip(places, package.delivery.outcomes, strict=True):
                package.answers[place] = Answer(package.answers[place].recipient, outcome)

    def _withdraw(self, packages: Sequence[Package]) -> None:
        """Withdraw what was delivered of packages that were not committed."""
        deliveries = [p.delivery for p in packages if p.delivery is not None]
        for error in self._destination.withdraw(deliveries):
            # The copy stays, and there are two after the client's next try: better than none.
            self._complain(error)

    def _complain(self, trouble: LocalError | str) -> None:
        self._log(Severity.ERROR, f"{self._peer}: {trouble}")


def _refusal(text: str) -> Response:
    return Response(Status.FAILED, text.encode())
