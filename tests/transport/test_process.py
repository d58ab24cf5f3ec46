"""Commands: what is known of how they ended."""

from __future__ import annotations

import errno
import signal
from collections.abc import Iterator

import pytest

from maildirqmtp.transport.process import Process, own


@pytest.fixture
def _sigchld_ignored() -> Iterator[None]:
    """As in a program that uses the library, and ignores SIGCHLD to have no zombies."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGCHLD, before)


@pytest.mark.usefixtures("_sigchld_ignored")
@pytest.mark.parametrize("code", [0, 75])
def test_an_exit_code_that_nobody_knows_is_no_success(code: int) -> None:
    """A command that failed counted as done: its mail was answered with K, or removed."""
    process = Process(["sh", "-c", f"exit {code}"])
    assert process.exits(60.0)
    with pytest.raises(OSError, match="exit code unknown") as raised:
        process.reap()
    assert raised.value.errno == errno.ECHILD
    assert process.pid not in own
    process.end(0.0)


@pytest.mark.usefixtures("_sigchld_ignored")
def test_an_exit_code_that_nobody_knows_is_waited_for() -> None:
    """Also where it is asked for before the exit."""
    process = Process(["sh", "-c", "sleep 0.1; exit 75"])
    with pytest.raises(OSError, match="exit code unknown"):
        process.reap()


@pytest.mark.parametrize("code", [0, 75])
def test_an_exit_code_that_is_known(code: int) -> None:
    """It says whether a command has taken its mail."""
    process = Process(["sh", "-c", f"exit {code}"])
    assert process.reap() == code
