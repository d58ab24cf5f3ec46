"""The messages that a command of `qmtpq` acts on: selected by name, or by filters."""

from __future__ import annotations

import os
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from maildirqmtp.daemon import listing
from maildirqmtp.daemon.entry_filter import EntryFilter
from maildirqmtp.daemon.listing import HELD, WAITING, Entry, QueuePlace
from maildirqmtp.errors import LocalError
from maildirqmtp.maildir.maildir import Maildir
from maildirqmtp.text import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

#: A message, and where it is.
Chosen = tuple[QueuePlace, Maildir, Entry]
_OR_FAILED = ", or has failed (qmtpq list --failed; qmtpq resend sends it again)"


@dataclass(frozen=True, slots=True)
class Selection:
    """What a command line selects: the maildirs to look at, and the messages in them.

    `names` are file names, empty for all; a message also has to match `filter`.
    """

    places: tuple[QueuePlace, ...]
    names: tuple[bytes, ...] = ()
    filter: EntryFilter = field(default_factory=EntryFilter)

    def of_places(self, failed: bool | None) -> Selection:
        """Return the selection in failed maildirs only (True), the others only (False) or both."""
        kept = [p for p in self.places if failed is None or p.is_failed is failed]
        return Selection(tuple(kept), self.names, self.filter)


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
            for entry in listing.entries(maildir, place):
                if self._selection.filter.matches(entry, now_s, place.prefixes):
                    yield entry
        except LocalError as error:
            self.fault(str(error))

    def chosen(self, *, single: bool = False) -> list[Chosen]:
        """Return all selected messages, each once.

        `single` refuses a name that means several messages, for actions that cannot be undone.
        """
        opened = list(self.maildirs())
        if not self._selection.names:
            return [(p, m, entry) for p, m in opened for entry in self.entries(p, m)]
        found: dict[bytes, Chosen] = {}
        for name in self._selection.names:
            named = {e.folder.join(e.name): (p, m, e) for p, m, e in self._named(opened, name)}
            if single and len(named) > 1:
                paths = ", ".join(map(printable, named))
                self.fault(
                    f"{printable(name)} is more than one message: {paths}; write a whole name, and "
                    f"--waiting or --failed where it is in two maildirs"
                )
            else:
                found |= named
        return list(found.values())

    def _named(self, opened: list[tuple[QueuePlace, Maildir]], name: bytes) -> list[Chosen]:
        found: list[Chosen] = []
        is_there = False
        now_s = time.time()
        for place, maildir in opened:
            try:
                wanted = listing.find_names(maildir, place, name)
                matches = self._selection.filter.matches
                for entry in listing.entries(maildir, place, wanted):
                    is_there = True
                    if matches(entry, now_s, place.prefixes):
                        found.append((place, maildir, entry))
            except LocalError as error:
                self.fault(str(error))
        if is_there and not found:
            self.fault(f"{printable(name)} is there, but is not what the other options ask for")
        elif not found:
            failed = "" if any(place.is_failed for place, _ in opened) else _OR_FAILED
            self.fault(
                f"no message {printable(name)}: it was sent or removed{failed}, or was never there"
            )
        return found
