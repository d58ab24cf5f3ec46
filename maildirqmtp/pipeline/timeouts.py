"""The default time-outs of a connection."""

from typing import NamedTuple

#: The most seconds of any time-out: the kernel and Python can wait for so long, nobody means more.
MAX_SECONDS = 100 * 365 * 86_400.0
#: Seconds for each address of the server.
CONNECT_TIMEOUT_S = 60.0
#: Seconds without a byte taken by the server.
WRITE_TIMEOUT_S = 73.0
#: Seconds without a response, from the last one on or from the oldest package's last byte.
RESPONSE_TIMEOUT_S = 3_600.0
#: Seconds after which a connection takes no new package; the protocol's hour less ten minutes.
SESSION_S = 3_000.0
#: Seconds for the other responses of a package after its first, from a server not yet known.
FENCE_GRACE_S = 10.0
#: Seconds without anything to do after which a connection is closed.
IDLE_S = 60.0
#: Seconds past a time-out that show that this process was stopped or suspended.
ASLEEP_S = 1.0
#: Seconds to wait then, until what the server has sent meanwhile is retransmitted.
AWAKE_S = 30.0


class Timeouts(NamedTuple):
    """The time-outs of a connection, in seconds; see the defaults."""

    write_s: float = WRITE_TIMEOUT_S
    response_s: float = RESPONSE_TIMEOUT_S
    grace_s: float = FENCE_GRACE_S
    session_s: float = SESSION_S
