"""What a maildir and its failed maildir hold, message by message: for `qmtpq`.

The files say what waits and for whom; how often a message was tried, and when it is tried next, is
in the status file of a running daemon. Nothing is locked, and nothing is changed.
"""

from __future__ import annotations

import os
import stat
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from maildirqmtp.daemon.attempts import KnownAttempts
from maildirqmtp.daemon.status import read, served
from maildirqmtp.errors import EnvelopeError, FileChangedError, LocalError, SidecarError
from maildirqmtp.forwarder.large_messages import how_far
from maildirqmtp.forwarder.queued_message import PassedOver, prepare
from maildirqmtp.forwarder.route import Route
from maildirqmtp.maildir import holds, names, sidecars
from maildirqmtp.maildir.files import identity_of, local_error
from maildirqmtp.maildir.state import State
from maildirqmtp.text import LAST_S, printable
from maildirqmtp.transport.endpoint import TcpEndpoint

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from typing import Any

    from maildirqmtp.mail.sidecar import Failure
    from maildirqmtp.maildir.files import Folder, Identity
    from maildirqmtp.maildir.maildir import Candidates, Maildir

#: The states of a message: it is sent in its time; it is not sent, because it cannot be sent as it
#: is, or because an administrator holds it; it was refused.
WAITING, HELD, FAILED = "waiting", "held", "failed"
#: What ends the beginning of a name, where that stands for the name.
ABBREVIATED = b"+"
_NOWHERE = TcpEndpoint("nowhere")


@dataclass(frozen=True, slots=True)
class QueuePlace:
    """One maildir to look at, and the envelope that its route gives to messages.

    `is_failed`: it is the failed maildir of those in `queues`; `nofollow`: and inside the one.
    `prefixes` are those of its routes, which the `route` here is without; empty where nothing
    tells them.
    """

    route: Route
    is_failed: bool = False
    nofollow: bool = False
    queues: tuple[bytes, ...] = ()
    prefixes: tuple[bytes, ...] = ()

    @property
    def path(self) -> bytes:
        """The path of the maildir."""
        return self.route.maildir


@dataclass(frozen=True, slots=True)
class Entry:
    """A message of a maildir. `size` is in bytes; `mtime_s` and `next_s` in seconds of the epoch.

    `sender` and `recipients` are those of the envelope, with the prefix; None and empty where that
    cannot be read, and then `reason` says why. `next_s` is None where no daemon tells, and `tries`
    where neither a daemon nor an earlier run does. `attempts` are the last ones, by their times in
    seconds of the epoch and what was said, the newest first. `is_on_hold`: an administrator holds
    it back.
    """

    folder: Folder
    name: bytes
    identity: Identity
    state: str
    sender: bytes | None = None
    recipients: tuple[bytes, ...] = ()
    failures: tuple[Failure, ...] = ()
    reason: str = ""
    tries: int | None = None
    next_s: float | None = None
    is_on_hold: bool = False
    attempts: tuple[tuple[int, str], ...] = ()

    @property
    def size(self) -> int:
        """Length of the file in bytes."""
        return self.identity[2]

    @property
    def mtime_s(self) -> float:
        """When the file was written: what its age is counted from."""
        return self.identity[3] / 1e9


def places_of(
    path: bytes, failed: bytes | None = None, include_cur: bool = False
) -> list[QueuePlace]:
    """Return a maildir and its failed maildir, None being the one inside it."""
    route = Route(path, _NOWHERE, failed=failed, include_cur=include_cur)
    return [replace(place, prefixes=()) for place in places_of_routes([route])]


def places_of_routes(routes: Iterable[Route]) -> list[QueuePlace]:
    """Return the maildirs of some routes, each once, and then their failed maildirs.

    With the envelope that the first of its routes gives, and all recipients, whatever the prefixes.
    """
    queues: dict[bytes, QueuePlace] = {}
    failed: dict[bytes, QueuePlace] = {}
    for route in routes:
        whole = route._replace(prefix=b"")
        known = queues.setdefault(route.maildir, QueuePlace(whole))
        wider = known.route._replace(include_cur=known.route.include_cur or route.include_cur)
        queues[route.maildir] = replace(
            known, route=wider, prefixes=(*known.prefixes, route.prefix)
        )
        path = route.failed_maildir
        there = failed.setdefault(
            path,
            QueuePlace(whole._replace(maildir=path, include_cur=True), True, route.failed is None),
        )
        here = there.queues if route.maildir in there.queues else (*there.queues, route.maildir)
        failed[path] = replace(there, queues=here, prefixes=(*there.prefixes, route.prefix))
    return [*queues.values(), *failed.values()]


def entries(
    maildir: Maildir, place: QueuePlace, chosen: Iterable[tuple[Folder, bytes]] | None = None
) -> Iterator[Entry]:
    """Look at messages one after the other: the chosen ones, or all, the oldest first.

    What is no message, or gone by now, is passed over. Raises `LocalError`.
    """
    told = {} if place.is_failed else _told(maildir)
    state = State(maildir.root, time.monotonic, time.time)
    held: Mapping[str, str] = {} if place.is_failed else state.held()
    known = None if place.is_failed else KnownAttempts(maildir)
    for folder, name in candidates(maildir, place) if chosen is None else chosen:
        entry = look_at(maildir, place, folder, name, told)
        if entry is None:
            continue
        if holds.key(name) in held:
            reason = entry.reason or held[holds.key(name)]
            entry = replace(entry, state=HELD, reason=reason, is_on_hold=True)
        elif not entry.reason and (broken := state.broken(name)):
            entry = replace(entry, reason=how_far(*broken))
        yield entry if known is None else _with_attempts(entry, known)


