"""A message that its user, a mail reader or `qmtpq drop` removes while it is in flight.

It is done, whatever the server said: nothing is left to be kept or tried again. Nor is it bounced:
there is no text to return, and whoever took it out of the queue answers for it. The log has it all.
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
    """Say whether there is no file of its name; one that a mail reader renamed is followed.

    Raises `LocalError`.
    """
    if maildir.is_same(message) or maildir.follow(message, include_cur):
        return False
    return not message.folder.has(message.name)


def report_gone(report: Report, queued: QueuedMessage, keep_in: bytes | None = None) -> None:
    """Tell that a message is gone, and what was said that is of no use to it any more.

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
    """Tell which recipients of it have it."""
    for index, answer in enumerate(queued.answers):
        if answer is not None and answer.status is ACCEPTED:
            report.one_accepted(queued, index, answer.text)
