"""Servers that do what no server may: nothing is lost, and the run ends by itself.

Every run here is judged by `evil.judge`: a message has left new/ only if the
server had read it whole and answered K to it, or answered D and it is in the
failed maildir with the reason; a second copy only went out with a warning.
"""

from __future__ import annotations

import io
import random
import re
import select
import socket
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from maildirqmtp.forwarder.forwarder import Forwarder
from maildirqmtp.forwarder.report import Report
from maildirqmtp.forwarder.route import Route
from maildirqmtp.maildir.maildir import Maildir
from maildirqmtp.transport.connect import connect
from maildirqmtp.transport.endpoint import Endpoint, TcpEndpoint
from maildirqmtp.transport.sockets import SocketTransport
from maildirqmtp.transport.transport import Transport
from tests.e2e.evil import (
    SQMAIL_REFUSALS,
    Evil,
    RecordingTransport,
    evil_server,
    forward,
    honest,
    judge,
    responses_in,
    run_command,
    run_engine,
    stock,
)

Ending = Callable[[RecordingTransport], None]

K = b"3:Kok,"
BIG = b"Subject: streamed\n\n" + random.Random(1).randbytes(3 << 20)
TEXTS = tuple(b"Subject: %d\n\nmessage %d\n" % (i, i) for i in range(6))

#: What may come instead of a response.
RUBBISH: dict[str, bytes] = {
    "smtp": b"220 mx.example.org ESMTP\r\n",
    "http": b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n",
    "tls": b"\x15\x03\x01\x00\x02\x02F",
    "newline": b"\n",
    "nul": b"\0",
    "comma": b",",
    "huge-length": b"18446744073709551619:Kok,",
    "endless-digits": b"9" * 100_000,
    "length-just-above": b"65537:K" + b"x" * 65_536 + b",",
    "plus": b"+3:Kok,",
    "minus": b"-3:Kok,",
    "space-before": b" 3:Kok,",
    "space-after": b"3 :Kok,",
    "underscore": b"1_0:Kok123456 ,",
    "unicode-digit": "\u0663:Kok,".encode(),
    "leading-zero": b"03:Kok,",
    "all-zero": b"00:,",
    "no-length": b":Kok,",
    "no-colon": b"3Kok,",
    "bare": b"Kok,",
    "empty": b"0:,",
    "lower-case": b"3:kok,",
    "unknown-status": b"3:Xok,",
    "space-status": b"3: ok,",
    "no-comma": b"3:Kok",
    "wrong-comma": b"3:Kok;",
    "short-k": b"2:Kok,",
    "short-z": b"2:Zok,",
    "long-k": b"4:Kok,",
    "far-too-short-d": b"2:Dnope,",
    "garbage": random.Random(2).randbytes(5 << 20),
}
#: What follows rubbish: nothing of it may be believed.
LURE = K * 20


def answer_with(rubbish: bytes, honest_first: int) -> Evil:
    """Make a server that answers rightly so many times, then with rubbish and lures."""

    def evil(line: RecordingTransport, number: int) -> None:
        for count, _ in enumerate(line.packages_from()):
            if count < honest_first:
                line.send(K)
            else:
                line.send(rubbish + LURE)
                line.drain()

    return evil


@pytest.mark.parametrize("rubbish", RUBBISH.values(), ids=RUBBISH)
def test_rubbish_for_an_answer_accepts_nothing(tmp_path: Path, rubbish: bytes) -> None:
    """A wrong port, or a broken server, would empty the maildir into nowhere."""
    assert b"K" not in responses_in(rubbish + LURE)
    made = stock(tmp_path / "m", *TEXTS[:4], BIG)
    ran, server = forward(made, answer_with(rubbish, 0))
    assert made.new == made.messages.keys()
    assert ran.code == 111
    assert len(server.lines) == 4, "a server that talks nonsense is not asked again and again"
    assert server.server.address in ran.stderr
    assert len(ran.stderr) < 5_000


