"""One connection: which response belongs to whom, what is in doubt, and when it is over."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from maildirqmtp.errors import (
    FileChangedError,
    ProtocolError,
    ResponseTimeout,
    TransportError,
    WriteTimeout,
)
from maildirqmtp.forwarder.queued_message import QueuedMessage
from maildirqmtp.pipeline.capabilities import Capabilities
from maildirqmtp.pipeline.pipeline import Pipeline
from maildirqmtp.pipeline.timeouts import Timeouts
from maildirqmtp.pipeline.window import Window
from maildirqmtp.qmtp.protocol import Response, Status
from tests.fakes import FakeClock, FakeTransport, broken, framed, large_queued, queued

TIMEOUTS = Timeouts(write_s=73, response_s=3600, grace_s=10, session_s=3000)
START = 1_000.0

#: A refusal of s/qmail and aQmail: 67 bytes that are announced as 66.
MISFRAMED = b"66:D Sorry, that domain isn't in my list of allowed rcpthosts (#5.7.1),"


class RecordingTransport:
    """A pipeline on a fake transport; `known` skips all fences."""

    def __init__(
        self,
        transport: FakeTransport | None = None,
        *,
        known: bool = True,
        capabilities: Capabilities | None = None,
        window: int = 8,
        max_bytes: int = 1 << 20,
        unchanged: Callable[[QueuedMessage], bool] = lambda queued: True,
    ) -> None:
        self.transport = transport or FakeTransport()
        self.clock = FakeClock(START)
        self.window = Window(window, max_bytes)
        self.capabilities = capabilities or Capabilities(proven=known)
        self.pipe = Pipeline(
            self.transport, self.window, self.capabilities, TIMEOUTS, unchanged, self.clock
        )
        self.pipe.answers_each = known and capabilities is None

    @property
    def seen(self) -> tuple[bool, bool, bool]:
        """What has been seen: a first answer, one for each recipient, one for each package."""
        known = self.capabilities
        return known.proven, self.pipe.answers_each, known.one_recipient

    def offer(self, one: QueuedMessage) -> bool:
        """Put a message, every package of it, if it is taken; say whether it was."""
        taken = False
        while self.pipe.has_room() and self.pipe.can_take(one):
            taken = True
            if self.pipe.put(one):
                break
        return taken

    def send(self, *messages: QueuedMessage) -> None:
        """Put messages and send them."""
        for one in messages:
            assert self.offer(one)
        self.pipe.write()

    def hear(self, *chunks: bytes | TransportError | None) -> None:
        """Let chunks come, one read each."""
        for chunk in chunks:
            self.transport.incoming.append(chunk)
            self.pipe.read()

    def after(self, seconds: float) -> None:
        """Let time pass, then look at the clock."""
        self.clock.advance(seconds)
        self.pipe.check_time()


def answers(one: QueuedMessage) -> list[str | None]:
    """What was answered, as text."""
    return [None if answer is None else str(answer) for answer in one.answers]


def numbered(count: int) -> list[QueuedMessage]:
    """Several messages to one recipient each."""
    return [queued(b"%d.a" % n, b"r%d@y" % n) for n in range(count)]


# What TLS says by itself


def test_a_send_that_waits_for_the_server_is_not_tried_again_and_again() -> None:
    """A server that sends half a session ticket and no more would have us busy for ever."""
    line = RecordingTransport(FakeTransport(takes=[0]))
    line.transport.send_needs_read = True
    line.send(queued())
    assert (line.pipe.wants_read, line.pipe.wants_write) == (True, False)
    line.transport.send_needs_read = False
    assert (line.pipe.wants_read, line.pipe.wants_write) == (True, True)


def test_records_that_are_there_are_taken_in_together() -> None:
    """A server that puts each answer in a record of its own costs no wake-up for each."""
    line = RecordingTransport(FakeTransport(*[b"3:Kok,"] * 5))
    line.transport.piecemeal = True
    line.send(*(sent := numbered(5)))
    line.pipe.read()
    assert [answers(one) for one in sent] == [["Kok"]] * 5


def test_a_read_that_waits_for_room_waits_for_that_alone() -> None:
    """A server that asks for new keys and reads none of them is always ready to be read."""
    line = RecordingTransport(FakeTransport(b"3:Kok,"))
    line.send(one := queued())
    line.transport.receive_needs_write = True
    assert (line.pipe.wants_read, line.pipe.wants_write) == (False, True)
    line.pipe.turn(readable=False, writable=True)
    assert answers(one) == ["Kok"]


# Responses and whom they are for


def test_each_response_goes_to_the_oldest_package() -> None:
    """One off, and a refused message is removed as accepted."""
    line = RecordingTransport()
    first, second, third = numbered(3)
    line.send(first, second, third)
    assert [p.recipients for p in line.transport.packages] == [(b"r0@y",), (b"r1@y",), (b"r2@y",)]
    line.hear(framed(b"Kone", b"Ztwo"))
    assert line.pipe.take_done() == [first, second]
    assert line.pipe.take_done() == []
    line.hear(framed(b"Dthree"))
    assert line.pipe.take_done() == [third]
    assert [answers(d) for d in (first, second, third)] == [["Kone"], ["Ztwo"], ["Dthree"]]
    assert (line.pipe.answered, line.pipe.packages_in_flight) == (3, 0)
    assert not line.pipe.ended
    assert line.pipe.bytes_sent == len(line.transport.sent)


def test_responses_may_come_byte_by_byte() -> None:
    """A slow link cuts anywhere."""
    line = RecordingTransport()
    one, two = numbered(2)
    line.send(one, two)
    line.hear(*[bytes([byte]) for byte in framed(b"Kok", b"Dno")], None)
    assert (answers(one), answers(two)) == (["Kok"], ["Dno"])


def test_recipients_are_answered_in_their_order() -> None:
    """The one who was refused must be the one who is reported."""
    line = RecordingTransport()
    one = queued(b"1.a", b"a@y", b"b@y", b"c@y")
    line.send(one)
    line.hear(framed(b"Kfor a", b"Dfor b"))
    assert line.pipe.take_done() == []
    assert line.pipe.answered == 0
    line.hear(framed(b"Zfor c"))
    assert line.pipe.take_done() == [one]
    assert answers(one) == ["Kfor a", "Dfor b", "Zfor c"]
    assert line.pipe.answered == 1


def test_a_response_nobody_waits_for_ends_it() -> None:
    """The server counts otherwise than we do: nothing it says later can be believed."""
    line = RecordingTransport()
    one = queued()
    line.send(one)
    line.hear(framed(b"Kok", b"Kok"))
    assert isinstance(line.pipe.error, ProtocolError)
    assert line.pipe.take_done() == [one]
    assert line.pipe.close() == []


def test_a_greeting_ends_it() -> None:
    """As from an SMTP server on that port: its text must not be taken for an answer."""
    line = RecordingTransport()
    line.hear(b"220 mail.example.org ESMTP\r\n")
    assert line.pipe.ended
    assert isinstance(line.pipe.error, ProtocolError)


def test_a_response_before_the_last_byte_ends_it() -> None:
    """The server cannot be answerable for a message it does not have."""
    line = RecordingTransport(FakeTransport(takes=[len(packaged(queued())) - 1]))
    one = queued()
    line.send(one)
    line.hear(framed(b"Kok"))
    assert isinstance(line.pipe.error, ProtocolError)
    assert "before it had the whole package" in str(line.pipe.error)
    assert answers(one) == [None]
    assert line.pipe.close() == [one]
    assert one.doubtful == ()


def test_a_package_all_but_its_last_byte_is_not_in_doubt() -> None:
    """The server has to throw it away; reporting it as a duplicate would cry wolf."""
    size = len(packaged(queued()))
    for sent, doubtful in ((size - 1, ()), (size, (0,))):
        one = queued()
        line = RecordingTransport(FakeTransport(takes=[sent, 0]))
        line.send(one)
        line.hear(b"")
        assert line.pipe.close() == [one]
        assert one.doubtful == doubtful


def test_what_the_other_side_has_not_read_is_not_in_doubt() -> None:
    """A command that has exited leaves it in the pipe; only whole packages were taken."""
    size = len(packaged(queued()))
    both_in_doubt, none = ((0,), (0,)), ((), ())
    cases = [(0, both_in_doubt), (1, ((0,), ())), (size + 1, none), (1 << 60, none)]
    for unread, doubtful in cases:
        both = queued(b"1.a"), queued(b"2.a")
        transport = FakeTransport()
        line = RecordingTransport(transport)
        line.send(*both)
        transport.bytes_unread = unread
        line.hear(b"")
        assert line.pipe.close() == [*both]
        assert (both[0].doubtful, both[1].doubtful) == doubtful


def packaged(one: QueuedMessage) -> bytes:
    """The bytes of a message's package."""
    line = RecordingTransport()
    line.send(one)
    return bytes(line.transport.sent)


