"""Removes accepted small messages, batch by batch, in a second process where there are many.

put     has them removed
take    tells what became of them, in the same order
note    counts those that were removed
"""

from __future__ import annotations

import os
import sys
from collections import Counter, deque
from typing import TYPE_CHECKING

from maildirqmtp.maildir import small

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from maildirqmtp.forwarder.removals import Removals
    from maildirqmtp.forwarder.report import Report
    from maildirqmtp.forwarder.small_messages import SmallBatch
    from maildirqmtp.maildir.maildir import Maildir
    from maildirqmtp.maildir.removal_process import RemovalProcess
    from maildirqmtp.maildir.state import State

#: A run that begins with so many messages has them removed by a second process.
MANY = 1_000
#: Most messages that the process has to remove and that were not told about.
MAX_WAITING = 512


class SmallRemovals:
    """The removals of small messages of one maildir.

    They count among the `removals`; `sync_if_due` is called after each `note`.
    """

    def __init__(
        self,
        maildir: Maildir,
        report: Report,
        removals: Removals,
        state: State | None,
        sync_if_due: Callable[[], None],
    ) -> None:
        self._maildir = maildir
        self._report = report
        self._removals = removals
        self._state = state
        self._sync_if_due = sync_if_due
        self._process: RemovalProcess | None = None
        #: Batch, index of the first and of the one behind the last, of those not told about.
        self._put: deque[tuple[SmallBatch, int, int]] = deque()
        self._results = bytearray()

    def expect(self, messages: int) -> None:
        """Prepare for so many messages: with `MANY`, start a second process if that is of use.

        To be called before there is a connection: the process would keep it open.
        """
        if messages < MANY or len(os.sched_getaffinity(0)) < 2:
            return
        threading = sys.modules.get("threading")
        if threading is not None and threading.active_count() > 1:
            return  # a fork would take the locks that they hold with it
        from maildirqmtp.maildir.removal_process import RemovalProcess

        try:
            self._process = RemovalProcess((self._maildir.new, self._maildir.cur))
        except OSError:
            self._process = None  # this process does it, as in a shorter run

    def end_process(self) -> None:
        """End the second process, once nothing is `waiting`."""
        if self._process is not None:
            self._process.close()
            self._process = None

    @property
    def waiting(self) -> int:
        """How many messages were put that `take` can only tell about later."""
        return 0 if self._process is None else self._process.waiting

    def put(self, batch: SmallBatch, first: int, stop: int) -> int:
        """Have accepted messages removed; return the index of the first that must wait for `take`.

        With a sidecar, or if removals cannot be made durable, they are left to be settled one by
        one.
        """
        room = min(self._removals.room, MAX_WAITING) - self.waiting
        if self._maildir.may_have_envelopes():
            room = 0
        has_process = self._process is not None and self._process.is_alive
        if self.waiting and (room <= 0 or not has_process):
            return first
        if room > 0:
            stop = min(stop, first + room)
        self._put.append((batch, first, stop))
        messages = batch.messages[first:stop]
        if room <= 0:
            self._results += bytes(len(messages))
        elif self._process is not None and has_process:
            self._process.put([m[:3] for m in messages])
        else:
            remove = small.remove
            self._results += bytes(
                [remove(folder, name, identity) for folder, name, identity, *_ in messages]
            )
        return stop

    def take(self, wait: bool = False) -> Iterator[tuple[SmallBatch, int, bytes]]:
        """Yield batches, the index of a first message, and for this one and the next a byte each.

        1: it was removed; 0: it is to be settled by itself. `wait`: until something is known.
        """
        if self._process is not None:
            self._results += self._process.take(wait)
        while self._results:
            batch, first, stop = self._put.popleft()
            found = bytes(self._results[: stop - first])
            del self._results[: stop - first]
            if first + len(found) < stop:
                self._put.appendleft((batch, first + len(found), stop))
            yield batch, first, found

    def note(self, batch: SmallBatch, first: int, stop: int) -> None:
        """Count messages that were removed, and forget them; that is still to be made durable."""
        removed = batch.messages[first:stop]
        self._report.small_accepted(len(removed), batch.text_bytes(first, stop))
        for folder, count in Counter([m[0] for m in removed]).items():
            self._removals.add(folder, count)
        self._sync_if_due()
        if self._state is not None:
            self._state.forget(m[1] for m in removed)
