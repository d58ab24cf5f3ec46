"""Half a million messages through restarts, kills and cuts; and one very long run.

MAILDIRQMTP_SOAK says how many messages (500,000); the long run takes two fifths
of that. The maildirs are on tmpfs, where there is one.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from maildirqmtp.qmtp.package_reader import MessageData, PackageEnd, PackageReader
from tests.faults.disk import in_memory
from tests.faults.ledger import note_figures
from tests.helpers import DEADLINE_S, closed_port, command, make_maildir

MESSAGES = int(os.environ.get("MAILDIRQMTP_SOAK", "500000"))
BATCH = 20_000
WINDOW = 500
#: Units of 1,024 bytes that a process may grow by between the middle of its way and its end: what
#: it notes of messages that were in doubt has reached its limits by then.
GROWTH_KB = 8_192
#: Bytes of memory that no run may ever take.
MEMORY_KB = 100 << 10
_BURST = 50

pytestmark = pytest.mark.long


@dataclass
class Taker:
    """A server that counts the copies of each message, and has accidents when told to.

    `on_package` is called with the number of packages read, before they are
    answered; what it returns happens: `fin` or `rst` to the connection, `stop`
    to the whole server, or nothing.
    """

    copies: bytearray
    on_package: Callable[[int], str] = lambda count: ""
    count: int = 0
    wrong: list[bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._sockets: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self.port = closed_port()
        self.start()

    def start(self) -> None:
        """Listen; on the same port each time."""
        self._listener = socket.create_server(("127.0.0.1", self.port), backlog=16)
        thread = threading.Thread(target=self._accept, args=(self._listener,), daemon=True)
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        self._threads.append(thread)
        thread.start()

    def stop(self) -> None:
        """Stop listening and reset every connection, as a server that is killed."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            for sock in self._sockets:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)

    def quiesce(self) -> None:
        """Wait until nothing that was sent before is still being counted."""
        for thread in list(self._threads):
            if thread.name == "session":
                thread.join(DEADLINE_S)
                assert not thread.is_alive()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(sock,), name="session", daemon=True)
            self._threads = [thread for thread in self._threads if thread.is_alive()]
            self._threads.append(thread)
            thread.start()

    def _serve(self, sock: socket.socket) -> None:
        with self._lock:
            self._sockets.add(sock)
        with sock, contextlib.suppress(OSError):
            self._talk(sock)
        with self._lock:
            self._sockets.discard(sock)

    def _talk(self, sock: socket.socket) -> None:
        reader, text, owed = PackageReader(), b"", 0
        while data := sock.recv(1 << 16):
            reader.feed(data)
            while (event := reader.next()) is not None:
                if isinstance(event, MessageData):
                    text += event.data
                elif isinstance(event, PackageEnd):
                    self._take(text, event)
                    text, owed = b"", owed + 1
                    fate = self.on_package(self.count)
                    if fate == "rst":
                        linger = struct.pack("ii", 1, 0)
                        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                    elif fate == "stop":
                        self.stop()
                    if fate:
                        return
                    if owed == _BURST:
                        sock.sendall(b"3:Kok," * owed)
                        owed = 0
            if owed:
                sock.sendall(b"3:Kok," * owed)
                owed = 0

    def _take(self, text: bytes, end: PackageEnd) -> None:
        self.count += 1
        number = int(text.split(None, 2)[1])
        if text != message_text(number) or end.recipients != (b"r%d@y" % number,):
            self.wrong.append(text)
        self.copies[number] = min(255, self.copies[number] + 1)


def message_text(number: int) -> bytes:
    """Return the text of the message of this number."""
    return b"Subject: %d\n\n" % number + b"x" * (number * 7 % 400) + b"\n"


def fill(maildir: Path, numbers: range) -> None:
    """Put these messages into new/."""
    directory = os.open(maildir / "new", os.O_RDONLY)
    try:
        for number in numbers:
            top = b"Return-Path: <s@x>\nDelivered-To: r%d@y\n" % number
            fd = os.open(
                f"{1_700_000_000 + number}.{number}.test",
                os.O_WRONLY | os.O_CREAT | os.O_EXCL,
                dir_fd=directory,
            )
            os.write(fd, top + message_text(number))
            os.close(fd)
    finally:
        os.close(directory)


def left(maildir: Path) -> Iterator[int]:
    """Yield the numbers of the messages that are in new/."""
    for name in os.listdir(maildir / "new"):
        if not name.startswith("."):
            yield int(name.split(".")[1])