@pytest.mark.parametrize("good", [1, 2, 3])
@pytest.mark.parametrize("rubbish", RUBBISH.values(), ids=RUBBISH)
def test_rubbish_after_good_answers(tmp_path: Path, rubbish: bytes, good: int) -> None:
    """A server that loses its mind half-way: what was accepted goes, the rest stays."""
    made = stock(tmp_path / "m", *TEXTS)

    def evil(line: RecordingTransport, number: int) -> None:
        (answer_with(rubbish, good) if number == 0 else answer_with(rubbish, 0))(line, number)

    forward(made, evil, in_process=True)
    assert len(made.new) == len(TEXTS) - good


@pytest.mark.parametrize("rubbish", RUBBISH.values(), ids=RUBBISH)
def test_rubbish_for_a_greeting(tmp_path: Path, rubbish: bytes) -> None:
    """An SMTP server speaks first; that must not be taken for an answer."""
    made = stock(tmp_path / "m", *TEXTS)

    def evil(line: RecordingTransport, number: int) -> None:
        line.send(rubbish + LURE)
        line.drain()

    ran, _ = forward(made, evil, in_process=True)
    assert made.new == made.messages.keys()
    assert ran.code == 111


@pytest.mark.parametrize("greeting", [b"3:K", K, K * 50, b"1:D,", b"1:Z,"])
def test_an_answer_before_anything_is_sent(tmp_path: Path, greeting: bytes) -> None:
    """A server that answers before it was asked has accepted nothing."""
    made = stock(tmp_path / "m", *TEXTS)
    seen: list[Transport] = []

    def connect_and_wait(server: Endpoint, timeout_s: float) -> Transport:
        transport = connect(server, timeout_s)
        assert select.select([transport.read_fd], [], [], 20)[0]
        seen.append(transport)
        return transport

    def evil(line: RecordingTransport, number: int) -> None:
        line.send(greeting)
        line.half_close()

    report = Report(io.StringIO())
    with evil_server(evil) as server, Maildir(bytes(made.maildir)) as maildir:
        address = TcpEndpoint("127.0.0.1", server.server.port)
        forwarder = Forwarder(Route(maildir.path, address), maildir, report, connect_and_wait)
        forwarder.run_batch(maildir.scan())
        forwarder.close()
    assert seen
    assert made.new == made.messages.keys()
    assert not made.failed
    assert report.counters.exit_code == 111


@pytest.mark.parametrize("response", [K, b"3:Zno,", b"3:Dno,"])
@pytest.mark.parametrize("before", [0, 1, 2])
def test_an_answer_before_the_package_is_complete(
    tmp_path: Path, response: bytes, before: int
) -> None:
    """Of a message that a server has only begun to read, no answer can be true."""
    made = stock(tmp_path / "m", *TEXTS[:before])
    made.add(b"x" * (24 << 20))

    def evil(line: RecordingTransport, number: int) -> None:
        # Small buffers, so that most of the message is still with the client.
        line.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 10)
        if number == 0 and before:
            for count, _ in enumerate(line.packages_from(), 1):
                line.send(K)
                if count == before:
                    break
        line.take(1_000)
        line.send(response)
        line.drain()

    ran, _ = forward(made, evil)
    assert len(made.new) == 1, "the large one stays"
    assert not made.failed
    assert not ran.in_doubt(), "it was never sent whole, so it cannot come twice"


def both_at_once(line: RecordingTransport, number: int) -> None:
    """Answer each package twice, in one go."""
    for package in line.packages_from():
        line.send(b"%d:K%b," % (len(package.text) + 1, package.text) * 2)


def one_late(line: RecordingTransport, number: int) -> None:
    """Answer the first package again, when the next has come."""
    for count, _ in enumerate(line.packages_from()):
        line.send(K if count != 1 else K + b"3:Dno,")


def floods(line: RecordingTransport, number: int) -> None:
    """Answer the first package a million times."""
    for _ in line.packages_from():
        line.send(K * 1_000_000)


