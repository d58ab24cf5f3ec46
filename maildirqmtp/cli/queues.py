"""List the queues that mail waits in, or have them tried at once: `qmtp-sendmail -bp` and `-q`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from maildirqmtp.cli.queue_list import list_messages
from maildirqmtp.cli.queue_selection import Selected, Selection
from maildirqmtp.daemon.listing import places_of
from maildirqmtp.daemon.waking import Woken, wake
from maildirqmtp.exit_codes import EX_NOPERM, EX_TEMPFAIL, EXIT_OK
from maildirqmtp.maildir.maildir import Maildir
from maildirqmtp.text import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


def list_queues(paths: Sequence[bytes], tell: Callable[[str], object]) -> int:
    """Print what waits in these maildirs, as `qmtpq list` does; return an exit code.

    It is 0 even if something waits, as with mailq(1). Raises `LocalError` if a maildir cannot
    be opened.
    """
    for path in paths:
        with Maildir(path):
            pass
        selection = Selection(tuple(places_of(path)))
        with Selected(selection, tell) as selected:
            if list_messages(selected, by_name=False, limit=None, to_json=False) != EXIT_OK:
                return EX_TEMPFAIL
    return EXIT_OK


def try_now(paths: Sequence[bytes], tell: Callable[[str], object]) -> int:
    """Have the daemons of these maildirs try all that waits; return an exit code.

    Raises `LocalError` if a maildir cannot be read, or if its daemon has just ended.
    """
    codes = [_try_now(path, tell) for path in paths]
    return max(codes, default=EXIT_OK)


def _try_now(path: bytes, tell: Callable[[str], object]) -> int:
    with Maildir(path) as maildir:
        woken = wake(maildir)
        waits = woken is not Woken.NO_DAEMON or any(maildir.scan(include_cur=False))
    if woken is Woken.NO_DAEMON and waits:
        tell(f"no daemon forwards {printable(path)}; it goes with the next run of maildirqmtp")
        return EX_TEMPFAIL
    if woken is Woken.NOT_ALLOWED:
        tell(f"the daemon of {printable(path)} is another user's; it tries on its own schedule")
        return EX_NOPERM
    return EXIT_OK
