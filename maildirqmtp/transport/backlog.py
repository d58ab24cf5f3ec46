"""How much the kernel still holds of what was sent on a socket."""

from __future__ import annotations

# Not when it is needed: nothing can be imported while the interpreter ends and clients close.
import struct
from fcntl import ioctl

# <linux/sockios.h>; the same number as TIOCOUTQ.
_SIOCOUTQ = 0x5411


def unacknowledged(fd: int) -> int:
    """Return how many bytes were sent that the other end has not acknowledged (tcp(7)).

    Also after a reset, until the socket is closed. 0 if that is unknown: a pipe, a closed
    descriptor.
    """
    if fd < 0:
        return 0
    try:
        found: int = struct.unpack("i", ioctl(fd, _SIOCOUTQ, b"\0\0\0\0"))[0]
    except OSError:
        return 0
    return max(0, found)
