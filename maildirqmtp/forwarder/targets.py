"""The maildirs that messages are moved to: `--sent`, and that of failed messages."""

from __future__ import annotations

from typing import TYPE_CHECKING

from maildirqmtp.maildir import writing
from maildirqmtp.maildir.maildir import Maildir

if TYPE_CHECKING:
    from maildirqmtp.forwarder.route import Route


class TargetMaildirs:
    """Made where they are missing, opened when they are first needed, and kept open."""

    __slots__ = ("_failed", "_named", "_open")

    def __init__(self, maildir: Maildir, route: Route) -> None:
        self._failed = route.failed or maildir.root.join(b".Failed")
        # A link that the route does not name may have been put there by somebody else.
        self._named = (route.failed, route.sent)
        self._open: dict[bytes, Maildir] = {}

    def get(self, path: bytes) -> Maildir:
        """Return the maildir of this path. Raises `LocalError`."""
        target = self._open.get(path)
        if target is None:
            nofollow = path not in self._named
            writing.create(path, nofollow)
            target = self._open[path] = Maildir(path, nofollow)
        return target

    def failed(self) -> Maildir:
        """Return the failed maildir. Raises `LocalError`."""
        return self.get(self._failed)

    def close(self) -> None:
        """Close them; `get` opens them again."""
        for target in self._open.values():
            target.close()
        self._open.clear()
