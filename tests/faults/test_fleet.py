"""Four processes that differ in their ordinal only, killed and restarted at random.

What contrib/kubernetes/shards.yaml runs. MAILDIRQMTP_FLEET says for how many
seconds (300), and MAILDIRQMTP_FLEET_SEED repeats the choices of a run.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.daemons import Running, deliver, empties, now_name, watching
from tests.faults.ledger import note_figures
from tests.helpers import Peer, make_maildir, serving, wait_until

SECONDS = float(os.environ.get("MAILDIRQMTP_FLEET", "300"))
SHARDS = 4
WINDOW = 10
#: Messages that the server takes between two accidents.
BETWEEN = 20
#: Seconds between two messages, and for which the server thinks about one, at most.
PACE_S = 0.004


class Taker:
    """A server that takes everything, and keeps what came on each connection, in order."""

    def __init__(self) -> None:
        self.connections: list[list[bytes]] = []

    def serve(self, peer: Peer) -> None:
        """Read and answer; it takes its time, so that something is in flight."""
        came: list[bytes] = []
        self.connections.append(came)
        think = threading.Event()
        while (package := peer.read_package()) is not None:
            came.append(package.text)
            think.wait(PACE_S)
            peer.respond(b"Kok")

    @property
    def count(self) -> int:
        """Packages that came."""
        return sum(len(came) for came in self.connections)

    def wait_for(self, more: int) -> None:
        """Wait until so many more packages have come."""
        goal = self.count + more
        wait_until(lambda: self.count >= goal, "mail to go on")

    def doubles(self) -> dict[int, int]:
        """Return how many were sent again, by the number of the connection they came on first.

        Fails where one was not among the last that its connection could have in
        flight: it was answered, and yet not removed.
        """
        places: defaultdict[bytes, list[tuple[int, int]]] = defaultdict(list)
        for number, came in enumerate(self.connections):
            for place, text in enumerate(came):
                places[text].append((number, place))
        found: Counter[int] = Counter()
        for text, copies in places.items():
            assert len({number for number, _ in copies}) == len(copies), text
            for number, place in sorted(copies)[:-1]:
                assert place >= len(self.connections[number]) - WINDOW, text
                found[number] += 1
        return dict(found)


class Fleet:
    """The processes, by ordinal; each in a context of its own."""

    def __init__(self, *arguments: str | Path) -> None:
        self._arguments = arguments
        self._contexts: dict[int, contextlib.ExitStack] = {}
        self.members: dict[int, Running] = {}

    def start(self, ordinal: int) -> None:
        """Start one."""
        context = self._contexts[ordinal] = contextlib.ExitStack()
        shard = f"--shard={ordinal}/{SHARDS}"
        self.members[ordinal] = context.enter_context(watching(shard, *self._arguments))

    def end(self, ordinal: int, number: signal.Signals) -> int:
        """End one by a signal; return its exit code."""
        code = self.members[ordinal].stop(number)
        self._contexts.pop(ordinal).close()
        return code

    def close(self) -> None:
        """Kill those that are left."""
        for context in self._contexts.values():
            context.close()


@contextlib.contextmanager
def arriving(maildir: Path) -> Iterator[list[bytes]]:
    """Have mail come while a with block runs; the list is of the texts, in the end of all."""
    texts: list[bytes] = []
    stop = threading.Event()

    def work() -> None:
        while not stop.wait(PACE_S):
            texts.append(b"%06d\n" % len(texts))
            deliver(maildir, now_name(len(texts)), texts[-1])

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield texts
    finally:
        stop.set()
        thread.join()


def run_fleet(tmp_path: Path, seconds: float, rounds: int) -> None:
    """Have accidents for so long, and so many at least; judge what came."""
    seed = int(os.environ.get("MAILDIRQMTP_FLEET_SEED") or random.SystemRandom().randrange(10**6))
    print(f"MAILDIRQMTP_FLEET_SEED={seed}")
    chance = random.Random(seed)
    maildir, taker = make_maildir(tmp_path / "Maildir"), Taker()
    kills = done = 0
    with contextlib.ExitStack() as stack, serving(taker.serve) as server:
        fleet = Fleet("--watch", "--window", str(WINDOW), "--rescan", "1", maildir, server.address)
        stack.callback(fleet.close)
        for ordinal in range(SHARDS):
            fleet.start(ordinal)
        end_s = time.monotonic() + seconds
        with arriving(maildir) as texts:
            while done < rounds or time.monotonic() < end_s:
                taker.wait_for(BETWEEN)
                chosen = chance.sample(range(SHARDS), chance.randint(1, SHARDS))
                for ordinal in chosen:
                    number = chance.choice((signal.SIGKILL, signal.SIGTERM))
                    kills += number == signal.SIGKILL
                    # TERM ends what has not begun yet as any program.
                    assert fleet.end(ordinal, number) in (-number, 0)
                for ordinal in chosen:
                    fleet.start(ordinal)
                done += 1
        empties(maildir)
        for ordinal, member in list(fleet.members.items()):
            member.wait_for("watching new")
            assert fleet.end(ordinal, signal.SIGTERM) == 0
    came = {text for connection in taker.connections for text in connection}
    assert came == set(texts), f"lost: {sorted(set(texts) - came)[:10]}"
    doubles = taker.doubles()
    assert len(doubles) <= kills, "one that was told to end left something in doubt"
    note_figures(
        "fleet", messages=len(texts), rounds=done, kills=kills, twice=sum(doubles.values())
    )


@pytest.mark.timeout(240)
def test_a_fleet_loses_nothing(tmp_path: Path) -> None:
    """Every message once; twice at most what a process that was killed had in flight."""
    run_fleet(tmp_path, 0.0, 4)


@pytest.mark.long
@pytest.mark.timeout(max(600, SECONDS * 3))
def test_a_fleet_loses_nothing_for_minutes(tmp_path: Path) -> None:
    """The same, for five minutes."""
    run_fleet(tmp_path, SECONDS, 10)
