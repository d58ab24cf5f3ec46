"""What transports on plain descriptors have in common."""

from __future__ import annotations

import os
import time

from maildirqmtp.errors import TransportError
from maildirqmtp.transport.addresses import Address, note_useless


class DescriptorPair:
    """A connection on one descriptor or two; see `Transport`. A subclass closes them."""

    send_needs_read = False
    receive_needs_write = False
    piecemeal = False
    close_waits = False

    def __init__(self, read_fd: int, write_fd: int, name: str, can_send_file: bool) -> None:
        self.name = name
        self.read_fd = read_fd
        self.write_fd = write_fd
        self.can_send_file = can_send_file
        #: The address it leads to, if the server may have others.
        self.address: Address | None = None
        self.addresses = 1

    @property
    def bytes_unread(self) -> int:
        """See `Transport`."""
        return 0

    def send(self, data: bytes | bytearray | memoryview) -> int:
        """See `Transport`."""
        try:
            return os.write(self.write_fd, data)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise self._broken("sending", error) from error

    def send_file(self, fd: int, offset: int, count: int) -> int | None:
        """See `Transport`."""
        try:
            return os.sendfile(self.write_fd, fd, offset, count)
        except BlockingIOError:
            return None
        except OSError as error:
            raise self._broken("sending a file", error) from error

    def receive(self, max_bytes: int) -> bytes | None:
        """See `Transport`."""
        try:
            return os.read(self.read_fd, max_bytes)
        except BlockingIOError:
            return None
        except OSError as error:
            raise self._broken("reading", error) from error

    def hang_up(self) -> None:
        """See `Transport`. Does nothing, because `close` takes no time."""

    def report_useless(self) -> None:
        """See `Transport`."""
        if self.address is not None:
            note_useless(self.address, time.monotonic())

    def close(self) -> None:
        """See `Transport`."""
        raise NotImplementedError

    def _broken(self, doing: str, error: OSError) -> TransportError:
        why = error.strerror or str(error)
        return TransportError(error.errno, f"connection to {self.name} broke while {doing}: {why}")

    def _forget_descriptors(self) -> None:
        """Forget the closed descriptors: other files may soon have their numbers."""
        self.read_fd = self.write_fd = -1
