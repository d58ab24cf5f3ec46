"""A directory held open, a message that has been opened, and what a file is known by."""

import os
import stat

from maildirqmtp.errors import LocalError
from maildirqmtp.text import printable

#: Device, inode, size in bytes, modification time in nanoseconds.
Identity = tuple[int, int, int, int]


class Folder:
    """One directory of a maildir, held open."""

    __slots__ = ("fd", "path")

    def __init__(self, fd: int, path: bytes) -> None:
        self.fd = fd
        self.path = path

    def sync(self) -> None:
        """Make the directory's entries durable. Raises `LocalError`."""
        try:
            os.fsync(self.fd)
        except OSError as error:
            raise local_error("make durable", self.path, error) from error

    def has(self, name: bytes) -> bool:
        """Say whether there is anything of this name. Raises `LocalError`."""
        try:
            os.stat(name, dir_fd=self.fd, follow_symlinks=False)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise local_error("look at", self.join(name), error) from error
        return True

    def discard(self, name: bytes) -> None:
        """Remove a file that is of no use, if it is still there. Raises `LocalError`."""
        try:
            os.unlink(name, dir_fd=self.fd)
        except FileNotFoundError:
            return
        except OSError as error:
            raise local_error("remove", self.join(name), error) from error

    def join(self, name: bytes) -> bytes:
        """Return the path of a file in it, for messages."""
        return os.path.join(self.path, name)


class Message:
    """A message that has been opened.

    `data` is the whole file, or its first `TOP_BYTES` when `fd` is not -1: then
    the rest is to be read from there, and `close` is the caller's duty. `size`
    is the length in bytes as it was read. `data` may be let go of (made empty)
    by whoever has sent it.
    """

    __slots__ = ("data", "fd", "folder", "identity", "name", "size")

    def __init__(
        self,
        folder: Folder,
        name: bytes,
        identity: Identity,
        data: bytes,
        size: int,
        fd: int = -1,
    ) -> None:
        self.folder = folder
        self.name = name
        self.identity = identity
        self.data = data
        self.size = size
        self.fd = fd

    @property
    def mtime_s(self) -> float:
        """Modification time, in seconds of the epoch."""
        return self.identity[3] / 1e9

    def close(self) -> None:
        """Close the descriptor of a large message; harmless twice."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def open_directory(name: bytes, parent_fd: int | None, nofollow: bool) -> int:
    """Open a directory. Raises `OSError`, which tells where it is a link that is not followed."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | (os.O_NOFOLLOW if nofollow else 0)
    try:
        return os.open(name, flags, dir_fd=parent_fd)
    except NotADirectoryError as error:
        # To whoever lists it, a link to a directory looks like one.
        status = os.stat(name, dir_fd=parent_fd, follow_symlinks=False)
        if nofollow and stat.S_ISLNK(status.st_mode):
            said = "it is a symbolic link, which is not followed"
            raise NotADirectoryError(error.errno, said) from error
        raise


def local_error(doing: str, path: bytes, error: OSError) -> LocalError:
    """Say what could not be done to which file, and why."""
    return LocalError(f"cannot {doing} {printable(path)}: {error.strerror}")


def identity_of(status: os.stat_result) -> Identity:
    """Return what a file is known by: device, inode, size, modification time in ns."""
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