def start(maildir: Path, port: int, *flags: str) -> subprocess.Popen[str]:
    """Start the forwarder."""
    return subprocess.Popen(
        [*command(), "--quiet", *flags, str(maildir), f"127.0.0.1:{port}"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


@dataclass
class Accidents:
    """What happens, and how often it has; `pid` is the forwarder's."""

    rng: random.Random
    pid: int = 0
    next: int = 0
    kills: int = 0
    cuts: int = 0
    restarts: int = 0
    restart: bool = False

    def plan(self, count: int) -> None:
        """Have the next one some thousand packages from now."""
        self.next = count + self.rng.randrange(1, 5_000)

    def __call__(self, count: int) -> str:
        """Let it happen when its time has come."""
        if count < self.next:
            return ""
        self.plan(count)
        kind = self.rng.choice(("kill", "fin", "rst", "restart"))
        if kind == "kill":
            pid, self.pid = self.pid, 0
            if pid:
                os.kill(pid, signal.SIGKILL)
                self.kills += 1
            return ""
        if kind == "restart":
            self.restart = True
            return "stop"
        self.cuts += 1
        return kind


@pytest.mark.timeout(2_400)
def test_nothing_is_lost_in_half_a_million(tmp_path: Path) -> None:
    """A year of mail, and of everything that can happen to the server and to us."""
    accidents = Accidents(random.Random(1))
    accidents.plan(0)
    taker = Taker(bytearray(MESSAGES), accidents)
    runs = 0
    with in_memory(tmp_path) as directory:
        maildir = make_maildir(directory / "m")
        for first in range(0, MESSAGES, BATCH):
            numbers = range(first, min(first + BATCH, MESSAGES))
            fill(maildir, numbers)
            waiting = set(numbers)
            while waiting:
                process = start(maildir, taker.port, "--window", str(WINDOW))
                accidents.pid = process.pid
                error = process.communicate(timeout=300)[1]
                accidents.pid = 0
                runs += 1
                assert process.returncode in (0, 111, -signal.SIGKILL), error
                assert "Traceback" not in error
                taker.quiesce()
                gone = waiting.difference(left(maildir))
                lost = [number for number in gone if not taker.copies[number]]
                assert not lost, f"LOST after {runs} runs: {lost[:10]}"
                waiting -= gone
                if accidents.restart:
                    # It was away while the forwarder tried to come back.
                    taker.start()
                    accidents.restart = False
                    accidents.restarts += 1
    taker.stop()
    assert not taker.wrong, taker.wrong[:3]
    assert all(taker.copies)
    duplicates = sum(taker.copies) - MESSAGES
    unclean = accidents.kills + accidents.cuts + accidents.restarts
    assert duplicates <= unclean * WINDOW
    figures = {
        "messages": MESSAGES,
        "runs": runs,
        "kills": accidents.kills,
        "cuts": accidents.cuts,
        "restarts": accidents.restarts,
        "lost": 0,
        "duplicates": duplicates,
        "bound": unclean * WINDOW,
    }
    print(figures)
    note_figures("soak", **figures)


@dataclass(frozen=True)
class Sample:
    """What a process has, at one moment."""

    memory_kb: int
    peak_kb: int
    threads: int
    descriptors: int


def sample(pid: int) -> Sample:
    """Ask /proc what a process has."""
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    fields = (line.split() for line in status)
    values = {words[0].rstrip(":"): words[1] for words in fields if len(words) > 1}
    return Sample(
        int(values["VmRSS"]),
        int(values["VmHWM"]),
        int(values["Threads"]),
        len(os.listdir(f"/proc/{pid}/fd")),
    )


@pytest.mark.timeout(1_200)
def test_a_long_run_stays_as_small_as_it_began(tmp_path: Path) -> None:
    """A leak of a byte or a descriptor per message would end the run on a full maildir."""
    messages = MESSAGES * 2 // 5
    step = max(1, messages // 40)
    samples: list[Sample] = []
    hang_ups = 0
    pid = 0
    started = threading.Event()

    def on_package(count: int) -> str:
        nonlocal hang_ups
        if count % step == 0:
            assert started.wait(DEADLINE_S)
            samples.append(sample(pid))
        if count % 4_999 == 0:
            hang_ups += 1
            return "rst" if hang_ups % 2 else "fin"
        return ""

    taker = Taker(bytearray(messages), on_package)
    with in_memory(tmp_path) as directory:
        maildir = make_maildir(directory / "m")
        fill(maildir, range(messages))
        process = start(maildir, taker.port)
        pid = process.pid
        started.set()
        error = process.communicate(timeout=1_000)[1]
        assert process.returncode == 0, error
        assert not list(left(maildir))
    taker.stop()
    assert not taker.wrong
    assert all(taker.copies)
    early = samples[len(samples) // 10 :]
    late = samples[len(samples) // 2 :]
    grown = max(s.memory_kb for s in late) - late[0].memory_kb
    figures = {
        "messages": messages,
        "hang_ups": hang_ups,
        "lost": 0,
        "peak_kb": samples[-1].peak_kb,
        "grown_kb": grown,
        "descriptors": sorted({s.descriptors for s in samples}),
        "threads": sorted({s.threads for s in samples}),
    }
    print(figures)
    note_figures("soak-one-run", **figures)
    assert grown <= GROWTH_KB
    assert samples[-1].peak_kb <= MEMORY_KB
    assert {s.threads for s in samples} == {1}
    assert max(s.descriptors for s in early) <= min(s.descriptors for s in early) + 1
