"""Settings that would remove mail that waits, or that mean nothing together, are refused."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from maildirqmtp.forwarder.route import BounceMethod, BounceVia, Route
from maildirqmtp.settings.conflicts import find_conflict, find_conflict_between
from maildirqmtp.transport.endpoint import TcpEndpoint

DAY_S = 86_400.0


def route(maildir: bytes = b"/M", **options: Any) -> Route:
    """Make a route with these options."""
    return Route(maildir, TcpEndpoint("h"), **options)


def said(*routes: Route) -> str:
    """Return the key and what is said of a conflict; empty for none."""
    found = find_conflict(routes[0]) if len(routes) == 1 else find_conflict_between(routes)
    return "" if found is None else f"{found[0].key}: {found[1]}"


def bounces_to(path: bytes) -> BounceVia:
    """Return the way to a maildir."""
    return BounceVia(BounceMethod.MAILDIR, path)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"sent": b"/S", "keep_sent_s": DAY_S, "keep_failed_s": 2 * DAY_S},
        {"keep_failed_s": DAY_S, "bounce_via": bounces_to(b"/B")},
        {"sent": b"/S", "failed": b"/S"},
        {"sent": b"/S", "failed": b"/S", "keep_sent_s": DAY_S, "keep_failed_s": DAY_S},
        {"sent": b"/B", "bounce_via": bounces_to(b"/B"), "keep_failed_s": DAY_S},
    ],
)
def test_what_makes_sense_is_allowed(options: dict[str, Any]) -> None:
    """Nothing that worked before is refused where nothing is to be removed."""
    assert said(route(**options)) == ""
    assert find_conflict_between([route(**options), route(b"/N", **options)]) is None


def test_what_is_not_kept_cannot_be_kept_for_a_time() -> None:
    """Whoever writes it believes that accepted mail is kept."""
    found = said(route(keep_sent_s=DAY_S))
    assert found.startswith("keep-sent: accepted messages are removed at once without sent")


def test_sent_and_failed_mail_in_one_maildir_is_kept_for_one_time() -> None:
    """Else what failed would go with what was sent."""
    both: dict[str, Any] = {"sent": b"/S", "failed": b"/S/", "keep_sent_s": DAY_S}
    assert said(route(**both)).startswith("keep-failed: /S/ is a maildir of sent or failed")
    both["keep_failed_s"] = 2 * DAY_S
    assert said(route(**both)).startswith("keep-failed: /S/ is a maildir of sent or failed")
    assert said(route(sent=b"/M/.Failed", keep_sent_s=DAY_S)).startswith("keep-failed: ")


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"sent": b"/B", "keep_sent_s": DAY_S}, "keep-sent"),
        ({"failed": b"/B", "keep_failed_s": DAY_S}, "keep-failed"),
    ],
)
def test_bounces_wait_for_another_program(options: dict[str, Any], key: str) -> None:
    """Senders would never hear of what failed."""
    found = said(route(bounce_via=bounces_to(b"/B"), **options))
    assert found == f"{key}: /B has bounces, which would be removed; name another maildir"
    assert said(route(b"/N", bounce_via=bounces_to(b"/B")), route(**options)) == found


def test_the_maildir_of_another_route_is_no_place_to_remove_from(tmp_path: Path) -> None:
    """Sent mail may go on from there, by a second route; old mail in it still waits. By links."""
    (tmp_path / "Q").mkdir()
    (tmp_path / "link").symlink_to("Q")
    link = os.fsencode(tmp_path / "link")
    first = route(sent=link, keep_sent_s=DAY_S)
    second = route(os.fsencode(tmp_path / "Q"))
    for routes, numbers in (((first, second), (0, 1)), ((second, first), (1, 0))):
        found = find_conflict_between(routes)
        assert found is not None
        assert found[0].key == "keep-sent"
        assert "has what waits there to be forwarded" in found[1]
        assert found[2] == numbers
    assert find_conflict_between([first._replace(keep_sent_s=None), second]) is None


@pytest.mark.parametrize("other_s", [None, 2 * DAY_S])
def test_two_routes_keep_what_they_share_for_the_same_time(other_s: float | None) -> None:
    """Else the shorter time counts for both, and nobody has said so."""
    first = route(prefix=b"a-", keep_failed_s=DAY_S)
    second = route(prefix=b"b-", keep_failed_s=other_s)
    found = find_conflict_between([first, route(b"/N"), second])
    assert found is not None
    assert found[1].startswith("/M/.Failed is a maildir of sent or failed messages twice")
    assert found[2] == (2, 0)
    assert find_conflict_between([first, second._replace(keep_failed_s=DAY_S)]) is None
