"""Settings that conflict, within one route or between two, and the errors that say so."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from maildirqmtp.settings import flags_and_keys
from maildirqmtp.text import printable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from maildirqmtp.forwarder.route import Route
    from maildirqmtp.settings.flags_and_keys import Setting


def find_conflict(route: Route) -> tuple[Setting[Any], str] | None:
    """Return a setting that conflicts with another, and what is wrong with it; None for none."""
    if route.warn_after_s is not None and not route.bounce:
        said = "senders are told nothing without bounces; ask for these, too"
        return flags_and_keys.WARN_AFTER, said
    targets = (
        (flags_and_keys.SENT, route.sent),
        (flags_and_keys.FAILED, route.failed),
        (flags_and_keys.BOUNCE_VIA, route.bounce_via.maildir),
    )
    for setting, path in targets:
        if path is not None and os.path.realpath(path) == os.path.realpath(route.maildir):
            return setting, f"{printable(path)} is the maildir that is forwarded"
    if route.sent is None and route.keep_sent_s is not None:
        said = "accepted messages are removed at once without sent; name a maildir for them, too"
        return flags_and_keys.KEEP_SENT, said
    found = find_conflict_between([route])
    return None if found is None else found[:2]


def find_conflict_between(
    routes: Sequence[Route],
) -> tuple[Setting[Any], str, tuple[int, int]] | None:
    """Find a route that removes from a maildir what it or another route needs there.

    Returns its setting, what is wrong with that, and the numbers of both routes, from 0;
    None if there is no such route.
    """
    if all(route.keep_sent_s is None and route.keep_failed_s is None for route in routes):
        return None
    waits: dict[bytes, tuple[int, str]] = {}
    for number, route in enumerate(routes):
        waits[os.path.realpath(route.maildir)] = number, "what waits there to be forwarded"
        if route.bounce_via.maildir is not None:
            waits[os.path.realpath(route.bounce_via.maildir)] = number, "bounces"
    seen: dict[bytes, tuple[int, float | None]] = {}
    for number, route in enumerate(routes):
        for setting, path, keep_s in _kept(route):
            real = os.path.realpath(path)
            if keep_s is not None and real in waits:
                other, what = waits[real]
                said = f"{printable(path)} has {what}, which would be removed; name another maildir"
                return setting, said, (number, other)
            other, other_s = seen.setdefault(real, (number, keep_s))
            if other_s != keep_s:
                said = (
                    f"{printable(path)} is a maildir of sent or failed messages twice, kept for "
                    f"different times; write the same for both, or name two maildirs"
                )
                return setting, said, (number, other)
    return None


def _kept(route: Route) -> Iterator[tuple[Setting[Any], bytes, float | None]]:
    """Yield a setting, each maildir that messages are moved to, and how long they stay there."""
    if route.sent is not None:
        yield flags_and_keys.KEEP_SENT, route.sent, route.keep_sent_s
    yield flags_and_keys.KEEP_FAILED, route.failed_maildir, route.keep_failed_s