@pytest.mark.parametrize("evil", [both_at_once, one_late, floods])
def test_surplus_answers(tmp_path: Path, evil: Evil) -> None:
    """A second answer to the same message must not be taken as one to the next.

    Where it comes with the first, nothing else is in flight with this window. Where it
    comes later it cannot be told from the next one's answer.
    """
    made = stock(tmp_path / "m", *TEXTS)
    _, server = forward(made, evil, "--window", "1")
    if evil is not one_late:
        assert [len(line.packages) for line in server.lines] == [1] * len(TEXTS)


@pytest.mark.parametrize("first", [0, 1, 4])
def test_each_surplus_answer_ends_its_connection(tmp_path: Path, first: int) -> None:
    """Who answers what nobody asked has lost count, and is not trusted with more mail."""
    made = stock(tmp_path / "m", *TEXTS)

    def evil(line: RecordingTransport, number: int) -> None:
        for count, _ in enumerate(line.packages_from()):
            line.send(K if number == 0 and count < first else 2 * K)

    ran, server = forward(made, evil, "--window", "1")
    assert ran.code == 0, ran.stderr
    assert [len(line.packages) for line in server.lines] == [first + 1] + [1] * (5 - first)
    closed = [event["reason"] for event in ran.events if event["event"] == "closed"]
    assert len(closed) == len(server.lines)
    assert all("nobody waits for" in reason for reason in closed)


def test_surplus_answers_never_credit_a_message_that_was_refused(tmp_path: Path) -> None:
    """One that answers K twice, then D: the D's message would be deleted as accepted."""
    made = stock(tmp_path / "m", *TEXTS)

    def evil(line: RecordingTransport, number: int) -> None:
        for count, package in enumerate(line.packages_from()):
            first = package.text == TEXTS[0] and count == 0
            line.send(2 * K if first else b"3:Dno,")

    forward(made, evil, "--window", "1")
    assert not (made.new | made.failed) & {next(iter(made.messages))}
    assert made.failed == set(list(made.messages)[1:])


@pytest.mark.parametrize("good", [0, 1, 3])
@pytest.mark.parametrize("half", [b"3", b"3:", b"3:K", b"3:Kok", b"3:Dno", b"65536:Zx"])
@pytest.mark.parametrize(
    "ending", [RecordingTransport.drain, RecordingTransport.half_close, RecordingTransport.reset]
)
def test_half_an_answer(tmp_path: Path, half: bytes, good: int, ending: Ending) -> None:
    """An answer whose last byte is missing is none, whichever way the connection ends."""
    made = stock(tmp_path / "m", *TEXTS)

    def evil(line: RecordingTransport, number: int) -> None:
        for count, _ in enumerate(line.packages_from()):
            if number == 0 and count < good:
                line.send(K)
            else:
                line.send(half)
                return ending(line)

    limit = 0.3 if ending is RecordingTransport.drain else 20.0
    forward(made, evil, in_process=True, response_timeout_s=limit)
    # A reset may take answers back that the client had not read yet.
    assert len(TEXTS) - good <= len(made.new) <= len(TEXTS)
    if ending is not RecordingTransport.reset:
        assert len(made.new) == len(TEXTS) - good


def test_answers_one_byte_at_a_time(tmp_path: Path) -> None:
    """A slow line cuts answers anywhere."""
    made = stock(tmp_path / "m", *TEXTS, BIG)

    def evil(line: RecordingTransport, number: int) -> None:
        line.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in line.packages_from():
            for byte in b"12:Kaccepted it,":
                line.send(bytes([byte]))

    ran, _ = forward(made, evil)
    assert ran.code == 0


def never_answers(line: RecordingTransport, number: int) -> None:
    """Read everything, say nothing."""
    line.drain()


def never_reads(line: RecordingTransport, number: int) -> None:
    """Keep the connection open, until the server closes it."""
    line.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 10)
    poll = select.poll()
    poll.register(line.socket, select.POLLRDHUP)
    poll.poll(20_000)


def answers_one_then_nothing(line: RecordingTransport, number: int) -> None:
    """Answer once for each run, then never again."""
    for count, _ in enumerate(line.packages_from()):
        if count == 0 and number == 0:
            line.send(K)


