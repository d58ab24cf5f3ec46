"""One of N parts of a maildir's messages, by a hash of their unique names.

N processes, on one machine or on N, forward a maildir so without a coordinator: each message is
in one shard only, whatever mail readers do to its name.
"""

from typing import NamedTuple
from zlib import crc32

from maildirqmtp.maildir import names

#: Parts of a maildir: each is a process.
MAX_SHARDS = 1_000


class Shard(NamedTuple):
    """The part `number`, from 0, of `total`."""

    number: int
    total: int

    def has(self, name: bytes) -> bool:
        """Say whether the message of this file name is in it."""
        return crc32(names.plain(name)) % self.total == self.number

    @property
    def suffix(self) -> bytes:
        """What the names of its own files have in them."""
        return b"-shard-%d-%d" % self

    def __str__(self) -> str:
        return f"{self.number}/{self.total}"
