"""What the log and the health pages call a route."""

from __future__ import annotations

from typing import TYPE_CHECKING

from maildirqmtp.text import printable

if TYPE_CHECKING:
    from maildirqmtp.forwarder.route import Route


def watched(route: Route) -> str:
    """Return the log line that names what a route watches, and where its mail goes."""
    folders = "new and cur" if route.include_cur else "new"
    prefix = f" for recipients that begin with {printable(route.prefix)}" if route.prefix else ""
    shard = f", shard {route.shard}" if route.shard else ""
    servers = ", else ".join([str(server) for server in route.servers])
    return (
        f"watching {folders} of {printable(route.maildir)}{shard}{prefix}; mail goes to {servers}"
    )


def full_name(route: Route) -> str:
    """Return the name of a route: its maildir, prefix and shard."""
    parts = [printable(route.maildir), printable(route.prefix), f"{route.shard or ''}"]
    return " ".join([part for part in parts if part])
