"""Fixtures of the receiver's tests: a log and a clock, which the test reads and advances."""

from __future__ import annotations

import pytest

from tests.receiver.doubles import Clock, Log


@pytest.fixture
def log() -> Log:
    """What the server logs."""
    return Log()


@pytest.fixture
def clock() -> Clock:
    """The server's clock."""
    return Clock()
