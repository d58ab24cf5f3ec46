"""The sidecars of a maildir: found, written and removed by their messages' names.

A sidecar is written in tmp/, made durable and renamed into envelope/, which is then synced.
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

# A name that is too long cannot exist.
_NOT_THERE = (errno.ENOENT, errno.ENAMETOOLONG)

# `mail.sidecar` (and json) is imported by the functions that need it: most maildirs have none.


def read(maildir: Maildir, message_name: bytes) -> Sidecar | None:
    """Return the sidecar of a message, or None if there is none.

    Raises `SidecarError` if it exists and cannot be used, whatever the reason, and
    `LocalError` if envelope/ cannot be opened: then the message is held.
    """
    found = read_known(maildir, message_name)
    return None if found is None else found[0]


def read_known(maildir: Maildir, message_name: bytes) -> tuple[Sidecar, Identity] | None:
    """Return the sidecar of a message and its identity (see `identity`); otherwise as `read`."""
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
    """Replace a message's sidecar, or make it; durable when this returns.

    A new one is named without `,U=`, which mbsync may change. Raises `LocalError` if it
    cannot be written.
    """
    from maildirqmtp.mail import sidecar

    written = None
    while written is None or written is not maildir.find_envelopes():  # moved away meanwhile
        written = maildir.durable_envelope()
        found = _find(written, message_name)
        name = found[0] if found else names.of_sidecar(names.without_uid(message_name))
        files.replace(written, name, sidecar.encode(content), tmp=maildir.tmp)


def place_first(maildir: Maildir, folder: Folder, message_name: bytes, content: Sidecar) -> None:
    """Make the sidecar of a message that is not in new/ yet.

    `folder` is `maildir.durable_envelope()`. Durable once that is synced, for several at once.
    Raises `LocalError` if it cannot be written.
    """
    from maildirqmtp.mail import sidecar

    name = names.of_sidecar(message_name)
    files.replace(folder, name, sidecar.encode(content), tmp=maildir.tmp, sync_folder=False)


def remove(folder: Folder, message_name: bytes) -> None:
    """Remove a message's sidecar from `folder`, if any. Raises `LocalError` if that fails."""
    found = _find(folder, message_name)
    if found is not None:
        folder.discard(found[0])


def remove_known(maildir: Maildir, removed: Sequence[tuple[bytes, Identity | None]]) -> None:
    """Remove the sidecars of messages that are gone, if their identity is still the same.

    Another one belongs to another message, which is about to come. Raises `LocalError` if
    one cannot be looked at or removed.
    """
    folder = maildir.find_envelopes() if removed else None
    if folder is None:
        return
    for message_name, known in removed:
        found = _find(folder, message_name)
        if found is not None and found[1] == known:
            folder.discard(found[0])


def is_used(maildir: Maildir, message_name: bytes) -> bool:
    """Return whether a message in new/ or cur/ has the sidecar that one of this name would find.

    False if there is no such sidecar. Raises `LocalError` if a directory cannot be listed.
    """
    folder = maildir.find_envelopes()
    found = None if folder is None else _find(folder, message_name)
    if found is None:
        return False
    # new/ again after cur/: a message that moves between them must be seen in one of the two.
    return any(
        found[0] in names.of_sidecars(name)
        for listed in (maildir.new, maildir.cur, maildir.new)
        for name in maildir.list_names(listed)
    )


def is_another(
    maildir: Maildir, message_name: bytes, content: Sidecar | None, known: Identity | None
) -> bool:
    """Return whether a message's sidecar was replaced, so that its recipients are owed the message.

    `content` and `known` are as `read_known` returned them, None if there was none. A copy with
    the same size, time and content is the same, as after envelope/ was restored; a missing one was
    not replaced. Raises `LocalError` if it cannot be looked at.
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
    """Return the identity of a message's sidecar, or None if there is none.

    Raises `LocalError` if it cannot be looked at.
    """
    folder = maildir.find_envelopes()
    found = None if folder is None else _find(folder, message_name)
    return None if found is None else found[1]


def _find(folder: Folder, message_name: bytes) -> tuple[bytes, Identity] | None:
    """Return the name of a message's sidecar, and its identity; None if there is none."""
    for name in names.of_sidecars(message_name):
        try:
            return name, identity_of(os.stat(name, dir_fd=folder.fd, follow_symlinks=False))
        except OSError as error:
            if error.errno not in _NOT_THERE:
                raise local_error("look at", folder.join(name), error) from error
    return None
