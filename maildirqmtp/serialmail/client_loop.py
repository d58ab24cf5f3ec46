"""maildirserial's loop: client after client, until no message is left.

    a client gets a message  after the maildir is locked and proved changeable
    a message is removed     after a K, if its name is still the same file
    a message is skipped     in this run, after any result for it
    the loop ends            with nothing left to give, or after three clients
                             in a row without a result

A kill at any moment loses only results that were not read yet; their messages are
still there.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from maildirqmtp.errors import EnvelopeError, FileChangedError, LocalError
from maildirqmtp.exit_codes import EXIT_OK, EXIT_TEMPORARY, EXIT_USAGE
from maildirqmtp.forwarder.queued_message import PassedOver, prepare, trace_of
from maildirqmtp.forwarder.settle import Settler
from maildirqmtp.forwarder.stop import Stop
from maildirqmtp.maildir import holds
from maildirqmtp.maildir.state import State
from maildirqmtp.qmtp.protocol import ACCEPTED
from maildirqmtp.serialmail.client import Client
from maildirqmtp.serialmail.feeder import Feeder
from maildirqmtp.serialmail.report import SerialmailReport, path_of
from maildirqmtp.serialmail.wire import WireError
from maildirqmtp.transport.wakeup import Wakeup

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from maildirqmtp.forwarder.queued_message import QueuedMessage
    from maildirqmtp.forwarder.route import Route
    from maildirqmtp.maildir.files import Folder, Identity
    from maildirqmtp.maildir.maildir import Candidates, Maildir
    from maildirqmtp.response import Response

#: Clients in a row without a result, after which there is no progress (serialmail, maildirserial).
MAX_WITHOUT_PROGRESS = 3
#: Seconds that a client has for the names it was given, after a signal to stop.
STOP_S = 30.0


class ClientLoop:
    """Gives the messages of a maildir, which is open and locked, to clients.

    A message that has failed is bounced if `route.bounce` is set, else it stays.
    `clock` is monotonic seconds, `wall_clock` seconds of the epoch.
    """

    def __init__(
        self,
        route: Route,
        maildir: Maildir,
        words: Sequence[bytes],
        report: SerialmailReport,
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
    ) -> None:
        self.wake = Wakeup()
        self._route = route
        self._maildir = maildir
        self._words = words
        self._report = report
        self._clock = clock
        self._told_to_stop = Stop(clock, STOP_S)
        self._state = State(maildir.root, clock, wall_clock)  # read for its holds only
        self._settler = Settler(maildir, route, report, clock, wall_clock, stop=self._told_to_stop)
        self._candidates: Candidates = deque()
        #: Names and files that are not given (again) in this run.
        self._seen: set[bytes] = set()
        self._kept: set[Identity] = set()
        self._proven = False

    def close(self) -> None:
        """Close its own descriptors."""
        self.wake.close()

    def stop(self) -> None:
        """Give no more names, wait for the client, and end the loop. For a signal handler."""
        self._told_to_stop.tell()

    def run(self) -> int:
        """Run the loop; return the exit code.

        Raises `LocalError` if the maildir cannot be read or changed, or a client not be started.
        """
        try:
            code = self._run()
        finally:
            self._settler.finish()
        return code or self._report.counters.exit_code

    def _run(self) -> int:
        without_result = 0
        while self._may_take:
            self._candidates = self._maildir.scan(include_cur=True)
            first = self._next()
            if first is None:
                if not self._may_take:
                    break
                return EXIT_OK
            self._prove()
            code, results = self._feed(first)
            if self._told_to_stop.is_told:
                break
            if code is None or code < 0:
                if code is not None:
                    self._report.fatal("client crashed")
                return EXIT_TEMPORARY
            if code == EXIT_USAGE:  # the client was called wrongly
                return code
            without_result = 0 if results else without_result + 1
            if without_result == MAX_WITHOUT_PROGRESS:
                self._report.fatal("making no progress, giving up")
                return EXIT_TEMPORARY
        if self._told_to_stop.is_told:
            self._report.fatal("told to stop")
        return EXIT_TEMPORARY

    # One client

    def _feed(self, first: QueuedMessage) -> tuple[int | None, int]:
        """Run a client; return its exit code, None if it was killed, and its number of results."""
        waiting = [first]

        def take() -> QueuedMessage | None:
            if self._settler.local_error is not None:
                return None
            return waiting.pop() if waiting else self._next()

        client = Client(self._words)
        feeder = Feeder(client, take, self._settle, self.wake, self._clock)
        try:
            while not feeder.is_over:
                if self._told_to_stop.is_told:
                    feeder.stop_giving()
                    if self._told_to_stop.is_due:
                        return None, feeder.results
                due = [
                    t for t in (self._settler.next_deadline, self._told_to_stop.at) if t is not None
                ]
                feeder.turn(min(due, default=None))
                self._settler.tick()
            return client.reap(), feeder.results
        except WireError as error:
            self._report.fatal(f"client wrote {error}")
            return None, feeder.results
        finally:
            feeder.close()
            client.dismiss()

    def _settle(self, queued: QueuedMessage, answer: Response) -> None:
        """Carry out a result on the files."""
        queued.answers[0] = answer
        queued.unanswered = 0
        if answer.status is not ACCEPTED and not self._route.bounce:
            self._keep(queued)
            failure = self._settler.failure(queued, answer)
            if failure is None:
                self._report.deferred(queued, 0, answer.text)
            else:
                self._report.refused(queued, failure[1:])
            return
        kept = self._settler.settle(queued)
        if kept is not None:
            self._keep(queued)
            if kept.at_next_scan:
                self._report.held(queued.message.name, kept.reason)
            trouble = self._settler.local_error
            if trouble is not None and answer.status is ACCEPTED and not kept.at_next_scan:
                self._report.twice(queued, trouble)

    def _keep(self, queued: QueuedMessage) -> None:
        """Leave the message, and skip it in this run, even if a mail reader renames it."""
        message = queued.message
        self._kept.add(message.identity)
        self._seen.add(path_of(message.folder, message.name))

    # Messages

    @property
    def _may_take(self) -> bool:
        return not self._told_to_stop.is_told and self._settler.local_error is None

    def _next(self) -> QueuedMessage | None:
        """Return the next message for a client, or None if there is none."""
        while self._candidates and self._may_take:  # settling a loop may take long, or fail
            folder, name = self._candidates.popleft()
            path = path_of(folder, name)
            if path not in self._seen:
                queued = self._prepare(folder, name)
                if queued is not None and queued.message.identity not in self._kept:
                    return queued
                self._seen.add(path)
        return None

    def _prepare(self, folder: Folder, name: bytes) -> QueuedMessage | None:
        try:
            queued = prepare(self._maildir, self._route, folder, name)
            if isinstance(queued, PassedOver):
                return None
            try:
                if (why := self._state.held(must_know=True).get(holds.key(name))) is not None:
                    raise EnvelopeError(why)
                _check(queued)
            finally:
                # The client opens the file itself; only its identity is needed here.
                queued.close()
                queued.release()
        except (EnvelopeError, FileChangedError, LocalError) as error:
            self._report.held(path_of(folder, name), str(error))
            return None
        if queued.refusal is not None:
            self._prove()
            self._settle(queued, queued.refusal)
            return None
        return queued

    def _prove(self) -> None:
        """Prove, once, that messages can be removed. Raises `LocalError` if they cannot."""
        if not self._proven:
            self._maildir.prove_changeable(include_cur=True)
            self._proven = True


def _check(queued: QueuedMessage) -> None:
    """Raise `EnvelopeError` unless a client will find the same envelope.

    A client knows no sidecars, and has one result for a message.
    """
    count = len(queued.recipients) + len(queued.others)
    if count > 1:
        raise EnvelopeError(f"it has {count} recipients, and a client has one result for it")
    sidecar = queued.sidecar
    if sidecar is None:
        return
    message = queued.message
    trace = trace_of(message)
    if (trace.sender, trace.recipients) != (sidecar.sender, sidecar.recipients):
        raise EnvelopeError("its sidecar is not what its lines say, and a client reads only those")
