"""What tests of the receiver share: its log, its clock, and a thread to serve in."""

from __future__ import annotations

import contextlib
import queue
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from maildirqmtp.qmtp.protocol import Response, Status
from maildirqmtp.receiver.handoff.verdicts import NO_TIME
from maildirqmtp.receiver.policy import Severity
from maildirqmtp.receiver.server import Server
from maildirqmtp.transport.thread_pool import Job
from tests.helpers import DEADLINE_S

T = TypeVar("T")


class Log:
    """Takes the server's log lines, and lets a test wait for one."""

    def __init__(self) -> None:
        self.lines: queue.Queue[str] = queue.Queue()
        self.severities: dict[str, Severity] = {}

    def __call__(self, severity: Severity, text: str) -> None:
        self.severities[text] = severity
        self.lines.put(text)

    def wait_for(self, pattern: str) -> str:
        """Return the next line that matches; the lines before it are forgotten."""
        while not re.search(pattern, line := self.lines.get(timeout=DEADLINE_S)):
            pass
        return line

    def has(self, pattern: str) -> bool:
        """Say whether such a line has come since one was last looked for."""
        with contextlib.suppress(queue.Empty):
            while True:
                if re.search(pattern, self.lines.get_nowait()):
                    return True
        return False


class Clock:
    """Time that passes when the test says so."""

    def __init__(self) -> None:
        self.now_s = 1_000.0

    def __call__(self) -> float:
        return self.now_s


class Hop:
    """A next hop that takes what it may begin; each recipient takes `seconds` of the clock."""

    def __init__(self, clock: Clock | None = None, seconds: float = 0.0) -> None:
        self.taken: list[bytes] = []
        self.seconds = seconds
        self._clock = clock or Clock()

    def deliver(
        self,
        sender: bytes,
        recipients: Sequence[bytes],
        pieces: Callable[[], Iterator[bytes]],
        may_begin: Callable[[], bool],
    ) -> list[Response]:
        """See `NextHop`."""
        return [self._one(recipient) if may_begin() else NO_TIME for recipient in recipients]

    def _one(self, recipient: bytes) -> Response:
        self._clock.now_s += self.seconds
        self.taken.append(recipient)
        return Response(Status.ACCEPTED, b"ok")

    def abort(self) -> None:
        """See `NextHop`."""

    def close(self) -> None:
        """See `NextHop`."""


class HeldWork:
    """Workers that do the work when the test says so, in any order."""

    def __init__(self) -> None:
        self.jobs: list[Job[Any]] = []

    def submit(self, work: Callable[[], T]) -> Job[T]:
        """Hold it back."""
        job = Job(work)
        self.jobs.append(job)
        return job

    def cancel(self, job: Job[Any]) -> bool:
        """Forget it; False where it was begun."""
        if job not in self.jobs:
            return False
        self.jobs.remove(job)
        return True

    def do(self, number: int = 0) -> None:
        """Do one of what waits."""
        self.jobs.pop(number).run()


@contextlib.contextmanager
def serving_thread(server: Server) -> Iterator[None]:
    """Run the server in a thread, as --demo does; it has to end when told to."""
    thread = threading.Thread(target=server.serve)
    thread.start()
    try:
        yield
    finally:
        server.stop()
        thread.join(DEADLINE_S)
        assert not thread.is_alive()