def test_an_answer_with_the_last_byte_counts() -> None:
    """Off by one here would refuse every answer of a fast server."""
    line = RecordingTransport(FakeTransport(takes=[len(packaged(queued()))]))
    one = queued()
    line.send(one)
    line.hear(framed(b"Kok"))
    assert line.pipe.take_done() == [one]


@pytest.mark.parametrize("bad", [b"03:Kok,", b"3:Xok,", b"0:,", b"3:Kok;", b"70000:K", b"hello"])
def test_bad_responses_end_it_and_leave_all_in_doubt(bad: bytes) -> None:
    """Guessing what a broken server meant could remove mail it does not have."""
    line = RecordingTransport()
    first, second, third = numbered(3)
    line.send(first, second, third)
    line.hear(framed(b"Kok") + bad)
    assert isinstance(line.pipe.error, ProtocolError)
    assert line.pipe.take_done() == [first]
    assert line.pipe.close() == [second, third]
    assert (second.doubtful, third.doubtful) == ((0,), (0,))


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("known", [True, False], ids=["server known", "first package"])
@pytest.mark.parametrize("pieces", [1, 0], ids=["whole", "byte by byte"])
def test_a_refusal_that_sqmail_frames_wrongly_costs_nothing_else(
    place: int, known: bool, pieces: int
) -> None:
    """Its announced length is one too small; the good recipients of its package got copies."""
    line = RecordingTransport(known=known)
    shared, later = queued(b"1.a", b"a@y", b"b@y", b"c@y"), queued(b"2.a")
    line.send(shared)
    said = [b"3:Kok,"] * 3
    said[place] = MISFRAMED
    come = b"".join(said)
    line.hear(*[come] if pieces else [bytes([byte]) for byte in come])
    refused = f"D{MISFRAMED[4:-1].decode()}"
    assert answers(shared) == ["Kok"] * place + [refused] + ["Kok"] * (2 - place)
    assert line.pipe.take_done() == [shared]
    assert not line.pipe.ended
    assert line.pipe.answers_each
    line.send(later)
    line.hear(MISFRAMED)
    assert answers(later) == [refused]
    line.hear(b"")
    assert line.pipe.error is None


def test_a_refusal_that_sqmail_frames_wrongly_counts_as_the_last_before_the_end() -> None:
    """Its last byte but one and its comma are waited for; without them it is no answer."""
    for cut, answered in ((0, True), (1, False), (2, False)):
        line = RecordingTransport()
        line.send(one := queued())
        line.hear(MISFRAMED[: len(MISFRAMED) - cut], b"")
        assert line.pipe.take_done() == [one] * answered
        assert line.pipe.close() == [one] * (not answered)
        assert (line.pipe.error is None) == answered


