"""What a maildir's state files record, for people to read, whichever run or shard wrote it."""

from __future__ import annotations

import os
import re
import time
from typing import TYPE_CHECKING

from maildirqmtp.maildir.files import local_error
from maildirqmtp.maildir.shard import MAX_SHARDS, Shard
from maildirqmtp.maildir.state import NAME, State
from maildirqmtp.text import printable_text

if TYPE_CHECKING:
    from collections.abc import Mapping

    from maildirqmtp.maildir.attempts import Attempts
    from maildirqmtp.maildir.maildir import Maildir

#: The most state files of shards that are read, besides the one of the whole maildir.
_MAX_FILES = 1_000
_OF_SHARD = re.compile(rb"\.maildirqmtp-state-shard-([0-9]{1,4})-([0-9]{1,4})\.json")


class KnownState:
    """The state of a maildir and of all its shards. Raises `LocalError` if it cannot be listed."""

    def __init__(self, maildir: Maildir) -> None:
        def order(shard: Shard | None) -> tuple[bool, int]:
            return shard is not None and shard == maildir.shard, _written_ns(maildir, shard)

        # That of the shard that is asked for comes first, or the one that was written last.
        self._states = [
            State(maildir.root, time.monotonic, time.time, shard=shard)
            for shard in sorted([None, *_shards(maildir)], key=order, reverse=True)
        ]

    def attempts(self, name: bytes) -> Attempts:
        """Return the attempts of a message, their texts safe for a terminal.

        If several files know the message, the one with the latest attempt counts.
        """
        found = (state.attempts(name) for state in self._states)
        tries, last = max(found, key=lambda one: one[1][:1])
        return tries, tuple([(at, printable_text(text)) for at, text in last])

    def held(self) -> Mapping[str, str]:
        """See `State.held`. All of a maildir's runs share it."""
        return self._states[0].held()

    def broken(self, name: bytes) -> tuple[int, int] | None:
        """See `State.broken`."""
        return next((found for one in self._states if (found := one.broken(name))), None)

    def last_stop(self) -> str:
        """Return why the last run has left messages; empty if it reached a server."""
        return self._states[0].last_stop()


def _written_ns(maildir: Maildir, shard: Shard | None) -> int:
    name = NAME if shard is None else shard.own_file(NAME)
    try:
        return os.stat(name, dir_fd=maildir.root.fd).st_mtime_ns
    except OSError:
        return 0  # there is none


def _shards(maildir: Maildir) -> list[Shard]:
    try:
        found = [os.fsencode(name) for name in os.listdir(maildir.root.fd)]
    except OSError as error:
        raise local_error("list", maildir.path, error) from error
    of_shards = [match for match in map(_OF_SHARD.fullmatch, found) if match][:_MAX_FILES]
    pairs = [(int(match[1]), int(match[2])) for match in of_shards]
    return [Shard(number, total) for number, total in pairs if number < total <= MAX_SHARDS]
