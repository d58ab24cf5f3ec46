"""One connection, kept full.

Deliveries (any `OutgoingMessage`) go in by `put`, bytes go out and come in by `write`
and `read`, and deliveries that are answered come out by `take_done`. It never
waits: the selector is its owner's, the engine or a client. What holds at every moment:

    stream     = packages one after the other; `sent` bytes of it are out
    in flight  = packages put and not answered, in order; each knows its end
    in doubt   = in flight and end <= sent: the server may have taken it
    response   = belongs to the oldest in flight; only valid when that is in doubt

When it is over (`ended`), `close` says which deliveries are unfinished; the
recipients in doubt are marked on them, the others were certainly not taken.

Fences. Some servers answer once per package instead of once per recipient
(mailfront does), and then every later response would be credited to the wrong
message. So the first package of all goes alone, and so does on each connection
any with several recipients, until the server has been seen to answer for each
of them there. Where that breaks off in between, a refusal may have been for
them all, and is forgotten.
"""

from collections import deque
from collections.abc import Callable
from typing import Generic

from maildirqmtp.errors import (
    FileChangedError,
    ProtocolError,
    QMTPError,
    ResponseTimeout,
    TransportError,
    WriteTimeout,
)
from maildirqmtp.pipeline.capabilities import Capabilities
from maildirqmtp.pipeline.limits import Limits
from maildirqmtp.pipeline.send_buffer import MessageT, SendBuffer
from maildirqmtp.pipeline.window import Window
from maildirqmtp.qmtp.protocol import Response, ResponseReader, Status, package_head, package_tail
from maildirqmtp.transport.transport import Transport

_RECEIVE_BYTES = 256 << 10
# Of responses under TLS, each in a record of its own.
_RECORDS = 256


class _InFlight(Generic[MessageT]):
    """A package in flight: recipients `next` to `stop` of a delivery are unanswered.

    `end` is the offset of its last byte in the stream, plus one; `since` the
    clock's time from which its responses are waited for.
    """

    __slots__ = ("end", "message", "next", "since", "size", "stop")

    def __init__(
        self, message: MessageT, first: int, stop: int, size: int, end: int, since: float
    ) -> None:
        self.message = message
        self.next = first
        self.stop = stop
        self.size = size
        self.end = end
        self.since = since


