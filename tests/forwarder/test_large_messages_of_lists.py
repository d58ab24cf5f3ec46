"""Large messages where a route has several servers: where they go, when, and how often."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from maildirqmtp.forwarder.large_messages import TURN_S
from tests.fakes import FakeScript, FakeServer, accept
from tests.forwarder.test_forwarder import NOW
from tests.forwarder.test_large_messages import LARGE, add_large, cuts_large
from tests.forwarder.test_servers import REFUSED, A, B, ListRun, hang_up
from tests.forwarder.test_slow_answers import each_takes, hints
from tests.helpers import Package


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ListRun:
    """An empty maildir and two servers that accept."""
    return ListRun(monkeypatch, tmp_path / "Maildir")


def write_doubts(run: ListRun, *names: str) -> None:
    """Have an earlier run remember that the first server may have these messages."""
    doubts = {"version": 1, "in_doubt": {name: {str(A): NOW} for name in names}}
    (run.path / ".maildirqmtp-state.json").write_text(json.dumps(doubts))


def test_a_server_that_never_answers_is_to_blame_and_not_the_large_message(run: ListRun) -> None:
    """Alone in the maildir it would have its one attempt there in every run, for ever."""
    add_large(run, 1)
    run.does[A] = hang_up
    run.go(in_doubt_wait_s=0.0)
    assert run.tried == [A, B]
    assert (run.new, run.code) == ([], 0)
    assert run.report.counters.deferred == 0


def test_a_large_message_that_breaks_the_connection_of_a_good_server_stays(run: ListRun) -> None:
    """It has had its attempt in this run; the link to the next server may be the same one."""
    add_large(run, 1)
    run.add(3, first=2)
    run.does[A] = cuts_large
    run.go(in_doubt_wait_s=0.0)
    assert set(run.tried) == {A}
    assert (run.new, run.code) == (["1.large"], 111)
    assert run.got(A).count(b"l1@y") == 1


def test_where_each_server_breaks_over_it_a_large_message_waits(run: ListRun) -> None:
    """One attempt with each, and then the others have theirs."""
    add_large(run, 1, 2)
    run.does |= {A: hang_up, B: cuts_large}
    run.go(in_doubt_wait_s=0.0)
    assert run.new == ["1.large", "2.large"]
    assert run.got(A) == [b"l1@y"]
    assert sorted(run.got(B)) == [b"l1@y", b"l2@y"]


def test_the_oldest_large_message_is_the_first_at_the_next_server_too(run: ListRun) -> None:
    """It was looked at before the first server turned out to be gone."""
    add_large(run, 1, 2, 3)
    run.does[A] = REFUSED
    run.go()
    assert run.got(B) == [b"l1@y", b"l2@y", b"l3@y"]


def test_a_large_message_in_doubt_does_not_go_to_another_server(run: ListRun) -> None:
    """It was put aside as a large one while the preferred server was still the next one."""
    add_large(run, 1, 2)
    run.add(1, first=3)
    write_doubts(run, "1.large")
    run.does[A] = REFUSED
    run.go()
    assert run.got(B) == [b"r3@y", b"l2@y"]
    assert run.new == ["1.large"]
    run.does[A] = accept
    run.clock.advance(60.0)
    run.go()
    assert run.got(A) == [b"l1@y"]
    assert run.new == []


def test_small_messages_in_doubt_do_not_go_in_a_batch_to_another_server(run: ListRun) -> None:
    """Without a line or an event for each message they have no object in which that is noted."""
    run.report.set_output(0, None)
    run.add(20)
    write_doubts(run, "3.a", "17.a")
    run.does[A] = REFUSED
    run.go(max_bytes=1_000, large_bytes=2_000)
    assert len(run.got(B)) == 18
    assert run.new == ["17.a", "3.a"]


def test_small_mail_in_doubt_is_probed_for_after_the_large_mail_has_gone(run: ListRun) -> None:
    """Each look for a server that is gone takes seconds, in which nothing is sent."""
    add_large(run, 1)
    run.add(1, first=2)
    write_doubts(run, "2.a")
    run.does[A] = REFUSED
    run.go()
    assert run.tried[:2] == [A, B]
    assert run.got(B) == [b"l1@y"]
    assert run.new == ["2.a"]


def test_a_large_message_has_its_turn_at_the_next_server(run: ListRun) -> None:
    """Small mail comes as fast as it goes, there too."""
    add_large(run, 1)
    run.add(2, first=3)
    seen: list[bytes] = []

    def busy(server: FakeServer, package: Package) -> None:
        seen.extend(package.recipients)
        if len(seen) < 30:
            run.add(1, first=100 + len(seen))
        run.clock.advance(TURN_S / 10)
        server.respond(b"Kok")

    run.does |= {A: REFUSED, B: busy}
    run.go(window_messages=1)
    assert run.new == []
    assert seen.index(b"l1@y") in (9, 10, 11)


def test_the_hint_names_the_server_that_is_slow(run: ListRun) -> None:
    """Of two, the one that mail goes to now."""
    run.add(100)
    slow: FakeScript = each_takes(run, 1.0)
    run.does |= {A: REFUSED, B: slow}
    run.go()
    (hint,) = hints(run)
    assert hint.startswith(f"{B} takes 1.0 s")


def test_the_next_server_has_a_wide_window_after_a_large_message(run: ListRun) -> None:
    """The one that broke over it, too: when it is there again small mail goes as before."""
    add_large(run, 1, size=LARGE)
    run.does[A] = hang_up
    run.go(in_doubt_wait_s=0.0)
    pools = [server.pool for server in run.forwarder.servers._servers]
    assert [pool.windows[0].size for pool in pools] == [4_096, 4_096]
