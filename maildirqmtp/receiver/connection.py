"""One client of the receiver: its stream, its session, and responses that wait to be written.

    | phase     | reads              | leaves it when                                  |
    | --------- | ------------------ | ----------------------------------------------- |
    | OPEN      | packages           | the client closes; violation; time; stop        |
    | CLOSING   | nothing            | every response owed is written                  |
    | LINGERING | data, and drops it | the client closes; 5 s                          |
    | CLOSED    | nothing            |                                                 |

LINGERING exists because closing a socket with unread bytes makes the kernel
send a reset, which may overtake responses; the mail they accepted would be sent
again.

How long a client can keep its place:

    | what it does                 | place lost after | while other clients wait |
    | ---------------------------- | ---------------- | ------------------------ |
    | nothing, between packages    | `timeout_s`      | 5 s                      |
    | under 100 bytes a second     | `timeout_s`      | 60 s                     |
    | anything else                | an hour, and 10 minutes for the last package |
"""

import contextlib
import selectors
from collections.abc import Callable
from enum import Enum, auto

from maildirqmtp.receiver.policy import Log, Severity
from maildirqmtp.receiver.session import Session
from maildirqmtp.receiver.streams import Stream

#: Bytes of responses that may wait for a client; above that, nothing is read from it.
OUTPUT_MAX = 64 << 10
#: Seconds of a session after which it takes no new package (qmtp.txt, section 2).
SESSION_S = 3_600.0
#: Seconds more for the package that is under way then.
LAST_PACKAGE_S = 600.0
#: Seconds that a client has to close its side after ours was closed.
LINGER_S = 5.0
#: Seconds that a client has to take its responses when the receiver stops.
STOP_S = 10.0
#: Seconds after which a receiver that stops hands no more on, so that what is done can be answered.
HURRY_S = 5.0
#: Seconds that a client has for its TLS handshake.
HANDSHAKE_S = 30.0
#: Bytes a second, in both directions together, below which a client in a package is slow
#: (Postfix's smtpd_min_data_rate is 500; satellite telephones carry 300).
MIN_RATE = 100.0
#: Least seconds over which the rate is measured.
RATE_S = 60.0
#: Seconds between packages after which a client gives its place to one that waits.
IDLE_S = 5.0

_READ = selectors.EVENT_READ
_WRITE = selectors.EVENT_WRITE
_NEVER = float("inf")


class Phase(Enum):
    """The phases of a connection; see the table of the module."""

    OPEN = auto()
    CLOSING = auto()
    LINGERING = auto()
    CLOSED = auto()


