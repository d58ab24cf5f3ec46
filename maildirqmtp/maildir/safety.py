"""Who else may be at a maildir's files, and whether we may: lock, proof, writers, strangers.

A name in new/ proves nothing about who may read the file: anybody who can write
there can link a file of somebody else's. And a file may still be open with its
writer, who has begun it in new/ instead of tmp/.
"""

import errno
import fcntl
import os

from maildirqmtp.errors import LocalError
from maildirqmtp.text import printable

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
        # Somebody has planted it; a name that can be known could stop us for ever.
        return _other_probe()
    return _PROBE


def trusted_owners(maildir_fd: int) -> frozenset[int] | None:
    """Return whose files may be messages of this maildir: its owner's and root's; None: anybody's.

    Only root has to ask: everybody else can read no more than he could send anyway.
    """
    return frozenset({0, os.fstat(maildir_fd).st_uid}) if os.geteuid() == 0 else None


def has_writer(fd: int) -> bool:
    """Say whether somebody has this file, which we opened for reading, open for writing.

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
