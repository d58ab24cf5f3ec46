"""In these tests a maildir is a path: the programs under test open it themselves."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Protocol

import pytest

from maildirqmtp.cli.main import main
from maildirqmtp.forwarder import servers
from maildirqmtp.pipeline.timeouts import Timeouts
from maildirqmtp.transport import command


@pytest.fixture
def maildir(path: Path) -> Path:
    """An empty maildir."""
    return path


class Run(Protocol):
    """See `run_quickly`."""

    def __call__(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]: ...


@pytest.fixture
def run_quickly(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run as `helpers.run` does, in this process; what no option makes shorter is short.

    That is the time for a package's other responses after its first, and for a command to exit.
    """
    monkeypatch.setattr(command, "EXIT_GRACE_S", 0.3)
    monkeypatch.setattr(servers, "Timeouts", lambda *times: Timeouts(*times)._replace(grace_s=1.0))

    def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        words = [os.fspath(argument) for argument in arguments]
        capfd.readouterr()
        code = main(words)
        result = subprocess.CompletedProcess(words, code, *capfd.readouterr())
        assert "Traceback" not in result.stderr, result.stderr
        return result

    return run
