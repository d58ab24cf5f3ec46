"""Handing mail on to a command, as qmail-local and Postfix's pipe(8) do.

The text is on its standard input, lines with LF as they came; sender and
recipients are among its words, quoted as sendmail takes them. No shell is
involved. Its output is passed on to the client, with its exit code.

Standard input is a file with the whole text, as qmail-local's is. The end of a pipe would be
the end of the message for the command, also where the rest cannot be read, the time is up, or
the receiver is killed.

    | exit code                 | meaning                                          |
    | ------------------------- | ------------------------------------------------ |
    | 0                         | K: it has the message                            |
    | 64, 65, 67, 68, 77        | D: sysexits(3), usage, data, user, host, policy  |
    | 100                       | D: qmail-command(8)                              |
    | anything else, a signal,  | Z                                                |
    | more than ten minutes     |                                                  |
    | not begun in half an hour | Z; with many slow recipients before it           |
"""

from __future__ import annotations

import os
import tempfile
import threading
from typing import TYPE_CHECKING

from maildirqmtp.mail import addresses
from maildirqmtp.receiver.handoff import verdicts
from maildirqmtp.receiver.handoff.how import RECIPIENT, RECIPIENTS, SENDER
from maildirqmtp.receiver.handoff.outside_addresses import fault_of, outside_sender
from maildirqmtp.text import printable
from maildirqmtp.transport.orphans import is_reaper, reap
from maildirqmtp.transport.process import Process

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from maildirqmtp.qmtp.protocol import Response

#: Seconds that the command may take; what SMTP allows after the text (RFC 5321, 4.5.3.2.6).
TIMEOUT_S = 600.0
#: Exit codes of permanent failures: sysexits(3), qmail-command(8).
PERMANENT = frozenset({64, 65, 67, 68, 77, 100})
#: Most bytes of its output that are passed on.
_COMPLAINT_BYTES = 300


class Command:
    """Runs a command: once for each recipient, or once for all if it has `{recipients}`.

    `words` are the command; in them `{sender}` and `{recipient}` stand for
    addresses, and a word `{recipients}` for one word for each recipient.
    """

    def __init__(self, words: Sequence[str], timeout_s: float = TIMEOUT_S) -> None:
        self._words = words
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._running: set[Process] = set()
        self._aborted = False

    def deliver(
        self,
        sender: bytes,
        recipients: Sequence[bytes],
        pieces: Callable[[], Iterator[bytes]],
        may_begin: Callable[[], bool] = lambda: True,
    ) -> list[Response]:
        """Hand a text on to raw recipients; return an answer for each.

        `pieces` reads the text from its beginning, at each call. The command is not run for
        recipients that are left when `may_begin` returns false.
        """
        from_us = outside_sender(sender)
        if any(SENDER in word for word in self._words):
            fault = _argument_fault(from_us)
            if fault is not None:
                return [verdicts.failed(f"553 sender: {fault} (#5.1.7)")] * len(recipients)
        faults = {recipient: _argument_fault(recipient) for recipient in recipients}
        usable = [recipient for recipient in recipients if faults[recipient] is None]
        found: dict[bytes, Response] = {}
        if RECIPIENTS in self._words:
            groups = [usable] if usable else []
        else:
            groups = [[recipient] for recipient in dict.fromkeys(usable)]
        for group in groups:
            answer = self._run(from_us, group, pieces) if may_begin() else verdicts.NO_TIME
            found |= dict.fromkeys(group, answer)
        if is_reaper():
            reap()  # what earlier commands have left; of others, the next call
        return [
            found.get(recipient) or verdicts.failed(f"553 {faults[recipient]} (#5.1.3)")
            for recipient in recipients
        ]

    def _arguments(self, sender: bytes, recipients: Sequence[bytes]) -> list[bytes]:
        quoted = [addresses.quote(recipient) for recipient in recipients]
        words: list[bytes] = []
        for word in self._words:
            if word == RECIPIENTS:
                words += quoted
                continue
            parts = os.fsencode(word).split(RECIPIENT.encode())
            # In one pass: an address that was filled in may have `{sender}` in it.
            fill = addresses.quote(sender)
            words.append(quoted[0].join(part.replace(SENDER.encode(), fill) for part in parts))
        return words

    def _run(
        self, sender: bytes, recipients: Sequence[bytes], pieces: Callable[[], Iterator[bytes]]
    ) -> Response:
        if self._aborted:
            return verdicts.deferred("451 the receiver stops (#4.3.2)")
        name = printable(os.fsencode(self._words[0]).rpartition(b"/")[2])
        try:
            # Files, not pipes: a process that it left running would hold a pipe open for ever.
            with tempfile.TemporaryFile() as text, tempfile.TemporaryFile() as complaint:
                text.writelines(pieces())
                text.seek(0)
                process = Process(
                    self._arguments(sender, recipients),
                    stdin=text,
                    stdout=complaint,
                    stderr=complaint,
                )
                code = self._attend(process)
                said = os.pread(complaint.fileno(), _COMPLAINT_BYTES, 0)
        except OSError as error:
            return verdicts.deferred(f"451 {name}: {error.strerror} (#4.3.0)")
        return self._verdict(name, code, printable(said.replace(b"\n", b" ")).strip())

    def _attend(self, process: Process) -> int | None:
        """Wait for the command's exit code; return None if it takes too long."""
        with self._lock:
            self._running.add(process)
            aborted = self._aborted
        try:
            exited = process.exits(0.0 if aborted else self._timeout_s)
            return process.reap() if exited else None
        finally:
            with self._lock:
                self._running.discard(process)
            process.end(0.0)

    def _verdict(self, name: str, code: int | None, said: str) -> Response:
        if code == 0:
            return verdicts.accepted(f"ok, {name} has it{': ' + said if said else ''}")
        if code is None:
            return verdicts.deferred(f"451 {name} took more than {self._timeout_s:g} s (#4.3.0)")
        how = f"exit code {code}" if code > 0 else f"signal {-code}"
        text = f"{name}: {how}{': ' + said if said else ''}"
        if code in PERMANENT:
            return verdicts.failed(f"554 {text} (#5.0.0)")
        return verdicts.deferred(f"451 {text} (#4.3.0)")

    def abort(self) -> None:
        """Terminate the commands that run; their mail is answered with Z."""
        import signal

        with self._lock:
            self._aborted = True
            for process in self._running:
                process.signal(signal.SIGTERM)

    def close(self) -> None:
        """Do nothing: no command outlives its mail."""


def _argument_fault(address: bytes) -> str | None:
    """Return why an address cannot be an argument; None if it can."""
    if addresses.quote(address).startswith(b"-"):
        return "the address begins with a hyphen"
    return fault_of(address)
