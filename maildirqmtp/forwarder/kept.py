"""Why a message stays in the maildir after it has been settled."""

# No postponed annotations; see `route`.
from typing import NamedTuple


class Kept(NamedTuple):
    """A message is still there, to be sent again, and why.

    `at_next_scan`: it is not what it was, and is sent as it is now when a scan finds it.
    """

    reason: str
    at_next_scan: bool = False
