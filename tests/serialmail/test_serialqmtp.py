"""serialqmtp without a network: its language, its files, and its four descriptors at once."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from maildirqmtp.errors import EnvelopeError
from maildirqmtp.response import Response, Status
from maildirqmtp.serialmail.conversation import READ_TIMEOUT_S, RESULTS_BYTES, Conversation
from maildirqmtp.serialmail.open_file import UnreadableError, open_message
from maildirqmtp.serialmail.wire import (
    MAX_NAME,
    MAX_TEXT,
    NameReader,
    ResultReader,
    WireError,
    write_result,
)
from tests.fakes import FakeClock, FakeServer, broken, never_wait
from tests.helpers import Package, wait_until

K, Z, D = Status.ACCEPTED, Status.DEFERRED, Status.FAILED


# The language


@pytest.mark.parametrize(
    ("status", "text", "said_by", "line"),
    [
        (K, b"ok 1", b"", b"new/1\0Kok 1\n"),
        (Z, b"later", b"192.0.2.1", b"new/1\0Z192.0.2.1 said: later\n"),
        (D, b"", b"", b"new/1\0D\n"),
        (D, b"a\nb\x1b[1m\x7f\xff\0c ~", b"", b"new/1\0Da?b?[1m???c ~\n"),
        (K, b"x", b"a\nb", b"new/1\0Ka?b said: x\n"),
        (K, b"x" * 1_999, b"", b"new/1\0K" + b"x" * 1_999 + b"\n"),
        (K, b"x" * 2_000, b"", b"new/1\0K" + b"x" * 1_999 + b"\n"),
        (K, b"x" * 2_000, b"::1", b"new/1\0K::1 said: " + b"x" * 1_989 + b"\n"),
    ],
)
def test_a_result(status: Status, text: bytes, said_by: bytes, line: bytes) -> None:
    """A feeder splits them at NUL and LF; a server must not be able to write one of its own."""
    assert write_result(b"new/1", Response(status, text), said_by) == line


def chunks(data: bytes) -> list[list[bytes]]:
    """The same bytes whole, one by one, and line by line."""
    return [[data], [data[i : i + 1] for i in range(len(data))], data.splitlines(keepends=True)]


@pytest.mark.parametrize(
    ("data", "names"),
    [
        (b"", []),
        (b"new/1\0", [b"new/1"]),
        (b"new/1\0new/2\0ne", [b"new/1", b"new/2"]),
        (b"a\nb\0\0\xff\0", [b"a\nb", b"", b"\xff"]),
        (b"x" * MAX_NAME + b"\0", [b"x" * MAX_NAME]),
    ],
)
def test_names(data: bytes, names: list[bytes]) -> None:
    """A name that is cut off is another file's, maybe."""
    for pieces in chunks(data):
        reader, found = NameReader(), []
        for piece in pieces:
            reader.feed(piece)
            while (name := reader.next()) is not None:
                found.append(name)
        assert found == names


@pytest.mark.parametrize("end", [b"", b"\0"])
def test_a_name_without_end_is_no_name(end: bytes) -> None:
    """Else a feeder that has gone mad fills the memory."""
    reader = NameReader()
    reader.feed(b"x" * (MAX_NAME + 1) + end)
    with pytest.raises(WireError):
        reader.next()


@pytest.mark.parametrize(
    ("data", "results"),
    [
        (b"", []),
        (b"new/1\0Kok\n", [(b"new/1", "Kok")]),
        (b"a\nb\0K\nc\0Zbusy\nd\0Dno\n", [(b"a\nb", "K"), (b"c", "Zbusy"), (b"d", "Dno")]),
        (b"new/1\0Kok\nnew/2\0Kha", [(b"new/1", "Kok")]),
        (b"new/1\0Kok\nnew/2\0", [(b"new/1", "Kok")]),
        (b"new/1\0Ka\0\x1bb\n", [(b"new/1", "Ka??b")]),
        (b"1\0K" + b"x" * 5_000 + b"\n2\0K\n", [(b"1", "K" + "x" * 2_000), (b"2", "K")]),
    ],
)
def test_results(data: bytes, results: list[tuple[bytes, str]]) -> None:
    """A result that breaks off is none: the rest may have said that it failed."""
    for pieces in chunks(data):
        reader, found = ResultReader(), []
        for piece in pieces:
            reader.feed(piece)
            while (result := reader.next()) is not None:
                found.append((result[0], str(result[1])))
        assert found == results


