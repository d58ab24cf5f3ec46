"""The attempts that a maildir's state files record, for people to read, whichever run made them."""

from __future__ import annotations

import os
import re
import time
from typing import TYPE_CHECKING

from maildirqmtp.maildir import attempts
from maildirqmtp.maildir.files import local_error
from maildirqmtp.maildir.shard import MAX_SHARDS, Shard
from maildirqmtp.maildir.state import State
from maildirqmtp.text import printable_text

if TYPE_CHECKING:
    from maildirqmtp.maildir.attempts import Attempts
    from maildirqmtp.maildir.maildir import Maildir

#: The most state files of shards that are read, besides the one of the whole maildir.
_MAX_FILES = 1_000
_OF_SHARD = re.compile(rb"\.maildirqmtp-state-shard-([0-9]{1,4})-([0-9]{1,4})\.json")


class KnownAttempts:
    """The attempts to send a maildir's messages. Raises `LocalError` if it cannot be listed."""

    def __init__(self, maildir: Maildir) -> None:
        self._states = [
            State(maildir.root, time.monotonic, time.time, shard=shard)
            for shard in [None, *_shards(maildir)]
        ]

    def of(self, name: bytes) -> Attempts:
        """Return the attempts of a message, their texts safe for a terminal.

        If several files know the message, the one with the latest attempt counts.
        """
        found = max((state.attempts(name) for state in self._states), key=lambda one: one[1][:1])
        tries, last = found or attempts.NONE
        return tries, tuple([(at, printable_text(text)) for at, text in last])


def _shards(maildir: Maildir) -> list[Shard]:
    try:
        found = [os.fsencode(name) for name in os.listdir(maildir.root.fd)]
    except OSError as error:
        raise local_error("list", maildir.path, error) from error
    of_shards = [match for match in map(_OF_SHARD.fullmatch, found) if match][:_MAX_FILES]
    pairs = [(int(match[1]), int(match[2])) for match in of_shards]
    return [Shard(number, total) for number, total in pairs if number < total <= MAX_SHARDS]
