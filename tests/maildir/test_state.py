"""The state file: what one run leaves for the next, whatever becomes of the file meanwhile."""

import errno
import json
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from maildirqmtp.maildir import files
from maildirqmtp.maildir.doubts import FORGOTTEN_S as DOUBTS_FORGOTTEN_S
from maildirqmtp.maildir.doubts import RENEWED_S
from maildirqmtp.maildir.maildir import Maildir
from maildirqmtp.maildir.state import (
    BOUNCE,
    DEFERRAL_S,
    MAX_BYTES,
    ONE_RECIPIENT,
    PROVEN,
    SAVE_S,
    State,
)
from maildirqmtp.maildir.warned import Noted
from tests.fakes import FakeClock
from tests.helpers import make_maildir

NOW = 1_800_000_000.0
DAY_S = 86_400.0


class Runs:
    """Runs over one maildir, one after the other; `now` is the time of day."""

    def __init__(self, path: Path) -> None:
        self.path = make_maildir(path)
        self.file = self.path / ".maildirqmtp-state.json"
        self.maildir = Maildir(os.fsencode(self.path))
        self.clock = FakeClock()
        self.now = NOW

    def run(self) -> State:
        """Begin another run."""
        return State(self.maildir.root, self.clock, lambda: self.now)


@pytest.fixture
def runs(tmp_path: Path) -> Iterator[Runs]:
    """A maildir without a state file."""
    runs = Runs(tmp_path / "M")
    yield runs
    runs.maildir.close()


def test_that_of_a_bounce_goes_with_its_message(runs: Runs) -> None:
    """Another of its name would have its bounce refused before it was made."""
    one = runs.run()
    assert one.first_deferral(b"1.a", BOUNCE) == NOW
    one.save()
    one.forget([b"1.a"])
    one.save()
    runs.now += DAY_S
    assert runs.run().first_deferral(b"1.a", BOUNCE) == NOW + DAY_S


def test_a_first_deferral_outlives_the_run(runs: Runs) -> None:
    """Else a message would be tried for ever, a day at a time."""
    one = runs.run()
    assert one.first_deferral(b"1.a") == NOW
    one.save()
    runs.now += 3_600.0
    two = runs.run()
    assert two.first_deferral(b"1.a") == NOW
    assert two.first_deferral(b"2.a") == NOW + 3_600.0
    assert runs.file.stat().st_mode & 0o777 == 0o600, "it names who writes to whom"


def test_the_last_answers_outlive_the_run(runs: Runs) -> None:
    """Why a message waits is asked when the daemon was restarted, too."""
    one = runs.run()
    one.note_attempt(b"1.a:2,S", "greylisted")
    assert one.next_deadline == runs.clock() + SAVE_S, "not with each message"
    one.save()
    two = runs.run()
    assert two.attempts(b"1.a") == (1, ((int(NOW), "greylisted"),))
    two.forget([b"1.a,U=7:2,S"])
    two.save()
    assert runs.run().attempts(b"1.a") == (0, ())
    assert "attempts" not in json.loads(runs.file.read_text())


def test_a_history_that_is_broken_spoils_nothing_else(runs: Runs) -> None:
    """Nothing hangs on it; on the first deferral, the life of a message."""
    one = runs.run()
    one.first_deferral(b"1.a")
    one.save()
    content = json.loads(runs.file.read_text())
    runs.file.write_text(json.dumps({**content, "attempts": {"texts": 7}}))
    runs.now += 9.0
    two = runs.run()
    assert two.first_deferral(b"1.a") == NOW
    assert two.attempts(b"1.a") == (0, ())
    assert two.take_fault() is None


def test_the_history_gives_way_where_the_file_would_be_too_large(runs: Runs) -> None:
    """What decides about messages is worth more than what explains."""
    one = runs.run()
    for number in range(4_000):
        one.first_deferral(b"%d.%s" % (number, b"x" * 120))
        one.note_attempt(b"%d.%s" % (number, b"x" * 120), f"{number} " + "\u20ac" * 110)
    one.save()
    assert runs.file.stat().st_size <= MAX_BYTES
    content = json.loads(runs.file.read_text())
    assert len(content["first_deferred"]) == 4_000
    assert 0 < len(content["attempts"]["messages"]) < 4_000
    assert one.take_fault() is None