class Connection:
    """One client. Call `handle` with what is ready, then `turn`; neither waits.

    `client` is the same for all connections that count as one client, and empty if
    they are not limited. `failed` is true once something was lost: the connection
    ended in the middle of a package, with responses unwritten, or by a violation of
    the protocol. `clock` is monotonic seconds.
    """

    def __init__(
        self,
        stream: Stream,
        session: Session,
        timeout_s: float,
        clock: Callable[[], float],
        log: Log,
        client: str = "",
    ) -> None:
        self.stream = stream
        self.client = client
        self.failed = False
        self._session = session
        self._timeout_s = timeout_s
        self._clock = clock
        self._write_log = log
        self._phase = Phase.OPEN
        self._output = bytearray()
        self._progress_s = clock()
        self._rate_from_s = self._progress_s
        self._rate_bytes = 0
        self._session_end_s = self._progress_s + SESSION_S
        self._winding_down = False
        self._handshaking = stream.handshaking
        self._give_up_s = self._progress_s + HANDSHAKE_S if self._handshaking else _NEVER
        self._ended_by_client = False
        self._stopping = False
        self._hurry_s = _NEVER
        self._violation_told = False
        # Since when responses have been awaited from the disk; None while they are not.
        self._waiting_from_s: float | None = None
        self._log(Severity.INFO, "connected")

    @property
    def closed(self) -> bool:
        """True once nothing more can happen; call `release` then."""
        return self._phase is Phase.CLOSED

    @property
    def can_work(self) -> bool:
        """True if packages or responses wait for a turn, and there is room for responses."""
        session = self._session
        return (session.can_work or session.ready) and len(self._output) <= OUTPUT_MAX

    @property
    def deadline_s(self) -> float:
        """The time at which it needs a turn even if its stream is not ready."""
        if self.can_work:
            return self._clock()
        if self._phase is Phase.LINGERING:
            return self._give_up_s
        rate_s = self._rate_from_s + max(self._timeout_s, RATE_S) if self._owes else _NEVER
        idle_s = self._progress_s + self._timeout_s
        return min(idle_s, rate_s, self._session_end_s, self._give_up_s, self._hurry_s)

    @property
    def _owes(self) -> bool:
        """True while the client has to send the rest of a package, or to take responses."""
        return bool(self._output) or not self._session.between_packages

    @property
    def _awaits_disk(self) -> bool:
        """True while packages are being delivered, and the next responses are not there yet.

        Responses that are there and find no room wait for the client to take others.
        """
        return self._session.waiting and not self._session.ready

    @property
    def expendable_s(self) -> float:
        """The time from which its place may go to a client that waits; infinite for never."""
        if self._phase not in (Phase.OPEN, Phase.CLOSING) or self.can_work:
            return _NEVER
        if self._awaits_disk:
            return _NEVER
        if not self._owes:
            return self._progress_s + IDLE_S
        # The time at which the rate falls below the least one, even if nothing happens until then.
        slow_s = self._rate_from_s + max(RATE_S, self._rate_bytes / MIN_RATE)
        return min(slow_s, self._progress_s + RATE_S)

    def make_way(self) -> None:
        """Close the connection in favour of a client that waits."""
        if self._owes:
            self._fail("slow, while others wait; closing")
        else:
            self._log(Severity.INFO, "idle, while others wait; closing")
        self._phase = Phase.CLOSED

    def abort(self, reason: str) -> None:
        """Close the connection because of trouble on this machine. Raises nothing."""
        self.failed = True
        self._phase = Phase.CLOSED
        with contextlib.suppress(MemoryError):
            self._fail(f"{reason}; closing")

    def interest(self) -> dict[int, int]:
        """Return what to wait for: descriptors and selector events."""
        wanted: dict[int, int] = {}
        room = not self._session.busy and len(self._output) <= OUTPUT_MAX
        if self._phase is Phase.LINGERING or (self._phase is Phase.OPEN and room):
            wanted[self.stream.read_fd] = _READ
        if self._output or (wanted and self.stream.read_wants_write):
            fd = self.stream.write_fd
            wanted[fd] = wanted.get(fd, 0) | _WRITE
        return wanted

    def handle(self, events: int) -> None:
        """Read and write what the selector says is possible."""
        if self.closed:
            return
        try:
            if events & _WRITE and self._output:
                self._write()
            can_read = events & _READ or self.stream.read_wants_write
            if can_read and self._phase in (Phase.OPEN, Phase.LINGERING):
                self._read()
        except OSError as error:
            if self._phase is not Phase.LINGERING:
                self._break(error)
            self._phase = Phase.CLOSED

    def _break(self, error: OSError) -> None:
        text = f"connection broken: {error.strerror}"
        # A probe may reset a connection as soon as it has one, and a client that has its answers.
        is_harmless = not self._handshaking or isinstance(error, ConnectionError)
        if is_harmless and not self._owes:
            self._log(Severity.INFO, text)
        else:
            self._fail(text)

    def _write(self) -> None:
        now_s = self._clock()
        written = self.stream.write(self._output)
        if written:
            del self._output[:written]
            self._progress_s = now_s
            self._rate_bytes += written

    def _read(self) -> None:
        data = self.stream.read()
        if self._handshaking and not self.stream.handshaking:
            self._handshaking = False
            self._give_up_s = _NEVER
        if data is None or (data and self._phase is Phase.LINGERING):
            return
        if data:
            now_s = self._clock()
            if not self._owes:
                self._rate_from_s, self._rate_bytes = now_s, 0
            self._session.feed(data)
            self._progress_s = now_s
            self._rate_bytes += len(data)
        else:
            self._ended_by_client = True
            self._phase = Phase.CLOSED if self._phase is Phase.LINGERING else Phase.CLOSING

    def turn(self) -> None:
        """Enforce the time limits, hand on what has come, and close when all is done."""
        self._exclude_since(self._waiting_from_s)
        if not self.closed:
            self._look_at_clock()
        if self.closed:
            return
        if self._clock() >= self._hurry_s:
            self._hurry_s = _NEVER
            self._session.hurry()
        if self.can_work:
            self._work()
        self._waiting_from_s = self._clock() if self._awaits_disk else None
        session = self._session
        if session.ended and self._phase is Phase.OPEN:
            self._phase = Phase.CLOSING
        idle = not (session.busy or session.waiting or self._output)
        if self._phase is Phase.CLOSING and idle:
            self._finish()

    def _work(self) -> None:
        began_s = self._clock()
        self._session.work()
        while self._session.ready and len(self._output) <= OUTPUT_MAX:
            self._output += self._session.take_output()
        if self._session.violation is not None and not self._violation_told:
            self._violation_told = True
            self._fail(f"protocol violation: {self._session.violation}; closing")
        self._exclude_since(began_s)
        if self._stopping:
            self._give_up_s = self._progress_s + STOP_S

    def _exclude_since(self, from_s: float | None) -> None:
        """Exclude the time since `from_s`, which storing took, from the client's limits."""
        if from_s is not None:
            self._progress_s = self._clock()
            self._rate_from_s += self._progress_s - from_s

    def stop(self) -> None:
        """Read no more; answer what is complete, and close."""
        if self._phase is Phase.OPEN:
            self._phase = Phase.CLOSING
        self._stopping = True
        self._hurry_s = self._clock() + HURRY_S
        self._give_up_s = min(self._give_up_s, self._clock() + STOP_S)

    def release(self) -> None:
        """Close the stream, and discard what is not complete."""
        self._phase = Phase.CLOSED
        self._output.clear()
        try:
            self._session.close()
        finally:
            self.stream.close()

    def _finish(self) -> None:
        if self._ended_by_client and not self._session.between_packages:
            self._fail("went away in the middle of a package; nothing of it was stored")
        else:
            self._log(Severity.INFO, "closed")
        self._give_up_s = min(self._give_up_s, self._clock() + LINGER_S)
        lingers = not self._ended_by_client and self.stream.half_close()
        self._phase = Phase.LINGERING if lingers else Phase.CLOSED

    def _look_at_clock(self) -> None:
        now_s = self._clock()
        if now_s >= self._give_up_s and not self.can_work:
            if self._awaits_disk:
                self._fail("its mail could not be stored in time; it will send that again")
            elif self._output:
                self._fail("did not take its responses")
            elif self._handshaking:
                self._fail(f"did not finish its TLS handshake in {HANDSHAKE_S:.0f} s")
            self._phase = Phase.CLOSED
        elif self._phase is Phase.LINGERING:
            return
        elif now_s >= self._session_end_s:
            self._end_session(now_s)
        elif now_s - self._progress_s >= self._timeout_s and not self.can_work:
            self._time_out()
        elif self._owes and now_s - self._rate_from_s >= RATE_S:
            self._check_rate(now_s - self._rate_from_s)

    def _end_session(self, now_s: float) -> None:
        if not self._winding_down:
            self._winding_down = True
            self._session_end_s = now_s + LAST_PACKAGE_S
            self._session.wind_down()
        elif self._session.ended or self._session.between_packages:
            self._session_end_s = _NEVER  # only responses are left, which have their own limits
        elif self._session.ready or self._awaits_disk:
            self._session_end_s = now_s + LAST_PACKAGE_S  # its package is not read meanwhile
        else:
            self._fail("did not end its last package after an hour; closing")
            self._phase = Phase.CLOSED

    def _check_rate(self, measured_s: float) -> None:
        """Drop a client that was slow for as long as it may be idle."""
        if self._rate_bytes >= MIN_RATE * measured_s:
            self._rate_from_s, self._rate_bytes = self._clock(), 0
        elif measured_s >= self._timeout_s and not self.can_work:
            self._fail(f"slower than {MIN_RATE:.0f} bytes a second; closing")
            self._phase = Phase.CLOSED

    def _time_out(self) -> None:
        if self._output:
            self._fail(f"took no response for {self._timeout_s:.0f} s; closing")
            self._phase = Phase.CLOSED
        elif not self._session.between_packages:
            self._fail(f"sent nothing for {self._timeout_s:.0f} s, amid a package; closing")
            self._phase = Phase.CLOSED
        else:
            self._log(Severity.INFO, f"idle for {self._timeout_s:.0f} s")
            self._phase = Phase.CLOSING

    def _fail(self, text: str) -> None:
        self.failed = True
        self._log(Severity.NOTICE, text)

    def _log(self, severity: Severity, text: str) -> None:
        self._write_log(severity, f"{self._session.peer}: {text}")
