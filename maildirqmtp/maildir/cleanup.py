"""Removing what crashes left behind in a maildir, long after anything can need it."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from maildirqmtp.maildir import names
from maildirqmtp.maildir.files import Folder, local_error
from maildirqmtp.maildir.maildir import Maildir

if TYPE_CHECKING:
    from collections.abc import Callable

#: Seconds after which an untouched file in tmp/ (maildir(5)) or an orphaned sidecar goes: 36 hours.
MAX_AGE_S = 36 * 3_600


def clean(maildir: Maildir, now_s: float, *, orphans: bool = True) -> int:
    """Remove stale files from tmp/ and orphans from envelope/; return how many.

    `now_s` is seconds of the epoch. Of several shards, the first one cleans tmp/, and each removes
    the orphans among its own sidecars; without `orphans`, they stay. Raises `LocalError` if a
    directory cannot be opened, listed or synced, or a file cannot be removed.
    """
    removed = 0
    if maildir.shard is None or not maildir.shard.number:
        removed = _remove_untouched(maildir.tmp, _old_names(maildir.tmp, now_s), now_s, _touched)
    envelopes = maildir.find_envelopes() if orphans else None
    if envelopes is not None and (found := _orphans(maildir, envelopes)):
        # A message that was just removed, and that a power cut brings back, must have its sidecar.
        maildir.new.sync()
        maildir.cur.sync()
        removed += _remove_untouched(envelopes, found, now_s, _placed)
    return removed


def _old_names(tmp: Folder, now_s: float) -> set[bytes]:
    """Return the names in tmp/, but those that tell of a recent making.

    A message that is being moved has its own times there, which may be years old.
    """
    return {name for name in _names(tmp) if not 0 <= now_s - names.seconds_of(name) <= MAX_AGE_S}


def _touched(status: os.stat_result) -> float:
    return max(status.st_atime, status.st_mtime)


def _placed(status: os.stat_result) -> float:
    """Return when a sidecar was last touched or moved: one put back precedes its message."""
    return max(_touched(status), status.st_ctime)


def _orphans(maildir: Maildir, envelopes: Folder) -> set[bytes]:
    """Return this shard's sidecars that belong to no message in new/ or cur/ of any shard.

    A sidecar exists before its message, and for the time of one fsync after it;
    the age limit allows for both.
    """
    orphans = {
        name
        for name in _names(envelopes)
        if name.endswith(b".json") and maildir.is_ours(name.removesuffix(b".json"))
    }
    # new/ again after cur/: a message that moves between them must be seen in one of the two.
    for folder in (maildir.new, maildir.cur, maildir.new):
        for name in _names(folder):
            orphans.difference_update(names.of_sidecars(name))
    return orphans


def _names(folder: Folder) -> set[bytes]:
    try:
        return {os.fsencode(name) for name in os.listdir(folder.fd)}
    except OSError as error:
        raise local_error("list", folder.path, error) from error


def _remove_untouched(
    folder: Folder,
    candidates: set[bytes],
    now_s: float,
    last_s: Callable[[os.stat_result], float],
) -> int:
    removed = 0
    for name in candidates:
        try:
            status = os.stat(name, dir_fd=folder.fd, follow_symlinks=False)
            if stat.S_ISREG(status.st_mode) and now_s - last_s(status) > MAX_AGE_S:
                os.unlink(name, dir_fd=folder.fd)
                removed += 1
        except FileNotFoundError:
            continue  # another process is cleaning up as well
        except OSError as error:
            raise local_error("clean up", folder.join(name), error) from error
    return removed
