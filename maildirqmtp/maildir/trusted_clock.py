"""How far the clock is to be trusted where files are removed by their age.

    DIR/.maildirqmtp-clock    three times in seconds of the epoch, as in `Reading`

A clock that has jumped forward (an empty battery, a typing error) makes every file look old. It
cannot be told from one that went on while nothing ran. So what it shows then counts only once it
has gone on from there for 12 hours, without being set back; until then ages are counted up to what
it showed before.
"""

# No postponed annotations; see `forwarder.route`.
import errno
import os
import stat
from contextlib import suppress
from typing import NamedTuple

from maildirqmtp.maildir import files
from maildirqmtp.maildir.files import Folder, local_error

NAME = b".maildirqmtp-clock"
#: Seconds between two looks that are as usual: 36 hours, for a run once a day.
USUAL_S = 36 * 3_600
#: Seconds for which a clock that has jumped must go on, to be trusted again.
CONFIRM_S = 12 * 3_600
_MAX_BYTES = 64
_OPEN = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY


class Reading(NamedTuple):
    """What is known of the clock after a look at it, all in seconds of the epoch.

    `seen_s` is what it showed; ages count up to `trusted_s`; it has jumped to `jumped_s` and has
    not been trusted since, 0 for not.
    """

    seen_s: int
    trusted_s: int
    jumped_s: int = 0


def judge(before: Reading | None, now_s: float) -> Reading:
    """Return what is known of a clock that shows `now_s`; None before is for the first look."""
    now = max(0, int(now_s))
    if before is None or now - before.trusted_s <= USUAL_S:
        return Reading(now, now)
    jumped_s = before.jumped_s if 0 < before.jumped_s <= now else now
    if now - jumped_s < CONFIRM_S:
        return Reading(now, before.trusted_s, jumped_s)
    if 0 <= now - before.seen_s <= USUAL_S:
        return Reading(now, now)
    # Another jump: it confirms the one before, and no more.
    return Reading(now, jumped_s, now)


def read(root: Folder) -> Reading | None:
    """Return what was known after the last look; None for none, or none of use. `LocalError`."""
    try:
        fields = files.load(root, NAME, _MAX_BYTES).split()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise local_error("read", root.join(NAME), error) from error
    # A power cut may leave less: the file is never made durable.
    if len(fields) != len(Reading._fields) or not all(field.isdigit() for field in fields):
        return None
    return Reading(*map(int, fields))


def write(root: Folder, reading: Reading) -> None:
    """Note what is known after a look. Raises `LocalError`.

    In place, which needs no room on a full disk.
    """
    try:
        with suppress(FileExistsError):
            os.close(files.create(root, NAME))
        fd = os.open(NAME, _OPEN, dir_fd=root.fd)
        try:
            status = os.fstat(fd)
            # Another name of it may be another user's file, for root to write to.
            if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
                raise OSError(errno.EINVAL, "it is not a regular file with one name")
            os.pwrite(fd, b"%011d %011d %011d\n" % reading, 0)
        finally:
            os.close(fd)
    except OSError as error:
        raise local_error("write", root.join(NAME), error) from error
