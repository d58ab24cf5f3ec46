"""Messages that are removed, or renamed by a mail reader, while they are in flight.

One that its user, a mail reader or `qmtpq drop` removes is done, whatever the server has answered:
nothing is left to be kept or tried again. It is not bounced either: there is no text to return, and
it was removed on purpose. The log says all of this. One that was renamed is followed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from maildirqmtp.errors import FileChangedError
from maildirqmtp.qmtp.protocol import ACCEPTED
from maildirqmtp.text import printable

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    from maildirqmtp.forwarder.queued_message import QueuedMessage
    from maildirqmtp.forwarder.report import Report
    from maildirqmtp.maildir.files import Message
    from maildirqmtp.maildir.maildir import Maildir

    T = TypeVar("T")


def is_gone(maildir: Maildir, message: Message, include_cur: bool) -> bool:
    """Return whether a message has no file any more; one that a mail reader renamed is followed.

    Raises `LocalError` if the maildir cannot be looked at.
    """
    if maildir.is_same(message) or maildir.follow(message, include_cur):
        return False
    return not message.folder.has(message.name)


def following(maildir: Maildir, include_cur: bool, message: Message, do: Callable[[], T]) -> T:
    """Do something with a message; once more if a mail reader renames it at that moment.

    Taken for a changed message, it would be sent again to those who have it. Raises what `do` does.
    """
    before = message.folder, message.name
    try:
        return do()
    except FileChangedError:
        is_there = not is_gone(maildir, message, include_cur)
        if is_there and (message.folder, message.name) != before and maildir.is_same(message):
            return do()
        raise


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
