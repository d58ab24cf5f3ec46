"""Whether the daemon is well, for probes over HTTP: `/livez` and `/readyz`.

    /livez    200 while every route turns; a process that does not is to be started anew
    /readyz   200 while the configuration is read and each maildir there, and open

Anything else is 503, and the body names the routes, one a line. A server that
cannot be reached is no fault of this process: neither page speaks of it.
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
    """How a route is: whether its thread comes back in time, and the state that it told last."""

    name: str
    turns: bool
    state: str


class Health(NamedTuple):
    """How the process is, at one moment."""

    routes: Sequence[RouteHealth]
    stopping: bool = False


def is_live(health: Health) -> bool:
    """Say whether every route turns."""
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
    """Say whether a route's maildir is there and open; stuck ones are, and the metrics tell."""
    return route.state in _AT_WORK


def _unless(faults: Sequence[str]) -> Reply:
    if not faults:
        return _WELL
    return Reply("".join([f"{one}\n" for one in faults]).encode(), status=_UNWELL)


def pages(
    health: Callable[[], Health], metrics: Callable[[Request], Reply]
) -> Callable[[Request], Reply]:
    """Return what answers requests at the address of `--health-listen`."""

    def reply(request: Request) -> Reply:
        if request.path == "/livez":
            return live(health())
        if request.path == "/readyz":
            return ready(health())
        return metrics(request) if request.path == "/metrics" else NOT_FOUND

    return reply
