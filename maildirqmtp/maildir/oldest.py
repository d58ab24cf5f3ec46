"""The oldest messages of a maildir, and the number of all: in little memory, even of a million."""

from __future__ import annotations

import os
from collections import deque
from itertools import islice
from typing import TYPE_CHECKING

from maildirqmtp.maildir import names
from maildirqmtp.maildir.files import local_error

if TYPE_CHECKING:
    from collections.abc import Iterator

    from maildirqmtp.maildir.files import Folder
    from maildirqmtp.maildir.maildir import Candidates, Maildir
    from maildirqmtp.maildir.shard import Shard

#: Names processed at a time.
_BATCH = 20_000
#: Digits of the seconds in the name of any message from 2001 to 2286.
_USUAL_DIGITS = 10


def oldest(maildir: Maildir, most: int, include_cur: bool = False) -> tuple[int, Candidates]:
    """Return the number of candidates, and the `most` oldest ones.

    By the seconds in their names (maildir(5)); names without seconds count as the oldest, because
    a stat of a million files takes minutes. Raises `LocalError` if a directory cannot be listed.
    """
    folders = (maildir.new, maildir.cur) if include_cur else (maildir.new,)
    count = 0
    found: list[tuple[int, str, int]] = []
    for number, folder in enumerate(folders):
        in_folder, few = _oldest_names(folder, most, maildir.shard, is_cur=folder is maildir.cur)
        count += in_folder
        found += [(_seconds(name), name, number) for name in few]
    maildir.find_envelopes()
    found.sort()
    return count, deque((folders[number], os.fsencode(name)) for _, name, number in found[:most])


def _oldest_names(
    folder: Folder, most: int, shard: Shard | None, *, is_cur: bool
) -> tuple[int, list[str]]:
    """Return the number of names, and the oldest ones of the usual form and of any other."""
    count = 0
    usual: list[str] = []
    others: list[str] = []
    try:
        with os.scandir(folder.fd) as entries:
            for batch in _batches(entries):
                listed = [n for n in batch if not _is_out(n)] if is_cur else batch
                if shard is not None:
                    listed = [n for n in listed if shard.has(os.fsencode(n))]
                count += len(listed)
                others += [n for n in listed if n[_USUAL_DIGITS : _USUAL_DIGITS + 1] != "."]
                if len(others) > _BATCH:
                    others = sorted(others, key=_seconds)[:most]
                # Names of the usual form are in the order of time when sorted as text.
                usual += [n for n in listed if n[_USUAL_DIGITS : _USUAL_DIGITS + 1] == "."]
                usual.sort()
                del usual[most:]
    except OSError as error:
        raise local_error("list", folder.path, error) from error
    return count, usual + others


def _batches(entries: Iterator[os.DirEntry[str]]) -> Iterator[list[str]]:
    while batch := [entry.name for entry in islice(entries, _BATCH)]:
        yield [name for name in batch if name[0] != "."]


def _seconds(name: str) -> int:
    seconds = name.partition(".")[0]
    return int(seconds) if seconds.isdecimal() and len(seconds) <= names.SECONDS_DIGITS else 0


def _is_out(name: str) -> bool:
    """Return whether a file in cur/ is trash or a draft."""
    return names.is_trash_or_draft(os.fsencode(name))
