"""Taking messages out of a maildir for good, and putting failed ones back into the queue.

The orders, each step durable before the next where it says so:

    drop      unlink the message, if it is still that file | fsync its directory |
              unlink the sidecar
    requeue   lock the failed maildir | sidecar into the queue's envelope/, durable | is the queue
              still the one at its path? | rename the message into the queue's new/ under a name
              of its own, fsync both directories | unlink the sidecar of the failed one

A crash leaves at most a sidecar without a message, which `cleanup` removes. If the two maildirs
are on different file systems, the message is copied, fsynced and then unlinked: after a crash in
between it is in both.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from maildirqmtp.errors import FileChangedError
from maildirqmtp.maildir import sidecars, writing
from maildirqmtp.maildir.files import Folder, Identity, Message, local_error
from maildirqmtp.maildir.maildir import CHANGED, GONE, Maildir
from maildirqmtp.text import printable

if TYPE_CHECKING:
    from collections.abc import Iterable

    from maildirqmtp.mail.sidecar import Sidecar

#: Messages whose removals share one fsync.
BATCH = 1_000


def drop(maildir: Maildir, messages: Iterable[tuple[Folder, bytes, Identity]]) -> list[str | None]:
    """Remove messages and their sidecars; return for each why it was not removed, or None.

    Only a file of the given identity is removed; at most `BATCH` at a time. Raises `LocalError`
    if a file cannot be removed, or the removals not be made durable.
    """
    outcomes: list[str | None] = []
    removed: list[tuple[bytes, Identity | None]] = []
    folders: dict[Folder, None] = {}
    try:
        for folder, name, identity in messages:
            known = sidecars.identity(maildir, name)
            why = _remove(maildir, Message(folder, name, identity, b"", identity[2]))
            if why is None:
                folders[folder] = None
                removed.append((name, known))
            outcomes.append(why)
    finally:
        # Even if one of them cannot be removed: the others' sidecars would become orphans.
        for folder in folders:
            folder.sync()
        sidecars.remove_known(maildir, removed)
    return outcomes


def _remove(maildir: Maildir, message: Message) -> str | None:
    removal = maildir.remove(message)
    if removal is GONE:
        return "it is gone: it was sent, moved by a mail reader, or removed by another"
    if removal is CHANGED:
        return "it has changed since it was looked at; look again"
    return None


def requeue(
    failed: Maildir,
    queue: Maildir,
    folder: Folder,
    name: bytes,
    identity: Identity,
    content: Sidecar | None,
) -> bytes:
    """Move a message of the failed maildir into the queue's new/; return its name there.

    `content` is the sidecar that it gets; None: none, and its trace lines count. It gets a new
    name, because the queue may still have it under its own, for recipients that are owed it. The
    caller holds the lock of `failed`, so that no other process requeues it. Raises
    `FileChangedError` if the file no longer has that identity, and `LocalError` if it cannot be
    moved.
    """
    message = Message(folder, name, identity, b"", identity[2])
    if not failed.is_same(message):
        raise FileChangedError(
            f"{printable(folder.join(name))} is gone, or has changed since it was looked at"
        )
    known = sidecars.identity(failed, name)
    new_name = writing.unique_name()
    if content is not None:
        sidecars.write(queue, new_name, content)
    try:
        queue.check_path()  # it may have been replaced while others were moved
        _move(failed, queue, message, new_name)
    except BaseException:
        if content is not None and not queue.new.has(new_name):
            sidecars.remove(queue.envelope(), new_name)
        raise
    sidecars.remove_known(failed, [(name, known)])
    return new_name


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
    queue.new.sync()
    source.sync()