def read_all(reader: ResultReader, pieces: list[bytes]) -> None:
    """Feed it all of them, of which none completes a result."""
    for piece in pieces:
        reader.feed(piece)
        assert reader.next() is None


@pytest.mark.parametrize(
    "data",
    [
        b"1\0X\n",
        b"1\0\n",
        b"1\0k\n",
        b"1\0\0K\n",
        b"x" * (MAX_NAME + 1),
        b"x" * (MAX_NAME + 1) + b"\0Kok\n",
        b"1\0K" + b"x" * MAX_TEXT,
        b"1\0K" + b"x" * MAX_TEXT + b"\n",
    ],
)
def test_what_is_no_result(data: bytes) -> None:
    """Of a client that writes this nothing more is believed."""
    for pieces in chunks(data):
        reader = ResultReader()
        with pytest.raises(WireError):
            read_all(reader, pieces)


# Files


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


TOP = b"Return-Path: <s@x>\nDelivered-To: p-r@y\n"


@pytest.mark.parametrize(
    ("content", "prefix", "found"),
    [
        (TOP + b"Subject: x\n\n", b"p-", (b"s@x", b"r@y", b"Subject: x\n\n")),
        (TOP + b"hi", b"", (b"s@x", b"p-r@y", b"hi")),
        (b"Return-Path: <>\nDelivered-To: p-r@y\n", b"p-", (b"", b"r@y", b"")),
        (TOP, b"q-", None),
        (TOP, b"P-", None),
        (b"Subject: x\n\n", b"", None),
        (b"", b"", None),
        (b"Return-Path: <s@x>\nhi\n", b"", None),
        (b"Delivered-To: p-r@y\nhi\n", b"", None),
    ],
)
def test_an_envelope(
    here: Path, content: bytes, prefix: bytes, found: tuple[bytes, bytes, bytes] | None
) -> None:
    """What has none, or not ours, is somebody else's."""
    (here / "m").write_bytes(content)
    queued = open_message(b"m", prefix)
    if found is None:
        assert queued is None
    else:
        assert queued is not None
        text = bytearray()
        assert queued.append_to(text) == ()
        assert (queued.sender, *queued.recipients, bytes(text)) == found


@pytest.mark.parametrize(
    "content",
    [
        b"Return-Path: <s@x\n folded>\nDelivered-To: p-r@y\n",
        b"Return-Path: <s@x>\nDelivered-To: p-\n",
        b"Return-Path: <s@x>\nEnvelope-to: p-a@y, p-b@y\n",
        b"Return-Path: <s@x>\nDelivered-To: p-" + b"r" * 1_000 + b"\n",
    ],
)
def test_what_cannot_be_sent(here: Path, content: bytes) -> None:
    """It is told of, and the others go on; a single result cannot speak for two recipients."""
    (here / "m").write_bytes(content)
    with pytest.raises(EnvelopeError):
        open_message(b"m", b"p-")


def test_what_cannot_be_opened_or_read(here: Path) -> None:
    """The words are serialmail's; a FIFO must not keep us waiting."""
    (here / "d").mkdir()
    os.mkfifo(here / "fifo")
    for name, why in (("none", "open"), ("", "open"), ("d", "read"), ("fifo", "read")):
        with pytest.raises(UnreadableError, match=f"unable to {why} file"):
            open_message(name.encode(), b"")


# At work


class Work:
    """A conversation with a server in memory; a feeder that may wait, a clock that does not."""

    def __init__(
        self, server: FakeServer, clock: Callable[[], float], said_by: bytes = b""
    ) -> None:
        names, self.names = os.pipe()
        self.results, results = os.pipe()
        self._ours = [names, results]
        self.server = server
        self.why = "it has not ended"
        self.conversation = Conversation(server, b"p-", said_by, clock, names, results)

    def run(self, *names: bytes) -> str:
        """Give these names and no more; run to the end."""
        os.write(self.names, b"".join(name + b"\0" for name in names))
        self.end_names()
        self._run()
        return self.why

    def start(self) -> threading.Thread:
        """Run beside the test."""
        thread = threading.Thread(target=self._run, daemon=True)
        thread.start()
        return thread

    def _run(self) -> None:
        self.why = self.conversation.run()

    def end_names(self) -> None:
        """No name any more."""
        os.close(self.names)
        self.names = -1

    def all_results(self) -> bytes:
        """What was written, after the end."""
        for fd in self._ours:
            os.close(fd)
        self._ours = []
        written = b""
        while data := os.read(self.results, 1 << 20):
            written += data
        return written

    def close(self) -> None:
        """Close what is open."""
        for fd in (*self._ours, self.names, self.results):
            if fd >= 0:
                os.close(fd)


