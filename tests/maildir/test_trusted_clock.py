"""A clock that jumps forward must not empty a maildir, nor keep it full where it is as usual."""

from __future__ import annotations

import errno
import os
from itertools import pairwise
from pathlib import Path

import pytest

from maildirqmtp.errors import LocalError
from maildirqmtp.maildir.maildir import Maildir
from maildirqmtp.maildir.trusted_clock import (
    CONFIRM_S,
    NAME,
    USUAL_S,
    Reading,
    judge,
    read,
    write,
)
from tests.helpers import open_descriptors

HOUR_S = 3_600
DAY_S = 24 * HOUR_S
NOW = 1_800_000_000
#: As of an empty battery: 2038.
WRONG = 2_147_000_000


def looks(*times: int) -> list[int]:
    """Look at these times; return up to when ages counted in each look."""
    reading: Reading | None = None
    found = []
    for now_s in times:
        reading = judge(reading, now_s + 0.5)
        assert reading.seen_s == now_s
        found.append(reading.trusted_s)
    return found


@pytest.mark.parametrize("every_s", [60, 6 * HOUR_S, DAY_S + 60, USUAL_S])
def test_regular_looks_are_believed_at_once(every_s: int) -> None:
    """Whether by a daemon, or by cron once a day."""
    times = [NOW + n * every_s for n in range(5)]
    assert looks(*times) == times


def test_a_jump_counts_for_nothing_until_it_is_confirmed() -> None:
    """Mail of years would be gone before anybody has set the clock."""
    hourly = [WRONG + n * HOUR_S for n in range(13)]
    assert looks(NOW, *hourly) == [NOW] + [NOW] * 12 + [hourly[-1]]


def test_a_clock_that_is_set_right_again_has_harmed_nothing() -> None:
    """And removing goes on at once."""
    right = [NOW + HOUR_S, NOW + 2 * HOUR_S]
    assert looks(NOW, WRONG, WRONG + HOUR_S, *right) == [NOW, NOW, NOW, *right]


def test_a_clock_that_is_set_right_by_halves_has_to_be_confirmed_anew() -> None:
    """It is still ahead of all that it has shown rightly."""
    half = WRONG - 100 * DAY_S
    times = [half, half + CONFIRM_S - 1, half + CONFIRM_S]
    assert looks(NOW, WRONG, *times) == [NOW, NOW, NOW, NOW, times[-1]]


def test_a_clock_that_is_set_back_makes_everything_young() -> None:
    """And coming back from there is a jump like any other."""
    assert looks(NOW, 100, NOW, NOW + CONFIRM_S) == [NOW, 100, 100, NOW + CONFIRM_S]


def test_after_a_holiday_removing_begins_within_a_day() -> None:
    """A laptop was shut for three weeks: the same as a jump, and nothing but a delay."""
    back = NOW + 21 * DAY_S
    daily = [back, back + DAY_S]
    assert looks(NOW, *daily) == [NOW, NOW, daily[1]]


def test_a_jump_soon_after_a_holiday_is_still_a_jump() -> None:
    """Only what the clock showed when the holiday was over is confirmed by it."""
    back = NOW + 21 * DAY_S
    assert looks(NOW, back, back + HOUR_S, WRONG) == [NOW, NOW, NOW, back]


def test_weekly_runs_are_one_run_late() -> None:
    """Each of them is a jump to the one before; they are not late for ever."""
    times = [NOW + n * 7 * DAY_S for n in range(6)]
    assert looks(*times)[2:] == [times[n - 1] for n in range(2, 6)]
    assert all(b - a == 7 * DAY_S for a, b in pairwise(looks(*times)[2:]))


def test_a_clock_before_the_epoch_is_no_time() -> None:
    """Else the file would have a number that nobody can read."""
    assert judge(None, -5.0) == Reading(0, 0, 0)


# The file


def test_what_is_written_is_read(path: Path, maildir: Maildir) -> None:
    """By the next run; in place, so that a full disk has room for it."""
    before = open_descriptors()
    assert read(maildir.root) is None
    write(maildir.root, Reading(NOW, NOW))
    inode = (path / os.fsdecode(NAME)).stat().st_ino
    write(maildir.root, Reading(NOW + 1, NOW, WRONG))
    assert read(maildir.root) == Reading(NOW + 1, NOW, WRONG)
    assert (path / os.fsdecode(NAME)).stat().st_ino == inode
    assert open_descriptors() == before
    assert (path / os.fsdecode(NAME)).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("content", [b"", b"1 2", b"1 2 -3", b"1 2 3 4", b"x y z", b"\xff"])
def test_what_a_power_cut_has_left_is_as_nothing(
    path: Path, maildir: Maildir, content: bytes
) -> None:
    """A traceback, with each run, would help nobody."""
    (path / os.fsdecode(NAME)).write_bytes(content)
    assert read(maildir.root) is None


def test_another_file_of_that_name_is_not_written_to(path: Path, maildir: Maildir) -> None:
    """Root may be led to any file by a link, or by a second name of one."""
    victim = path.parent / "victim"
    victim.write_bytes(b"precious")
    (path / os.fsdecode(NAME)).symlink_to(victim)
    with pytest.raises(LocalError, match=r"cannot write .*clock"):
        write(maildir.root, Reading(NOW, NOW))
    with pytest.raises(LocalError, match=r"cannot read .*clock"):
        read(maildir.root)
    (path / os.fsdecode(NAME)).unlink()
    os.link(victim, path / os.fsdecode(NAME))
    with pytest.raises(LocalError, match="not a regular file with one name"):
        write(maildir.root, Reading(NOW, NOW))
    assert victim.read_bytes() == b"precious"
    (path / os.fsdecode(NAME)).unlink()
    os.mkfifo(path / os.fsdecode(NAME))
    with pytest.raises(LocalError, match="not a regular file with one name"):
        write(maildir.root, Reading(NOW, NOW))


def test_a_disk_that_fails_is_told(maildir: Maildir, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the path; whoever calls decides what that means."""

    def full(fd: int, data: bytes, offset: int) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(LocalError, match=r"cannot write .*\.maildirqmtp-clock: Input/output"):
        write(maildir.root, Reading(NOW, NOW))
