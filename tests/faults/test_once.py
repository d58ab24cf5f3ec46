"""`--once`: whatever breaks, and whoever is killed, each recipient has the message once."""

from __future__ import annotations

import contextlib
import io
import os
import random
import re
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from maildirqmtp.forwarder.batch import flush
from maildirqmtp.forwarder.report import Report
from maildirqmtp.forwarder.route import Route
from maildirqmtp.receiver.destination import Destination
from maildirqmtp.receiver.handoff.destination import HandOff
from maildirqmtp.receiver.handoff.how import SmtpAddress
from maildirqmtp.receiver.handoff.next_server import NextServer
from maildirqmtp.receiver.maildir_destination import MaildirDestination
from maildirqmtp.receiver.once.destination import OnceDestination
from maildirqmtp.receiver.once.memory import Memory
from maildirqmtp.receiver.queue_destination import QueueDestination
from maildirqmtp.receiver.server import Server
from maildirqmtp.transport.endpoint import TcpEndpoint
from tests.faults.disk import in_memory
from tests.faults.proxy import Proxy, proxied
from tests.helpers import (
    DEADLINE_S,
    add_message,
    add_sidecar,
    closed_port,
    command,
    make_maildir,
    sidecar,
    wait_until,
)
from tests.receiver.doubles import serving_thread
from tests.scripted_smtp import Conversation, scripted_server

DAY_S = 86_400.0
FAR = 1 << 30
_SUBJECT = re.compile(rb"^Subject: (.+)$", re.MULTILINE)

Found = Counter[tuple[str, str]]


def in_maildir(path: Path) -> Found:
    """Return how often each recipient has each message, in a maildir of copies."""
    found: Found = Counter()
    for file in (path / "new").iterdir():
        text = file.read_bytes()
        recipient = re.search(rb"^Delivered-To: (.+)$", text, re.MULTILINE)
        subject = _SUBJECT.search(text)
        assert recipient is not None
        assert subject is not None
        found[subject[1].decode(), recipient[1].decode()] += 1
    return found


def in_queue(path: Path) -> Found:
    """The same of a queue."""
    found: Found = Counter()
    for file in (path / "new").iterdir():
        subject = _SUBJECT.search(file.read_bytes())
        assert subject is not None
        for recipient in sidecar(path, file.name)["recipients"]:
            found[subject[1].decode(), recipient] += 1
    return found


# Cut at every byte


@contextlib.contextmanager
def far_end(kind: str, base: Path) -> Iterator[tuple[int, Callable[[], Found]]]:
    """Run a receiver with --once; its port, and what has arrived behind it."""
    with contextlib.ExitStack() as stack:
        inner: Destination[Any]
        path = base / "far"
        if kind == "maildir":
            inner, look = (
                MaildirDestination(os.fsencode(path), renames=True),
                lambda: in_maildir(path),
            )
        elif kind == "queue":
            inner, look = QueueDestination(os.fsencode(path), renames=True), lambda: in_queue(path)
        else:
            server = stack.enter_context(scripted_server(lmtp=True))
            next_hop = NextServer(SmtpAddress(True, "127.0.0.1", server.port), "here.example")
            inner, look = HandOff(next_hop), lambda: in_transactions(server.conversations)
        memory = Memory(str(base / "once"), DAY_S, time.time)
        once = OnceDestination(inner, memory, stages=kind != "lmtp")
        receiver = stack.enter_context(Server(once, listen=("127.0.0.1", 0)))
        stack.enter_context(serving_thread(receiver))
        assert receiver.address is not None
        yield receiver.address[1], look


def in_transactions(conversations: list[Conversation]) -> Found:
    """The same of a server that accepts everything; a text that was cut off has not arrived."""
    found: Found = Counter()
    for conversation in conversations:
        texts = iter(conversation.texts)
        recipients: list[str] = []
        for line in conversation.commands:
            if line.startswith(b"MAIL"):
                recipients = []
            elif line.startswith(b"RCPT TO:<"):
                recipients.append(line[9:-1].decode())
            elif line == b"DATA" and (text := next(texts, None)) is not None:
                subject = _SUBJECT.search(text.replace(b"\r", b""))
                assert subject is not None
                found.update((subject[1].decode(), recipient) for recipient in recipients)
    return found


