"""The lock that keeps two forwarders apart: a file in the maildir that only its owner can open.

    DIR/.maildirqmtp-lock           mode 0600, empty, never removed; flock(2) on it is the lock
    DIR/.maildirqmtp-lock-shards    likewise; how many shards there are, as a number
    DIR/.maildirqmtp-lock-K         likewise; the lock of shard K
    DIR/.maildirqmtp-lock-bounces   likewise; keeps two `qmtpq bounce` apart, beside any forwarder

A forwarder of the whole maildir holds the first lock exclusively. A shard holds it shared, and its
own lock exclusively. The first shard to start sets the number of shards, which is read and written
under flock(2) on its file, held for that moment only.

Earlier versions lock the directory itself, which everybody who may read it can do. Such a lock
still counts if a process of the maildir's owner, of root or of this user has it; and this version
locks the directory as well, for them to find. Another user's lock on it is ignored.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from maildirqmtp.errors import LocalError, LockedError
from maildirqmtp.maildir import files
from maildirqmtp.maildir.files import Folder, local_error
from maildirqmtp.text import printable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from maildirqmtp.maildir.shard import Shard

NAME = b".maildirqmtp-lock"
SHARDS = NAME + b"-shards"
BOUNCES = NAME + b"-bounces"
# Seconds to wait until other shards have read the number of shards, and between two looks.
_GATE_S, _POLL_S = 2.0, 0.01
_OPEN = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
# Errors that keep a lock file from being made, though a run without one may still do its work.
_CANNOT_MAKE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)


class Lock:
    """A lock that is held until it is closed."""

    __slots__ = ("_fds", "directory")

    def __init__(self) -> None:
        self._fds: list[int] = []
        #: A descriptor of the maildir's directory, open as long as the lock is held.
        self.directory = -1

    def add(self, fd: int) -> int:
        """Keep a descriptor open as long as the lock is held."""
        self._fds.append(fd)
        return fd

    def close(self) -> None:
        """Release the lock."""
        while self._fds:
            os.close(self._fds.pop())


def acquire(root: Folder, shard: Shard | None = None) -> Lock:
    """Lock a maildir, or a shard of it, against other forwarders, until the lock is closed.

    Raises `LockedError` if a process has it locked, which the error names, and `LocalError` if it
    cannot be locked.
    """
    mode = fcntl.LOCK_EX if shard is None else fcntl.LOCK_SH
    with _acquiring(root) as lock:
        made = _make_file(root, NAME, needed=shard is not None)
        fd = lock.add(_open_file(root, NAME)) if made else None
        if shard is not None:
            assert fd is not None
            _join(root, fd, shard)
            lock.add(_lock_shard(root, shard))
        elif fd is not None and not _flock(fd):
            raise _locked(root, holders(os.fstat(fd)))
        # An open file description of its own, so that the lock does not end with the maildir's.
        directory = lock.directory = lock.add(
            os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=root.fd)
        )
        if not _flock(directory, mode):
            others = holders(os.fstat(directory))
            counted = others if fd is None else [p for p in others if _counts(p, root)]
            if counted or fd is None:
                raise _locked(root, counted)
    return lock


def acquire_for_bounces(root: Folder) -> Lock:
    """Lock other `qmtpq bounce` runs out of a maildir, until the lock is closed.

    Forwarders go on meanwhile. Raises `LocalError` as `acquire` does.
    """
    with _acquiring(root) as lock:
        _make_file(root, BOUNCES)
        fd = lock.add(_open_file(root, BOUNCES))
        if not _flock(fd):
            processes = holders(os.fstat(fd))
            who = f"process {processes[0]}" if processes else "another process"
            raise LocalError(f"{who} is bouncing messages of {printable(root.path)}; try again")
    return lock


@contextmanager
def _acquiring(root: Folder) -> Iterator[Lock]:
    """Yield a lock to be filled; if that fails, close it, and raise `LocalError`."""
    lock = Lock()
    try:
        yield lock
    except OSError as error:
        lock.close()
        raise local_error("lock", root.path, error) from error
    except LocalError:
        lock.close()
        raise


def _join(root: Folder, whole: int, shard: Shard) -> None:
    """Share the maildir's lock, an open file, with other shards of the same total.

    Raises `LocalError` if the whole maildir is locked, or the other shards have another total.
    """
    _make_file(root, SHARDS)
    gate = _open_file(root, SHARDS)
    try:
        # Nobody holds it for longer than this takes; but the maildir's owner could.
        if not flock_within(gate, _GATE_S):
            raise _locked(root, holders(os.fstat(gate)))
        wanted = b"%d\n" % shard.total
        # No other shard runs, so that the number may change.
        if _flock(whole) and os.pread(gate, 20, 0) != wanted:
            os.pwrite(gate, wanted, 0)
            os.ftruncate(gate, len(wanted))
        if not _flock(whole, fcntl.LOCK_SH):
            raise _locked(root, holders(os.fstat(whole)))
        found = os.pread(gate, 20, 0)
        if found != wanted:
            raise LocalError(
                f"{printable(root.path)} is being forwarded in {printable(found.strip())} shards, "
                f"not in {shard.total}; stop those first, or give this one the same number"
            )
    finally:
        os.close(gate)


def _lock_shard(root: Folder, shard: Shard) -> int:
    """Lock a shard until the returned descriptor is closed. Raises `LocalError` if it is locked."""
    name = _name_of(shard)
    _make_file(root, name)
    fd = _open_file(root, name)
    if not _flock(fd):
        processes = holders(os.fstat(fd))
        os.close(fd)
        raise _locked(root, processes, f"shard {shard} of ")
    return fd


def _name_of(shard: Shard | None) -> bytes:
    return NAME if shard is None else b"%b-%d" % (NAME, shard.number)


def holder(root: Folder, shard: Shard | None = None) -> int | None:
    """Return the ID of the process that has the maildir, or a shard of it, locked.

    None if there is none, or /proc does not tell.
    """
    try:
        status = os.stat(_name_of(shard), dir_fd=root.fd, follow_symlinks=False)
    except OSError:
        if shard is not None:
            return None
        status = os.fstat(root.fd)  # the lock may be the directory's alone
    return next(iter(holders(status)), None)


def holders(status: os.stat_result) -> list[int]:
    """Return the IDs of processes with flock(2) on a file, as /proc/locks (proc(5)) tells."""
    device = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:"
    exact, same_inode = [], []
    try:
        with open("/proc/locks") as locks:
            for fields in map(str.split, locks):
                if len(fields) > 5 and fields[1] == "FLOCK":
                    if fields[5] == f"{device}{status.st_ino}":
                        exact.append(int(fields[4]))
                    elif fields[5].endswith(f":{status.st_ino}"):
                        same_inode.append(int(fields[4]))
    except OSError:
        return []  # no /proc: the lock is as good without a name
    # Some file systems (btrfs) report another device to stat(2) than the kernel has in its list.
    return exact or same_inode


def _make_file(root: Folder, name: bytes, needed: bool = True) -> bool:
    """Make a lock file if there is none; return False if none can be made.

    If it is `needed`, raises `LocalError` instead; else `OSError` if not of `_CANNOT_MAKE`.
    """
    try:
        os.close(files.create(root, name))
    except FileExistsError:
        return True
    except OSError as error:
        if needed:
            raise local_error("make the lock file", root.join(name), error) from error
        if error.errno not in _CANNOT_MAKE:
            raise
        return False
    return True


def _open_file(root: Folder, name: bytes) -> int:
    """Open a lock file. Raises `LocalError` if it cannot be opened, or was not made here."""
    path = printable(root.join(name))
    try:
        fd = os.open(name, _OPEN, dir_fd=root.fd)
    except OSError as error:
        raise LocalError(
            f"cannot open the lock file {path}: {error.strerror}; remove it, or run this as the "
            f"maildir's owner"
        ) from error
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
        os.close(fd)
        raise LocalError(f"the lock file {path} is not a regular file with one name; remove it")
    if status.st_mode & 0o077 and os.geteuid() in (0, status.st_uid):
        os.fchmod(fd, 0o600)
    return fd


def flock_within(fd: int, seconds: float) -> bool:
    """Lock a file for this process, as soon as it is free; return whether that was in time."""
    give_up_at = time.monotonic() + seconds
    while not _flock(fd):
        if time.monotonic() >= give_up_at:
            return False
        time.sleep(_POLL_S)
    return True


def _flock(fd: int, mode: int = fcntl.LOCK_EX) -> bool:
    try:
        fcntl.flock(fd, mode | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _counts(process: int, root: Folder) -> bool:
    """Return whether a process belongs to the maildir's owner, root or this user.

    Its real user counts: a set-user-ID program (su, passwd) is not root's.
    """
    try:
        with open(f"/proc/{process}/status") as file:
            real = next(line.split()[1] for line in file if line.startswith("Uid:"))
    except (OSError, StopIteration):
        return False  # it has ended, or is another user's and hidden from us
    return int(real) in (0, os.geteuid(), os.fstat(root.fd).st_uid)


def _locked(root: Folder, processes: list[int], what: str = "") -> LockedError:
    who = f"process {processes[0]}" if processes else "another process"
    return LockedError(
        f"{what}{printable(root.path)} is locked by {who}; two forwarders would send everything "
        f"twice"
    )
