"""Handing mail on to a command, as qmail-local and Postfix's pipe(8) do.

The text is on its standard input, lines with LF as they came; sender and
recipients are among its words, quoted as sendmail takes them. No shell is
involved. Its output is passed on to the client, with its exit code.

    | exit code                 | meaning                                          |
    | ------------------------- | ------------------------------------------------ |
    | 0                         | K: it has the message                            |
    | 64, 65, 67, 68, 77        | D: sysexits(3), usage, data, user, host, policy  |
    | 100                       | D: qmail-command(8)                              |
    | anything else, a signal,  | Z                                                |
    | more than ten minutes     |                                                  |
"""

from __future__ import annotations

import errno
import os
import select
import tempfile
import threading
import time
from typing import TYPE_CHECKING

from maildirqmtp.mail import addresses
from maildirqmtp.receiver.handoff import verdicts
from maildirqmtp.receiver.handoff.how import RECIPIENT, RECIPIENTS, SENDER
from maildirqmtp.receiver.handoff.outside_addresses import fault_of, outside_sender
from maildirqmtp.text import printable
from maildirqmtp.transport.process import PIPE, Process

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
        self, sender: bytes, recipients: Sequence[bytes], pieces: Callable[[], Iterator[bytes]]
    ) -> list[Response]:
        """Hand a text on to raw recipients; return an answer for each.

        `pieces` reads the text from its beginning, at each call.
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
            if usable:
                found = dict.fromkeys(usable, self._run(from_us, usable, pieces))
        else:
            for recipient in dict.fromkeys(usable):
                found[recipient] = self._run(from_us, [recipient], pieces)
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
        name = printable(os.fsencode(self._words[0]).rpartition(b"/")[2])
        try:
            # A file, not a pipe: a process that it left running would hold a pipe open for ever.
            with tempfile.TemporaryFile() as complaint:
                process = Process(
                    self._arguments(sender, recipients),
                    stdin=PIPE,
                    stdout=complaint,
                    stderr=complaint,
                )
                code = self._attend(process, pieces)
                said = os.pread(complaint.fileno(), _COMPLAINT_BYTES, 0)
        except OSError as error:
            return verdicts.deferred(f"451 {name}: {error.strerror} (#4.3.0)")
        return self._verdict(name, code, printable(said.replace(b"\n", b" ")).strip())

    def _attend(self, process: Process, pieces: Callable[[], Iterator[bytes]]) -> int | None:
        """Feed the command and wait for its exit code; return None if it takes too long."""
        with self._lock:
            self._running.add(process)
            aborted = self._aborted
        try:
            deadline_s = time.monotonic() + (0.0 if aborted else self._timeout_s)
            if not _feed(process, pieces, deadline_s):
                return None
            if not process.exits(max(0.0, deadline_s - time.monotonic())):
                return None
            return process.reap()
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


def _feed(process: Process, pieces: Callable[[], Iterator[bytes]], deadline_s: float) -> bool:
    """Write the text to the command; return False if it does not take it in time.

    A command may close its input early; its exit code says whether that is a failure.
    """
    with process.stdin as stdin:
        os.set_blocking(stdin.fileno(), False)
        room = select.poll()
        room.register(stdin, select.POLLOUT)
        for piece in pieces():
            view = memoryview(piece)
            while view:
                left_s = deadline_s - time.monotonic()
                if left_s <= 0 or not room.poll(left_s * 1000):
                    return False
                try:
                    view = view[os.write(stdin.fileno(), view) :]
                except BlockingIOError:
                    continue
                except OSError as error:
                    if error.errno == errno.EPIPE:
                        return True
                    raise
    return True
