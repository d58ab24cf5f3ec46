"""What a maildir has kept for long enough goes; nothing that is younger, flagged or no message."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from pathlib import Path
from typing import Any

import pytest

from maildirqmtp.errors import LocalError
from maildirqmtp.maildir import expiry
from maildirqmtp.maildir.expiry import Expiry, check_owners
from maildirqmtp.maildir.files import Message
from maildirqmtp.maildir.maildir import Maildir, Removal
from tests.fakes import FileSystem
from tests.helpers import add_message, add_sidecar, names, snapshot

DAY_S = 86_400.0
KEEP_S = 30 * DAY_S


class Look(Expiry):
    """A look so many days from now, from the first to the last portion; see `steps`."""

    def __init__(self, maildir: Maildir, days: float, keep_s: float = KEEP_S) -> None:
        super().__init__(maildir, keep_s, time.time() + days * DAY_S)
        self.steps = sum(1 for _ in self.portions())


# How old it is


@pytest.mark.parametrize("folder", ["new", "cur"])
@pytest.mark.parametrize(("days", "left"), [(29.9, ["1.a"]), (30.1, [])])
def test_a_message_goes_when_it_was_there_for_that_long(
    path: Path, maildir: Maildir, folder: str, days: float, left: list[str]
) -> None:
    """Read or not."""
    add_message(path, "1.a", folder=folder)
    look = Look(maildir, days)
    assert (look.removed, look.fault) == (1 - len(left), None)
    assert names(path / folder) == left


def test_its_time_begins_when_it_came_there(path: Path, maildir: Maildir) -> None:
    """A message that waited for two weeks, and then failed, is no older than that failure."""
    add_message(path, "1.a", folder="tmp")
    os.utime(path / "tmp" / "1.a", (1.5e9, 1.5e9))
    (path / "tmp" / "1.a").rename(path / "new" / "1.a")
    assert Look(maildir, 29.9).removed == 0
    assert Look(maildir, 30.1).removed == 1


@pytest.mark.parametrize("which", ["mtime", "name", "sidecar"])
def test_the_latest_of_its_times_counts(path: Path, maildir: Maildir, which: str) -> None:
    """Where the clock was wrong, one of them tells; and a message may have failed again since."""
    later_s = time.time() + 10 * DAY_S
    name = f"{later_s:.0f}.a" if which == "name" else "1.a"
    add_message(path, name)
    add_sidecar(path, name, "s@x", "r@y")
    if which != "name":
        file = path / "new" / name if which == "mtime" else path / "envelope" / f"{name}.json"
        os.utime(file, (later_s, later_s))
    assert Look(maildir, 39.9).removed == 0
    assert Look(maildir, 40.1).removed == 1


def test_a_message_from_before_the_clock_was_set_stays(
    path: Path, maildir: Maildir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would be fifty years old a minute later, and the mail of that boot gone."""
    add_message(path, "1.a")
    monkeypatch.setattr(expiry, "EARLIEST_S", time.time() + DAY_S)
    assert Look(maildir, 30_000).removed == 0


def test_a_name_whose_beginning_is_no_time_tells_nothing(path: Path, maildir: Maildir) -> None:
    """As of other programs: milliseconds, a word, nothing at all."""
    for name in ("1800000000123.a", "mail.1", "x", "20261127"):
        add_message(path, name)
    assert Look(maildir, 31).removed == 4


