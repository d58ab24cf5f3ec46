"""A message on standard input, read whole or not taken at all; and signals that end a wait."""

from __future__ import annotations

import os
import select
import signal
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

from maildirqmtp.errors import EnvelopeError, LocalError
from maildirqmtp.qmtp.protocol import MAX_MESSAGE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

    from maildirqmtp.errors import QMTPError

_PIECE_BYTES = 1 << 16
#: Signals that end the wait for more of the message, and for the queue.
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def standard_input() -> Input:
    """Return the message on standard input. Raises `LocalError` if that is closed."""
    if sys.stdin is None:
        # Descriptor 0 goes to the next file that is opened.
        raise LocalError("standard input is closed; the message is read from there")
    return Input(sys.stdin.fileno())


class Stoppable:
    """Waits that a signal ends; `stop` is its handler."""

    def __init__(self) -> None:
        self._stopped = False
        self._error: QMTPError | None = None

    def stop(self, number: int, frame: FrameType | None) -> None:
        """End the wait that is under way, and all later ones."""
        self._stopped = True
        if self._error is not None:
            raise self._error

    @contextmanager
    def waits(self, error: QMTPError) -> Iterator[None]:
        """Raise `error` when a signal comes, from its handler; at once if one came before."""
        try:
            self._error = error
            if self._stopped:
                raise error
            yield
        finally:
            self._error = None


class Input(Stoppable):
    """A message that is read from a descriptor; a signal ends the wait for more of it."""

    def __init__(self, fd: int) -> None:
        super().__init__()
        self._fd = fd

    def pieces(self) -> Iterator[bytes]:
        """Yield the message.

        Raises `EnvelopeError` if it is too large, and `LocalError` if it cannot be read or
        a signal ends the wait.
        """
        size = 0
        while piece := self._read():
            size += len(piece)
            if size > MAX_MESSAGE:
                raise EnvelopeError(
                    f"the message is larger than {MAX_MESSAGE} bytes; nothing is taken"
                )
            yield piece

    def has_more(self) -> bool:
        """Return whether text that was not read waits now. What is typed ahead is left alone."""
        try:
            if os.isatty(self._fd) or not select.select([self._fd], [], [], 0)[0]:
                return False
            return bool(os.read(self._fd, _PIECE_BYTES).strip())
        except OSError:
            return False

    def _read(self) -> bytes:
        stopped = LocalError("told to stop before the end of the message; nothing of it is taken")
        try:
            with self.waits(stopped):
                return os.read(self._fd, _PIECE_BYTES)
        except OSError as error:
            raise LocalError(f"cannot read standard input: {error.strerror}") from error
