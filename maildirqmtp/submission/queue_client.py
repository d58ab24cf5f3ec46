"""Handing a message over by QMTP to the queue on this machine.

`QMTPClient` is not used: to load it (fences, windows, time-outs for an unknown server far away)
costs more than everything else about a cron job's mail. The server is `qmtpmaildir`, which
answers once per recipient, and all at once.

A signal ends the wait for a silent queue: at once while connecting, and after `STOP_S` from then
on, since the queue may have the message, which would be in doubt.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, NamedTuple

from maildirqmtp.errors import (
    ConnectError,
    ProtocolError,
    QMTPError,
    ResponseTimeout,
    TransportError,
)
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
    from maildirqmtp.submission.message_input import Stoppable
    from maildirqmtp.transport.transport import Transport

#: Seconds until the queue's socket has room for one more client.
CONNECT_TIMEOUT_S = 60.0
#: Seconds without a byte taken, or without an answer: the queue writes to this machine's disk.
TIMEOUT_S = 300.0
#: Seconds that the queue still has after a signal: one that works has answered by then.
STOP_S = 2.0

_RECEIVE_BYTES = 1 << 16


class Answers(NamedTuple):
    """The responses, in the order of the recipients; `error` says why some are missing, if any."""

    responses: list[Response]
    error: QMTPError | None


def connect(path: bytes, stoppable: Stoppable) -> Transport:
    """Connect to the queue's socket. Raises `ConnectError` if that fails, or a signal ends it."""
    server = UnixEndpoint(os.fsdecode(path))
    with stoppable.waits(ConnectError(None, f"told to stop before {server} took a connection")):
        return connect_unix(server, CONNECT_TIMEOUT_S)


def submit(
    transport: Transport,
    sender: bytes,
    recipients: Sequence[bytes],
    text: HeldText,
    stoppable: Stoppable,
) -> Answers:
    """Send a message in as many packages as it takes; return all answers. Closes the connection."""
    conversation = _Conversation(transport, stoppable)
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

    def __init__(self, transport: Transport, stoppable: Stoppable) -> None:
        self.responses: list[Response] = []
        self._transport = transport
        self._stoppable = stoppable
        self._stop_at: float | None = None
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
        """Read until there are `count` responses in all."""
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
        name = self._transport.name
        try:
            selector = ConnectionSelector(self._transport)
            try:
                is_ready = self._is_ready(selector, reading)
            finally:
                selector.close()
        except OSError as error:
            raise TransportError(error.errno, f"cannot wait for {name}: {error}") from error
        if is_ready:
            return
        if self._stop_at is not None:
            doubt = "answered; the queue may have the message"
            before = doubt if reading else "taken all of the message"
            raise TransportError(None, f"told to stop before {name} had {before}")
        doing = "answered nothing" if reading else "took nothing"
        raise ResponseTimeout(None, f"{name} {doing} for {TIMEOUT_S:.0f} s")

    def _is_ready(self, selector: ConnectionSelector, reading: bool) -> bool:
        """Wait for the connection; return whether it was ready in time."""
        if self._stop_at is None:
            try:
                with self._stoppable.waits(_Stopped()):
                    return any(selector.wait(reading, not reading, TIMEOUT_S))
            except _Stopped:
                self._stop_at = time.monotonic() + STOP_S
        left_s = max(0.0, self._stop_at - time.monotonic())
        return any(selector.wait(reading, not reading, left_s))


class _Stopped(QMTPError):
    """A signal has come."""


def _package(sender: bytes, recipients: Sequence[bytes], text: HeldText) -> Iterator[bytes]:
    yield package_head(text.length)
    yield from text.pieces()
    yield package_tail(sender, recipients)
