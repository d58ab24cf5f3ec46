"""The name of this host, for people and mail servers elsewhere."""

from __future__ import annotations

import socket
from functools import cache


@cache
def full_host_name() -> str:
    """Return the host's fully qualified name, or its short one where it has no other.

    As `hostname -f` finds it: by /etc/hosts or the DNS, which can take seconds
    where no server answers, once in a process.
    """
    name = socket.gethostname()
    if "." in name:
        return name
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM, flags=socket.AI_CANONNAME)
    except (OSError, UnicodeError):
        return name
    canonical = found[0][3].rstrip(".")
    # What a name on 127.0.0.1 may be an alias of names every host.
    is_of_use = "." in canonical and not canonical.startswith("localhost.")
    return canonical if is_of_use else name
