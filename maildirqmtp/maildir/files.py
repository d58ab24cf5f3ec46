"""Files and directories: held open, written and replaced; and a file's identity."""

import errno
import os
import stat
import sys

from maildirqmtp.descriptor_limit import reason
from maildirqmtp.errors import LocalError
from maildirqmtp.text import printable

#: Device, inode, size in bytes, modification time in nanoseconds.
Identity = tuple[int, int, int, int]

#: Flags that open a file for reading. Opening a FIFO does not wait, a terminal does not become the
#: controlling one, and a link is not followed.
READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
#: Flags that make a new file, and never open one that exists.
CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class Folder:
    """One directory, held open.

    `owner` is the user and group to whom root gives the files that it makes here;
    None if they stay with the process's own user.
    """

    __slots__ = ("fd", "owner", "path")

    def __init__(self, fd: int, path: bytes, owner: tuple[int, int] | None = None) -> None:
        self.fd = fd
        self.path = path
        self.owner = owner

    def sync(self) -> None:
        """Make the directory's entries durable. Raises `LocalError` if fsync(2) fails."""
        try:
            os.fsync(self.fd)
        except OSError as error:
            raise local_error("make durable", self.path, error) from error

    def is_at_path(self) -> bool:
        """Return whether its path still leads to this directory."""
        try:
            return os.path.samestat(os.stat(self.path, follow_symlinks=False), os.fstat(self.fd))
        except OSError:
            return False

    def free_bytes(self) -> int:
        """Return the bytes free to ordinary users here. Raises `LocalError` if that is unknown.

        A file system that does not count (some of FUSE's) never runs out of them.
        """
        try:
            found = os.fstatvfs(self.fd)
        except OSError as error:
            raise local_error("tell how much room is left in", self.path, error) from error
        return found.f_bavail * found.f_frsize if found.f_blocks else sys.maxsize

    def has(self, name: bytes) -> bool:
        """Return whether a file of any kind has this name. Raises `LocalError` if stat fails."""
        try:
            os.stat(name, dir_fd=self.fd, follow_symlinks=False)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise local_error("look at", self.join(name), error) from error
        return True

    def discard(self, name: bytes) -> None:
        """Remove a file if it is still there. Raises `LocalError` if it cannot be removed."""
        try:
            os.unlink(name, dir_fd=self.fd)
        except FileNotFoundError:
            return
        except OSError as error:
            raise local_error("remove", self.join(name), error) from error

    def join(self, name: bytes) -> bytes:
        """Return the path of a file in this directory, for errors and logs."""
        return os.path.join(self.path, name)


class Message:
    """A message that has been opened.

    `data` is the whole file, or its first `TOP_BYTES` when `fd` is not -1: then
    the rest is read from `fd`, and the caller must call `close`. `size` is the
    length in bytes when it was opened. `data` is emptied once it has been sent.
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

    def read_top(self, max_bytes: int) -> None:
        """Read more of a large message into `data`. Raises `LocalError` if it cannot be read."""
        try:
            self.data = os.pread(self.fd, max_bytes, 0)
        except OSError as error:
            raise local_error("read", self.folder.join(self.name), error) from error

    @property
    def mtime_s(self) -> float:
        """Modification time, in seconds of the epoch."""
        return self.identity[3] / 1e9

    def close(self) -> None:
        """Close the descriptor of a large message; idempotent."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def create(folder: Folder, name: bytes, mode: int = 0o600) -> int:
    """Make a file that belongs to the folder's owner, and open it for writing.

    Raises `OSError` if that fails, or the name exists: then that file is left as it is.
    """
    fd = os.open(name, CREATE, mode, dir_fd=folder.fd)
    try:
        if folder.owner is not None:
            os.fchown(fd, *folder.owner)
    except OSError:
        os.close(fd)
        os.unlink(name, dir_fd=folder.fd)
        raise
    return fd


def write_all(fd: int, data: bytes | bytearray | memoryview) -> None:
    """Write all of `data` to a file. Raises `OSError` if a write fails."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def load(folder: Folder, name: bytes, max_bytes: int) -> bytes:
    """Return the content of a regular file.

    Raises `OSError` if it cannot be read, is a link or no regular file, or has
    more than `max_bytes`.
    """
    return load_known(folder, name, max_bytes)[0]


def load_known(folder: Folder, name: bytes, max_bytes: int) -> tuple[bytes, Identity]:
    """Return the content of a regular file, and its identity; otherwise as `load`."""
    fd = os.open(name, READ, dir_fd=folder.fd)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file")
        data = b""
        while len(data) <= max_bytes and (more := os.read(fd, max_bytes + 1 - len(data))):
            data += more
    finally:
        os.close(fd)
    if len(data) > max_bytes:
        raise OSError(errno.EFBIG, f"it has more than {max_bytes} bytes")
    return data, identity_of(status)


def replace(
    folder: Folder,
    name: bytes,
    data: bytes,
    *,
    tmp: Folder | None = None,
    mode: int = 0o600,
    durable: bool = True,
    sync_folder: bool = True,
) -> None:
    """Replace a file, or make it: readers find all of the old one or all of the new one.

    The data is written in `tmp` (a maildir's, which is cleaned; by default in `folder`)
    under an unpredictable name, and renamed. `mode` applies whatever the umask.
    `durable`: the file survives a power cut; without `sync_folder` only once the caller
    has synced `folder`, so that several files share one fsync. Raises `LocalError` if a
    step fails, and leaves no temporary file.
    """
    made_in = folder if tmp is None else tmp
    tmp_name = b".%b.%b" % (name.lstrip(b".")[:200], os.urandom(8).hex().encode())
    try:
        fd = create(made_in, tmp_name, mode)
        try:
            os.fchmod(fd, mode)
            write_all(fd, data)
            if durable:
                os.fsync(fd)
            os.rename(tmp_name, name, src_dir_fd=made_in.fd, dst_dir_fd=folder.fd)
        except BaseException:
            made_in.discard(tmp_name)
            raise
        finally:
            os.close(fd)
    except OSError as error:
        raise local_error("write", folder.join(name), error) from error
    if durable and sync_folder:
        folder.sync()


def local_error(doing: str, path: bytes, error: OSError) -> LocalError:
    """Return the error that says what could not be done to which file, and why."""
    return LocalError(f"cannot {doing} {printable(path)}: {reason(error)}")


def identity_of(status: os.stat_result) -> Identity:
    """Return a file's identity: device, inode, size, modification time in ns."""
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
