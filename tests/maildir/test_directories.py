"""Ways to directories: root led by somebody's link would forward, and empty, another's maildir."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from maildirqmtp.errors import LocalError
from maildirqmtp.maildir import writing
from maildirqmtp.maildir.directories import make, open_directory
from maildirqmtp.maildir.files import Folder
from maildirqmtp.maildir.maildir import Maildir
from tests.helpers import make_maildir

ONE, OTHER = 12_345, 23_456
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root is careful with links")


def owned(path: Path, user: int) -> Path:
    """Give all that is under a path to a user."""
    for directory, folders, files in os.walk(path):
        for name in ("", *folders, *files):
            os.chown(Path(directory, name), user, user, follow_symlinks=False)
    return path


def link(path: Path, target: Path | str, user: int) -> Path:
    """Make a user's link."""
    path.symlink_to(target)
    os.chown(path, user, user, follow_symlinks=False)
    return path


def leads(path: Path) -> Path:
    """Return where a path leads to, followed as for a maildir."""
    fd = open_directory(os.fsencode(path))
    try:
        return Path(os.readlink(f"/proc/self/fd/{fd}"))
    finally:
        os.close(fd)


@root_only
@pytest.mark.parametrize("user", [0, ONE])
@pytest.mark.parametrize("relative", [True, False])
def test_a_link_of_roots_or_of_its_targets_owner_is_followed(
    tmp_path: Path, user: int, relative: bool
) -> None:
    """People do move their maildirs, and administrators disks."""
    target = owned(make_maildir(tmp_path / "disk" / "M"), ONE)
    path = link(tmp_path / "M", "disk/../disk/M" if relative else target, user)
    assert leads(path) == target
    assert leads(tmp_path / "M" / "new") == target / "new"
    with Maildir(os.fsencode(path)) as maildir:
        assert maildir.is_current()


@root_only
@pytest.mark.parametrize("below", ["", "new"])
def test_a_link_to_what_its_owner_does_not_own_is_not_followed(tmp_path: Path, below: str) -> None:
    """A user has replaced their maildir by a link to another's."""
    target = owned(make_maildir(tmp_path / "theirs"), OTHER)
    path = link(tmp_path / "M", target, ONE)
    with pytest.raises(PermissionError, match=r"symbolic link M .*belongs to user 12345"):
        leads(path / below)
    with pytest.raises(LocalError, match=r"cannot open the maildir directory .*user 12345"):
        Maildir(os.fsencode(path))


@root_only
def test_each_link_on_the_way_counts(tmp_path: Path) -> None:
    """Also one in a link's own text, or one to a directory above the maildir."""
    target = make_maildir(tmp_path / "theirs" / "M")
    owned(tmp_path / "theirs", OTHER)
    with pytest.raises(PermissionError):
        leads(link(tmp_path / "above", tmp_path / "theirs", ONE) / "M")
    link(tmp_path / "inner", target, ONE)
    with pytest.raises(PermissionError):
        leads(link(tmp_path / "outer", "inner", 0))


@root_only
def test_links_in_a_circle_and_to_nowhere_are_errors(tmp_path: Path) -> None:
    """Not an endless walk."""
    link(tmp_path / "a", "b", 0)
    link(tmp_path / "b", "a", 0)
    link(tmp_path / "c", "none", 0)
    with pytest.raises(OSError, match="Too many levels"):
        leads(tmp_path / "a")
    with pytest.raises(FileNotFoundError):
        leads(tmp_path / "c")
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        leads(tmp_path / "file")
    with pytest.raises(FileNotFoundError):
        open_directory(b"")


@pytest.mark.parametrize("trailing", ["", "/", "/."])
def test_the_current_directory_and_odd_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trailing: str
) -> None:
    """People write ., .. and //."""
    make_maildir(tmp_path / "M")
    monkeypatch.chdir(tmp_path / "M" / "new")
    for path in ("..", "../../M", "./..//", str(tmp_path) + "//M"):
        fd = open_directory(os.fsencode(path + trailing))
        assert os.path.samestat(os.fstat(fd), (tmp_path / "M").stat())
        os.close(fd)


def test_a_link_that_is_not_to_be_followed_is_named_as_one(tmp_path: Path) -> None:
    """Not as no directory, which it looks like."""
    make_maildir(tmp_path / "M")
    (tmp_path / "L").symlink_to("M")
    with pytest.raises(NotADirectoryError, match="symbolic link, which is not followed"):
        open_directory(os.fsencode(tmp_path / "L"), nofollow=True)


@root_only
def test_what_root_makes_belongs_to_the_owner_of_where_it_is(tmp_path: Path) -> None:
    """Else they can neither read their failed mail nor remove it."""
    path = owned(make_maildir(tmp_path / "M"), ONE)
    failed = path / ".Failed"
    writing.create(os.fsencode(failed), nofollow=True)
    with Maildir(os.fsencode(path)) as maildir:
        maildir.envelope()
        writing.write_tmp(maildir, [b"x"])
    for directory in (failed, failed / "new", failed / "cur", failed / "tmp", path / "envelope"):
        status = directory.stat()
        assert (status.st_uid, status.st_gid) == (ONE, ONE), directory
        assert stat.S_IMODE(status.st_mode) == 0o700
    (file,) = (path / "tmp").iterdir()
    assert file.stat().st_uid == ONE


@root_only
def test_root_gives_away_nothing_in_a_maildir_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A system call for each message, to give it to whoever has it."""

    def fchown(*_: int) -> None:
        raise AssertionError("root's own")

    path = owned(make_maildir(tmp_path / "M"), 0)
    monkeypatch.setattr(os, "fchown", fchown)
    with Maildir(os.fsencode(path)) as maildir:
        writing.write_tmp(maildir, [b"x"])
    (file,) = (path / "tmp").iterdir()
    assert file.stat().st_uid == 0


@root_only
def test_a_maildir_is_not_made_by_way_of_a_foreign_link(tmp_path: Path) -> None:
    """--sent below a user's directory would be made in another's."""
    target = owned(make_maildir(tmp_path / "theirs"), OTHER)
    link(tmp_path / "M", target, ONE)
    before = sorted(os.listdir(target))
    with pytest.raises(LocalError, match="user 12345"):
        writing.create(os.fsencode(tmp_path / "M" / ".Failed"))
    assert sorted(os.listdir(target)) == before


@root_only
def test_a_directory_that_was_put_in_place_of_the_new_one_is_not_given_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The maildir's owner may move a directory of root's there in that moment."""
    private = tmp_path / "private"
    private.mkdir()
    (private / "secret").touch()
    mkdir = os.mkdir

    def swapped(name: bytes, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        mkdir(name, mode, dir_fd=dir_fd)
        os.rmdir(name, dir_fd=dir_fd)
        private.rename(tmp_path / "made")

    monkeypatch.setattr(os, "mkdir", swapped)
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        assert make(b"made", Folder(fd, os.fsencode(tmp_path), (ONE, ONE)))
    finally:
        os.close(fd)
    assert (tmp_path / "made").stat().st_uid == 0