Make = Callable[..., Work]


@pytest.fixture
def work(here: Path, monkeypatch: pytest.MonkeyPatch, clock: FakeClock) -> Iterator[Make]:
    """Make a conversation with a server that is a function."""
    never_wait(monkeypatch, clock)
    made: list[Work] = []

    def make(server: Callable[[FakeServer, Package], None], **more: object) -> Work:
        one = Work(FakeServer(server, two_fds=True, **more), clock)  # type: ignore[arg-type]
        made.append(one)
        return one

    for name in ("1", "2", "3"):
        (here / name).write_bytes(TOP + name.encode())
    yield make
    for one in made:
        one.close()


def agree(server: FakeServer, package: Package) -> None:
    """Take everything."""
    server.respond(b"Kok " + package.text)


def test_each_name_has_its_result(work: Make) -> None:
    """In order; what is not ours has none."""
    Path("other").write_bytes(b"Subject: x\n\n")
    one = work(agree)
    assert one.run(b"1", b"other", b"2") == ""
    assert one.all_results() == b"1\0Kok 1\n2\0Kok 2\n"
    assert [p.recipients for p in one.server.received] == [(b"r@y",)] * 2
    assert one.server.closed


def test_an_answer_too_many_is_a_violation(work: Make) -> None:
    """A server that has lost count is not trusted with more; its next answers are others'."""

    def server(it: FakeServer, package: Package) -> None:
        if len(it.received) == 64:
            it.respond(*[b"Kok"] * 65)

    one = work(server)
    assert one.run(*[b"1"] * 65) == "remote protocol violation"
    assert one.all_results() == b"1\0Kok\n" * 64


@pytest.mark.parametrize(
    ("chunk", "why"),
    [
        (b"", "network read error: end of file"),
        (broken(), "network read error: Connection reset by peer"),
        (b"3:Xok,", "remote protocol violation"),
        (b"03:Kok,", "remote protocol violation"),
        (b"3:Ko", "network read error: end of file"),
    ],
)
def test_how_a_server_fails(work: Make, chunk: bytes, why: str) -> None:
    """The results that have come are told first; the others have none."""

    def server(it: FakeServer, package: Package) -> None:
        if len(it.received) == 2:
            it.say(chunk)
            it.hang_up()
        else:
            agree(it, package)

    one = work(server)
    assert one.run(b"1", b"2", b"3") == why
    assert one.all_results() == b"1\0Kok 1\n"


def test_a_server_that_cannot_be_written_to(work: Make) -> None:
    """It may still have answered."""
    one = work(agree, takes=[30, broken()])
    assert one.run(b"1", b"2", b"3") == "unable to write to network"
    assert one.all_results() == b"1\0Kok 1\n"


def test_a_server_that_leaves_after_the_last_answer(work: Make) -> None:
    """Everything is answered: that is success. With more to come it is none."""

    def server(it: FakeServer, package: Package) -> None:
        agree(it, package)
        it.hang_up()

    assert work(server).run(b"1") == ""
    one = work(server)
    assert one.run(b"1", b"2") == "network read error: end of file"
    assert one.all_results() == b"1\0Kok 1\n"
    # But what is none of its business could not have been sent anyway.
    Path("other").write_bytes(b"Subject: x\n\n")
    assert work(server).run(b"1", b"other") == ""


def test_a_server_that_says_nothing_for_an_hour(work: Make, clock: FakeClock) -> None:
    """From its last byte on, not from the package: a slow server is not a dead one."""

    def server(it: FakeServer, package: Package) -> None:
        if len(it.received) == 1:
            clock.at(clock() + 3_000, lambda: it.say(b"5:"))
            clock.at(clock() + 6_000, lambda: it.say(b"Ktext,"))

    began = clock()
    one = work(server)
    assert one.run(b"1") == ""
    assert one.all_results() == b"1\0Ktext\n"
    one = work(lambda it, package: None)
    began = clock()
    assert one.run(b"1") == "network read error: Connection timed out"
    assert clock() - began == READ_TIMEOUT_S


