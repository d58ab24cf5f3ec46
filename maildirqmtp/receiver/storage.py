"""The maildir, known by its path, into which the receiver writes its copies.

    stage     tmp/X written and fsynced
    publish   linked to new/X
    commit    new/ fsynced | is the maildir still the one at its path?
    withdraw  new/X and tmp/X removed: the client sends the message again

Directories that are held open can still be written to after they were renamed
or mounted over, but no mail reader finds the copies there. So the path is
checked again before a copy counts as delivered.

Several threads may store and commit at once. Commits share an fsync of new/, which begins after
the links of all of them; those of a queue share one of envelope/ likewise.
"""

import contextlib
import errno
import os
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from maildirqmtp.errors import LocalError
from maildirqmtp.maildir import writing
from maildirqmtp.maildir.cleanup import clean
from maildirqmtp.maildir.files import Folder, local_error
from maildirqmtp.maildir.maildir import Maildir
from maildirqmtp.text import printable

_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
# Errors of link(2) on a file system without hard links.
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


class _Turns:
    """The fsyncs of one directory, one after the other: how many have begun, and ended."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.begun = self.ended = 0


class _OpenMaildir:
    """The maildir found at the path at some time; it stays open while this object is referenced.

    `trouble` says why uncommitted copies in it no longer count: its path leads elsewhere, or an
    fsync of new/ or envelope/ has failed. What that fsync was to make durable may be lost, and a
    second fsync of the same descriptor would not report it.
    """

    def __init__(self, path: bytes, has_sidecars: bool) -> None:
        self.maildir = Maildir(path)
        #: The directory of the sidecars, for a queue; the same for all threads.
        self.envelope = self.maildir.durable_envelope() if has_sidecars else None
        self.trouble: LocalError | None = None
        self._new_turns, self._envelope_turns = _Turns(), _Turns()

    def __del__(self) -> None:
        if hasattr(self, "maildir"):
            self.maildir.close()

    def sync_new(self) -> None:
        """Make the present entries of new/ durable, by an fsync that begins from now on.

        Raises `LocalError` if that fsync, or an earlier check or fsync, has failed.
        """
        self._sync(self.maildir.new, self._new_turns)

    def sync_envelope(self) -> None:
        """Do the same with the present entries of envelope/."""
        assert self.envelope is not None
        self._sync(self.envelope, self._envelope_turns)

    def _sync(self, folder: Folder, turns: _Turns) -> None:
        with turns.changed:
            wanted = turns.begun + 1
            while turns.ended < wanted and turns.begun != turns.ended:
                turns.changed.wait()
            if turns.ended >= wanted:
                return self.check()
            turns.begun = wanted
        try:
            folder.sync()
        except BaseException as error:  # no memory for the error of a failed fsync, for instance
            self._note(error if isinstance(error, LocalError) else LocalError("fsync has failed"))
            raise
        finally:
            with turns.changed:
                turns.ended = wanted
                turns.changed.notify_all()
        return self.check()

    def _note(self, error: LocalError) -> None:
        # A copy of the error: its traceback would keep this object, and so the maildir, open.
        self.trouble = self.trouble or LocalError(str(error))

    @contextlib.contextmanager
    def looked_at(self) -> Iterator[None]:
        """If the body fails, check the path: the maildir may have been replaced."""
        try:
            yield
        except LocalError:
            with contextlib.suppress(LocalError):
                self.check_path()
            raise

    def check(self) -> None:
        """Raise `LocalError` if uncommitted copies in it no longer count."""
        if self.trouble is not None:
            raise LocalError(str(self.trouble))

    def check_path(self) -> None:
        """Check that it is still at its path. Raises `LocalError` if not, or after `trouble`."""
        try:
            self.maildir.check_path(self.envelope)
        except LocalError as error:
            self._note(error)
        self.check()


class _HeldFolder(Folder):
    """A directory of a maildir, which stays open while this object is referenced."""

    __slots__ = ("holder",)

    def __init__(self, folder: Folder, holder: _OpenMaildir) -> None:
        super().__init__(folder.fd, folder.path, folder.owner)
        self.holder = holder


class Copy(NamedTuple):
    """A file in tmp/ or new/ that is not committed yet, and the maildir that it is in."""

    place: _OpenMaildir
    name: bytes


class Storage:
    """A maildir that is made if it is missing, and opened again when its path leads elsewhere.

    Raises `LocalError` if it cannot be used, or its file system has no hard links:
    every message would be deferred for ever. `has_sidecars` is for a queue;
    `renames`, for `--once`, keeps a file from ever being both in tmp/ and in new/.
    """

    def __init__(self, path: bytes, has_sidecars: bool = False, renames: bool = False) -> None:
        writing.create(path)
        self._path = path
        self._has_sidecars = has_sidecars
        self._renames = renames
        self._lock = threading.Lock()
        with Maildir(path) as maildir:
            clean(maildir, time.time(), orphans=has_sidecars)
        self._place = _OpenMaildir(path, has_sidecars)
        try:
            self._prove_links()
        except LocalError:
            self.close()
            raise

    def close(self) -> None:
        """Close the maildir; nothing may be stored in it after that. Harmless twice."""
        self._place.maildir.close()

    @property
    def tmp(self) -> Folder:
        """The directory tmp/ of the maildir; open while it is referenced."""
        with contextlib.suppress(LocalError):  # `stage` reports it
            self._present()
        place = self._place
        return _HeldFolder(place.maildir.tmp, place)

    def folders(self) -> tuple[Folder, Folder]:
        """Return tmp/ and new/ of the maildir at the path; open while they are referenced.

        Raises `LocalError` if there is none, or it cannot be opened.
        """
        place = self._present()
        return _HeldFolder(place.maildir.tmp, place), _HeldFolder(place.maildir.new, place)

    def free_bytes(self) -> int:
        """Return the bytes left for ordinary users where the path leads to now.

        Raises `LocalError` if fstatvfs(3) fails, or that maildir cannot be opened.
        """
        place = self._present()
        return place.maildir.new.free_bytes()

    def stage(self, pieces: Iterable[bytes], mark: str = "") -> Copy:
        """Write a file in tmp/, durable but for its directory entry.

        `mark` becomes a part of its name. Raises `LocalError` if the file cannot be
        written, or the maildir now at the path cannot be opened.
        """
        place = self._renew()
        with place.looked_at():
            return Copy(place, writing.write_tmp(place.maildir, pieces, mark))

    def publish(self, copy: Copy) -> None:
        """Move a file from tmp/ into new/. Raises `LocalError` if that fails; it stays in tmp/."""
        with copy.place.looked_at():
            publish = writing.publish_by_rename if self._renames else writing.publish
            publish(copy.place.maildir, copy.name)

    def commit(self, copies: Sequence[Copy]) -> None:
        """Make the copies durable, where a mail reader finds them.

        Raises `LocalError` if an fsync fails or the maildir is not at its path; then
        none of them counts.
        """
        for place in {copy.place for copy in copies}:
            place.sync_new()
            place.check_path()

    def withdraw(self, copies: Iterable[Copy]) -> list[LocalError]:
        """Remove copies that were not committed; return the errors."""
        errors = []
        for copy in copies:
            try:
                copy.place.maildir.new.discard(copy.name)
                copy.place.maildir.tmp.discard(copy.name)
            except LocalError as error:
                errors.append(error)
        return errors

    def _present(self) -> _OpenMaildir:
        """Look at the path, and return the maildir that is there now; see `_renew`.

        For what can refuse mail before any is stored: no storing would find a maildir replaced.
        """
        with contextlib.suppress(LocalError):
            self._place.check_path()
        return self._renew()

    def _renew(self) -> _OpenMaildir:
        """Return the open maildir; after trouble with it, open the one that is at the path now.

        A missing one is not made: mail must not go into the directory under a missing
        mount. Raises `LocalError` if there is none, or it cannot be opened.
        """
        with self._lock:
            if self._place.trouble is not None:
                self._place = _OpenMaildir(self._path, self._has_sidecars)
            return self._place

    def _prove_links(self) -> None:
        """Raise `LocalError` if no file of tmp/ can be linked into new/."""
        tmp, new = self._place.maildir.tmp, self._place.maildir.new
        try:
            one_file_system = os.fstat(tmp.fd).st_dev == os.fstat(new.fd).st_dev
        except OSError as error:
            raise local_error("look at", self._path, error) from error
        if not one_file_system:
            raise LocalError(f"{printable(new.path)} is on another file system than tmp/")
        # Both names are in tmp/, where the next `clean` removes what a crash leaves.
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
            # Other errors may pass: a full disk may have room when mail comes.
        finally:
            for name in (second, probe):
                with contextlib.suppress(LocalError):
                    tmp.discard(name)
