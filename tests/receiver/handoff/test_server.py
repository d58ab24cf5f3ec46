"""The receiver in front of another mail server: order, slow servers, clients that go away."""

from __future__ import annotations

import contextlib
import errno
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from maildirqmtp.errors import LocalError
from maildirqmtp.qmtp.protocol import Response, ResponseReader, Status, package_head, package_tail
from maildirqmtp.receiver import connection
from maildirqmtp.receiver import server as server_module
from maildirqmtp.receiver.handoff.destination import HandOff
from maildirqmtp.receiver.handoff.verdicts import NO_TIME
from maildirqmtp.receiver.once.destination import OnceDestination
from maildirqmtp.receiver.once.memory import Memory
from maildirqmtp.receiver.server import Server
from maildirqmtp.receiver.session import MAX_BATCHES
from maildirqmtp.receiver.spool import MEMORY_MAX
from maildirqmtp.transport.thread_pool import ThreadPool
from tests.helpers import DEADLINE_S, wait_until
from tests.receiver.doubles import Log, serving_thread

THREADS = 8
#: What one client has of them.
SHARE = 6


class Next:
    """Takes mail when the test lets it: each recipient's answer is the first letter of theirs.

    A recipient that begins with `wait` waits until `release` names them.
    """

    def __init__(self) -> None:
        self.begun: list[bytes] = []
        self.texts: list[bytes] = []
        self.aborted = threading.Event()
        self._released: dict[bytes, threading.Event] = {}

    def _gate(self, recipient: bytes) -> threading.Event:
        return self._released.setdefault(recipient, threading.Event())

    def release(self, recipient: bytes) -> None:
        self._gate(recipient).set()

    def deliver(
        self,
        sender: bytes,
        recipients: Sequence[bytes],
        pieces: Callable[[], Iterator[bytes]],
        may_begin: Callable[[], bool],
    ) -> list[Response]:
        if not may_begin():
            return [NO_TIME] * len(recipients)
        self.begun += recipients
        for recipient in recipients:
            if b"wait" in recipient:
                gate = self._gate(recipient)
                wait_until(lambda gate=gate: gate.is_set() or self.aborted.is_set(), "release")  # type: ignore[misc]
                if not gate.is_set():
                    return [NO_TIME] * len(recipients)
        self.texts.append(b"".join(pieces()))
        return [
            Response(Status(recipient[:1].decode()), b"to " + recipient) for recipient in recipients
        ]

    def abort(self) -> None:
        self.aborted.set()

    def close(self) -> None:
        self.aborted.set()


@pytest.fixture
def next_hop() -> Next:
    """What takes the mail."""
    return Next()


@pytest.fixture
def server(next_hop: Next, log: Log) -> Iterator[Server]:
    """A receiver in front of it, serving."""
    destination = HandOff(next_hop)
    made = Server(destination, listen=("127.0.0.1", 0), log=log, threads=THREADS)
    with made, serving_thread(made):
        yield made


class Client:
    """A QMTP client that reads its responses one by one."""

    def __init__(self, server: Server, source: str = "127.0.0.1") -> None:
        assert server.address is not None
        self._sock = socket.create_connection(server.address, DEADLINE_S, (source, 0))
        self._reader = ResponseReader()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self._sock.close()

    def send(self, *recipients: bytes, text: bytes = b"hi\n") -> None:
        self._sock.sendall(package_head(len(text)) + text + package_tail(b"s@x", recipients))

    def send_raw(self, data: bytes) -> None:
        self._sock.sendall(data)

    def reset(self) -> None:
        """Go away with a reset."""
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self._sock.close()

    def finish(self) -> None:
        self._sock.shutdown(socket.SHUT_WR)

    def responses(self, count: int) -> str:
        """Return the texts of so many responses, which say to whom they belong."""
        found: list[str] = []
        while len(found) < count:
            response = self._reader.next()
            if response is not None:
                found.append(str(response))
                continue
            data = self._sock.recv(65_536)
            assert data, f"closed after {found}"
            self._reader.feed(data)
        return " ".join(text.removeprefix("Kto ").removeprefix("Zto ") for text in found)

    def at_end(self) -> bool:
        return self._sock.recv(1) == b""


def test_responses_keep_the_order_of_packages(server: Server, next_hop: Next) -> None:
    """A client takes them for its packages in the order in which it has sent those."""
    with Client(server) as client:
        client.send(b"Kwait1")
        wait_until(lambda: next_hop.begun == [b"Kwait1"], "the first")
        client.send(b"K2", b"Z3")
        wait_until(lambda: set(next_hop.begun) == {b"Kwait1", b"K2", b"Z3"}, "the second")
        next_hop.release(b"Kwait1")
        assert client.responses(3) == "Kwait1 K2 Z3"


