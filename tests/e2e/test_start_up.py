"""The first and the last moments of each program: no traceback, and an exit code that is true."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.helpers import command, importing_first

#: Each program, and its code for what may be tried again.
PROGRAMS = {
    "maildirqmtp": 111,
    "qmtpmaildir": 111,
    "qmtp-sendmail": 75,
    "qmtpq": 111,
    "serialqmtp": 111,
    "maildirserial": 111,
}
TEXTS = [
    (program, flag)
    for program in PROGRAMS
    for flag in ("--help", "--version")
    if flag == "--help" or "serial" not in program
]

#: What Python runs before the program: SIGINT comes while a module of the package is sought.
INTERRUPTS = """
import os, signal, sys

class Interrupting:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == "maildirqmtp.errors":
            os.kill(os.getpid(), signal.SIGINT)

signal.signal(signal.SIGINT, signal.default_int_handler)
sys.meta_path.insert(0, Interrupting)
"""
#: What is sent instead in a container, to whom.
TERM = "1, signal.SIGTERM"


def test_a_container_that_is_stopped_at_once_ends(tmp_path: Path) -> None:
    """For PID 1 the kernel ignores TERM; the pod went on, and was killed amid its messages."""
    (tmp_path / "sitecustomize.py").write_text(
        INTERRUPTS.replace("os.getpid(), signal.SIGINT", TERM)
    )
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--pid", "--fork", *command(), "--help"],
        env=os.environ | importing_first(tmp_path),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if "unshare" in done.stderr:
        pytest.skip(f"NOT TESTED: {done.stderr}")
    assert (done.stdout, done.returncode) == ("", 128 + signal.SIGTERM)


@pytest.mark.parametrize(("program", "code"), PROGRAMS.items())
def test_an_interrupt_while_it_loads_shows_no_traceback(
    tmp_path: Path, program: str, code: int
) -> None:
    """A user who thinks better of it at once takes a screen of it for a defect."""
    (tmp_path / "sitecustomize.py").write_text(INTERRUPTS)
    done = subprocess.run(
        [*command(program), "--help"],
        env=os.environ | importing_first(tmp_path),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert (done.stdout, done.stderr) == (b"", b"")
    assert done.returncode in (code, -signal.SIGINT)


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(("program", "flag"), TEXTS)
def test_a_help_that_cannot_be_written_is_an_error(
    program: str, flag: str, unbuffered: str
) -> None:
    """A script that keeps it in a file of a full disk must not take nothing for a success."""
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [*command(program), flag],
            env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == PROGRAMS[program]
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"{program}: ")
    assert line.endswith("standard output: No space left on device")


@pytest.mark.parametrize(("program", "flag"), TEXTS)
def test_a_help_that_nobody_reads_on_is_no_traceback(program: str, flag: str) -> None:
    """As with head(1)."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as pipe:
        done = subprocess.run(
            [*command(program), flag], stdout=pipe, stderr=subprocess.PIPE, timeout=60, check=False
        )
    assert b"Traceback" not in done.stderr
    assert b"Exception" not in done.stderr
    assert done.returncode == PROGRAMS[program]
