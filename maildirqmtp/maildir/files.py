"""Files and directories: held open, written, replaced; and what a file is known by."""

import errno
import os
import stat

from maildirqmtp.descriptor_limit import reason
from maildirqmtp.errors import LocalError
from maildirqmtp.text import printable

#: Device, inode, size in bytes, modification time in nanoseconds.
Identity = tuple[int, int, int, int]

#: Flags that open a file for reading. Opening a FIFO or a terminal neither waits nor takes hold
#: of it, and a link is not followed.
READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
#: Flags that make a file, and open no other.
CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class Folder:
    """One directory, held open.

    `owner` is the user and the group that root gives the files to which it makes in
    it; None where they belong to the process's own user.
    """

    __slots__ = ("fd", "owner", "path")

    def __init__(self, fd: int, path: bytes, owner: tuple[int, int] | None = None) -> None:
        self.fd = fd
        self.path = path
        self.owner = owner

    def sync(self) -> None:
        """Make the directory's entries durable. Raises `LocalError`."""
        try:
            os.fsync(self.fd)
        except OSError as error:
            raise local_error("make durable", self.path, error) from error

    def is_at_path(self) -> bool:
        """Say whether its path still leads to it, and not elsewhere or nowhere."""
        try:
            return os.path.samestat(os.stat(self.path, follow_symlinks=False), os.fstat(self.fd))
        except OSError:
            return False

    def free_bytes(self) -> int:
        """Return the bytes left on its file system for ordinary users. Raises `LocalError`."""
        try:
            found = os.fstatvfs(self.fd)
        except OSError as error:
            raise local_error("tell how much room is left in", self.path, error) from error
        return found.f_bavail * found.f_frsize

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
    is the length in bytes as it was read. `data` is made empty
    once it has been sent.
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
        """Have more of a large message in `data`. Raises `LocalError`."""
        try:
            self.data = os.pread(self.fd, max_bytes, 0)
        except OSError as error:
            raise local_error("read", self.folder.join(self.name), error) from error

    @property
    def mtime_s(self) -> float:
        """Modification time, in seconds of the epoch."""
        return self.identity[3] / 1e9

    def close(self) -> None:
        """Close the descriptor of a large message; harmless twice."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def create(folder: Folder, name: bytes, mode: int = 0o600) -> int:
    """Make a file and open it for writing; it belongs to the folder's owner. Raises `OSError`.

    Also where there is anything of that name already: it is neither opened nor changed.
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
    """Write all of it to a file. Raises `OSError`."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def load(folder: Folder, name: bytes, max_bytes: int) -> bytes:
    """Return the content of a regular file. Raises `OSError`.

    Also for a link, for anything that is not a regular file, and for one of
    more than `max_bytes`.
    """
    return load_known(folder, name, max_bytes)[0]


def load_known(folder: Folder, name: bytes, max_bytes: int) -> tuple[bytes, Identity]:
    """Return the content of a regular file, and what the file is known by; as `load`."""
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

    Written in `tmp` (a maildir's, which is cleaned; else in `folder` itself)
    under a name that nobody can foresee, then renamed. `mode` counts whatever
    the umask. `durable` also survives a power cut; without `sync_folder` only once
    the caller has synced `folder`, for several files at once. Raises `LocalError`,
    and leaves nothing.
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
    """Say what could not be done to which file, and why."""
    return LocalError(f"cannot {doing} {printable(path)}: {reason(error)}")


def identity_of(status: os.stat_result) -> Identity:
    """Return what a file is known by: device, inode, size, modification time in ns."""
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
