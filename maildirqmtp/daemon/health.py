"""Whether the daemon is healthy, for probes over HTTP: `/livez` and `/readyz`.

    /livez    200 while every route's loop turns in time; if not, restart the process
    /readyz   200 while the configuration has been read and every maildir is open

The other status is 503, and the body names the routes at fault, one a line. A server
that cannot be reached is no fault of this process: neither page reports it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from maildirqmtp.daemon.http_server import NOT_FOUND, Reply, Request

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_WELL = Reply(b"ok\n")
_UNWELL = "503 Service Unavailable"
#: States of a route whose maildir is open (`snapshot.Snapshot`).
_AT_WORK = frozenset({"idle", "connected", "waiting for a slot", "backing off", "stuck"})


class RouteHealth(NamedTuple):
    """The health of a route: whether its loop turns in time, and the state it last reported."""

    name: str
    turns: bool
    state: str


class Health(NamedTuple):
    """The health of the process at one moment."""

    routes: Sequence[RouteHealth]
    stopping: bool = False


def is_live(health: Health) -> bool:
    """Return whether every route's loop turns in time."""
    return all(one.turns for one in health.routes)


def live(health: Health) -> Reply:
    """Answer `/livez`."""
    return _unless([f"{one.name}: does not turn" for one in health.routes if not one.turns])


def ready(health: Health) -> Reply:
    """Answer `/readyz`."""
    if health.stopping or not health.routes:
        return _unless(["stopping" if health.stopping else "starting"])
    return _unless([f"{one.name}: {one.state}" for one in health.routes if not is_ready(one)])


def is_ready(route: RouteHealth) -> bool:
    """Return whether a route's maildir is open; a stuck one is, which the metrics report."""
    return route.state in _AT_WORK


def _unless(faults: Sequence[str]) -> Reply:
    if not faults:
        return _WELL
    return Reply("".join([f"{one}\n" for one in faults]).encode(), status=_UNWELL)


def pages(
    health: Callable[[], Health], metrics: Callable[[Request], Reply]
) -> Callable[[Request], Reply]:
    """Return the function that answers requests at the address of `--health-listen`."""

    def reply(request: Request) -> Reply:
        if request.path == "/livez":
            return live(health())
        if request.path == "/readyz":
            return ready(health())
        return metrics(request) if request.path == "/metrics" else NOT_FOUND

    return reply