@pytest.mark.parametrize("evil", [never_answers, never_reads, answers_one_then_nothing])
@pytest.mark.parametrize("large", [False, True])
def test_silence_ends_with_the_time_out(tmp_path: Path, evil: Evil, large: bool) -> None:
    """A server that hangs must not make every later cron job hang too."""
    made = stock(tmp_path / "m", *TEXTS, *([BIG * 4] if large else []))
    if large:  # first, too
        made.maildir.joinpath("new", "1600000000.M0P1.test").write_bytes(
            b"Return-Path: <s@x>\nDelivered-To: r@y\n" + BIG[:-1] * 4
        )
        made.messages["1600000000.M0P1.test"] = (BIG[:-1] * 4, (b"r@y",))
    before = len(made.messages)
    flags = ("--response-timeout", "1", "--write-timeout", "1")
    ran, server = forward(made, evil, *flags)
    accepted = 1 if evil is answers_one_then_nothing else 0
    assert len(made.new) == before - accepted
    assert ran.code == 111
    assert " in 1 s" in ran.stderr
    # By eighths down to one, and three times in vain.
    assert len(server.lines) <= 4


@pytest.mark.parametrize(
    "ending", [lambda line: None, RecordingTransport.half_close, RecordingTransport.reset]
)
@pytest.mark.parametrize("after", [0, 1])
def test_a_server_that_dies_again_and_again(tmp_path: Path, ending: Ending, after: int) -> None:
    """Cron's run must end, leave a dead server alone, and say what may come twice."""
    made = stock(tmp_path / "m", *(b"Subject: %d\n\n%d\n" % (i, i) for i in range(200)))

    def evil(line: RecordingTransport, number: int) -> None:
        if number < after:
            next(line.packages_from())
            line.send(K)
        ending(line)

    ran, server = forward(made, evil)
    assert ran.code == 111
    assert len(made.new) == 200 - after
    assert len(server.lines) <= 12
    # Reset as soon as it is there, the connection may be gone before we know of it.
    assert "without an answer" in ran.stderr or "cannot connect" in ran.stderr
    assert re.search(r"\((1[0-9][0-9]|200) left\)", ran.stderr)


def test_what_may_come_twice_is_named(tmp_path: Path) -> None:
    """An administrator who is asked about a double must find it in the log."""
    made = stock(tmp_path / "m", *TEXTS)

    def evil(line: RecordingTransport, number: int) -> None:
        for count, _ in enumerate(line.packages_from()):
            if count == 0 and number == 0:
                line.send(K)
            if (number == 0 and len(line.packages) == len(TEXTS)) or number:
                return

    ran, _ = forward(made, evil)
    left = set(list(made.messages)[1:])
    assert made.new == left
    assert {name for name, _ in ran.in_doubt()} == left
    for name in left:
        assert re.search(rf"{re.escape(name)}: r@y: in-doubt: .*twice", ran.stderr)


#: Three short messages, one of them to two recipients: a whole session in some 100 bytes.
SESSION = (b"a\n", b"bb\n", b"ccc\n")
SESSION_BYTES = sum(
    len(b"%d:\n%b,3:s@x,%d:%b," % (len(t) + 1, t, len(to), to))
    for t, to in zip(SESSION, (b"3:r@y,", b"3:r@y,3:q@y,", b"3:r@y,"), strict=True)
)


def hang_up(line: RecordingTransport) -> None:
    """Close as a process that exits does."""
    line.socket.close()


ENDINGS = (hang_up, RecordingTransport.half_close, RecordingTransport.reset)


def cut_reading(limit: int, ending: Ending, always: bool) -> Evil:
    """Make a server that ends the first or every connection after so many bytes."""

    def evil(line: RecordingTransport, number: int) -> None:
        if number and not always:
            return honest(line)
        taken = answered = 0
        while taken < limit and (got := line.take(limit - taken)):
            taken += got
            for package in line.packages[answered:]:
                line.send(K * len(package.recipients))
                answered += 1
        ending(line)

    return evil


