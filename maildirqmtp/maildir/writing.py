"""Putting files into a maildir so that a crash at any point loses nothing.

The orders, each step durable before the next where it says so:

    deliver    tmp/X written, fsync | link new/X | unlink tmp/X | (caller) fsync new/
    enqueue    tmp/X written, fsync | sidecar, durable | deliver | fsync new/ |
               are these the directories at their paths?
    deliver_as as deliver, with rename instead of link | fsync new/ | is it at its path?
    adopt      link the message as tmp/X (or copy, fsync) | is it still that file? |
               link new/X | unlink tmp/X | fsync new/
    sidecar    tmp/X written, fsync | rename envelope/X | fsync envelope/

A message gets its name by a link, not by a rename, which would replace another message.
The exceptions are `deliver_as`, which replaces only its own work, from before a crash, and
`publish_by_rename`, which first checks that the name is free.
A crash leaves at most stale files in tmp/ and orphaned sidecars, which `cleanup` removes.
"""

from __future__ import annotations

import errno
import os
import socket
import time
from functools import cache
from itertools import count
from typing import TYPE_CHECKING

from maildirqmtp.errors import FileChangedError, LocalError
from maildirqmtp.maildir import directories, files, names, safety, sidecars
from maildirqmtp.maildir.files import (
    Folder,
    Identity,
    Message,
    identity_of,
    local_error,
)
from maildirqmtp.maildir.maildir import Maildir
from maildirqmtp.text import printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from maildirqmtp.mail.sidecar import Sidecar

_COPY_BYTES = 1 << 20
# Bytes that `rehearse` writes: enough for a quota to count.
_REHEARSED = 64 << 10
# Bytes of a name that leave room for `.json`, or `.1.json`, within the usual 255.
_NAME_BYTES = 240
# Errors of link(2) after which a copy will do: another file system, no links there, not our file.
_CANNOT_LINK = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS)

_sequence = count(1)


def unique_name(mark: str = "") -> bytes:
    """Return a name used only once: seconds, microseconds, process, count, host (maildir(5)).

    `mark` follows the count.
    """
    now_ns = time.time_ns()
    when = f"{now_ns // 10**9}.M{now_ns // 1000 % 10**6:06}"
    return os.fsencode(f"{when}P{os.getpid()}Q{next(_sequence)}{mark}.{host_in_names()}")


@cache
def host_in_names() -> str:
    """Return this machine's name, escaped for names of files; looked up once in a run."""
    return socket.gethostname().replace("/", "\\057").replace(":", "\\072")


def create(path: bytes, nofollow: bool = False) -> None:
    """Make a maildir if there is none, for the owner only.

    Its own name and what is in it are durable, even if an earlier run died in
    between: a power cut that takes a directory's name takes its messages, too.
    `nofollow` refuses a path that ends in a link. Raises `LocalError` if a
    directory cannot be made, opened or synced.
    """
    is_new = _make_first(path)
    try:
        fd = directories.open_directory(path, nofollow=nofollow)
    except OSError as error:
        raise local_error("open the directory", path, error) from error
    try:
        folder = Folder(fd, path, directories.owner_of(fd, path))
        for part in (b"tmp", b"new", b"cur"):
            directories.make(part, folder)
        folder.sync()
    finally:
        os.close(fd)
    parent = os.path.dirname(os.path.abspath(path))
    if is_new or os.access(parent, os.R_OK):
        _sync_directory(parent)


def _make_first(path: bytes) -> bool:
    """Make the maildir's own directory, for its parent's owner; return False if it exists."""
    try:
        fd = directories.open_parent(path)
    except OSError as error:
        raise local_error("make the directory", path, error) from error
    try:
        above = os.path.dirname(path)
        parent = Folder(fd, above, directories.owner_of(fd, above))
        return directories.make(os.path.basename(path.rstrip(b"/")) or b".", parent)
    finally:
        os.close(fd)


def _sync_directory(path: bytes) -> None:
    try:
        fd = directories.open_directory(path)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
    except OSError as error:
        raise local_error("make durable", path, error) from error


def write_tmp(maildir: Maildir, pieces: Iterable[bytes], mark: str = "") -> bytes:
    """Write a file in tmp/ and make it durable; return its name, of which `mark` is a part.

    Raises `LocalError` if it cannot be written; then nothing of it is left.
    """
    name = unique_name(mark)
    fd = -1
    try:
        fd = files.create(maildir.tmp, name)
        try:
            for piece in pieces:
                files.write_all(fd, piece)
            os.fsync(fd)
        finally:
            os.close(fd)
    except BaseException as error:
        if fd >= 0:
            maildir.tmp.discard(name)
        if isinstance(error, OSError):
            raise local_error("write", maildir.tmp.join(name), error) from error
        raise
    return name


