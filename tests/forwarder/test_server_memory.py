"""What one run finds out about a server is there for the next, for 30 days."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from maildirqmtp.maildir.state import ONE_RECIPIENT, PROVEN
from tests.fakes import FakeServer, accept
from tests.forwarder.test_forwarder import NOW, Run
from tests.helpers import Package


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """An empty maildir and a server that accepts."""
    return Run(monkeypatch, tmp_path / "Maildir")


def shown(run: Run) -> dict[str, float]:
    """Return what the state file has of the server."""
    content = json.loads((run.path / ".maildirqmtp-state.json").read_text())
    (server,) = content["servers"].values()
    return dict(server)


def once(server: FakeServer, package: Package) -> None:
    """Answer once per package, as mailfront does."""
    server.respond(b"Kok")


def test_the_second_run_pays_nothing_for_a_server_that_answers_once(run: Run) -> None:
    """Each run lost 10 s, and doubled the first message to several recipients."""
    run.scripts = [once]
    run.add_shared("1.a", "a@y", "b@y", "c@y")
    run.go()
    assert ONE_RECIPIENT in shown(run)
    assert run.report.counters.in_doubt > 0
    before, took = run.report.counters.in_doubt, run.clock()
    run.add_shared("2.a", "d@y", "e@y", "f@y")
    run.go()
    assert run.new == []
    assert {r: n for r, n in run.received.items() if r[0] in (b"d@y", b"e@y", b"f@y")} == {
        (b"d@y",): 1,
        (b"e@y",): 1,
        (b"f@y",): 1,
    }
    assert run.report.counters.in_doubt == before
    assert run.clock() == took


def test_after_a_month_a_server_is_got_to_know_anew(run: Run) -> None:
    """Other software may run there by now; one package per recipient costs the most."""
    old = {"version": 1, "servers": {"mail.example.org": {ONE_RECIPIENT: NOW - 30 * 86_400.0}}}
    (run.path / ".maildirqmtp-state.json").write_text(json.dumps(old))
    run.add_shared("1.a", "a@y", "b@y")
    run.go()
    assert run.received == {(b"a@y", b"b@y"): 1}


def test_a_server_that_has_answered_rightly_needs_no_first_answer(run: Run) -> None:
    """A round trip less in each run."""
    run.add(1)
    run.go()
    assert shown(run) == {PROVEN: NOW}

    def after_five(server: FakeServer, package: Package) -> None:
        if len(server.received) == 5:
            server.respond(*[b"Kok"] * 5)

    run.add(5, first=2)
    run.scripts = [after_five]
    run.go()
    assert run.new == []
    assert run.report.counters.in_doubt == 0


def test_a_server_that_talks_nonsense_has_to_show_itself_again(run: Run) -> None:
    """The next run risks one message with it, not a window full."""
    run.add(1)
    run.go()
    run.add(3, first=2)
    run.scripts = [lambda server, package: server.say(b"421 too busy\r\n"), accept]
    run.go()
    run.scripts = [lambda server, package: server.say(b"421 too busy\r\n")]
    run.add(3, first=5)
    run.go()
    assert PROVEN not in json.loads((run.path / ".maildirqmtp-state.json").read_text())[
        "servers"
    ].get("mail.example.org", {})


def test_a_server_of_another_name_is_another_server(run: Run) -> None:
    """What is remembered is known by SERVER as it was given."""
    known = {"version": 1, "servers": {"other.example.org": {ONE_RECIPIENT: NOW}}}
    (run.path / ".maildirqmtp-state.json").write_text(json.dumps(known))
    run.add_shared("1.a", "a@y", "b@y")
    run.go()
    assert run.received == {(b"a@y", b"b@y"): 1}
