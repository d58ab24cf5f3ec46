"""The packages in flight on a connection, put and not yet answered, in the order of the stream.

A response belongs to the oldest of them. Messages with all their answers come out by `take_done`;
accepted packages of a batch come out by `take_accepted`, in ranges instead of one by one.
"""

from bisect import bisect_right
from collections import deque
from typing import Any, Generic

from maildirqmtp.errors import ProtocolError
from maildirqmtp.pipeline.outgoing import MessageT, PackageBatch, PackageInFlight
from maildirqmtp.qmtp.protocol import Response, ResponseReader, Status

#: A batch and a range of its packages: the first index, and the index after the last.
AcceptedRun = tuple[PackageBatch[MessageT], int, int]


class InFlight(Generic[MessageT]):
    """See the module's docstring. `packages` and `bytes` count what is in flight."""

    __slots__ = ("_accepted", "_done", "_entries", "bytes", "packages")

    def __init__(self) -> None:
        self.packages = 0
        self.bytes = 0
        self._entries: deque[PackageInFlight[MessageT] | PackageBatch[MessageT]] = deque()
        self._done: list[MessageT] = []
        self._accepted: list[AcceptedRun[MessageT]] = []

    def oldest_end(self) -> int | None:
        """Return the offset in the stream of the byte after the oldest package, if there is one."""
        return self._entries[0].end if self._entries else None

    def newest(self) -> PackageInFlight[MessageT]:
        """Return the package put last; it must not be in a batch."""
        package = self._entries[-1]
        assert isinstance(package, PackageInFlight)
        return package

    def put(self, package: PackageInFlight[MessageT]) -> None:
        """Add a package."""
        self._entries.append(package)
        self.packages += 1
        self.bytes += package.size

    def put_batch(self, batch: PackageBatch[MessageT]) -> None:
        """Add a batch."""
        self._entries.append(batch)
        self.packages += len(batch.sizes)
        self.bytes += sum(batch.sizes)

    def answer_batches(self, reader: ResponseReader, sent: int) -> int:
        """Take the next responses while they belong to packages of batches; return how many.

        Only to packages that are out whole: `sent` bytes of the stream are out. It stops before a
        malformed response, which `reader.next` then reports.
        """
        total = 0
        while self._entries and isinstance(batch := self._entries[0], PackageBatch):
            before, out = batch.next, bisect_right(batch.ends, sent, batch.next)
            while batch.next < out:
                count = reader.take_accepted(out - batch.next)
                if count:
                    self._accepted.append((batch, batch.next, batch.next + count))
                    batch.next += count
                elif (response := _next_valid(reader)) is not None:
                    message = batch.expand(batch.next)
                    message.answers[0] = response
                    message.unanswered = 0
                    self._done.append(message)
                    batch.next += 1
                else:
                    break
            total += batch.next - before
            self.bytes -= sum(batch.sizes[before : batch.next])
            if batch.next < len(batch.sizes):
                break
            self._entries.popleft()
        self.packages -= total
        return total

    def answer(self, response: Response) -> PackageInFlight[MessageT]:
        """Give a response to the oldest package, which must not be in a batch; return it."""
        package = self._entries[0]
        assert isinstance(package, PackageInFlight)
        message = package.message
        message.answers[package.next] = response
        message.unanswered -= 1
        package.next += 1
        if not message.unanswered:
            message.close()
            self._done.append(message)
        if package.next == package.stop:
            self._entries.popleft()
            self.packages -= 1
            self.bytes -= package.size
        return package

    def take_done(self) -> list[MessageT]:
        """Return the messages that got their last answer since the last call."""
        done, self._done = self._done, []
        return done

    def take_accepted(self) -> list[AcceptedRun[MessageT]]:
        """Return the packages of batches that were accepted since the last call."""
        accepted, self._accepted = self._accepted, []
        return accepted

    def take_unfinished(self, sent: int, arrived: int) -> list[MessageT]:
        """Return the messages in flight, closed, and forget them.

        On each, `doubtful` has the recipients whose package is out whole and was not answered. Of
        the `sent` bytes of the stream, `arrived` have reached the other end's kernel.
        """
        unfinished: dict[int, MessageT] = {}
        for entry in self._entries:
            if isinstance(entry, PackageBatch):
                for index in range(entry.next, len(entry.sizes)):
                    message = entry.expand(index)
                    unfinished[id(message)] = message
                    if entry.ends[index] <= sent:
                        message.doubtful = (0,)
            else:
                message = entry.message
                message.close()
                entry.note_arrived(min(arrived, sent))
                unfinished[id(message)] = message
                if entry.end <= sent:
                    message.doubtful += tuple(range(entry.next, entry.stop))
        self._entries.clear()
        self.packages = self.bytes = 0
        return list(unfinished.values())


def has_one_answer(package: PackageInFlight[Any]) -> bool:
    """Return whether a fenced package has one answer: perhaps all that such a server gives.

    A second one shows that it answers for each recipient.
    """
    return package.next == package.first + 1


def take_back(package: PackageInFlight[Any]) -> None:
    """Forget the refusals of a fenced package's recipients, while others have no answer.

    If the server answers once per package, a refusal is about all of them, but would
    be reported for the first one only, perhaps a good address. An acceptance of the
    first one is true either way.
    """
    message = package.message
    for index in range(package.first, package.next):
        answer = message.answers[index]
        if answer is not None and answer.status is not Status.ACCEPTED:
            message.answers[index] = None
            message.unanswered += 1
            message.doubtful += (index,)


def _next_valid(reader: ResponseReader) -> Response | None:
    """Return the next response; None if none has arrived, or a malformed one has."""
    try:
        return reader.next()
    except ProtocolError:
        return None  # what was taken before it has to be counted
