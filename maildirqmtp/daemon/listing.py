"""The messages of a maildir and its failed maildir, one by one, for `qmtpq`.

The files say what waits and for whom; when a message is tried next is in the status file of a
running daemon, how often it was tried also in the state file. Nothing is locked or changed.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from maildirqmtp.daemon.known_state import KnownState
from maildirqmtp.daemon.status import read, served, settings_of
from maildirqmtp.errors import EnvelopeError, FileChangedError, LocalError, SidecarError
from maildirqmtp.forwarder.large_messages import how_far
from maildirqmtp.forwarder.queued_message import PassedOver, prepare
from maildirqmtp.forwarder.route import Route
from maildirqmtp.maildir import holds, names, sidecars
from maildirqmtp.maildir.files import identity_of, local_error
from maildirqmtp.maildir.maildir import Maildir
from maildirqmtp.maildir.requeue import Seen
from maildirqmtp.text import LAST_S, printable_text
from maildirqmtp.transport.endpoint import TcpEndpoint

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from typing import Any

    from maildirqmtp.mail.sidecar import Failure
    from maildirqmtp.maildir.files import Folder, Identity
    from maildirqmtp.maildir.maildir import Candidates

#: The states of a message: it will be sent when it is due; it is not sent, because its envelope or
#: file cannot be used or an administrator holds it; it was refused.
WAITING, HELD, FAILED = "waiting", "held", "failed"
#: What follows the beginning of a name that stands for the whole name.
ABBREVIATED = b"+"
_NOWHERE = TcpEndpoint("nowhere")


@dataclass(frozen=True, slots=True)
class QueuePlace:
    """One maildir to look at, and the route whose settings give its messages their envelopes.

    `is_failed`: it is the failed maildir of the maildirs in `queues`; `nofollow`: it is inside
    its maildir. `prefixes` are those of its routes, empty if unknown; `route` has no prefix.
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

    `sender` and `recipients` are those of the envelope, with the prefix; None and empty if that
    cannot be read, and then `reason` says why; one that is held for its size alone has both.
    `next_s` is None if no daemon reports it, and `tries` if neither a daemon nor an earlier run
    does. `attempts` are the last ones, the newest first: their times in seconds of the epoch, and
    what was said. `is_on_hold`: an administrator holds the message. `sidecar` is the identity of
    its sidecar, None if there is none.
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
    sidecar: Identity | None = None

    @property
    def seen(self) -> Seen:
        """What the message is known by, to whoever changes it."""
        return Seen(self.folder, self.name, self.identity, self.sidecar)

    @property
    def size(self) -> int:
        """Length of the file in bytes."""
        return self.identity[2]

    @property
    def mtime_s(self) -> float:
        """When the file was written; the message's age is counted from then."""
        return self.identity[3] / 1e9


def places_of(
    path: bytes, failed: bytes | None = None, include_cur: bool = False
) -> list[QueuePlace]:
    """Return the places of a maildir and its failed maildir; `failed` None is the one inside it."""
    route = Route(path, _NOWHERE, failed=failed, include_cur=include_cur)
    return [replace(place, prefixes=()) for place in places_of_routes([route])]


def places_of_routes(routes: Iterable[Route]) -> list[QueuePlace]:
    """Return the maildirs of some routes, each once, and then their failed maildirs.

    The first route of a maildir decides on envelopes; recipients of all prefixes are included.
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


def as_served(maildir: Maildir, place: QueuePlace) -> QueuePlace:
    """Return a place with what the daemons that serve it now tell of their settings.

    Where a file describes the place, only whether they take what is in cur/; else their prefixes
    and envelopes as well; for a failed maildir, prefixes only. Raises `LocalError` if the maildir
    cannot be listed.
    """
    if place.is_failed:
        return place if place.prefixes else replace(place, prefixes=_told_prefixes(place))
    told = settings_of(maildir, served(maildir))
    if not told:
        return place
    settings = {} if place.prefixes else next(iter(told.values()))
    include_cur = place.route.include_cur or any(one["include_cur"] for one in told.values())
    route = place.route._replace(**settings | {"include_cur": include_cur})
    return replace(place, route=route, prefixes=place.prefixes or tuple(told))


def _told_prefixes(failed: QueuePlace) -> tuple[bytes, ...]:
    """Return the prefixes that daemons serve in the queue of a failed maildir."""
    try:
        with Maildir(failed.queues[0]) as queue:
            return tuple(prefix for prefix, _ in served(queue))
    except LocalError:  # what has failed can be listed without it
        return ()


def entries(
    maildir: Maildir, place: QueuePlace, chosen: Iterable[tuple[Folder, bytes]] | None = None
) -> Iterator[Entry]:
    """Yield the entries of messages: of the chosen ones, or of all, the oldest first.

    What is no message, or gone by now, is skipped. Raises `LocalError` if the maildir cannot
    be listed, or a file cannot be looked at.
    """
    told = {} if place.is_failed else _told(maildir)
    known = None if place.is_failed else KnownState(maildir)
    held: Mapping[str, str] = {} if known is None else known.held()
    for entry in _looked_at(maildir, place, chosen, told):
        name = entry.name
        if holds.key(name) in held:
            reason = entry.reason or held[holds.key(name)]
            entry = replace(entry, state=HELD, reason=reason, is_on_hold=True)
        elif known and not entry.reason and (broken := known.broken(name)):
            entry = replace(entry, reason=how_far(*broken))
        yield entry if known is None else _with_attempts(entry, known)


def _looked_at(
    maildir: Maildir,
    place: QueuePlace,
    chosen: Iterable[tuple[Folder, bytes]] | None,
    told: dict[str, Any],
) -> Iterator[Entry]:
    """Yield what `look_at` finds; at last those that a mail reader has renamed meanwhile."""
    gone: set[bytes] = set()
    for folder, name in candidates(maildir, place) if chosen is None else chosen:
        entry = look_at(maildir, place, folder, name, told)
        if entry is not None:
            yield entry
        elif not folder.has(name):
            gone.add(names.without_uid(name))
    for folder, name in candidates(maildir, place) if gone else ():
        if names.without_uid(name) in gone:
            entry = look_at(maildir, place, folder, name, told)
            if entry is not None:
                yield entry


def candidates(maildir: Maildir, place: QueuePlace) -> Candidates:
    """Return the names of a maildir that may be messages, the oldest first.

    Those in cur/ are included if the route says so. Raises `LocalError` if a directory cannot be
    listed.
    """
    return maildir.scan(place.route.include_cur)


def look_at(
    maildir: Maildir,
    place: QueuePlace,
    folder: Folder,
    name: bytes,
    told: dict[str, Any] | None = None,
) -> Entry | None:
    """Return the entry of one file; None if it is no message, or gone.

    `told` is what the daemons report of messages. Raises `LocalError` if the file's status
    cannot be read.
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
        sidecar=_sidecar_identity(maildir, name),  # before it is read: it may be replaced then
        failures=_failures(maildir, name),
    )
    addressed = _addressed(maildir, place, entry)
    if addressed is None:
        return None
    entry = addressed
    if place.is_failed:
        said = "; ".join(dict.fromkeys(printable_text(f.response[1:]) for f in entry.failures))
        return replace(entry, reason=said or entry.reason or "no sidecar says why")
    return _with_daemon(entry, (told or {}).get(os.fsdecode(name)))