def stock(maildir: Path, mark: str) -> Found:
    """Write two messages, one of them to two recipients; return what has to arrive."""
    make_maildir(maildir)
    for number, recipients in enumerate((("k1@y", "k2@y"), ("k3@y",))):
        name = f"{number}.x"
        add_sidecar(maildir, name, "s@x", *recipients)
        add_message(maildir, name, b"Subject: %s-%d\n\nhi\n" % (mark.encode(), number), None, None)
    return Counter({(f"{mark}-0", "k1@y"): 1, (f"{mark}-0", "k2@y"): 1, (f"{mark}-1", "k3@y"): 1})


def forward(maildir: Path, port: int) -> int:
    """Run the forwarder once, in this process; its exit code."""
    route = Route(os.fsencode(maildir), TcpEndpoint("127.0.0.1", port), connect_timeout_s=20.0)
    log = io.StringIO()
    return flush(route, Report(log, io.StringIO()))


def cut(base: Path, port: int, mark: str, after: int, to_server: bool, reset: bool) -> Proxy:
    """Forward with a connection that is cut there, and then until nothing is left."""
    maildir = base / mark
    with proxied(port, after, to_server, reset, False) as proxy:
        forward(maildir, proxy.port)
    while any((maildir / "new").iterdir()):
        assert forward(maildir, port) == 0
    return proxy


def campaign(kind: str, base: Path, to_server: bool, reset: bool, step: int) -> int:
    """Cut at each `step`th byte; return how many cuts there were."""
    expected: Found = Counter()
    cuts = 0
    with far_end(kind, base) as (port, arrived):
        expected += stock(base / "whole", "whole")
        total = cut(base, port, "whole", FAR, to_server, reset).seen[to_server]
        for after in range(0, total + 1, step):
            mark = f"cut-{after:06}"
            expected += stock(base / mark, mark)
            cut(base, port, mark, after, to_server, reset)
            cuts += 1
            if after % 50 == 0:
                assert arrived() == expected, (after, arrived() - expected, expected - arrived())
        assert arrived() == expected, (arrived() - expected, expected - arrived())
    return cuts


@pytest.mark.parametrize("reset", [False, True], ids=["fin", "rst"])
@pytest.mark.parametrize("to_server", [True, False], ids=["to-server", "to-client"])
@pytest.mark.parametrize("kind", ["maildir", "queue", "lmtp"])
def test_cut_at_some_bytes(tmp_path: Path, kind: str, to_server: bool, reset: bool) -> None:
    """0 lost, 0 twice, wherever the connection breaks."""
    with in_memory(tmp_path) as directory:
        assert campaign(kind, directory, to_server, reset, 5) > 5


@pytest.mark.long
@pytest.mark.timeout(3_600)
@pytest.mark.parametrize("reset", [False, True], ids=["fin", "rst"])
@pytest.mark.parametrize("to_server", [True, False], ids=["to-server", "to-client"])
@pytest.mark.parametrize("kind", ["maildir", "queue", "lmtp"])
def test_cut_at_every_byte(tmp_path: Path, kind: str, to_server: bool, reset: bool) -> None:
    """0 lost, 0 twice, wherever the connection breaks."""
    with in_memory(tmp_path) as directory:
        assert campaign(kind, directory, to_server, reset, 1) > 50


# Kills


