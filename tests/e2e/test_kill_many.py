"""kill -9 where several are at work: shards, routes that share slots, a slow disk, clients."""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from maildirqmtp.qmtp.protocol import package_head, package_tail
from tests.e2e.evil import Stock
from tests.e2e.test_kill import filled
from tests.faults.ledger import note_figures
from tests.helpers import DEADLINE_S, Peer, command, serving, sidecar, wait_until

WINDOW = 20
LONG = [pytest.mark.long, pytest.mark.timeout(1_800)]


def rounds(few: tuple[int, int], many: tuple[int, int]) -> list[object]:
    """Kills and messages: what each run of the tests can afford, and a campaign."""
    return [pytest.param(*few, id="few"), pytest.param(*many, id="many", marks=LONG)]


@dataclass
class Killer:
    """A server for many clients at once that accepts all, and kills one of them when it is time.

    `accepted` counts the K's by text; the process is killed before or after the answer to the
    `left`th package from now.
    """

    rng: random.Random
    accepted: Counter[bytes] = field(default_factory=Counter)
    left: int = 0
    pid: int = 0
    talks: int = 0

    def __post_init__(self) -> None:
        self._lock = threading.Lock()

    def __call__(self, peer: Peer) -> None:
        """Serve a connection."""
        with self._lock:
            self.talks += 1
        while (package := peer.read_package()) is not None:
            with self._lock:
                self.accepted[package.text] += 1
                self.left -= 1
                pid = self.pid if self.left <= 0 else 0
                if pid:
                    self.pid = 0
                before = self.rng.random() < 0.5
            if pid and before:
                kill(pid)
            peer.respond(*[b"Kok"] * len(package.recipients))
            if pid and not before:
                kill(pid)
        with self._lock:
            self.talks -= 1

    def aim(self, process: subprocess.Popen[bytes], packages: int) -> None:
        """Kill this process within so many packages."""
        with self._lock:
            self.left = self.rng.randrange(1, max(2, packages))
            self.pid = process.pid

    def spare(self) -> None:
        """Kill nobody any more."""
        with self._lock:
            self.pid = 0


