"""Mutants: one line of the package changed, and the tests that have to notice.

The table is the `*.toml` files beside this one, one for each room:

    [[mutant]]
    file = "qmtp/protocol.py"           below maildirqmtp/
    there = "MAX_ADDRESS = 999"         stands there exactly once
    becomes = "MAX_ADDRESS = 1_999"
    loses = "what a user would lose"
    noticed_by = "tests/qmtp/test_protocol.py"

The tests run against a copy of the package and of the tests; nothing is changed in the tree.
"""

from __future__ import annotations

import contextlib
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
TABLES = sorted(Path(__file__).parent.glob("*.toml"))
#: What a run of tests may need of the tree, beside the package.
NEEDED = ("tests", "contrib", "pyproject.toml", "README.md", "CHANGELOG.md")
#: Seconds for one test, and for all tests of one mutant; what hangs is noticed.
TEST_TIMEOUT_S = 20
RUN_TIMEOUT_S = 180
#: How many run at the same time.
WORKERS = min(4, len(os.sched_getaffinity(0)))

PASSED, FAILED = 0, 1


@dataclass(frozen=True, slots=True)
class Mutant:
    """A row of the table."""

    file: str
    there: str
    becomes: str
    loses: str
    noticed_by: str

    @property
    def label(self) -> str:
        """What to call it."""
        return f"{self.file}: {self.there.strip()!r} becomes {self.becomes.strip()!r}"

    def applied(self, text: str) -> str:
        """Return the file's text with the mutation. Raises `ValueError` where it does not fit."""
        if text.count(self.there) != 1:
            raise ValueError(f"{self.label}: it stands there {text.count(self.there)} times")
        return text.replace(self.there, self.becomes)


def load() -> list[Mutant]:
    """Return the rows of all tables."""
    found = []
    for table in TABLES:
        rows = tomllib.loads(table.read_text())["mutant"]
        found += [Mutant(**row) for row in rows]
    return found


class Copy:
    """A copy of the tree in which a mutant can live."""

    def __init__(self, place: Path) -> None:
        self._place = place
        self._runs = 0
        # What is compiled comes along: it is current as long as its source is.
        leave_out = shutil.ignore_patterns("*.pyc.*", ".*", "faults", "fresh")
        shutil.copytree(ROOT / "maildirqmtp", place / "maildirqmtp", ignore=leave_out)
        for name in NEEDED:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, place / name, ignore=leave_out)
            else:
                shutil.copy2(source, place / name)

    def run(self, tests: str, mutant: Mutant | None = None) -> tuple[int, str]:
        """Run a test file until a test fails; return pytest's exit code and its output."""
        if mutant is None:
            return self._pytest(tests)
        path = self._place / "maildirqmtp" / mutant.file
        original = path.read_text()
        try:
            self._write(path, mutant.applied(original))
            return self._pytest(tests)
        finally:
            self._write(path, original)

    def _write(self, path: Path, text: str) -> None:
        path.write_text(text)
        # Python takes a compiled file for current where size and whole seconds are the same.
        self._runs += 1
        os.utime(path, (self._runs, self._runs))

    def _pytest(self, tests: str) -> tuple[int, str]:
        environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("PYTEST_", "COV", "PYTHON"))
        }
        environment["PYTHONPATH"] = str(self._place)
        basetemp = self._place / "tmp"
        options = ["-x", "-q", "-p", "no:cacheprovider", "-o", "addopts=", "-m", "not long"]
        options += [f"--timeout={TEST_TIMEOUT_S}", f"--basetemp={basetemp}"]
        with subprocess.Popen(
            [sys.executable, "-bb", "-m", "pytest", *options, *tests.split()],
            cwd=self._place,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        ) as process:
            try:
                output, _ = process.communicate(timeout=RUN_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                output = f"it took more than {RUN_TIMEOUT_S} s"
                process.returncode = FAILED
            finally:
                # What the tests have started and a mutant has left alive.
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, 9)
        shutil.rmtree(basetemp, ignore_errors=True)
        return process.returncode, output


@contextlib.contextmanager
def copies(count: int) -> Iterator[queue.Queue[Copy]]:
    """Make copies of the tree, for that many runs at the same time; they are removed again."""
    with tempfile.TemporaryDirectory(prefix="mutants-", ignore_cleanup_errors=True) as place:
        made: queue.Queue[Copy] = queue.Queue()
        for number in range(count):
            made.put(Copy(Path(place) / str(number)))
        yield made


def survivors(mutants: list[Mutant], say: Callable[[str], None] = lambda text: None) -> list[str]:
    """Try these; return what is to be said of those that no test has noticed, and say it."""
    with copies(min(WORKERS, len(mutants)) or 1) as free, ThreadPoolExecutor(WORKERS) as pool:

        def judge(mutant: Mutant) -> str | None:
            copy = free.get()
            try:
                code, output = copy.run(mutant.noticed_by, mutant)
            except ValueError as error:
                return f"NO MUTANT, {error}"
            finally:
                free.put(copy)
            # A test that was skipped here, for want of root or a program, may be the one.
            if code == FAILED or (code == PASSED and " skipped" in output):
                return None
            if code == PASSED:
                return f"SURVIVED {mutant.label} ({mutant.noticed_by}): {mutant.loses}"
            return f"NO MUTANT, pytest ended with {code}: {mutant.label}\n{output[-2_000:]}"

        found = []
        for said in pool.map(judge, mutants):
            if said is not None:
                say(said)
                found.append(said)
        return found


def main() -> int:
    """Try all mutants, or those of the files named: `python -m tests.mutants.mutants [FILE...]`.

    A FILE may also be a part of a path, as `maildir/`, or of a line.
    """
    chosen = sys.argv[1:]
    mutants = [m for m in load() if not chosen or any(part in m.label for part in chosen)]
    found = survivors(mutants, lambda text: print(text, flush=True))
    print(f"{len(mutants) - len(found)} of {len(mutants)} noticed")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
