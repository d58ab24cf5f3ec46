"""Whether a maildir can be changed, whether a file is still being written, and who must own it.

A name in new/ proves nothing about who may read the file: anybody who can write
there can link another user's file. And a writer that began a file in new/ instead
of tmp/ may still have it open.
"""

import errno
import fcntl
import os
import time

from maildirqmtp.errors import LocalError
from maildirqmtp.maildir.files import identity_of
from maildirqmtp.text import printable

#: Seconds that a writer has to close a file that it has just renamed.
CLOSING_S = 0.05
_CLOSING_LOOKS = 10
_PROBE = b".maildirqmtp-probe"


def prove_changeable(fd: int, path: bytes) -> None:
    """Make and remove a dot-file in a directory.

    Raises `LocalError` if that fails, except in a writable directory of a full disk.
    """
    try:
        probe = free_probe(fd)
        # Another route, or another process's --sent, may do the same here at this moment.
        try:
            _make(fd, probe)
        except FileExistsError:
            probe = _other_probe()
            _make(fd, probe)
        _unlink_if_there(fd, probe)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        if not (full and os.access(b".", os.W_OK | os.X_OK, dir_fd=fd)):
            owner = "; run this as its owner" if error.errno == errno.EACCES else ""
            raise LocalError(
                f"cannot change {printable(path)}: {error.strerror}; nothing was sent, because "
                f"what was sent could not be removed{owner}"
            ) from error


def _unlink_if_there(fd: int, name: bytes) -> None:
    try:
        os.unlink(name, dir_fd=fd)
    except FileNotFoundError:
        return


def _make(fd: int, name: bytes) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    os.close(os.open(name, flags, 0o600, dir_fd=fd))


def _other_probe() -> bytes:
    return _PROBE + os.urandom(8).hex().encode()


def free_probe(fd: int) -> bytes:
    """Return a name for a file that is made in a directory only to prove that it can be.

    Raises `OSError` if one of an earlier run cannot be removed.
    """
    try:
        _unlink_if_there(fd, _PROBE)  # an earlier run may have died right here
    except IsADirectoryError:
        # Another user may have planted it: a predictable name could stop every run.
        return _other_probe()
    return _PROBE


def trusted_owners(maildir_fd: int) -> frozenset[int] | None:
    """Return the users whose files may be messages here: the maildir's owner and root; None: all.

    Only root has to check: other users can read no more than they could send anyway.
    """
    return frozenset({0, os.fstat(maildir_fd).st_uid}) if os.geteuid() == 0 else None


def is_being_written(fd: int, status: os.stat_result) -> bool:
    """Return whether a writer that may have begun a file in new/ may not be done with it.

    `status` is the file's. A file that was renamed after its last write, as
    maildir(5) demands, is complete.
    """
    # Not renamed since, or within the same tick of the clock.
    may_be_begun = status.st_ctime_ns == status.st_mtime_ns and has_writer(fd)
    return may_be_begun and not closes_soon(fd, status)


def closes_soon(fd: int, status: os.stat_result) -> bool:
    """Wait for the writer of a file to close it; return whether it does so without a change.

    A writer that renames a file before it closes it cannot be told, by the file's
    times, from one that began it in new/. Waits for `CLOSING_S` at most, and only
    if the file was written to within the last second.
    """
    if not 0 <= time.time() - status.st_mtime < 1:
        return False
    for _ in range(_CLOSING_LOOKS):
        time.sleep(CLOSING_S / _CLOSING_LOOKS)
        if not has_writer(fd):
            return identity_of(os.fstat(fd)) == identity_of(status)
    return False


def has_writer(fd: int) -> bool:
    """Return whether a file that is open for reading here is open for writing as well.

    Asks for a lease (fcntl(2)). False if the kernel grants none on this file
    system, or on another user's file.
    """
    import signal  # not at the start: a run that finds nothing does without

    try:
        # If it is opened for writing just then, the kernel sends us a signal; SIGIO would kill.
        fcntl.fcntl(fd, fcntl.F_SETSIG, int(signal.SIGURG))
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        # At once: until the lease is given up, opening the file for writing blocks.
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError as error:
        return error.errno == errno.EAGAIN
    return False
