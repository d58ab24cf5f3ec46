"""Messages that another program has renamed, found by listing a directory.

A listing is used for as long as the directory does not change: if thousands of messages are
removed while in flight, each of them is looked for.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from maildirqmtp.maildir import names
from maildirqmtp.maildir.files import local_error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from maildirqmtp.maildir.files import Folder

    #: The directory's mtime and when it was listed, in ns, and its names by their unique names.
    Listing = tuple[int, int, dict[bytes, bytes]]

#: Nanoseconds within which a second change may not show in a directory's modification time.
_TICK_NS = 50_000_000


class Renames:
    """Finds messages by their unique names without `,U=`; `names_in` lists a directory."""

    def __init__(self, names_in: Callable[[Folder], Iterable[bytes]]) -> None:
        self._names_in = names_in
        self._listings: dict[Folder, Listing] = {}

    def find(self, folder: Folder, base: bytes) -> bytes | None:
        """Return the name that a message has now, or None. Raises `LocalError` if listing fails."""
        listing = self._listings.get(folder)
        if listing is not None:
            name = listing[2].get(base)
            if _holds(folder, listing) if name is None else folder.has(name):
                return name
        changed_ns, listed_ns = _changed_ns(folder), time.time_ns()
        found = {names.without_uid(name): name for name in self._names_in(folder)}
        self._listings[folder] = changed_ns, listed_ns, found
        return found.get(base)


def _holds(folder: Folder, listing: Listing) -> bool:
    """Return whether a listing is still current."""
    changed_ns, listed_ns, _ = listing
    return listed_ns - changed_ns > _TICK_NS and _changed_ns(folder) == changed_ns


def _changed_ns(folder: Folder) -> int:
    try:
        return os.fstat(folder.fd).st_mtime_ns
    except OSError as error:
        raise local_error("look at", folder.path, error) from error
