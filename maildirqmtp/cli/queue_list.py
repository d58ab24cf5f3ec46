"""`qmtpq list`, `summary` and `show`: what waits, what has failed, and why."""

from __future__ import annotations

import time
from itertools import groupby, islice
from typing import TYPE_CHECKING

from maildirqmtp.cli import queue_output
from maildirqmtp.daemon.listing import daemon_line
from maildirqmtp.errors import FileChangedError, LocalError
from maildirqmtp.exit_codes import EXIT_OK, EXIT_TEMPORARY
from maildirqmtp.text import printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from maildirqmtp.cli.queue_selection import Chosen, Selected
    from maildirqmtp.daemon.listing import Entry, QueuePlace
    from maildirqmtp.maildir.maildir import Maildir


def list_messages(selected: Selected, by_name: bool, limit: int | None, to_json: bool) -> int:
    """Print the selected messages, at most `limit` of each maildir; return the exit code."""
    for place, maildir, entries in _each_maildir(selected, by_name):
        if to_json:
            now_s = time.time()
            for entry in islice(entries, limit):
                queue_output.put_json(queue_output.as_json(entry, place.path, now_s))
        else:
            _put_maildir(place, maildir, entries, limit)
    return _code(selected)


def list_names(selected: Selected, by_name: bool, limit: int | None) -> int:
    """Print the names of the selected messages, at most `limit` of each maildir."""
    for _, _, entries in _each_maildir(selected, by_name):
        for entry in islice(entries, limit):
            print(printable(entry.name))
    return _code(selected)


def _each_maildir(
    selected: Selected, by_name: bool
) -> Iterator[tuple[QueuePlace, Maildir, Iterable[Entry]]]:
    if by_name:
        for _, group in groupby(selected.chosen(), key=lambda one: one[1].path):
            same: list[Chosen] = list(group)
            yield same[0][0], same[0][1], [entry for _, _, entry in same]
        return
    for place, maildir in selected.maildirs():
        yield place, maildir, selected.entries(place, maildir)


def _put_maildir(
    place: QueuePlace, maildir: Maildir, entries: Iterable[Entry], limit: int | None
) -> None:
    shown: list[Entry] = []
    more = 0
    for entry in entries:
        if limit is None or len(shown) < limit:
            shown.append(entry)
        else:
            more += 1
    if place.is_failed and not shown and not more:
        return
    count = len(shown) + more
    about = f"{count:,} failed" if place.is_failed else f"{count:,} waiting; {daemon_line(maildir)}"
    print(queue_output.fitted(f"{printable(place.path)}: {about}", queue_output.columns()))
    if shown:
        queue_output.put_table(shown, time.time())
    if more:
        print(f"  and {more:,} more; --limit lists them")


def summarise(selected: Selected, to_json: bool) -> int:
    """Print how many messages wait or have failed, by recipient domain and reason."""
    for place, maildir in selected.maildirs():
        summary = queue_output.Summary(time.time())
        for entry in selected.entries(place, maildir):
            summary.add(entry)
        if not summary.rows():
            continue
        if not to_json:
            print(f"{printable(place.path)}:")
        summary.put(place.path, to_json)
    return _code(selected)


def show(selected: Selected, to_json: bool) -> int:
    """Print all that is known of the messages, and their headers."""
    for number, (place, maildir, entry) in enumerate(selected.chosen()):
        try:
            message = maildir.load(entry.folder, entry.name)
            data = b"" if message is None else message.data
            if message is not None:
                message.close()
        except (LocalError, FileChangedError) as error:
            selected.fault(str(error))
            data = b""
        header = queue_output.header_lines(data)
        now_s = time.time()
        if to_json:
            found = queue_output.as_json(entry, place.path, now_s)
            queue_output.put_json({**found, "header": header})
            continue
        if number:
            print()
        queue_output.put_entry(entry, place.path, header, now_s)
    return _code(selected)


def _code(selected: Selected) -> int:
    return EXIT_OK if selected.complete else EXIT_TEMPORARY