def _addressed(maildir: Maildir, place: QueuePlace, entry: Entry) -> Entry | None:
    """Return the entry with its envelope; None if it is gone meanwhile."""
    try:
        queued = prepare(maildir, place.route, entry.folder, entry.name)
        if isinstance(queued, PassedOver):
            is_gone = queued is PassedOver.NO_MESSAGE and not entry.folder.has(entry.name)
            return None if is_gone else entry
        queued.close()
        return replace(entry, sender=queued.sender, recipients=queued.recipients)
    except (EnvelopeError, FileChangedError, LocalError) as error:
        if place.is_failed:
            return replace(entry, reason=str(error))
        if place.route.max_bytes is not None:  # its size alone may hold it
            of_any_size = replace(place, route=place.route._replace(max_bytes=None))
            entry = _addressed(maildir, of_any_size, entry) or entry
        return replace(entry, state=HELD, reason=str(error))


def _sidecar_identity(maildir: Maildir, name: bytes) -> Identity | None:
    try:
        return sidecars.identity(maildir, name)
    except LocalError:
        return None  # then the message is held, and that is shown


def _failures(maildir: Maildir, name: bytes) -> tuple[Failure, ...]:
    try:
        sidecar = sidecars.read(maildir, name)
    except (SidecarError, LocalError):
        return ()  # then the message is held, and that is shown
    return sidecar.failures if sidecar else ()


# What a daemon says


def _told(maildir: Maildir) -> dict[str, Any]:
    """Return what the daemons that serve the maildir report of messages, by their names."""
    found: dict[str, Any] = {}
    for prefix, shard in served(maildir):
        waiting = (read(maildir, prefix, shard) or {}).get("waiting")
        if isinstance(waiting, dict):
            found |= waiting
    return found


def _with_daemon(entry: Entry, known: Any) -> Entry:
    """Add what a daemon reports; the maildir's owner may have forged its file."""
    if not isinstance(known, dict):
        return entry
    tries, why, next_s = known.get("tries"), known.get("reason"), known.get("next")
    if not isinstance(next_s, (int, float)) or not 0 < next_s < LAST_S:
        next_s = None
    return replace(
        entry,
        tries=tries if type(tries) is int and 0 <= tries < LAST_S else None,
        next_s=next_s,
        reason=entry.reason or (printable_text(why) if isinstance(why, str) else ""),
    )


def _with_attempts(entry: Entry, known: KnownState) -> Entry:
    """Add the attempts of earlier runs, which a daemon that was started since does not know."""
    tries, attempts = known.attempts(entry.name)
    return replace(
        entry,
        attempts=attempts,
        tries=max(entry.tries or 0, tries) if tries else entry.tries,
        reason=entry.reason or (attempts[0][1] if attempts else ""),
    )


def daemon_line(maildir: Maildir) -> str:
    """Return a line about the daemons of a maildir. Raises `LocalError` if it cannot be listed."""
    found = [read(maildir, prefix, shard) for prefix, shard in served(maildir)]
    said = [daemon_text(told) for told in found if told]  # not for a shard that no process has
    if said:
        return "; ".join(said)
    return daemon_text(None, KnownState(maildir).last_stop())


def daemon_text(told: Mapping[str, Any] | None, last_stop: str = "") -> str:
    """Return what a status file says of its daemon.

    Without one, `last_stop` is why the last run left messages; empty if it reached a server.
    """
    if told is None:
        return printable_text(f"no daemon; the last run: {last_stop}" if last_stop else "no daemon")
    who = f"process {told.get('pid')}, {told.get('state')}, to {told.get('server')}"
    if told.get("state") == "backing off":
        who += f" ({told.get('excuse')})"
    return printable_text(who)