def publish(maildir: Maildir, tmp_name: bytes) -> bytes:
    """Move a file from tmp/ to new/, under the same name; return that name.

    Durable once `maildir.new` is synced. Raises `LocalError` if it cannot be linked; then the
    file stays in tmp/.
    """
    try:
        _link(maildir.tmp, tmp_name, maildir.new, tmp_name)
    except OSError as error:
        raise local_error("deliver", maildir.new.join(tmp_name), error) from error
    # It is delivered. A failure reported here would have it delivered again; the next cleaning of
    # tmp/ removes the second name.
    try:  # noqa: SIM105 (contextlib would be a part of every start-up)
        maildir.tmp.discard(tmp_name)
    except LocalError:
        pass
    return tmp_name


def publish_by_rename(maildir: Maildir, tmp_name: bytes) -> None:
    """Do what `publish` does in one step: the file is either in tmp/ or in new/, never in both.

    For a caller that has to tell after a crash whether it was delivered. The name must come from
    `unique_name`. Raises `LocalError` if it exists in new/, or the rename fails.
    """
    if maildir.new.has(tmp_name):
        raise LocalError(f"there is {printable(maildir.new.join(tmp_name))} already")
    try:
        os.rename(tmp_name, tmp_name, src_dir_fd=maildir.tmp.fd, dst_dir_fd=maildir.new.fd)
    except OSError as error:
        raise local_error("deliver", maildir.new.join(tmp_name), error) from error


def deliver_as(maildir: Maildir, name: bytes, pieces: Iterable[bytes]) -> None:
    """Put a file into new/ under a given name; durable when this returns.

    A file of that name is replaced: it is the same one, from before a crash. Raises
    `LocalError` if it cannot be written, or the maildir is no longer at its path.
    """
    tmp_name = write_tmp(maildir, pieces)
    try:
        os.rename(tmp_name, name, src_dir_fd=maildir.tmp.fd, dst_dir_fd=maildir.new.fd)
    except OSError as error:
        maildir.tmp.discard(tmp_name)
        raise local_error("deliver", maildir.new.join(name), error) from error
    maildir.new.sync()
    maildir.check_path()


def enqueue(maildir: Maildir, content: Sidecar, pieces: Iterable[bytes]) -> bytes:
    """Put a message with its sidecar into the maildir; return its name.

    Durable when this returns; no forwarder ever sees the message without its
    sidecar. Raises `LocalError`, and takes the message back, if it cannot be
    made durable, or the maildir is no longer where forwarders look.
    """
    name = write_tmp(maildir, pieces)
    removable = None
    try:
        envelope = removable = maildir.durable_envelope()
        sidecars.place_first(maildir, envelope, name, content)
        envelope.sync()
        publish(maildir, name)
        # If this fails, no later fsync proves that the message is gone (fsync(2)).
        removable = None
        maildir.new.sync()
        removable = envelope
        maildir.check_path(envelope)
    except BaseException:
        _take_back(maildir, name, removable)
        raise
    return name


def _take_back(maildir: Maildir, name: bytes, envelope: Folder | None) -> None:
    try:
        withdraw(maildir, [name], envelope)
    except LocalError:
        return  # the first error is the one to tell


def withdraw(maildir: Maildir, names: Sequence[bytes], envelope: Folder | None) -> None:
    """Remove messages that were being enqueued, and then their sidecars in `envelope`.

    In this order, because no message may lose its sidecar. `envelope` is None if there are no
    sidecars, or if an fsync of new/ has failed: then they stay, as orphans. Raises `LocalError`
    if a file cannot be removed, or new/ not be synced.
    """
    for name in names:
        maildir.new.discard(name)
        maildir.tmp.discard(name)
    if envelope is not None:
        maildir.new.sync()
        for name in names:
            sidecars.remove(envelope, name)


def free_name(target: Maildir, message: Message) -> bytes:
    """Return a name for the message that is free in `target`: its own, or that with a number.

    A name under which `target` has this very message counts as free: a crash came
    between putting it there and removing it here, and this is the second attempt. One is not
    free if a message that a mail reader has moved to cur/ has the sidecar of that name.
    """
    # Short enough that the sidecar's name, with its ending, is no longer than file systems take.
    base = names.without_uid(message.name)[:_NAME_BYTES] or b"nameless"
    for number in count():
        name = base if number == 0 else b"%b.%d" % (base, number)
        occupant = _occupant(target, name)
        if occupant is not None:
            is_free = _is_copy(occupant, message)
        else:
            is_free = not sidecars.is_used(target, name)
        if is_free:
            return name
    raise AssertionError("count() does not end")


