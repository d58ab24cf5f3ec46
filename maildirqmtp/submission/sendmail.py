"""`qmtp-sendmail`: one message from standard input, as sendmail takes it, into the queue.

    standard input
      -> CR LF to LF; the lone dot        line_ends
      -> lines of an earlier delivery     trace_lines
      -> header and body                  heading, held_text
      -> recipients and sender            local_names
      -> Bcc off, what is missing on      heading
      -> the queue, or a maildir          hand_over

Nothing is handed over before the last byte was read. SIGTERM, SIGINT and SIGHUP end the wait for
that: then the message is not taken. They also end the wait for a silent queue: then the message
goes into the maildir, or is not taken.
"""

from __future__ import annotations

import itertools
import os
import time
from typing import TYPE_CHECKING, NamedTuple

from maildirqmtp.errors import EnvelopeError
from maildirqmtp.qmtp.protocol import MAX_MESSAGE, MAX_RECIPIENTS, check_address
from maildirqmtp.submission import heading
from maildirqmtp.submission.hand_over import Envelope, hand_over
from maildirqmtp.submission.held_text import HeldText
from maildirqmtp.submission.line_ends import UntilDot, unix_lines
from maildirqmtp.submission.local_names import LocalNames
from maildirqmtp.submission.message_input import SIGNALS, Input
from maildirqmtp.submission.trace_lines import remove_trace
from maildirqmtp.submission.user import current_user
from maildirqmtp.transport.signals import signal_handlers

if TYPE_CHECKING:
    from collections.abc import Callable

    from maildirqmtp.mail.fields import Head
    from maildirqmtp.settings.submission import Submission


class Request(NamedTuple):
    """What the command line asks for. Addresses are raw.

    `sender` is None if none was given, and empty for the null sender; `from_header`
    is true with -t, `dot_ends` without -i.
    """

    sender: bytes | None = None
    full_name: str | None = None
    recipients: tuple[bytes, ...] = ()
    from_header: bool = False
    dot_ends: bool = True


def send(
    request: Request, settings: Submission, given: Input, tell: Callable[[str], object]
) -> int:
    """Take a message and hand it over; return an exit code of sysexits(3).

    `tell` gets the lines for the user. Raises `EnvelopeError` if the message or an
    address cannot be sent, `NoSuchUser` if a local name leads to no address,
    `ConfigError` if the aliases or the maildir cannot be used, and `LocalError` if
    the input cannot be read or the message not kept; then nothing has been taken.
    """
    with signal_handlers(SIGNALS, given.stop, keep_ignored=True):
        lines = unix_lines(given.pieces())
        message = UntilDot(lines) if request.dot_ends else lines
        head, begin, rest = heading.read(remove_trace(message))
        with HeldText(itertools.chain((begin,), rest)) as text:
            envelope, header = _prepare(request, settings, head)
            text.put_before(header)
            if text.length > MAX_MESSAGE:
                raise EnvelopeError(f"the message is larger than {MAX_MESSAGE} bytes")
            code = hand_over(settings, envelope, text, given, tell)
        if isinstance(message, UntilDot) and (message.more or given.has_more()):
            tell("a line with a dot alone ended the message; use -i where it is to stay")
    return code


def _prepare(request: Request, settings: Submission, head: Head) -> tuple[Envelope, bytes]:
    """Return envelope and header of a message."""
    names = LocalNames(settings)
    user = current_user()
    found = heading.recipients(head) if request.from_header else []
    recipients = names.recipients([*request.recipients, *found])
    if not recipients:
        raise EnvelopeError("the message names no recipient in To, Cc or Bcc")
    sender = names.sender(user.login if request.sender is None else request.sender)
    _check(sender, recipients)

    def author() -> bytes:
        name = user.full_name if request.full_name is None else request.full_name
        return heading.author(name, _author_address(request, names, user.login))

    def message_id() -> bytes:
        unique = f"{time.strftime('%Y%m%d%H%M%S', time.gmtime())}.{os.getpid()}"
        return b"<%b.%b@%b>" % (unique.encode(), os.urandom(8).hex().encode(), names.host)

    missing = heading.Missing(author, time.time(), message_id)
    return Envelope(sender, recipients), heading.completed(head, names.domain, missing)


def _author_address(request: Request, names: LocalNames, login: bytes) -> bytes:
    """Return the address for From: the sender that was given, else the user's own."""
    address = request.sender or login
    # The configured address is of more use than a name at a host that no reply can reach.
    found = names.sender(address) if b"@" in address or not names.domain else b""
    return found or names.own(address.partition(b"@")[0])


def _check(sender: bytes, recipients: tuple[bytes, ...]) -> None:
    """Raise `EnvelopeError` for too many recipients, or an address that no server takes."""
    if len(recipients) > MAX_RECIPIENTS:
        raise EnvelopeError(
            f"{len(recipients)} recipients are too many; at most {MAX_RECIPIENTS} are taken"
        )
    faults = [check_address(sender, "sender")]
    faults += [check_address(recipient, "recipient") for recipient in recipients]
    for fault in filter(None, faults):
        raise EnvelopeError(fault)
