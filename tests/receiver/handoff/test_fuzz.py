"""Clients and next servers at random: no crash, and no K for what the next server has not taken."""

from __future__ import annotations

import importlib.util
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.receiver.handoff.fuzz import run

RUNS = 3_000
#: Bytes of a run; about as many as four packages and their answers use up.
LENGTH = 400
#: Seconds of the long run; the environment can say another number.
SECONDS = float(os.environ.get("FUZZ_SECONDS", "600"))


def fuzz(numbers: Iterable[int]) -> bytes:
    """Make a run for each number; the letters of all answers."""
    letters = b""
    for number in numbers:
        try:
            letters += run(random.Random(number).randbytes(LENGTH))
        except BaseException as error:
            error.add_note(f"run {number}")
            raise
    return letters


def test_whatever_client_and_next_server_do() -> None:
    """Each recipient has an answer, and K only where the next server has the text."""
    letters = fuzz(range(RUNS))
    for letter in b"KZD":
        assert letters.count(letter) > RUNS // 20  # about a tenth is K, more or less by the time


@pytest.mark.long
@pytest.mark.timeout(SECONDS + 300)
def test_whatever_client_and_next_server_do_in_the_long_run(tmp_path: Path) -> None:
    """Ten minutes: with atheris, which looks for new ways, where it is installed."""
    if importlib.util.find_spec("atheris") is None:
        over_s = time.monotonic() + SECONDS
        start = RUNS
        while time.monotonic() < over_s:
            fuzz(range(start, start + RUNS))
            start += RUNS
        return
    words = [sys.executable, "-bb", "-m", "tests.receiver.handoff.fuzz"]
    done = subprocess.run(
        [
            *words,
            f"-max_total_time={SECONDS:.0f}",
            f"-max_len={4 * LENGTH}",
            "-print_final_stats=1",
        ],
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    assert done.returncode == 0, done.stderr[-5_000:]