def _occupant(target: Maildir, name: bytes) -> Identity | None:
    try:
        return identity_of(os.stat(name, dir_fd=target.new.fd, follow_symlinks=False))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise local_error("look at", target.new.join(name), error) from error


def _is_copy(identity: Identity, message: Message) -> bool:
    """Return whether a file is the message, by size and time: a copy has its own inode."""
    return identity[2:] == message.identity[2:]


def adopt(target: Maildir, message: Message, name: bytes) -> None:
    """Put the message's file into `target`'s new/ as well, as `name`, by link or copy.

    A copy has the same times and is durable before it gets its name; the entry
    itself is durable once `target.new` is synced. Raises `FileChangedError` if
    the message's name is no longer the same file, and `LocalError` if it cannot
    be linked or copied, or `name` is another message.
    """
    tmp_name = _stage(target, message)
    try:
        _link(target.tmp, tmp_name, target.new, name)
    except FileExistsError as error:
        occupant = _occupant(target, name)
        if occupant is None or not _is_copy(occupant, message):
            raise local_error("move to", target.new.join(name), error) from error
    except OSError as error:
        raise local_error("move to", target.new.join(name), error) from error
    finally:
        target.tmp.discard(tmp_name)


def rehearse(target: Maildir) -> str:
    """Do what `adopt` does with a copy; return why there is no room for one, empty if there is.

    Neither permissions nor free bytes tell: there are quotas, limits of inodes, and file systems
    without hard links. Raises `LocalError` if it fails for another reason.
    """
    name = unique_name()
    try:
        fd = files.create(target.tmp, name)
        try:
            files.write_all(fd, bytes(_REHEARSED))
        finally:
            os.close(fd)
        probe = safety.free_probe(target.new.fd)
        try:
            _link(target.tmp, name, target.new, probe)
        except FileExistsError:
            return ""  # that of another process
        target.new.discard(probe)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return error.strerror or str(error)
        if error.errno in _CANNOT_LINK:
            raise LocalError(
                f"cannot link files in {printable(target.path)}: {error.strerror}; a maildir needs "
                f"a file system with hard links"
            ) from error
        raise local_error("move messages to", target.path, error) from error
    finally:
        target.tmp.discard(name)
    return ""


def can_link(target: Maildir, message: Message) -> bool:
    """Return whether `adopt` links a message, so that it takes no room; True if it is gone.

    Not told by the device: two mounts may show one file system. Raises `LocalError` if the link
    cannot be removed again.
    """
    name = unique_name()
    try:
        _link(message.folder, message.name, target.tmp, name)
    except OSError as error:
        return error.errno == errno.ENOENT
    target.tmp.discard(name)
    return True


def _stage(target: Maildir, message: Message) -> bytes:
    """Give the message's file a second name in `target`'s tmp/; return the name."""
    name = unique_name()
    try:
        _link(message.folder, message.name, target.tmp, name)
    except FileNotFoundError as error:
        if message.folder.has(message.name):  # it is the target that somebody has removed
            raise local_error("link", target.tmp.join(name), error) from error
        raise _changed(message) from None
    except OSError as error:
        if error.errno not in _CANNOT_LINK:
            raise local_error("link", target.tmp.join(name), error) from error
        return _copy(target, message)
    # A link takes whatever file has that name; only now can it no longer be replaced.
    try:
        status = os.stat(name, dir_fd=target.tmp.fd, follow_symlinks=False)
    except OSError as error:
        raise local_error("look at", target.tmp.join(name), error) from error
    if identity_of(status) != message.identity:
        target.tmp.discard(name)
        raise _changed(message)
    return name


def _link(source: Folder, source_name: bytes, target: Folder, name: bytes) -> None:
    os.link(source_name, name, src_dir_fd=source.fd, dst_dir_fd=target.fd, follow_symlinks=False)


def _changed(message: Message) -> FileChangedError:
    return FileChangedError(
        f"{printable(message.folder.join(message.name))} changed while it was being sent"
    )


def _copy(target: Maildir, message: Message) -> bytes:
    path = message.folder.join(message.name)
    try:
        source = os.open(message.name, files.READ, dir_fd=message.folder.fd)
    except FileNotFoundError:
        raise _changed(message) from None
    except OSError as error:
        raise local_error("open", path, error) from error
    try:
        if identity_of(os.fstat(source)) != message.identity:
            raise _changed(message)
        name = write_tmp(target, iter(lambda: os.read(source, _COPY_BYTES), b""))
        mtime_ns = message.identity[3]
        os.utime(name, ns=(mtime_ns, mtime_ns), dir_fd=target.tmp.fd, follow_symlinks=False)
    except OSError as error:
        raise local_error("copy", path, error) from error
    finally:
        os.close(source)
    return name
