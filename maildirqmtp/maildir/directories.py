"""Directories: opened without being led elsewhere by another user's link, and made for their owner.

Root is given paths that others can change. A user who replaces their maildir by a link to another
user's would have that one forwarded, and emptied. So root follows a link only where its owner is
root, or owns what it leads to.
"""

import errno
import os
import stat

from maildirqmtp.descriptor_limit import reason
from maildirqmtp.errors import LocalError
from maildirqmtp.maildir.files import Folder, local_error
from maildirqmtp.text import printable

# As many as the kernel follows (path_resolution(7)).
_MAX_LINKS = 40
_SEARCH = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_LIST = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


def not_opened(path: bytes, error: OSError, inside: bool) -> LocalError:
    """Return what to say where a maildir, or a directory `inside` of one, cannot be opened."""
    hint = "is it a maildir?" if inside else "check the path"
    if not inside and error.errno == errno.ENOENT:
        parts = [printable(os.path.join(path, part)) for part in (b"tmp", b"new", b"cur")]
        hint += f", or make one: mkdir -p {' '.join(parts)}"
    return LocalError(
        f"cannot open the maildir directory {printable(path)}: {reason(error)}; {hint}"
    )


def open_directory(name: bytes, parent_fd: int | None = None, nofollow: bool = False) -> int:
    """Open a directory for listing. Raises `OSError`.

    Also where it is a link and `nofollow` is set; the error says so. As root,
    where a link on the way belongs to a user who does not own what it leads to.
    """
    if parent_fd is None and os.geteuid() == 0:
        fd = _walk(name, nofollow)
        try:
            return os.open(b".", _LIST, dir_fd=fd)
        finally:
            os.close(fd)
    try:
        return os.open(name, _LIST | (os.O_NOFOLLOW if nofollow else 0), dir_fd=parent_fd)
    except NotADirectoryError as error:
        # To whoever lists it, a link to a directory looks like one.
        status = os.stat(name, dir_fd=parent_fd, follow_symlinks=False)
        if nofollow and stat.S_ISLNK(status.st_mode):
            raise _not_followed() from error
        raise


def open_parent(path: bytes) -> int:
    """Open the directory that a path's last name is in, for making that. Raises `OSError`."""
    parent = os.path.dirname(path.rstrip(b"/")) or (b"/" if path.startswith(b"/") else b".")
    if os.geteuid() == 0:
        return _walk(parent, nofollow=False)
    return os.open(parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)


def owner_of(fd: int, path: bytes) -> tuple[int, int] | None:
    """Return the user and group to whom root gives what it makes in a directory.

    None: nothing is to be given, for this is not root, or the directory is root's own.
    `path` is for the error. Raises `LocalError`.
    """
    if os.geteuid() != 0:
        return None
    try:
        status = os.fstat(fd)
    except OSError as error:
        raise local_error("look at", path, error) from error
    owner = status.st_uid, status.st_gid
    return None if owner == (os.geteuid(), os.getegid()) else owner


def make(name: bytes, parent: Folder) -> bool:
    """Make a directory, for its parent's owner only; False where there is anything of that name.

    Raises `LocalError`.
    """
    try:
        os.mkdir(name, 0o700, dir_fd=parent.fd)
        if parent.owner is not None and parent.owner != (os.geteuid(), os.getegid()):
            _give(name, parent.fd, parent.owner)
    except FileExistsError:
        return False  # what it is, opening it will tell
    except OSError as error:
        raise local_error("make the directory", parent.join(name), error) from error
    return True


def is_at(name: bytes, parent: Folder, folder: Folder) -> bool:
    """Say whether a name in a directory still is this one. Raises `LocalError`."""
    try:
        there = os.stat(name, dir_fd=parent.fd, follow_symlinks=False)
        return os.path.samestat(there, os.fstat(folder.fd))
    except FileNotFoundError:
        return False
    except OSError as error:
        raise local_error("look at", folder.path, error) from error


def _give(name: bytes, parent_fd: int, owner: tuple[int, int]) -> None:
    """Give a directory that root has just made to its owner."""
    fd = os.open(name, _LIST | os.O_NOFOLLOW, dir_fd=parent_fd)
    try:
        # The parent's owner may have put another directory of root's in its place.
        if os.fstat(fd).st_uid == os.geteuid() and not os.listdir(fd):
            os.fchown(fd, *owner)
    finally:
        os.close(fd)


def _not_followed() -> NotADirectoryError:
    said = "it is a symbolic link, which is not followed"
    return NotADirectoryError(errno.ENOTDIR, said)


def _walk(path: bytes, nofollow: bool) -> int:
    """Open what a path leads to, name by name, with O_PATH. Raises `OSError`.

    `nofollow` refuses a link as the last name.
    """
    return _Walk(path).to(None, path, nofollow)


class _Walk:
    """The way along one path, and how many links it has led through."""

    def __init__(self, path: bytes) -> None:
        self._path = path
        self._links = 0

    def to(self, start_fd: int | None, path: bytes, nofollow: bool = False) -> int:
        """Open what a path leads to from a directory, None for the current one."""
        if not path:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        begin = b"/" if path.startswith(b"/") else b"."
        here = os.open(begin, _SEARCH | os.O_DIRECTORY, dir_fd=start_fd)
        names = [name for name in path.split(b"/") if name not in (b"", b".")]
        for number, name in enumerate(names):
            before = here
            try:
                here = self._step(before, name, nofollow and number == len(names) - 1)
            finally:
                os.close(before)
        return here

    def _step(self, parent_fd: int, name: bytes, nofollow: bool) -> int:
        fd = os.open(name, _SEARCH, dir_fd=parent_fd)
        try:
            link = os.fstat(fd)
            if not stat.S_ISLNK(link.st_mode):
                return os.dup(fd)
            if nofollow:
                raise _not_followed()
            self._links += 1
            if self._links > _MAX_LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
            found = self.to(parent_fd, os.readlink(b"", dir_fd=fd))
        finally:
            os.close(fd)
        if link.st_uid not in (0, os.fstat(found).st_uid):
            os.close(found)
            raise PermissionError(
                errno.EPERM,
                f"the symbolic link {printable(name)} on the way belongs to user {link.st_uid}, "
                f"who does not own what it leads to; name the directory itself",
            )
        return found
