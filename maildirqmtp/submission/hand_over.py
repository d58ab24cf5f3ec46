"""Where a submitted message goes: this machine's queue, or a maildir of the user's own."""

from __future__ import annotations

import errno
import os
import re
from typing import TYPE_CHECKING, NamedTuple

from maildirqmtp.errors import ConfigError, ConnectError, LocalError, QMTPError
from maildirqmtp.exit_codes import (
    EX_DATAERR,
    EX_NOPERM,
    EX_NOUSER,
    EX_TEMPFAIL,
    EX_UNAVAILABLE,
    EXIT_OK,
)
from maildirqmtp.response import Status
from maildirqmtp.submission import queue_client
from maildirqmtp.text import printable

if TYPE_CHECKING:
    from collections.abc import Callable

    from maildirqmtp.response import Response
    from maildirqmtp.settings.submission import Submission
    from maildirqmtp.submission.held_text import HeldText
    from maildirqmtp.submission.message_input import Stoppable

_NOT_ALLOWED = (errno.EACCES, errno.EPERM)
# What a refusal is about, by its status code (RFC 3463, 3).
_CODE = re.compile(rb"\b5\.(\d{1,3}\.\d{1,3})\b")
_MEANS = {
    rb"1\.\d+": EX_NOUSER,
    rb"7\.\d+": EX_NOPERM,
    rb"2\.3|3\.4|4\.6|6\.\d+": EX_DATAERR,
}


class Envelope(NamedTuple):
    """Sender and recipients, raw."""

    sender: bytes
    recipients: tuple[bytes, ...]


def hand_over(
    settings: Submission,
    envelope: Envelope,
    text: HeldText,
    stoppable: Stoppable,
    tell: Callable[[str], object],
) -> int:
    """Hand a message over to the queue, or else into the maildir; return an exit code.

    `stoppable` ends the wait for the queue. `tell` gets a line for each cause of a code other
    than 0, with its recipient, and one if the maildir keeps what the queue may have as well. If
    the queue cannot be reached, raises `ConfigError` for a maildir of another user's, `LocalError`
    if it cannot be written, and `EnvelopeError` if the sidecar would be too large.
    """
    try:
        transport = queue_client.connect(settings.socket, stoppable)
    except ConnectError as error:
        if settings.maildir is not None:
            _keep(settings.maildir, envelope, text)
            return EXIT_OK
        tell(
            f"{error}; and no maildir is configured to keep the message in: set maildir in the "
            f"table [submission] of ~/.config/maildirqmtp.toml"
        )
        return EX_NOPERM if error.errno in _NOT_ALLOWED else EX_TEMPFAIL
    answers = queue_client.submit(transport, *envelope, text, stoppable)
    code, owed = EXIT_OK, {}
    for number, recipient in enumerate(envelope.recipients):
        response = answers.responses[number] if number < len(answers.responses) else None
        if response is None or response.status is Status.DEFERRED:
            owed[recipient] = str(answers.error) if response is None else response.text
        elif response.status is Status.FAILED:
            tell(f"{printable(recipient)}: {response.text}")
            code = code or _code(response)
    if owed and settings.maildir is not None:
        try:
            _keep(settings.maildir, envelope._replace(recipients=tuple(owed)), text)
            if answers.error is not None:
                tell(f"{answers.error}; it is kept in {printable(settings.maildir)}")
            return code
        except QMTPError as error:
            tell(str(error))
    for recipient, why in owed.items():
        tell(f"{printable(recipient)}: not taken now: {why}")
    return EX_TEMPFAIL if owed else code


def _code(response: Response) -> int:
    found = _CODE.search(response.raw)
    for pattern, code in _MEANS.items():
        if found is not None and re.fullmatch(pattern, found[1]):
            return code
    return EX_UNAVAILABLE


def _keep(path: bytes, envelope: Envelope, text: HeldText) -> None:
    """Put a message into the user's own maildir, which is made if it is missing."""
    from maildirqmtp.maildir.writing import create
    from maildirqmtp.submission.enqueue import make_sidecar, put

    content = make_sidecar(*envelope)
    parts = [os.path.join(path, part) for part in (b"tmp", b"new", b"cur")]
    if not all(map(os.path.isdir, parts)):
        create(path)
    try:
        owner = os.stat(path).st_uid
    except OSError as error:
        raise LocalError(f"cannot look at {printable(path)}: {error.strerror}") from error
    if os.geteuid() not in (0, owner):
        raise ConfigError(
            f"the maildir {printable(path)} belongs to user {owner}; name one of your own"
        )
    put(path, content, text.pieces())
