"""The order in which messages are sent: the oldest first.

That is the order of the seconds that begin a name (maildir(5)), else of the modification time, and
then of the names; only names without seconds cost a stat.
"""

import os
import re
from operator import itemgetter

from maildirqmtp.maildir import names
from maildirqmtp.maildir.files import Folder

_OF_NAME = itemgetter(1)
_TEN_DIGITS = re.compile(rb"[0-9]{10}\.").match


def sort_by_age(candidates: list[tuple[Folder, bytes]]) -> None:
    """Sort messages, each given as its directory and its name, the oldest first.

    From 2001 to 2286 the seconds have ten digits: such names are in the order of their seconds,
    and nothing of ours has to run for each of a million.
    """
    by_name = all(map(_TEN_DIGITS, map(_OF_NAME, candidates)))
    candidates.sort(key=_OF_NAME if by_name else _age_and_name)


def _age_and_name(candidate: tuple[Folder, bytes]) -> tuple[int, bytes]:
    folder, name = candidate
    seconds = names.seconds_in(name)
    if seconds is not None:
        return seconds, name
    try:
        return int(os.stat(name, dir_fd=folder.fd, follow_symlinks=False).st_mtime), name
    except OSError:
        return 0, name  # gone or unreadable: opening it will tell
