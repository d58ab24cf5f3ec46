"""The oldest of very many messages, and how many there are."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from maildirqmtp.errors import LocalError
from maildirqmtp.maildir import oldest as oldest_module
from maildirqmtp.maildir.maildir import Maildir
from maildirqmtp.maildir.oldest import oldest


def look(path: Path, most: int, include_cur: bool = False) -> tuple[int, list[bytes]]:
    """Return the count, and the names of the oldest."""
    with Maildir(os.fsencode(path)) as maildir:
        count, found = oldest(maildir, most, include_cur)
        return count, [name for _, name in found]


def fill(folder: Path, *names: str) -> None:
    """Make files of these names."""
    for name in names:
        (folder / name).touch()


@pytest.mark.parametrize("batch", [1, 2, 3, 20_000])
def test_the_oldest_in_order(path: Path, monkeypatch: pytest.MonkeyPatch, batch: int) -> None:
    """Whatever the directory's order, and however many digits the seconds have."""
    monkeypatch.setattr(oldest_module, "_BATCH", batch)
    fill(path / "new", *[f"17000000{number:02}.x" for number in range(40)], ".hidden", ".also")
    fill(path / "new", "999999999.early", "99999999999.late", "no-seconds", "123456789012.x")
    count, found = look(path, 5)
    assert count == 44
    assert found == [
        b"123456789012.x",
        b"no-seconds",
        b"999999999.early",
        b"1700000000.x",
        b"1700000001.x",
    ]
    count, found = look(path, 100)
    assert len(found) == count == 44
    assert found[-1] == b"99999999999.late"


def test_cur_is_looked_at_where_it_is_asked_for(path: Path) -> None:
    """But not what is trash or a draft there; in new/, a name is a name."""
    fill(path / "new", "1700000002.b:2,T")
    fill(path / "cur", "1700000001.a:2,S", "1700000003.c:2,T", "1700000004.d:2,DS")
    assert look(path, 9) == (1, [b"1700000002.b:2,T"])
    assert look(path, 9, True) == (2, [b"1700000001.a:2,S", b"1700000002.b:2,T"])


def test_a_name_that_is_no_utf8(path: Path) -> None:
    """Names are bytes."""
    with open(os.fsencode(path) + b"/new/1700000000.\xff", "wb"):
        assert look(path, 9) == (1, [b"1700000000.\xff"])


def test_a_directory_that_cannot_be_listed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told which one, and why."""

    def refuse(fd: int) -> object:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(LocalError, match=r"cannot list .*new: Input/output error"):
        look(path, 9)
