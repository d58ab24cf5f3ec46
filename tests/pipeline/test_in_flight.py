"""Packages in flight, some in batches: which answer belongs to which, and what is in doubt."""

from __future__ import annotations

from itertools import accumulate

import pytest

from maildirqmtp.errors import ProtocolError
from maildirqmtp.forwarder.queued_message import QueuedMessage
from maildirqmtp.pipeline.in_flight import InFlight
from maildirqmtp.pipeline.outgoing import PackageBatch, PackageInFlight
from maildirqmtp.qmtp.protocol import ResponseReader
from tests.fakes import framed, queued

SIZE = 10


class NamedBatch(PackageBatch[QueuedMessage]):
    """Packages whose messages are named after their place."""

    def expand(self, index: int) -> QueuedMessage:
        """See `PackageBatch`."""
        return queued(b"%d.a" % index)


def batch_at(start: int, count: int) -> NamedBatch:
    """A batch that begins at this offset of the stream."""
    made = NamedBatch(b"", [SIZE] * count)
    made.ends = list(accumulate(made.sizes, initial=start))[1:]
    return made


class Stream:
    """What is in flight, and what comes."""

    def __init__(self) -> None:
        self.in_flight: InFlight[QueuedMessage] = InFlight()
        self.reader = ResponseReader()
        self.end = 0

    def put_batch(self, count: int) -> NamedBatch:
        """Put a batch."""
        batch = batch_at(self.end, count)
        self.end = batch.ends[-1]
        self.in_flight.put_batch(batch)
        return batch

    def put(self) -> QueuedMessage:
        """Put a package by itself."""
        one = queued(b"single")
        self.end += SIZE
        self.in_flight.put(PackageInFlight(one, 0, 1, SIZE, self.end))
        return one

    def hear(self, *texts: bytes, sent: int | None = None) -> int:
        """Take responses to batches."""
        self.reader.feed(framed(*texts))
        return self.in_flight.answer_batches(self.reader, self.end if sent is None else sent)

    def accepted(self) -> list[tuple[int, int]]:
        """Return the runs of accepted packages."""
        return [(first, stop) for _, first, stop in self.in_flight.take_accepted()]

    def done(self) -> list[tuple[bytes, list[str]]]:
        """Return what has been answered otherwise."""
        return [(m.message.name, list(map(str, m.answers))) for m in self.in_flight.take_done()]


@pytest.fixture
def stream() -> Stream:
    """An empty stream."""
    return Stream()


def test_what_is_accepted_comes_out_in_runs(stream: Stream) -> None:
    """Each answer belongs to the oldest; one off, and a refused message is removed."""
    stream.put_batch(5)
    assert stream.hear(b"Kok", b"Kok", b"Dno", b"Kother", b"Zlater") == 5
    assert stream.accepted() == [(0, 2), (3, 4)]
    assert stream.done() == [(b"2.a", ["Dno"]), (b"4.a", ["Zlater"])]
    assert (stream.in_flight.packages, stream.in_flight.bytes) == (0, 0)
    assert (stream.accepted(), stream.done()) == ([], [])


def test_answers_go_on_from_batch_to_batch(stream: Stream) -> None:
    """Two batches were put while the first answers were under way."""
    stream.put_batch(2)
    stream.put_batch(2)
    assert stream.hear(b"Kok", b"Kok", b"Kok") == 3
    assert stream.accepted() == [(0, 2), (0, 1)]
    assert (stream.in_flight.packages, stream.in_flight.bytes) == (1, SIZE)
    assert stream.in_flight.oldest_end() == 4 * SIZE


def test_a_package_by_itself_is_left_for_its_own_answer(stream: Stream) -> None:
    """It may have several recipients, and more to be done."""
    stream.put_batch(1)
    one = stream.put()
    stream.put_batch(1)
    assert stream.hear(b"Kok", b"Kone", b"Kok") == 1
    response = stream.reader.next()
    assert response is not None
    stream.in_flight.answer(response)
    assert stream.hear() == 1
    assert stream.done() == [(b"single", ["Kone"])]
    assert stream.in_flight.packages == 0
    assert one.unanswered == 0


def test_an_answer_to_what_is_not_out_whole_is_not_taken(stream: Stream) -> None:
    """A message would count as accepted that the server cannot have."""
    stream.put_batch(3)
    assert stream.hear(b"Kok", b"Kok", b"Kok", sent=2 * SIZE + 9) == 2
    assert stream.reader.next() is not None
    assert stream.in_flight.packages == 1


def test_half_an_answer_is_waited_for(stream: Stream) -> None:
    """What follows it belongs to the next message."""
    stream.put_batch(2)
    stream.reader.feed(b"3:Kok,3:K")
    assert stream.hear() == 1
    stream.reader.feed(b"ok,")
    assert stream.hear() == 1
    assert stream.accepted() == [(0, 1), (1, 2)]


def test_what_is_unfinished_is_in_doubt_only_where_it_is_out(stream: Stream) -> None:
    """What was not sent whole, the server throws away: it does not come twice."""
    stream.put_batch(3)
    stream.put()
    stream.hear(b"Kok")
    left = stream.in_flight.take_unfinished(2 * SIZE, 2 * SIZE)
    assert [(m.message.name, m.doubtful) for m in left] == [
        (b"1.a", (0,)),
        (b"2.a", ()),
        (b"single", ()),
    ]
    assert (stream.in_flight.packages, stream.in_flight.oldest_end()) == (0, None)


def test_what_was_accepted_before_a_malformed_answer_counts() -> None:
    """Else the connection counts as one without answers, and the next message is blamed."""
    stream = Stream()
    stream.put_batch(4)
    stream.reader.feed(framed(b"Kok", b"Kok", b"Kok") + b"12:Dno such user (#5.1.1),")
    assert stream.in_flight.answer_batches(stream.reader, stream.end) == 3
    assert stream.accepted() == [(0, 3)]
    assert (stream.in_flight.packages, stream.in_flight.bytes) == (1, SIZE)
    with pytest.raises(ProtocolError):
        stream.reader.next()
