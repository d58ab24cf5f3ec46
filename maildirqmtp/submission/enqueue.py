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
import signal
import sys
from typing import TYPE_CHECKING

from maildirqmtp.errors import ConfigError, EnvelopeError, LocalError
from maildirqmtp.exit_codes import EXIT_OK
from maildirqmtp.mail.sidecar import MAX_BYTES, Sidecar, encode
from maildirqmtp.maildir import writing
from maildirqmtp.maildir.maildir import Maildir
from maildirqmtp.qmtp.protocol import MAX_MESSAGE, MAX_RECIPIENTS
from maildirqmtp.submission.trace_lines import remove_trace
from maildirqmtp.transport.signals import signal_handlers

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

_PIECE_BYTES = 1 << 16
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def enqueue(path: bytes, sender: bytes | None, recipients: tuple[bytes, ...]) -> int:
    """Take a message from standard input; return the exit code.

    `sender` and `recipients` are raw. Prints the message's name. Raises
    `ConfigError`, `EnvelopeError` for a message or an envelope that is too
    large, and `LocalError`; then nothing has been taken.
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
        # The next file that is opened would get its descriptor.
        raise LocalError("standard input is closed; the message is read from there")
    given = Input(sys.stdin.fileno())
    with signal_handlers(_SIGNALS, given.stop, keep_ignored=True):
        with Maildir(path) as maildir:
            name = writing.enqueue(maildir, content, remove_trace(given.pieces()))
        # It is enqueued: an exit code other than 0 would have it enqueued twice.
        with contextlib.suppress(OSError):
            print(os.fsdecode(name), flush=True)
    return EXIT_OK


class Input:
    """A message that is read from a descriptor; a signal ends the wait for more of it."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._reading = False
        self._stopped = False

    def stop(self, number: int, frame: FrameType | None) -> None:
        """Read no more; raises `LocalError` in the handler while a read waits."""
        self._stopped = True
        if self._reading:
            raise self._told_to_stop()

    def _told_to_stop(self) -> LocalError:
        return LocalError("told to stop before the end of the message; nothing of it is taken")

    def pieces(self) -> Iterator[bytes]:
        """Yield all of it. Raises `EnvelopeError` where it is too large, and `LocalError`."""
        size = 0
        while piece := self._read():
            size += len(piece)
            if size > MAX_MESSAGE:
                raise EnvelopeError(
                    f"the message is larger than {MAX_MESSAGE} bytes; nothing is taken"
                )
            yield piece

    def _read(self) -> bytes:
        try:
            self._reading = True
            if self._stopped:
                raise self._told_to_stop()
            return os.read(self._fd, _PIECE_BYTES)
        except OSError as error:
            raise LocalError(f"cannot read standard input: {error.strerror}") from error
        finally:
            self._reading = False