def test_one_clients_slow_hand_off_holds_up_no_other(server: Server, next_hop: Next) -> None:
    """A mailbox on a disk that hangs is one client's trouble, however much it sends there."""
    with Client(server) as slow, Client(server) as other:
        for n in range(50):
            slow.send(b"Kwait%d" % n)
        wait_until(lambda: bool(next_hop.begun), "the slow ones")
        for n in range(50):
            other.send(b"K%d" % n)
        assert other.responses(50) == " ".join(f"K{n}" for n in range(50))
        for n in range(50):
            next_hop.release(b"Kwait%d" % n)
        assert slow.responses(50) == " ".join(f"Kwait{n}" for n in range(50))


def test_one_client_by_many_connections_holds_up_no_other(server: Server, next_hop: Next) -> None:
    """Each connection has its batches under way; together they would have all threads."""
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(Client(server)) for _ in range(THREADS)]
        for number, client in enumerate(slow):
            client.send(b"Kwait%d" % number)
            begun = min(number + 1, SHARE)
            wait_until(lambda begun=begun: len(next_hop.begun) == begun, "a thread")  # type: ignore[misc]
        other = stack.enter_context(Client(server, "127.0.0.2"))
        other.send(b"K")
        assert other.responses(1) == "K"
        for number, client in enumerate(slow):
            next_hop.release(b"Kwait%d" % number)
            assert client.responses(1) == f"Kwait{number}"


def test_a_refusal_waits_for_the_packages_before_it(server: Server, next_hop: Next) -> None:
    """It needs no thread, but has its place in the order."""
    with Client(server) as client:
        client.send(b"Kwait")
        client.send(b"")
        next_hop.release(b"Kwait")
        assert client.responses(2).startswith("Kwait D553 ")


def test_a_client_that_has_ended_gets_its_answers(server: Server, next_hop: Next) -> None:
    """Net::QMTP closes its side after its last package."""
    with Client(server) as client:
        client.send(b"Kwait")
        client.finish()
        wait_until(lambda: bool(next_hop.begun), "the hand-off")
        next_hop.release(b"Kwait")
        assert client.responses(1) == "Kwait"
        assert client.at_end()


def test_what_was_complete_before_a_violation_is_answered(server: Server, next_hop: Next) -> None:
    """The packages before it are good, and their answers are owed."""
    with Client(server) as client:
        client.send(b"Kwait")
        client.send_raw(b"nonsense")
        wait_until(lambda: bool(next_hop.begun), "the hand-off")
        next_hop.release(b"Kwait")
        assert client.responses(1) == "Kwait"
        assert client.at_end()


def test_a_client_that_went_away_costs_nobody_anything(
    server: Server, next_hop: Next, log: Log
) -> None:
    """Its hand-off ends by itself, and its thread is there for others."""
    for n in range(2 * THREADS):
        with Client(server) as client:
            client.send(b"Kwait%d" % n)
            wait_until(lambda n=n: len(next_hop.begun) > min(n, SHARE - 1), "a thread")  # type: ignore[misc]
            client.reset()
    for n in range(2 * THREADS):
        next_hop.release(b"Kwait%d" % n)
    log.wait_for("broken")
    with Client(server) as other:
        other.send(b"K")
        assert other.responses(1) == "K"


def test_nothing_more_is_handed_on_for_a_client_that_has_gone(next_hop: Next, log: Log) -> None:
    """It sends all of that again: a slow next server would have each message twice."""
    made = Server(HandOff(next_hop), listen=("127.0.0.1", 0), log=log, threads=1)
    with made, serving_thread(made):
        with Client(made) as client:
            client.send(b"Kwait", b"K1")
            client.send(b"K2")
            wait_until(lambda: bool(next_hop.begun), "the hand-off")
            wait_until(lambda: len(made._connections[0]._session._under_way) == 2, "the other")
            client.reset()
        log.wait_for("broken")
        next_hop.release(b"Kwait")
        with Client(made) as other:
            other.send(b"K")
            assert other.responses(1) == "K"
    assert next_hop.begun == [b"Kwait", b"K1", b"K"]


def test_large_texts_stay_whole(server: Server, next_hop: Next) -> None:
    """The next package must not take the room of a text that is still being read."""
    texts = [bytes([65 + n]) * (MEMORY_MAX + 10) + b"\n" for n in range(6)]
    with Client(server) as client:
        for n, text in enumerate(texts):
            client.send(b"K%d" % n, text=text)
        assert client.responses(6) == "K0 K1 K2 K3 K4 K5"
    handed_on = sorted(text.split(b"\n", 1)[1] for text in next_hop.texts)
    assert handed_on == texts


