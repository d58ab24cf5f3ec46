"""A maildir: lock, scan, read and remove, without ever trusting a name.

maildir(5), and what this package adds:

    new/  cur/  tmp/     as in maildir(5); dot-files are not messages
    envelope/NAME.json   the sidecar of the message NAME, if it has one

All access goes through descriptors of the directories, so that a directory that
is renamed or replaced meanwhile cannot lead elsewhere; envelope/ is looked up
again for each sidecar. A message is a name that opens as a regular file without
following a link. It is known by its identity (device, inode, size, modification
time), and only the file of that identity is ever removed or moved. `writing`
puts files in.
"""

import errno
import os
import stat
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from enum import Enum, auto
from itertools import filterfalse
from typing import TYPE_CHECKING

from maildirqmtp.errors import FileChangedError, LocalError
from maildirqmtp.maildir import directories, locking, names, safety
from maildirqmtp.maildir.by_age import sort_by_age
from maildirqmtp.maildir.files import (
    READ,
    Folder,
    Message,
    identity_of,
    local_error,
)
from maildirqmtp.maildir.renames import Renames
from maildirqmtp.text import printable

if TYPE_CHECKING:
    from maildirqmtp.maildir.shard import Shard

#: Bytes up to which a message is read whole; larger ones are streamed.
WHOLE_MAX = 1 << 20
#: Bytes read of a larger message to find its envelope.
TOP_BYTES = 64 << 10

# mbsync keeps this file in a maildir if it keeps its numbers of messages in their names.
_MBSYNC_STATE = b".uidvalidity"
_DOT = ord(".")
# Errors of open(2) for what is no message: links, sockets, devices without a driver.
_NO_MESSAGE = (errno.ELOOP, errno.ENXIO, errno.ENODEV, errno.EISDIR, errno.ENOENT)


class Removal(Enum):
    """What became of a message that was to be removed."""

    DONE = auto()
    GONE = auto()
    CHANGED = auto()


# Looking a member up in its enumeration takes four times as long, and each message needs it.
DONE, GONE, CHANGED = Removal.DONE, Removal.GONE, Removal.CHANGED


#: What a scan found: directory and name, oldest first.
Candidates = deque[tuple[Folder, bytes]]


def _cannot_open(folder: Folder, name: bytes, error: OSError) -> LocalError:
    fault = local_error("open", folder.join(name), error)
    if error.errno not in (errno.EACCES, errno.EPERM):
        return fault
    return LocalError(f"{fault}; chmod or chown it, or run this as its owner")


def _being_written(folder: Folder, name: bytes) -> FileChangedError:
    return FileChangedError(
        f"{printable(folder.join(name))} is being written to; messages are to be written in tmp/ "
        f"and then renamed"
    )


def _read_whole(fd: int, size: int) -> bytes:
    """Return a file of `size` bytes; if it is longer, one byte more; if shorter, all of it."""
    data = os.read(fd, size + 1)
    while len(data) < size and (more := os.read(fd, size + 1 - len(data))):
        data += more
    return data


