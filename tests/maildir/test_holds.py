"""Holds: they last, whoever writes the state file at the same time, or say that they cannot."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from maildirqmtp.errors import LocalError
from maildirqmtp.maildir import holds, state
from maildirqmtp.maildir.maildir import Maildir
from maildirqmtp.maildir.state import PROVEN, State
from tests.fakes import FakeClock


def change(maildir: Maildir, hold: Sequence[bytes] = (), release: Sequence[bytes] = ()) -> None:
    """Hold and release messages."""
    holds.change(maildir.root, state.NAME, state.MAX_BYTES, hold=hold, release=release)


@pytest.fixture
def running(maildir: Maildir, clock: FakeClock) -> State:
    """The state as a running forwarder has it."""
    return State(maildir.root, clock, lambda: 1_800_000_000.0)


def the_file(path: Path) -> Path:
    """Return the path of the state file."""
    return path / ".maildirqmtp-state.json"


def test_a_running_forwarder_sees_it_at_once(maildir: Maildir, running: State) -> None:
    """Whatever a mail reader has made of the name since."""
    assert running.held().keys() == set()
    change(maildir, hold=[b"1.a,U=7:2,S", b"2.b\xff"])
    assert running.held().keys() == {"1.a", holds.key(b"2.b\xff")}
    assert holds.key(b"1.a,S=5,U=9") in running.held()
    change(maildir, release=[b"1.a"])
    assert running.held().keys() == {holds.key(b"2.b\xff")}
    change(maildir, release=[b"2.b\xff"])
    assert running.held().keys() == set()


def test_what_forwarders_write_keeps_it(path: Path, maildir: Maildir, running: State) -> None:
    """The forwarder has read the file before, and writes all of it."""
    running.remember("mx", PROVEN)
    change(maildir, hold=[b"1.a"])
    running.save()
    assert json.loads(the_file(path).read_text())["servers"]["mx"]
    assert running.held().keys() == {"1.a"}
    change(maildir, release=[b"1.a"])
    running.remember("other", PROVEN)
    running.save()
    assert running.held().keys() == set()
    change(maildir, hold=[b"2.b"])
    assert set(json.loads(the_file(path).read_text())["servers"]) == {"mx", "other"}
    assert running.take_fault() is None


def test_many_administrators_and_a_forwarder_lose_no_hold(path: Path, clock: FakeClock) -> None:
    """Each reads the file, changes it and writes it."""

    def hold(number: int) -> None:
        with Maildir(os.fsencode(path)) as opened:
            if number % 4:
                change(opened, hold=[b"%d.a" % number])
            else:
                one = State(opened.root, clock, lambda: 1_800_000_000.0)
                one.remember(f"mx{number}", PROVEN)
                one.save()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(hold, range(64)))
    held = json.loads(the_file(path).read_text())["held"]
    assert set(held) == {f"{number}.a" for number in range(64) if number % 4}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"{", "is of no use"),
        (b'{"version": 2}', "not of version 1"),
        (b"[]", "is of no use"),
        (b'{"version": 1, "held": []}', "is of no use"),
    ],
)
def test_a_file_of_no_use_is_not_replaced(
    path: Path, maildir: Maildir, content: bytes, said: str
) -> None:
    """A hold that is lost again would be worse than one that is refused."""
    the_file(path).write_bytes(content)
    with pytest.raises(LocalError, match=said):
        change(maildir, hold=[b"1.a"])
    assert the_file(path).read_bytes() == content


def test_a_file_that_becomes_unreadable_releases_nothing(
    path: Path, maildir: Maildir, running: State
) -> None:
    """The mail would go, and nobody has let it."""
    change(maildir, hold=[b"1.a"])
    assert running.held().keys() == {"1.a"}
    the_file(path).write_text("{")
    assert running.held().keys() == {"1.a"}


@pytest.mark.parametrize("looks", [True, False])
@pytest.mark.parametrize("content", ["{", '{"version": 1, "held": []}', "[" * 100_000, "too large"])
def test_a_slip_in_the_file_releases_nothing_with_the_next_write(
    path: Path, maildir: Maildir, running: State, content: str, looks: bool
) -> None:
    """The forwarder makes the file good again, with what it knew to be on hold."""
    change(maildir, hold=[b"1.a"])
    holds.change(
        maildir.root, state.NAME, state.MAX_BYTES, hold=[b"2.b"], release=(), bouncing=True
    )
    before = dict(running.held())
    is_large = content == "too large"
    the_file(path).write_text(" " * (state.MAX_BYTES + 1) if is_large else content)
    if looks:
        assert running.held() == before
    running.remember("mx", PROVEN)
    running.save()
    assert json.loads(the_file(path).read_text())["servers"]["mx"]
    assert running.held() == before
    assert before == {"1.a": holds.REASON, "2.b": holds.BOUNCING}


def test_a_file_that_is_removed_releases_all_with_the_next_write(
    path: Path, maildir: Maildir, running: State
) -> None:
    """It is removed where it is of no use: what was on hold must not come back after that."""
    change(maildir, hold=[b"1.a"])
    assert running.held().keys() == {"1.a"}
    the_file(path).unlink()
    running.remember("mx", PROVEN)
    running.save()
    assert running.held().keys() == set()


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES])
def test_a_file_that_cannot_be_read_is_not_written_anew(
    path: Path, maildir: Maildir, running: State, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """A disk that fails for a moment, or another user's file, would release what is held."""
    change(maildir, hold=[b"1.a"])
    before = the_file(path).read_bytes()
    running.remember("mx", PROVEN)

    def load(*_: object) -> bytes:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr("maildirqmtp.maildir.files.load", load)
        running.save()
    assert the_file(path).read_bytes() == before
    assert os.strerror(number) in (running.take_fault() or "")


