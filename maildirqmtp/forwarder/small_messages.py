"""Most mail: small messages with qmail's two lines on top, to one recipient of ours.

They go in batches, without an object for each: they are read, packed, sent, accepted and
removed in one loop for each step. Anything unusual goes the long way, by
`queued_message.prepare`: another kind of file, other lines on top, an address that has to be
checked. A message that is answered by anything but K, or not at all, becomes a
`QueuedMessage` by `expand`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from maildirqmtp.forwarder.queued_message import QueuedMessage
from maildirqmtp.mail import envelope, header
from maildirqmtp.maildir import small
from maildirqmtp.maildir.files import Message
from maildirqmtp.pipeline.outgoing import PackageBatch
from maildirqmtp.qmtp.protocol import small_package

if TYPE_CHECKING:
    from collections.abc import Callable

    from maildirqmtp.maildir.files import Folder, Identity
    from maildirqmtp.maildir.maildir import Maildir

    #: Directory, name and identity of the file, the offset of its text, sender and recipient.
    SmallMessage = tuple[Folder, bytes, Identity, int, bytes, bytes]

#: Most bytes of a file that may be a small message.
SMALL_MAX = 64 << 10
#: Most messages of a batch: so many are settled before anything else is looked at.
BATCH_MESSAGES = 64


class SmallBatch(PackageBatch[QueuedMessage]):
    """Small messages on their way."""

    __slots__ = ("messages",)

    def __init__(self, data: bytes, sizes: list[int], messages: list[SmallMessage]) -> None:
        PackageBatch.__init__(self, data, sizes)
        self.messages = messages

    def expand(self, index: int) -> QueuedMessage:
        """See `PackageBatch`."""
        folder, name, identity, offset, sender, recipient = self.messages[index]
        message = Message(folder, name, identity, b"", identity[2])
        return QueuedMessage(message, sender, (recipient,), b"", offset)

    def text_bytes(self, first: int, stop: int) -> int:
        """Return the bytes of text of the messages from `first` to before `stop`."""
        return sum([m[2][2] - m[3] for m in self.messages[first:stop]])


def gather(
    maildir: Maildir,
    prefix: bytes,
    take: Callable[[], tuple[Folder, bytes] | None],
    most: int,
    max_bytes: int,
    small_max: int = SMALL_MAX,
) -> tuple[SmallBatch | None, tuple[Folder, bytes] | None]:
    """Return the next small messages as a batch, and the candidate that ended it by not being one.

    They are at most `most`, their packages at most `max_bytes`, each file at most `small_max`.
    """
    read, trace_of, loop_lines = small.read, envelope.classic_trace, header.loop_lines
    owners = maildir.owners
    packages: list[bytes] = []
    sizes: list[int] = []
    messages: list[SmallMessage] = []
    odd = None
    left = max_bytes
    for _ in range(min(most, BATCH_MESSAGES)):
        odd = take()
        if odd is None:
            break
        folder, name = odd
        file = read(folder, name, small_max, owners)
        if file is None:
            break
        identity, data = file
        trace = trace_of(data)
        if trace is None:
            break
        sender, recipient, offset = trace
        if prefix:
            if not recipient.startswith(prefix) or len(recipient) == len(prefix):
                break
            recipient = recipient[len(prefix) :]
        package = small_package(data[offset:], sender, recipient)
        size = len(package)
        if size > left or loop_lines(data):
            break
        packages.append(package)
        sizes.append(size)
        messages.append((folder, name, identity, offset, sender, recipient))
        left -= size
        odd = None
    return SmallBatch(b"".join(packages), sizes, messages) if messages else None, odd