def kill(pid: int) -> None:
    """Kill a process, unless it has just ended by itself, its work done."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def begin(*arguments: str | Path, program: Sequence[str] = ()) -> subprocess.Popen[bytes]:
    """Start the forwarder, which says nothing but errors."""
    words = [*(program or command()), "--quiet", *map(str, arguments)]
    return subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def ended(process: subprocess.Popen[bytes]) -> int:
    """Wait for the end of a process; return its exit code, and close what it wrote to."""
    _, said = process.communicate(timeout=DEADLINE_S * 4)
    assert b"Traceback" not in said, said
    return process.returncode


def judge(kind: str, killer: Killer, made: Sequence[Stock], kills: int, bound: int) -> None:
    """Everything arrived, nothing is left, and only what was in doubt came twice."""
    wanted = {text for stock in made for text, _ in stock.messages.values()}
    assert not set().union(*(stock.new for stock in made))
    assert set(killer.accepted) == wanted, "lost"
    duplicates = killer.accepted.total() - len(wanted)
    note_figures(kind, kills=kills, messages=len(wanted), lost=0, duplicates=duplicates)
    assert duplicates <= bound


@pytest.mark.parametrize(("kills", "messages"), rounds((8, 600), (200, 20_000)))
def test_shards_are_killed_and_started_again(tmp_path: Path, kills: int, messages: int) -> None:
    """One of several processes dies at any moment: the others go on, and it takes up its part."""
    made = filled(tmp_path / "m", messages)
    killer = Killer(random.Random(11))
    killed = 0
    with serving(killer) as server:

        def shard(number: int) -> subprocess.Popen[bytes]:
            part = ("--window", str(WINDOW), "--shard", f"{number}/3")
            return begin(*part, made.maildir, server.address)

        processes = [shard(number) for number in range(3)]
        while made.new:
            victim = killer.rng.randrange(3)
            if killed < kills:
                killer.aim(processes[victim], len(made.new) // (kills - killed))
            code = ended(processes[victim])
            killer.spare()
            assert code in (0, -signal.SIGKILL)
            killed += code == -signal.SIGKILL
            processes[victim] = shard(victim)
        assert [ended(process) for process in processes] == [0, 0, 0]
        wait_until(lambda: not killer.talks, "the server to be done")
    assert killed
    judge("kill-shards", killer, [made], killed, killed * WINDOW)


@pytest.mark.parametrize(("kills", "messages"), rounds((4, 400), (100, 20_000)))
def test_routes_that_share_slots_are_killed_amid_it(
    tmp_path: Path, kills: int, messages: int
) -> None:
    """A slot that passes from one route to another takes no message with it when all die."""
    routes, slots = 8, 2
    made = [filled(tmp_path / f"m{number}", 0) for number in range(routes)]
    for number in range(messages):
        made[number % routes].add(b"Subject: %d\n\n" % number + b"x" * (number % 700))
    killer = Killer(random.Random(12))
    killed = 0
    config = tmp_path / "routes.toml"
    with serving(killer) as server:
        config.write_text(
            f'[defaults]\nserver = "{server.address}"\nserver-connections = {slots}\n'
            f"window = {WINDOW}\n"
            + "".join(f'[[route]]\nmaildir = "{stock.maildir}"\n' for stock in made)
        )
        for _ in range(kills):
            daemon = begin("--config", config)
            left = sum(len(stock.new) for stock in made)
            killer.aim(daemon, left // (kills - killed + 1))
            assert ended(daemon) == -signal.SIGKILL
            killed += 1
        daemon = begin("--config", config)
        wait_until(lambda: not any(s.new for s in made), "the last of it", DEADLINE_S * 4)
        daemon.terminate()
        assert ended(daemon) == 0
        wait_until(lambda: not killer.talks, "the server to be done")
    judge("kill-slots", killer, made, killed, killed * slots * WINDOW)


#: The forwarder on a disk that takes its time, with removals in small batches.
SLOW_DISK = """
import os, sys, time
from maildirqmtp.cli.main import main
from maildirqmtp.forwarder import removals
fsync = os.fsync
def slow(fd):
    time.sleep(0.05)
    fsync(fd)