def test_a_server_that_was_not_asked_for_long(work: Make, clock: FakeClock) -> None:
    """The hour begins with the question: a feeder may think about the next name."""

    def server(it: FakeServer, package: Package) -> None:
        if len(it.received) == 1:
            agree(it, package)
        else:
            clock.at(clock() + 3_500, lambda: agree(it, package))

    def second() -> None:
        os.write(one.names, b"2\0")
        one.end_names()

    one = work(server)
    os.write(one.names, b"1\0")
    clock.at(clock() + 2_900, second)
    # Nothing is waited for meanwhile: the selector would never return.
    clock.at(clock() + 1, lambda: None)
    one.conversation._deadline = lambda: clock() + 10  # type: ignore[method-assign]
    one._run()
    assert one.why == ""
    assert one.all_results() == b"1\0Kok 1\n2\0Kok 2\n"


def test_results_that_are_not_taken_are_not_gathered(work: Make) -> None:
    """Beyond what a pipe holds and a little more, answers stay with the server: memory is bounded.

    Nor does writing them wait: everything else would, too.
    """

    def server(it: FakeServer, package: Package) -> None:
        count = len(it.received)
        if count % 10 == 1:  # the first at once, the others by tens
            it.respond(*[b"K" + b"x" * 1_900] * min(10, count))

    one = work(server)
    with pytest.raises(AssertionError, match="round in circles"):
        one.run(*[b"1"] * 4_001)
    assert len(one.server.received) == 4_001
    assert RESULTS_BYTES <= len(one.conversation._results) < RESULTS_BYTES + 20_000


def test_a_server_that_takes_nothing(work: Make, clock: FakeClock) -> None:
    """73 seconds, as serialmail has it."""
    one = work(agree, takes=[0] * 100)
    os.eventfd_write(one.server.write_fd, 2**64 - 2)  # and is full
    began = clock()
    assert one.run(b"1") == "unable to write to network"
    assert clock() - began == 73.0
    assert one.all_results() == b""


def test_after_fifty_minutes_no_more_is_sent(work: Make, clock: FakeClock) -> None:
    """At sixty the server hangs up, and what is under way would come twice."""

    def server(it: FakeServer, package: Package) -> None:
        if len(it.received) == count:
            clock.at(clock() + 3_001, lambda: it.respond(*[b"Kslow"] * count))

    count = 64
    one = work(server)
    assert one.run(*[b"1"] * 65) == "unable to write to network: a session's 50 minutes are over"
    assert one.all_results().count(b"Kslow\n") == 64
    assert len(one.server.received) == 64
    count = 1
    assert work(server).run(b"1") == ""


@pytest.mark.parametrize(
    ("name", "why"),
    [
        (b"none", "unable to open file"),
        (b"d", "unable to read file"),
        (b"x" * 5_000, "unable to open file"),
    ],
)
def test_a_file_that_cannot_be_had_is_the_end(work: Make, name: bytes, why: str) -> None:
    """As in serialmail; but not before the results of those before it."""
    Path("d").mkdir()
    one = work(agree)
    assert one.run(b"1", b"2", name, b"3") == why
    assert one.all_results() == b"1\0Kok 1\n2\0Kok 2\n"


def test_half_a_package_is_never_made_whole(work: Make, here: Path) -> None:
    """A large file that shrinks while it is sent: the server must not take what is left of it."""
    size = 3 << 20
    (here / "large").write_bytes(TOP + b"x" * size)
    one = work(agree, takes=[1 << 16, 1 << 16, 1 << 20])
    taken = one.server.send_file

    def shrink(fd: int, offset: int, count: int) -> int | None:
        os.truncate("large", 1_000)
        return taken(fd, offset, count)

    one.server.send_file = shrink  # type: ignore[method-assign]
    assert one.run(b"1", b"large", b"2") == "unable to read file"
    assert one.all_results() == b"1\0Kok 1\n"
    assert [p.text for p in one.server.received] == [b"1"]
    assert one.server.closed


def test_a_large_file_replaced_in_its_place_is_not_sent(work: Make, here: Path) -> None:
    """Of the same size, but not the same: its last byte stays here."""
    (here / "large").write_bytes(TOP + b"x" * (3 << 20))
    one = work(agree, takes=[1 << 16, 1 << 16, 1 << 20])
    taken = one.server.send_file

    def touch(fd: int, offset: int, count: int) -> int | None:
        os.utime("large", (1, 1))
        return taken(fd, offset, count)

    one.server.send_file = touch  # type: ignore[method-assign]
    assert one.run(b"large") == "unable to read file"
    assert one.server.received == []


def test_names_that_cannot_be_read(work: Make, here: Path) -> None:
    """A directory as standard input, say."""
    one = work(agree)
    os.dup2(directory := os.open(here, os.O_RDONLY), one._ours[0])
    os.close(directory)
    one._run()
    assert one.why == "unable to read input"


