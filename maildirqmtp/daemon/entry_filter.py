"""Which messages of a listing are selected. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from maildirqmtp.daemon.listing import Entry


@dataclass(frozen=True, slots=True)
class EntryFilter:
    """The conditions that select a message; None is no condition.

    `to` and `sender` are addresses, or domains as `@example.org`; an empty `sender` is the null
    sender. `to` matches any one recipient; if there is none left, one who failed. `older_s` is the
    least age in seconds; `why` is part of the reason, `state` one of the states of `listing`.
    Letter case does not count, except in `state`.
    """

    to: bytes | None = None
    sender: bytes | None = None
    older_s: float | None = None
    why: str | None = None
    state: str | None = None

    @property
    def asks(self) -> bool:
        """Return whether there is any condition besides `state`."""
        return any(asked is not None for asked in (self.to, self.sender, self.older_s, self.why))

    def matches(self, entry: Entry, now_s: float, prefixes: Iterable[bytes] = ()) -> bool:
        """Return whether a message meets all conditions; `now_s` is seconds of the epoch.

        `to` may be without any of the prefixes, as logs and bounces show recipients.
        """
        if self.state is not None and entry.state != self.state:
            return False
        if self.older_s is not None and now_s - entry.mtime_s < self.older_s:
            return False
        if self.why is not None and self.why.lower() not in entry.reason.lower():
            return False
        if self.sender is not None and not _is(self.sender, entry.sender):
            return False
        if self.to is None:
            return True
        # After a resend to another recipient, the sidecar still has the failure of the first.
        recipients = entry.recipients or [failure.recipient for failure in entry.failures]
        shown = {r.removeprefix(prefix) for r in recipients for prefix in (b"", *prefixes)}
        return any(_is(self.to, recipient) for recipient in shown)


def _is(pattern: bytes, address: bytes | None) -> bool:
    if address is None:
        return False
    pattern, address = pattern.lower(), address.lower()
    return address == pattern or (pattern[:1] == b"@" and address.endswith(pattern))


def domain_of(address: bytes) -> bytes:
    """Return the domain of an address in lower case; empty if it has none."""
    return address.rpartition(b"@")[2].lower() if b"@" in address else b""
