"""Reading and removing small messages by the bare system calls: most mail goes this way.

Anything unusual is left to `Maildir.load` and `Maildir.remove`, which find out what it is. So
nothing here raises.
"""

import os
import stat
from collections.abc import Container

from maildirqmtp.maildir.files import READ, Folder, Identity, identity_of


def read(
    folder: Folder, name: bytes, max_bytes: int, owners: Container[int] | None
) -> tuple[Identity, bytes] | None:
    """Return a file's identity and content; None if `Maildir.load` has to look at it.

    That is a file of more than `max_bytes`, one that belongs to none of the `owners` (None:
    anybody's will do), and whatever `Maildir.load` would refuse or wait for.
    """
    try:
        fd = os.open(name, READ, dir_fd=folder.fd)
    except OSError:
        return None
    try:
        status = os.fstat(fd)
        size, mtime_ns = status.st_size, status.st_mtime_ns
        if (
            not stat.S_ISREG(status.st_mode)
            or size > max_bytes
            or status.st_ctime_ns == mtime_ns  # its writer may not be done
            or (owners is not None and status.st_uid not in owners)
        ):
            return None
        data = os.read(fd, size + 1)
    except OSError:
        return None
    finally:
        os.close(fd)
    if len(data) != size:
        return None
    return (status.st_dev, status.st_ino, size, mtime_ns), data


def remove(folder: Folder, name: bytes, identity: Identity) -> bool:
    """Remove a message, if its name is still that file; return whether it was removed.

    Not durable until the directory is synced.
    """
    fd = folder.fd
    try:
        if identity_of(os.stat(name, dir_fd=fd, follow_symlinks=False)) != identity:
            return False
        os.unlink(name, dir_fd=fd)
    except OSError:
        return False
    return True
