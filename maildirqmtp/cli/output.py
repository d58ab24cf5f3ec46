"""Standard output and standard error: made safe to write to, and flushed before the exit."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import TextIO


def mend_output() -> None:
    """Replace closed streams by /dev/null, and escape what the others cannot encode."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # the parent process had closed it
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def complain(program: str, text: str) -> None:
    """Print a line on standard error; if that fails, the exit code alone has to tell."""
    try:
        print(f"{program}: {text}", file=sys.stderr, flush=True)
    except OSError:
        _silence(sys.stderr)


def flush_output() -> bool:
    """Flush standard output; if it takes no more, discard the rest and return False."""
    try:
        sys.stdout.flush()
    except OSError:
        _silence(sys.stdout)
        return False
    return True


def _silence(stream: TextIO) -> None:
    """Redirect a stream to /dev/null, so that flushing what is left in its buffer cannot fail."""
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, stream.fileno())
    os.close(devnull)
