"""The programs `maildirqmtp` (and `python -m maildirqmtp`) and `qmtp-sendmail`: start and end."""

from __future__ import annotations

import gc
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import NoReturn


def run() -> NoReturn:
    """Run the command line of this process, and exit with its code.

    A run that finds its maildir empty is little more than start-up and exit. The
    collector stays off while modules load (1.5 ms of 36).
    """
    # Imports allocate much and free nothing.
    gc.disable()
    from maildirqmtp.cli.main import main

    gc.freeze()
    gc.enable()
    _exit(main())


def run_sendmail() -> NoReturn:
    """Run the command line of `qmtp-sendmail`, and exit with its code.

    Start-up is most of it, too; the collector stays off to the end, for one
    message makes no garbage (with the exit below, 10 ms of 65).
    """
    gc.disable()
    from maildirqmtp.cli.qmtp_sendmail import main

    _exit(main())


def _exit(code: int) -> NoReturn:
    if _needs_no_shutdown():
        os._exit(code)
    sys.exit(code)


def _needs_no_shutdown() -> bool:
    """Say whether the process may end without the interpreter's own shutdown.

    That shutdown waits for threads, runs what `atexit` and `threading` have
    registered, and frees every object: 2 ms of 36 where the maildir is empty.
    `main` has flushed all that it wrote, and where `threading` was never imported
    there is no thread to wait for. Nothing in such a run registers with `atexit`.
    """
    return "threading" not in sys.modules


if __name__ == "__main__":
    run()