class Maildir:
    """An open maildir; a context manager, which closes it and releases the lock.

    Raises `LocalError` if it cannot be opened: it does not exist, is no maildir,
    or may not be read. `nofollow` refuses a path that ends in a link. With a
    `shard`, only its messages are found, and only it is locked.
    """

    def __init__(self, path: bytes, nofollow: bool = False, shard: "Shard | None" = None) -> None:
        self.path = path
        self.shard = shard
        self._open: list[Folder] = []
        self._lock: locking.Lock | None = None
        self._envelope: Folder | None = None
        self._envelope_durable = False
        self._renames = Renames(self.list_names)
        try:
            self.root = self._enter(path, None, nofollow)
            self.new = self._enter(b"new", self.root, nofollow=True)
            self.cur = self._enter(b"cur", self.root, nofollow=True)
            self.tmp = self._enter(b"tmp", self.root, nofollow=True)
            #: The users whose files may be messages; None for any.
            self.owners = safety.trusted_owners(self.root.fd)
        except LocalError:
            self.close()
            raise
        except OSError as error:
            self.close()
            raise local_error("look at", path, error) from error

    def _enter(self, name: bytes, parent: Folder | None, nofollow: bool = False) -> Folder:
        path = name if parent is None else parent.join(name)
        try:
            fd = directories.open_directory(name, None if parent is None else parent.fd, nofollow)
        except OSError as error:
            raise directories.not_opened(path, error, inside=parent is not None) from error
        folder = Folder(fd, path)
        self._open.append(folder)
        folder.owner = directories.owner_of(self._open[0].fd, path)
        return folder

    def __enter__(self) -> "Maildir":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close every directory, and release the lock."""
        while self._open:
            os.close(self._open.pop().fd)
        self.unlock()

    def find_envelopes(self) -> Folder | None:
        """Return the directory of the sidecars, if any. Raises `LocalError` if opening it fails.

        Its path is looked up each time: it may be made, moved away or replaced meanwhile. One
        lookup serves all messages whose names were seen before it, because a writer puts the
        sidecar in place before the message.
        """
        held = self._envelope
        if held is not None and not directories.is_at(b"envelope", self.root, held):
            self._envelope, self._envelope_durable = None, False
            self._open.remove(held)
            os.close(held.fd)
        if self._envelope is None and self.root.has(b"envelope"):
            self._envelope = self._enter(b"envelope", self.root, nofollow=True)
        return self._envelope

    def may_have_envelopes(self) -> bool:
        """Return whether a message may have a sidecar; True on an error, which reading reports."""
        try:
            return self._envelope is not None or self.find_envelopes() is not None
        except LocalError:
            return True

    def envelope(self) -> Folder:
        """Return the directory of the sidecars; make it if needed, or raise `LocalError`."""
        found = self.find_envelopes()
        if found is None:
            directories.make(b"envelope", self.root)
            found = self._envelope = self._enter(b"envelope", self.root, nofollow=True)
        return found

    def durable_envelope(self) -> Folder:
        """Return the directory of the sidecars, its own name durable.

        Its name is synced even if it was there before: a run may have been killed right after
        making it. Raises `LocalError` if it cannot be made or synced.
        """
        folder = self.envelope()
        if not self._envelope_durable:
            self.root.sync()
            self._envelope_durable = True
        return folder

    def lock(self) -> None:
        """Lock out other forwarders until this object is closed.

        Raises `LockedError` if a process has it locked, which the error names, and `LocalError` if
        it cannot be locked.
        """
        if self._lock is None:
            self._lock = locking.acquire(self.root, self.shard)

    def unlock(self) -> None:
        """Release the lock, if it is held."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def prove_changeable(self, include_cur: bool = False) -> None:
        """Prove that messages can be removed, before any is sent; else raise `LocalError`.

        Makes and removes a dot-file in new/ (and cur/). On a full disk, where
        files can be removed but not made, the permissions count instead.
        """
        for folder in self._folders(include_cur):
            safety.prove_changeable(folder.fd, folder.path)

    def is_current(self) -> bool:
        """Return whether the path still leads to the directories that are open.

        Not if one was renamed, removed and made again, mounted over or unmounted:
        then this object sees what no other process does. If nobody can tell, it does for now.
        """
        if directories.nobody_can_tell(self.path):
            return True
        try:
            self.check_path()
        except LocalError:
            return False  # opening it again will tell what is wrong
        return True

    def check_path(self, envelope: Folder | None = None) -> None:
        """Raise `LocalError` unless it `is_current`: nobody would find what was put into it.

        Also if `envelope` is given and is not the directory of its sidecars.
        """
        folders = [(b"new", self.new), (b"cur", self.cur), (b"tmp", self.tmp)]
        if envelope is not None:
            folders.append((b"envelope", envelope))
        try:
            current = os.path.samestat(os.stat(self.path), os.fstat(self.root.fd)) and all(
                directories.is_at(name, self.root, folder) for name, folder in folders
            )
        except FileNotFoundError:
            current = False
        except OSError as error:
            raise local_error("look at", self.path, error) from error
        if not current:
            raise LocalError(
                f"{printable(self.path)} was renamed, replaced or mounted over, and is not the "
                f"maildir that the mail went to"
            )

    def scan(
        self,
        include_cur: bool = False,
        choose: Callable[[Iterator[bytes]], Iterable[bytes]] | None = None,
    ) -> Candidates:
        """Return the candidates, oldest first. Raises `LocalError` if a directory cannot be listed.

        See `by_age` for the order. `choose` gets the names of each directory, and returns those
        that are wanted. Files in cur/ flagged as trash or as drafts are left out.
        """
        candidates: list[tuple[Folder, bytes]] = []
        for folder in self._folders(include_cur):
            found: Iterable[bytes] = self.list_names(folder)
            if self.shard is not None:
                found = filter(self.shard.has, found)
            if choose is not None:
                found = choose(iter(found))
            if folder is self.cur:
                found = filterfalse(names.is_trash_or_draft, found)
            candidates += [(folder, name) for name in found if name[0] != _DOT]
        self.find_envelopes()
        sort_by_age(candidates)
        return deque(candidates)

    def is_ours(self, name: bytes) -> bool:
        """Return whether the message of this name is in the shard; all are without a shard."""
        return self.shard is None or self.shard.has(name)

    def _folders(self, include_cur: bool) -> tuple[Folder, ...]:
        return (self.new, self.cur) if include_cur else (self.new,)

    @staticmethod
    def list_names(folder: Folder) -> Iterator[bytes]:
        """Yield the names in a directory, one by one: half a million at once are 40 MB."""
        encoding, errors = sys.getfilesystemencoding(), sys.getfilesystemencodeerrors()
        try:
            with os.scandir(folder.fd) as entries:
                for entry in entries:
                    yield entry.name.encode(encoding, errors)
        except OSError as error:
            raise local_error("list", folder.path, error) from error

    def load(self, folder: Folder, name: bytes, most_bytes: int | None = None) -> Message | None:
        """Open a message; None if it is gone, or is a link, FIFO, device or directory.

        A file of up to 1 MiB is read whole; of one above `most_bytes` nothing is read, so that
        only its `size` is known. Raises `LocalError` if the file cannot be read, or its owner is
        not trusted, and `FileChangedError` if it is being written to.
        """
        try:
            fd = os.open(name, READ, dir_fd=folder.fd)
        except OSError as error:
            if error.errno in _NO_MESSAGE or self._is_no_file(folder, name):
                return None
            raise _cannot_open(folder, name, error) from error
        keep = False
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                return None
            self._check_owner(folder, name, status.st_uid)
            if safety.is_being_written(fd, status):
                raise _being_written(folder, name)
            size = status.st_size
            if most_bytes is not None and size > most_bytes:
                return Message(folder, name, identity_of(status), b"", size)
            if size > WHOLE_MAX:
                top = os.read(fd, TOP_BYTES)
                keep = True
                return Message(folder, name, identity_of(status), top, size, fd)
            data = _read_whole(fd, size)
            if len(data) != size:
                raise _being_written(folder, name)
            return Message(folder, name, identity_of(status), data, size)
        except OSError as error:
            raise local_error("read", folder.join(name), error) from error
        finally:
            if not keep:
                os.close(fd)

    def _check_owner(self, folder: Folder, name: bytes, owner: int) -> None:
        if self.owners is not None and owner not in self.owners:
            raise LocalError(
                f"{printable(folder.join(name))} belongs to user {owner}, who is not "
                f"the maildir's owner, and may only have been linked here; chown it, or run "
                f"this as the maildir's owner"
            )

    @staticmethod
    def _is_no_file(folder: Folder, name: bytes) -> bool:
        try:
            status = os.stat(name, dir_fd=folder.fd, follow_symlinks=False)
        except OSError:
            return False
        return not stat.S_ISREG(status.st_mode)

    def is_same(self, message: Message) -> bool:
        """Return whether the name is still the opened file. Raises `LocalError` if stat fails."""
        try:
            status = os.stat(message.name, dir_fd=message.folder.fd, follow_symlinks=False)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise local_error("look at", message.folder.join(message.name), error) from error
        return identity_of(status) == message.identity

    def remove(self, message: Message) -> Removal:
        """Remove the message, if its name is still that file.

        Not durable until `new` (or `cur`) is synced. Raises `LocalError` if it cannot be removed.
        """
        name, fd = message.name, message.folder.fd
        try:
            status = os.stat(name, dir_fd=fd, follow_symlinks=False)
            if identity_of(status) != message.identity:
                return CHANGED
            os.unlink(name, dir_fd=fd)
        except FileNotFoundError:
            return GONE
        except OSError as error:
            raise local_error("remove", message.folder.join(name), error) from error
        return DONE

    def follow(self, message: Message, include_cur: bool) -> bool:
        """Find a message that a mail reader has moved to cur/, flagged, or numbered (mbsync).

        If found, the message gets that name; `is_same` and `remove` tell whether it is still the
        same file. In new/, only an mbsync that keeps its numbers in names renames messages, and
        only from cur/ does a mail reader (mutt) move one there; else new/ is not listed for
        each message that another program has removed. Raises `LocalError` if a directory cannot be
        listed.
        """
        base = names.without_uid(message.name)
        folders = [self.cur] if include_cur else []
        if message.folder is self.cur or self.root.has(_MBSYNC_STATE):
            folders.insert(0, self.new)
        for folder in folders:
            name = self._renames.find(folder, base)
            if name is not None and folder.has(name):
                message.folder, message.name = folder, name
                return True
        return False
