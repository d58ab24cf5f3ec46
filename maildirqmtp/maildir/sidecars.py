"""The sidecars of a maildir: found, written and removed by their messages' names.

Written in tmp/, made durable and renamed into envelope/, whose directory is made durable too.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from maildirqmtp.errors import SidecarError
from maildirqmtp.maildir import files, names
from maildirqmtp.maildir.files import Folder, Identity, identity_of, local_error

if TYPE_CHECKING:
    from collections.abc import Sequence

    from maildirqmtp.mail.sidecar import Sidecar
    from maildirqmtp.maildir.maildir import Maildir

# Nobody can have made a file whose name is too long.
_NOT_THERE = (errno.ENOENT, errno.ENAMETOOLONG)

# `mail.sidecar` (and json) is imported by the functions that need it: most maildirs have none.


def read(maildir: Maildir, message_name: bytes) -> Sidecar | None:
    """Return the sidecar of a message, or None where there is none.

    Raises `SidecarError` for one that exists and cannot be used, whatever the
    reason, and `LocalError` where it cannot be looked for: then the message is held.
    """
    found = read_known(maildir, message_name)
    return None if found is None else found[0]


def read_known(maildir: Maildir, message_name: bytes) -> tuple[Sidecar, Identity] | None:
    """Return the sidecar of a message and what it is known by (see `identity`); as `read`."""
    from maildirqmtp.mail import sidecar

    folder = maildir.find_envelopes()
    if folder is None:
        return None
    for name in names.of_sidecars(message_name):
        try:
            data, known = files.load_known(folder, name, sidecar.MAX_BYTES)
            return sidecar.decode(data), known
        except OSError as error:
            if error.errno not in _NOT_THERE:
                said = f"its sidecar cannot be read: {error.strerror}"
                raise SidecarError(said) from error
    return None


def write(maildir: Maildir, message_name: bytes, content: Sidecar) -> None:
    """Put a sidecar in place of a message's own, durable when this returns. Raises `LocalError`.

    One that is not there yet is named without `,U=`, which mbsync may change.
    """
    from maildirqmtp.mail import sidecar

    written = None
    while written is None or written is not maildir.find_envelopes():  # moved away meanwhile
        written = maildir.durable_envelope()
        found = _find(written, message_name)
        name = found[0] if found else names.of_sidecar(names.without_uid(message_name))
        files.replace(written, name, sidecar.encode(content), tmp=maildir.tmp)


def place_first(maildir: Maildir, folder: Folder, message_name: bytes, content: Sidecar) -> None:
    """Put the sidecar of a message in place that nobody has seen yet. Raises `LocalError`.

    `folder` is `maildir.durable_envelope()`. Durable once that is synced: several go at once.
    """
    from maildirqmtp.mail import sidecar

    name = names.of_sidecar(message_name)
    files.replace(folder, name, sidecar.encode(content), tmp=maildir.tmp, sync_folder=False)


def remove(folder: Folder, message_name: bytes) -> None:
    """Remove a message's sidecar from this directory, if there is one. Raises `LocalError`."""
    found = _find(folder, message_name)
    if found is not None:
        folder.discard(found[0])


def remove_known(maildir: Maildir, removed: Sequence[tuple[bytes, Identity | None]]) -> None:
    """Remove the sidecars of messages that are gone, where they are still these.

    Another one is that of another message, which is about to come. Raises `LocalError`.
    """
    folder = maildir.find_envelopes() if removed else None
    if folder is None:
        return
    for message_name, known in removed:
        found = _find(folder, message_name)
        if found is not None and found[1] == known:
            folder.discard(found[0])


def is_another(
    maildir: Maildir, message_name: bytes, content: Sidecar | None, known: Identity | None
) -> bool:
    """Say whether a message has another sidecar than before: what that one says is still owed.

    `content` and `known` are as `read_known` returned them, None for none. A copy with the same
    time is the same, as where envelope/ was restored, and one that is gone says nothing.
    Raises `LocalError`.
    """
    found = identity(maildir, message_name)
    if found is None or found == known:
        return False
    if known is None or found[2:] != known[2:]:
        return True
    try:
        return read(maildir, message_name) != content
    except SidecarError:
        return True


def identity(maildir: Maildir, message_name: bytes) -> Identity | None:
    """Return what a message's sidecar is known by, None where there is none.

    Raises `LocalError`.
    """
    folder = maildir.find_envelopes()
    found = None if folder is None else _find(folder, message_name)
    return None if found is None else found[1]


def _find(folder: Folder, message_name: bytes) -> tuple[bytes, Identity] | None:
    """Return the name of a message's sidecar, and what it is known by; None where it has none."""
    for name in names.of_sidecars(message_name):
        try:
            return name, identity_of(os.stat(name, dir_fd=folder.fd, follow_symlinks=False))
        except OSError as error:
            if error.errno not in _NOT_THERE:
                raise local_error("look at", folder.join(name), error) from error
    return None
