"""What probes are told: of routes that hang, of maildirs that are not there."""

from __future__ import annotations

import pytest

from maildirqmtp.daemon.health import Health, RouteHealth, is_live, pages
from maildirqmtp.daemon.http_server import NOT_FOUND, Reply, Request


def ask(path: str, *routes: RouteHealth, stopping: bool = False) -> tuple[str, str]:
    """Return status and body."""
    answer = pages(lambda: Health(routes, stopping), lambda _: Reply(b"metrics"))
    reply = answer(Request(path, {}))
    return reply.status, reply.body.decode()


WELL = RouteHealth("/a", True, "idle")
HANGS = RouteHealth("/b p- 0/4", False, "connected")


@pytest.mark.parametrize(
    ("routes", "status", "body"),
    [
        ((WELL,), "200 OK", "ok\n"),
        ((), "200 OK", "ok\n"),
        ((HANGS,), "503 Service Unavailable", "/b p- 0/4: does not turn\n"),
        ((WELL, HANGS, WELL), "503 Service Unavailable", "/b p- 0/4: does not turn\n"),
    ],
)
def test_livez(routes: tuple[RouteHealth, ...], status: str, body: str) -> None:
    """One route that hangs is enough, and which one is said."""
    assert ask("/livez", *routes) == (status, body)
    assert is_live(Health(routes)) is (body == "ok\n")


@pytest.mark.parametrize(
    ("state", "is_ready"),
    [
        ("starting", False),
        ("idle", True),
        ("connected", True),
        ("waiting for a slot", True),
        ("backing off", True),
        ("stuck", True),
        ("no maildir", False),
        ("stopped", False),
        ("ending", False),
        ("not started", False),
    ],
)
def test_readyz(state: str, is_ready: bool) -> None:
    """A maildir that is there and open; what the server does is none of its business."""
    status, body = ask("/readyz", WELL, RouteHealth("/c", True, state))
    assert (status, body) == (
        ("200 OK", "ok\n") if is_ready else ("503 Service Unavailable", f"/c: {state}\n")
    )


def test_readyz_before_and_after() -> None:
    """Before the configuration is read there are no routes; after TERM nothing more is taken."""
    assert ask("/readyz") == ("503 Service Unavailable", "starting\n")
    assert ask("/readyz", WELL, stopping=True) == ("503 Service Unavailable", "stopping\n")


def test_other_pages() -> None:
    """The metrics stand beside the two."""
    assert ask("/metrics", HANGS) == ("200 OK", "metrics")
    for path in ("/", "/livez/", "/healthz", ""):
        assert ask(path, WELL) == (NOT_FOUND.status, "not found\n")