def test_what_can_not_be_left_out_is_never_written_too_large(runs: Runs) -> None:
    """It would not be read again; and that is said, and does not go on for ever."""
    runs.file.write_text(
        json.dumps({"version": 1, "held": {f"{n}.{'x' * 200}": 1 for n in range(4_800)}})
    )
    state = runs.run()
    for number in range(800):
        name = b"%d.%s" % (number, b"\xff" * 100)
        if state.note_warned(name, b"") is not Noted.NEW:
            break
    assert runs.file.stat().st_size <= MAX_BYTES
    assert "would have more than" in (state.take_fault() or "")
    assert not state.was_warned(name, b"")


def test_a_message_that_a_reader_has_flagged_or_mbsync_numbered_is_the_same(runs: Runs) -> None:
    """Its day does not begin anew with each flag."""
    state = runs.run()
    assert state.first_deferral(b"1.a") == NOW
    runs.now += 9.0
    assert state.first_deferral(b"1.a:2,S") == state.first_deferral(b"1.a,U=7:2,FS") == NOW


def test_names_that_are_no_text_are_kept(runs: Runs) -> None:
    """A file's name may be any bytes."""
    name = b'1.\xff\xe4\n"'
    one = runs.run()
    one.first_deferral(name)
    one.save()
    runs.now += 9.0
    assert runs.run().first_deferral(name) == NOW


def test_what_is_done_is_forgotten(runs: Runs) -> None:
    """The file must not grow with the mail of years."""
    one = runs.run()
    one.first_deferral(b"1.a")
    one.save()
    two = runs.run()
    two.first_deferral(b"1.a")
    two.forget([b"1.a:2,S"])
    two.forget([b"2.a"])
    two.save()
    assert json.loads(runs.file.read_text())["first_deferred"] == {}


def test_what_nobody_tries_any_more_is_forgotten(runs: Runs) -> None:
    """Its file was removed by hand."""
    one = runs.run()
    one.first_deferral(b"1.a")
    runs.now += DEFERRAL_S
    one.first_deferral(b"2.a")
    one.save()
    assert [*json.loads(runs.file.read_text())["first_deferred"]] == ["2.a"]


def test_a_clock_that_was_set_back_does_not_keep_a_message_for_a_year(runs: Runs) -> None:
    """Its first deferral cannot be in the future: it counts as now."""
    state = runs.run()
    state.first_deferral(b"1.a")
    runs.now -= 365 * DAY_S
    assert state.first_deferral(b"1.a") == runs.now
    runs.now += DAY_S
    assert runs.now - state.first_deferral(b"1.a") == DAY_S


def test_what_a_server_has_shown_is_known_for_a_month(runs: Runs) -> None:
    """To find out that it answers once per package costs 10 s and duplicates, with each run."""
    one = runs.run()
    assert not one.has_shown("mx", ONE_RECIPIENT)
    one.remember("mx", ONE_RECIPIENT)
    one.save()
    runs.now += 30 * 86_400 - 1.0
    two = runs.run()
    assert two.has_shown("mx", ONE_RECIPIENT)
    assert not two.has_shown("mx", PROVEN)
    assert not two.has_shown("mx:2109", ONE_RECIPIENT), "another server"
    runs.now += 1.0
    assert not two.has_shown("mx", ONE_RECIPIENT)
    two.remember("other", PROVEN)
    two.save()
    assert [*json.loads(runs.file.read_text())["servers"]] == ["other"]


def test_a_server_that_is_seen_each_minute_costs_one_write_a_day(runs: Runs) -> None:
    """A cron job must not write to a flash disk each time it has sent something."""
    one = runs.run()
    one.remember("mx", PROVEN)
    one.save()
    runs.file.unlink()
    for _ in range(3):
        runs.now += 60.0
        one.remember("mx", PROVEN)
    one.save()
    assert not runs.file.exists()
    runs.now += DAY_S
    one.remember("mx", PROVEN)
    one.save()
    assert json.loads(runs.file.read_text())["servers"] == {"mx": {"proven": runs.now}}


def test_what_a_server_has_taken_back_is_not_remembered(runs: Runs) -> None:
    """New software runs there."""
    one = runs.run()
    one.remember("mx", ONE_RECIPIENT)
    one.forget_shown("mx", ONE_RECIPIENT)
    one.forget_shown("other", PROVEN)
    one.save()
    assert not runs.run().has_shown("mx", ONE_RECIPIENT)


