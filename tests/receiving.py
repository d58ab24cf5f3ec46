"""The installed receiver, in a process of its own, for tests of the way to it."""

from __future__ import annotations

import contextlib
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

from maildirqmtp.qmtp.protocol import ResponseReader
from tests.helpers import DEADLINE_S, command


@contextlib.contextmanager
def receiver(maildir: Path, *flags: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run `qmtpmaildir` on loopback, or where the flags say; its process and where it listens.

    Its log is its standard error, of which the first line has been read.
    """
    listen = [] if "--listen" in flags else ["--listen", "127.0.0.1:0"]
    with subprocess.Popen(
        [*command("qmtpmaildir"), *listen, *flags, str(maildir)],
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        try:
            line = process.stderr.readline()
            match = re.fullmatch(r"qmtpmaildir: listening on (.+)\n", line)
            assert match is not None, line
            yield process, match[1]
        finally:
            process.terminate()
            process.stderr.read()
            assert process.wait(DEADLINE_S) == 0


def delivered(maildir: Path) -> list[bytes]:
    """Return the texts that the receiver has stored, without its lines on top, in order."""
    texts = []
    for path in (maildir / "new").iterdir():
        top, received, text = path.read_bytes().partition(b"Received: ")
        assert top.startswith(b"Return-Path: <")
        assert received
        texts.append(text.partition(b"\n")[2])
    return sorted(texts)


def letters(output: bytes) -> str:
    """Return the letters of a receiver's responses, K, Z or D each; all of them are whole."""
    reader = ResponseReader()
    reader.feed(output)
    found = ""
    while (response := reader.next()) is not None:
        found += response.status.value
    assert reader.pending == 0
    return found
