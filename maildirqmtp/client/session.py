"""What both clients do between one wait and the next. Nothing in it waits.

A client asks for the next step, takes it, and asks again:

    | step       | the client                                    | and then calls                |
    | ---------- | --------------------------------------------- | ----------------------------- |
    | PACKAGE    | takes the next package from the program       | `take`, `no_more` or `stop`   |
    | CONNECTION | connects                                      | `connected` or `fail`         |
    | WAIT       | waits for the connection, at most `wait_s()`  | `turn`                        |
    | LOOK       | polls the connection                          | `turn`                        |
    | RESULT     | returns `result()` to the program             |                               |
    | NOTHING    | ends the run, and raises `error` if it is set | `end`                         |

Every package that was taken has one result, in the order they were taken. When
the connection breaks, recipients without an answer are deferred. Nothing is
sent again unless the program asks for it, with one exception: recipients
without an answer from a server that seems to answer once per package (see Fences in
`pipeline`).
"""

import logging
import time
from collections import deque
from collections.abc import Callable
from enum import Enum, auto

from maildirqmtp.client.bounded import BoundedTransport
from maildirqmtp.client.package import Package
from maildirqmtp.client.request import SendRequest
from maildirqmtp.errors import FileChangedError, QMTPError, TransportError
from maildirqmtp.pipeline.capabilities import Capabilities
from maildirqmtp.pipeline.pipeline import Pipeline
from maildirqmtp.pipeline.timeouts import Timeouts
from maildirqmtp.pipeline.window import Window
from maildirqmtp.results import SendResult
from maildirqmtp.text import printable
from maildirqmtp.transport.readiness import seconds_until
from maildirqmtp.transport.transport import Transport

_log = logging.getLogger("maildirqmtp")

#: Seconds for which packages are taken without polling the connection, and the most of them.
LOOK_S = 0.02
LOOK_PACKAGES = 64
#: Bytes that are about as much work as an answer or an envelope.
WORK_BYTES = 8 << 10


class NextStep(Enum):
    """What the client has to do next; see the table of the module."""

    PACKAGE = auto()
    CONNECTION = auto()
    WAIT = auto()
    LOOK = auto()
    RESULT = auto()
    NOTHING = auto()


