"""The queues that mail waits in, shown or tried at once: `qmtp-sendmail -bp` and `-q`."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

from maildirqmtp.cli.status import show_maildir
from maildirqmtp.daemon.status import read, served
from maildirqmtp.errors import LocalError
from maildirqmtp.exit_codes import EX_NOPERM, EX_TEMPFAIL, EXIT_OK
from maildirqmtp.maildir.maildir import Maildir
from maildirqmtp.text import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


def list_queues(paths: Sequence[bytes]) -> int:
    """Print what waits in these maildirs, as `maildirqmtp --status` does; return an exit code.

    0 also where something waits, as mailq(1). Raises `LocalError` where one cannot be read.
    """
    for path in paths:
        with Maildir(path):
            pass
        show_maildir(path, None, as_json=False)
    return EXIT_OK


def try_now(paths: Sequence[bytes], tell: Callable[[str], object]) -> int:
    """Have the daemons of these maildirs try all that waits; return an exit code.

    Raises `LocalError` where a maildir cannot be read.
    """
    codes = [_try_now(path, tell) for path in paths]
    return max(codes, default=EXIT_OK)


def _try_now(path: bytes, tell: Callable[[str], object]) -> int:
    with Maildir(path) as maildir:
        # A run that does not stay would be killed by the signal; it tries everything anyway.
        told = [(read(maildir, *route) or {}).get("pid") for route in served(maildir)]
        processes = {pid for pid in told if isinstance(pid, int) and pid > 0}
        waits = any(True for _ in maildir.scan(include_cur=False))
    if not processes:
        if not waits:
            return EXIT_OK
        tell(f"no daemon forwards {printable(path)}; it goes with the next run of maildirqmtp")
        return EX_TEMPFAIL
    try:
        for process in processes:
            os.kill(process, signal.SIGALRM)
    except ProcessLookupError:
        raise LocalError(f"the daemon of {printable(path)} has just ended") from None
    except PermissionError:
        tell(f"the daemon of {printable(path)} is another user's; it tries on its own schedule")
        return EX_NOPERM
    return EXIT_OK
