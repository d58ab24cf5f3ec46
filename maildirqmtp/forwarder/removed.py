"""Reports a message that its user, a mail reader or `qmtpq drop` removes while it is in flight.

It is done, whatever the server has answered: nothing is left to be kept or tried again. It is not
bounced either: there is no text to return, and it was removed on purpose. The log says all of this.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from maildirqmtp.qmtp.protocol import ACCEPTED
from maildirqmtp.text import printable

if TYPE_CHECKING:
    from maildirqmtp.forwarder.queued_message import QueuedMessage
    from maildirqmtp.forwarder.report import Report
    from maildirqmtp.maildir.files import Message
    from maildirqmtp.maildir.maildir import Maildir


def is_gone(maildir: Maildir, message: Message, include_cur: bool) -> bool:
    """Return whether a message has no file any more; one that a mail reader renamed is followed.

    Raises `LocalError` if the maildir cannot be looked at.
    """
    if maildir.is_same(message) or maildir.follow(message, include_cur):
        return False
    return not message.folder.has(message.name)


def report_gone(report: Report, queued: QueuedMessage, keep_in: bytes | None = None) -> None:
    """Report that a message is gone, and the refusals and deferrals that no longer matter.

    `keep_in` is the maildir where it was to be kept.
    """
    name = printable(queued.message.name)
    more = "" if keep_in is None else f", and is not in {printable(keep_in)}"
    report.note(f"{name} was removed while it was being sent{more}")
    for recipient, answer in zip(queued.recipients, queued.answers, strict=True):
        if answer is not None and answer.status is not ACCEPTED:
            report.note(
                f"{name}: {printable(recipient)}: neither tried again nor bounced: {answer.text}"
            )


def report_accepted(report: Report, queued: QueuedMessage) -> None:
    """Report for which recipients a message was accepted."""
    for index, answer in enumerate(queued.answers):
        if answer is not None and answer.status is ACCEPTED:
            report.one_accepted(queued, index, answer.text)
