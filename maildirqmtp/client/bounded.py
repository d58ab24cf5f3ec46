"""A transport that moves a bounded amount in one turn, so that the thread can do other work."""

import contextlib
import os
from collections.abc import Iterator

from maildirqmtp.errors import TransportError
from maildirqmtp.transport.transport import Transport
from maildirqmtp.transport.wrapper import TransportWrapper

#: Bytes of one `receive`: some 100 answers. Under TLS it is a record at least, see `Transport`.
RECEIVE_BYTES = 4 << 10
#: Bytes that are sent in one turn, about.
TURN_BYTES = 1 << 20


class BoundedTransport(TransportWrapper):
    """A transport around another that can limit what is sent; see `bounded`.

    A process that was forked can only close it: it would read the answers of its parent.
    """

    def __init__(self, inner: Transport) -> None:
        super().__init__(inner)
        self._left: int | None = None
        self._owner = os.getpid()

    @contextlib.contextmanager
    def bounded(self) -> Iterator[None]:
        """Send no more than `TURN_BYTES` in this block, then act as if sending would wait.

        The selector still reports room, so the next turn goes on. `Pipeline.read` stops by itself
        after one `receive`, or a few under TLS; a caller that goes on receives all there is.
        """
        self._left = TURN_BYTES
        try:
            yield
        finally:
            self._left = None

    def send(self, data: bytes | bytearray | memoryview) -> int:
        """See `Transport`."""
        self._check_owner()
        if self._left == 0:
            return 0
        return self._count(self._inner.send(data))

    def send_file(self, fd: int, offset: int, count: int) -> int | None:
        """See `Transport`."""
        self._check_owner()
        if self._left is None:
            return self._inner.send_file(fd, offset, count)
        if not self._left:
            return None
        sent = self._inner.send_file(fd, offset, min(count, self._left))
        return sent and self._count(sent)

    def receive(self, max_bytes: int) -> bytes | None:
        """See `Transport`."""
        self._check_owner()
        return self._inner.receive(min(max_bytes, RECEIVE_BYTES))

    def _check_owner(self) -> None:
        if self._owner != os.getpid():
            raise TransportError(f"the connection to {self.name} is that of the parent process")

    def _count(self, sent: int) -> int:
        if self._left is not None:
            self._left = max(0, self._left - sent)
        return sent
