"""Carries outcomes out on the files, in an order that makes a crash harmless.

    | all accepted     | [link into sent/] unlink | fsync new/, one per batch | unlink sidecar |
    | some deferred    | new sidecar, durable, without those that are done                     |
    | some failed      | their sidecar in the failed maildir, durable | message linked there,  |
    |                  | fsync | then as if these recipients were done                         |

The sidecar goes last: the other way round, a power cut would leave a message
whose header lines would be trusted instead of its sidecar.
"""

from __future__ import annotations

from time import gmtime, strftime
from typing import TYPE_CHECKING

from maildirqmtp.errors import FileChangedError, LocalError
from maildirqmtp.forwarder import removed
from maildirqmtp.forwarder.attempts import AttemptNotes
from maildirqmtp.forwarder.kept import Kept
from maildirqmtp.forwarder.lifetime import final_failure
from maildirqmtp.forwarder.owed import OwedRecipients, not_accepted
from maildirqmtp.forwarder.queued_message import QueuedMessage
from maildirqmtp.forwarder.removals import Removals
from maildirqmtp.forwarder.report import Report
from maildirqmtp.forwarder.route import Route
from maildirqmtp.forwarder.settled_bounces import SettledBounces
from maildirqmtp.forwarder.small_removals import SmallRemovals
from maildirqmtp.forwarder.stuck import Stuck
from maildirqmtp.forwarder.targets import TargetMaildirs
from maildirqmtp.maildir.files import Message
from maildirqmtp.maildir.maildir import CHANGED, DONE, GONE, Maildir
from maildirqmtp.qmtp.protocol import ACCEPTED, DEFERRED, Response

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from maildirqmtp.forwarder.stop import Stop
    from maildirqmtp.maildir.state import State

_NO_BOUNCE = Response(DEFERRED, b"no bounce yet")
#: Seconds after which small messages that a second process removes are looked for.
RESULTS_S = 0.1


