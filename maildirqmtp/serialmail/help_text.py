"""What --help shows, for both programs."""

import sys
from collections.abc import Callable

from maildirqmtp.exit_codes import EXIT_OK, EXIT_TEMPORARY


def show(text: str, tell: Callable[[str], object]) -> int:
    """Write a text to standard output; return the exit code. `tell` gets the error if it fails."""
    try:
        print(text, end="")
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        tell(f"standard output: {error.strerror}")
        return EXIT_TEMPORARY
    return EXIT_OK
