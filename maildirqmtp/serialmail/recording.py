"""The connection of serialqmtp, which records how it ended."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from maildirqmtp.errors import TransportError
from maildirqmtp.transport.wrapper import TransportWrapper

if TYPE_CHECKING:
    from collections.abc import Callable

    from maildirqmtp.transport.transport import Transport

END_OF_FILE = "network read error: end of file"
NOT_WRITTEN = "unable to write to network"


class RecordingTransport(TransportWrapper):
    """A transport that records how it ended.

    `failure` says that in serialmail's words; `heard_at` is when a byte last came. `clock` is
    monotonic seconds.
    """

    def __init__(self, transport: Transport, clock: Callable[[], float]) -> None:
        super().__init__(transport)
        self.failure = ""
        self.heard_at = clock()
        self._clock = clock

    def send(self, data: bytes | bytearray | memoryview) -> int:
        """See `Transport`."""
        try:
            return super().send(data)
        except TransportError:
            self.failure = NOT_WRITTEN
            raise

    def send_file(self, fd: int, offset: int, count: int) -> int | None:
        """See `Transport`."""
        try:
            return super().send_file(fd, offset, count)
        except TransportError:
            self.failure = NOT_WRITTEN
            raise

    def receive(self, max_bytes: int) -> bytes | None:
        """See `Transport`."""
        try:
            data = super().receive(max_bytes)
        except TransportError as error:
            why = os.strerror(error.errno) if error.errno else str(error)
            self.failure = f"network read error: {why}"
            raise
        if data:
            self.heard_at = self._clock()
        elif data is not None:
            self.failure = END_OF_FILE
        return data
