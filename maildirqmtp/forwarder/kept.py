"""Why a message stays in the maildir."""

# No postponed annotations; see `route`.
from typing import NamedTuple


class Kept(NamedTuple):
    """A message is still there, to be sent again, and why.

    `at_next_scan`: it is not what it was, and is sent as it is now when a scan finds it.
    """

    reason: str
    at_next_scan: bool = False


class Wait(NamedTuple):
    """A message has to wait until this time of the clock, and why."""

    until: float
    reason: str
