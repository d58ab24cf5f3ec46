"""The client that maildirserial starts, where the machine has no more to give."""

from __future__ import annotations

import errno
import os

import pytest

from maildirqmtp.errors import LocalError
from maildirqmtp.serialmail.client import Client
from tests.helpers import open_descriptors


def test_a_client_that_cannot_be_watched_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would go on without anybody who reads its results, and be a zombie after that."""
    monkeypatch.setattr(os, "pidfd_open", no_descriptor)
    before = open_descriptors()
    with pytest.raises(LocalError, match="unable to run cat: Too many open files"):
        Client([b"cat"])
    assert open_descriptors() == before
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def no_descriptor(_: int) -> int:
    """Have no descriptor left."""
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
