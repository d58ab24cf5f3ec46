"""Import before a route starts what it would otherwise import on demand.

An import opens files of the installed version. A daemon that has run out of
descriptors must still be able to refuse a message, write its status and end; and one
whose package is upgraded while it runs must go on with the code that it started with.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from maildirqmtp.daemon import watcher
from maildirqmtp.transport.connect import connector

if TYPE_CHECKING:
    from maildirqmtp.forwarder.route import Route

#: All modules that are imported inside functions, in the rooms that a route uses.
MODULES = (
    "base64",
    "difflib",
    "encodings.idna",  # by getaddrinfo
    "fcntl",
    "ipaddress",
    "json",
    "shlex",
    "struct",
    "tempfile",
    "termios",
    "maildirqmtp.daemon.health",
    "maildirqmtp.daemon.http_server",
    "maildirqmtp.daemon.metrics",
    "maildirqmtp.daemon.status",
    "maildirqmtp.forwarder.bounces",
    "maildirqmtp.forwarder.delay_warnings",
    "maildirqmtp.forwarder.retention",
    "maildirqmtp.mail.sidecar",
    "maildirqmtp.transport.process",
    "maildirqmtp.transport.server_list",  # these two by reading the configuration again
    "maildirqmtp.transport.tls_options",
)


def preload(route: Route) -> None:
    """Import all that this route may need.

    Raises `ImportError` if a module is missing, and `OSError` if its file cannot be read.
    """
    for name in MODULES:
        import_module(name)
    watcher.load()
    for server in route.servers:
        connector(server, route.tls)
