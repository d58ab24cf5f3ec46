"""Opening directories without following another user's link, and making them for their owner.

Root is given paths that other users can change. A user who replaces their maildir with a link to
another user's maildir could have that one forwarded, and emptied. So root follows a link only if
the link's owner is root or owns its target.
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
# Errors of a disk or a server that may be back in a moment.
_OUTAGE = (errno.EIO, errno.ENOMEM, errno.ETIMEDOUT)
_LIST = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


def not_opened(path: bytes, error: OSError, inside: bool) -> LocalError:
    """Return the error for a maildir, or a directory `inside` one, that cannot be opened."""
    hint = "is it a maildir?" if inside else "check the path"
    if error.errno in (errno.EACCES, errno.EPERM):
        hint = "run this as its owner"
    elif error.errno == errno.ENOENT and inside:
        hint += f" if so: mkdir {printable(path)}"
    elif error.errno == errno.ENOENT:
        parts = [printable(os.path.join(path, part)) for part in (b"tmp", b"new", b"cur")]
        hint += f", or make one: mkdir -p {' '.join(parts)}"
    return LocalError(
        f"cannot open the maildir directory {printable(path)}: {reason(error)}; {hint}"
    )


def open_directory(name: bytes, parent_fd: int | None = None, nofollow: bool = False) -> int:
    """Open a directory for listing.

    Raises `OSError` if it cannot be opened, or is a link and `nofollow` is set (the error
    says so); as root, also if a link on the way belongs to a user who does not own its target.
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
        # "Not a directory" would mislead: a link to a directory looks like one.
        status = os.stat(name, dir_fd=parent_fd, follow_symlinks=False)
        if nofollow and stat.S_ISLNK(status.st_mode):
            raise _not_followed() from error
        raise


def open_parent(path: bytes) -> int:
    """Open the directory in which a path's last name is to be made.

    Raises `OSError` as `open_directory` does.
    """
    parent = os.path.dirname(path.rstrip(b"/")) or (b"/" if path.startswith(b"/") else b".")
    if os.geteuid() == 0:
        return _walk(parent, nofollow=False)
    return os.open(parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)


def owner_of(fd: int, path: bytes) -> tuple[int, int] | None:
    """Return the user and group to whom root gives what it makes in a directory.

    None if this process is not root, or the directory is root's own. `path` is for the
    error: raises `LocalError` if the directory's owner cannot be read.
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
    """Make a directory, for its parent's owner only; return False if the name exists.

    Raises `LocalError` if it cannot be made, or not be given to that owner.
    """
    try:
        os.mkdir(name, 0o700, dir_fd=parent.fd)
        if parent.owner is not None and parent.owner != (os.geteuid(), os.getegid()):
            _give(name, parent.fd, parent.owner)
    except FileExistsError:
        return False  # opening it will tell what it is
    except OSError as error:
        raise local_error("make the directory", parent.join(name), error) from error
    return True


def is_at(name: bytes, parent: Folder, folder: Folder) -> bool:
    """Return whether a name in `parent` is still `folder`. Raises `LocalError` if stat fails."""
    try:
        there = os.stat(name, dir_fd=parent.fd, follow_symlinks=False)
        return os.path.samestat(there, os.fstat(folder.fd))
    except FileNotFoundError:
        return False
    except OSError as error:
        raise local_error("look at", folder.path, error) from error


def nobody_can_tell(path: bytes) -> bool:
    """Return whether looking at a path ends in an error that says nothing of where it leads."""
    try:
        os.stat(path)
    except OSError as error:
        return error.errno in _OUTAGE
    return False


def _give(name: bytes, parent_fd: int, owner: tuple[int, int]) -> None:
    """Give a directory that root has just made to its owner."""
    fd = os.open(name, _LIST | os.O_NOFOLLOW, dir_fd=parent_fd)
    try:
        # The parent's owner may have put another of root's directories in its place.
        if os.fstat(fd).st_uid == os.geteuid() and not os.listdir(fd):
            os.fchown(fd, *owner)
    finally:
        os.close(fd)


def _not_followed() -> NotADirectoryError:
    said = "it is a symbolic link, which is not followed"
    return NotADirectoryError(errno.ENOTDIR, said)


def _walk(path: bytes, nofollow: bool) -> int:
    """Open the target of a path, name by name, with O_PATH; `nofollow`: not a link at its end.

    Raises `OSError` if a name cannot be opened, a link is refused, or there are too many.
    """
    return _Walk(path).to(None, path, nofollow)


class _Walk:
    """The walk along one path, and how many links it has followed."""

    def __init__(self, path: bytes) -> None:
        self._path = path
        self._links = 0

    def to(self, start_fd: int | None, path: bytes, nofollow: bool = False) -> int:
        """Open the target of a path, which starts at a directory; None: the current one."""
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