def test_it_is_written_every_half_minute_at_most(runs: Runs) -> None:
    """A daemon with many old messages writes one file for all of them."""
    state = runs.run()
    assert state.next_deadline is None
    state.first_deferral(b"1.a")
    assert state.next_deadline == runs.clock.now + SAVE_S
    runs.clock.advance(SAVE_S - 1.0)
    state.first_deferral(b"2.a")
    state.save_if_due()
    assert not runs.file.exists()
    runs.clock.advance(1.0)
    state.save_if_due()
    assert [*json.loads(runs.file.read_text())["first_deferred"]] == ["1.a", "2.a"]
    assert state.next_deadline is None
    state.forget([b"1.a"])
    assert state.next_deadline == runs.clock.now + SAVE_S


def test_nothing_changed_is_nothing_written(runs: Runs) -> None:
    """A run that defers nothing leaves no file behind."""
    state = runs.run()
    state.has_shown("mx", PROVEN)
    state.forget([b"1.a"])
    state.save()
    assert not runs.file.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"{",
        b"[]",
        b"\xff",
        b"[" * 100_000,
        b'{"version": 2}',
        b'{"version": true}',
        b'{"first_deferred": {}}',
        b'{"version": 1, "first_deferred": []}',
        b'{"version": 1, "first_deferred": {"1.a": "x"}}',
        b'{"version": 1, "first_deferred": {"1.a": NaN}}',
        b'{"version": 1, "first_deferred": {"1.a": 1e999}}',
        b'{"version": 1, "first_deferred": {"1.a": -1}}',
        b'{"version": 1, "first_deferred": {"1.a": true}}',
        b'{"version": 1, "servers": 1}',
        b'{"version": 1, "servers": {"mx": 1}}',
        b'{"version": 1, "x": "' + b"x" * MAX_BYTES + b'"}',
    ],
)
def test_a_broken_file_is_told_once_and_begun_anew(runs: Runs, content: bytes) -> None:
    """It loses no mail, so it must not stop any either."""
    runs.file.write_bytes(content)
    state = runs.run()
    assert state.first_deferral(b"1.a") == NOW
    fault = state.take_fault()
    assert fault is not None
    assert ".maildirqmtp-state.json" in fault
    assert fault.endswith("beginning it anew")
    assert state.take_fault() is None
    state.save()
    again = runs.run()
    assert again.first_deferral(b"1.a") == NOW
    assert again.take_fault() is None


def test_an_empty_file_is_none(runs: Runs) -> None:
    """A power cut may leave it so; that is nobody's fault to be told of."""
    runs.file.touch()
    state = runs.run()
    assert state.first_deferral(b"1.a") == NOW
    assert state.take_fault() is None


@pytest.mark.parametrize("kind", ["link", "fifo", "directory"])
def test_what_somebody_has_planted_is_neither_followed_nor_waited_for(
    runs: Runs, kind: str, tmp_path: Path
) -> None:
    """As root it would be somebody else's file that is read and replaced."""
    other = tmp_path / "other"
    other.write_text('{"version": 1, "first_deferred": {"1.a": 1}}')
    if kind == "link":
        runs.file.symlink_to(other)
    elif kind == "fifo":
        os.mkfifo(runs.file)
    else:
        runs.file.mkdir()
    state = runs.run()
    assert state.first_deferral(b"1.a") == NOW
    assert state.take_fault() is not None
    state.save()
    assert other.read_text() == '{"version": 1, "first_deferred": {"1.a": 1}}'
    if kind != "directory":
        assert json.loads(runs.file.read_text())["first_deferred"] == {"1.a": NOW}
        assert not runs.file.is_symlink()


def test_a_file_that_cannot_be_written_is_told_once(runs: Runs) -> None:
    """A full disk stops no mail; and its line does not come every half minute."""
    runs.file.mkdir()
    state = runs.run()
    state.take_fault()
    for number in range(3):
        state.first_deferral(b"%d.a" % number)
        state.save()
        fault = state.take_fault()
        assert (fault is None) == (number > 0)