def cut_writing(limit: int, ending: Ending, always: bool, status: bytes) -> Evil:
    """Make a server that ends a connection after writing so many bytes of its answers."""

    def evil(line: RecordingTransport, number: int) -> None:
        if number and not always:
            return honest(line)
        for package in line.packages_from():
            answer = b"3:%bok," % status * len(package.recipients)
            line.send(answer[: limit - len(line.written)])
            if len(line.written) >= limit:
                break
        ending(line)

    return evil


@pytest.mark.parametrize("always", [False, True])
@pytest.mark.parametrize("ending", ENDINGS)
def test_cut_off_after_each_byte_that_is_read(tmp_path: Path, ending: Ending, always: bool) -> None:
    """Wherever the line breaks on the way there, nothing is lost and all gets through later."""
    for limit in range(SESSION_BYTES + 1):
        made = stock(tmp_path / str(limit), SESSION[0])
        made.add(SESSION[1], b"r@y", b"q@y")
        made.add(SESSION[2])
        ran, _ = forward(made, cut_reading(limit, ending, always), in_process=True)
        # A reset at once can come before the client has seen that it is connected.
        unreachable = limit == 0 and (always or "cannot connect" in ran.stderr)
        assert ran.code == 0 or always or unreachable, (limit, ran.stderr)
        if unreachable:
            assert made.new == made.messages.keys()


@pytest.mark.parametrize("status", [b"K", b"Z", b"D"])
@pytest.mark.parametrize("always", [False, True])
@pytest.mark.parametrize("ending", ENDINGS)
def test_cut_off_after_each_byte_that_is_written(
    tmp_path: Path, ending: Ending, always: bool, status: bytes
) -> None:
    """Wherever the line breaks on the way back, only what was in doubt goes twice."""
    for limit in range(4 * len(K) + 1):
        made = stock(tmp_path / str(limit), SESSION[0])
        made.add(SESSION[1], b"r@y", b"q@y")
        made.add(SESSION[2])
        evil = cut_writing(limit, ending, always, status)
        ran, _ = forward(made, evil, in_process=True)
        if status == b"K" and not always:
            assert ran.code == 0, (limit, ran.stderr)


@pytest.mark.parametrize("ending", ENDINGS)
def test_cut_off_amid_large_messages(tmp_path: Path, ending: Ending) -> None:
    """One that was cut off goes again from its first byte; a large one, in the next run."""
    for number, limit in enumerate((1, 100, 1 << 20, 3 << 20, (3 << 20) + 60, 5 << 20)):
        made = stock(tmp_path / str(number), BIG, BIG[:-1], TEXTS[0], BIG[:-2])
        ran, _ = forward(made, cut_reading(limit, ending, False), in_process=True)
        if ran.code:
            assert "3 accepted, 1 deferred" in ran.stderr, (limit, ran.stderr)
            assert "the connection broke" in ran.stderr
            with evil_server(lambda line, number: honest(line)) as server:
                ran = run_engine(made, server)
        assert ran.code == 0, (limit, ran.stderr)


@pytest.mark.parametrize("text", [TEXTS[1], BIG])
@pytest.mark.parametrize("change", ["replaced", "grown"])
def test_a_message_that_changes_while_it_is_answered(
    tmp_path: Path, text: bytes, change: str
) -> None:
    """The K is for what was sent; what stands under that name now was never sent."""
    made = stock(tmp_path / "m", TEXTS[0], text, TEXTS[2])
    path = made.maildir / "new" / list(made.messages)[1]
    now = b"Return-Path: <s@x>\nDelivered-To: r@y\nSubject: another\n\n"

    def evil(line: RecordingTransport, number: int) -> None:
        for package in line.packages_from():
            if package.text == text and change == "replaced":
                (tmp_path / "other").write_bytes(now)
                (tmp_path / "other").rename(path)
            elif package.text == text:
                with path.open("ab") as file:
                    file.write(b"more")
            line.send(K)

    with evil_server(evil) as server:
        ran = run_command(made, server)
        assert ran.code == 0
        assert "to be sent as it is now" in ran.stderr
    assert not made.new
    sent = [package.text for line in server.lines for package in line.packages]
    assert len(sent) == 4
    assert sent[3].endswith(b"more" if change == "grown" else b"Subject: another\n\n")


