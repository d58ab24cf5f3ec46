"""Handing a message over by QMTP to the queue on this machine.

Not by `QMTPClient`: what it takes to load that (fences, windows, time-outs of an unknown server
far away) is more than all else that a cron job's mail costs. The server is `qmtpmaildir`, which
answers once per recipient, and all at once.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

from maildirqmtp.errors import ProtocolError, QMTPError, ResponseTimeout, TransportError
from maildirqmtp.qmtp.protocol import (
    MAX_PACKAGE_RECIPIENTS,
    ResponseReader,
    package_head,
    package_tail,
)
from maildirqmtp.transport.endpoint import UnixEndpoint
from maildirqmtp.transport.readiness import ConnectionSelector
from maildirqmtp.transport.sockets import connect_unix

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from maildirqmtp.response import Response
    from maildirqmtp.submission.held_text import HeldText
    from maildirqmtp.transport.transport import Transport

#: Seconds until there is a place among those who wait for the queue.
CONNECT_TIMEOUT_S = 60.0
#: Seconds without a byte taken, or without an answer: the queue writes to this machine's disk.
TIMEOUT_S = 300.0

_RECEIVE_BYTES = 1 << 16


class Answers(NamedTuple):
    """What the queue said, in the order of the recipients; `error` where it did not say all."""

    responses: list[Response]
    error: QMTPError | None


def connect(path: bytes) -> Transport:
    """Connect to the queue's socket. Raises `ConnectError`."""
    return connect_unix(UnixEndpoint(os.fsdecode(path)), CONNECT_TIMEOUT_S)


def submit(
    transport: Transport, sender: bytes, recipients: Sequence[bytes], text: HeldText
) -> Answers:
    """Send a message in as many packages as it takes; return all answers. Closes the connection."""
    conversation = _Conversation(transport)
    try:
        for first in range(0, len(recipients), MAX_PACKAGE_RECIPIENTS):
            some = recipients[first : first + MAX_PACKAGE_RECIPIENTS]
            conversation.send(sender, some, text)
            conversation.receive(first + len(some))
    except QMTPError as error:
        return Answers(conversation.responses, error)
    finally:
        transport.close()
    return Answers(conversation.responses, None)


class _Conversation:
    """One connection: a package, its answers, and the next one."""

    def __init__(self, transport: Transport) -> None:
        self.responses: list[Response] = []
        self._transport = transport
        self._reader = ResponseReader()

    def send(self, sender: bytes, recipients: Sequence[bytes], text: HeldText) -> None:
        for piece in _package(sender, recipients, text):
            left = memoryview(piece)
            while left:
                sent = self._transport.send(left)
                left = left[sent:]
                if left and not sent:
                    self._wait(reading=False)

    def receive(self, count: int) -> None:
        """Read until so many responses are there."""
        while len(self.responses) < count:
            response = self._reader.next()
            if response is not None:
                self.responses.append(response)
                continue
            data = self._transport.receive(_RECEIVE_BYTES)
            if data is None:
                self._wait(reading=True)
            elif data:
                self._reader.feed(data)
            else:
                raise TransportError(None, f"{self._transport.name} closed without an answer")
        if self._reader.pending or self._reader.next() is not None:
            raise ProtocolError(f"{self._transport.name} answered more than it was asked")

    def _wait(self, *, reading: bool) -> None:
        try:
            selector = ConnectionSelector(self._transport)
            try:
                ready = selector.wait(reading, not reading, TIMEOUT_S)
            finally:
                selector.close()
        except OSError as error:
            name = self._transport.name
            raise TransportError(error.errno, f"cannot wait for {name}: {error}") from error
        if not any(ready):
            doing = "answered nothing" if reading else "took nothing"
            raise ResponseTimeout(None, f"{self._transport.name} {doing} for {TIMEOUT_S:.0f} s")


def _package(sender: bytes, recipients: Sequence[bytes], text: HeldText) -> Iterator[bytes]:
    yield package_head(text.length)
    yield from text.pieces()
    yield package_tail(sender, recipients)