def candidates(maildir: Maildir, place: QueuePlace) -> Candidates:
    """Return the names of a maildir that may be messages, the oldest first. Raises `LocalError`.

    Also those in cur/, where the route or the prefix of a running daemon's says so.
    """
    prefixes = [] if place.is_failed else [prefix for prefix, _ in served(maildir)]
    include_cur = place.route.include_cur or any(prefixes)
    return maildir.scan(include_cur)


def look_at(
    maildir: Maildir,
    place: QueuePlace,
    folder: Folder,
    name: bytes,
    told: dict[str, Any] | None = None,
) -> Entry | None:
    """Look at one file; None where it is no message, or gone. Raises `LocalError`.

    `told` is what the daemons say of messages.
    """
    try:
        status = os.stat(name, dir_fd=folder.fd, follow_symlinks=False)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise local_error("look at", folder.join(name), error) from error
    if not stat.S_ISREG(status.st_mode):
        return None
    entry = Entry(
        folder,
        name,
        identity_of(status),
        FAILED if place.is_failed else WAITING,
        failures=_failures(maildir, name),
    )
    entry = _addressed(maildir, place, entry)
    if place.is_failed:
        said = "; ".join(dict.fromkeys(printable_reason(f.response[1:]) for f in entry.failures))
        return replace(entry, reason=said or entry.reason or "no sidecar says why")
    return _with_daemon(entry, (told or {}).get(os.fsdecode(name)))


def _addressed(maildir: Maildir, place: QueuePlace, entry: Entry) -> Entry:
    try:
        queued = prepare(maildir, place.route, entry.folder, entry.name)
        if isinstance(queued, PassedOver):
            return entry
        queued.close()
        return replace(entry, sender=queued.sender, recipients=queued.recipients)
    except (EnvelopeError, FileChangedError, LocalError) as error:
        state = FAILED if place.is_failed else HELD
        return replace(entry, state=state, reason=str(error))


def _failures(maildir: Maildir, name: bytes) -> tuple[Failure, ...]:
    try:
        sidecar = sidecars.read(maildir, name)
    except (SidecarError, LocalError):
        return ()  # then the message is held, and that is shown
    return sidecar.failures if sidecar else ()


# What a daemon says


def _told(maildir: Maildir) -> dict[str, Any]:
    """Return what the daemons that have the maildir say of messages, by their names."""
    found: dict[str, Any] = {}
    for prefix, shard in served(maildir):
        waiting = (read(maildir, prefix, shard) or {}).get("waiting")
        if isinstance(waiting, dict):
            found |= waiting
    return found


def _with_daemon(entry: Entry, known: Any) -> Entry:
    """Add what a daemon says; its file may have been forged by the maildir's owner."""
    if not isinstance(known, dict):
        return entry
    tries, why, next_s = known.get("tries"), known.get("reason"), known.get("next")
    if not isinstance(next_s, (int, float)) or not 0 < next_s < LAST_S:
        next_s = None
    return replace(
        entry,
        tries=tries if type(tries) is int and 0 <= tries < LAST_S else None,
        next_s=next_s,
        reason=entry.reason or (printable_reason(why) if isinstance(why, str) else ""),
    )


def _with_attempts(entry: Entry, known: KnownAttempts) -> Entry:
    """Add what earlier runs have noted, and a daemon that was started since does not know."""
    tries, attempts = known.of(entry.name)
    return replace(
        entry,
        attempts=attempts,
        tries=max(entry.tries or 0, tries) if tries else entry.tries,
        reason=entry.reason or (attempts[0][1] if attempts else ""),
    )


def daemon_line(maildir: Maildir) -> str:
    """Return one line about the daemon that has a maildir. Raises `LocalError`."""
    said = []
    for prefix, shard in served(maildir):
        told = read(maildir, prefix, shard) or {}
        if not told:
            continue  # a shard that no process has
        who = f"process {told.get('pid')}, {told.get('state')}, to {told.get('server')}"
        if told.get("state") == "backing off":
            who += f" ({told.get('excuse')})"
        said.append(printable_reason(who))
    return "; ".join(said) or "no daemon"


def printable_reason(text: str) -> str:
    """Return what a server or a file said, safe for a terminal."""
    return printable(text.encode("utf-8", "replace"))


# Names


def find_names(maildir: Maildir, place: QueuePlace, wanted: bytes) -> list[tuple[Folder, bytes]]:
    """Return the messages that a name may mean. Raises `LocalError`.

    The file name, or a path that ends in it, with or without the flags and numbers that mail
    readers add; where it ends with `+`, each message whose name begins so. Never one that only
    begins like a whole name: that may be another message, and the one that is meant may be gone.
    """
    last = wanted.rpartition(b"/")[2]
    found = candidates(maildir, place)
    plain = names.plain(last)
    exact = [one for one in found if plain and names.plain(one[1]) == plain]
    if exact or not last.endswith(ABBREVIATED):
        return exact
    return [one for one in found if one[1].startswith(last[:-1])]
