"""One client of the receiver: its stream, its session, and what waits to be written.

    | phase     | reads              | leaves it when                                  |
    | --------- | ------------------ | ----------------------------------------------- |
    | OPEN      | packages           | the client closes; violation; time; stop        |
    | CLOSING   | nothing            | every response owed is written                  |
    | LINGERING | and throws it away | the client closes; 5 s                          |
    | CLOSED    | nothing            |                                                 |

LINGERING is there because a socket that is closed with bytes unread makes the
kernel send a reset, which may overtake responses; what they accepted would be
sent again.
"""

import selectors
from collections.abc import Callable
from enum import Enum, auto

from maildirqmtp.receiver.policy import Importance, Log
from maildirqmtp.receiver.session import Session
from maildirqmtp.receiver.streams import Stream

#: Bytes of responses that may wait for a client; beyond, nothing is read from it.
OUTPUT_MAX = 64 << 10
#: Seconds of a session after which it takes no new package (qmtp.txt, section 2).
SESSION_S = 3_600.0
#: Seconds that a client has to see our end before it is cut off.
LINGER_S = 5.0
#: Seconds that a client has to take its responses when the receiver stops.
STOP_S = 10.0

#: Seconds that a client has for its TLS handshake.
HANDSHAKE_S = 30.0

_READ = selectors.EVENT_READ
_WRITE = selectors.EVENT_WRITE
_NEVER = float("inf")


class Phase(Enum):
    """Where a connection is in its life."""

    OPEN = auto()
    CLOSING = auto()
    LINGERING = auto()
    CLOSED = auto()


class Connection:
    """A client. `handle` what is ready, then give it its `turn`; only the disk is waited for.

    `failed` is true once it ended with something lost: in the middle of a
    package, with responses unwritten, or by a violation of the protocol.
    """

    def __init__(
        self,
        stream: Stream,
        session: Session,
        timeout_s: float,
        clock: Callable[[], float],
        log: Log,
    ) -> None:
        self.stream = stream
        self.failed = False
        #: What the selector waits for on our behalf, by descriptor.
        self.registered: dict[int, int] = {}
        self._session = session
        self._timeout_s = timeout_s
        self._clock = clock
        self._write_log = log
        self._phase = Phase.OPEN
        self._output = bytearray()
        self._progress_s = clock()
        self._session_end_s = self._progress_s + SESSION_S
        self._handshaking = stream.handshaking
        self._give_up_s = self._progress_s + HANDSHAKE_S if self._handshaking else _NEVER
        self._ended_by_client = False
        self._stopping = False
        self._log(Importance.DETAIL, "connected")

    @property
    def closed(self) -> bool:
        """True once nothing more can happen; `release` it then."""
        return self._phase is Phase.CLOSED

    @property
    def can_work(self) -> bool:
        """True where packages wait to be delivered, and their responses have room."""
        return self._session.busy and len(self._output) <= OUTPUT_MAX

    @property
    def deadline_s(self) -> float:
        """The time at which it wants a turn although nothing is ready."""
        if self.can_work:
            return self._clock()
        if self._phase is Phase.LINGERING:
            return self._give_up_s
        idle_s = self._progress_s + self._timeout_s
        return min(idle_s, self._session_end_s, self._give_up_s)

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
                self._fail(f"connection broken: {error.strerror}")
            self._phase = Phase.CLOSED

    def _write(self) -> None:
        now_s = self._clock()
        written = self.stream.write(self._output)
        if written:
            del self._output[:written]
            self._progress_s = now_s

    def _read(self) -> None:
        data = self.stream.read()
        if self._handshaking and not self.stream.handshaking:
            self._handshaking = False
            self._give_up_s = _NEVER
        if data is None or (data and self._phase is Phase.LINGERING):
            return
        if data:
            self._session.feed(data)
            self._progress_s = self._clock()
        else:
            self._ended_by_client = True
            self._phase = Phase.CLOSED if self._phase is Phase.LINGERING else Phase.CLOSING

    def turn(self) -> None:
        """Look at the clock, deliver a batch, and close when all is done."""
        if not self.closed:
            self._look_at_clock()
        if self.closed:
            return
        if self.can_work:
            self._work()
        if self._session.ended and self._phase is Phase.OPEN:
            self._phase = Phase.CLOSING
        if self._phase is Phase.CLOSING and not self._session.busy and not self._output:
            self._finish()

    def _work(self) -> None:
        self._session.work()
        self._output += self._session.take_output()
        if self._session.violation is not None:
            self._fail(f"protocol violation: {self._session.violation}; closing")
        # The time that the disk took is not the client's.
        self._progress_s = self._clock()
        if self._stopping:
            self._give_up_s = self._progress_s + STOP_S

    def stop(self) -> None:
        """Read no more; answer what is complete, and close."""
        if self._phase is Phase.OPEN:
            self._phase = Phase.CLOSING
        self._stopping = True
        self._give_up_s = min(self._give_up_s, self._clock() + STOP_S)

    def release(self) -> None:
        """Give the descriptors back, and throw away what is not complete."""
        self._phase = Phase.CLOSED
        self._output.clear()
        self._session.close()
        self.stream.close()

    def _finish(self) -> None:
        if self._ended_by_client and not self._session.between_packages:
            self._fail("went away in the middle of a package; nothing of it was stored")
        else:
            self._log(Importance.DETAIL, "closed")
        self._give_up_s = min(self._give_up_s, self._clock() + LINGER_S)
        lingers = not self._ended_by_client and self.stream.half_close()
        self._phase = Phase.LINGERING if lingers else Phase.CLOSED

    def _look_at_clock(self) -> None:
        now_s = self._clock()
        if now_s >= self._give_up_s and not self.can_work:
            if self._output:
                self._fail("did not take its responses")
            elif self._handshaking:
                self._fail(f"did not finish its TLS handshake in {HANDSHAKE_S:.0f} s")
            self._phase = Phase.CLOSED
        elif self._phase is Phase.LINGERING:
            return
        elif now_s >= self._session_end_s:
            self._session_end_s = _NEVER
            self._session.wind_down()
        elif now_s - self._progress_s >= self._timeout_s and not self.can_work:
            self._time_out()

    def _time_out(self) -> None:
        if self._output:
            self._fail(f"took no response for {self._timeout_s:.0f} s; closing")
            self._phase = Phase.CLOSED
        elif not self._session.between_packages:
            self._fail(f"sent nothing for {self._timeout_s:.0f} s, amid a package; closing")
            self._phase = Phase.CLOSED
        else:
            self._log(Importance.DETAIL, f"idle for {self._timeout_s:.0f} s")
            self._phase = Phase.CLOSING

    def _fail(self, text: str) -> None:
        self.failed = True
        self._log(Importance.NOTICE, text)

    def _log(self, importance: Importance, text: str) -> None:
        self._write_log(importance, f"{self._session.peer}: {text}")
