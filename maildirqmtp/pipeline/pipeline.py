"""One connection, kept full.

Messages (any `OutgoingMessage`) go in by `put`, bytes go out and come in by `write`
and `read`, and messages that are answered come out by `take_done`; small ones go in
and come out in batches, by `put_batch` and `take_accepted`. Nothing here waits: the
selector belongs to the caller. What holds at every moment:

    stream     = packages one after the other; `sent` bytes of it are out
    in flight  = packages put and not answered, in order; each knows its end
    in doubt   = in flight and end <= sent: the server may have taken it
    response   = belongs to the oldest in flight; only valid when that is in doubt

Once `ended`, `close` returns the unfinished messages. Their recipients in doubt
are marked; the server has certainly not taken the message for the others.

Fences. Some servers answer once per package instead of once per recipient (mailfront does), and
then every later response would be credited to the wrong message. So a package with several
recipients goes alone until the server has answered for each of them on this connection. If its
answers stop in between, a refusal may have been for all of them, and is forgotten. A peer that has
never answered may be no QMTP server: until its first answer, only a little is in flight.

Time-outs. A server is alive as long as it answers, however long its queue: the
response time-out counts from the last answer, or from the last byte of the oldest
package if that is later. Before a time-out counts, the socket is read once more,
because this process may have been stopped, or the machine suspended.
"""

from collections.abc import Callable
from itertools import accumulate
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
from maildirqmtp.pipeline.in_flight import AcceptedRun, InFlight, has_one_answer, take_back
from maildirqmtp.pipeline.outgoing import MessageT, PackageBatch, PackageInFlight
from maildirqmtp.pipeline.send_buffer import SendBuffer
from maildirqmtp.pipeline.timeouts import ASLEEP_S, AWAKE_S, Timeouts
from maildirqmtp.pipeline.window import UNPROVEN_BYTES, Window
from maildirqmtp.qmtp.protocol import (
    MAX_PACKAGE_RECIPIENTS,
    Response,
    ResponseReader,
    package_head,
    package_tail,
)
from maildirqmtp.transport.transport import Transport

_RECEIVE_BYTES = 256 << 10
# Under TLS each response comes in a record of its own.
_RECORDS = 256