def test_what_was_handed_on_is_answered_when_the_receiver_stops(
    next_hop: Next, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At each restart in front of a slow next server, all of a batch came twice."""
    monkeypatch.setattr(connection, "HURRY_S", 0.0)
    made = Server(HandOff(next_hop), listen=("127.0.0.1", 0), log=log, threads=THREADS)
    with made, serving_thread(made), Client(made) as client:
        for to in (*[b"Kwait"] * MAX_BATCHES, b"K1"):
            client.send(to)
        wait_until(lambda: len(next_hop.begun) == MAX_BATCHES, "the hand-off")
        wait_until(lambda: made._connections[0]._session.busy, "the last one")
        made.stop()
        wait_until(lambda: made._connections[0]._session._hurries, "the stop")
        next_hop.release(b"Kwait")
        assert client.responses(MAX_BATCHES + 1) == "Kwait " * MAX_BATCHES + str(NO_TIME)
        assert client.at_end()
    assert next_hop.begun == [b"Kwait"] * MAX_BATCHES


def test_each_answer_comes_as_soon_as_the_next_server_has_given_it(
    server: Server, next_hop: Next
) -> None:
    """With a scanner behind it, a forwarder that was restarted sent all of a batch twice."""
    with Client(server) as client:
        for to in (b"K1", b"Kwait", b"K2", b"Kwait"):
            client.send(to)
        assert client.responses(1) == "K1"
        wait_until(lambda: b"K2" in next_hop.begun, "the one behind, in another thread")
        next_hop.release(b"Kwait")
        assert client.responses(3) == "Kwait K2 Kwait"


def stop_amid_a_hand_off(made: Server, next_hop: Next, log: Log) -> None:
    """Stop a receiver for good while the next server has not decided on a message."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(made)
        stack.enter_context(serving_thread(made))
        client = stack.enter_context(Client(made))
        client.send(b"Kwait")
        wait_until(lambda: bool(next_hop.begun), "the hand-off")
        made.stop()
        log.wait_for("could not be stored in time")


def test_the_receiver_stops_although_the_next_server_hangs(
    next_hop: Next, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """systemd would kill it in the end, and with it what could have been answered."""
    monkeypatch.setattr(connection, "STOP_S", 0.5)
    monkeypatch.setattr(server_module, "CLOSE_S", 0.1)
    made = Server(HandOff(next_hop), listen=("127.0.0.1", 0), log=log, threads=THREADS)
    stop_amid_a_hand_off(made, next_hop, log)
    assert next_hop.aborted.is_set()


def test_what_is_decided_while_the_receiver_ends_is_remembered(
    next_hop: Next, log: Log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A spam filter that takes 15 s: at each restart what it had came twice, even with --once."""
    monkeypatch.setattr(connection, "STOP_S", 0.1)
    memory = Memory(str(tmp_path / "once"), 1_000.0, time.time)
    memory.recover(None)
    once = OnceDestination(HandOff(next_hop), memory, stages=False)
    made = Server(once, listen=("127.0.0.1", 0), log=log, threads=THREADS)
    wait_for_threads = ThreadPool.close

    def close(pool: ThreadPool, wait_s: float | None = None) -> bool:
        if not next_hop.aborted.is_set():
            next_hop.release(b"Kwait")
        return wait_for_threads(pool, wait_s)

    monkeypatch.setattr(ThreadPool, "close", close)
    stop_amid_a_hand_off(made, next_hop, log)
    again = Memory(str(tmp_path / "once"), 1_000.0, time.time)
    again.recover(None)
    (row,) = again._database.execute("SELECT key FROM accepted").fetchall()
    assert again.knows(row[0])
    again.close()


def test_a_received_line_is_on_top(server: Server, next_hop: Next) -> None:
    """Without it a loop through the next server is never found."""
    with Client(server) as client:
        client.send(b"K1")
        client.responses(1)
    (text,) = next_hop.texts
    assert text.startswith(b"Received: from [127.0.0.1] by ")
    assert text.endswith(b"\nhi\n")


def test_without_a_directory_for_temporary_files_it_says_what_to_set(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In a container with a read-only root, for instance; not a traceback."""
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_get_default_tempdir", refuse)
    with pytest.raises(LocalError, match="set TMPDIR"):
        HandOff(Next())


def refuse() -> str:
    """Find no such directory, as tempfile does."""
    raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found")
