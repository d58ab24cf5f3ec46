"""Which message next: what the engine needs of a queue, and that of a batch.

A queue hands out candidates (`take`) and is told what became of each: `gone` (no
longer there, or no longer ours to send), `later` (still there, try again in
time) or put back (`put_back`: not tried after all). That of watch mode has a
room of its own, `watch_queue`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from maildirqmtp.maildir.files import Folder
    from maildirqmtp.maildir.maildir import Candidates


class Queue(Protocol):
    """What the engine needs of either."""

    #: False where there is nothing more to come once it is empty.
    open: bool

    def __len__(self) -> int:
        """Return how many could be taken now."""
        ...

    def take(self) -> tuple[Folder, bytes] | None:
        """Return the next candidate."""
        ...

    def put_back(self, candidates: list[tuple[Folder, bytes]]) -> None:
        """Have these, which were not tried to the end, before all others again."""
        ...

    def postpone(self, candidates: list[tuple[Folder, bytes]]) -> None:
        """Put these, which were not tried to the end, behind all others."""
        ...

    def add(self, candidates: list[tuple[Folder, bytes]]) -> None:
        """Put these, which are new, behind all others."""
        ...

    def rotate(self) -> None:
        """Have the last before the first."""
        ...

    def gone(self, name: bytes) -> None:
        """A candidate is not to come again."""
        ...

    def later(self, name: bytes, birth_s: float | None, reason: str, soon: bool = False) -> bool:
        """A candidate stays; say whether this reason is another than the last time.

        `birth_s` is the file's time, None where it is not known. `soon`: at the next rescan.
        """
        ...

    def tick(self) -> None:
        """Look whether there is anything new, if it is time to."""
        ...

    def next_deadline(self) -> float | None:
        """Return the clock's time at which `tick` or `take` may have something to do."""
        ...


class BatchQueue:
    """What one scan found; each is tried once."""

    open = False

    def __init__(self, candidates: Candidates) -> None:
        self._candidates = candidates

    def __len__(self) -> int:
        return len(self._candidates)

    def take(self) -> tuple[Folder, bytes] | None:
        """See `Queue`."""
        return self._candidates.popleft() if self._candidates else None

    def put_back(self, candidates: list[tuple[Folder, bytes]]) -> None:
        """See `Queue`."""
        self._candidates.extendleft(reversed(candidates))

    def postpone(self, candidates: list[tuple[Folder, bytes]]) -> None:
        """See `Queue`."""
        self._candidates.extend(candidates)

    def add(self, candidates: list[tuple[Folder, bytes]]) -> None:
        """See `Queue`."""
        self._candidates.extend(candidates)

    def rotate(self) -> None:
        """See `Queue`."""
        self._candidates.rotate(1)

    def gone(self, name: bytes) -> None:
        """See `Queue`."""

    def later(self, name: bytes, birth_s: float | None, reason: str, soon: bool = False) -> bool:
        """See `Queue`. The next run tries again."""
        return True

    def tick(self) -> None:
        """See `Queue`."""

    def next_deadline(self) -> None:
        """See `Queue`."""
        return
