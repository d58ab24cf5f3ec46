"""Two ways to start a program on a stage: as it is installed, or forked from a `Template`."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tests.faults.tracing import attached

ENVIRONMENT = dict(os.environ, PYTHONHASHSEED="0", LC_ALL="C", NO_COLOR="1")
#: Seconds for a run; one that takes longer hangs.
RUN_S = 60.0

_TEMPLATE = Path(__file__).with_name("template.py")
_IMPORTED = re.compile(r"^import time: .*\|\s*(\S.*)\n", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Run:
    """How one run of the program ended."""

    status: int
    errors: str


class Started(Protocol):
    """A run of a program that has begun."""

    def finish(self) -> Run:
        """Wait for its end."""


class Programs(Protocol):
    """How to start programs."""

    def start(
        self, argv: Sequence[str], wrapper: Sequence[str], stdin: int, stdout: int
    ) -> Started:
        """Start a program under a command that is put before it."""


class Installed:
    """Starts the installed programs."""

    def __init__(self, **environment: str) -> None:
        self._environment = {**ENVIRONMENT, **environment}

    def start(
        self, argv: Sequence[str], wrapper: Sequence[str], stdin: int, stdout: int
    ) -> Started:
        """See `Programs`."""
        process = subprocess.Popen(
            [*wrapper, *argv],
            stdin=stdin,
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
            errors="surrogateescape",
            env=self._environment,
            cwd="/",
        )
        return _Process(process, self)

    def said(self, errors: str) -> str:
        """Return what a program wrote on its standard error."""
        return errors


class Rehearsal(Installed):
    """Starts the installed programs, and learns which modules they load."""

    def __init__(self) -> None:
        super().__init__(PYTHONPROFILEIMPORTTIME="1")
        self.modules: dict[str, None] = {}

    def said(self, errors: str) -> str:
        """Return it without what the interpreter says of modules."""
        found = _IMPORTED.findall(errors)
        self.modules.update(dict.fromkeys(name for name in found if " " not in name))
        return _IMPORTED.sub("", errors)


class _Process:
    def __init__(self, process: subprocess.Popen[str], programs: Installed) -> None:
        self._process = process
        self._programs = programs

    def finish(self) -> Run:
        try:
            errors = self._process.communicate(timeout=RUN_S)[1]
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()
            raise
        return Run(self._process.returncode, self._programs.said(errors))


class Template:
    """Starts programs that are forked from a process in which their modules are loaded."""

    def __init__(self, modules: Iterable[str]) -> None:
        self._requests, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, str(_TEMPLATE), str(theirs.fileno())],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                # As in a run: what is written to a file would be positioned in it.
                stderr=subprocess.PIPE,
                pass_fds=[theirs.fileno()],
                env=ENVIRONMENT,
                cwd="/",
            )
        assert self._process.stdin is not None
        with self._process.stdin as stdin:
            stdin.write("\n".join(modules).encode())

    def start(
        self, argv: Sequence[str], wrapper: Sequence[str], stdin: int, stdout: int
    ) -> Started:
        """See `Programs`; a wrapper has to be strace."""
        (script,) = importlib.metadata.entry_points(
            group="console_scripts", name=Path(argv[0]).name
        )
        request = {
            "argv": list(argv),
            "module": script.module,
            "function": script.attr,
            "traced": bool(wrapper),
        }
        errors, its_errors = os.pipe()
        report, its_report = os.pipe()
        with contextlib.ExitStack() as given:
            if subprocess.DEVNULL in (stdin, stdout):
                null = os.open(os.devnull, os.O_RDWR)
                given.callback(os.close, null)
                stdin, stdout = (null if fd == subprocess.DEVNULL else fd for fd in (stdin, stdout))
            given.callback(os.close, its_errors)
            given.callback(os.close, its_report)
            descriptors = [stdin, stdout, its_errors, its_report]
            socket.send_fds(self._requests, [json.dumps(request).encode()], descriptors)
        return _Forked(errors, report, wrapper)

    def close(self) -> None:
        """End it."""
        self._requests.close()
        assert self._process.stderr is not None
        with self._process.stderr as stderr:
            errors = stderr.read()
        assert self._process.wait(RUN_S) == 0, errors
        assert not errors, errors


class _Forked:
    def __init__(self, errors: int, report: int, wrapper: Sequence[str]) -> None:
        self._errors = os.fdopen(errors, "rb", buffering=0)
        self._report = os.fdopen(report, "rb")
        self._pid = int(self._report.readline())
        self._tracer: subprocess.Popen[bytes] | None = None
        if wrapper:
            words = attached(wrapper, self._pid)
            self._tracer = subprocess.Popen(words, stderr=subprocess.DEVNULL)

    def finish(self) -> Run:
        with self._errors, self._report:
            errors = self._read(self._errors.fileno())
            status = int(self._report.readline())
            if self._tracer is not None:
                self._tracer.wait(RUN_S)
        return Run(status, errors.decode(errors="surrogateescape"))

    def _read(self, descriptor: int) -> bytes:
        until = time.monotonic() + RUN_S
        data = b""
        while select.select([descriptor], [], [], max(0.0, until - time.monotonic()))[0]:
            piece = os.read(descriptor, 1 << 16)
            if not piece:
                return data
            data += piece
        os.kill(self._pid, signal.SIGKILL)
        raise TimeoutError(f"a run of more than {RUN_S:.0f} s: {data!r}")
