"""What of the bytes that were sent has arrived: how far a large message got."""

from __future__ import annotations

import contextlib
import os
import socket
import struct

from maildirqmtp.transport.backlog import unacknowledged
from tests.helpers import wait_until


def test_what_nobody_has_read_is_not_said_to_have_arrived() -> None:
    """Megabytes wait in this machine's buffers when a thin link is cut; also after a reset."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        theirs, _ = listener.accept()
        assert unacknowledged(ours.fileno()) == 0
        ours.setblocking(False)
        sent = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                sent += ours.send(b"x" * 65_536)
        waiting = unacknowledged(ours.fileno())
        assert 0 < waiting < sent
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        theirs.close()
        wait_until(lambda: ours.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != 0, "the reset")
        assert unacknowledged(ours.fileno()) > 0
        ours.close()


def test_what_cannot_be_told_counts_as_arrived() -> None:
    """A command's pipe, a connection that is closed."""
    ends = os.pipe()
    os.write(ends[1], b"x")
    assert unacknowledged(ends[1]) == 0
    for end in ends:
        os.close(end)
    assert unacknowledged(ends[1]) == 0
    assert unacknowledged(-1) == 0
