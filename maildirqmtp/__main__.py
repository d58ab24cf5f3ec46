"""The program `maildirqmtp`, and `python -m maildirqmtp`: how it is loaded, and how it ends."""

from __future__ import annotations

import gc
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import NoReturn


def run() -> NoReturn:
    """Run the command line of this process, and exit with its code.

    A run that finds little to do is loading and leaving; so neither is done
    more thoroughly than it has to be.
    """
    # To load makes objects by the thousand, and no garbage among them.
    gc.disable()
    from maildirqmtp.cli.main import main

    gc.freeze()
    gc.enable()
    code = main()
    if "threading" not in sys.modules:
        # All is written and closed, and nobody waits for the interpreter to be taken to pieces.
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    run()
