"""Opening a file by its name, and finding its envelope, as serialqmtp does with each name.

The envelope is taken from the trace lines. Sidecars are not read: the names may
come from a program that does not know them.
"""

import os
import stat

from maildirqmtp.errors import EnvelopeError, LocalError, QMTPError
from maildirqmtp.forwarder.queued_message import QueuedMessage, trace_of
from maildirqmtp.mail import envelope
from maildirqmtp.maildir.files import Folder, Message, identity_of
from maildirqmtp.maildir.maildir import TOP_BYTES, WHOLE_MAX
from maildirqmtp.qmtp.protocol import MAX_MESSAGE

# Names are paths, and may be links: the feeder is trusted like a command line. O_NONBLOCK and
# O_NOCTTY: opening a FIFO must not block, and a terminal must not become the controlling one.
_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
_HERE = Folder(-1, b"")


class UnreadableError(QMTPError):
    """A file that cannot be opened or read; the text is serialmail's."""


def open_message(name: bytes, prefix: bytes) -> QueuedMessage | None:
    """Open a file and find its envelope; None if it has none, or none for `prefix`.

    The recipient is without the prefix. Raises `UnreadableError` if the file cannot be
    read, and `EnvelopeError` if its trace lines are malformed, or it has a recipient
    with the prefix and cannot be sent as it is.
    """
    message = _load(name)
    taken = False
    try:
        queued = _addressed(message, prefix)
        taken = queued is not None
        return queued
    except LocalError as error:  # beyond the first block
        raise UnreadableError("unable to read file") from error
    finally:
        if not taken:
            message.close()


def unchanged(queued: QueuedMessage) -> bool:
    """Return whether the file that is being streamed is unchanged since it was opened."""
    try:
        return identity_of(os.fstat(queued.message.fd)) == queued.message.identity
    except OSError:
        return False


def _load(name: bytes) -> Message:
    try:
        fd = os.open(name, _READ)
    except OSError as error:
        raise UnreadableError("unable to open file") from error
    keep = False
    try:
        status = os.fstat(fd)
        size = status.st_size
        if not stat.S_ISREG(status.st_mode):
            raise UnreadableError("unable to read file")
        if size > WHOLE_MAX:
            message = Message(_HERE, name, identity_of(status), os.read(fd, TOP_BYTES), size, fd)
            keep = True
            return message
        data = b""
        while len(data) <= size and (more := os.read(fd, size + 1 - len(data))):
            data += more
        if len(data) != size:  # it is being written
            raise UnreadableError("unable to read file")
        return Message(_HERE, name, identity_of(status), data, size)
    except OSError as error:
        raise UnreadableError("unable to read file") from error
    finally:
        if not keep:
            os.close(fd)


def _addressed(message: Message, prefix: bytes) -> QueuedMessage | None:
    trace = trace_of(message)
    fault = trace.sender_fault or trace.recipients_fault
    if fault:
        raise EnvelopeError(fault)
    if trace.sender is None or not trace.recipients:
        return None
    recipients = envelope.ours(trace.recipients, prefix)
    if not recipients:
        return None
    if len(trace.recipients) > 1:
        # There is one result for a file, which cannot report several recipients.
        raise EnvelopeError(f"it has {len(trace.recipients)} recipients, and can have only one")
    queued = QueuedMessage(message, trace.sender, recipients, trace.kept, trace.offset)
    if queued.length > MAX_MESSAGE:
        raise EnvelopeError(
            f"{queued.length} bytes are more than servers take over QMTP ({MAX_MESSAGE})"
        )
    return queued