def test_a_young_name_costs_no_look_at_the_file(
    path: Path, maildir: Maildir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A million of sent messages are listed in a second; a stat of each takes a minute."""
    add_message(path, f"{time.time():.0f}.a")
    real = os.stat

    def stat(name: bytes, **options: Any) -> os.stat_result:
        assert not os.fsencode(name).endswith(b".a"), "it was looked at"
        return real(name, **options)

    monkeypatch.setattr(os, "stat", stat)
    assert Look(maildir, 29).removed == 0


# What it is


def test_what_somebody_has_flagged_stays(path: Path, maildir: Maildir) -> None:
    """A flag is how people say that they still need a message; seen, answered, trash are not."""
    flagged = ["1.a:2,F", "1.b:2,FRS"]
    for name in [*flagged, "1.F", "1.c:2,S", "1.d:2,", "1.e:2,RST", "1.F:2,S"]:
        add_message(path, name, folder="cur")
    assert Look(maildir, 31).removed == 5
    assert names(path / "cur") == flagged


def test_what_is_no_message_stays(path: Path, maildir: Maildir) -> None:
    """And what a link leads to, which may be anybody's."""
    elsewhere = path.parent / "elsewhere"
    elsewhere.write_text("precious")
    (path / "new" / "1.link").symlink_to(elsewhere)
    (path / "new" / "2.directory").mkdir()
    os.mkfifo(path / "new" / "3.fifo")
    add_message(path, ".hidden")
    add_message(path, "4.a", folder="tmp")
    before = snapshot(path.parent)
    look = Look(maildir, 31, keep_s=1.0)
    assert (look.fault, look.steps) == (None, 1), "few files are one portion"
    after = snapshot(path.parent)
    assert before.keys() - after.keys() == {"Maildir/tmp/4.a"}, "old files in tmp/ are rubbish"
    assert names(path / "new") == [".hidden", "1.link", "2.directory", "3.fifo"]


def test_only_the_file_that_was_old_is_removed(
    path: Path, maildir: Maildir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another one came under its name between the look and the removal."""
    add_message(path, "1.a")
    remove = maildir.remove

    def replaced(message: Message) -> Removal:
        (path / "new" / "1.a").unlink()
        add_message(path, "1.a", b"another, and longer\n")
        return remove(message)

    monkeypatch.setattr(maildir, "remove", replaced)
    look = Look(maildir, 31)
    assert (look.removed, look.fault) == (0, None)
    assert names(path / "new") == ["1.a"]


def test_a_mail_reader_that_is_faster_is_no_fault(
    path: Path, maildir: Maildir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It moves or removes a message that is being looked at."""
    add_message(path, "1.a")
    add_message(path, "1.b")
    look = Expiry(maildir, KEEP_S, time.time() + 31 * DAY_S)
    real = os.stat

    def stat(name: bytes, **options: Any) -> os.stat_result:
        if name == b"1.a" and (path / "new" / "1.a").exists():
            (path / "new" / "1.a").rename(path / "cur" / "1.a:2,S")
        return real(name, **options)

    monkeypatch.setattr(os, "stat", stat)
    for _ in look.portions():
        continue
    assert look.fault is None
    assert names(path / "new") == []


# Sidecars


def test_a_sidecar_goes_after_its_message_is_gone_for_good(
    path: Path, maildir: Maildir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a power cut brings back would else be sent again to those in its header."""
    add_message(path, "1.a")
    add_message(path, "2.b,U=7:2,S", folder="cur")
    add_sidecar(path, "1.a", "s@x", "r@y")
    add_sidecar(path, "2.b", "s@x", "r@y")
    calls = FileSystem(monkeypatch, path)
    assert Look(maildir, 31).removed == 2
    assert names(path / "envelope") == []
    done = calls.of("unlink", "fsync")
    assert done[:4] == ["unlink new/1.a", "unlink cur/2.b,U=7:2,S", "fsync new", "fsync cur"]
    assert sorted(done[4:]) == ["unlink envelope/1.a.json", "unlink envelope/2.b.json"]


def test_a_message_needs_no_sidecar(path: Path, maildir: Maildir) -> None:
    """Others in the same maildir may have one."""
    for name in ("1.a", "1.b"):
        add_message(path, name)
    add_sidecar(path, "1.b", "s@x", "r@y")
    look = Look(maildir, 31)
    assert (look.removed, look.fault) == (2, None)


def test_without_any_sidecar_nothing_is_made_or_waited_for(
    path: Path, maildir: Maildir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sent mail has none: it needs no directory for them, and no fsync."""
    add_message(path, "1.a")
    calls = FileSystem(monkeypatch, path)
    assert Look(maildir, 31).removed == 1
    assert calls.calls == ["unlink new/1.a"]
    assert names(path) == ["cur", "new", "tmp"]


def test_without_that_the_sidecars_stay(
    path: Path, maildir: Maildir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For a disk that cannot say whether the messages are gone."""
    add_message(path, "1.a")
    add_sidecar(path, "1.a", "s@x", "r@y")
    FileSystem(monkeypatch, path).fail("fsync cur", errno.EIO)
    look = Look(maildir, 31)
    assert look.removed == 1
    assert "cannot make durable" in str(look.fault)
    assert names(path / "envelope") == ["1.a.json"]
    assert Look(maildir, 31).fault is None
    assert names(path / "envelope") == []


@pytest.mark.parametrize("other", ["1.a:2,F", "1.a,U=3:2,F"])
def test_a_sidecar_stays_with_another_message_of_that_name(
    path: Path, maildir: Maildir, other: str
) -> None:
    """One recipient failed, somebody read that, then another failed: both have the same sidecar."""
    add_message(path, "1.a")
    add_message(path, other, folder="cur")
    add_sidecar(path, "1.a", "s@x", "r@y")
    assert Look(maildir, 31).removed == 1
    assert (names(path / "cur"), names(path / "envelope")) == ([other], ["1.a.json"])


class Killed(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("at", range(7))
def test_killed_at_any_moment_no_message_is_without_its_sidecar(
    path: Path, maildir: Maildir, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """And the next look does the rest."""
    for name in ("1.a", "1.b", "1.c:2,F"):
        add_message(path, name, folder="cur")
        add_sidecar(path, name.partition(":")[0], "s@x", "r@y")
    calls = FileSystem(monkeypatch, path)
    call = calls._call

    def dying(line: str) -> None:
        if len(calls.calls) == at:
            raise Killed
        call(line)

    monkeypatch.setattr(calls, "_call", dying)
    with contextlib.suppress(Killed):
        Look(maildir, 31)
    assert len(calls.calls) == at, "all that it does is in this list"
    left = [name.partition(":")[0] + ".json" for name in names(path / "cur")]
    assert set(left) <= set(names(path / "envelope"))
    monkeypatch.setattr(calls, "_call", call)
    assert Look(maildir, 31).fault is None
    assert (names(path / "cur"), names(path / "envelope")) == (["1.c:2,F"], ["1.c.json"])


# In portions, and in spite of errors


def test_a_portion_is_small(path: Path, maildir: Maildir, monkeypatch: pytest.MonkeyPatch) -> None:
    """A daemon sends mail between two of them."""
    for number in range(25):
        add_message(path, f"1.{number}", folder="cur" if number % 2 else "new")
        add_message(path, f"9{time.time():.0f}.{number}")
    monkeypatch.setattr(expiry, "PORTION_FILES", 4)
    monkeypatch.setattr(expiry, "PORTION_NAMES", 10)
    look = Expiry(maildir, KEEP_S, time.time() + 31 * DAY_S)
    before = 0
    for _ in look.portions():
        assert look.removed - before <= 4
        before = look.removed
    assert look.removed == 25
    assert Look(maildir, 31).steps > 2, "names are counted, too"


def test_one_file_that_cannot_be_removed_stops_no_other(
    path: Path, maildir: Maildir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first that goes wrong is told."""
    for name in ("1.a", "1.b", "1.c"):
        add_message(path, name)
    calls = FileSystem(monkeypatch, path)
    calls.always_fail("unlink new/1.b", errno.EPERM)
    calls.always_fail("fsync", errno.EIO)
    add_sidecar(path, "1.b", "s@x", "r@y")
    look = Look(maildir, 31)
    assert look.removed == 2
    assert "1.b: Operation not permitted" in str(look.fault)
    assert names(path / "new") == ["1.b"]


@pytest.mark.parametrize("what", ["message", "sidecar"])
def test_one_that_cannot_be_looked_at_stops_no_other(
    path: Path, maildir: Maildir, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """Its age is not known: it stays."""
    for name in ("1.a", "1.b"):
        add_message(path, name)
        add_sidecar(path, name, "s@x", "r@y")
    broken = b"1.a" if what == "message" else b"1.a.json"
    real = os.stat

    def stat(name: bytes, **options: Any) -> os.stat_result:
        if name == broken:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(name, **options)

    monkeypatch.setattr(os, "stat", stat)
    look = Look(maildir, 31)
    assert look.removed == 1
    assert "1.a" in str(look.fault)
    assert names(path / "new") == ["1.a"]


def test_a_directory_that_cannot_be_listed_is_told(
    path: Path, maildir: Maildir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And no sidecar goes where their messages could not be seen."""

    def broken(fd: int) -> object:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    for functions in (["scandir"], ["scandir", "listdir"], ["listdir"]):
        add_sidecar(path, "1.a", "s@x", "r@y")
        with monkeypatch.context() as patch:
            for function in functions:
                patch.setattr(os, function, broken)
            assert "cannot list" in str(Look(maildir, 31).fault)
        assert names(path / "envelope") == ["1.a.json"] * ("listdir" in functions)


def test_counting_changes_nothing(path: Path, maildir: Maildir) -> None:
    """For `--dry-run`."""
    for name in ("1.a", "1.b:2,F", "1.c"):
        add_message(path, name, folder="cur")
    before = snapshot(path)
    assert Expiry(maildir, KEEP_S, time.time() + 31 * DAY_S).count() == 2
    assert Expiry(maildir, KEEP_S, time.time()).count() == 0
    assert snapshot(path) == before


# Whose it is


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act for other users")
@pytest.mark.parametrize("part", ["new", "cur", "tmp", "envelope"])
def test_root_removes_nothing_from_another_users_directory(path: Path, part: str) -> None:
    """A user may have moved one of another user's into a maildir of theirs."""
    with Maildir(os.fsencode(path)) as maildir:
        check_owners(maildir)
    (path / "envelope").mkdir()
    for each in (path, *path.iterdir()):
        os.chown(each, 1_000, 1_000)
    with Maildir(os.fsencode(path)) as maildir:
        check_owners(maildir)
        os.chown(path / part, 1_001, 1_001)
        with pytest.raises(LocalError, match=f"{part} belongs to user 1001"):
            check_owners(maildir)
        os.chown(path / part, 0, 0)
        check_owners(maildir)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act for other users")
def test_other_users_look_only_where_they_may(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A maildir that a group shares has directories of several users."""
    monkeypatch.setattr(os, "geteuid", lambda: 1_234)
    with Maildir(os.fsencode(path)) as maildir:
        os.chown(path / "new", 1_001, 1_001)
        check_owners(maildir)