class ClientSession:
    """Sends packages to one server, over one connection after the other.

    A run lasts from `begin` to `end`; the connection stays open after it.
    `window` bounds what is in flight, `clock` is monotonic seconds. `error` is
    the exception that the run ended with, to be raised to the program. `work_done` counts
    envelopes, answers, results and every `WORK_BYTES` of text: no step does much more than 1,000
    of them, so that the caller can do other things in the same thread, unless a single package is
    larger than that.
    """

    def __init__(
        self, window: Window, timeouts: Timeouts, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.error: Exception | None = None
        self._window = window
        self._timeouts = timeouts
        self._clock = clock
        self._capabilities = Capabilities()
        self._pipeline: Pipeline[SendRequest] | None = None
        self._running = False
        self._more = False
        self._unproven = self._amid_step = False
        self._look_at = 0.0
        # Packages that were sent since the last look.
        self._puts = 0
        self.work_done = 0
        # Requests whose result was not returned yet; those of them that were not sent yet.
        self._requests: deque[SendRequest] = deque()
        self._unsent: deque[SendRequest] = deque()

    # The connection

    @property
    def transport(self) -> Transport | None:
        """The connection, None without one."""
        return self._pipeline.transport if self._pipeline else None

    @property
    def in_flight(self) -> int:
        """The number of packages sent and not answered."""
        return self._pipeline.packages_in_flight if self._pipeline is not None else 0

    def is_alive(self) -> bool:
        """Return whether there is a connection, as far as can be known without sending."""
        pipeline = self._pipeline
        if pipeline is not None and not pipeline.packages_in_flight:
            self._check_idle(pipeline)
        return self._pipeline is not None

    def connected(self, transport: Transport) -> None:
        """Use this connection."""
        _log.debug("%s: connected", transport.name)
        self._pipeline = Pipeline(
            BoundedTransport(transport),
            self._window,
            self._capabilities,
            self._timeouts,
            SendRequest.unchanged,
            self._clock,
        )
        self._unproven = self._running

    def disconnect(self) -> None:
        """Close the connection; what is unanswered on it is deferred."""
        if self._pipeline is not None:
            if self._pipeline.packages_in_flight:
                self._pipeline.give_up()
            self._leave()

    def forget_capabilities(self) -> None:
        """Forget what the server has shown: the next connection goes to another one."""
        self._capabilities = Capabilities()

    # A run

    def begin(self) -> None:
        """Begin a run. Raises `RuntimeError` if one is under way."""
        if self._running:
            raise RuntimeError(
                "this client is sending already: finish that, or use another client for this"
            )
        self._running = self._more = True
        self.error = None

    def end(self) -> None:
        """End the run, at any point; close the connection if packages are in flight.

        Also if an exception has come amid a step: bytes of a package may wait to be sent, or an
        answer be half taken in.
        """
        pipeline = self._pipeline
        closes = self._amid_step or (pipeline is not None and pipeline.packages_in_flight > 0)
        if closes:
            self._pipeline = None
        for request in self._requests:
            request.give_up("the program stopped")
        self._requests.clear()
        self._unsent.clear()
        self._running = self._amid_step = False
        if closes and pipeline is not None:
            pipeline.close()  # last: a command may take seconds, and be interrupted

    @property
    def wants_packages(self) -> bool:
        """True while packages may be taken."""
        return self._more

    def take(self, package: Package) -> None:
        """Take the next package; once the run has failed, only to defer its recipients.

        Raises as `Content` does if its files cannot be used.
        """
        request = SendRequest(package)
        self._requests.append(request)
        if self._more:
            self._unsent.append(request)
        else:
            request.give_up(str(self.error))
        self.work_done += len(request.recipients) + request.length // WORK_BYTES

    def no_more(self) -> None:
        """Take no more packages in this run."""
        self._more = False

    def stop(self, error: Exception) -> None:
        """End with the program's own error, after the results of what was taken before."""
        self._more = False
        if self.error is None:
            self.error = error
        else:  # the connection's, which has the result of a package
            self.error.__context__ = error

    def fail(self, error: QMTPError) -> None:
        """Defer all recipients without an answer, and end the run with this error."""
        _log.debug("%s", error)
        left = [request for request in self._requests if not request.done]
        for request in left:
            request.give_up(str(error))
        if left:
            error.result = left[0].result()
        elif isinstance(self.error, QMTPError):
            error.result = self.error.result
        self._unsent.clear()
        self._more = False
        if self.error is not None:
            error.__context__ = self.error
        self.error = error

    def next_step(self) -> NextStep:
        """Do all that can be done now; return the next step."""
        while True:
            pipeline = self._pipeline
            if pipeline is not None and pipeline.ended:
                self._leave()
                continue
            if self._requests and self._requests[0].done:
                return NextStep.RESULT
            if pipeline is None and self._unsent:
                return NextStep.CONNECTION
            if pipeline is None or not (pipeline.packages_in_flight or self._unsent):
                return NextStep.PACKAGE if self._more else NextStep.NOTHING
            step = self._send_more(pipeline)
            if step is not None:
                return step

    def _send_more(self, pipeline: Pipeline[SendRequest]) -> NextStep | None:
        """Send the next package; return the step that has to come before it, if any."""
        if not pipeline.packages_in_flight:
            # After a long idle time the server may be gone, or the hour over.
            if self._check_idle(pipeline):
                self._put(pipeline)
                # There is nothing to gather it with, or a fence is up: send it.
                self._look_at = self._clock()
            return None
        if not pipeline.has_room() or not (self._unsent or self._more):
            return NextStep.WAIT
        if self._puts >= LOOK_PACKAGES or self._clock() >= self._look_at:
            return NextStep.LOOK
        if not self._unsent:
            return NextStep.PACKAGE
        if not pipeline.can_take(self._unsent[0]):
            return NextStep.WAIT
        self._put(pipeline)
        return None

    @property
    def wants_read(self) -> bool:
        """True if `turn` has to be called when the connection can be read."""
        return self._pipeline is not None and self._pipeline.wants_read

    @property
    def wants_write(self) -> bool:
        """True if `turn` has to be called when the connection can be written."""
        return self._pipeline is not None and self._pipeline.wants_write

    def wait_s(self) -> float | None:
        """Return the seconds after which `turn` has to be called in any case; None for never."""
        deadline = self._pipeline.next_deadline() if self._pipeline is not None else None
        return seconds_until(deadline, self._clock())

    def turn(self, readable: bool, writable: bool) -> None:
        """Read and write what is possible, and check the time-outs."""
        pipeline = self._pipeline
        self._amid_step = True
        if pipeline is not None:
            sent, answered = pipeline.bytes_sent, pipeline.answered
            transport = pipeline.transport
            assert isinstance(transport, BoundedTransport)
            with transport.bounded():
                pipeline.turn(readable, writable)
            pipeline.check_time()
            self._take_done(pipeline)
            moved = pipeline.bytes_sent - sent
            self.work_done += 1 + pipeline.answered - answered + moved // WORK_BYTES
        self._puts = 0
        self._look_at = self._clock() + LOOK_S
        self._amid_step = False

    def result(self) -> SendResult:
        """Return the next result; call it only if the next step is RESULT."""
        result = self._requests.popleft().result()
        self.work_done += len(result)
        return result

    # Inside

    def _put(self, pipeline: Pipeline[SendRequest]) -> None:
        request = self._unsent[0]
        request.keeps = not pipeline.knows_answers and len(request.recipients) > 1
        if _log.isEnabledFor(logging.DEBUG) and not request.next:
            to = ", ".join(printable(recipient) for recipient in request.recipients)
            _log.debug(
                "%s: package from <%s> to %s, %d bytes of text",
                pipeline.transport.name,
                printable(request.sender),
                to,
                request.length,
            )
        self._unproven = False
        self._puts += 1
        self.work_done += 1
        self._amid_step = True
        is_last = pipeline.put(request)
        self._amid_step = False
        if is_last:
            self._unsent.popleft()

    def _check_idle(self, pipeline: Pipeline[SendRequest]) -> bool:
        """Return whether a connection with nothing in flight is usable; close it if not."""
        pipeline.read()
        pipeline.check_time()
        if pipeline.ended or (pipeline.draining and not self._unproven):
            self._leave()
            return False
        return True

    def _take_done(self, pipeline: Pipeline[SendRequest]) -> None:
        for request in pipeline.take_done():
            if _log.isEnabledFor(logging.DEBUG):
                for outcome in request.result():
                    to = printable(outcome.address)
                    _log.debug("%s: response for %s: %s", self._name, to, outcome.response)

    def _leave(self) -> None:
        """Close the connection; defer what was in flight, or have it sent again."""
        pipeline = self._pipeline
        assert pipeline is not None
        unfinished = pipeline.close()
        self._take_done(pipeline)
        self._pipeline = None
        error = pipeline.error
        _log.debug("%s: closed%s", pipeline.transport.name, f": {error}" if error else "")
        if pipeline.remark:
            _log.debug("%s", pipeline.remark)
        if unfinished:
            if error is not None:
                self._window.shrink(len(unfinished))
                self.fail(error)
            elif unfinished[-1].reason:
                self.fail(FileChangedError(unfinished[-1].reason))
            else:
                for request in reversed(unfinished):
                    request.start_over()
                    if request not in self._unsent:  # else it was half put, and comes next
                        self._unsent.appendleft(request)
        elif self._unproven:
            # The server takes nothing: connecting again and again would not help.
            name = pipeline.transport.name
            self.fail(error or TransportError(f"{name} closed the connection at once"))
        self._unproven = False

    @property
    def _name(self) -> str:
        return self._pipeline.transport.name if self._pipeline is not None else "the server"