os.fsync = slow
removals.SYNC_REMOVALS = 10
sys.exit(main())
"""


@pytest.mark.parametrize(("kills", "messages"), rounds((8, 600), (100, 10_000)))
def test_killed_while_removals_are_made_durable(tmp_path: Path, kills: int, messages: int) -> None:
    """Sending goes on during an fsync; whatever it waits with, a sidecar outlives its message."""
    made = filled(tmp_path / "m", 0)
    for number in range(messages):
        # Without its sidecar, a message of these would be one for the recipient in the header.
        made.add(b"Subject: %d\n\n" % number, *((b"r@y", b"q@y") if number % 2 else ()))
    killer = Killer(random.Random(13))
    killed = 0
    program = (sys.executable, "-c", SLOW_DISK)
    with serving(killer) as server:
        while made.new:
            run = begin("--window", str(WINDOW), made.maildir, server.address, program=program)
            if killed < kills:
                killer.aim(run, len(made.new) // (kills - killed))
            code = ended(run)
            killer.spare()
            assert code in (0, -signal.SIGKILL)
            killed += code == -signal.SIGKILL
        wait_until(lambda: not killer.talks, "the server to be done")
        recipients = {(p.text, p.recipients) for p in server.packages}
    assert recipients == set(made.messages.values())
    judge("kill-fsync", killer, [made], killed, killed * WINDOW)


CLIENTS = 8


class Clients:
    """Eight that send without a pause until the receiver is gone; what each was promised."""

    def __init__(self, rng: random.Random) -> None:
        self.promised: list[tuple[bytes, bytes]] = []
        self.sent: set[bytes] = set()
        self._rng = rng
        self._lock = threading.Lock()

    def send_until_killed(self, address: tuple[str, int], victim: int) -> None:
        """Have all send at once; the receiver is killed after some of their answers."""
        kill_at = len(self.promised) + self._rng.randrange(1, 60)

        def note(who: tuple[bytes, bytes]) -> None:
            with self._lock:
                self.promised.append(who)
                if len(self.promised) == kill_at:
                    os.kill(victim, signal.SIGKILL)

        seeds = [self._rng.randrange(1 << 30) for _ in range(CLIENTS)]
        threads = [threading.Thread(target=self._send, args=(address, s, note)) for s in seeds]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(DEADLINE_S * 4)
            assert not thread.is_alive()

    def _send(
        self, address: tuple[str, int], seed: int, note: Callable[[tuple[bytes, bytes]], None]
    ) -> None:
        rng = random.Random(seed)
        with (
            contextlib.suppress(OSError),
            socket.create_connection(address, DEADLINE_S) as client,
            client.makefile("rb") as answers,
        ):
            while True:
                asked = [self._package(rng) for _ in range(rng.randrange(1, 5))]
                client.sendall(b"".join(data for data, _ in asked))
                for who in [who for _, owed in asked for who in owed]:
                    if not _answer(answers.read).startswith(b"K"):
                        return
                    note(who)

    def _package(self, rng: random.Random) -> tuple[bytes, list[tuple[bytes, bytes]]]:
        text = b"Subject: %d\n\n" % rng.randrange(1 << 60)
        text += b"x" * rng.choice((10, 3_000, 100_000)) + b"\nend\n"
        to = tuple(b"r%d@example.org" % number for number in range(rng.randrange(1, 3)))
        with self._lock:
            self.sent.add(text)
        data = package_head(len(text)) + text + package_tail(b"s@example.org", to)
        return data, [(text, recipient) for recipient in to]


@contextlib.contextmanager
def receiver(*arguments: str | Path) -> Iterator[tuple[int, tuple[str, int]]]:
    """Run a receiver that is killed in the block; its process and its address."""
    words = [*command("qmtpmaildir"), "--listen", "127.0.0.1:0", *map(str, arguments)]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        found = re.search(r":(\d+)$", process.stderr.readline().rstrip())
        assert found is not None
        # Nobody may be kept waiting by its log.
        drain = threading.Thread(target=process.stderr.read)
        drain.start()
        try:
            yield process.pid, ("127.0.0.1", int(found[1]))
        finally:
            process.kill()
            drain.join()
    assert process.returncode == -signal.SIGKILL


@pytest.mark.parametrize("place", [(), ("--queue",)], ids=["maildir", "queue"])
@pytest.mark.parametrize("kills", [pytest.param(5), pytest.param(200, marks=LONG)])
def test_a_receiver_of_eight_clients_is_killed_again_and_again(
    tmp_path: Path, kills: int, place: tuple[str, ...]
) -> None:
    """Each K stands for a copy that is there, whole and once, whoever else was being served."""
    clients = Clients(random.Random(14))
    for _ in range(kills):
        with receiver(*place, tmp_path / "m") as (pid, address):
            clients.send_until_killed(address, pid)
    stored: Counter[tuple[bytes, bytes]] = Counter()
    for file in (tmp_path / "m" / "new").iterdir():
        text = b"Subject: " + file.read_bytes().partition(b"\nSubject: ")[2]
        assert text in clients.sent, f"{file} is not whole"
        for recipient in _recipients(file):
            stored[text, recipient] += 1
    assert set(stored.values()) == {1}
    assert set(clients.promised) <= stored.keys(), "lost"
    figures = {"promised": len(clients.promised), "in_doubt": len(stored) - len(clients.promised)}
    note_figures("kill-receiver", place=place, kills=kills, lost=0, **figures)


def _answer(read: Callable[[int], bytes]) -> bytes:
    """Read an answer; empty where the receiver is gone."""
    head = b""
    while not head.endswith(b":"):
        if not (byte := read(1)):
            return b""
        head += byte
    return read(int(head[:-1]) + 1)


def _recipients(message: Path) -> list[bytes]:
    """Return whom a stored message is for, by its sidecar or the line on top of it."""
    if (message.parent.parent / "envelope").exists():
        found: list[str] = sidecar(message.parent.parent, message.name)["recipients"]
        return [os.fsencode(recipient) for recipient in found]
    return [message.read_bytes().splitlines()[1].removeprefix(b"Delivered-To: ")]
