"""Whether a maildir's files can be changed, who still writes to one, and whose it has to be.

A name in new/ proves nothing about who may read the file: anybody who can write
there can link a file of another user's. And a file may still be open with its
writer, which has begun it in new/ instead of tmp/.
"""

import errno
import fcntl
import os
import time

from maildirqmtp.errors import LocalError
from maildirqmtp.maildir.files import identity_of
from maildirqmtp.text import printable

#: Seconds for a writer to close the file that it has just renamed.
CLOSING_S = 0.05
_CLOSING_LOOKS = 10
_PROBE = b".maildirqmtp-probe"


def prove_changeable(fd: int, path: bytes) -> None:
    """Make and remove a dot-file in a directory. Raises `LocalError` where that cannot be."""
    try:
        probe = _free_probe(fd)
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
            raise LocalError(
                f"cannot change {printable(path)}: {error.strerror}; nothing was sent, because "
                f"what was sent could not be removed"
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


def _free_probe(fd: int) -> bytes:
    try:
        _unlink_if_there(fd, _PROBE)  # an earlier run may have died right here
    except IsADirectoryError:
        # Planted by another user; a name that can be foreseen could stop us for ever.
        return _other_probe()
    return _PROBE


def trusted_owners(maildir_fd: int) -> frozenset[int] | None:
    """Return whose files may be messages of this maildir: its owner's and root's; None: anybody's.

    Only root has to ask: other users can read no more than they could send anyway.
    """
    return frozenset({0, os.fstat(maildir_fd).st_uid}) if os.geteuid() == 0 else None


def is_being_written(fd: int, status: os.stat_result) -> bool:
    """Say whether a file has a writer that may not be done, and may have begun it in new/.

    `status` is the file's. One that was renamed after it was written to, as
    maildir(5) wants it, is complete.
    """
    # Not renamed since, or within the same tick of the clock.
    may_be_begun = status.st_ctime_ns == status.st_mtime_ns and has_writer(fd)
    return may_be_begun and not closes_soon(fd, status)


def closes_soon(fd: int, status: os.stat_result) -> bool:
    """Say whether the writer of a file closes it at once, without a change to it; wait for that.

    As those do who rename it and then close it, which cannot be told by the times
    of the file from those who have begun it in new/. Waits for `CLOSING_S` at
    most, and only where the file was written to within the last second.
    """
    if not 0 <= time.time() - status.st_mtime < 1:
        return False
    for _ in range(_CLOSING_LOOKS):
        time.sleep(CLOSING_S / _CLOSING_LOOKS)
        if not has_writer(fd):
            return identity_of(os.fstat(fd)) == identity_of(status)
    return False


def has_writer(fd: int) -> bool:
    """Say whether a file that we have opened for reading is open for writing as well.

    By asking for a lease (fcntl(2)). False where the kernel does not tell:
    another file system, another's file.
    """
    import signal  # not at the start: a run that finds nothing does without

    try:
        # Whoever opens it for writing just then makes the kernel signal us; SIGIO would kill.
        fcntl.fcntl(fd, fcntl.F_SETSIG, int(signal.SIGURG))
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        # At once: while we have it, whoever opens the file for writing has to wait for us.
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError as error:
        return error.errno == errno.EAGAIN
    return False
