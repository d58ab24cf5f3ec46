"""What `qmtpq` does to messages: drop, resend, hold, release, have a daemon try them at once."""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import ExitStack, closing, contextmanager, redirect_stdout, suppress
from itertools import groupby
from typing import TYPE_CHECKING

from maildirqmtp.cli import queue_output
from maildirqmtp.daemon.status import served
from maildirqmtp.daemon.waking import Woken, wake
from maildirqmtp.errors import FileChangedError, LocalError, LockedError, QMTPError
from maildirqmtp.exit_codes import EXIT_OK, EXIT_TEMPORARY
from maildirqmtp.forwarder.stop import Stop
from maildirqmtp.maildir import holds, locking, requeue, state
from maildirqmtp.maildir.holds import BOUNCING
from maildirqmtp.maildir.maildir import Maildir
from maildirqmtp.text import printable
from maildirqmtp.transport.signals import signal_handlers, stop_handler

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from maildirqmtp.cli.queue_selection import Chosen, Selected
    from maildirqmtp.daemon.listing import Entry, QueuePlace
    from maildirqmtp.mail.sidecar import Sidecar

#: The most messages that are listed before a question about them.
_LISTED = 20
#: Seconds after a signal that the work on the current message may take, such as a mailer's run.
_STOP_S = 20.0
#: Seconds for which a failed maildir that another process has locked is waited for.
_LOCK_S = 3.0


def code_of(selected: Selected) -> int:
    """Return the exit code of a command: 111 if something was not done."""
    return EXIT_OK if selected.complete else EXIT_TEMPORARY


# Told to stop


@contextmanager
def stoppable() -> Iterator[Stop]:
    """Let signals stop the command between two messages: no message is left half done.

    SIGHUP is one: it comes when a remote terminal is gone. A user who repeats one ends a mailer at
    once.
    """
    stop = Stop(time.monotonic, _STOP_S)
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    told = stop_handler(lambda: stop.tell(at_once=stop.is_told))
    with signal_handlers(numbers, told, keep_ignored=True):
        yield stop


def check(stop: Stop) -> None:
    """Raise `LocalError` if a signal has told the command to stop."""
    if stop.is_told:
        raise LocalError("told to stop; the messages that are left stay as they are")


def lock_failed(failed: Maildir, stop: Stop) -> None:
    """Lock a failed maildir: two resends at the same time would send a message twice.

    A forwarder with `--keep-failed` locks it for moments, which are waited for. Raises
    `LockedError` if another process has it for longer, and `LocalError` if it cannot be locked, or
    if told to stop.
    """
    until_s = time.monotonic() + _LOCK_S
    while True:
        check(stop)
        try:
            failed.lock()
        except LockedError:  # /proc/locks would not tell: that process may have let go since
            if time.monotonic() >= until_s:
                raise
            time.sleep(0.02)
        else:
            return


# Drop


def drop(selected: Selected, yes: bool, to_json: bool) -> int:
    """Remove messages for good, after asking unless `yes`; no sender is told.

    Returns the exit code. Raises `LocalError` if told to stop between two batches.
    """
    chosen = selected.chosen(single=True)
    question = "drop {} for good, telling nobody?"
    if chosen and not yes and not confirmed([entry for _, _, entry in chosen], question):
        selected.fault("nothing was dropped")
        return EXIT_TEMPORARY
    with stoppable() as stop:
        for _, group in groupby(chosen, key=lambda one: one[1].path):
            same = list(group)
            for first in range(0, len(same), requeue.BATCH):
                check(stop)
                _drop_batch(selected, same[first : first + requeue.BATCH], to_json)
    return code_of(selected)


def _drop_batch(selected: Selected, batch: Sequence[Chosen], to_json: bool) -> None:
    place, maildir, _ = batch[0]
    found = [entry for _, _, entry in batch]
    try:
        outcomes = requeue.drop(maildir, [entry.seen for entry in found])
    except LocalError as error:
        selected.fault(str(error))
        return
    on_hold = []
    for entry, why in zip(found, outcomes, strict=True):
        if why is not None:
            selected.fault(f"{printable(entry.folder.join(entry.name))}: {why}")
            continue
        tell("dropped", place, entry, to_json)
        if entry.is_on_hold:
            on_hold.append(entry.name)
    try:
        if on_hold:
            change_holds(maildir, hold=(), release=on_hold)
    except LocalError as error:
        selected.fault(str(error))


