"""How far the clock is trusted when files are removed by their age.

    DIR/.maildirqmtp-clock    three times in seconds of the epoch, as in `Reading`

A clock that has jumped forward (an empty battery, a typing error) makes every file look old, and
cannot be told from one that went on while no run looked. So its new time counts only once it has
gone on from there for 12 hours, without being set back; until then, ages count up to the last
trusted time.
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
#: Seconds between two looks that raise no suspicion: 36 hours, for a run once a day.
USUAL_S = 36 * 3_600
#: Seconds for which a clock that has jumped must go on, to be trusted again.
CONFIRM_S = 12 * 3_600
_MAX_BYTES = 64
_OPEN = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY


class Reading(NamedTuple):
    """What is known of the clock after a look at it, all in seconds of the epoch.

    `seen_s` is what it showed; ages count up to `trusted_s`; `jumped_s` is the time to which it
    has jumped and since which it is not trusted, 0 if it is trusted.
    """

    seen_s: int
    trusted_s: int
    jumped_s: int = 0


def judge(before: Reading | None, now_s: float) -> Reading:
    """Return the reading of a clock that shows `now_s`; `before` is None at the first look."""
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
    """Return the reading of the last look; None if there is none, or it is malformed.

    Raises `LocalError` if the file exists and cannot be read.
    """
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
    """Write a reading in place, which needs no room on a full disk.

    Raises `LocalError` if the file cannot be written.
    """
    try:
        with suppress(FileExistsError):
            os.close(files.create(root, NAME))
        fd = os.open(NAME, _OPEN, dir_fd=root.fd)
        try:
            status = os.fstat(fd)
            # With a second name, it may be another user's file, linked here for root to overwrite.
            if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
                raise OSError(errno.EINVAL, "it is not a regular file with one name")
            os.pwrite(fd, b"%011d %011d %011d\n" % reading, 0)
        finally:
            os.close(fd)
    except OSError as error:
        raise local_error("write", root.join(NAME), error) from error