def test_any_other_refusal_framed_wrongly_is_a_violation() -> None:
    """Which byte the next answer begins with would be a guess."""
    line = RecordingTransport()
    one, two = numbered(2)
    line.send(one, two)
    line.hear(b"2:Dno,,")
    assert isinstance(line.pipe.error, ProtocolError)
    assert line.pipe.take_done() == []
    assert line.pipe.close() == [one, two]


# Fences


def test_little_is_in_flight_before_the_first_answer() -> None:
    """What is no QMTP server would have the whole window in doubt; to wait costs a round trip."""
    line = RecordingTransport(known=False, window=100)
    sent = numbered(65)
    line.send(*sent[:64])
    assert not line.pipe.has_room()
    line.hear(b"3:Ko")
    assert not line.pipe.has_room()
    line.hear(b"k,")
    assert line.seen == (True, False, False)
    line.send(sent[64])
    assert line.pipe.packages_in_flight == 64


def test_a_large_first_package_goes_alone() -> None:
    """A server that is none would have more than 64 KiB in doubt; and others wait behind it."""
    line = RecordingTransport(known=False)
    large, small = queued(b"1.a", text=b"x" * 60_000), queued(b"2.a", text=b"x" * 10_000)
    assert line.offer(large)
    assert not line.offer(small)
    assert line.offer(queued(b"3.a"))
    assert line.pipe.packages_in_flight == 2
    line.pipe.write()
    line.hear(framed(b"Kok"))
    assert line.offer(small)


def test_the_first_package_with_several_recipients_shows_both() -> None:
    """Then nothing more has to go alone."""
    line = RecordingTransport(known=False)
    line.send(queued(b"1.a", b"a@y", b"b@y"))
    line.hear(framed(b"Kok"))
    assert not line.pipe.has_room()
    line.hear(framed(b"Kok"))
    assert line.seen == (True, True, False)
    assert line.pipe.has_room()


def test_the_beginning_of_an_answer_too_many_ends_the_connection() -> None:
    """Its rest would be taken for the answer to the next package."""
    line = RecordingTransport(capabilities=Capabilities(proven=True))
    line.send(queued(b"1.a", b"a@y", b"b@y"))
    line.hear(framed(b"Kok", b"Kok") + b"3:K")
    assert isinstance(line.pipe.error, ProtocolError)
    assert "nobody waits for" in str(line.pipe.error)


def test_several_recipients_wait_until_nothing_is_in_flight() -> None:
    """Else a server's single answer shifts every later one by one."""
    line = RecordingTransport(capabilities=Capabilities(proven=True))
    single, later, many = queued(b"1.a"), queued(b"3.a"), queued(b"2.a", b"a@y", b"b@y")
    line.send(single)
    assert line.pipe.has_room()
    assert not line.pipe.can_take(many)
    assert line.pipe.can_take(later)
    line.hear(framed(b"Kok"))
    assert line.pipe.can_take(many)
    line.send(many)
    assert not line.offer(later)
    line.hear(framed(b"Kok", b"Kok"))
    assert line.seen == (True, True, False)
    assert line.offer(later)
    assert line.offer(queued(b"4.a", b"a@y", b"b@y"))
    assert line.pipe.packages_in_flight == 2


def test_one_recipient_proves_nothing_about_several() -> None:
    """Or mailfront would be believed after its first message."""
    line = RecordingTransport(known=False)
    line.send(queued())
    line.hear(framed(b"Kok"))
    assert not line.pipe.knows_answers
    assert not line.pipe.packages_in_flight


def test_two_answers_for_the_first_package_prove_nothing() -> None:
    """Whoever answers too often is not to be trusted with a window."""
    line = RecordingTransport(known=False)
    line.send(queued())
    line.hear(framed(b"Kok", b"Kok"))
    assert isinstance(line.pipe.error, ProtocolError)
    assert line.seen == (False, False, False)


def test_the_grace_time_ends_at_its_second() -> None:
    """A server that answers once per package is found out after 10 s, not after an hour."""
    line = RecordingTransport(known=False)
    one = queued(b"1.a", b"a@y", b"b@y", b"c@y")
    line.send(one)
    line.after(100)
    assert not line.pipe.ended
    line.hear(framed(b"Kok"))
    assert line.pipe.next_deadline() == START + 110
    line.after(9.99)
    assert not line.pipe.ended
    line.after(0.01)
    assert (line.pipe.ended, line.pipe.error) == (True, None)
    assert "once per package" in line.pipe.remark
    assert line.pipe.close() == [one]
    assert line.capabilities.one_recipient
    assert line.capabilities.take_news(), "the next run would find it out once more"
    assert one.doubtful == (1, 2)
    assert one.owed() == [1, 2]


@pytest.mark.parametrize("end", ["grace", "closed", "told to stop"])
@pytest.mark.parametrize("said", [b"Dno", b"Zbusy"])
def test_a_refusal_of_them_all_is_not_pinned_on_the_first(said: bytes, end: str) -> None:
    """Mailfront refuses three for the sake of one: the first, a good one, would be bounced."""
    line = RecordingTransport(known=False)
    one = queued(b"1.a", b"a@y", b"b@y", b"c@y")
    line.send(one)
    line.hear(framed(said))
    if end == "grace":
        line.after(10)
    elif end == "closed":
        line.hear(b"")
    else:
        line.pipe.give_up()
    assert line.pipe.close() == [one]
    assert line.pipe.take_done() == []
    assert answers(one) == [None, None, None]
    assert (one.unanswered, sorted(one.doubtful)) == (3, [0, 1, 2])
    assert line.capabilities.one_recipient


