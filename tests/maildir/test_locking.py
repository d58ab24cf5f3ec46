"""The lock: two forwarders send everything twice; one that strangers can hold stops all mail."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from maildirqmtp.errors import LocalError
from maildirqmtp.maildir import locking
from maildirqmtp.maildir.maildir import Maildir
from tests.helpers import make_maildir

STRANGER = 23_456
OWNER = 12_345
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act for other users")

# The interpreter may be where only root can run it.
_HOLD = """
import fcntl, os, sys
if len(sys.argv) > 3: os.setresuid(*map(int, sys.argv[3:]))
fd = os.open(sys.argv[1], os.O_RDONLY)
fcntl.flock(fd, getattr(fcntl, sys.argv[2]))
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A maildir, in directories that everybody may go through."""
    for directory in (tmp_path, *tmp_path.parents[:3]):
        if directory.stat().st_uid == os.geteuid():
            directory.chmod(0o755)
    return make_maildir(tmp_path / "M")


@contextmanager
def held(path: Path, mode: str, *users: int) -> Iterator[int]:
    """Have another process hold flock on a file; yield its number.

    `users` are its real, effective and saved user, where these are not ours.
    """
    with subprocess.Popen(
        [sys.executable, "-c", _HOLD, path, mode, *map(str, users)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == b"held\n"
            yield process.pid
        finally:
            process.stdin.close()


def opened(path: Path) -> Maildir:
    """Return the maildir, open."""
    return Maildir(os.fsencode(path))


def test_the_second_is_told_who_has_it_until_the_first_ends(path: Path) -> None:
    """The file stays: removed, two processes would each lock one of that name."""
    with opened(path) as first, opened(path) as second:
        assert locking.holder(first.root) is None
        first.lock()
        first.lock()
        with pytest.raises(LocalError, match=f"M is locked by process {os.getpid()}; two"):
            second.lock()
        assert locking.holder(second.root) == os.getpid()
        first.close()
        second.lock()
    status = (path / ".maildirqmtp-lock").stat()
    assert stat.S_IMODE(status.st_mode) == 0o600


def test_the_lock_outlives_the_maildir_that_it_was_taken_for(path: Path) -> None:
    """A daemon has several routes with one maildir; the first to end must not let go of it."""
    with opened(path) as first:
        lock = locking.acquire(first.root)
    with opened(path) as second:
        with pytest.raises(LocalError, match="is locked by"):
            second.lock()
        lock.close()
        second.lock()


@pytest.mark.parametrize("mode", ["LOCK_SH", "LOCK_EX"])
@pytest.mark.parametrize("user", [None, pytest.param(OWNER, marks=root_only)])
def test_a_lock_on_the_directory_by_root_or_the_owner_counts(
    path: Path, mode: str, user: int | None
) -> None:
    """Earlier versions lock so: both would send everything."""
    if user is not None:
        os.chown(path, user, -1)
    users = () if user is None else (user, user, user)
    with held(path, mode, *users) as process, opened(path) as maildir:
        said = f"locked by process {process}; two"
        with pytest.raises(LocalError, match=said):
            maildir.lock()


@root_only
@pytest.mark.parametrize("mode", ["LOCK_SH", "LOCK_EX"])
def test_a_strangers_lock_on_the_directory_stops_nothing(path: Path, mode: str) -> None:
    """Whoever may read the maildir could keep all its mail back."""
    with held(path, mode, STRANGER, STRANGER, STRANGER), opened(path) as maildir:
        maildir.lock()
        assert locking.holder(maildir.root) == os.getpid()


@root_only
def test_a_strangers_program_that_runs_as_root_is_not_roots(path: Path) -> None:
    """They can start su or passwd with a locked directory open, and leave it at its question."""
    with held(path, "LOCK_SH", STRANGER, 0, 0), opened(path) as maildir:
        maildir.lock()


@root_only
def test_a_stranger_cannot_open_the_lock_file(path: Path) -> None:
    """With it open, they could lock it."""
    with opened(path) as maildir:
        maildir.lock()
    done = subprocess.run(
        [sys.executable, "-c", _HOLD, path / ".maildirqmtp-lock", "LOCK_SH", *[str(STRANGER)] * 3],
        capture_output=True,
        check=False,
    )
    assert b"PermissionError" in done.stderr


def test_earlier_versions_find_it_locked(path: Path) -> None:
    """One that is started meanwhile would send everything again."""
    with opened(path) as maildir:
        maildir.lock()
        fd = os.open(path, os.O_RDONLY)
        try:
            with pytest.raises(BlockingIOError):
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        finally:
            os.close(fd)


@root_only
def test_what_root_locks_its_owner_can_lock_afterwards(path: Path) -> None:
    """A root-owned lock file would end the owner's own runs for good."""
    os.chown(path, OWNER, OWNER)
    with opened(path) as maildir:
        maildir.lock()
    status = (path / ".maildirqmtp-lock").stat()
    assert (status.st_uid, status.st_gid) == (OWNER, OWNER)


def test_a_lock_file_that_others_could_open_is_closed_to_them(path: Path) -> None:
    """Made by hand, or by a copy of the maildir."""
    (path / ".maildirqmtp-lock").touch()
    (path / ".maildirqmtp-lock").chmod(0o666)
    with opened(path) as maildir:
        maildir.lock()
    assert stat.S_IMODE((path / ".maildirqmtp-lock").stat().st_mode) == 0o600


@pytest.mark.parametrize(
    "plant",
    [
        lambda path, victim: path.symlink_to(victim),
        lambda path, victim: path.hardlink_to(victim),
        lambda path, victim: os.mkfifo(path),
        lambda path, victim: path.mkdir(),
    ],
    ids=["link", "hard link", "fifo", "directory"],
)
def test_what_is_planted_in_its_place_is_named_and_not_touched(
    path: Path, tmp_path: Path, plant: Callable[[Path, Path], object]
) -> None:
    """Root would lock, or change, somebody else's file; or wait for ever."""
    victim = tmp_path / "victim"
    victim.write_text("precious")
    victim.chmod(0o644)
    plant(path / ".maildirqmtp-lock", victim)
    with opened(path) as maildir, pytest.raises(LocalError, match=r"lock file .*remove it"):
        maildir.lock()
    assert victim.read_text() == "precious"
    assert stat.S_IMODE(victim.stat().st_mode) == 0o644


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_where_no_file_can_be_made_the_directory_is_locked(
    path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """On a full disk messages can still be sent and removed, which makes room."""
    make = os.open

    def full(name: bytes, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if flags & os.O_CREAT:
            raise OSError(number, os.strerror(number))
        return make(name, flags, mode, dir_fd=dir_fd)

    monkeypatch.setattr(os, "open", full)
    with opened(path) as first, opened(path) as second:
        first.lock()
        with pytest.raises(LocalError, match="is locked by"):
            second.lock()
        assert locking.holder(second.root) == os.getpid()


def test_without_proc_the_lock_is_as_good(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a chroot, say; only the name is missing."""
    monkeypatch.setattr(locking, "holders", lambda status: [])
    with opened(path) as first, opened(path) as second:
        first.lock()
        with pytest.raises(LocalError, match="is locked by another process"):
            second.lock()
