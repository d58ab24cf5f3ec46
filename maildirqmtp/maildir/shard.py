"""One of N parts of a maildir's messages, by a hash of their unique names.

This lets N processes, on one machine or on N, forward a maildir without a coordinator: each message
is in one shard only, whatever mail readers do to its name.
"""

from typing import NamedTuple
from zlib import crc32

from maildirqmtp.maildir import names

#: The most shards of a maildir: each is a process.
MAX_SHARDS = 1_000


class Shard(NamedTuple):
    """The part `number`, from 0, of `total`."""

    number: int
    total: int

    def has(self, name: bytes) -> bool:
        """Return whether the message of this file name is in the shard."""
        return crc32(names.plain(name)) % self.total == self.number

    @property
    def suffix(self) -> bytes:
        """What distinguishes the names of the shard's own files from those of others."""
        return b"-shard-%d-%d" % self

    def own_file(self, name: bytes) -> bytes:
        """Return the name of the shard's own file in place of one of the maildir's, `NAME.json`."""
        return name.replace(b".json", self.suffix + b".json")

    def __str__(self) -> str:
        return f"{self.number}/{self.total}"
