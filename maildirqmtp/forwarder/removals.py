"""Makes removals durable in batches, while sending goes on.

A batch

    | gathers       | at most 1,000 removals, or those of a second                         |
    | is synced     | by a thread, directory by directory: the disk may take long          |
    | is durable    | its sidecars go; before that, a power cut would leave messages whose |
    |               | header lines would be trusted instead of their sidecars              |

At most one batch is synced while the next one gathers. A power cut can undo the removals of these
two, and their messages are sent once more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from maildirqmtp.errors import LocalError
from maildirqmtp.maildir import sidecars

if TYPE_CHECKING:
    from collections.abc import Callable
    from threading import Thread

    from maildirqmtp.maildir.files import Folder, Identity
    from maildirqmtp.maildir.maildir import Maildir

#: Removals of a batch.
SYNC_REMOVALS = 1_000
#: Seconds for which a batch gathers.
SYNC_S = 1.0


class _Batch:
    """Directories to be synced, in this order, and the sidecars that go after that."""

    def __init__(self) -> None:
        self.count = 0
        self.began = 0.0
        self.folders: dict[int, Folder] = {}
        self.sidecars: list[tuple[bytes, Identity | None]] = []
        self.error: LocalError | None = None
        self.done = False

    def sync(self) -> None:
        """Sync its directories; what went wrong is in `error`."""
        try:
            for folder in self.folders.values():
                folder.sync()
        except LocalError as error:
            self.error = error


def _in_thread(work: Callable[[], None]) -> Thread:
    """Begin work in a thread. Raises `RuntimeError` if none can be started."""
    from threading import Thread  # not before: most runs remove little

    thread = Thread(target=work, name="sync", daemon=True)
    thread.start()
    return thread


class Removals:
    """The removals of one maildir. `wake` is called, by another thread, when `tick` is due.

    `clock` is monotonic seconds.
    """

    def __init__(
        self, maildir: Maildir, clock: Callable[[], float], wake: Callable[[], None]
    ) -> None:
        self._maildir = maildir
        self._clock = clock
        self._wake = wake
        self._gathering = _Batch()
        self._syncing: tuple[_Batch, Thread] | None = None

    @property
    def room(self) -> int:
        """How many more removals the batch that gathers can have; if none, call `tick`."""
        return SYNC_REMOVALS - self._gathering.count

    def add(self, folder: Folder, count: int = 1) -> None:
        """Count removals from a directory."""
        batch = self._gathering
        if not batch.count:
            batch.began = self._clock()
        batch.count += count
        batch.folders[folder.fd] = folder

    def sync_first(self, folder: Folder) -> None:
        """Have a directory that messages were moved to synced before those they leave."""
        self._gathering.folders = {folder.fd: folder, **self._gathering.folders}

    def add_sidecar(self, name: bytes, identity: Identity | None) -> None:
        """Have the sidecar of a removed message removed as well, if it is still this one."""
        self._gathering.sidecars.append((name, identity))

    @property
    def next_deadline(self) -> float | None:
        """The clock's time at which `tick` will have something to do, unless `wake` is called."""
        if self._syncing is not None or not self._gathering.count:
            return None
        return self._gathering.began + SYNC_S

    def tick(self) -> None:
        """Begin and end the syncs that are due. Raises `LocalError` if one has failed."""
        batch = self._gathering
        full = batch.count >= SYNC_REMOVALS
        if self._syncing is not None and (full or self._syncing[0].done):
            self._end_syncing()
        due = full or (batch.count and self._clock() >= batch.began + SYNC_S)
        if due and self._syncing is None:
            self._begin_syncing()

    def finish(self) -> None:
        """Make all removals durable. Raises `LocalError` if a sync has failed."""
        self._end_syncing()
        batch, self._gathering = self._gathering, _Batch()
        batch.sync()
        self._end(batch)

    def _begin_syncing(self) -> None:
        batch, self._gathering = self._gathering, _Batch()
        try:
            self._syncing = batch, _in_thread(lambda: self._sync(batch))
        except RuntimeError:  # no more threads are to be had
            batch.sync()
            self._end(batch)

    def _sync(self, batch: _Batch) -> None:
        batch.sync()
        batch.done = True
        self._wake()

    def _end_syncing(self) -> None:
        """Wait for the batch that is being synced, if there is one."""
        if self._syncing is not None:
            (batch, thread), self._syncing = self._syncing, None
            thread.join()
            self._end(batch)

    def _end(self, batch: _Batch) -> None:
        if batch.error is not None:
            raise batch.error
        sidecars.remove_known(self._maildir, batch.sidecars)
