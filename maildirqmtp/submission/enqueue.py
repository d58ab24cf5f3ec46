"""`maildirqmtp --enqueue`: put a message into a maildir, with its envelope beside it.

The order of a writer: write the message in tmp/, fsync; write the sidecar in
tmp/, fsync, rename it into envelope/, fsync that directory; rename (or link)
the message into new/, fsync that directory. Only then is its name printed.

SIGTERM, SIGINT and SIGHUP end the wait for more of the message, and nothing of
it is left. After its last byte they change nothing: it is enqueued.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from maildirqmtp.errors import ConfigError, EnvelopeError
from maildirqmtp.exit_codes import EXIT_OK
from maildirqmtp.mail.sidecar import MAX_BYTES, Sidecar, encode
from maildirqmtp.maildir import writing
from maildirqmtp.maildir.maildir import Maildir
from maildirqmtp.qmtp.protocol import MAX_RECIPIENTS
from maildirqmtp.submission.message_input import SIGNALS, standard_input
from maildirqmtp.submission.trace_lines import remove_trace
from maildirqmtp.transport.signals import signal_handlers

if TYPE_CHECKING:
    from collections.abc import Iterable


def enqueue(path: bytes, sender: bytes | None, recipients: tuple[bytes, ...]) -> int:
    """Take a message from standard input; return the exit code.

    `sender` and `recipients` are raw. Prints the message's name. Raises
    `ConfigError` without a sender or recipient, `EnvelopeError` if the message or
    its envelope is too large, and `LocalError` if the input cannot be read or the
    maildir not written; then nothing has been taken.
    """
    if sender is None or not recipients:
        raise ConfigError("--enqueue needs --sender and at least one --recipient")
    content = make_sidecar(sender, recipients)
    given = standard_input()
    with signal_handlers(SIGNALS, given.stop, keep_ignored=True):
        name = put(path, content, remove_trace(given.pieces()))
        # It is enqueued: after any exit code but 0 the caller would enqueue it again.
        with contextlib.suppress(OSError):
            print(os.fsdecode(name), flush=True)
    return EXIT_OK


def make_sidecar(sender: bytes, recipients: tuple[bytes, ...]) -> Sidecar:
    """Return the sidecar of a new message. Raises `EnvelopeError` if it would be too large."""
    content = Sidecar(sender, recipients)
    if len(recipients) > MAX_RECIPIENTS or len(encode(content)) > MAX_BYTES:
        raise EnvelopeError(
            f"{len(recipients)} recipients are too many; at most {MAX_RECIPIENTS}, "
            f"and {MAX_BYTES} bytes with all that belongs to them, are taken at once"
        )
    return content


def put(path: bytes, content: Sidecar, pieces: Iterable[bytes]) -> bytes:
    """Put a message and its sidecar into the maildir at `path`, durably; return its name.

    Raises `LocalError` if the maildir cannot be written, and what reading `pieces`
    raises; then nothing has been taken.
    """
    with Maildir(path) as maildir:
        return writing.enqueue(maildir, content, pieces)
