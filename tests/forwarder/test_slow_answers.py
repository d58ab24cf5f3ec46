"""The hint that several connections might help, where a server takes its time over each message."""

from __future__ import annotations

from pathlib import Path

import pytest

from maildirqmtp.forwarder import slow_answers
from maildirqmtp.forwarder.slow_answers import HINT_S, SLOW_S
from tests.fakes import FakeScript, FakeServer
from tests.forwarder.test_forwarder import NOW, Run
from tests.helpers import Package


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """An empty maildir and a server that accepts."""
    return Run(monkeypatch, tmp_path / "Maildir")


def each_takes(run: Run, seconds: float) -> FakeScript:
    """Make a server that answers one message after the other, each after so long."""
    free_at = [run.clock()]

    def script(server: FakeServer, package: Package) -> None:
        free_at[0] = max(free_at[0], run.clock()) + seconds
        run.clock.at(free_at[0], lambda: server.respond(b"Kok"))

    return script


def hints(run: Run) -> list[str]:
    """Return the hints that were given."""
    return [str(e["text"]) for e in run.events if "--connections" in str(e.get("text"))]


@pytest.mark.parametrize("window", [4, 4096], ids=["waiting", "in-flight"])
def test_a_slow_server_is_a_reason_for_a_hint_once(run: Run, window: int) -> None:
    """Mail would wait for hours beside a setting that is not known; one line is enough."""
    run.add(500)
    run.scripts = [each_takes(run, 1.0)]
    run.go(window_messages=window)
    (hint,) = hints(run)
    assert "takes 1.0 s for each answer, and 4" in hint
    assert run.new == []


def test_the_next_run_gives_it_again_after_an_hour(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cron starts one each minute."""
    for told in (1, 1):
        run.add(100)
        run.scripts = [each_takes(run, 1.0)]
        run.go()
        assert len(hints(run)) == told
    monkeypatch.setattr("tests.forwarder.test_forwarder.NOW", NOW + HINT_S)
    run.add(100)
    run.go()
    assert len(hints(run)) == 2


@pytest.mark.parametrize(
    ("count", "seconds", "options"),
    [(500, SLOW_S / 3, {}), (5, 1.0, {}), (100, 1.0, {"connections": 2})],
    ids=["fast", "few", "several"],
)
def test_there_is_no_hint_where_it_would_not_help(
    run: Run, count: int, seconds: float, options: dict[str, object]
) -> None:
    """A fast server, a handful of messages, several connections already."""
    run.add(count)
    run.scripts = [each_takes(run, seconds)]
    run.go(**options)
    assert hints(run) == []


def test_a_slow_link_is_not_a_slow_server(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """More connections would only share it."""
    monkeypatch.setattr(slow_answers, "unacknowledged", lambda fd: 1)
    run.add(100)
    run.scripts = [each_takes(run, 1.0)]
    run.go()
    assert hints(run) == []
