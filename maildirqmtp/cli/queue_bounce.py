"""`qmtpq bounce`: tell the senders that their messages are not delivered, and remove these.

The order, each step durable before the next:

    lock, against another bounce or resend | hold the message | hand the bounce on |
    unlink the message, if it is still that file | fsync its directory | unlink its sidecar |
    release its name

A crash leaves the message on hold, with a reason that names this command, or the hold of a message
that is gone. If the message is bounced once more, the bounce has the same Message-ID and name. A
signal ends the command between two messages, which releases those that are left; a mailer that
hangs is ended.
"""

from __future__ import annotations

import sys
import time
from contextlib import ExitStack, closing, suppress
from dataclasses import replace
from itertools import groupby
from typing import TYPE_CHECKING

from maildirqmtp.cli.queue_changes import (
    change_holds,
    check,
    code_of,
    confirmed,
    lock_failed,
    stoppable,
    tell,
)
from maildirqmtp.daemon.listing import FAILED, WAITING
from maildirqmtp.daemon.status import served
from maildirqmtp.daemon.waking import wake
from maildirqmtp.errors import EnvelopeError, FileChangedError, LocalError, QMTPError
from maildirqmtp.exit_codes import EXIT_TEMPORARY
from maildirqmtp.forwarder.attempts import last_answer
from maildirqmtp.forwarder.bounces import Bouncer
from maildirqmtp.forwarder.queued_message import PassedOver, QueuedMessage, prepare
from maildirqmtp.forwarder.report import Report
from maildirqmtp.forwarder.route import BounceMethod
from maildirqmtp.mail.addresses import takes_no_bounce
from maildirqmtp.maildir import holds, locking, requeue
from maildirqmtp.maildir.maildir import Maildir
from maildirqmtp.qmtp.protocol import FAILED as REFUSED
from maildirqmtp.qmtp.protocol import Response
from maildirqmtp.text import printable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from maildirqmtp.cli.queue_selection import Chosen, Selected
    from maildirqmtp.daemon.listing import Entry
    from maildirqmtp.forwarder.route import Route
    from maildirqmtp.forwarder.stop import Stop
    from maildirqmtp.settings.flags_and_keys import Values

#: Messages that are put on hold together, while their bounces are handed on.
BATCH = 100
CANCELLED = "delivery was cancelled by an administrator"
_HELD = "; it stays on hold: qmtpq drop removes it, qmtpq release lets it be sent"
_NO_SERVER = Response(REFUSED, CANCELLED.encode())


def bounce(selected: Selected, given: Values, yes: bool, to_json: bool) -> int:
    """Bounce messages and remove them, after asking unless `yes`; `given` overrides route settings.

    Returns the exit code. Raises `LocalError` if told to stop between two maildirs.
    """
    chosen = [one for one in selected.chosen(single=True) if _has_sender(selected, one[2])]
    question = "tell the senders that {} will not be delivered, and remove {}?"
    if chosen and not yes and not confirmed([entry for _, _, entry in chosen], question):
        selected.fault("nothing was bounced")
        return EXIT_TEMPORARY
    with stoppable() as stop:
        for _, group in groupby(chosen, key=lambda one: one[1].path):
            same = list(group)
            check(stop)
            try:
                with ExitStack() as stack:
                    routes = selected.routes_of(same[0][0])
                    bounces = _Bounces(same[0], routes, given, stack, stop)
                    bounces.send_all(selected, same, to_json)
            except LocalError as error:
                selected.fault(str(error))
    return code_of(selected)


def _has_sender(selected: Selected, entry: Entry) -> bool:
    """Return whether a message has a sender who may be told; complain if not."""
    label = printable(entry.folder.join(entry.name))
    if entry.sender is None:
        selected.fault(f"{label}: nobody can be told: {entry.reason}")
        return False
    if takes_no_bounce(entry.sender):
        sender = printable(entry.sender)
        selected.fault(f"{label}: it came from <{sender}>, which is never told; drop removes it")
        return False
    return True


