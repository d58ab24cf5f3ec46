"""Wake the daemon that forwards a maildir, so that it tries at once all that waits."""

from __future__ import annotations

import os
import signal
from enum import Enum, auto
from typing import TYPE_CHECKING

from maildirqmtp.daemon.status import read, served
from maildirqmtp.errors import LocalError
from maildirqmtp.text import printable

if TYPE_CHECKING:
    from maildirqmtp.maildir.maildir import Maildir


class Woken(Enum):
    """The result of waking a daemon."""

    DONE = auto()
    #: No daemon serves the maildir.
    NO_DAEMON = auto()
    #: The daemon is another user's process.
    NOT_ALLOWED = auto()


def wake(maildir: Maildir) -> Woken:
    """Send SIGALRM to the daemon that serves the maildir, or to those of its shards.

    Only if the process of a status file holds the lock: the signal would kill a batch, which
    tries everything anyway. Raises `LocalError` if the maildir cannot be listed, or if
    every daemon has just ended.
    """
    told = [(read(maildir, *route) or {}).get("pid") for route in served(maildir)]
    processes = {process for process in told if isinstance(process, int) and process > 0}
    if not processes:
        return Woken.NO_DAEMON
    results = {_wake(process) for process in processes}
    if results == {None}:
        raise LocalError(f"the daemon of {printable(maildir.path)} has just ended")
    return Woken.NOT_ALLOWED if Woken.NOT_ALLOWED in results else Woken.DONE


def _wake(process: int) -> Woken | None:
    """Send SIGALRM; return None if the process has ended: the daemons of other shards go on."""
    try:
        os.kill(process, signal.SIGALRM)
    except ProcessLookupError:
        return None
    except PermissionError:
        return Woken.NOT_ALLOWED
    return Woken.DONE
