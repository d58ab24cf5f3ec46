"""Hands a bounce on: to sendmail, into a maildir, or back into the queue for the server.

When `send` returns, the bounce has been taken for good; when it raises `LocalError`,
the failed message is kept, and the bounce is made again.
"""

from __future__ import annotations

import os
import re
import time
from typing import TYPE_CHECKING, ClassVar, Protocol

from maildirqmtp.errors import LocalError
from maildirqmtp.mail import addresses
from maildirqmtp.maildir import sidecars, writing
from maildirqmtp.maildir.files import local_error
from maildirqmtp.maildir.maildir import Maildir
from maildirqmtp.qmtp.protocol import check_address
from maildirqmtp.text import printable

if TYPE_CHECKING:
    from collections.abc import Callable

    from maildirqmtp.transport.process import Process

#: Seconds a sendmail command may take.
SENDMAIL_TIMEOUT_S = 300.0
#: Seconds for which a command that took too long is not run again, so that forwarding goes on.
SENDMAIL_REST_S = 3_600.0
#: Seconds between two looks at how long a command may take: a stop shortens that.
_LOOK_S = 0.25
#: Bytes of a command's complaint that are shown.
_COMPLAINT_BYTES = 300
# sendmail reads its argument as a list of addresses, files and commands: a sender that is not
# clearly one address, quoted or not, would send the bounce wherever the sender's author liked. What
# has nothing before its @, or behind it, no sendmail takes.
_ONE_ADDRESS = re.compile(
    rb"""\"[A-Za-z0-9!#$%&'*+/=?^_`{}~. \x80-\xff-]+\"@[A-Za-z0-9.\x80-\xff-]+|"""
    rb"""[^|/@\x00-\x20\x7f,:;()<>"\\\[\]][^\x00-\x20\x7f,:;()<>"\\\[\]]*"""
    rb"""(\[[0-9A-Za-z.:]+\]|(?<!@))"""
)


class MailerTimeout(LocalError):
    """A mailer was ended before it had exited by itself; it may have sent the message."""


class MailerNotAsked(LocalError):
    """A mailer was not run, or not for long: it has not refused anything."""


class MailerStopped(MailerTimeout, MailerNotAsked):
    """A mailer was ended because this process is to stop."""


class Mailer(Protocol):
    """A way to send bounces."""

    def can_reach(self, recipient: bytes) -> bool:
        """Return whether bounces to this address can go this way at all."""
        ...

    def send(self, bounce: bytes, recipient: bytes, identifier: str) -> bytes | None:
        """Hand on a bounce for `recipient`, from the null sender.

        Return its name if it is a message of the forwarded maildir now, else None. Raises
        `LocalError` if it could not be handed on.
        """
        ...