def test_of_a_fenced_package_that_broke_off_the_accepted_are_done() -> None:
    """Whether the K is for one or for all, the first has the message, and must not get it twice."""
    line = RecordingTransport(known=False)
    one = queued(b"1.a", b"a@y", b"b@y", b"c@y")
    line.send(one)
    line.hear(framed(b"Kok", b"Dno"))
    line.hear(b"")
    assert line.pipe.close() == [one]
    assert answers(one) == ["Kok", None, None]
    assert one.unanswered == 2


def test_answers_that_go_on_are_waited_for() -> None:
    """500 answers on a link of 1,000 bytes a second take 15 s: cut off, 164 came twice."""
    line = RecordingTransport(known=False)
    one = queued(b"1.a", *(b"r%d@y" % number for number in range(20)))
    line.send(one)
    for _ in range(20):
        assert not line.pipe.ended
        line.hear(framed(b"Kok"))
        line.after(TIMEOUTS.grace_s - 1)
    assert not line.pipe.ended
    assert answers(one) == ["Kok"] * 20


def test_answers_that_stop_say_nothing_of_the_server() -> None:
    """A stall of the link is no reason for packages of one until the daemon ends."""
    line = RecordingTransport(known=False)
    one = queued(b"1.a", b"a@y", b"b@y", b"c@y")
    line.send(one)
    line.hear(framed(b"Kok"))
    line.after(6)
    line.hear(framed(b"Kok"))
    line.after(TIMEOUTS.grace_s - 1)
    assert not line.pipe.ended
    line.after(1)
    assert line.pipe.ended
    assert line.pipe.error is None
    assert "stopped answering amid a package, for 10 s" in line.pipe.remark
    assert line.pipe.close() == [one]
    assert answers(one) == ["Kok", "Kok", None]
    assert not line.capabilities.one_recipient
    assert not line.capabilities.take_news()


def test_a_link_that_is_cut_amid_the_answers_says_nothing_of_the_server() -> None:
    """Else all messages to several would go in packages of one, and use up a thin link."""
    line = RecordingTransport(known=False)
    one = queued(b"1.a", b"a@y", b"b@y", b"c@y")
    line.send(one)
    line.hear(framed(b"Kok", b"Kok"))
    line.hear(b"")
    assert line.pipe.close() == [one]
    assert answers(one) == ["Kok", "Kok", None]
    assert not line.capabilities.one_recipient


def test_the_recipients_behind_a_malformed_answer_get_packages_of_their_own() -> None:
    """In one with the recipient whose answer it is, they would never be answered."""
    line = RecordingTransport(known=False)
    line.send(queued(b"1.a", b"a@y", b"b@y", b"c@y", b"d@y"))
    line.hear(framed(b"Kok", b"Kok") + b"3:Dno;")
    assert isinstance(line.pipe.error, ProtocolError)
    line.pipe.close()
    assert line.capabilities.one_recipient


def test_the_grace_time_is_over_once_all_have_answered() -> None:
    """Else the next message would be cut off in the middle."""
    line = RecordingTransport(known=False)
    line.send(queued(b"1.a", b"a@y", b"b@y"))
    line.hear(framed(b"Kok"), framed(b"Kok"))
    line.send(queued(b"2.a"))
    line.after(50)
    assert not line.pipe.ended
    assert line.pipe.remark == ""


def test_a_server_that_answers_once_gets_a_package_for_each_recipient() -> None:
    """Several recipients in one package could not be told apart in its answers."""
    line = RecordingTransport(capabilities=Capabilities(proven=True, one_recipient=True))
    one = queued(b"1.a", b"a@y", b"b@y", b"c@y")
    assert not line.pipe.put(one)
    assert not line.pipe.put(one)
    assert line.pipe.put(one)
    line.pipe.write()
    assert [p.recipients for p in line.transport.packages] == [(b"a@y",), (b"b@y",), (b"c@y",)]
    line.hear(framed(b"Kok", b"Dno"))
    assert line.pipe.take_done() == []
    line.hear(b"")
    assert line.pipe.close() == [one]
    assert answers(one) == ["Kok", "Dno", None]
    assert one.doubtful == (2,)


def test_packages_of_one_recipient_need_no_fence() -> None:
    """Each gets one answer from any server; to wait for the first costs a round trip."""
    line = RecordingTransport(capabilities=Capabilities(one_recipient=True))
    one = queued(b"1.a", b"a@y", b"b@y", b"c@y")
    assert not line.pipe.put(one)
    assert line.pipe.has_room()
    assert not line.pipe.put(one)
    line.pipe.write()
    line.hear(framed(b"Kok"))
    assert line.seen == (True, False, True)
    assert line.pipe.has_room()
    assert line.pipe.put(one)


def test_a_suspect_goes_alone() -> None:
    """What was in flight with a message that ends the connection came twice."""
    line = RecordingTransport()
    before, suspect, after = numbered(3)
    suspect.alone = True
    line.send(before)
    assert not line.pipe.can_take(suspect)
    line.hear(framed(b"Kok"))
    line.send(suspect)
    assert not line.pipe.has_room()
    line.hear(framed(b"Kok"))
    line.send(after)
    assert line.pipe.take_done() == [before, suspect]


def test_a_suspect_is_waited_for_where_the_server_answers_each() -> None:
    """It has shown so on this connection; a pause between two answers shows nothing else."""
    line = RecordingTransport(known=False)
    first, suspect = queued(b"1.a", b"a@y", b"b@y"), queued(b"2.a", b"c@y", b"d@y")
    suspect.alone = True
    line.send(first)
    line.hear(framed(b"Kok", b"Kok"))
    assert line.pipe.answers_each
    line.send(suspect)
    line.hear(framed(b"Kok"))
    line.after(TIMEOUTS.grace_s + 1)
    assert not line.pipe.ended
    line.hear(framed(b"Kok"))
    assert line.pipe.take_done() == [first, suspect]
    assert not line.capabilities.one_recipient