def test_what_may_not_be_read_is_not_taken_for_no_holds(
    maildir: Maildir, running: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The owner holds a message, and another user forwards: nobody has let it go."""
    change(maildir, hold=[b"1.a"])

    def load(*_: object) -> bytes:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr("maildirqmtp.maildir.files.load_known", load)
    with pytest.raises(LocalError, match=r"\.maildirqmtp-state\.json: Permission denied"):
        running.held(must_know=True)
    assert running.held() == {}, "what only shows mail goes on, and so do connections"


@pytest.mark.parametrize("held", [True, False])
def test_what_is_held_outlives_a_power_cut(
    maildir: Maildir, running: State, monkeypatch: pytest.MonkeyPatch, held: bool
) -> None:
    """Also where the forwarder has written the file since."""
    if held:
        change(maildir, hold=[b"1.a"])
    running.remember("mx", PROVEN)
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    running.save()
    assert bool(synced) == held


def test_an_empty_file_is_a_new_one(path: Path, maildir: Maildir, running: State) -> None:
    """A power cut leaves it so."""
    the_file(path).write_text("")
    change(maildir, hold=[b"1.a"])
    assert running.held().keys() == {"1.a"}


def test_times_that_are_none_hold_nothing(path: Path, running: State) -> None:
    """A file that somebody has written by hand."""
    held = (
        '{"a": true, "b": NaN, "c": -1, "d": 1e999, "e": "x", "f": 5, "g": {}, "h": {"bounce": 0}}'
    )
    the_file(path).write_text(f'{{"version": 1, "held": {held}}}')
    assert running.held().keys() == {"f", "h"}


def test_there_is_a_limit(maildir: Maildir, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file has one, too; nothing is held then."""
    monkeypatch.setattr(holds, "MOST", 3)
    with pytest.raises(LocalError, match="at most 3 messages"):
        change(maildir, hold=[b"1", b"2", b"3", b"4"])


def test_a_full_file_makes_room_for_holds(path: Path, maildir: Maildir, running: State) -> None:
    """With a long history of attempts nothing could be held or bounced any more."""
    for number in range(13_500):
        name = b"1795%06d.M%06dP12345Q%d.mail.example.org" % (number, number, number)
        running.first_deferral(name)
        running.note_attempt(name, f"greylisted, see http://postgrey.example.net/{number}")
    running.note_in_doubt(b"1.a", "mx1")
    running.remember("mx", PROVEN)
    running.save()
    assert the_file(path).stat().st_size > state.MAX_BYTES // 3
    many = [b"1796%06d.M%06dP12345Q%d.mail.example.org" % (n, n, n) for n in range(holds.MOST)]
    change(maildir, hold=many)
    assert len(running.held()) == len(many)
    content = json.loads(the_file(path).read_text())
    assert content["servers"].keys() == {"mx"}
    assert "1795000000.M000000P12345Q0.mail.example.org" in content["first_deferred"]


def test_what_else_is_there_stays(path: Path, maildir: Maildir) -> None:
    """Of what a later version has written down, or has malformed, nothing is touched."""
    kept = {"version": 1, "attempts": "later", "first_deferred": 7, "in_doubt": {"1.a": {}}}
    the_file(path).write_text(json.dumps(kept))
    change(maildir, hold=[b"1.a"])
    change(maildir, release=[b"1.a"])
    assert json.loads(the_file(path).read_text()) == kept


def test_a_malformed_file_makes_room_as_well(path: Path, maildir: Maildir) -> None:
    """It has no order to keep the oldest by."""
    kept = {"version": 1, "first_deferred": 7, "in_doubt": {"1.a": {}}, "later": "x" * 900_000}
    the_file(path).write_text(json.dumps(kept))
    many = [b"1796%06d.M%06dP12345Q%d.mail.example.org" % (n, n, n) for n in range(holds.MOST)]
    change(maildir, hold=many)
    assert len(json.loads(the_file(path).read_text())["held"]) == len(many)


def test_holds_that_find_no_room_are_refused(maildir: Maildir) -> None:
    """And not believed to be there."""
    with pytest.raises(LocalError, match="would have more than 100 bytes"):
        holds.change(maildir.root, state.NAME, 100, hold=[b"1." + b"a" * 100], release=[])


def test_another_writer_is_waited_for_and_then_told(
    path: Path, maildir: Maildir, running: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A forwarder then writes it the next time, and does not stop."""
    monkeypatch.setattr(holds, "_WAIT_S", 0.0)
    running.remember("mx", PROVEN)
    with holds.locked(maildir.root):
        with pytest.raises(LocalError, match="is locked by another process"):
            change(maildir, hold=[b"1.a"])
        running.save()
        assert "is locked by another process" in (running.take_fault() or "")
    change(maildir, hold=[b"1.a"])
    assert running.held().keys() == {"1.a"}


def test_the_lock_is_no_link_and_only_the_owners(path: Path, maildir: Maildir) -> None:
    """Others could hold it for good, or have root open another file."""
    (path / ".maildirqmtp-state-lock").symlink_to(path / "elsewhere")
    with pytest.raises(LocalError, match="cannot open"):
        change(maildir, hold=[b"1.a"])
    assert not (path / "elsewhere").exists()
    (path / ".maildirqmtp-state-lock").unlink()
    change(maildir, hold=[b"1.a"])
    assert (path / ".maildirqmtp-state-lock").stat().st_mode & 0o777 == 0o600


def test_what_a_bounce_holds_is_not_what_an_administrator_holds(
    path: Path, maildir: Maildir, running: State
) -> None:
    """Killed, it leaves its hold: people must learn that it is no colleague's."""
    change(maildir, hold=[b"1.a", b"2.b"])
    holds.change(
        maildir.root,
        state.NAME,
        state.MAX_BYTES,
        hold=[b"2.b", b"3.c", b"4.d"],
        release=(),
        bouncing=True,
    )
    change(maildir, hold=[b"4.d"])
    reasons = {"1.a": holds.REASON, "2.b": holds.REASON, "3.c": holds.BOUNCING}
    assert running.held() == {**reasons, "4.d": holds.REASON}
    running.remember("mx", PROVEN)
    running.save()
    assert running.held()["3.c"] == holds.BOUNCING, "a forwarder has written the file"
    change(maildir, hold=(), release=[b"3.c"])
    assert "3.c" not in running.held()


def test_a_bounce_releases_only_what_it_holds(maildir: Maildir, running: State) -> None:
    """An administrator may have held it meanwhile, and was told that it is held."""

    def bounce(hold: Iterable[bytes], release: Iterable[bytes]) -> None:
        place = (maildir.root, state.NAME, state.MAX_BYTES)
        holds.change(*place, hold=hold, release=release, bouncing=True)

    bounce([b"1.a", b"2.b"], ())
    change(maildir, hold=[b"1.a"])
    bounce((), [b"1.a", b"2.b"])
    assert running.held() == {"1.a": holds.REASON}
