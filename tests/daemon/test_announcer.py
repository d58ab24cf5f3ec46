"""What systemd is told of many routes: all that matters, in one message that is not dropped."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from maildirqmtp.daemon.announcer import (
    METRICS_S,
    MOST_ROUTES,
    TELL_S,
    Announcer,
    status_line,
)
from maildirqmtp.daemon.snapshot import Snapshot
from maildirqmtp.daemon.systemd import Notifier
from maildirqmtp.forwarder.route import Route
from maildirqmtp.transport.endpoint import TcpEndpoint
from tests.fakes import FakeClock

COUNTERS = {"accepted": 2, "deferred": 1, "failed": 0, "bounced": 0, "in_doubt": 0, "bytes": 9}
ROUTE = Route(b"M", TcpEndpoint("mail.example.org"))


def snapshots(count: int, state: str = "idle", reason: str = "") -> list[Snapshot]:
    """Make the snapshots of so many routes, each with three messages that wait."""
    made = Snapshot(ROUTE, state, COUNTERS, messages=3, stop_reason=reason)
    return [made] * count


def test_few_routes_are_told_of_one_by_one() -> None:
    """An administrator sees which one it is."""
    told = status_line(snapshots(1) + snapshots(1, "backing off", "cannot connect"))
    assert told.count(" | ") == 1
    assert "3 waiting; backing off; cannot connect; 2 accepted" in told


@pytest.mark.parametrize("count", [MOST_ROUTES + 1, 1_000, 5_000])
def test_many_routes_are_summed_up(count: int) -> None:
    """Their lines would make 80,000 bytes, and systemd drops what is longer than a page."""
    told = status_line(
        snapshots(count - 2) + snapshots(1, "stuck") + snapshots(1, "backing off", "no route")
    )
    assert told.startswith(f"{count} routes: {3 * count} waiting; {count - 2} idle, ")
    assert "1 stuck" in told
    assert f"{2 * count} accepted, {count} deferred" in told
    assert told.endswith("1: no route")


@pytest.mark.parametrize("count", [1, MOST_ROUTES, 1_000])
def test_it_is_shorter_than_a_page(count: int) -> None:
    """Whatever a server, or a path, puts into the reason; and it stays UTF-8."""
    told = status_line(snapshots(count, "backing off", "ä" * 9_000))
    assert 3_900 < len(f"STATUS={told}".encode()) < 4_096


class Told(Notifier):
    """A notifier that notes."""

    def __init__(self) -> None:
        super().__init__({})
        self.said: list[str] = []

    def send(self, *states: str) -> None:
        """See `Notifier`."""
        self.said += states


def test_a_thousand_routes_are_told_of_once_a_second() -> None:
    """Each of them has news at the start: a million lines would be made."""
    clock, notifier = FakeClock(), Told()
    announcer = Announcer(notifier, clock, print)
    for number in range(100):
        announcer.tell(snapshots(1_000 + number), None)
    assert len(notifier.said) == 1
    assert announcer.wait_s(None, True) == TELL_S
    assert announcer.wait_s(None, False) is None
    clock.advance(TELL_S)
    assert announcer.tell(snapshots(1_100), None)
    assert notifier.said[-1].startswith("STATUS=1100 routes")
    assert not announcer.tell(snapshots(1_200), None)
    announcer.finish(snapshots(1_200), None)
    assert notifier.said[-1].startswith("STATUS=1200 routes"), "the last of it is told"


@pytest.mark.parametrize("count", [1, MOST_ROUTES + 1])
def test_a_metrics_file_that_is_set_later_is_written_at_once(tmp_path: Path, count: int) -> None:
    """By a HUP: for a minute the alerts had the numbers of the old one, or none."""
    clock = FakeClock()
    announcer = Announcer(Told(), clock, lambda said: pytest.fail(said))
    shown = snapshots(count)
    assert announcer.tell(shown, None)
    for name in ("one.prom", "two.prom"):
        path = os.fsencode(tmp_path / name)
        wait_s = announcer.wait_s(path, False)
        assert wait_s is not None
        assert wait_s <= TELL_S
        clock.now += wait_s
        assert announcer.tell(shown, path)
        assert (tmp_path / name).exists()
        assert announcer.wait_s(path, False) == METRICS_S