# Many recipients


def many(count: int) -> QueuedMessage:
    """A message to so many recipients."""
    return queued(b"1.a", *[b"r%d@y" % n for n in range(count)])


@pytest.mark.parametrize(
    ("count", "sizes"),
    [(999, [999]), (1_000, [1_000]), (1_001, [1_000, 1]), (2_500, [1_000, 1_000, 500])],
)
@pytest.mark.parametrize("known", [True, False])
def test_a_package_has_a_thousand_recipients_at_most(
    count: int, sizes: list[int], known: bool
) -> None:
    """Servers refuse the rest, or set aside memory for all of them."""
    line = RecordingTransport(known=known)
    one = many(count)
    answered = 0
    while not line.pipe.take_done():
        line.offer(one)
        line.pipe.write()
        packages = line.transport.packages
        assert len(packages) == len(sizes) if known else answered + 1
        for package in packages[answered:]:
            answered += 1
            line.hear(framed(*[b"K%b" % recipient for recipient in package.recipients]))
    assert [len(package.recipients) for package in packages] == sizes
    assert answers(one) == [f"Kr{n}@y" for n in range(count)]
    assert line.pipe.answers_each
    assert line.pipe.packages_in_flight == 0


def test_a_second_package_of_one_recipient_proves_nothing() -> None:
    """Its one answer is what a server that answers once would give as well."""
    line = RecordingTransport(capabilities=Capabilities(proven=True))
    one = many(1_001)
    one.next, one.answers = 1_000, [Response(Status.ACCEPTED, b"") for _ in range(1_000)] + [None]
    one.unanswered = 1
    line.send(one)
    line.hear(framed(b"Kok"))
    assert line.pipe.take_done() == [one]
    assert not line.pipe.answers_each


def test_in_a_second_package_only_its_own_refusals_are_forgotten() -> None:
    """Those of the package before it are final: they would be sent again."""
    line = RecordingTransport(capabilities=Capabilities(proven=True))
    one = many(1_002)
    one.next, one.unanswered = 1_000, 2
    one.answers[:1_000] = [Response(Status.FAILED, b"no") for _ in range(1_000)]
    line.send(one)
    line.hear(framed(b"Dno"), b"")
    assert line.pipe.close() == [one]
    assert one.owed() == [1_000, 1_001]


# The window


def test_it_takes_the_window_and_not_one_more() -> None:
    """The window is how much is sent twice after a crash."""
    line = RecordingTransport(window=3)
    assert [line.offer(d) for d in numbered(4)] == [True, True, True, False]
    line.pipe.write()
    line.hear(framed(b"Kok"))
    assert [line.offer(d) for d in numbered(2)] == [True, False]


def test_it_counts_bytes_as_well() -> None:
    """Three large messages in doubt are worse than a thousand small ones."""
    size = len(packaged(queued()))
    line = RecordingTransport(max_bytes=size + 1)
    assert [line.offer(queued()) for _ in range(3)] == [True, True, False]
    line.pipe.write()
    line.hear(framed(b"Kok"))
    assert [line.offer(queued()) for _ in range(3)] == [True, False, False]


def test_answers_widen_a_narrow_window() -> None:
    """By packages, however many recipients each has."""
    line = RecordingTransport(window=64)
    line.window.shrink(16)
    line.send(queued(b"1.a", b"a@y", b"b@y"))
    line.hear(framed(b"Kok", b"Kok"))
    assert line.window.size == 2
    line.send(*numbered(2))
    line.hear(framed(b"Kok", b"Kok"))
    assert line.window.size == 4


# Time


def test_writing_times_out_at_its_second() -> None:
    """A server that takes nothing for 73 s has gone, and says nothing about it."""
    line = RecordingTransport(FakeTransport(takes=[5, 0, 0, 0]))
    one = queued()
    line.clock.advance(500)
    line.send(one)
    assert line.pipe.wants_write
    assert line.pipe.next_deadline() == START + 573
    line.after(72.9)
    line.pipe.write()
    assert not line.pipe.ended
    line.after(0.1)
    assert isinstance(line.pipe.error, WriteTimeout)
    assert "73 s" in str(line.pipe.error)
    assert line.pipe.close() == [one]
    assert one.doubtful == ()


def test_a_byte_taken_is_progress() -> None:
    """A slow link is not a dead one."""
    line = RecordingTransport(FakeTransport(takes=[5, 1, 1, 0]))
    line.send(queued())
    for _ in range(2):
        line.after(72)
        line.pipe.write()
    assert line.pipe.next_deadline() == START + 144 + 73
    line.after(73)
    assert isinstance(line.pipe.error, WriteTimeout)


def test_a_response_times_out_at_its_second() -> None:
    """An hour, for scanners; then what was sent is in doubt."""
    line = RecordingTransport()
    one = queued()
    line.send(one)
    assert line.pipe.next_deadline() == START + 3600
    line.after(3599)
    assert not line.pipe.ended
    line.after(1)
    assert isinstance(line.pipe.error, ResponseTimeout)
    assert "3600 s" in str(line.pipe.error)
    assert line.pipe.close() == [one]
    assert one.doubtful == (0,)


def test_a_server_that_answers_steadily_is_alive() -> None:
    """However long its queue: 400 messages at 50 ms each were sent again after a 10 s time-out."""
    line = RecordingTransport(window=100)
    line.send(*(sent := numbered(100)))
    for _ in range(99):
        line.after(3599)
        line.hear(framed(b"Kok"))
        assert line.pipe.next_deadline() == line.clock() + 3600
    assert line.pipe.take_done() == sent[:-1]
    line.after(3599)
    assert not line.pipe.ended
    line.after(1)
    assert isinstance(line.pipe.error, ResponseTimeout)
    assert line.pipe.close() == sent[-1:]


