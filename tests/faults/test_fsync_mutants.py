"""Each fsync of the program is left out in turn, and then some test has to fail.

A test that passes without an fsync does not guard it; nobody would notice when
a later change drops it. The calls are found in the source, so that a new one
without a test of its own fails here.
"""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.faults.ledger import note_figures

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "maildirqmtp"
#: What makes something durable, by the name of what is called.
_DURABLE = {
    *("fsync", "fdatasync", "sync", "_sync", "_sync_directory", "durable_envelope"),
    *("sync_new", "sync_envelope"),
}
#: The tests that may catch it beside the module's own, the cheaper first.
TESTS = ("tests/faults/test_durability.py", "tests/faults/test_power.py")


@dataclass(frozen=True)
class Call:
    """One call in the source that makes something durable."""

    file: str
    function: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.file}:{self.function}:{self.text}"

    @property
    def tests(self) -> list[str]:
        """The tests that may catch it."""
        path = Path("tests", self.file)
        own = path.with_name(f"test_{path.name}")
        return [str(own), *TESTS] if (ROOT / own).exists() else [*TESTS]


def calls() -> list[Call]:
    """Find the calls, as statements of their own."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        source = path.read_text()
        for function in ast.walk(ast.parse(source)):
            if not isinstance(function, ast.FunctionDef):
                continue
            for node in ast.walk(function):
                if isinstance(node, ast.Expr) and _name(node.value) in _DURABLE:
                    text = ast.get_source_segment(source, node) or ""
                    file = str(path.relative_to(PACKAGE))
                    found.append(Call(file, function.name, node.lineno, text))
    return found


def _name(node: ast.expr) -> str:
    if not isinstance(node, ast.Call):
        return ""
    if isinstance(node.func, ast.Attribute):
        return node.func.attr
    return node.func.id if isinstance(node.func, ast.Name) else ""


def without(call: Call, copy: Path) -> None:
    """Copy the package and its tests, and leave the call out."""
    shutil.copytree(PACKAGE, copy / "maildirqmtp", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "tests", copy / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", copy)
    path = copy / "maildirqmtp" / call.file
    lines = path.read_text().splitlines(keepends=True)
    line = lines[call.line - 1]
    assert line.strip() == call.text
    lines[call.line - 1] = line.replace(call.text, "pass")
    path.write_text("".join(lines))


def failing(copy: Path, tests: str) -> list[str]:
    """Run tests of the copy, without the long ones; return those that fail."""
    environment = dict(os.environ, PYTHONPATH=str(copy))
    # Each test starts many programs: they load what the first one has compiled.
    for name in ("MAILDIRQMTP_FIGURES", "PYTHONDONTWRITEBYTECODE"):
        environment.pop(name, None)
    options = ["-p", "no:cacheprovider", "--basetemp", str(copy / "temporary"), "-m", "not long"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, tests],
        cwd=copy,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr
    lines = done.stdout.splitlines()
    return [line.split("::")[1].split(" ")[0] for line in lines if line.startswith("FAILED")]


def test_the_calls_are_found() -> None:
    """An empty list would be a test that checks nothing."""
    assert len(calls()) >= 12
    assert {
        "maildir/maildir.py",
        "maildir/writing.py",
        "forwarder/settle.py",
        "receiver/storage.py",
    } <= {call.file for call in calls()}


@pytest.mark.long
@pytest.mark.timeout(1_200)
@pytest.mark.parametrize("call", calls(), ids=str)
def test_a_missing_fsync_is_noticed(tmp_path: Path, call: Call) -> None:
    """Without this call a power cut would lose mail, or send it to the wrong people."""
    without(call, tmp_path)
    caught: dict[str, list[str]] = {}
    for tests in call.tests:
        names = failing(tmp_path, tests)
        if names:
            caught[Path(tests).stem] = names
            if "MAILDIRQMTP_FIGURES" not in os.environ:
                break
    note_figures("fsync-mutant", call=str(call), caught=caught)
    assert caught, f"nothing fails without {call.text} in {call.file}, {call.function}"
