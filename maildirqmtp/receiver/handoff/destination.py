"""The destination `--deliver HOW`: another mail server, or a command.

Nothing is stored here: the answer is K once the next server or the command has taken
the mail. Large texts wait in files without a name in the directory for temporary files.
"""

from __future__ import annotations

import os
import tempfile
import time
from functools import partial
from typing import TYPE_CHECKING, Protocol

from maildirqmtp.errors import LocalError
from maildirqmtp.maildir.directories import open_directory
from maildirqmtp.maildir.files import Folder, local_error
from maildirqmtp.qmtp.protocol import Response
from maildirqmtp.receiver.destination import Mail, Outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

#: Seconds within which all that a batch hands on must be begun. Its answers go out together, and
#: a forwarder that has none after an hour sends all of it again.
BEGIN_S = 1_800.0
#: Seconds that packages of a batch may wait for each other's answers, and the most packages.
TOGETHER_S, MOST_TOGETHER = 0.05, 16
# How much the last package counts in the average.
_WEIGHT = 0.25


class NextHop(Protocol):
    """What takes the mail: `NextServer`, `Command`. For several threads at once."""

    def deliver(
        self,
        sender: bytes,
        recipients: Sequence[bytes],
        pieces: Callable[[], Iterator[bytes]],
        may_begin: Callable[[], bool],
    ) -> list[Response]:
        """Hand a text on to raw recipients; return an answer for each. May wait.

        Recipients that are not begun when `may_begin` returns false are deferred.
        """

    def abort(self) -> None:
        """Make the threads that are in `deliver` return soon, with Z."""

    def close(self) -> None:
        """Release what no thread uses; harmless twice."""


class HandOffDelivery:
    """One package on its way; see `Delivery`."""

    def __init__(self, mail: Mail, begin_by_s: float) -> None:
        self.mail = mail
        self.begin_by_s = begin_by_s
        self.recipients: list[bytes] = []
        self.outcomes: list[Outcome] = []

    def deliver(self, recipient: bytes) -> int:
        """Take one more recipient; all are handed on together, by `commit`."""
        self.recipients.append(recipient)
        return 0


class HandOff:
    """Hands packages on; see `Destination`. `clock` is monotonic seconds.

    Raises `LocalError` if the directory for temporary files cannot be opened.
    """

    def __init__(self, next_hop: NextHop, clock: Callable[[], float] = time.monotonic) -> None:
        self._next_hop = next_hop
        self._clock = clock
        #: Seconds that handing on one package takes, lately; at first it may take long.
        self._takes_s = TOGETHER_S
        try:
            path = os.fsencode(tempfile.gettempdir())
        except OSError as error:
            raise LocalError("no directory for temporary files can be used; set TMPDIR") from error
        try:
            self._folder = Folder(open_directory(path), path)
        except OSError as error:
            raise local_error("open the directory", path, error) from error
        self._closed = False

    @property
    def packages_together(self) -> int:
        """As many as are handed on in `TOGETHER_S`: the client waits for the answer to the last.

        One, where a scanner takes its time: what it has taken and nobody was told of is sent again.
        """
        return max(1, min(MOST_TOGETHER, int(TOGETHER_S / max(self._takes_s, 0.001))))

    @property
    def tmp(self) -> Folder:
        """The directory for temporary files (TMPDIR)."""
        return self._folder

    def free_bytes(self) -> int:
        """Return the bytes left there. Raises `LocalError` if fstatvfs(3) fails."""
        return self._folder.free_bytes()

    def begin(self, mail: Mail) -> HandOffDelivery:
        """Begin to hand a package on."""
        return HandOffDelivery(mail, self._clock() + BEGIN_S)

    def commit(self, deliveries: Sequence[HandOffDelivery]) -> None:
        """Hand the packages on, one after the other; waits until all have their answers.

        Once the client has gone, or the receiver stops, no more of them is begun.
        """
        for delivery in deliveries:
            mail = delivery.mail
            pieces = partial(mail.text.pieces, mail.received)
            may_begin = partial(self._may_begin, delivery)
            began_s, begins = self._clock(), may_begin()
            answers = self._next_hop.deliver(mail.sender, delivery.recipients, pieces, may_begin)
            if begins:
                # Several threads do this: one of their figures may be lost, which does no harm.
                self._takes_s += _WEIGHT * (self._clock() - began_s - self._takes_s)
            delivery.outcomes = [Outcome(answer) for answer in answers]

    def _may_begin(self, delivery: HandOffDelivery) -> bool:
        return not delivery.mail.no_more.is_set() and self._clock() < delivery.begin_by_s

    def withdraw(self, deliveries: Sequence[HandOffDelivery]) -> list[LocalError]:
        """Do nothing: what was not committed has gone nowhere."""
        return []

    def abort(self) -> None:
        """End deliveries under way, with Z; hand nothing more on."""
        self._next_hop.abort()

    def close(self) -> None:
        """Close the connections; harmless twice."""
        if not self._closed:
            self._closed = True
            self._next_hop.abort()
            self._next_hop.close()
            os.close(self._folder.fd)
