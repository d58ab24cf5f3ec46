"""Taking messages out of a maildir for good, and putting failed ones back into the queue.

The orders, each step durable before the next where it says so:

    drop      is it still that file, with that sidecar? | unlink the message | fsync its
              directory | unlink the sidecar
    requeue   lock the failed maildir | sidecar into the queue's envelope/, durable | is the queue
              still the one at its path? | are these still that file and that sidecar? | rename the
              message into the queue's new/ under a name of its own | is it still that sidecar?
              else take it back | fsync both directories | unlink the sidecar of the failed one

A forwarder adds recipients to the sidecar of a failed message, and takes no lock for that. It
does not link the message again where it finds it: hence the looks at the sidecar.
A crash leaves at most a sidecar without a message, which `cleanup` removes. If the two maildirs
are on different file systems, the message is copied, fsynced and then unlinked: after a crash in
between it is in both.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from maildirqmtp.errors import FileChangedError, LocalError
from maildirqmtp.maildir import names, sidecars, writing
from maildirqmtp.maildir.files import Folder, Identity, Message, identity_of, local_error
from maildirqmtp.maildir.maildir import CHANGED, GONE, Maildir

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from maildirqmtp.mail.sidecar import Sidecar

#: Messages whose removals share one fsync.
BATCH = 1_000
_GONE = "it is gone: it was sent, moved by a mail reader, or removed by another"
_CHANGED = "it has changed since it was looked at; look again"
_GONE_OR_CHANGED = "it is gone, or has changed since it was looked at; look again"


@dataclass(frozen=True, slots=True)
class Seen:
    """A message as somebody has seen it; `sidecar` is its sidecar's identity, None if none."""

    folder: Folder
    name: bytes
    identity: Identity
    sidecar: Identity | None

    @property
    def message(self) -> Message:
        """The message, without what is in it."""
        return Message(self.folder, self.name, self.identity, b"", self.identity[2])


def drop(maildir: Maildir, messages: Iterable[Seen]) -> list[str | None]:
    """Remove messages and their sidecars; return for each why it was not removed, or None.

    Only what is as it was seen is removed; at most `BATCH` at a time. Raises `LocalError` if the
    removals cannot be made durable.
    """
    outcomes: list[str | None] = []
    removed: list[tuple[bytes, Identity | None]] = []
    folders: dict[Folder, None] = {}
    try:
        for seen in messages:
            try:
                why = _remove(maildir, seen)
            except LocalError as error:
                why = str(error)
            if why is None:
                folders[seen.folder] = None
                removed.append((seen.name, seen.sidecar))
            outcomes.append(why)
    finally:
        # Also at an interrupt: the sidecars of those removed would become orphans.
        for folder in folders:
            folder.sync()
        _remove_sidecars(maildir, removed)
    return outcomes


def _remove(maildir: Maildir, seen: Seen) -> str | None:
    if not _has_its_sidecar(maildir, seen) and maildir.is_same(seen.message):
        return _CHANGED
    removal = maildir.remove(seen.message)
    if removal is GONE:
        return _GONE
    return _CHANGED if removal is CHANGED else None


def _remove_sidecars(maildir: Maildir, removed: Sequence[tuple[bytes, Identity | None]]) -> None:
    # An orphan does no harm, and `cleanup` removes it; an error would hide what was done.
    with suppress(LocalError):
        sidecars.remove_known(maildir, removed)


def _has_its_sidecar(maildir: Maildir, seen: Seen) -> bool:
    return sidecars.identity(maildir, seen.name) == seen.sidecar


def requeue(failed: Maildir, queue: Maildir, seen: Seen, content: Sidecar | None) -> bytes:
    """Move a message of the failed maildir into the queue's new/; return its name there.

    `content` is the sidecar that it gets; None: none, and its trace lines count. It gets a new
    name, because the queue may still have it under its own, for recipients that are owed it. The
    caller holds the lock of `failed`, so that no other process requeues it. Raises
    `FileChangedError` if it is not as it was seen, and `LocalError` if it cannot be moved.
    """
    _check(failed, seen)
    new_name = writing.unique_name()
    if content is not None:
        sidecars.write(queue, new_name, content)
    try:
        queue.check_path()  # it may have been replaced while others were moved
        _check(failed, seen)  # the fsyncs have taken their time
        _move(failed, queue, seen.message, new_name)
        if not _has_its_sidecar(failed, seen):
            _take_back(failed, queue, new_name, names.unique(seen.name))
            raise FileChangedError(_CHANGED)
        queue.new.sync()
        seen.folder.sync()
    except BaseException:
        if content is not None and not queue.new.has(new_name):
            sidecars.remove(queue.envelope(), new_name)
        raise
    _remove_sidecars(failed, [(seen.name, seen.sidecar)])
    return new_name


def _check(failed: Maildir, seen: Seen) -> None:
    """Raise `FileChangedError` if a message or its sidecar is not as it was seen."""
    if not failed.is_same(seen.message) or not _has_its_sidecar(failed, seen):
        raise FileChangedError(_GONE_OR_CHANGED)


def _move(failed: Maildir, queue: Maildir, message: Message, new_name: bytes) -> None:
    source = message.folder
    try:
        os.rename(message.name, new_name, src_dir_fd=source.fd, dst_dir_fd=queue.new.fd)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise local_error("move", source.join(message.name), error) from error
        writing.adopt(queue, message, new_name)
        queue.new.sync()
        failed.remove(message)


def _take_back(failed: Maildir, queue: Maildir, new_name: bytes, name: bytes) -> None:
    """Put a message back into the failed maildir as `name`; durable when this returns.

    A forwarder has added recipients to its sidecar, and then found the message still there.
    Raises `QMTPError` if it cannot be put back; then it stays in the queue.
    """
    try:
        status = os.stat(new_name, dir_fd=queue.new.fd, follow_symlinks=False)
    except OSError as error:
        raise local_error("look at", queue.new.join(new_name), error) from error
    moved = Message(queue.new, new_name, identity_of(status), b"", status.st_size)
    writing.adopt(failed, moved, name)
    failed.new.sync()
    queue.remove(moved)
    # Before its sidecar there goes: a power cut may bring it back.
    queue.new.sync()