def test_an_answer_for_one_of_several_recipients_is_an_answer() -> None:
    """Scanning for 50 recipients may take longer than for one."""
    line = RecordingTransport()
    line.send(queued(b"1.a", b"a@y", b"b@y"))
    line.after(3599)
    line.hear(framed(b"Kok"))
    line.after(3599)
    assert not line.pipe.ended
    line.after(1)
    assert isinstance(line.pipe.error, ResponseTimeout)


def test_the_time_counts_from_the_last_byte_of_the_oldest() -> None:
    """A package that comes later does not prolong the time of one that has no answer."""
    line = RecordingTransport()
    one, two = numbered(2)
    line.send(one)
    line.after(1000)
    line.send(two)
    assert line.pipe.next_deadline() == START + 3600
    line.after(2600)
    assert isinstance(line.pipe.error, ResponseTimeout)
    assert line.pipe.close() == [one, two]


def test_the_time_does_not_count_before_the_last_byte_is_out() -> None:
    """Queued behind a slow link it has no answer to be late with."""
    size = len(packaged(queued(b"0.a", b"r0@y")))
    line = RecordingTransport(FakeTransport(takes=[size + 5, *[1] * (size - 5)]))
    line.send(*numbered(2))
    line.hear(framed(b"Kok"))
    for _ in range(size - 5):
        line.after(72)
        line.pipe.write()
    assert not line.pipe.wants_write
    assert line.pipe.next_deadline() == line.clock() + 3600


# Time during which this process did not run


STOPPED_S = 10_000.0


def test_answers_that_came_while_nothing_ran_here_count() -> None:
    """After SIGSTOP, or with the lid closed: all that was answered was sent again."""
    line = RecordingTransport()
    line.send(*(sent := numbered(5)))
    line.transport.incoming.extend([framed(b"Kok", b"Kok") + b"3:K", b"ok,3:Kok,"])
    line.after(STOPPED_S)
    assert line.pipe.take_done() == sent[:4]
    assert not line.pipe.ended
    line.after(3600)
    assert isinstance(line.pipe.error, ResponseTimeout)
    assert line.pipe.close() == sent[4:]


def test_the_other_answers_of_a_fence_that_came_meanwhile_count() -> None:
    """Else the server would be taken for one that answers once, and all but one get it twice."""
    line = RecordingTransport(known=False)
    line.send(one := queued(b"1.a", b"a@y", b"b@y", b"c@y"))
    line.hear(framed(b"Kok"))
    line.transport.incoming.append(framed(b"Kok", b"Dno"))
    line.after(STOPPED_S)
    assert line.pipe.take_done() == [one]
    assert answers(one) == ["Kok", "Kok", "Dno"]
    assert line.seen == (True, True, False)


def test_a_server_that_takes_bytes_now_has_not_failed_to() -> None:
    """Nothing was offered to it while nothing ran here."""
    line = RecordingTransport(FakeTransport(takes=[5]))
    line.send(one := queued())
    line.after(STOPPED_S)
    assert not line.pipe.ended
    assert not line.pipe.wants_write
    line.hear(framed(b"Kok"))
    assert line.pipe.take_done() == [one]


def test_a_server_that_answers_has_not_stopped_taking_bytes() -> None:
    """It could not write, so it did not read: now it can."""
    line = RecordingTransport(FakeTransport(takes=[200, *[0] * 4]))
    line.send(*(sent := numbered(8)))
    line.transport.incoming.append(framed(b"Kok"))
    line.after(STOPPED_S)
    assert line.pipe.take_done() == sent[:1]
    line.after(72)
    assert not line.pipe.ended
    line.after(1)
    assert isinstance(line.pipe.error, WriteTimeout)


@pytest.mark.parametrize("where", ["response", "fence", "write"])
def test_what_is_still_on_its_way_then_gets_its_time(where: str) -> None:
    """TCP sends again what found nobody, some seconds later; but not for ever."""
    line = RecordingTransport(FakeTransport(takes=[5, *[0] * 9] if where == "write" else ()))
    if where == "fence":
        line.pipe.answers_each = False
    line.send(one := queued(b"1.a", b"a@y", b"b@y"))
    if where == "fence":
        line.hear(framed(b"Kok"))
    line.after(STOPPED_S)
    assert not line.pipe.ended
    assert line.pipe.next_deadline() == line.clock() + 30
    line.after(29)
    assert not line.pipe.ended
    line.after(1)
    assert line.pipe.ended
    assert line.pipe.close() == [one]


def test_a_session_that_ended_meanwhile_drains() -> None:
    """What was answered is settled, and nothing of it sent again."""
    line = RecordingTransport()
    line.send(*(sent := numbered(3)))
    line.transport.incoming.append(framed(b"Kok", b"Dno", b"Kok"))
    line.after(STOPPED_S)
    assert line.pipe.draining
    assert line.pipe.take_done() == sent
    assert line.pipe.close() == []


def test_what_has_come_counts_when_it_is_told_to_stop() -> None:
    """TERM, then SIGSTOP: the 30 s are over, and the answers are there."""
    line = RecordingTransport()
    line.send(*(sent := numbered(3)))
    line.transport.incoming.append(framed(b"Kok", b"Kok"))
    line.pipe.give_up()
    assert line.pipe.take_done() == sent[:2]
    assert line.pipe.close() == sent[2:]


def test_a_slow_source_of_messages_is_not_the_server_s_fault() -> None:
    """A program that takes hours for the next package: what is gathered was never offered."""
    line = RecordingTransport()
    assert line.offer(one := queued())
    line.after(5_000)
    assert not line.pipe.ended
    line.hear(framed(b"Kok"))
    assert line.pipe.take_done() == [one]


