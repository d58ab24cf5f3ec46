"""Orphans: as PID 1, in a container without an init, a daemon has to reap what others leave.

Only that: a command of this process is waited for by whoever has started it, and its exit
status is read by that (`transport.process`).
"""

from __future__ import annotations

import os

from maildirqmtp.transport import process


def is_reaper() -> bool:
    """Say whether orphans become children of this process."""
    return os.getpid() == 1


def reap() -> bool:
    """Reap the orphans that have exited; False where one of our own, still to be read, hides more.

    waitid(2) shows one exited child at a time, and the same until somebody has reaped it.
    """
    while True:
        # Not amid a start: a command that has exited already would not be known as ours.
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
