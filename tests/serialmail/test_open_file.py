"""What serialqmtp opens: where a file cannot be read, it says so as serialmail does."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from maildirqmtp.maildir.maildir import WHOLE_MAX
from maildirqmtp.serialmail.open_file import UnreadableError, open_message
from tests.helpers import open_descriptors


def test_a_bad_block_below_the_first_one_is_said_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a traceback, the results of the messages before it were lost, and sent twice."""
    path = tmp_path / "large"
    lines = b"".join(b"X-Original-To: x%d@y\n" % number for number in range(20_000))
    path.write_bytes(b"Return-Path: <a@b>\nDelivered-To: c@d\n" + lines + bytes(WHOLE_MAX))

    def pread(*_: object) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "pread", pread)
    before = open_descriptors()
    with pytest.raises(UnreadableError, match="unable to read file"):
        open_message(os.fsencode(path), b"")
    assert open_descriptors() == before
