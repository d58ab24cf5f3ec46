"""`maildirqmtp --enqueue`: put a message into a maildir, with its envelope beside it.

What a writer has to do, in this order: write the message in tmp/, fsync; write
the sidecar in tmp/, fsync, rename it into envelope/, fsync that directory;
rename (or link) the message into new/, fsync that directory. Then, and only
then, say that it is taken.
"""

from __future__ import annotations

import os
import sys

from maildirqmtp import filing
from maildirqmtp.errors import ConfigError, EnvelopeError
from maildirqmtp.maildir import Maildir
from maildirqmtp.protocol import MAX_MESSAGE, MAX_RECIPIENTS
from maildirqmtp.sidecar import Sidecar

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_PIECE_BYTES = 1 << 16


def enqueue(path: bytes, sender: bytes | None, recipients: tuple[bytes, ...]) -> int:
    """Take a message from standard input; return the exit code.

    Prints its name. Raises `ConfigError`, `EnvelopeError` for a message above
    200,000,000 bytes, and `LocalError`; then nothing has been taken.
    """
    if sender is None or not recipients:
        raise ConfigError("--enqueue needs --sender and at least one --recipient")
    if len(recipients) > MAX_RECIPIENTS:
        raise ConfigError(f"--enqueue takes at most {MAX_RECIPIENTS} recipients")
    with Maildir(path) as maildir:
        name = filing.enqueue(maildir, Sidecar(sender, recipients), _pieces(0))
    print(os.fsdecode(name), file=sys.stdout, flush=True)
    return 0


def _pieces(fd: int) -> Iterator[bytes]:
    size = 0
    while piece := os.read(fd, _PIECE_BYTES):
        size += len(piece)
        if size > MAX_MESSAGE:
            raise EnvelopeError(f"the message is larger than {MAX_MESSAGE} bytes; nothing is taken")
        yield piece
