"""Handing a bounce on: to sendmail, into a maildir, or back into the queue for the server.

Each way either has the bounce for good when `send` returns, or raises
`LocalError`; then the failed message is kept, and the bounce is made again.
"""

from __future__ import annotations

from maildirqmtp import filing
from maildirqmtp.errors import LocalError
from maildirqmtp.maildir import Maildir, local_error
from maildirqmtp.text import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol
else:
    Protocol = object

#: Seconds a sendmail command may take.
SENDMAIL_TIMEOUT_S = 300.0
#: Bytes of its complaint that are shown.
_COMPLAINT_BYTES = 300


class Mailer(Protocol):
    """A way for bounces to go."""

    def send(self, bounce: bytes, recipient: bytes, identifier: str) -> bytes | None:
        """Hand on a bounce for `recipient`, from the null sender. Raises `LocalError`.

        Returns its name where it is a message of the forwarded maildir now.
        """
        ...


class SendmailMailer:
    """Runs `COMMAND -i -f '' -- RECIPIENT` with the bounce on standard input."""

    def __init__(self, command: list[bytes]) -> None:
        self._command = command

    def send(self, bounce: bytes, recipient: bytes, identifier: str) -> bytes | None:
        """See `Mailer`."""
        import subprocess

        name = printable(self._command[0])
        try:
            done = subprocess.run(
                [*self._command, b"-i", b"-f", b"", b"--", recipient],
                input=bounce,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                timeout=SENDMAIL_TIMEOUT_S,
                check=False,
            )
        except OSError as error:
            raise local_error("run, to send a bounce,", self._command[0], error) from error
        except subprocess.TimeoutExpired as error:
            raise LocalError(f"{name} took more than {SENDMAIL_TIMEOUT_S:g} s") from error
        if done.returncode != 0:
            complaint = printable(done.stderr[:_COMPLAINT_BYTES].replace(b"\n", b" ")).strip()
            raise LocalError(f"{name} did not take a bounce: exit {done.returncode} {complaint}")
        return None


class MaildirMailer:
    """Delivers bounces into a maildir, with Return-Path and Delivered-To on top."""

    def __init__(self, path: bytes) -> None:
        self._path = path

    def send(self, bounce: bytes, recipient: bytes, identifier: str) -> bytes | None:
        """See `Mailer`. The same bounce again replaces the first."""
        filing.create(self._path)
        top = b"Return-Path: <>\nDelivered-To: %b\n" % recipient
        with Maildir(self._path) as maildir:
            filing.deliver_as(maildir, _name(identifier), [top, bounce])
        return None


class QueueMailer:
    """Puts bounces into the maildir that is being forwarded: the server gets them."""

    def __init__(self, maildir: Maildir, prefix: bytes) -> None:
        self._maildir = maildir
        self._prefix = prefix

    def send(self, bounce: bytes, recipient: bytes, identifier: str) -> bytes | None:
        """See `Mailer`. With a sidecar, so that nothing in the bounce counts as its envelope."""
        from maildirqmtp.sidecar import Sidecar

        name = _name(identifier)
        filing.write_sidecar(self._maildir, name, Sidecar(b"", (self._prefix + recipient,)))
        filing.deliver_as(self._maildir, name, [bounce])
        return name


def _name(identifier: str) -> bytes:
    return f"bounce.{identifier}".encode()
