"""Delivery of a package into the storage: who is refused, the copies, and what is committed."""

import os
import socket
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import count

from maildirqmtp.errors import LocalError
from maildirqmtp.mail.header import MAX_HEADER, loop_lines
from maildirqmtp.qmtp.protocol import Response, Status, check_address
from maildirqmtp.receiver.package_log import Answer
from maildirqmtp.receiver.policy import (
    DEFAULT_POLICY,
    MAX_PACKAGE_BYTES,
    MAX_PACKAGE_RECIPIENTS,
    Log,
    Policy,
    Severity,
    silent,
)
from maildirqmtp.receiver.spool import Spool
from maildirqmtp.receiver.storage import Copy, Storage
from maildirqmtp.text import rfc5322_date

#: Characters of a refusal's text that come from a check of an address.
_REASON = 200

_TROUBLE = Response(Status.DEFERRED, b"451 cannot store it now, try again later (#4.3.0)")
_DISK_FULL = Response(Status.DEFERRED, b"452 not enough disk space, try again later (#4.3.1)")
_TOO_MANY = Response(Status.DEFERRED, b"452 too many recipients in one package (#4.5.3)")
_TOO_MUCH = Response(Status.DEFERRED, b"452 too many recipients for its size (#4.5.3)")
_NO_RECIPIENT = Response(Status.FAILED, b"553 the recipient is empty (#5.1.3)")

_sequence = count(1)


@dataclass(slots=True)
class Package:
    """A package whose last byte has arrived.

    `text` is None where `refusal` is the answer to all recipients; `owed` are
    the recipients without an answer, `written` the bytes of their copies.
    """

    sender: bytes
    owed: deque[bytes]
    text: Spool | None
    refusal: Response | None
    answers: list[Answer] = field(default_factory=list)
    written: int = 0
    failed: bool = False


class DeliveryAgent:
    """Delivers the packages of one client; `peer` is its address, for log and Received lines."""

    def __init__(
        self,
        storage: Storage,
        peer: str,
        policy: Policy = DEFAULT_POLICY,
        log: Log = silent,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._storage = storage
        self._peer = peer
        self._policy = policy
        self._log = log
        self._now = now
        self._host = socket.gethostname()

    def refuse_length(self, length: int) -> Response | None:
        """Return why a message of `length` bytes is not taken; None where it is."""
        limit = self._policy.max_size
        if length > limit:
            return _refusal(f"552 message of {length} bytes; at most {limit} are taken (#5.3.4)")
        if not self._policy.min_free:
            return None
        try:
            free = self._storage.free_bytes()
        except OSError:
            return _TROUBLE
        return _DISK_FULL if free - length < self._policy.min_free else None

    def package(
        self,
        sender: bytes,
        recipients: Iterable[bytes],
        text: Spool | None,
        refusal: Response | None,
    ) -> Package:
        """Return the package, with what refuses it as a whole."""
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
        except OSError:
            return _TROUBLE
        if received:
            return _refusal(f"554 {received} Received lines: a mail loop (#5.4.6)")
        return None

    def answer(self, package: Package) -> int:
        """Deliver to the next recipient, or refuse; return the bytes written."""
        recipient = package.owed.popleft()
        response = self._refuse(package, recipient)
        answer = self._store(package, recipient) if response is None else None
        if answer is None:
            answer = Answer(recipient, response or _TROUBLE)
        package.answers.append(answer)
        package.written += answer.size
        return answer.size

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

    def _store(self, package: Package, recipient: bytes) -> Answer | None:
        """Store a copy; None where that cannot be done now."""
        text = package.text
        if text is None or text.trouble is not None or package.failed:
            return None
        room = max(MAX_PACKAGE_BYTES, self._policy.max_size) - package.written
        if package.written and text.size > room:
            return Answer(recipient, _TOO_MUCH)
        header = self._header(package.sender, recipient)
        try:
            copy = self._storage.store(text.pieces(header))
        except LocalError as error:
            # The next recipients of the same text would meet the same trouble.
            package.failed = True
            self._complain(error)
            return None
        accepted = f"ok {int(self._now())} qp {os.getpid()}.{next(_sequence)}"
        response = Response(Status.ACCEPTED, accepted.encode())
        return Answer(recipient, response, copy, len(header) + text.size)

    def _header(self, sender: bytes, recipient: bytes) -> bytes:
        received = f"from {self._peer} by {self._host} with QMTP; {rfc5322_date(self._now())}"
        return b"Return-Path: <%b>\nDelivered-To: %b\nReceived: %b\n" % (
            sender,
            recipient,
            received.encode("utf-8", "surrogateescape"),
        )

    def commit(self, packages: Sequence[Package]) -> None:
        """Make all copies durable; where that fails, their recipients are deferred instead."""
        copies = _copies(packages)
        if not copies:
            return
        try:
            self._storage.commit(copies)
        except LocalError as error:
            self._complain(f"{error}; {len(copies)} copies withdrawn")
            self.withdraw(packages)
            for package in packages:
                package.answers = [
                    a if a.copy is None else Answer(a.recipient, _TROUBLE) for a in package.answers
                ]

    def withdraw(self, packages: Sequence[Package]) -> None:
        """Remove the copies of packages that were not committed."""
        for error in self._storage.withdraw(_copies(packages)):
            # It stays, and is there twice after the client's next try: better than never.
            self._complain(error)

    def _complain(self, trouble: LocalError | str) -> None:
        self._log(Severity.ERROR, f"{self._peer}: {trouble}")


def _copies(packages: Sequence[Package]) -> list[Copy]:
    return [a.copy for package in packages for a in package.answers if a.copy is not None]


def _refusal(text: str) -> Response:
    return Response(Status.FAILED, text.encode())
