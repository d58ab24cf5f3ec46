"""serialqmtp's loop: names in, packages out, responses in, results out, all at the same time.

One thread, one selector, four descriptors. A feeder may wait for a result before
it writes the next name, or read no result before its last name is written: so
the loop never waits for only one of the four, and a step whose output is full
stops the step before it.

    names      read while the connection has room, and few results wait
    packages   written while there are any
    responses  read while few results wait
    results    written while there are any, at most PIPE_BUF bytes, which a pipe that
               is ready takes without blocking, whatever its flags (pipe(7))
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import selectors
import sys
from typing import TYPE_CHECKING

from maildirqmtp.errors import EnvelopeError, ProtocolError, WriteTimeout
from maildirqmtp.pipeline.capabilities import Capabilities
from maildirqmtp.pipeline.pipeline import Pipeline
from maildirqmtp.pipeline.timeouts import FENCE_GRACE_S, SESSION_S, WRITE_TIMEOUT_S, Timeouts
from maildirqmtp.pipeline.window import WINDOW_BYTES, WINDOW_MESSAGES, Window
from maildirqmtp.serialmail.open_file import UnreadableError, open_message, unchanged
from maildirqmtp.serialmail.poller import DescriptorPoller
from maildirqmtp.serialmail.recording import END_OF_FILE, NOT_WRITTEN, RecordingTransport
from maildirqmtp.serialmail.wire import NameReader, WireError, write_result
from maildirqmtp.text import printable

if TYPE_CHECKING:
    from collections.abc import Callable

    from maildirqmtp.forwarder.queued_message import QueuedMessage
    from maildirqmtp.transport.transport import Transport

#: Seconds without a byte from the server while a response is due (serialmail, serialqmtp).
READ_TIMEOUT_S = 3_600.0
#: Bytes of unwritten results beyond which no response is read.
RESULTS_BYTES = 64 << 10
_NAMES_BYTES = 64 << 10
SESSION_OVER = f"{NOT_WRITTEN}: a session's {SESSION_S / 60:.0f} minutes are over"


class Conversation:
    """Sends the files whose names come on `names_fd`; see the module's docstring.

    `said_by` is the server's address, for the results, or empty. `clock` is
    monotonic seconds.
    """

    def __init__(
        self,
        transport: Transport,
        prefix: bytes,
        said_by: bytes,
        clock: Callable[[], float],
        names_fd: int = 0,
        results_fd: int = 1,
    ) -> None:
        self._transport = RecordingTransport(transport, clock)
        self._prefix = prefix
        self._said_by = said_by
        self._clock = clock
        self._names_fd = names_fd
        self._results_fd = results_fd
        # This loop has its own response time-out: for each read, not for each package.
        timeouts = Timeouts(WRITE_TIMEOUT_S, float("inf"), FENCE_GRACE_S, SESSION_S)
        window = Window(WINDOW_MESSAGES, WINDOW_BYTES)
        self._pipeline = Pipeline(
            self._transport, window, Capabilities(), timeouts, unchanged, clock
        )
        self._ready = DescriptorPoller(clock)
        self._names = NameReader()
        self._names_end = False
        self._results = bytearray()
        self._due_since = clock()
        self._fatal = ""

    def run(self) -> str:
        """Send until the names end or there is an error; return its text, or empty.

        Every response has been written as a result by then. Raises `OSError` if
        results cannot be written.
        """
        with contextlib.closing(self._ready):
            try:
                while not self._turn():
                    pass
            finally:
                self._ready.watch({})
                # The server throws an incomplete package away: do not complete it.
                unfinished = self._pipeline.close()
            while self._results:
                self._ready.watch({self._results_fd: selectors.EVENT_WRITE})
                self._write_results(self._ready.wait(None))
        return self._error(unfinished) or self._fatal

    def _turn(self) -> bool:
        """Fill the window, wait, read and write; return True at the end."""
        pipeline = self._pipeline
        self._fill()
        if self._is_over():
            return True
        transport, read, write = self._transport, selectors.EVENT_READ, selectors.EVENT_WRITE
        answers = not self._results_wait
        fds = (self._names_fd, transport.read_fd, transport.write_fd, self._results_fd)
        wanted = dict.fromkeys(fds, 0)
        wanted[self._names_fd] |= read if self._wants_names() else 0
        wanted[transport.read_fd] |= read if answers and not pipeline.ended else 0
        wanted[transport.write_fd] |= write if pipeline.wants_write and not pipeline.ended else 0
        wanted[self._results_fd] |= write if self._results else 0
        self._ready.watch(wanted)
        ready = self._ready.wait(self._deadline())
        if not answers:
            transport.heard_at = self._clock()  # the feeder is slow, not the server
        if ready.get(transport.read_fd, 0) & read:
            pipeline.read()
        if ready.get(transport.write_fd, 0) & write and not pipeline.ended:
            pipeline.write()
        self._take_results()
        self._write_results(ready)
        if ready.get(self._names_fd, 0) & read:
            self._read_names()
        self._check_time()
        return False

    def _is_over(self) -> bool:
        pipeline = self._pipeline
        if pipeline.packages_in_flight:
            return pipeline.ended
        if self._fatal or pipeline.error is not None:
            return True
        return self._names_end

    def _error(self, unfinished: list[QueuedMessage]) -> str:
        error = self._pipeline.error
        if isinstance(error, ProtocolError):
            return "remote protocol violation"
        if isinstance(error, WriteTimeout):
            return NOT_WRITTEN
        if any(queued.reason for queued in unfinished) and error is None:
            return "unable to read file"
        return self._transport.failure if unfinished or error is not None else ""

    # Time

    def _deadline(self) -> float | None:
        due = [self._pipeline.next_deadline(), self._read_deadline()]
        return min([t for t in due if t is not None], default=None)

    def _read_deadline(self) -> float | None:
        if self._pipeline.ended or not self._pipeline.packages_in_flight or self._results_wait:
            return None
        return max(self._transport.heard_at, self._due_since) + READ_TIMEOUT_S

    def _check_time(self) -> None:
        pipeline = self._pipeline
        if not pipeline.ended:
            pipeline.check_time()
        deadline = self._read_deadline()
        if deadline is not None and self._clock() >= deadline:
            pipeline.catch_up()  # this process may have been stopped meanwhile
            self._take_results()
            deadline = self._read_deadline()
        if deadline is not None and self._clock() >= deadline:
            self._transport.failure = f"network read error: {os.strerror(errno.ETIMEDOUT)}"
            pipeline.give_up()

    # Names

    def _wants_names(self) -> bool:
        if self._names_end or self._fatal or self._results_wait:
            return False
        return self._pipeline.has_room() or self._is_finished

    @property
    def _is_finished(self) -> bool:
        """True if all is answered and nothing more can be sent: one more name is an error."""
        pipeline = self._pipeline
        if pipeline.packages_in_flight or pipeline.error is not None:
            return False
        return pipeline.ended or pipeline.draining

    def _read_names(self) -> None:
        try:
            data = os.read(self._names_fd, _NAMES_BYTES)
        except BlockingIOError:
            return
        except OSError:
            self._fatal = "unable to read input"
            return
        self._names_end = not data
        self._names.feed(data)

    def _fill(self) -> None:
        """Put messages into the pipeline while it has room."""
        pipeline = self._pipeline
        while not self._fatal and (pipeline.has_room() or self._is_finished):
            try:
                name = self._names.next()
                queued = None if name is None else open_message(name, self._prefix)
            except WireError:
                self._fatal = "unable to open file"
                return
            except UnreadableError as error:
                self._fatal = str(error)
                return
            except EnvelopeError as error:
                _warn(f"{printable(name or b'')}: not sent: {error}")
                continue
            if name is None:
                return
            if queued is None:
                continue
            if self._is_finished:
                queued.close()
                self._fatal = END_OF_FILE if pipeline.ended else SESSION_OVER
                return
            if not pipeline.packages_in_flight:
                self._due_since = self._clock()
            pipeline.put(queued)

    # Results

    @property
    def _results_wait(self) -> bool:
        """True while too many results are unwritten: then no responses and no names are read."""
        return len(self._results) >= RESULTS_BYTES

    def _take_results(self) -> None:
        for queued in self._pipeline.take_done():
            (answer,) = queued.answers
            assert answer is not None
            self._results += write_result(queued.message.name, answer, self._said_by)

    def _write_results(self, ready: dict[int, int]) -> None:
        """Write what results fit without blocking. Raises `OSError` if they cannot be written."""
        if self._results and ready.get(self._results_fd, 0) & selectors.EVENT_WRITE:
            with contextlib.suppress(BlockingIOError):
                del self._results[: os.write(self._results_fd, self._results[: select.PIPE_BUF])]


def _warn(text: str) -> None:
    with contextlib.suppress(OSError):
        if sys.stderr is not None:
            sys.stderr.write(f"serialqmtp: warning: {text}\n")