def test_nobody_waits_for_an_answer_before_the_last_byte() -> None:
    """A large message over a slow link may take more than an hour to go."""
    line = RecordingTransport(FakeTransport(takes=[5] + [1] * 200))
    line.send(queued(text=b"x" * 500))
    for _ in range(100):
        line.after(60)
        line.pipe.write()
    assert not line.pipe.ended
    assert line.pipe.next_deadline() == line.clock() + 73


def test_the_time_of_a_streamed_message_counts_from_its_end(tmp_path: Path) -> None:
    """As for every message: from the last byte to the answer."""
    line = RecordingTransport(FakeTransport(takes=[1000] + [100_000, 0] * 20))
    large = large_queued(tmp_path / "1.a")
    line.send(large)
    while line.pipe.wants_write:
        line.after(60)
        line.pipe.write()
    ended = line.clock()
    assert ended > START + 600
    assert line.pipe.next_deadline() == ended + 3600
    line.after(3599)
    assert not line.pipe.ended
    line.after(1)
    assert isinstance(line.pipe.error, ResponseTimeout)
    assert line.pipe.close() == [large]
    assert large.doubtful == (0,)
    assert large.message.fd == -1


def test_nothing_is_due_where_nothing_is_in_flight() -> None:
    """Idle means idle."""
    line = RecordingTransport()
    assert line.pipe.next_deadline() is None
    line.after(10)
    assert not line.pipe.ended


def test_after_its_time_it_takes_nothing_more_and_drains() -> None:
    """The protocol's hour: the server hangs up then, in the middle of whatever there is."""
    line = RecordingTransport()
    one = queued()
    line.after(2999)
    assert not line.pipe.draining
    line.send(one)
    line.after(1)
    assert line.pipe.draining
    assert not line.offer(queued(b"2.a"))
    assert not line.pipe.ended
    line.hear(framed(b"Kok"))
    assert line.pipe.take_done() == [one]
    assert not line.pipe.has_room()


# Ends


def test_a_server_that_closes_with_nothing_in_flight_is_no_error() -> None:
    """It may; nothing is lost."""
    line = RecordingTransport()
    line.send(queued())
    line.hear(framed(b"Kok"), b"")
    assert (line.pipe.ended, line.pipe.error) == (True, None)
    assert line.pipe.close() == []
    assert line.transport.closed


@pytest.mark.parametrize(
    ("sent", "chunks", "useless"),
    [
        (0, (b"",), True),
        (1, (b"",), True),
        (1, (broken(),), True),
        (1, (b"220 mail ESMTP\r\n",), True),
        (0, (), False),
        (1, (), False),
        (1, (framed(b"Zlater"), b""), False),
        (2, (framed(b"Dno"), broken()), False),
    ],
)
def test_an_address_without_an_answer_was_of_no_use(
    sent: int, chunks: tuple[bytes | TransportError, ...], useless: bool
) -> None:
    """The next connection goes to another one; but not for our own end, or after an answer."""
    line = RecordingTransport()
    line.send(*numbered(sent))
    line.hear(*chunks)
    line.pipe.close()
    assert line.transport.useless is useless


def test_a_file_that_changes_is_not_put_on_the_address(tmp_path: Path) -> None:
    """The connection is closed by us; its address is as good as before."""
    line = RecordingTransport(max_bytes=1 << 30, unchanged=lambda queued: False)
    line.send(large_queued(tmp_path / "1.a"))
    assert line.pipe.ended
    line.pipe.close()
    assert not line.transport.useless


def test_a_server_that_closes_in_the_middle_of_a_response_is_one() -> None:
    """Half an answer is none, and the next connection is tried with more care."""
    line = RecordingTransport()
    one = queued()
    line.send(one)
    line.hear(b"3:Ko", b"")
    assert isinstance(line.pipe.error, TransportError)
    assert "without answering" in str(line.pipe.error)
    assert answers(one) == [None]
    assert line.pipe.close() == [one]
    assert one.doubtful == (0,)


def test_a_server_that_closes_after_half_a_surplus_response_is_one() -> None:
    """It would have said something nobody waits for."""
    line = RecordingTransport()
    line.send(queued())
    line.hear(framed(b"Kok") + b"3:", b"")
    assert isinstance(line.pipe.error, TransportError)


def test_a_broken_connection_ends_it() -> None:
    """With everything whole in doubt and the rest not."""
    one, two = numbered(2)
    line = RecordingTransport(FakeTransport(takes=[len(packaged(queued(b"1.a", b"r0@y"))) + 3]))
    line.send(one, two)
    line.hear(broken())
    assert "connection reset" in str(line.pipe.error)
    assert line.pipe.close() == [one, two]
    assert (one.doubtful, two.doubtful) == ((0,), ())


def test_answers_that_came_before_a_failing_send_count() -> None:
    """Else what the server accepted and said so would be sent again."""
    one, two, three = numbered(3)
    line = RecordingTransport()
    line.send(one, two)
    line.transport.incoming.extend([framed(b"Kok") + b"3:K", b"ok,"])
    line.transport.takes.extend([broken("broken pipe")])
    line.send(three)
    assert "broken pipe" in str(line.pipe.error)
    assert line.pipe.take_done() == [one, two]
    assert line.pipe.close() == [three]
    assert three.doubtful == ()


def test_a_failing_send_and_then_the_end() -> None:
    """The server's own end is taken in once, and nothing is read after it."""
    one, two = numbered(2)
    line = RecordingTransport()
    line.send(one)
    line.transport.incoming.extend([framed(b"Kok"), b"", broken("read after the end")])
    line.transport.takes.append(broken("broken pipe"))
    line.send(two)
    assert line.pipe.ended
    assert line.pipe.take_done() == [one]
    assert line.pipe.close() == [two]
    assert len(line.transport.incoming) == 1


