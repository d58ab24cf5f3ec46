"""A next server that means harm, or is out of step: no K for what it has not got, and bounds."""

from __future__ import annotations

import contextlib
import socket
import threading
import tracemalloc
from collections.abc import Callable, Iterator

import pytest

from maildirqmtp.receiver.handoff import smtp_client, smtp_transaction
from maildirqmtp.receiver.handoff.how import SmtpAddress
from maildirqmtp.receiver.handoff.next_server import NextServer
from tests.helpers import DEADLINE_S, closed_port
from tests.receiver.doubles import Clock
from tests.scripted_smtp import CLOSE, Script, ScriptedServer, scripted_server

A, B, C = b"a@example.org", b"b@example.org", b"c@example.org"
#: More than what goes out at once.
LARGE = b"x" * 999 + b"\n"


def handed_on(to: NextServer, *recipients: bytes, text: bytes = b"hi\n") -> list[str]:
    """Hand a text on; the answers."""
    with contextlib.closing(to):
        return [str(r) for r in to.deliver(b"s@x", recipients or (A, B, C), lambda: iter([text]))]


def client(port: int, lmtp: bool = False, complain: Callable[[str], None] = print) -> NextServer:
    """A `NextServer` in front of a port; its clock stands still."""
    return NextServer(SmtpAddress(lmtp, "127.0.0.1", port), "here", False, complain, Clock())


def letters(server: ScriptedServer, lmtp: bool, text: bytes = b"hi\n") -> str:
    """Hand a text on to three recipients; the letters of the answers."""
    return "".join(answer[0] for answer in handed_on(client(server.port, lmtp), text=text))


# Too early


OUT_OF_STEP: list[Script] = [
    {"greeting": b"220 hi\r\n250 hello\r\n"},
    {"greeting": b"220 hi\r\n250 1\r\n250 2\r\n250 3\r\n250 4\r\n250 5\r\n354 go\r\n250 ok\r\n"},
    {"MAIL": b"250 ok\r\n250 ok\r\n"},
    {"RCPT": b"250 ok\r\n250 ok\r\n"},
    {"RCPT": [b"250 ok\r\n", b"250 ok\r\n354 go on\r\n250 queued\r\n"]},
    {"DATA": b"354 go on\r\n250 2.0.0 queued\r\n"},
    {"DATA": b"354 go on\r\n250 ok\r\n250 ok\r\n250 ok\r\n"},
    {"DATA": b"354 go on\r\n250-half a reply\r\n"},
    {"DATA": b"354 go on\r\n250 2.0.0 queued\r\n" + CLOSE},
]


