"""Telling a scenario once: setting the stage, and clearing it away."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from tests.faults.programs import Installed, Programs, Rehearsal, Template
from tests.faults.receiving import Queue, Receive
from tests.faults.scenarios import Scenario
from tests.faults.stages import Enqueue, Forward, Stage

KINDS: dict[str, Callable[[Scenario, Path, Path, Programs], Stage]] = {
    "forward": Forward,
    "enqueue": Enqueue,
    "receive": Receive,
    "queue": Queue,
}


def _other_file_system(root: Path, candidates: Sequence[Path]) -> Path | None:
    """Return a directory on another file system than `root`, if there is one."""
    device = os.stat(root).st_dev
    for path in candidates:
        if path.is_dir() and os.access(path, os.W_OK) and os.stat(path).st_dev != device:
            return path
    return None


@contextlib.contextmanager
def telling(
    scenario: Scenario, tmp_path: Path, programs: Programs | None = None
) -> Iterator[Stage]:
    """Set a stage, in memory where there is a file system for that, and clear it away."""
    memory = Path("/dev/shm")
    fast = memory if memory.is_dir() and os.access(memory, os.W_OK) else tmp_path
    with tempfile.TemporaryDirectory(prefix="faults-", dir=fast) as name:
        root = Path(name)
        other = _other_file_system(root, [tmp_path, memory])
        with contextlib.ExitStack() as undo:
            elsewhere = root
            if scenario.elsewhere:
                if other is None:
                    pytest.skip("NOT TRIED: no second file system to move messages to")
                elsewhere = Path(
                    undo.enter_context(tempfile.TemporaryDirectory(prefix="faults-", dir=other))
                )
            stage = KINDS[scenario.kind](scenario, root, elsewhere, programs or Installed())
            undo.callback(stage.close)
            for _ in range(scenario.clean_runs):
                stage.faulty()
            yield stage


@contextlib.contextmanager
def rehearsed(
    scenario: Scenario, tmp_path: Path, *, many: bool
) -> Iterator[tuple[Programs, object]]:
    """Tell a scenario as it goes, so that all is imported once.

    Give out the programs to tell it with, forked ones for `many` tellings, and its state after
    one clean run.
    """
    rehearsal = Rehearsal()
    with telling(scenario, tmp_path, rehearsal) as stage:
        stage.faulty()
        clean = stage.state()
        stage.recover()
    if many:
        with contextlib.closing(Template(rehearsal.modules)) as template:
            yield template, clean
    else:
        yield Installed(), clean
