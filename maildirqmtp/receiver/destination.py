"""Where the receiver's mail goes: a maildir, a queue, another mail server.

A package goes through these calls, all of which may wait for a disk or a server:

    begin      once its last byte has come
    deliver    for each recipient that the policy lets pass
    commit     after its last recipient, also for several packages at once
    outcomes   are its answers: K only for what the destination is responsible for now
    withdraw   in place of commit, or after a commit that raised

The calls of one package are made one after the other, perhaps from different
threads; those of different packages may overlap.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from itertools import count
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeVar

from maildirqmtp.qmtp.protocol import Response, Status
from maildirqmtp.receiver.spool import Spool, SpoolPlace

if TYPE_CHECKING:
    from maildirqmtp.errors import LocalError

#: Packages of a commit that end with an fsync of a directory: they share it.
SHARED_FSYNC_PACKAGES = 16

_sequence = count(1)


class Mail(NamedTuple):
    """The content of one package, without its recipients.

    `sender` is raw, `received` the lines to put on top of the text, each with its
    LF; `now_s` is the time of arrival in seconds since the epoch, `user` the ID of
    the local user who sends it, None for others. `no_more` is set once no more of
    it is to be begun: the client has gone and will send it again, or the receiver stops.
    """

    sender: bytes
    text: Spool
    received: bytes
    now_s: float
    user: int | None = None
    no_more: threading.Event = threading.Event()


class Outcome(NamedTuple):
    """The response for one recipient, and the file of `size` bytes that was made, if any."""

    response: Response
    name: bytes = b""
    size: int = 0


class Delivery(Protocol):
    """One package on its way."""

    def deliver(self, recipient: bytes) -> int:
        """Take one more recipient, raw; return how many bytes were written for it.

        Raises `LocalError` if nothing more of this package can be delivered now;
        this recipient and the next ones are then deferred.
        """

    @property
    def outcomes(self) -> Sequence[Outcome]:
        """What became of each recipient that `deliver` took, in order; final after `commit`."""


D = TypeVar("D", bound=Delivery)


class Destination(SpoolPlace, Protocol[D]):
    """Where the mail goes; large texts wait in its `tmp` until they are complete."""

    @property
    def packages_together(self) -> int:
        """The most packages of one `commit`; the answers of all of them wait for the last one."""

    def free_bytes(self) -> int:
        """Return the bytes left for mail. Raises `LocalError` if that is unknown."""

    def begin(self, mail: Mail) -> D:
        """Begin to deliver a package."""

    def commit(self, deliveries: Sequence[D]) -> None:
        """Carry the deliveries out; their outcomes are final when this returns.

        Raises `LocalError` if that fails; then none of them counts: the caller
        withdraws them, and defers all their recipients.
        """

    def withdraw(self, deliveries: Sequence[D]) -> list[LocalError]:
        """Take back what was not committed; return the errors."""

    def abort(self) -> None:
        """Make calls that wait for another server return soon, with Z. For any thread."""

    def close(self) -> None:
        """Release what is held; harmless twice."""


def accepted(now_s: float) -> Response:
    """Return a K whose unique text, with time and process, helps to find the package in logs."""
    text = f"ok {int(now_s)} qp {os.getpid()}.{next(_sequence)}"
    return Response(Status.ACCEPTED, text.encode())
