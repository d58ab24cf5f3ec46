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
from maildirqmtp.errors import ConfigError, EnvelopeError, LocalError
from maildirqmtp.maildir import Maildir
from maildirqmtp.protocol import MAX_MESSAGE, MAX_RECIPIENTS
from maildirqmtp.sidecar import MAX_BYTES, Sidecar, encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_PIECE_BYTES = 1 << 16


def enqueue(path: bytes, sender: bytes | None, recipients: tuple[bytes, ...]) -> int:
    """Take a message from standard input; return the exit code.

    Prints its name. Raises `ConfigError`, `EnvelopeError` for a message or an
    envelope that is too large, and `LocalError`; then nothing has been taken.
    """
    if sender is None or not recipients:
        raise ConfigError("--enqueue needs --sender and at least one --recipient")
    content = Sidecar(sender, recipients)
    if len(recipients) > MAX_RECIPIENTS or len(encode(content)) > MAX_BYTES:
        raise EnvelopeError(
            f"{len(recipients)} recipients are too many; at most {MAX_RECIPIENTS}, "
            f"and {MAX_BYTES} bytes with all that belongs to them, are taken at once"
        )
    if sys.stdin is None:
        # The next file that is opened would be taken for it.
        raise LocalError("standard input is closed; the message is read from there")
    with Maildir(path) as maildir:
        name = filing.enqueue(maildir, content, _pieces(sys.stdin.fileno()))
    try:
        print(os.fsdecode(name), flush=True)
    except OSError:
        return 0  # nobody to tell, but it is taken: a failure would have it enqueued twice
    return 0


def _pieces(fd: int) -> Iterator[bytes]:
    size = 0
    while piece := _read(fd):
        size += len(piece)
        if size > MAX_MESSAGE:
            raise EnvelopeError(f"the message is larger than {MAX_MESSAGE} bytes; nothing is taken")
        yield piece


def _read(fd: int) -> bytes:
    try:
        return os.read(fd, _PIECE_BYTES)
    except OSError as error:
        raise LocalError(f"cannot read standard input: {error.strerror}") from error