@pytest.mark.parametrize("size", [1, 300], ids=["small", "large"])
@pytest.mark.parametrize("lmtp", [False, True], ids=["smtp", "lmtp"])
@pytest.mark.parametrize("pipelining", [True, False], ids=["at once", "one by one"])
@pytest.mark.parametrize("script", OUT_OF_STEP)
def test_an_answer_before_its_question_is_none(
    script: Script, pipelining: bool, lmtp: bool, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """K for a text that the server had not read when it said yes would be lost mail."""
    monkeypatch.setattr(smtp_client, "UNASKED_S", 0.05)
    monkeypatch.setattr(smtp_transaction, "_LAST_WORDS_S", 0.05)
    if not pipelining:
        script = {"EHLO": b"250 next\r\n", "LHLO": b"250 next\r\n", **script}
    with scripted_server(script, lmtp=lmtp) as server:
        assert letters(server, lmtp, LARGE * size) == "ZZZ"


@pytest.mark.parametrize(
    ("early", "letter"),
    [
        (b"552 5.3.4 too large\r\n", "D"),
        (b"451 4.3.0 later\r\n", "Z"),
        (b"421 4.3.2 closing\r\n", "Z"),
    ],
)
def test_a_refusal_before_the_text_has_ended_counts(early: bytes, letter: str) -> None:
    """Else 200 MB go over the line, to be refused again at each attempt."""
    read: list[bytes] = []

    def pieces() -> Iterator[bytes]:
        read.clear()
        for _ in range(900):
            read.append(LARGE)
            yield LARGE

    with scripted_server({"DATA": b"354 go on\r\n" + early}) as server:
        with contextlib.closing(client(server.port)) as to:
            answers = to.deliver(b"s@x", [A, B], pieces)
        assert [str(answer)[0] for answer in answers] == [letter] * 2
        assert not server.texts
    assert len(read) < 900


def test_more_answers_than_recipients() -> None:
    """The one too many is nobody's: not of the next message either."""
    scripts: tuple[Script, ...] = ({"text": b"250 ok\r\n250 ok\r\n"}, {"text": b"550 no\r\n"})
    with scripted_server(*scripts, lmtp=True) as server:
        to = client(server.port, lmtp=True)
        assert [str(r)[0] for r in to.deliver(b"s@x", [A, B], lambda: iter([b"1\n"]))] == ["K", "K"]
        assert handed_on(to, A)[0][0] in "DZ"  # Z where it comes later than the next message


# Too much


FLOODS: list[Script] = [
    {"greeting": b"220 " + b"x" * 10_000_000 + b"\r\n"},
    {"greeting": b"220-x\r\n" * 1_000_000},
    {"EHLO": b"250-" + b"SIZE " * 2_000_000 + b"\r\n"},
    {"EHLO": b"250-X\r\n" * 1_000_000},
    {"RCPT": b"550 " + b"\0" * 10_000_000 + b"\r\n"},
    {"DATA": b"354-" * 2_000_000 + b"\r\n"},
    {"text": b"250 " + b"x" * 10_000_000 + b"\r\n"},
    {"text": b"250-x\r\n" * 1_000_000},
]


@pytest.mark.parametrize("script", FLOODS)
def test_a_reply_without_end_takes_no_memory(script: Script) -> None:
    """20 threads that read it would take the machine's."""
    with scripted_server(script) as server:
        tracemalloc.start()
        try:
            assert letters(server, False) == "ZZZ"
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert peak < 2 << 20, peak


def test_control_characters_of_a_server_reach_neither_log_nor_client() -> None:
    """A terminal that shows the log would obey them."""
    script: Script = {
        "RCPT": [b"550 5.1.1 \0\x1b[2J no\r\n", b"250 ok\r\n"],
        "text": b"250 a\0b\x1b\r\n",
    }
    with scripted_server(script) as server:
        answers = handed_on(client(server.port), A, B)
    assert answers == ["D550 5.1.1 [2J no", "K250 a b"]
    log: list[str] = []
    with scripted_server({"greeting": b"554 \xc2\x9b2J \xe2\x80\xae no\r\n"}) as server:
        handed_on(client(server.port, complain=log.append), A)
    assert len(log) == 1
    assert "554" in log[0]
    assert log[0].isprintable()


# Too slow


@contextlib.contextmanager
def raw_server(serve: Callable[[socket.socket, threading.Event], None]) -> Iterator[int]:
    """Serve one connection by a function, until it returns or the event is set; the port."""
    over = threading.Event()
    listener = socket.create_server(("127.0.0.1", 0))

    def run() -> None:
        sock, _ = listener.accept()
        with sock, contextlib.suppress(OSError):
            serve(sock, over)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        over.set()
        listener.close()
        thread.join(DEADLINE_S)
        assert not thread.is_alive()


def test_a_reply_that_trickles_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte now and then would keep a thread for days."""
    monkeypatch.setattr(smtp_client, "COMMAND_S", 0.2)

    def serve(sock: socket.socket, over: threading.Event) -> None:
        sock.sendall(b"220 hi\r\n")
        sock.recv(4_096)
        sock.sendall(b"250 hi\r\n")
        sock.recv(4_096)
        sock.sendall(b"250")
        while not over.wait(0.02):
            sock.sendall(b"x")

    with raw_server(serve) as port:
        (answer,) = handed_on(client(port), A)
    assert answer.startswith("Z451 ")


def test_a_server_that_does_not_read_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is a thread kept by one that has no room for the text."""
    monkeypatch.setattr(smtp_client, "PIECE_S", 0.2)

    def serve(sock: socket.socket, over: threading.Event) -> None:
        sock.sendall(b"220 hi\r\n")
        for reply in (b"250 hi\r\n", b"250 ok\r\n", b"250 ok\r\n", b"354 go on\r\n"):
            sock.recv(4_096)
            sock.sendall(reply)
        over.wait(DEADLINE_S)

    with raw_server(serve) as port:
        (answer,) = handed_on(client(port), A, text=LARGE * 20_000)
    assert answer.startswith("Z451 ")
    assert "took nothing" in answer


# Our own trouble


def test_no_memory_amid_a_text_ends_the_connection() -> None:
    """What is said next would be a part of that text."""
    calls = iter([False, True])

    def pieces() -> Iterator[bytes]:
        yield LARGE * 100
        if next(calls):
            raise MemoryError

    with scripted_server() as server:
        to = client(server.port)
        with pytest.raises(MemoryError):
            to.deliver(b"s@x", [A], pieces)
        assert handed_on(to, A) == ["K250 2.0.0 queued"]
        assert len(server.conversations) == 2
        assert server.texts == [b"hi\r\n"]


def test_no_memory_to_connect_is_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a pause one thread tries; where that one has failed, another has to be let."""
    clock = Clock()
    port = closed_port()
    to = NextServer(SmtpAddress(False, "127.0.0.1", port), "here", clock=clock)
    assert str(to.deliver(b"s@x", [A], lambda: iter([b"hi\n"]))[0])[0] == "Z"
    clock.now_s += 60
    with monkeypatch.context() as patch:

        def no_memory(*arguments: object) -> None:
            raise MemoryError

        patch.setattr(smtp_client.SmtpClient, "__init__", no_memory)
        with pytest.raises(MemoryError):
            to.deliver(b"s@x", [A], lambda: iter([b"hi\n"]))
    with scripted_server(port=port):
        assert handed_on(to, A) == ["K250 2.0.0 queued"]