def test_giving_up_leaves_what_is_in_flight_in_doubt() -> None:
    """After TERM and 30 s."""
    line = RecordingTransport()
    one = queued()
    line.send(one)
    line.pipe.give_up()
    line.pipe.give_up()
    assert "told to stop" in str(line.pipe.error)
    assert line.pipe.close() == [one]
    assert one.doubtful == (0,)


def test_the_first_reason_is_the_one_that_is_told() -> None:
    """What follows from it would hide it."""
    line = RecordingTransport()
    line.send(queued())
    line.hear(framed(b"Xwhat"))
    line.pipe.give_up()
    assert isinstance(line.pipe.error, ProtocolError)
    assert not line.pipe.has_room()


# Large messages


@pytest.mark.parametrize("sent", [0, 5, 100_000])
def test_a_large_message_that_is_not_sent_is_closed(tmp_path: Path, sent: int) -> None:
    """One descriptor for each attempt, and a daemon that retries for days has none left."""
    line = RecordingTransport(FakeTransport(takes=[sent, 0]), max_bytes=1 << 30)
    large = large_queued(tmp_path / "1.a")
    line.send(large)
    line.hear(b"")
    assert line.pipe.close() == [large]
    assert large.message.fd == -1


@pytest.mark.parametrize("recipients", [1, 2])
@pytest.mark.parametrize("said", [b"Kok", b"Zlater", b"Dno"])
def test_a_large_message_that_is_answered_is_closed(
    tmp_path: Path, said: bytes, recipients: int
) -> None:
    """Whatever the answer, and in however many packages it went."""
    line = RecordingTransport(
        capabilities=Capabilities(proven=True, one_recipient=True), max_bytes=1 << 30
    )
    large = large_queued(tmp_path / "1.a", *[b"r%d@y" % n for n in range(recipients)])
    for _ in range(recipients):
        line.send(large)
        line.pipe.write()
        line.hear(framed(said))
    assert line.pipe.take_done() == [large]
    assert large.message.fd == -1


def test_a_large_message_is_streamed_and_the_next_one_waits(tmp_path: Path) -> None:
    """Bytes of another message between its own would spoil both."""
    line = RecordingTransport(FakeTransport(takes=[100, 0]), max_bytes=1 << 30)
    large = large_queued(tmp_path / "1.a")
    body = (tmp_path / "1.a").read_bytes()
    line.send(large)
    assert not line.offer(queued(b"2.a"))
    line.pipe.write()
    line.pipe.write()
    line.send(queued(b"2.a"))
    assert [p.text for p in line.transport.packages] == [body, b"hello\n"]
    assert large.message.fd == -1, "a window of large messages would use up the descriptors"
    line.hear(framed(b"Kok", b"Kok"))
    assert len(line.pipe.take_done()) == 2


@pytest.mark.parametrize("can_send_file", [True, False])
def test_a_file_that_shrinks_is_taken_back_after_the_earlier_are_answered(
    tmp_path: Path, can_send_file: bool
) -> None:
    """Closing before its last byte makes the server throw it away, and only it."""
    line = RecordingTransport(FakeTransport(can_send_file=can_send_file), max_bytes=1 << 30)
    one, two = numbered(2)
    large = large_queued(tmp_path / "3.a")
    os.truncate(tmp_path / "3.a", 1 << 20)
    line.send(one, two, large)
    line.pipe.write()
    assert not line.pipe.ended
    assert line.pipe.draining
    assert not line.pipe.has_room()
    assert not line.pipe.wants_write
    assert line.pipe.next_deadline() == START + 3600
    line.hear(framed(b"Kok"))
    assert not line.pipe.ended
    line.hear(framed(b"Dno"))
    assert (line.pipe.ended, line.pipe.error) == (True, None)
    assert line.pipe.take_done() == [one, two]
    assert line.pipe.close() == [large]
    assert large.doubtful == ()
    assert "changed while it was being sent" in large.reason
    assert large.message.fd == -1


def test_a_file_that_vanished_and_is_alone_ends_it_at_once(tmp_path: Path) -> None:
    """There is nothing to wait for."""
    line = RecordingTransport(
        unchanged=lambda d: os.path.exists(tmp_path / "3.a"), max_bytes=1 << 30
    )
    large = large_queued(tmp_path / "3.a")
    (tmp_path / "3.a").unlink()
    line.send(large)
    line.pipe.write()
    assert (line.pipe.ended, line.pipe.error) == (True, None)
    assert line.pipe.close() == [large]
    assert large.doubtful == ()
    assert not line.transport.packages


def test_an_answer_to_a_message_taken_back_is_a_violation(tmp_path: Path) -> None:
    """The server may not answer for a message that it never had whole."""
    line = RecordingTransport(unchanged=lambda d: False, max_bytes=1 << 30)
    one, large = queued(b"1.a"), large_queued(tmp_path / "3.a")
    line.send(one, large)
    line.pipe.write()
    line.hear(framed(b"Kok", b"Kok"))
    assert isinstance(line.pipe.error, ProtocolError)
    assert line.pipe.take_done() == [one]
    assert line.pipe.close() == [large]
    assert answers(large) == [None]


def test_the_clock_still_runs_while_waiting_after_taking_back(tmp_path: Path) -> None:
    """A server that is silent then must not hold us for ever."""
    line = RecordingTransport(unchanged=lambda d: False, max_bytes=1 << 30)
    one, large = queued(b"1.a"), large_queued(tmp_path / "3.a")
    line.send(one, large)
    line.pipe.write()
    line.after(3600)
    assert isinstance(line.pipe.error, ResponseTimeout)
    assert line.pipe.close() == [one, large]
    assert (one.doubtful, large.doubtful) == ((0,), ())


def test_file_changed_is_no_transport_error() -> None:
    """It is the message's fault: the connection was all right."""
    assert not issubclass(FileChangedError, OSError)