def test_a_file_that_cannot_be_written_is_tried_again(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that was full for a moment would cost what the whole run has learned."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    state = runs.run()
    state.note_in_doubt(b"1.a", "mx1")
    with monkeypatch.context() as patch:
        patch.setattr(files, "write_all", full)
        state.save()
        assert state.next_deadline == runs.clock() + SAVE_S
        runs.clock.advance(SAVE_S)
        state.save_if_due()
        assert not runs.file.exists()
    runs.clock.advance(SAVE_S)
    state.save_if_due()
    assert state.next_deadline is None
    assert runs.run().in_doubt(b"1.a").keys() == {"mx1"}
    fault = state.take_fault()
    assert fault is not None
    assert "No space left on device" in fault
    assert state.take_fault() is None


def test_the_file_stays_below_its_limit(runs: Runs) -> None:
    """One that could not be read again would lose all; the oldest deferrals are what counts."""
    state = runs.run()
    for number in range(6_000):
        runs.now += 1.0
        state.first_deferral(b"%d.%b" % (number, b"x" * 200))
    state.remember("mx", PROVEN)
    state.save()
    assert runs.file.stat().st_size <= MAX_BYTES
    again = runs.run()
    assert again.first_deferral(b"0.%b" % (b"x" * 200)) == NOW + 1.0
    assert again.has_shown("mx", PROVEN)
    assert again.take_fault() is None


def test_what_a_later_version_has_added_is_kept(runs: Runs) -> None:
    """The state is shared by all programs of a package, and they may be of different age."""
    runs.file.write_text('{"version": 1, "hold": ["1.a"]}')
    state = runs.run()
    state.first_deferral(b"1.a")
    state.save()
    assert json.loads(runs.file.read_text())["hold"] == ["1.a"]


def test_a_file_that_can_only_just_be_read_stops_no_daemon(runs: Runs) -> None:
    """Root's daemon forwards for all users, and each user can write this file of theirs."""

    def save_from(depth: int, state: State) -> None:
        if depth:
            save_from(depth - 1, state)
        else:
            state.save()

    readable = 0
    for depth in range(sys.getrecursionlimit() - 200, sys.getrecursionlimit()):
        nested = "[" * depth + "]" * depth
        runs.file.write_text(f'{{"version": 1, "unknown": {nested}}}')
        state = runs.run()
        state.note_stop("cannot connect")
        readable += state.take_fault() is None
        save_from(20, state)
        assert state.take_fault() is None
        assert runs.run().last_stop() in ("cannot connect", "")
    assert readable


def test_notes_for_the_archive_push_out_nothing_that_matters_more(runs: Runs) -> None:
    """Which server may have a message, and when one was first deferred: mail would go twice."""
    state = runs.run()
    state.note_in_doubt(b"1.a", "mx1")
    state.first_deferral(b"2.a")
    state.remember("mx1", ONE_RECIPIENT)
    for number in range(20_000):
        runs.now += 1
        state.note_accepted(b"1800000000.M123456P12345Q%d.laptop" % number)
    state.save()
    assert state.take_fault() is None
    assert runs.file.stat().st_size <= MAX_BYTES
    again = runs.run()
    assert again.in_doubt(b"1.a") == {"mx1": NOW}
    assert again.first_deferral(b"2.a") == NOW
    assert again.has_shown("mx1", ONE_RECIPIENT)
    assert again.was_accepted(b"1800000000.M123456P12345Q19999.laptop")
    assert not again.was_accepted(b"1800000000.M123456P12345Q0.laptop")


def test_what_can_be_read_and_not_written_again_is_left_out(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same, where Python's limits for the two are far apart (3.12 and later)."""
    dumps = json.dumps

    def limited(content: dict[str, object], **more: Any) -> str:
        if "unknown" in content:
            raise RecursionError("maximum recursion depth exceeded")
        return dumps(content, **more)

    monkeypatch.setattr(json, "dumps", limited)
    runs.file.write_text('{"version": 1, "unknown": [[]], "stop": "before"}')
    state = runs.run()
    state.note_stop("cannot connect")
    state.save()
    assert state.take_fault() is None
    assert "unknown" not in json.loads(runs.file.read_text())


def test_routes_of_one_maildir_share_it(runs: Runs) -> None:
    """Two objects would each write its own half over the other's."""
    state = State(runs.maildir.root, runs.clock, lambda: runs.now, threading.Lock())

    def defer(which: int) -> None:
        for number in range(200):
            state.first_deferral(b"%d.%d" % (number, which))
            state.save()

    threads = [threading.Thread(target=defer, args=(which,)) for which in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(json.loads(runs.file.read_text())["first_deferred"]) == 600
    assert state.take_fault() is None


# In doubt


def test_where_a_message_is_in_doubt_outlives_the_run(runs: Runs) -> None:
    """cron's next run would send it to the other server; only the first time counts."""
    one = runs.run()
    assert one.in_doubt(b"1.a") == {}
    one.note_in_doubt(b"1.a", "mx1")
    one.save()
    runs.now += 60.0
    two = runs.run()
    two.note_in_doubt(b"1.a:2,S", "mx1")
    two.note_in_doubt(b"1.a", "mx2")
    assert two.in_doubt(b"1.a,U=7") == {"mx1": NOW, "mx2": NOW + 60.0}
    assert two.in_doubt(b"2.a") == {}
    two.save()
    assert runs.run().in_doubt(b"1.a") == {"mx1": NOW, "mx2": NOW + 60.0}


def test_a_doubt_ends_with_the_message_or_after_a_month(runs: Runs) -> None:
    """The file must not grow with each restart of a server."""
    one = runs.run()
    for name in (b"1.a", b"2.a"):
        one.note_in_doubt(name, "mx1")
        one.first_deferral(name)
    one.forget([b"1.a"])
    one.save()
    assert json.loads(runs.file.read_text())["in_doubt"] == {"2.a": {"mx1": NOW}}
    runs.now += DOUBTS_FORGOTTEN_S
    one.note_in_doubt(b"3.a", "mx1")
    one.save()
    assert [*json.loads(runs.file.read_text())["in_doubt"]] == ["3.a"]


def test_a_doubt_is_kept_while_its_server_is_waited_for(runs: Runs) -> None:
    """With --in-doubt-wait 2d, another server would get the message a day too early."""
    one = runs.run()
    one.note_in_doubt(b"1.a", "mx1")
    one.save()
    runs.now += 47 * 3_600
    again = runs.run()
    again.first_deferral(b"2.a")
    again.save()
    assert runs.run().in_doubt(b"1.a") == {"mx1": NOW}


def test_a_doubt_of_yesterday_is_begun_anew(runs: Runs) -> None:
    """The server may have got it just now, whatever came of it the day before."""
    one = runs.run()
    one.note_in_doubt(b"1.a", "mx1")
    runs.now += RENEWED_S - 1
    one.note_in_doubt(b"1.a", "mx1")
    assert one.in_doubt(b"1.a") == {"mx1": NOW}
    runs.now += 1
    one.note_in_doubt(b"1.a", "mx1")
    assert one.in_doubt(b"1.a") == {"mx1": runs.now}


def test_very_many_doubts_do_not_make_the_file_too_large(runs: Runs) -> None:
    """The oldest go: their time to wait is over."""
    one = runs.run()
    for number in range(20_000):
        runs.now = NOW + number
        one.note_in_doubt(b"%d.%s" % (number, b"x" * 60), "mx1.example.org")
    one.first_deferral(b"1.a")
    one.save()
    assert runs.file.stat().st_size <= MAX_BYTES
    kept = json.loads(runs.file.read_text())["in_doubt"]
    assert len(kept) > 1_000
    assert "19999." + "x" * 60 in kept


@pytest.mark.parametrize("wrong", ["[]", '{"1.a": 1}', '{"1.a": {"mx1": "x"}}', "null"])
def test_doubts_that_are_none_are_told_and_forgotten(runs: Runs, wrong: str) -> None:
    """A file that somebody has edited must not stop the mail."""
    runs.file.write_text(f'{{"version": 1, "in_doubt": {wrong}}}')
    one = runs.run()
    assert one.in_doubt(b"1.a") == {}
    assert "is of no use" in (one.take_fault() or "")


def test_why_the_last_run_has_stopped_outlives_it(runs: Runs) -> None:
    """With the link down nothing else says why mail waits; once a server is reached, no more."""
    state = runs.run()
    assert state.last_stop() == ""
    state.note_stop("cannot connect to mx")
    state.save()
    state = runs.run()
    assert state.last_stop() == "cannot connect to mx"
    state.note_stop("")
    state.save()
    assert runs.run().last_stop() == ""
    assert "stop" not in json.loads(runs.file.read_text())


def test_what_is_no_reason_is_not_shown(runs: Runs) -> None:
    """The file may have been written by hand."""
    runs.file.write_text('{"version": 1, "stop": 5}')
    assert runs.run().last_stop() == ""
