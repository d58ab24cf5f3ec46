"""Cleaning: what crashes left goes, and nothing that anybody may still need."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path
from typing import Any

import pytest

from maildirqmtp.errors import LocalError
from maildirqmtp.maildir import writing
from maildirqmtp.maildir.cleanup import clean
from maildirqmtp.maildir.maildir import Maildir
from tests.fakes import FileSystem
from tests.helpers import add_message, add_sidecar, make_maildir, names

HOUR_S = 3_600.0


@pytest.fixture
def path(path: Path) -> Path:
    """A maildir with a directory of sidecars."""
    (path / "envelope").mkdir()
    return path


@pytest.fixture
def maildir(maildir: Maildir) -> Maildir:
    """The same, open and scanned."""
    maildir.scan()
    return maildir


@pytest.mark.parametrize(("hours", "left"), [(35, ["1.a.json"]), (37, [])])
def test_an_orphan_goes_after_36_hours(
    path: Path, maildir: Maildir, hours: int, left: list[str]
) -> None:
    """A sidecar comes before its message; the writer may still be at it."""
    add_sidecar(path, "1.a", "s@x", "r@y")
    assert clean(maildir, time.time() + hours * HOUR_S) == 1 - len(left)
    assert names(path / "envelope") == left


@pytest.mark.parametrize("name", ["1.a", "1.a:2,S", "1.a,U=7", "1.a,S=1,W=2,U=7:2,S"])
@pytest.mark.parametrize("folder", ["new", "cur"])
def test_a_sidecar_with_its_message_stays(
    path: Path, maildir: Maildir, folder: str, name: str
) -> None:
    """Without it the message would go to whom its headers say, who may have it already."""
    add_message(path, name, folder=folder)
    add_sidecar(path, "1.a", "s@x", "r@y")
    assert clean(maildir, time.time() + 1_000 * HOUR_S) == 0
    assert names(path / "envelope") == ["1.a.json"]


def test_a_sidecar_of_a_name_like_another_messages_goes(path: Path, maildir: Maildir) -> None:
    """1.a.json is not the sidecar of 1.ab, nor of 1."""
    for name in ("1.ab", "1", "1.a.json"):
        add_message(path, name)
    add_sidecar(path, "1.a", "s@x", "r@y")
    assert clean(maildir, time.time() + 37 * HOUR_S) == 1


def test_a_sidecar_that_was_moved_here_is_new(path: Path, maildir: Maildir) -> None:
    """A failed message is put back by hand, first its sidecar, which may be weeks old."""
    add_sidecar(path, "1.a", "s@x", "r@y")
    file = path / "envelope" / "1.a.json"
    os.utime(file, (1e9, 1e9))
    assert clean(maildir, time.time() + HOUR_S) == 0
    assert file.exists()


def test_a_message_that_is_being_moved_is_seen(
    path: Path, maildir: Maildir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mail reader moves it from cur/ back to new/ between our two looks."""
    add_message(path, "1.a:2,S", folder="cur")
    add_sidecar(path, "1.a", "s@x", "r@y")
    listdir = os.listdir

    def list_and_move(fd: int) -> list[str]:
        found = listdir(fd)
        if fd == maildir.new.fd and (path / "cur" / "1.a:2,S").exists():
            (path / "cur" / "1.a:2,S").rename(path / "new" / "1.a")
        return found

    monkeypatch.setattr(os, "listdir", list_and_move)
    assert clean(maildir, time.time() + 37 * HOUR_S) == 0
    assert names(path / "envelope") == ["1.a.json"]


def test_what_is_no_sidecar_stays(path: Path, maildir: Maildir) -> None:
    """Somebody's notes, a directory, a link: not ours to remove."""
    envelope = path / "envelope"
    (envelope / "README").write_text("mine")
    (envelope / "1.a.json").mkdir()
    (envelope / "2.a.json").symlink_to("README")
    assert clean(maildir, time.time() + 99 * HOUR_S) == 0
    assert names(envelope) == ["1.a.json", "2.a.json", "README"]