class Settler:
    """Settles the messages of one route. Errors on the files end up in `local_error`.

    While there is one, no message may be taken from this maildir: what is
    accepted could not be removed, and would be sent again. `wall_clock` is
    seconds of the epoch, `clock` monotonic seconds. `state` knows when a message
    was first deferred; with None, its age alone decides, as in serialmail. `wake` is called, by
    another thread, when `tick` has something to do. `stop` ends a mailer.
    """

    def __init__(
        self,
        maildir: Maildir,
        route: Route,
        report: Report,
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
        state: State | None = None,
        wake: Callable[[], None] = lambda: None,
        stop: Stop | None = None,
    ) -> None:
        self.local_error: LocalError | None = None
        #: Called before each of many steps that a slow disk may make last.
        self.lives: Callable[[], None] = lambda: None
        #: The host of the server that answers.
        self.host = route.server.host
        self._maildir = maildir
        self._route = route
        self._report = report
        self._clock = clock
        self._wall_clock = wall_clock
        self._state = state
        self.attempts = AttemptNotes(state)
        self.bounces = SettledBounces(
            maildir, route, report, wall_clock, self.attempts, state, stop
        )
        #: Who is still owed a message, as its sidecar says.
        self.owed = OwedRecipients(maildir, route, clock)
        self._removals = Removals(maildir, clock, wake)
        #: Removes small messages that were accepted.
        self.small = SmallRemovals(maildir, report, self._removals, state, self._sync_if_due)
        self._targets = TargetMaildirs(maildir, route, report, self._removals, clock)
        self._stuck: list[Stuck] = []
        self._mended: list[bytes] = []

    def prove_sent(self) -> None:
        """Prove, before any is sent, that accepted messages can be moved to `sent`, if it is given.

        Each run would send those again that cannot. Raises `LocalError` if they cannot be moved.
        """
        if self._route.sent is not None:
            self._targets.prove(self._route.sent)

    def prove_room(self, message: Message) -> None:
        """Prove, before a message is sent, that `sent` has room for it, and for all in flight.

        Raises `LocalError` if it has not.
        """
        if self._route.sent is not None:
            self._targets.prove_room(self._route.sent, message, self._route.window_bytes)

    def settle(self, queued: QueuedMessage) -> Kept | None:
        """Carry out the answers to a message; recipients without one are still owed it.

        Return why the message is kept, None if it is gone.
        """
        kept: Kept | None = None
        try:
            try:
                if queued.others or not queued.is_accepted:
                    kept = self._settle_mixed(queued)
                else:
                    self._report.accepted(queued)
                    self._remove(queued, self._route.sent)
            except FileChangedError as error:
                kept = self._hold_changed(queued, error)
        except LocalError as error:
            self.stop_taking(error)
            kept = Kept(str(error), stuck=self._is_stuck(queued))
        return kept

    def stop_taking(self, error: LocalError) -> None:
        """Have no more messages taken from the maildir, because of this error."""
        if self.local_error is None:
            self._report.problem(f"{error}; nothing more is taken from this maildir")
        self.local_error = error

    # Done with

    def _remove(self, queued: QueuedMessage, keep_in: bytes | None = None) -> None:
        """Remove a message that no recipient is owed, or move it to the maildir `keep_in`."""
        message = queued.message
        try:
            self.owed.check(queued)
            if keep_in is not None:
                if self._is_gone(message):
                    removed.report_gone(self._report, queued, keep_in)
                else:
                    self._removals.sync_first(self._targets.keep(keep_in, message))
            removal = self._maildir.remove(message)
            if removal is GONE and not self._is_gone(message):
                removal = self._maildir.remove(message)
        except LocalError:
            self._stuck.append(Stuck(queued, keep_in))
            raise
        if removal is CHANGED:
            raise FileChangedError("it changed while it was being sent")
        self._removals.add(message.folder)
        # A message that was moved elsewhere may need its sidecar; if not, that is cleaned up.
        if queued.sidecar is not None and removal is DONE:
            self._removals.add_sidecar(message.name, queued.sidecar_identity)
        if self._state is not None:
            self._state.forget([message.name])
        self._sync_if_due()

    def _is_gone(self, message: Message) -> bool:
        return removed.is_gone(self._maildir, message, self._route.include_cur)

    def _give_up_gone(self, queued: QueuedMessage) -> None:
        removed.report_gone(self._report, queued)
        if self._state is not None:
            self._state.forget([queued.message.name])

    def _hold_changed(self, queued: QueuedMessage, error: FileChangedError) -> Kept | None:
        """Keep a message that is not as it was sent; return None if it is gone."""
        if self._is_gone(queued.message):
            self._give_up_gone(queued)
            return None
        return Kept(f"{error}; kept, to be sent as it is now", at_next_scan=True)

    def tick(self) -> None:
        """Make removals durable that are a second old; write the state file, if that is due."""
        self._targets.look_again()
        self._sync_if_due()
        if self._state is not None:
            self._state.save_if_due()
            self._note_fault(self._state)

    def _note_fault(self, state: State) -> None:
        fault = state.take_fault()
        if fault is not None:
            self._report.note(fault)

    @property
    def next_deadline(self) -> float | None:
        """The clock's time at which `tick`, or `small.take`, will have something to do."""
        if self.small.waiting:
            return self._clock() + RESULTS_S
        due = self._removals.next_deadline
        if due is None and self._state is not None:
            return self._state.next_deadline
        return due

    def _sync_if_due(self) -> None:
        try:
            self._removals.tick()
        except LocalError as error:
            self.stop_taking(error)

    def _sync(self) -> None:
        try:
            self._removals.finish()
        except LocalError as error:
            self.stop_taking(error)

    # Everything else

    def _settle_mixed(self, queued: QueuedMessage) -> Kept | None:
        if self._was_removed(queued):
            return None
        failures, owed, reason = self._outcomes(queued)
        if len(owed) == len(queued.recipients):
            return Kept(reason)  # nothing to be done to the files
        refusal = self.bounces.refusal(queued) if failures else ""
        if failures and refusal == "":
            refusal, is_put_off = self._bounce(queued, failures)
            if is_put_off:
                reason = reason or next(iter(failures.values()))[1:] or "refused"
                owed = sorted([*owed, *failures])
        if failures and refusal != "":
            try:
                self._fail(queued, failures, f" (no bounce: {refusal})" if refusal else "")
            except LocalError:
                # Accepted recipients must not get it again with every run that fails like this.
                owed = sorted([*owed, *failures])
                if len(owed) < len(queued.recipients):
                    self._write_owed(queued, owed)
                raise
        if owed or queued.others:
            if len(owed) < len(queued.recipients):
                self._write_owed(queued, owed)
            return Kept(reason)
        self._remove(queued, self._route.sent if self._was_accepted(queued) else None)
        return None

    def _bounce(self, queued: QueuedMessage, failures: dict[int, str]) -> tuple[str, bool]:
        """Send a bounce. Return why there will be none, else "", and whether it is tried again.

        A mailer that has refused it for a day will never take it; that of a message that is not
        too old is tried on.
        """
        try:
            self.bounces.bounce(queued, failures, self.host)
        except LocalError as error:
            refused = self.bounces.was_refused_for_a_day(queued, error)
            if refused and self.failure(queued, _NO_BOUNCE) is not None:
                return str(error), False
            self.bounces.put_off(queued, failures, error)
            return "", True
        return "", False

    def _was_accepted(self, queued: QueuedMessage) -> bool:
        """Return whether a recipient has got this message, now or before."""
        now = len(not_accepted(queued)) < len(queued.recipients)
        return now or (self._state is not None and self._state.was_accepted(queued.message.name))

    def _was_removed(self, queued: QueuedMessage) -> bool:
        """Return whether a message is gone, and report it if so."""
        try:
            is_gone = self._is_gone(queued.message)
        except LocalError:
            owed = not_accepted(queued)
            if len(owed) < len(queued.recipients):
                self._stuck.append(Stuck(queued, owed=self.owed.named(queued, owed)))
            raise
        if is_gone:
            removed.report_accepted(self._report, queued)
            self._give_up_gone(queued)
        return is_gone

    def _outcomes(self, queued: QueuedMessage) -> tuple[dict[int, str], list[int], str]:
        """Return the failures by recipient, the recipients still owed it, and why the first is.

        Report the recipients that were accepted, and those that were deferred.
        """
        failures: dict[int, str] = {}
        owed: list[int] = []
        reason = ""
        deferral: tuple[str, int] | None = None
        for index, answer in enumerate(queued.answers):
            if answer is None:
                owed.append(index)
                reason = reason or "not answered"
            elif answer.status is ACCEPTED:
                self._report.one_accepted(queued, index, answer.text)
            elif (failure := self.failure(queued, answer)) is not None:
                failures[index] = failure
            else:
                text = answer.text
                owed.append(index)
                reason = reason or text or "deferred"
                deferral = deferral or (text, index)
                self._report.deferred(queued, index, text)
        if deferral:
            self.attempts.note(queued, *deferral)
        return failures, owed, reason

    def failure(self, queued: QueuedMessage, answer: Response) -> str | None:
        """Return why a recipient is given up on; see `final_failure`."""
        message, now_s = queued.message, self._wall_clock()
        age_s = now_s - message.mtime_s
        lifetime_s = self._route.lifetime_s
        return final_failure(answer, message.name, age_s, lifetime_s, now_s, self._state)

    def _fail(self, queued: QueuedMessage, failures: dict[int, str], remark: str) -> None:
        """Put the message into the failed maildir, for these recipients."""
        from maildirqmtp.mail.sidecar import Failure

        at = strftime("%Y-%m-%dT%H:%M:%SZ", gmtime(self._wall_clock()))
        originals = {self.owed.original(queued, i): text for i, text in failures.items()}
        listed = [Failure(r, text, at) for r, text in originals.items()]
        where = self._targets.fail(queued.message, queued.sender, listed)
        for index, text in failures.items():
            self._report.failed(queued, index, text[1:] + remark, where)

    def _write_owed(self, queued: QueuedMessage, owed: list[int]) -> None:
        """Write the sidecar without the recipients that are done."""
        if self._route.sent and self._state is not None and self._was_accepted(queued):
            self._state.note_accepted(queued.message.name)
        self._rewrite(queued, self.owed.named(queued, owed))

    def _rewrite(self, queued: QueuedMessage, recipients: tuple[bytes, ...]) -> None:
        try:
            self.owed.write(queued, recipients)
        except LocalError:
            self._stuck.append(Stuck(queued, owed=recipients))
            raise

    # The end

    def mend(self) -> bool:
        """After a `local_error`, do what is stuck after all; return whether all is well."""
        before = self.local_error
        still_stuck = self._settle_stuck()
        self._sync()
        if self.local_error is before:
            self.local_error = still_stuck[0][1] if still_stuck else None
        return self.local_error is None

    def _settle_stuck(self) -> list[tuple[Stuck, LocalError]]:
        """Try again to note on the files what the server has taken; return what still cannot be."""
        stuck, self._stuck = self._stuck, []
        failed: list[tuple[Stuck, LocalError]] = []
        for one in stuck:
            self.lives()
            try:
                try:
                    if one.owed:
                        self._rewrite(one.queued, one.owed)
                    else:
                        self._remove(one.queued, one.keep_in)
                except FileChangedError as error:
                    kept = self._hold_changed(one.queued, error)
                    if kept is not None:
                        self._report.held(one.queued.message.name, kept.reason)
            except LocalError as error:
                failed.append((one, error))
            if not self._is_stuck(one.queued):
                self._mended.append(one.queued.message.name)
        return failed

    def _is_stuck(self, queued: QueuedMessage) -> bool:
        """Return whether the message that was seen to last is stuck."""
        return bool(self._stuck) and self._stuck[-1].queued is queued

    def take_mended(self) -> list[bytes]:
        """Return the messages that have been stuck and, since the last call, are no more."""
        mended, self._mended = self._mended, []
        return mended

    def take_over(self, stuck: Sequence[Stuck]) -> None:
        """Deal with what `finish` of an earlier settler of this maildir has returned.

        What was to be kept goes to this route's `sent`: an administrator may have set another one
        because there is no room in that of before.
        """
        for one in stuck:
            one.move_to(self._maildir)
            keep_in = one.keep_in and (self._route.sent or one.keep_in)
            self._stuck.append(one._replace(keep_in=keep_in))
        for _, error in self._settle_stuck():
            self.stop_taking(error)

    def finish(self) -> list[Stuck]:
        """Make everything durable; return the messages whose files still cannot be changed."""
        for one, error in self._settle_stuck():
            self._report.problem(one.left_undone(error))
        self._sync()
        self._targets.close()
        if self._state is not None:
            self._state.save()
            self._note_fault(self._state)
        stuck, self._stuck = self._stuck, []
        return stuck