class _Bounces:
    """Bounces messages of one maildir, which it keeps locked until the stack is closed.

    `routes` are those of the maildir that a file gives, by prefix; what is to nobody of theirs
    goes as the place's route says.
    """

    def __init__(
        self,
        first: Chosen,
        routes: Mapping[bytes, Route],
        given: Values,
        stack: ExitStack,
        stop: Stop,
    ) -> None:
        self._stop = stop
        place, self._maildir, _ = first
        overridden = {**given, "max_bounces": sys.maxsize, "max_bytes": None}
        self._place = replace(place, route=place.route._replace(**overridden))
        self._routes = {prefix: one._replace(**overridden) for prefix, one in routes.items()}
        self._lock(stack)
        self._queue = self._open_queue(stack)
        told = [] if self._queue is None else [prefix for prefix, _ in served(self._queue)]
        self._check_prefixes(told)
        self._known = {*place.prefixes, *told}
        #: The longest first: a recipient belongs to the first that it begins with.
        self._prefixes = sorted({b"", *self._known}, key=len, reverse=True)
        self._bouncers: dict[bytes, Bouncer] = {}
        #: The names of messages whose senders know that they are not delivered.
        self._told: set[bytes] = set()

    def _lock(self, stack: ExitStack) -> None:
        if self._place.is_failed:
            lock_failed(self._maildir, self._stop)  # as `qmtpq resend` does
        else:
            stack.enter_context(closing(locking.acquire_for_bounces(self._maildir.root)))

    def _open_queue(self, stack: ExitStack) -> Maildir | None:
        """Return the queue for bounces that the route's server is to get; None if none is needed.

        Raises `LocalError` if one is needed and several queues share the failed maildir.
        """
        if not self._place.is_failed:
            return self._maildir
        queues = self._place.queues
        if len(queues) == 1:
            return stack.enter_context(Maildir(queues[0]))
        if self._any_by_server():
            raise LocalError(
                f"{printable(self._place.path)} is the failed maildir of several: "
                f"{', '.join(map(printable, queues))}; write --bounce-via sendmail or maildir:DIR"
            )
        return None

    def _any_by_server(self) -> bool:
        routes = self._routes.values() or [self._place.route]
        return any(one.bounce_via.method is BounceMethod.SERVER for one in routes)

    def _check_prefixes(self, told: Sequence[bytes]) -> None:
        """Raise `LocalError` if a bounce would go into a queue whose prefixes are unknown.

        Without its route's prefix the bounce would wait in that queue for ever.
        """
        if self._any_by_server() and not (self._place.prefixes or told):
            path = self._place.queues[0] if self._place.is_failed else self._place.path
            raise LocalError(
                f"no daemon serves {printable(path)}, and nothing else tells the prefix of its "
                f"recipients; write --config FILE, or --bounce-via sendmail or maildir:DIR"
            )

    def send_all(self, selected: Selected, same: Sequence[Chosen], to_json: bool) -> None:
        """Bounce the messages, `BATCH` at a time.

        Raises `LocalError` if told to stop, or if the state file cannot be read or written.
        """
        entries = [entry for _, _, entry in same]
        for first in range(0, len(entries), BATCH):
            batch = entries[first : first + BATCH]
            done: set[bytes] = set()
            if self._place.is_failed:
                self._send(selected, batch, to_json, done)
                continue
            check(self._stop)
            # Without the hold, a daemon could deliver a message while its sender is told otherwise.
            names = [entry.name for entry in batch]
            change_holds(self._maildir, hold=names, release=(), bouncing=True)
            try:
                self._send(selected, batch, to_json, done)
            finally:
                gone = [name for name in names if name in done]
                # Delivered now, they would arrive although their senders were told otherwise.
                told = [name for name in names if name in self._told - done]
                left = [e.name for e in batch if e.name not in self._told and not e.is_on_hold]
                for hold, release, bouncing in ((told, gone, False), ((), left, True)):
                    if hold or release:
                        change_holds(self._maildir, hold=hold, release=release, bouncing=bouncing)
                if set(left) - done:  # the daemon has passed them over meanwhile
                    with suppress(LocalError):  # it has ended: the next one tries all
                        wake(self._maildir)

    def _send(
        self, selected: Selected, batch: Sequence[Entry], to_json: bool, gone: set[bytes]
    ) -> None:
        """Bounce and remove these; add the names to `gone`. Raises `LocalError` if told to stop."""
        for entry in batch:
            check(self._stop)
            try:
                self._send_one(entry)
            except QMTPError as error:
                held = "" if entry.name not in self._told or self._place.is_failed else _HELD
                selected.fault(f"{printable(entry.folder.join(entry.name))}: {error}{held}")
            else:
                gone.add(entry.name)
                tell("bounced", self._place, entry, to_json)

    def _send_one(self, entry: Entry) -> None:
        """Bounce and remove one message. Raises `QMTPError` if it stays."""
        queued = prepare(self._maildir, self._place.route, entry.folder, entry.name)
        if isinstance(queued, PassedOver):
            raise FileChangedError("it is gone: it was sent, or removed by another")
        try:
            if queued.message.identity != entry.identity:
                raise FileChangedError("it has changed since it was looked at; look again")
            parts = self._parts(queued)
            for prefix, recipients in parts:
                if prefix not in self._known and self._goes_by_server(prefix):
                    raise EnvelopeError(
                        f"no route sends to {printable(recipients[0])}, so that the bounce would "
                        f"wait, too; write --bounce-via sendmail or maildir:DIR"
                    )
                if refusal := self._bouncer(prefix).refusal(_part(queued, prefix, recipients)):
                    raise FileChangedError(f"it is not bounced: {refusal}")
            for prefix, recipients in parts:
                texts = dict(enumerate(_texts(entry, queued, prefix, recipients)))
                self._bouncer(prefix).bounce(_part(queued, prefix, recipients), texts, "")
                self._told.add(entry.name)
        finally:
            queued.close()
        # Those who are told of are those in the sidecar as it was read here.
        seen = replace(entry.seen, sidecar=queued.sidecar_identity)
        why = requeue.drop(self._maildir, [seen])[0]
        if why is not None:
            raise FileChangedError(f"its sender was told, but {why}")

    def _parts(self, queued: QueuedMessage) -> list[tuple[bytes, list[bytes]]]:
        """Return the recipients, grouped by the prefix of their route."""
        found: dict[bytes, list[bytes]] = {}
        for recipient in queued.recipients:
            prefix = next(p for p in self._prefixes if recipient.startswith(p))
            found.setdefault(prefix, []).append(recipient)
        return list(found.items())

    def _route(self, prefix: bytes) -> Route:
        return self._routes.get(prefix, self._place.route)._replace(prefix=prefix)

    def _goes_by_server(self, prefix: bytes) -> bool:
        return self._route(prefix).bounce_via.method is BounceMethod.SERVER

    def _bouncer(self, prefix: bytes) -> Bouncer:
        bouncer = self._bouncers.get(prefix)
        if bouncer is None:
            route = self._route(prefix)
            report = Report(sys.stderr)
            bouncer = Bouncer(self._maildir, route, report, time.time, self._queue, self._stop)
            self._bouncers[prefix] = bouncer
        return bouncer