@pytest.mark.parametrize(("hours", "gone"), [(35, 0), (37, 1)])
@pytest.mark.parametrize("touched", [0, 1])
def test_rubbish_in_tmp_goes_36_hours_after_the_last_touch(
    path: Path, maildir: Maildir, hours: int, gone: int, touched: int
) -> None:
    """A slow writer touches its file; by either of the two times."""
    file = path / "tmp" / "half"
    file.write_text("half a message")
    now = time.time()
    times = [1e9, 1e9]
    times[touched] = now
    os.utime(file, (times[0], times[1]))
    assert clean(maildir, now + hours * HOUR_S) == gone
    assert file.exists() is not bool(gone)


@pytest.mark.parametrize("links", [True, False])
def test_an_old_message_on_its_way_to_another_maildir_is_no_rubbish(
    path: Path,
    maildir: Maildir,
    monkeypatch: pytest.MonkeyPatch,
    links: bool,
) -> None:
    """A route that moves it there would stop because another process cleans in that moment."""
    add_message(path, "1.a")
    os.utime(path / "new" / "1.a", (1e9, 1e9))
    target = Maildir(os.fsencode(make_maildir(path.parent / "Sent")))
    message = maildir.load(maildir.new, b"1.a")
    assert message is not None
    os.utime(path / "new" / "1.a", (1e9, 1e9))  # a file system with noatime
    link, utime = os.link, os.utime

    def link_and_clean(*arguments: Any, **options: Any) -> None:
        if not links and options["dst_dir_fd"] == target.tmp.fd:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        link(*arguments, **options)
        clean(target, time.time())

    def utime_and_clean(*arguments: Any, **options: Any) -> None:
        utime(*arguments, **options)
        clean(target, time.time())

    monkeypatch.setattr(os, "link", link_and_clean)
    monkeypatch.setattr(os, "utime", utime_and_clean)
    with target:
        writing.adopt(target, message, b"1.a")
        assert names(path.parent / "Sent" / "new") == ["1.a"]


def test_a_name_of_a_time_to_come_is_no_reason_to_keep_it(path: Path, maildir: Maildir) -> None:
    """Rubbish from before a clock was set back would stay for good."""
    now = time.time()
    file = path / "tmp" / f"{int(now + 400 * HOUR_S)}.half"
    file.write_text("half a message")
    assert clean(maildir, now + 37 * HOUR_S) == 1


def test_a_maildir_without_sidecars_gets_no_directory_for_them(tmp_path: Path) -> None:
    """Somebody's inbox stays as it was."""
    path = make_maildir(tmp_path / "plain")
    with Maildir(os.fsencode(path)) as maildir:
        maildir.scan()
        assert clean(maildir, time.time()) == 0
    assert names(path) == ["cur", "new", "tmp"]


def test_what_cannot_be_removed_is_told(
    path: Path, maildir: Maildir, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """And what somebody else has removed meanwhile is not."""
    add_sidecar(path, "1.a", "s@x", "r@y")
    calls = FileSystem(monkeypatch, tmp_path)
    calls.fail("unlink", errno.ENOENT, errno.EROFS)
    assert clean(maildir, time.time() + 37 * HOUR_S) == 0
    with pytest.raises(LocalError, match=r"cannot clean up .*1\.a\.json: Read-only"):
        clean(maildir, time.time() + 37 * HOUR_S)


def test_a_sidecar_goes_after_the_removal_of_its_message_is_durable(
    path: Path, maildir: Maildir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The daemon cleans while removals wait for an fsync: a power cut brings such messages back."""
    add_sidecar(path, "1.a", "s@x", "r@y")
    calls = FileSystem(monkeypatch, path)
    assert clean(maildir, time.time() + 37 * HOUR_S) == 1
    assert calls.of("unlink", "fsync") == ["fsync new", "fsync cur", "unlink envelope/1.a.json"]


def test_no_sidecar_goes_where_the_messages_cannot_be_listed(
    path: Path, maildir: Maildir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of them would look like orphans."""
    add_message(path, "1.a")
    add_sidecar(path, "1.a", "s@x", "r@y")
    listdir = os.listdir

    def broken(fd: int) -> list[str]:
        if fd == maildir.cur.fd:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return listdir(fd)

    monkeypatch.setattr(os, "listdir", broken)
    with pytest.raises(LocalError, match="cannot list"):
        clean(maildir, time.time() + 37 * HOUR_S)
    assert names(path / "envelope") == ["1.a.json"]
