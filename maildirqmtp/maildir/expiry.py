"""Removing messages that the maildir of sent or of failed messages has kept for long enough.

A message's age counts from its arrival there: a link or a copy sets its ctime, as do a mail reader
that moves or flags it, and a backup that is restored. Its mtime is older, by as long as it waited
before. The latest of its times counts, including those of its name and of its sidecar.

The order:

    unlink the message, if it is still that file | fsync new/ and cur/ | sidecars without a message

So no message ever loses its sidecar, even if another message of the same name stays. A crash
leaves at most an orphaned sidecar, which the next look removes.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from maildirqmtp.errors import LocalError
from maildirqmtp.maildir import names, sidecars
from maildirqmtp.maildir.cleanup import clean
from maildirqmtp.maildir.files import Message, identity_of, local_error
from maildirqmtp.maildir.maildir import DONE
from maildirqmtp.text import printable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from maildirqmtp.maildir.files import Folder
    from maildirqmtp.maildir.maildir import Maildir

#: Names listed, and files looked at, in one portion.
PORTION_NAMES = 2_000
PORTION_FILES = 100
#: September 2001: only a clock that was not set can make a message older.
EARLIEST_S = 1_000_000_000


class Expiry:
    """One look at a maildir for messages older than `keep_s`; `now_s` is seconds of the epoch.

    `removed` counts those removed. `fault` is the first error; one bad file does not stop the
    removal of others.
    """

    def __init__(self, maildir: Maildir, keep_s: float, now_s: float) -> None:
        self.removed = 0
        self.fault: LocalError | None = None
        self._maildir = maildir
        self._now_s = now_s
        self._before_s = now_s - keep_s

    def portions(self) -> Iterator[None]:
        """Remove the old messages, one portion per step."""
        for message in self._old_ones():
            if message is None:
                yield
                continue
            try:
                self.removed += self._maildir.remove(message) is DONE
            except LocalError as error:
                self._note(error)
        try:
            clean(self._maildir, self._now_s)  # syncs new/ and cur/ before it
        except LocalError as error:
            self._note(error)
        yield

    def count(self) -> int:
        """Return how many messages are old enough; remove nothing."""
        return sum(message is not None for message in self._old_ones())

    def _note(self, error: LocalError) -> None:
        self.fault = self.fault or error

    def _old_ones(self) -> Iterator[Message | None]:
        """Yield the old messages, and None at the end of each portion."""
        try:
            self._maildir.find_envelopes()
            listed = looked_at = 0
            for folder in (self._maildir.new, self._maildir.cur):
                for name in self._maildir.list_names(folder):
                    if name.startswith(b"."):
                        continue
                    listed += 1
                    if self._may_be_old(name):
                        looked_at += 1
                        message = self._look_at(folder, name)
                        if message is not None:
                            yield message
                    if listed >= PORTION_NAMES or looked_at >= PORTION_FILES:
                        listed = looked_at = 0
                        yield None
        except LocalError as error:
            self._note(error)

    def _may_be_old(self, name: bytes) -> bool:
        """Return whether a file may be old by the time in its name, and is not flagged."""
        return names.seconds_of(name) < self._before_s and not names.is_flagged(name)

    def _look_at(self, folder: Folder, name: bytes) -> Message | None:
        """Return the message of this name if it is old; None also if it is gone, or no message."""
        try:
            status = os.stat(name, dir_fd=folder.fd, follow_symlinks=False)
            if not stat.S_ISREG(status.st_mode) or status.st_ctime < EARLIEST_S:
                return None
            last_s = max(status.st_ctime, status.st_mtime)
            if last_s < self._before_s:
                # Rewritten when a copy that a crash has left here was taken for this message.
                sidecar = sidecars.identity(self._maildir, name)
                last_s = last_s if sidecar is None else max(last_s, sidecar[3] / 1e9)
        except FileNotFoundError:
            return None
        except OSError as error:
            self._note(local_error("look at", folder.join(name), error))
            return None
        except LocalError as error:
            self._note(error)
            return None
        if last_s >= self._before_s:
            return None
        return Message(folder, name, identity_of(status), b"", status.st_size)


def check_owners(maildir: Maildir) -> None:
    """Raise `LocalError` if root would remove files from another user's directory.

    Raises `OSError` if a directory's owner cannot be read.
    """
    owners = maildir.owners
    if owners is None:
        return
    envelopes = maildir.find_envelopes()
    found = [maildir.new, maildir.cur, maildir.tmp] + ([envelopes] if envelopes else [])
    for folder in found:
        owner = os.fstat(folder.fd).st_uid
        if owner not in owners:
            raise LocalError(
                f"{printable(folder.path)} belongs to user {owner}, who is not the maildir's owner"
            )
