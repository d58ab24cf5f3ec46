"""The two output streams of a program: fit to be written to, and flushed before its exit code."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import TextIO


def mend_output() -> None:
    """Make both streams fit to be written to: not closed, and not choking on an address."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by whoever started us
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def complain(program: str, text: str) -> None:
    """Say it on standard error; where nobody can be told, the exit code tells that it was so."""
    try:
        print(f"{program}: {text}", file=sys.stderr, flush=True)
    except OSError:
        _silence(sys.stderr)


def flush_output() -> bool:
    """Flush standard output; where it takes nothing any more, let the rest go, and return False."""
    try:
        sys.stdout.flush()
    except OSError:
        _silence(sys.stdout)
        return False
    return True


def _silence(stream: TextIO) -> None:
    """Let what is left in a stream's buffer go where nothing is written, and no error is made."""
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, stream.fileno())
    os.close(devnull)