class Processes:
    """A maildir with messages, a forwarder that empties it, and a receiver with --once."""

    def __init__(self, base: Path, target: list[str], count: int) -> None:
        self.maildir = make_maildir(base / "out")
        self.expected: Found = Counter()
        for number in range(count):
            recipients = [f"k{number % 7}@y", "all@y"][: 1 + number % 2]
            name = f"{number:06}.x"
            add_sidecar(self.maildir, name, "s@x", *recipients)
            add_message(self.maildir, name, b"Subject: %d\n\nhi\n" % number, None, None)
            self.expected.update((str(number), recipient) for recipient in recipients)
        self._target = target
        self._port = closed_port()
        self.receiver = self.start()
        self.forwarder: subprocess.Popen[bytes] | None = None

    def start(self) -> subprocess.Popen[bytes]:
        """Start the receiver, where it has listened before."""
        words = ["--listen", f"127.0.0.1:{self._port}", "--once", "1d", *self._target]
        process = subprocess.Popen([*command("qmtpmaildir"), *words], stderr=subprocess.PIPE)
        assert process.stderr is not None
        line = process.stderr.readline()
        assert line.endswith(b"listening on 127.0.0.1:%d\n" % self._port), line
        return process

    def forward(self) -> subprocess.Popen[bytes]:
        """Begin a run of the forwarder."""
        words = ["-q", str(self.maildir), f"127.0.0.1:{self._port}"]
        return subprocess.Popen([*command(), *words], stderr=subprocess.DEVNULL)

    @property
    def left(self) -> int:
        """How many messages are waiting."""
        return len(os.listdir(self.maildir / "new"))

    def kill(self, victim: str, moments: random.Random) -> bool:
        """Kill one of the two amid a run; False where the run was over before."""
        until = moments.randint(1, self.left)
        forwarder = self.forward()
        wait_until(lambda: self.left <= until or forwarder.poll() is not None, "a part to be gone")
        was_running = forwarder.poll() is None
        process = forwarder if victim == "forwarder" else self.receiver
        process.send_signal(signal.SIGKILL)
        process.wait(DEADLINE_S)
        if victim == "receiver":
            assert process.stderr is not None
            process.stderr.close()
            self.receiver = self.start()
        forwarder.wait(DEADLINE_S)
        return was_running

    def finish(self) -> None:
        """Forward what is left, and end the receiver."""
        while self.left:
            assert self.forward().wait(DEADLINE_S) in (0, 111)
        self.receiver.terminate()
        assert self.receiver.stderr is not None
        self.receiver.stderr.read()
        assert self.receiver.wait(DEADLINE_S) == 0
        self.receiver.stderr.close()


@contextlib.contextmanager
def relaying(queue: Path, far: Path) -> Iterator[None]:
    """Forward a queue, in watch mode, into a maildir; until it is empty."""
    with contextlib.ExitStack() as stack:
        words = [*command("qmtpmaildir"), "--listen", "127.0.0.1:0", str(far)]
        end = stack.enter_context(subprocess.Popen(words, stderr=subprocess.PIPE))
        stack.callback(end.terminate)
        assert end.stderr is not None
        match = re.search(rb"listening on (\S+)\n", end.stderr.readline())
        assert match is not None
        words = [*command(), "--watch", "-q", str(queue), match[1].decode()]
        watcher = stack.enter_context(subprocess.Popen(words))
        stack.callback(watcher.terminate)
        yield


def killed(base: Path, victim: str, kind: str, kills: int) -> None:
    """Kill `victim` so often, and look what has arrived: 0 lost, 0 twice."""
    moments = random.Random(os.environ.get("ONCE_SEED", "once"))
    near, far = make_maildir(base / "near"), make_maildir(base / "far")
    target = [str(near)] if kind == "maildir" else ["--queue", str(near)]
    with relaying(near, far) if kind == "queue" else contextlib.nullcontext():
        amid = rounds = 0
        expected: Found = Counter()
        while amid < kills:
            rounds += 1
            processes = Processes(base / str(rounds), target, 800)
            for text, recipient in processes.expected:
                expected[text, recipient] += 1
            while processes.left and amid < kills:
                amid += processes.kill(victim, moments)
            processes.finish()
            # The next round's texts are the same, and must not count as sent again.
            (near / ".maildirqmtp-once.sqlite3").unlink()
        box = near if kind == "maildir" else far
        deadline_s = time.monotonic() + DEADLINE_S
        while in_maildir(box) != expected and time.monotonic() < deadline_s:
            threading.Event().wait(0.05)
        found = in_maildir(box)
        assert not expected - found, f"lost after {amid} kills: {expected - found}"
        assert not found - expected, f"twice after {amid} kills: {found - expected}"


@pytest.mark.parametrize("kind", ["maildir", "queue"])
@pytest.mark.parametrize("victim", ["forwarder", "receiver"])
def test_some_kills(tmp_path: Path, victim: str, kind: str) -> None:
    """Who is killed has neither lost a message nor sent it twice."""
    with in_memory(tmp_path) as directory:
        killed(directory, victim, kind, 4)


@pytest.mark.long
@pytest.mark.timeout(3_600)
@pytest.mark.parametrize("kind", ["maildir", "queue"])
@pytest.mark.parametrize("victim", ["forwarder", "receiver"])
def test_two_hundred_kills(tmp_path: Path, victim: str, kind: str) -> None:
    """Who is killed has neither lost a message nor sent it twice."""
    with in_memory(tmp_path) as directory:
        killed(directory, victim, kind, 200)
