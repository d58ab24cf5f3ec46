"""Why a message stays in the maildir."""

# No postponed annotations; see `route`.
from typing import NamedTuple


class Kept(NamedTuple):
    """Why a message is still there, to be sent again.

    `at_next_scan`: its file has changed, and is sent as it is now when a scan finds it.
    `stuck`: it must not be sent until its files are changed; see `stuck`.
    """

    reason: str
    at_next_scan: bool = False
    stuck: bool = False


class Wait(NamedTuple):
    """The time of the clock until which a message has to wait, and why."""

    until: float
    reason: str
