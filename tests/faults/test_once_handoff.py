"""`--once` in front of another mail server: who is killed loses nothing.

The next server cannot be asked what it has taken. So a forwarder that is killed costs
nothing, and a receiver that is killed at most one message of each of its batches, the one that was
on its way to the next server.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from pathlib import Path

import pytest

from maildirqmtp.receiver.session import MAX_BATCHES
from tests.faults.disk import in_memory
from tests.faults.ledger import note_figures
from tests.faults.test_once import Processes, in_transactions
from tests.scripted_smtp import scripted_server


def killed(base: Path, victim: str, kind: str, kills: int, messages: int) -> int:
    """Kill `victim` so often; return how many of the messages have arrived twice. None is lost."""
    moments = random.Random(os.environ.get("ONCE_SEED", "once"))
    twice: Counter[tuple[int, str]] = Counter()
    amid = rounds = 0
    while amid < kills:
        rounds += 1
        place = base / str(rounds)
        with scripted_server(lmtp=kind == "lmtp") as server:
            where = f"{kind}:127.0.0.1:{server.port}"
            target = ["--deliver", where, "--once-file", str(base / f"once-{rounds}")]
            processes = Processes(place, target, messages)
            while processes.left and amid < kills:
                amid += processes.kill(victim, moments)
            processes.finish()
            found = in_transactions(server.conversations)
        missing = processes.expected - found
        assert not missing, f"lost after {amid} kills: {missing}"
        for text, _ in found - processes.expected:
            twice[rounds, text] = 1
    note_figures("once-handoff", victim=victim, to=kind, kills=amid, twice=len(twice))
    return len(twice)


def check(base: Path, victim: str, kind: str, kills: int, messages: int) -> None:
    """Kill, and compare what has arrived twice with what was under way."""
    with in_memory(base) as directory:
        twice = killed(directory, victim, kind, kills, messages)
    under_way = MAX_BATCHES * kills if victim == "receiver" else 0
    assert twice <= under_way, f"{twice} messages twice, {under_way} were under way at the kills"


@pytest.mark.parametrize("kind", ["lmtp", "smtp"])
@pytest.mark.parametrize("victim", ["forwarder", "receiver"])
def test_some_kills(tmp_path: Path, victim: str, kind: str) -> None:
    """Nothing is lost, and nothing twice but what was under way to the next server."""
    check(tmp_path, victim, kind, 4, 300)


@pytest.mark.long
@pytest.mark.timeout(3_600)
@pytest.mark.parametrize("kind", ["lmtp", "smtp"])
@pytest.mark.parametrize("victim", ["forwarder", "receiver"])
def test_two_hundred_kills(tmp_path: Path, victim: str, kind: str) -> None:
    """Nothing is lost, and nothing twice but what was under way to the next server."""
    check(tmp_path, victim, kind, 200, 2_000)
