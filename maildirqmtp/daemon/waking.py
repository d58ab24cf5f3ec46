"""Waking the daemon that forwards a maildir: it then tries at once all that waits."""

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
    """What came of waking a daemon."""

    DONE = auto()
    #: No process that stays has the maildir.
    NO_DAEMON = auto()
    #: It is another user's process.
    NOT_ALLOWED = auto()


def wake(maildir: Maildir) -> Woken:
    """Send SIGALRM to the daemon that has the maildir, or those of its shards. Raises `LocalError`.

    Only where the process of a status file holds the lock: a run that does not stay would be
    killed by the signal, and tries everything anyway.
    """
    told = [(read(maildir, *route) or {}).get("pid") for route in served(maildir)]
    processes = {process for process in told if isinstance(process, int) and process > 0}
    if not processes:
        return Woken.NO_DAEMON
    try:
        for process in processes:
            os.kill(process, signal.SIGALRM)
    except ProcessLookupError:
        raise LocalError(f"the daemon of {printable(maildir.path)} has just ended") from None
    except PermissionError:
        return Woken.NOT_ALLOWED
    return Woken.DONE