class LateReader(SocketTransport):
    """A connection that learns of its end by sending, before it has read what came last."""

    def __init__(self, sock: socket.socket, name: str, over: threading.Event) -> None:
        super().__init__(sock, name)
        self._over = over

    def send_file(self, fd: int, offset: int, count: int) -> int | None:
        """Send nothing of a streamed message before the server has hung up."""
        assert self._over.wait(20)
        # The first is what makes a closed socket say so.
        super().send_file(fd, offset, count)
        return super().send_file(fd, offset, count)


@pytest.mark.parametrize("ending", [hang_up, RecordingTransport.reset])
def test_answers_are_read_even_when_sending_fails_first(tmp_path: Path, ending: Ending) -> None:
    """Answers that lie in our own buffer when a send fails are answers; else they go twice."""
    made = stock(tmp_path / "m", *TEXTS, BIG, BIG[:-1])
    over = threading.Event()
    connections: list[socket.socket] = []

    def connect_late(server: Endpoint, timeout_s: float) -> Transport:
        assert isinstance(server, TcpEndpoint)
        sock = socket.create_connection((server.host, server.port), timeout_s)
        connections.append(sock)
        is_first = len(connections) == 1
        return LateReader(sock, "late", over) if is_first else SocketTransport(sock, "server")

    def evil(line: RecordingTransport, number: int) -> None:
        for _ in line.packages_from():
            if number:
                line.send(K)
            elif len(line.packages) == len(TEXTS):
                line.send(K * len(TEXTS))
                ending(line)
                over.set()
                return

    data = io.StringIO()
    report = Report(io.StringIO(), data)
    with evil_server(evil) as server, Maildir(bytes(made.maildir)) as maildir:
        address = TcpEndpoint("127.0.0.1", server.server.port)
        forwarder = Forwarder(Route(maildir.path, address), maildir, report, connect_late)
        forwarder.run_batch(maildir.scan())
        forwarder.close()
    assert not made.new
    assert report.counters.in_doubt == 0
    assert sum(len(line.packages) for line in server.lines) == len(made.messages)


