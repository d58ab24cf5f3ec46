"""A message that a server has taken, and whose files could not be changed accordingly.

It is remembered, and reserved, for as long as the process lives: a route that ends leaves it to the
next one on the same maildir that looks, which takes nothing from there until it is dealt with.
"""

import os
from typing import NamedTuple

from maildirqmtp.errors import LocalError
from maildirqmtp.forwarder.queued_message import QueuedMessage
from maildirqmtp.maildir.maildir import Maildir
from maildirqmtp.text import printable


class Stuck(NamedTuple):
    """A message, and what is to be done to its files.

    Its sidecar is to list only `owed`; if that is empty, the message is to be removed, or to be
    moved to the maildir `keep_in`.
    """

    queued: QueuedMessage
    keep_in: bytes | None = None
    owed: tuple[bytes, ...] = ()

    def left_undone(self, error: LocalError) -> str:
        """Return what could not be done because of this error, and what comes of that."""
        name = printable(self.queued.message.name)
        if not self.owed:
            return (
                f"the server has taken {name}, but {error}; remove it by hand, or it will be "
                f"sent again"
            )
        return (
            f"the server has taken {name} for some recipients, but {error}; take them out of its "
            f"sidecar by hand, or they will be sent it again"
        )

    def move_to(self, maildir: Maildir) -> None:
        """Look for it in this maildir from now on, which is the same one, opened anew."""
        message = self.queued.message
        is_in_cur = os.path.basename(message.folder.path) == b"cur"
        message.folder = maildir.cur if is_in_cur else maildir.new