def confirmed(entries: Sequence[Entry], question: str) -> bool:
    """List messages, ask a question about them on standard error, and return whether it is yes.

    The first `{}` in the question stands for the messages, the second for their pronoun.
    """
    # The list belongs with the question; standard output may be a file.
    with redirect_stdout(sys.stderr):
        queue_output.put_table(entries[:_LISTED], time.time())
        if len(entries) > _LISTED:
            print(f"  and {len(entries) - _LISTED:,} more")
    count = (
        ("this message", "it")
        if len(entries) == 1
        else (f"these {len(entries):,} messages", "them")
    )
    print(f"{question.format(*count)} [y/N] ", end="", file=sys.stderr, flush=True)
    try:
        answer = "" if sys.stdin is None else sys.stdin.readline()
    except UnicodeDecodeError:
        answer = ""
    if not answer.endswith("\n"):
        print(file=sys.stderr)  # the end of the input leaves the question's line open
    return answer.strip().lower() in ("y", "yes")


# Resend


def resend(selected: Selected, recipients: tuple[bytes, ...], to_json: bool) -> int:
    """Put failed messages back into the queue, for their failed recipients or for `recipients`.

    Returns the exit code. Raises `LocalError` if told to stop between two maildirs.
    """
    chosen = selected.chosen(single=True)
    with stoppable() as stop:
        for _, group in groupby(chosen, key=lambda one: one[1].path):
            same = list(group)
            check(stop)
            try:
                _resend_from(selected, same, recipients, to_json, stop)
            except LocalError as error:
                selected.fault(str(error))
    return code_of(selected)


def _resend_from(
    selected: Selected,
    batch: Sequence[Chosen],
    recipients: tuple[bytes, ...],
    to_json: bool,
    stop: Stop,
) -> None:
    place, failed, _ = batch[0]
    if len(place.queues) != 1:
        queues = ", ".join(map(printable, place.queues))
        raise LocalError(
            f"{printable(place.path)} is the failed maildir of several: {queues}; write "
            f"qmtpq resend DIR --failed-maildir {printable(place.path)}, DIR being the one to use"
        )
    lock_failed(failed, stop)
    with Maildir(place.queues[0]) as queue:
        recipients = _with_prefix(place, queue, recipients)
        for _, _, entry in batch:
            check(stop)
            label = printable(entry.folder.join(entry.name))
            try:
                content = _new_sidecar(failed, entry, recipients)
                name = requeue.requeue(failed, queue, entry.seen, content)
            except LocalError:
                raise
            except QMTPError as error:  # about this message alone
                selected.fault(f"{label}: {error}")
            else:
                tell("resent", place, entry, to_json, os.fsdecode(name))


def _with_prefix(
    place: QueuePlace, queue: Maildir, recipients: tuple[bytes, ...]
) -> tuple[bytes, ...]:
    """Return the recipients as the queue has them, with the prefix of its route.

    Where nothing tells the prefixes, they stay as they are. Raises `LocalError` if one of them
    begins with no prefix, and there are several.
    """
    prefixes = sorted({*place.prefixes, *(prefix for prefix, _ in served(queue))})
    found = []
    for recipient in recipients:
        if prefixes and not recipient.startswith(tuple(prefixes)):
            # No route would ever send it.
            if len(prefixes) > 1:
                raise LocalError(
                    f"no route of {printable(queue.path)} sends to {printable(recipient)}; write "
                    f"it with one of the prefixes {', '.join(map(printable, prefixes))}"
                )
            recipient = prefixes[0] + recipient
        found.append(recipient)
    return tuple(found)


def _new_sidecar(failed: Maildir, entry: Entry, recipients: tuple[bytes, ...]) -> Sidecar | None:
    """Return the sidecar that a failed message gets in the queue; None if its trace lines count.

    Raises `FileChangedError` if its envelope is not known, and `SidecarError` if its sidecar
    cannot be used.
    """
    from maildirqmtp.mail.sidecar import Sidecar
    from maildirqmtp.maildir import sidecars

    before = sidecars.read(failed, entry.name)
    if entry.sender is None:
        raise FileChangedError(f"it cannot be sent: {entry.reason}")
    if before is None and not recipients:
        return None
    wanted = recipients or (before.recipients if before is not None else ())
    others = before.failures if before is not None else ()
    return Sidecar(entry.sender, wanted, tuple(f for f in others if f.recipient not in wanted))


# Hold and release


def hold(selected: Selected, to_json: bool) -> int:
    """Put messages on hold: no forwarder sends them until they are released."""
    return _set_held(selected, to_json, hold=True)


def release(selected: Selected, to_json: bool) -> int:
    """Release messages from hold, and have a running daemon try all that waits now."""
    return _set_held(selected, to_json, hold=False)


