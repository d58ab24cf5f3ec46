"""Messages that another program has renamed: found, and without a listing for each of thousands."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from maildirqmtp.errors import LocalError
from maildirqmtp.maildir.files import Folder
from maildirqmtp.maildir.renames import Renames


class Directory:
    """A directory that was last changed a while ago, and how often it was listed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.listings = 0
        self.folder = Folder(os.open(path, os.O_RDONLY | os.O_DIRECTORY), os.fsencode(path))
        self.renames = Renames(self._names)

    def _names(self, folder: Folder) -> Iterator[bytes]:
        self.listings += 1
        yield from map(os.fsencode, os.listdir(folder.fd))

    def add(self, *names: str, age_s: int = 10) -> None:
        """Make files; the directory's time is so old then."""
        for name in names:
            (self.path / name).touch()
        status = self.path.stat()
        os.utime(self.path, ns=(status.st_atime_ns, status.st_mtime_ns - age_s * 10**9))

    def find(self, base: bytes) -> bytes | None:
        """Look for a message."""
        return self.renames.find(self.folder, base)


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Directory]:
    """An empty one."""
    made = Directory(tmp_path)
    yield made
    os.close(made.folder.fd)


def test_a_message_has_its_new_name(directory: Directory) -> None:
    """With flags, and with a number of mbsync."""
    directory.add("1.a:2,S", "2.b,U=7:2,")
    assert directory.find(b"1.a") == b"1.a:2,S"
    assert directory.find(b"2.b") == b"2.b,U=7:2,"
    assert directory.find(b"3.c") is None


def test_thousands_that_are_gone_cost_one_listing(directory: Directory) -> None:
    """Else a daemon whose mail is removed in flight does not end for minutes."""
    directory.add("1.a:2,S")
    assert [directory.find(b"%d.gone" % number) for number in range(4_096)] == [None] * 4_096
    assert directory.listings == 1


def test_what_is_renamed_after_a_listing_is_found(directory: Directory) -> None:
    """It would count as removed, and not be sent again after a refusal."""
    directory.add("1.a:2,S")
    assert directory.find(b"2.b") is None
    directory.add("2.b:2,S", age_s=5)
    assert directory.find(b"2.b") == b"2.b:2,S"
    (directory.path / "2.b:2,S").rename(directory.path / "2.b:2,FS")
    assert directory.find(b"2.b") == b"2.b:2,FS"


def test_a_change_within_the_tick_of_a_listing_is_found(directory: Directory) -> None:
    """The time of the directory does not show it."""
    directory.add("1.a:2,S", age_s=0)
    before = directory.path.stat()
    assert directory.find(b"2.b") is None
    directory.add("2.b:2,S")
    os.utime(directory.path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert directory.find(b"2.b") == b"2.b:2,S"


def test_readers_that_rename_many_cost_one_listing(directory: Directory) -> None:
    """What was found there and is there needs no other look, however often they go on."""
    directory.add("1.a:2,S", "2.b:2,S", age_s=0)
    assert directory.find(b"1.a") == b"1.a:2,S"
    (directory.path / "3.c").touch()
    assert directory.find(b"2.b") == b"2.b:2,S"
    assert directory.listings == 1


def test_one_that_cannot_be_looked_at_is_told(directory: Directory) -> None:
    """As every error of the disk."""
    with pytest.raises(LocalError, match=r"cannot look at gone: Bad file descriptor"):
        directory.renames.find(Folder(-1, b"gone"), b"1.a")