class Pipeline(Generic[MessageT]):
    """A connection in use; see the module's docstring.

    `unchanged` says, before the last byte of a large message, whether its file is still the
    one that was opened. `clock` is monotonic seconds. `answered` counts packages;
    `answers_each` is true once the server has answered on this connection for each recipient
    of a package with several; `error` says why the connection ended, if by a fault; `remark`
    says what the end has shown about the server.
    """

    def __init__(
        self,
        transport: Transport,
        window: Window,
        capabilities: Capabilities,
        timeouts: Timeouts,
        unchanged: Callable[[MessageT], bool],
        clock: Callable[[], float],
    ) -> None:
        self.transport = transport
        self.ended = False
        self.error: QMTPError | None = None
        self.answered = 0
        self.answers_each = False
        self.remark = ""
        self.capabilities = capabilities
        self._window = window
        self._timeouts = timeouts
        self._clock = clock
        self._opened = clock()
        # The last answer, or the last byte of the oldest package: the later of the two.
        self._waiting_since = self._opened
        self._awake_at = float("-inf")
        self._out = SendBuffer(transport, unchanged, clock)
        self._reader = ResponseReader()
        self._in_flight: InFlight[MessageT] = InFlight()
        self._fence: PackageInFlight[MessageT] | None = None
        self._fence_answered_at: float | None = None
        self._aborted = False
        self._expired = False

    # What the caller asks

    @property
    def packages_in_flight(self) -> int:
        """The number of packages put and not answered."""
        return self._in_flight.packages

    @property
    def bytes_sent(self) -> int:
        """The number of bytes that went out."""
        return self._out.sent

    @property
    def wants_read(self) -> bool:
        """True if the caller must call `turn` when the transport can be read."""
        return not self.transport.receive_needs_write

    @property
    def wants_write(self) -> bool:
        """True if the caller must call `turn` when the transport can be written."""
        transport = self.transport
        waits = self._out.waiting and not transport.send_needs_read
        return waits or transport.receive_needs_write

    @property
    def draining(self) -> bool:
        """True if no more packages are taken, while those in flight await their answers."""
        return self._aborted or self._expired

    def has_room(self) -> bool:
        """Return whether any package would be taken now."""
        messages, max_bytes = self._window.limits(self.capabilities.proven)
        return (
            self._in_flight.packages < messages
            and self._in_flight.bytes < max_bytes
            and self._fence is None
            and self._out.has_room()
            and not (self.ended or self._aborted or self._expired)
        )

    def room(self) -> tuple[int, int]:
        """Return the most packages and bytes that a batch may have now; 0 and 0 for none."""
        if not self.has_room():
            return 0, 0
        messages, max_bytes = self._window.limits(self.capabilities.proven)
        left = max_bytes - self._in_flight.bytes
        return messages - self._in_flight.packages, min(left, self._out.room)

    def can_take(self, message: MessageT) -> bool:
        """Return whether this message would be taken, given `has_room`."""
        if not self._in_flight.packages:
            return True
        together = self._in_flight.bytes + message.length
        fits = self.capabilities.proven or together <= UNPROVEN_BYTES
        return fits and not self._needs_fence(message)

    @property
    def knows_answers(self) -> bool:
        """True if it is known how many answers a package with several recipients gets."""
        return self.answers_each or self.capabilities.one_recipient

    def next_deadline(self) -> float | None:
        """Return the clock's time at which `check_time` will have something to do."""
        deadlines = []
        if self._out.waiting:
            deadlines.append(self._moved_at + self._timeouts.write_s)
        if self._fence_answered_at is not None:
            deadlines.append(self._fence_answered_at + self._timeouts.grace_s)
        elif self._oldest_is_out():
            deadlines.append(self._waiting_since + self._timeouts.response_s)
        if not deadlines:
            return None
        return max(min(deadlines), self._awake_at + AWAKE_S)

    def _oldest_is_out(self) -> bool:
        end = self._in_flight.oldest_end()
        return end is not None and end <= self._out.sent

    @property
    def _moved_at(self) -> float:
        # A server that answers is alive, even if it takes nothing for now.
        return max(self._out.progress_at, self._waiting_since)

    def turn(self, readable: bool, writable: bool) -> None:
        """Read if `readable`, and write if `writable`."""
        readable = readable or (writable and self.transport.receive_needs_write)
        if readable and not self.ended:
            self.read()
        if writable and not self.ended:
            self.write()

    # What goes out

    def put(self, message: MessageT) -> bool:
        """Put one package of a message; only if `has_room` and `can_take`.

        Returns True if it was the message's last one. There are several for more than
        1,000 recipients, and one per recipient for a server that answers once per package.
        """
        first, total = message.next, len(message.recipients)
        stop = total
        if total > 1:
            alone = self.capabilities.one_recipient and not self.answers_each
            stop = min(total, first + (1 if alone else MAX_PACKAGE_RECIPIENTS))
        needs_fence = self._needs_fence(message)
        head = package_head(message.length, message.encoding)
        tail = package_tail(message.sender, message.recipients[first:stop])
        size = self._out.put(message, head, tail)
        package = PackageInFlight(message, first, stop, size, self._out.queued)
        self._in_flight.put(package)
        if needs_fence:
            self._fence = package
        message.next = stop
        if stop < total:
            return False
        message.release()
        return True

    def put_batch(self, batch: PackageBatch[MessageT]) -> None:
        """Put a batch, which must fit the `room`."""
        batch.ends = list(accumulate(batch.sizes, initial=self._out.queued))[1:]
        self._out.put_gathered(batch.data)
        batch.data = b""
        self._in_flight.put_batch(batch)

    def _needs_fence(self, message: MessageT) -> bool:
        if message.alone:
            return True
        return len(message.recipients) > 1 and not self.knows_answers

    def write(self) -> None:
        """Send what fits without waiting."""
        end = self._in_flight.oldest_end()
        sent, streaming = self._out.sent, self._out.streaming
        try:
            self._out.write()
            if streaming and not self._out.streaming:
                self._file_is_out(self._in_flight.newest())
        except FileChangedError as error:
            self._aborted = True
            self._in_flight.newest().message.reason = str(error)
            self._end_if_drained()
        except TransportError as error:
            # The server may have answered before the connection broke.
            self.catch_up()
            self._end(error)
        if end is not None and sent < end <= self._out.sent:
            self._waiting_since = self._out.progress_at

    def _file_is_out(self, package: PackageInFlight[MessageT]) -> None:
        if package.stop == len(package.message.recipients):
            # Not only when it is answered: a wide window would run out of descriptors.
            package.message.close()

    # What comes in

    def read(self) -> None:
        """Read what has come; if that is much, a part of it."""
        for _ in range(_RECORDS if self.transport.piecemeal else 1):
            if not self._receive() or self.ended:
                break

    def catch_up(self) -> None:
        """Read all that has come."""
        while not self.ended and self._receive():
            pass

    def _receive(self) -> bool:
        """Read once; return whether anything had come."""
        data: bytes | None = None
        try:
            data = self.transport.receive(_RECEIVE_BYTES)
            if data:
                self.capabilities.has_spoken = True
                self._reader.feed(data)
                self._take_responses()
            elif data is not None:
                self._end(self._closed_by_server())
        except (TransportError, ProtocolError) as error:
            self._end(error)
        return bool(data)

    def _closed_by_server(self) -> TransportError | None:
        if not self._in_flight.packages and not self._reader.pending:
            return None
        return TransportError(f"{self.transport.name} closed the connection without answering")

    def _take_responses(self) -> None:
        before = self.answered
        heard = False
        while True:
            answered = self._in_flight.answer_batches(self._reader, self._out.sent)
            self.answered += answered
            response = self._reader.next()
            if not heard and (answered or response is not None):
                heard = True
                self._waiting_since = self._clock()
            if response is None:
                break
            self._answer(response)
        if self.answered > before:
            self.capabilities.proven = True
            self._window.answered(self.answered - before)
        self._end_if_drained()

    def _answer(self, response: Response) -> None:
        if not self._in_flight.packages:
            raise self._surplus()
        if not self._oldest_is_out():
            raise ProtocolError(f"{self.transport.name} answered before it had the whole package")
        package = self._in_flight.answer(response)
        if package.next == package.stop:
            self.answered += 1
            if package is self._fence:
                self._pass_fence(package)
        elif package is self._fence and not self.answers_each:
            self._fence_answered_at = self._waiting_since

    def _pass_fence(self, package: PackageInFlight[MessageT]) -> None:
        if self._reader.pending:
            raise self._surplus()
        self._fence = self._fence_answered_at = None
        if package.stop - package.first > 1:
            self.answers_each = True

    def _surplus(self) -> ProtocolError:
        return ProtocolError(f"{self.transport.name} sent a response nobody waits for")

    # How it ends

    def check_time(self) -> None:
        """End the connection if something has taken too long by the clock."""
        now = self._clock()
        self._expired = now - self._opened >= self._timeouts.session_s
        if self._overdue_s(now) < 0:
            return
        self.catch_up()
        if self._out.waiting and not self.ended:
            self.write()
        overdue_s = self._overdue_s(now)
        if overdue_s > ASLEEP_S:
            self._awake_at = now
        elif overdue_s >= 0 and not self.ended:
            self._time_out(now)

    def _overdue_s(self, now: float) -> float:
        due = self.next_deadline()
        return -1.0 if due is None else now - due

    def _time_out(self, now: float) -> None:
        name, timeouts = self.transport.name, self._timeouts
        if self._out.waiting and now - self._moved_at >= timeouts.write_s:
            self._end(WriteTimeout(f"{name} took no byte in {timeouts.write_s:g} s"))
        elif self._fence is not None and self._fence_answered_at is not None:
            what = f"stopped answering amid a package, for {timeouts.grace_s:g} s"
            if has_one_answer(self._fence):
                self.capabilities.find_one_recipient()
                what = "answers once per package; from here on each recipient gets one of its own"
            self.remark = f"{name} {what}"
            self._end(None)
        else:
            self._end(ResponseTimeout(f"{name} did not answer in {timeouts.response_s:g} s"))

    def give_up(self) -> None:
        """End the connection without waiting for what is in flight."""
        self.catch_up()
        self._end(TransportError(f"gave up waiting for {self.transport.name}: told to stop"))

    def _end_if_drained(self) -> None:
        """After an abort, end once the packages before the aborted one are answered."""
        if self._aborted and not self._oldest_is_out():
            self._end(None)

    def _end(self, error: QMTPError | None) -> None:
        if not self.ended:
            self.ended = True
            self.error = error

    def take_done(self) -> list[MessageT]:
        """Return the messages that got their last answer since the last call."""
        return self._in_flight.take_done()

    def take_accepted(self) -> list[AcceptedRun[MessageT]]:
        """Return the packages of batches that were accepted since the last call."""
        return self._in_flight.take_accepted()

    def close(self) -> list[MessageT]:
        """Close the connection; return the messages in flight, in order.

        On each, `doubtful` has those whose package the server may have whole and did not answer.
        """
        if self.ended and not (self.answered or self._aborted or self._fence_answered_at):
            self.transport.report_useless()
        sent, arrived = self._out.sent, self._out.arrived()
        self.transport.close()
        if self._fence is not None and self._fence_answered_at is not None:
            strange = isinstance(self.error, ProtocolError) or has_one_answer(self._fence)
            self.capabilities.one_recipient |= strange
            take_back(self._fence)
        return self._in_flight.take_unfinished(sent - self.transport.bytes_unread, arrived)
