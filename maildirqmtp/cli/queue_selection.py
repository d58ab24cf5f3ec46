"""The messages that a command of `qmtpq` acts on: selected by name, or by filters."""

from __future__ import annotations

import os
import time
from collections import deque
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from maildirqmtp.daemon import listing
from maildirqmtp.daemon.entry_filter import EntryFilter
from maildirqmtp.daemon.listing import HELD, WAITING, Entry, QueuePlace
from maildirqmtp.errors import LocalError
from maildirqmtp.maildir import holds
from maildirqmtp.maildir import names as file_names
from maildirqmtp.maildir.maildir import Maildir
from maildirqmtp.text import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from maildirqmtp.forwarder.route import Route
    from maildirqmtp.maildir.files import Folder

#: A message, and where it is.
Chosen = tuple[QueuePlace, Maildir, Entry]
#: Files of a maildir that cannot be looked at, after which its others are not tried.
_MOST_FAULTS = 20
_OR_FAILED = ", or has failed (qmtpq list --failed; qmtpq resend sends it again)"
_OR_WAITS = ", or waits (qmtpq list --waiting; qmtpq retry has it tried now)"


@dataclass(frozen=True, slots=True)
class Selection:
    """What a command line selects: the maildirs to look at, and the messages in them.

    `names` are file names, empty for all; a message also has to match `filter`. `routes` are those
    of a file, empty without one.
    """

    places: tuple[QueuePlace, ...]
    names: tuple[bytes, ...] = ()
    filter: EntryFilter = field(default_factory=EntryFilter)
    routes: tuple[Route, ...] = ()

    def of_places(self, failed: bool | None) -> Selection:
        """Return the selection in failed maildirs only (True), the others only (False) or both."""
        kept = [p for p in self.places if failed is None or p.is_failed is failed]
        return replace(self, places=tuple(kept))


class Selected:
    """Opens the maildirs of a selection and finds its messages; a context manager.

    What cannot be read, or is missing, is reported to `complain` and makes `complete` false.
    """

    def __init__(self, selection: Selection, complain: Callable[[str], object]) -> None:
        self.complete = True
        #: True if messages were named, false if only filters select them.
        self.by_name = bool(selection.names)
        self._selection = selection
        self._complain = complain
        self._stack = ExitStack()

    def __enter__(self) -> Selected:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def fault(self, text: str) -> None:
        """Report what could not be done, and note it for the exit code."""
        self.complete = False
        self._complain(text)

    def routes_of(self, place: QueuePlace) -> dict[bytes, Route]:
        """Return the routes of the file that have this maildir, or this failed one, by prefix.

        The first of several with the same prefix, of which each has a queue of its own, counts.
        """
        found: dict[bytes, Route] = {}
        for route in self._selection.routes:
            if place.path == (route.failed_maildir if place.is_failed else route.maildir):
                found.setdefault(route.prefix, route)
        return found

    def maildirs(self) -> Iterator[tuple[QueuePlace, Maildir]]:
        """Open one maildir after the other; they stay open until the context ends."""
        for place in self._selection.places:
            # A failed maildir is made with the first failure; without one, nothing is missing.
            if place.is_failed and not os.path.lexists(place.path):
                continue
            try:
                opened = self._stack.enter_context(Maildir(place.path, place.nofollow))
                yield listing.as_served(opened, place), opened
            except LocalError as error:
                self.fault(str(error))

    def entries(self, place: QueuePlace, maildir: Maildir) -> Iterator[Entry]:
        """Yield the messages of a maildir that match the filter, of any name, the oldest first."""
        state = self._selection.filter.state
        if state is not None and (state in (WAITING, HELD)) is place.is_failed:
            return
        now_s = time.time()
        try:
            candidates = listing.candidates(maildir, place)
        except LocalError as error:
            self.fault(str(error))
            return
        for entry in self._each(place, maildir, candidates):
            if self._selection.filter.matches(entry, now_s, place.prefixes):
                yield entry

    def _each(
        self, place: QueuePlace, maildir: Maildir, candidates: Iterable[tuple[Folder, bytes]]
    ) -> Iterator[Entry]:
        """Yield the entries of these files; one that cannot be looked at does not stop the others.

        After `_MOST_FAULTS` of them it is the maildir that is at fault, and not its files.
        """
        rest = deque(candidates)
        for _ in range(_MOST_FAULTS):
            count = len(rest)
            try:
                for entry in listing.entries(maildir, place, _taken_from(rest)):
                    yield _without_old_hold(entry)
                return
            except LocalError as error:
                self.fault(str(error))
            if len(rest) == count:
                return

    def chosen(self, *, single: bool = False) -> list[Chosen]:
        """Return all selected messages, each once.

        `single` refuses a name that means several messages, for actions that cannot be undone.
        """
        opened = list(self.maildirs())
        if not self._selection.names:
            return [(p, m, entry) for p, m in opened for entry in self.entries(p, m)]
        found: dict[bytes, Chosen] = {}
        for name, named in self._named(opened):
            if name in named:  # the whole path, as this program shows it, says which one is meant
                named = {name: named[name]}
            if single and len(named) > 1:
                paths = ", ".join(map(printable, named))
                self.fault(
                    f"{printable(name)} is more than one message: {paths}; write one of these "
                    f"paths, or a whole name with --waiting or --failed"
                )
            else:
                found |= named
        return list(found.values())

    def _named(
        self, opened: Sequence[tuple[QueuePlace, Maildir]]
    ) -> Iterator[tuple[bytes, dict[bytes, Chosen]]]:
        """Yield each name and the messages that it means, by their paths; report what is missing.

        Each maildir is listed once, however many names there are.
        """
        found: dict[bytes, dict[bytes, Chosen]] = {name: {} for name in self._selection.names}
        there: set[bytes] = set()
        now_s = time.time()
        matches = self._selection.filter.matches
        for place, maildir in opened:
            try:
                meant = find_names(listing.candidates(maildir, place), list(found))
                for entry in self._each(place, maildir, meant):
                    by_names = meant[entry.folder, entry.name]
                    there.update(by_names)
                    if matches(entry, now_s, place.prefixes):
                        for name in by_names:
                            found[name][entry.folder.join(entry.name)] = place, maildir, entry
            except LocalError as error:
                self.fault(str(error))
        is_known = self.complete
        kinds = {place.is_failed for place, _ in opened}
        missing = _OR_FAILED if True not in kinds else _OR_WAITS if False not in kinds else ""
        for name, named in found.items():
            if name in there and not named:
                self.fault(f"{printable(name)} is there, but is not what the other options ask for")
            elif not named and not is_known:
                self.fault(f"no message {printable(name)} where it could be looked for")
            elif not named:
                self.fault(
                    f"no message {printable(name)}: it was sent or removed{missing}, or was never "
                    f"there"
                )
            yield name, named


