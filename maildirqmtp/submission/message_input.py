"""A message on standard input, read whole or not taken at all."""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING

from maildirqmtp.errors import EnvelopeError, LocalError
from maildirqmtp.qmtp.protocol import MAX_MESSAGE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

_PIECE_BYTES = 1 << 16
#: What ends the wait for more of the message.
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def standard_input() -> Input:
    """Return the message on standard input. Raises `LocalError` where that is closed."""
    if sys.stdin is None:
        # The next file that is opened would get its descriptor.
        raise LocalError("standard input is closed; the message is read from there")
    return Input(sys.stdin.fileno())


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