class SendmailMailer:
    """Runs `COMMAND -i -f '' -- RECIPIENT` with the bounce on standard input.

    It may take `timeout_s` seconds; a command that took longer is not run again for an hour of
    `clock`, monotonic seconds, whether for a bounce or a warning, by this route or another.
    `limit_s` returns the most seconds that the command may take at present: fewer once the process
    is told to stop. After a command was ended because of that, this object runs none any more.
    """

    _rests_until: ClassVar[dict[tuple[bytes, ...], float]] = {}

    def __init__(
        self,
        command: tuple[bytes, ...],
        timeout_s: float = SENDMAIL_TIMEOUT_S,
        clock: Callable[[], float] = time.monotonic,
        limit_s: Callable[[], float] = lambda: float("inf"),
    ) -> None:
        self._command = command
        self._timeout_s = timeout_s
        self._limit_s = limit_s
        self._was_ended = False
        self._clock = clock

    def can_reach(self, recipient: bytes) -> bool:
        """See `Mailer`."""
        return _ONE_ADDRESS.fullmatch(addresses.quote(recipient)) is not None

    def send(self, bounce: bytes, recipient: bytes, identifier: str) -> bytes | None:
        """See `Mailer`."""
        name = printable(self._command[0])
        if self._clock() < self._rests_until.get(self._command, 0.0):
            raise MailerNotAsked(f"{name} took more than {self._timeout_s:g} s before")
        if self._was_ended or self._limit_s() <= 0:
            raise MailerNotAsked(f"{name} is not run, for this was told to stop")
        code, complaint = self._run(bounce, recipient)
        if code is None and self._limit_s() < self._timeout_s:
            self._was_ended = True
            raise MailerStopped(f"{name} was ended, for this was told to stop")
        if code is None:
            self._rests_until[self._command] = self._clock() + SENDMAIL_REST_S
            raise MailerTimeout(f"{name} took more than {self._timeout_s:g} s")
        if code != 0:
            said = printable(complaint.replace(b"\n", b" ")).strip()
            raise LocalError(f"{name} did not take a bounce: exit {code} {said}".rstrip())
        return None

    def _run(self, bounce: bytes, recipient: bytes) -> tuple[int | None, bytes]:
        """Run the command; return its exit code, None if it was ended, and its complaint, cut."""
        import tempfile

        from maildirqmtp.transport.process import DEVNULL, Process

        try:
            # Files, not pipes: a process that it leaves running would hold a pipe open for ever.
            with tempfile.TemporaryFile() as text, tempfile.TemporaryFile() as complaint:
                text.write(bounce)
                text.seek(0)
                process = Process(
                    [*self._command, b"-i", b"-f", b"", b"--", addresses.quote(recipient)],
                    stdin=text,
                    stdout=DEVNULL,
                    stderr=complaint,
                )
                try:
                    code = process.reap() if self._exits(process) else None
                finally:
                    process.end(0.0)
                return code, os.pread(complaint.fileno(), _COMPLAINT_BYTES, 0)
        except OSError as error:
            raise local_error("run, to send a bounce,", self._command[0], error) from error

    def _exits(self, process: Process) -> bool:
        """Wait for the exit of a process as long as that may take; return whether it came."""
        began = time.monotonic()
        while (left_s := began + min(self._timeout_s, self._limit_s()) - time.monotonic()) > 0:
            if process.exits(min(left_s, _LOOK_S)):
                return True
        return process.exits(0.0)


class MaildirMailer:
    """Delivers bounces into a maildir, with Return-Path and Delivered-To on top."""

    def __init__(self, path: bytes) -> None:
        self._path = path

    def can_reach(self, recipient: bytes) -> bool:
        """See `Mailer`."""
        return True

    def send(self, bounce: bytes, recipient: bytes, identifier: str) -> bytes | None:
        """See `Mailer`. The same bounce again replaces the first."""
        writing.create(self._path)
        top = b"Return-Path: <>\nDelivered-To: %b\n" % addresses.quote(recipient)
        with Maildir(self._path) as maildir:
            writing.deliver_as(maildir, _name(identifier), [top, bounce])
        return None


class QueueMailer:
    """Puts bounces into the maildir that is being forwarded: the server gets them."""

    def __init__(self, maildir: Maildir, prefix: bytes) -> None:
        self._maildir = maildir
        self._prefix = prefix

    def can_reach(self, recipient: bytes) -> bool:
        """See `Mailer`."""
        return check_address(self._prefix + recipient, "recipient") is None

    def send(self, bounce: bytes, recipient: bytes, identifier: str) -> bytes | None:
        """See `Mailer`. The bounce has a sidecar, so that nothing in it counts as its envelope.

        A bounce that is there already, from before a crash, stays: it may be in flight.
        """
        from maildirqmtp.mail.sidecar import Sidecar

        name = _name(identifier)
        if self._maildir.new.has(name):
            self._maildir.new.sync()
            return None
        sidecars.write(self._maildir, name, Sidecar(b"", (self._prefix + recipient,)))
        writing.deliver_as(self._maildir, name, [bounce])
        return name


def _name(identifier: str) -> bytes:
    return f"bounce.{identifier}".encode()