@pytest.mark.parametrize("refusal", SQMAIL_REFUSALS)
@pytest.mark.parametrize("piecemeal", [False, True])
def test_short_refusals_of_sqmail_cost_nothing(
    tmp_path: Path, refusal: bytes, piecemeal: bool
) -> None:
    """200 messages to several, 20 of them with a refused one: 293 copies for 180 recipients."""
    made = stock(tmp_path / "m")
    for number in range(200):
        people = [b"r%d.%d@y" % (number, place) for place in range(1 + number % 4)]
        if number % 10 == 3:
            people.insert(number // 10 % (len(people) + 1), b"x%d@bad" % number)
        made.add(b"Subject: %d\n\n" % number, *people)

    def evil(line: RecordingTransport, number: int) -> None:
        line.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for package in line.packages_from():
            said = b"".join(refusal if r.endswith(b"@bad") else K for r in package.recipients)
            for start in range(0, len(said), 1 if piecemeal and b"D" in said else len(said)):
                line.send(said[start : start + (1 if piecemeal and b"D" in said else len(said))])

    ran, server = forward(made, evil)
    packages = [package for line in server.lines for package in line.packages]
    copies = Counter(r for package in packages for r in package.recipients)
    assert set(copies.values()) == {1}
    assert len(server.lines) == 1
    assert len(made.failed) == 20
    assert not made.new
    assert ran.code == 111


@pytest.mark.parametrize("refusal", SQMAIL_REFUSALS)
def test_a_short_refusal_counts_as_the_last_thing_a_server_says(
    tmp_path: Path, refusal: bytes
) -> None:
    """It refuses the last one, and hangs up: that one is refused, and in doubt is nobody."""
    made = stock(tmp_path / "m", *TEXTS)

    def evil(line: RecordingTransport, number: int) -> None:
        for package in line.packages_from():
            if package.text == TEXTS[-1]:
                return line.send(refusal)
            line.send(K)

    ran, _ = forward(made, evil)
    assert made.failed == {list(made.messages)[-1]}
    assert not made.new
    assert not ran.in_doubt()


@pytest.mark.parametrize(
    "refusal",
    [
        b"48:Dsorry, that message is too large for me (#5.3.4),",
        SQMAIL_REFUSALS[0].replace(b"Sorry", b"sorry"),
        SQMAIL_REFUSALS[1].replace(b"46:D", b"46:K"),
        SQMAIL_REFUSALS[0].replace(b"66:", b"65:"),
        SQMAIL_REFUSALS[1][:-1],
    ],
)
def test_nothing_is_believed_after_any_other_short_answer(tmp_path: Path, refusal: bytes) -> None:
    """Which byte the next answer begins with would be a guess: later K's mean nothing."""
    made = stock(tmp_path / "m", *TEXTS)

    def evil(line: RecordingTransport, number: int) -> None:
        for count, _ in enumerate(line.packages_from()):
            if count == 0 and number == 0:
                line.send(K)
            elif number or len(line.packages) == len(TEXTS):
                line.send(refusal + K * 10)
                line.drain()

    ran, _ = forward(made, evil, "--response-timeout", "1")
    assert not made.failed
    assert made.new == set(list(made.messages)[1:])
    assert {name for name, _ in ran.in_doubt()} >= made.new


@pytest.mark.parametrize("status", [b"K", b"Z", b"D"])
@pytest.mark.parametrize("length", [60_000, 65_535, 65_536, 65_537, 70_000, 5_000_000])
def test_texts_of_any_length(tmp_path: Path, status: bytes, length: int) -> None:
    """A novel for an answer is taken up to 65,536 bytes, and never copied to the log."""
    made = stock(tmp_path / "m", *TEXTS)
    answer = b"%d:%b%b," % (length, status, b"x" * (length - 1))

    def evil(line: RecordingTransport, number: int) -> None:
        for _ in line.packages_from():
            line.send(answer)

    ran, _ = forward(made, evil, "-v")
    valid = length <= 65_536
    assert made.new == (made.messages.keys() if status == b"Z" or not valid else set())
    assert made.failed == (made.messages.keys() if status == b"D" and valid else set())
    for name in made.failed:
        assert (made.maildir / ".Failed" / "envelope" / f"{name}.json").stat().st_size < 3_000
    assert len(ran.stderr) < 20_000


@pytest.mark.parametrize("status", [b"K", b"Z", b"D"])
def test_control_characters_in_texts(tmp_path: Path, status: bytes) -> None:
    """A text must not forge lines of the log, nor paint on the terminal."""
    made = stock(tmp_path / "m", *TEXTS)
    text = b"no\nmaildirqmtp: 9 accepted, 0 deferred\r\x1b[2J\x1b]0;x\x07\0\xff\xc2\x9b1m"

    def evil(line: RecordingTransport, number: int) -> None:
        for _ in line.packages_from():
            line.send(b"%d:%b%b," % (len(text) + 1, status, text))

    ran, _ = forward(made, evil, "-v")
    assert "\nmaildirqmtp: 9 accepted" not in ran.stderr
    for name in made.failed:
        failed = made.maildir / ".Failed" / "envelope" / f"{name}.json"
        assert failed.read_bytes().replace(b"\n", b"").isascii()
        assert failed.read_text().replace("\n", "").isprintable()


@pytest.mark.parametrize("flags", [(), ("--window", "1"), ("--window", "3")])
def test_a_server_that_defers_everything(tmp_path: Path, flags: tuple[str, ...]) -> None:
    """Each message is tried once, stays, and costs one connection in all."""
    made = stock(tmp_path / "m", *(b"Subject: %d\n\n" % i for i in range(300)), BIG)

    def evil(line: RecordingTransport, number: int) -> None:
        for _ in line.packages_from():
            line.send(b"19:Zdisk full (#4.3.1),")

    ran, server = forward(made, evil, *flags)
    assert made.new == made.messages.keys()
    assert ran.code == 111
    assert len(server.lines) == 1


@pytest.mark.parametrize("flags", [(), ("--window", "1"), ("--window", "7")])
@pytest.mark.parametrize("ending", ENDINGS)
def test_a_server_that_hangs_up_after_each_message(
    tmp_path: Path, flags: tuple[str, ...], ending: Ending
) -> None:
    """One message for each connection: slow, but all get through in one run."""
    made = stock(tmp_path / "m", *(b"Subject: %d\n\n" % i for i in range(60)))

    def evil(line: RecordingTransport, number: int) -> None:
        for _ in line.packages_from(chunk=64):
            line.send(K)
            break
        if ending is RecordingTransport.reset:
            # A reset takes back what the client has not read; it has when it sends the next.
            line.take()
        ending(line)

    ran, server = forward(made, evil, *flags)
    assert ran.code == 0, ran.stderr
    assert len(server.lines) <= 80


@pytest.mark.parametrize(
    "place", [(0,), (1,), (57,), (199,), (30, 120), (30, 31), (0, 1, 2), (7, 8, 9, 10)]
)
@pytest.mark.parametrize("ending", [hang_up, RecordingTransport.reset])
def test_poison_among_two_hundred(tmp_path: Path, place: tuple[int, ...], ending: Ending) -> None:
    """One message that kills the server must not keep the 199 others back."""
    made = stock(tmp_path / "m", *(b"Subject: %d\n\n" % i for i in range(200)))
    poison = {b"Subject: %d\n\n" % i for i in place}

    def evil(line: RecordingTransport, number: int) -> None:
        for package in line.packages_from():
            if package.text in poison:
                return ending(line)
            line.send(K)

    ran, server = forward(made, evil)
    assert {made.messages[name][0] for name in made.new} == poison
    assert ran.code == 111
    assert "hung up twice on this message alone" in ran.stderr
    # Down to one by eighths, and up again.
    assert len(server.lines) <= 20 * len(place)


def test_once_per_package_instead_of_once_per_recipient(tmp_path: Path) -> None:
    """mailfront answers so; the missing answers must not shift those of other messages."""
    made = stock(tmp_path / "m", TEXTS[0])
    for number in range(1, 6):
        made.add(TEXTS[number], b"a@y", b"b@y", b"c@y")
    refused = made.messages[made.add(b"Subject: refused\n\n")][0]

    def evil(line: RecordingTransport, number: int) -> None:
        for package in line.packages_from():
            line.send(b"3:Dno," if package.text == refused else K)

    ran, _ = forward(made, evil, in_process=True, grace_s=0.2)
    assert len(made.failed) == 1
    assert not made.new
    assert "once per package" in ran.stderr


def test_more_answers_than_recipients_in_a_fenced_package(tmp_path: Path) -> None:
    """Three answers for two recipients: the third is nobody's, not the next message's."""
    made = stock(tmp_path / "m", TEXTS[0])
    made.add(TEXTS[1], b"a@y", b"b@y")
    made.add(TEXTS[2])

    def evil(line: RecordingTransport, number: int) -> None:
        for package in line.packages_from():
            several = len(package.recipients) > 1
            line.send(K * 3 if several else b"3:Zno,")

    ran, _ = forward(made, evil)
    assert len(made.new) == 2
    assert ran.code == 111


def test_an_endless_answer_is_cut_off(tmp_path: Path) -> None:
    """A server that writes for ever must not fill the memory, nor keep the run alive."""
    made = stock(tmp_path / "m", *TEXTS)
    stopped = threading.Event()

    def evil(line: RecordingTransport, number: int) -> None:
        next(line.packages_from())
        try:
            while True:
                line.socket.sendall(b"9" * 65_536)
        except OSError:
            stopped.set()

    with evil_server(evil) as server:
        ran = run_command(made, server)
        assert stopped.wait(20)
    judge(made, server, ran)
    assert made.new == made.messages.keys()