def _part(queued: QueuedMessage, prefix: bytes, recipients: Sequence[bytes]) -> QueuedMessage:
    """Return the message for these recipients, without the prefix that they begin with."""
    shown = tuple(recipient[len(prefix) :] for recipient in recipients)
    part = QueuedMessage(queued.message, queued.sender, shown, queued.kept, queued.offset)
    part.refusal = _NO_SERVER  # no server's host is named
    return part


def _texts(
    entry: Entry, queued: QueuedMessage, prefix: bytes, recipients: Sequence[bytes]
) -> list[str]:
    """Return the response that the bounce shows for each recipient: the last one, if it is known.

    Each begins with its letter: D for a refusal, Z for a deferral, also one that the lifetime
    ended. Without a response it is D and `CANCELLED`.
    """
    answered = {failure.recipient: failure.response for failure in entry.failures}
    refusal = "" if queued.refusal is None else str(queued.refusal)
    found = []
    for recipient in recipients:
        reason = "" if entry.state == FAILED else _reason(entry, recipient[len(prefix) :])
        said = f"Z{reason} ({CANCELLED})" if reason else f"D{CANCELLED}"
        found.append(answered.get(recipient) or refusal or said)
    return found


def _reason(entry: Entry, recipient: bytes) -> str:
    """Return why a message waits for a recipient, who is without the prefix; empty if unknown."""
    on_hold = entry.reason in (holds.REASON, holds.BOUNCING)
    one_of_several = entry.state == WAITING and len(entry.recipients) > 1
    if on_hold or (one_of_several and entry.attempts):
        return last_answer(entry.attempts, recipient)
    return entry.reason
