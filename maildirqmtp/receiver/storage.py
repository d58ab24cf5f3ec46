"""Where the receiver puts its copies: a maildir, known by its path.

    store     tmp/X written and fsynced, linked to new/X
    commit    new/ fsynced | is the maildir still the one at its path?
    withdraw  new/X removed: its client sends the message again

A receiver that holds its directories open goes on writing into them after they
were renamed, or mounted over, where no mail reader finds the copies. So the
path is checked again before a copy counts as delivered.
"""

import contextlib
import errno
import os
import time
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from maildirqmtp.errors import LocalError
from maildirqmtp.maildir import writing
from maildirqmtp.maildir.cleanup import clean
from maildirqmtp.maildir.files import Folder, local_error
from maildirqmtp.maildir.maildir import Maildir
from maildirqmtp.text import printable

_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
# What link(2) says on a file system without hard links.
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


class Copy(NamedTuple):
    """A file in new/ that is not committed yet; `generation` counts the maildirs at the path."""

    generation: int
    name: bytes


class Storage:
    """A maildir that is made if it is missing, and opened again where its path leads elsewhere.

    Raises `LocalError` where it cannot be used, also for a file system that has
    no hard links: every message would be deferred for ever.
    """

    def __init__(self, path: bytes) -> None:
        writing.create(path)
        self._path = path
        self._generation = 0
        self._stale = False
        self._maildir = Maildir(path)
        try:
            self._maildir.find_envelopes()
            clean(self._maildir, time.time())
            self._prove_links()
        except LocalError:
            self._maildir.close()
            raise

    def close(self) -> None:
        """Close the maildir; harmless twice."""
        self._maildir.close()

    @property
    def tmp(self) -> Folder:
        """The directory tmp/ of the maildir; valid until the next `store`."""
        if self._stale:
            with contextlib.suppress(LocalError):  # `store` reports it
                self._reopen()
        return self._maildir.tmp

    def free_bytes(self) -> int:
        """Return the bytes left on the file system for ordinary users. Raises `OSError`."""
        found = os.fstatvfs(self._maildir.new.fd)
        return found.f_bavail * found.f_frsize

    @property
    def maildir(self) -> Maildir:
        """The maildir that is open; valid until the next `stage` or `store`."""
        return self._maildir

    def store(self, pieces: Iterable[bytes]) -> Copy:
        """Write a file, durable but for its directory entry. Raises `LocalError`."""
        copy = self.stage(pieces)
        try:
            writing.publish(self._maildir, copy.name)
        except LocalError:
            self._stale = not self._maildir.is_current()
            raise
        return copy

    def stage(self, pieces: Iterable[bytes], mark: str = "") -> Copy:
        """Write a file in tmp/, durable but for its directory entry. Raises `LocalError`.

        `mark` becomes a part of its name.
        """
        if self._stale:
            self._reopen()
        try:
            name = writing.write_tmp(self._maildir, pieces, mark)
        except LocalError:
            self._stale = not self._maildir.is_current()
            raise
        return Copy(self._generation, name)

    def is_of_now(self, copy: Copy) -> bool:
        """Say whether a file was written into the maildir that is open now."""
        return copy.generation == self._generation

    def commit(self, copies: Sequence[Copy]) -> None:
        """Make the copies durable, where a mail reader finds them.

        Raises `LocalError` where that fails; then none of them counts.
        """
        self._maildir.new.sync()
        self._stale = True
        try:
            self._stale = not self._maildir.check_current()
        except FileNotFoundError:
            pass  # renamed, or removed
        except OSError as error:
            raise local_error("look at", self._path, error) from error
        if self._stale or not all(map(self.is_of_now, copies)):
            raise LocalError(
                f"{printable(self._path)} was renamed, replaced or mounted over, and is not the "
                f"maildir that the mail went to"
            )

    def withdraw(self, copies: Iterable[Copy]) -> list[LocalError]:
        """Remove copies that were not committed; return what went wrong.

        A copy in a maildir that is no longer open stays there: its client was
        told to send the message again, so that nothing is lost.
        """
        errors = []
        for copy in copies:
            if self.is_of_now(copy):
                try:
                    self._maildir.new.discard(copy.name)
                except LocalError as error:
                    errors.append(error)
        return errors

    def _reopen(self) -> None:
        """Open what is at the path now. It is not made: a missing mount must not be filled."""
        found = Maildir(self._path)
        self._maildir.close()
        self._maildir = found
        self._generation += 1
        self._stale = False

    def _prove_links(self) -> None:
        """Raise `LocalError` where no file of tmp/ can be linked into new/."""
        tmp, new = self._maildir.tmp, self._maildir.new
        if os.fstat(tmp.fd).st_dev != os.fstat(new.fd).st_dev:
            raise LocalError(f"{printable(new.path)} is on another file system than tmp/")
        # Both names in tmp/: of what a crash leaves there the next `clean` takes care.
        probe = writing.unique_name()
        second = probe + b".link"
        try:
            os.close(os.open(probe, _CREATE, 0o600, dir_fd=tmp.fd))
            os.link(probe, second, src_dir_fd=tmp.fd, dst_dir_fd=tmp.fd, follow_symlinks=False)
        except OSError as error:
            if error.errno in _NO_LINKS:
                raise LocalError(
                    f"cannot link files in {printable(tmp.path)}: {error.strerror}; a maildir "
                    f"needs a file system with hard links"
                ) from error
            # A full disk, say, may have room when mail comes.
        finally:
            for name in (second, probe):
                with contextlib.suppress(LocalError):
                    tmp.discard(name)