def _set_held(selected: Selected, to_json: bool, *, hold: bool) -> int:
    for _, group in groupby(selected.chosen(), key=lambda one: one[1].path):
        same = list(group)
        place, maildir, _ = same[0]
        entries = []
        for _, _, entry in same:
            if hold or entry.is_on_hold:
                entries.append(entry)
            elif selected.by_name:
                selected.fault(f"{printable(entry.folder.join(entry.name))} is not on hold")
        if not entries:
            continue
        names = [entry.name for entry in entries]
        try:
            if hold:
                change_holds(maildir, hold=names, release=())
            else:
                _release(maildir, entries)
        except LocalError as error:
            selected.fault(str(error))
            continue
        for entry in entries:
            tell("held" if hold else "released", place, entry, to_json)
    return code_of(selected)


def _release(maildir: Maildir, entries: Sequence[Entry]) -> None:
    """Release messages. Raises `LocalError` if one of them is being bounced just now."""
    with ExitStack() as stack:
        if any(entry.reason == BOUNCING for entry in entries):
            stack.enter_context(closing(locking.acquire_for_bounces(maildir.root)))
        change_holds(maildir, hold=(), release=[entry.name for entry in entries])
    wake(maildir)  # a daemon of another user's looks within `rescan`, and without one the next run


def change_holds(
    maildir: Maildir, hold: Sequence[bytes], release: Sequence[bytes], bouncing: bool = False
) -> None:
    """Hold and release messages by their names; durable when this returns.

    Before messages are held, those that are gone are released: only so many can be held. Raises
    `LocalError` if the state file cannot be read or written, or would hold too many.
    """
    root, name, max_bytes = maildir.root, state.NAME, state.MAX_BYTES
    if hold and (gone := _gone(maildir)):
        holds.change(root, name, max_bytes, hold=(), release=gone)
    holds.change(root, name, max_bytes, hold=hold, release=release, bouncing=bouncing)


def _gone(maildir: Maildir) -> list[bytes]:
    """Return the names on hold of which no message is in new/ or cur/.

    Raises `LocalError` if the state file or a directory cannot be read, or not be made durable.
    """
    gone = set(holds.Holds(maildir.root, state.NAME, state.MAX_BYTES).now())
    # new/ again after cur/: a message that moves between them must be seen in one of the two.
    for folder in (maildir.new, maildir.cur, maildir.new) if gone else ():
        gone.difference_update(map(holds.key, maildir.list_names(folder)))
    if gone:
        # A power cut may bring back what was removed, and it must be on hold then.
        maildir.new.sync()
        maildir.cur.sync()
    names = []
    for key in gone:
        with suppress(UnicodeEncodeError):  # no key that we have written
            names.append(key.encode("utf-8", "surrogateescape"))
    return names


# Retry


def retry(selected: Selected, to_json: bool) -> int:
    """Have the daemons of the maildirs try all that waits now; report names that are not found."""
    named: dict[bytes, list[Entry]] = {}
    if selected.by_name:
        for place, _, entry in selected.chosen():
            named.setdefault(place.path, []).append(entry)
    for place, maildir in selected.maildirs():
        if selected.by_name and place.path not in named:
            continue
        try:
            woken = wake(maildir)
        except LocalError as error:
            selected.fault(str(error))
            continue
        if woken is Woken.DONE:
            _tell_woken(selected, place, named.get(place.path, ()), to_json)
        else:
            selected.fault(_not_woken(woken, printable(place.path)))
    return code_of(selected)


def _not_woken(woken: Woken, path: str) -> str:
    if woken is Woken.NO_DAEMON:
        return f"no daemon forwards {path}; it is tried with the next run of maildirqmtp"
    return f"the daemon of {path} is another user's; run this as that user or root"


def _tell_woken(
    selected: Selected, place: QueuePlace, named: Sequence[Entry], to_json: bool
) -> None:
    if to_json:
        found: dict[str, object] = {"event": "woken", "maildir": os.fsdecode(place.path)}
        if named:
            found["messages"] = [os.fsdecode(entry.name) for entry in named]
        queue_output.put_json(found)
    else:
        print(f"the daemon of {printable(place.path)} tries all that waits")
    for entry in named:
        if entry.is_on_hold:
            selected.fault(f"{printable(entry.name)} is on hold, and not tried; release lets it go")


def tell(event: str, place: QueuePlace, entry: Entry, to_json: bool, new_name: str = "") -> None:
    """Print what was done to a message; `new_name` is its name in the queue after a resend."""
    if to_json:
        found = {"event": event, "maildir": os.fsdecode(place.path)}
        found["message"] = os.fsdecode(entry.name)
        if new_name:
            found["new_name"] = new_name
        queue_output.put_json(found)
    else:
        as_new = f" as {printable(os.fsencode(new_name))}" if new_name else ""
        print(f"{event} {printable(entry.folder.join(entry.name))}{as_new}")