def test_results_that_nobody_takes(work: Make) -> None:
    """Then nothing more is sent: its result would be lost."""
    one = work(agree)
    os.write(one.names, b"1\0")
    os.close(one.results)
    one.results = -1
    with pytest.raises(BrokenPipeError):
        one._run()
    assert one.server.closed


def test_names_in_a_file_and_results_in_a_file(work: Make, here: Path) -> None:
    """`serialqmtp p- < names > results`: no selector takes these."""
    one = work(agree)
    (here / "names").write_bytes(b"1\0002\0")
    for fd, (path, flags) in zip(
        one._ours,
        (("names", os.O_RDONLY), ("results", os.O_WRONLY | os.O_CREAT)),
        strict=True,
    ):
        os.dup2(file := os.open(here / path, flags), fd)
        os.close(file)
    one._run()
    assert one.why == ""
    assert (here / "results").read_bytes() == b"1\0Kok 1\n2\0Kok 2\n"


# Really waiting


def test_a_feeder_that_waits_for_each_result(here: Path) -> None:
    """It would wait for ever if results came at the end."""
    (here / "1").write_bytes(TOP)
    server = FakeServer(agree, two_fds=True)
    one = Work(server, lambda: 0.0, b"192.0.2.7")
    thread = one.start()
    for _ in range(3):
        os.write(one.names, b"1\0")
        assert os.read(one.results, 100) == b"1\0K192.0.2.7 said: ok \n"
    one.end_names()
    thread.join(30)
    assert one.why == ""
    one.close()


def test_a_feeder_that_takes_no_result_before_its_last_name(here: Path) -> None:
    """More than two pipes hold are waited with, in bounded memory, and all come in the end."""
    (here / "1").write_bytes(TOP)
    server = FakeServer(lambda it, package: it.respond(b"K" + b"x" * 1_900), two_fds=True)
    one = Work(server, lambda: 0.0)
    thread = one.start()
    sent, count = 0, 4_000

    def more() -> bool:
        nonlocal sent
        os.set_blocking(one.names, False)
        try:
            while sent < 2 * count:
                sent += os.write(one.names, b"1\0" * min(100, count - sent // 2))
        except BlockingIOError:
            pass
        return len(server.received) * 1_903 > RESULTS_BYTES

    wait_until(more, "results to wait")
    # All answers are in this server's hands, for nobody asks for them any more.
    os.set_blocking(one.names, True)
    feeder = threading.Thread(target=lambda: os.write(one.names, b"1\0" * (count - sent // 2)))
    feeder.start()
    got = 0
    while got < count * 1_904:
        data = os.read(one.results, 1 << 20)
        assert data
        got += len(data)
    feeder.join(30)
    one.end_names()
    thread.join(30)
    assert one.why == ""
    assert len(server.received) == count
    one.close()


def test_a_feeder_that_takes_its_time_is_not_the_servers_fault(
    here: Path, clock: FakeClock
) -> None:
    """Two hours without a byte from a server that nobody has listened to: no time-out."""
    (here / "1").write_bytes(TOP)
    result = len(b"1\0K" + b"x" * 1_900 + b"\n")
    answered = RESULTS_BYTES // result + 1

    def server(it: FakeServer, package: Package) -> None:
        if len(it.received) <= answered:
            it.respond(b"K" + b"x" * 1_900)

    made = FakeServer(server, two_fds=True)
    one = Work(made, clock)
    full = os.write(one._ours[1], bytes(16 * 4_096))
    thread = one.start()
    os.write(one.names, b"1\0" * (answered + 1))

    def stalled() -> bool:
        all_sent = len(made.received) == answered + 1
        return all_sent and len(one.conversation._results) == answered * result

    wait_until(stalled, "results that nobody takes")
    clock.advance(2 * READ_TIMEOUT_S)
    got = 0
    while got < full + answered * result:
        got += len(os.read(one.results, 1 << 20))
    made.respond(b"Kok")
    assert os.read(one.results, 100) == b"1\0Kok\n"
    one.end_names()
    thread.join(30)
    assert one.why == ""
    one.close()


def test_the_error_of_a_connection_is_named(work: Make) -> None:
    """Whatever the kernel calls it."""
    one = work(lambda it, package: it.say(broken_with(errno.EHOSTUNREACH)))
    assert one.run(b"1") == "network read error: No route to host"


def broken_with(number: int) -> Exception:
    """A broken connection, for this reason."""
    error = broken()
    error.errno = number
    return error