def _without_old_hold(entry: Entry) -> Entry:
    """Return an entry without a hold that has ended since its daemon wrote its status file.

    It writes that when it has tried the message: not before it reaches its server.
    """
    if entry.is_on_hold or entry.reason not in (holds.REASON, holds.BOUNCING):
        return entry
    return replace(entry, reason=entry.attempts[0][1] if entry.attempts else "")


def _taken_from(candidates: deque[tuple[Folder, bytes]]) -> Iterator[tuple[Folder, bytes]]:
    while candidates:
        yield candidates.popleft()


def find_names(
    candidates: Iterable[tuple[Folder, bytes]], wanted: Iterable[bytes]
) -> dict[tuple[Folder, bytes], list[bytes]]:
    """Return the messages that the wanted names may mean, and by which of the names each is meant.

    A wanted name is a file name, or a path that ends in one, with or without the flags and numbers
    that mail readers add; if it ends with `+`, it means each message whose name begins so. A
    whole name never means a longer one: that may be another message, and the wanted one gone.
    """
    whole: dict[bytes, list[bytes]] = {}
    beginnings: list[tuple[bytes, bytes]] = []
    for name in wanted:
        last = name.rpartition(b"/")[2]
        if plain := file_names.plain(last):
            whole.setdefault(plain, []).append(name)
        beginning = last.removesuffix(listing.ABBREVIATED)
        if beginning not in (last, b""):  # all names begin with $UNSET
            beginnings.append((beginning, name))
    found: dict[tuple[Folder, bytes], list[bytes]] = {}
    begun: dict[tuple[Folder, bytes], list[bytes]] = {}
    exact: set[bytes] = set()
    for one in candidates:
        if named := whole.get(file_names.plain(one[1])):
            found[one] = list(named)
            exact.update(named)
        if longer := [name for beginning, name in beginnings if one[1].startswith(beginning)]:
            begun[one] = longer
    for one, longer in begun.items():
        if kept := [name for name in longer if name not in exact]:
            found.setdefault(one, []).extend(kept)
    return found
