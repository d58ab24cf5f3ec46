"""The name of this host, for people and mail servers elsewhere."""

from __future__ import annotations

import socket
from functools import cache


@cache
def full_host_name() -> str:
    """Return the host's fully qualified name, or its short one if it has no other.

    Found as `hostname -f` does, by /etc/hosts or the DNS, once in a process: it
    can take seconds if no DNS server answers.
    """
    name = socket.gethostname()
    if "." in name:
        return name
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM, flags=socket.AI_CANONNAME)
    except (OSError, UnicodeError):
        return name
    canonical = found[0][3].rstrip(".")
    # A name on 127.0.0.1 may be an alias of localhost.localdomain, which names every host.
    is_of_use = "." in canonical and not canonical.startswith("localhost.")
    return canonical if is_of_use else name