class Pipeline(Generic[MessageT]):
    """A connection in use; see the module's head.

    `unchanged` says, before the last byte of a large message, whether its file
    is still the one that was opened. `clock` is monotonic seconds.

    `answered` counts packages; `error` says why the connection ended where it
    should not have; `remark` is something learnt about the server.
    """

    def __init__(
        self,
        transport: Transport,
        window: Window,
        capabilities: Capabilities,
        limits: Limits,
        unchanged: Callable[[MessageT], bool],
        clock: Callable[[], float],
    ) -> None:
        self.transport = transport
        self.ended = False
        self.error: QMTPError | None = None
        self.answered = 0
        self.remark = ""
        self._window = window
        self.capabilities = capabilities
        self._limits = limits
        self._clock = clock
        self._opened = self._now = clock()
        self._out = SendBuffer(transport, unchanged, clock)
        self._reader = ResponseReader()
        self._in_flight: deque[_InFlight[MessageT]] = deque()
        self._bytes_in_flight = 0
        self._fence: _InFlight[MessageT] | None = None
        self._fence_answered_at: float | None = None
        self._aborted = False
        self._expired = False
        self._done: list[MessageT] = []

    # What the engine asks

    @property
    def packages_in_flight(self) -> int:
        """Packages put and not answered."""
        return len(self._in_flight)

    @property
    def bytes_sent(self) -> int:
        """Bytes that went out."""
        return self._out.sent

    @property
    def wants_read(self) -> bool:
        """True where it is to be told when something has come."""
        return not self.transport.receive_needs_write

    @property
    def wants_write(self) -> bool:
        """True where it is to be told when something can be sent."""
        transport = self.transport
        waits = self._out.waiting and not transport.send_needs_read
        return waits or transport.receive_needs_write

    @property
    def draining(self) -> bool:
        """True where no package is taken any more, and those in flight are waited for."""
        return self._aborted or self._expired

    def has_room(self) -> bool:
        """Say whether any package would be taken now."""
        return (
            len(self._in_flight) < self._window.size
            and self._bytes_in_flight < self._window.max_bytes
            and self._fence is None
            and self._out.has_room()
            and not (self.ended or self._aborted or self._expired)
        )

    def can_take(self, message: MessageT) -> bool:
        """Say whether this delivery would be taken, given `has_room`."""
        return not self._in_flight or not self._needs_fence(message)

    def next_deadline(self) -> float | None:
        """Return the clock's time at which `check_time` will have something to do."""
        deadlines = []
        if self._out.waiting:
            deadlines.append(self._out.progress_at + self._limits.write_s)
        if self._fence_answered_at is not None:
            deadlines.append(self._fence_answered_at + self._limits.grace_s)
        elif self._in_flight and self._in_flight[0].end <= self._out.sent:
            deadlines.append(self._in_flight[0].since + self._limits.response_s)
        return min(deadlines, default=None)

    def turn(self, readable: bool, writable: bool) -> None:
        """Read and write what can be."""
        readable = readable or (writable and self.transport.receive_needs_write)
        if readable and not self.ended:
            self.read()
        if writable and not self.ended:
            self.write()

    # What goes out

    def put(self, message: MessageT) -> bool:
        """Take a package of a delivery; only when `has_room` and `can_take`.

        Returns True when it was the delivery's last one. There are several,
        one per recipient, for a server that answers once per package.
        """
        first, recipients, capabilities = message.next, message.recipients, self.capabilities
        stop = total = len(recipients)
        needs_fence = not capabilities.answers_once
        if total > 1:
            needs_fence = self._needs_fence(message)
            if capabilities.answers_each is False:
                stop = first + 1
                recipients = recipients[first:stop]
        head = package_head(message.length, message.encoding)
        tail = package_tail(message.sender, recipients)
        size = self._out.put(message, head, tail)
        package = _InFlight(message, first, stop, size, self._out.queued, self._now)
        self._in_flight.append(package)
        self._bytes_in_flight += size
        if needs_fence:
            self._fence = package
        message.next = stop
        if stop < total:
            return False
        message.release()
        return True

    def _needs_fence(self, message: MessageT) -> bool:
        capabilities = self.capabilities
        if not capabilities.answers_once:
            return True
        return capabilities.answers_each is None and len(message.recipients) > 1

    def write(self) -> None:
        """Send what fits without waiting."""
        streaming = self._out.streaming
        try:
            self._out.write()
            if streaming and not self._out.streaming:
                self._file_is_out(self._in_flight[-1])
        except FileChangedError as error:
            self._aborted = True
            self._in_flight[-1].message.reason = str(error)
            self._end_if_drained()
        except TransportError as error:
            # The server may have answered before it went: take that in first.
            while not self.ended and self._receive():
                pass
            self._end(error)

    def _file_is_out(self, package: _InFlight[MessageT]) -> None:
        package.since = self._clock()
        if package.stop == len(package.message.recipients):
            # Not only when it is answered: a wide window would run out of descriptors.
            package.message.close()

    # What comes in

    def read(self) -> None:
        """Take in what has come."""
        for _ in range(_RECORDS if self.transport.piecemeal else 1):
            if not self._receive() or self.ended:
                break

    def _receive(self) -> bool:
        """Take in what has come; say whether there was anything."""
        data: bytes | None = None
        try:
            data = self.transport.receive(_RECEIVE_BYTES)
            if data:
                self._reader.feed(data)
                self._take_responses()
            elif data is not None:
                self._end(self._closed_by_server())
        except (TransportError, ProtocolError) as error:
            self._end(error)
        return bool(data)

    def _closed_by_server(self) -> TransportError | None:
        if not self._in_flight and not self._reader.pending:
            return None
        return TransportError(f"{self.transport.name} closed the connection without answering")

    def _take_responses(self) -> None:
        before = self.answered
        while (response := self._reader.next()) is not None:
            self._answer(response)
            if self._reader.broken:
                self._end(ProtocolError(f"{self.transport.name} framed a response wrongly"))
                break
        self._window.answered(self.answered - before)
        self._end_if_drained()

    def _answer(self, response: Response) -> None:
        if not self._in_flight:
            raise self._surplus()
        package = self._in_flight[0]
        if package.end > self._out.sent:
            raise ProtocolError(f"{self.transport.name} answered before it had the whole package")
        message = package.message
        message.answers[package.next] = response
        message.unanswered -= 1
        package.next += 1
        if not message.unanswered:
            message.close()
            self._done.append(message)
        if package.next == package.stop:
            self._in_flight.popleft()
            self._bytes_in_flight -= package.size
            self.answered += 1
            if package is self._fence:
                self._pass_fence(package)
        elif package is self._fence and self._fence_answered_at is None:
            self._fence_answered_at = self._clock()

    def _pass_fence(self, package: _InFlight[MessageT]) -> None:
        if self._reader.pending:
            raise self._surplus()
        self._fence = self._fence_answered_at = None
        self.capabilities.answers_once = True
        if len(package.message.recipients) > 1 and self.capabilities.answers_each is None:
            self.capabilities.answers_each = True

    def _surplus(self) -> ProtocolError:
        return ProtocolError(f"{self.transport.name} sent a response nobody waits for")

    # How it ends

    def check_time(self) -> None:
        """Look at the clock; end the connection where something has taken too long."""
        now = self._now = self._clock()
        name, limits = self.transport.name, self._limits
        self._expired = now - self._opened >= limits.session_s
        oldest = self._in_flight[0] if self._in_flight else None
        if self._out.waiting and now - self._out.progress_at >= limits.write_s:
            self._end(WriteTimeout(f"{name} took no byte in {limits.write_s:g} s"))
        elif self._fence_answered_at is not None:
            if now - self._fence_answered_at >= limits.grace_s:
                self.remark = (
                    f"{name} answers once per package, not once per recipient; from here on "
                    f"each recipient gets a package of its own"
                )
                self._end(None)
        elif (
            oldest is not None
            and oldest.end <= self._out.sent
            and now - oldest.since >= limits.response_s
        ):
            self._end(ResponseTimeout(f"{name} did not answer in {limits.response_s:g} s"))

    def give_up(self) -> None:
        """End the connection without waiting for what is in flight."""
        self._end(TransportError(f"gave up waiting for {self.transport.name}: told to stop"))

    def _end_if_drained(self) -> None:
        """After an abort, end once the packages before the aborted one are answered."""
        if self._aborted and self._in_flight[0].end > self._out.sent:
            self._end(None)

    def _end(self, error: QMTPError | None) -> None:
        if not self.ended:
            self.ended = True
            self.error = error

    def take_done(self) -> list[MessageT]:
        """Return the deliveries that have been answered whole since the last call."""
        done = self._done
        self._done = []
        return done

    def close(self) -> list[MessageT]:
        """Close the connection; return the deliveries in flight, in order.

        On each, `doubtful` are the recipients whose package the server had
        whole and did not answer.
        """
        self.transport.close()
        if self._in_flight and self._fence_answered_at is not None:
            self._take_back(self._in_flight[0])
        unfinished: dict[int, MessageT] = {}
        for package in self._in_flight:
            message = package.message
            message.close()
            unfinished[id(message)] = message
            if package.end <= self._out.sent:
                message.doubtful += tuple(range(package.next, package.stop))
        self._in_flight.clear()
        return list(unfinished.values())

    def _take_back(self, package: _InFlight[MessageT]) -> None:
        """Forget refusals of some of a fenced package's recipients, with the others unanswered.

        From a server that answers once per package they are about all of them:
        the first, who may be a good one, would be told of as refused. That it
        was accepted is true either way. From here on each goes by himself.
        """
        message = package.message
        for index in range(package.next):
            answer = message.answers[index]
            if answer is not None and answer.status is not Status.ACCEPTED:
                message.answers[index] = None
                message.unanswered += 1
                message.doubtful += (index,)
        self.capabilities.answers_each = False
