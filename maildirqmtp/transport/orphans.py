"""Orphans: as PID 1, in a container without an init, a program has to reap orphaned processes.

It must reap nothing else: the code that started a command of this process waits for it and
reads its exit status (`transport.process`).
"""

from __future__ import annotations

import os

from maildirqmtp.transport import process


def is_reaper() -> bool:
    """Return whether orphans become children of this process."""
    return os.getpid() == 1


def reap() -> bool:
    """Reap the orphans that have exited; return False if a command of ours may hide others.

    waitid(2) shows one exited child at a time, and the same one until it has been reaped.
    """
    while True:
        # Not during a start: a command that exits at once would not be in `own` yet.
        with process.starting:
            try:
                found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
                if found is None:
                    return True
                if found.si_pid in process.own:
                    return False
                os.waitid(os.P_PID, found.si_pid, os.WEXITED | os.WNOHANG)
            except ChildProcessError:
                return True
