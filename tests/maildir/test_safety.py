"""Other users and other programs at a maildir: what is still being written, and whose it is."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from maildirqmtp.errors import FileChangedError, LocalError
from maildirqmtp.maildir import safety
from maildirqmtp.maildir.maildir import Maildir
from tests.helpers import add_message, make_maildir, names


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[int]:
    """A descriptor of a file that is open for reading, `tmp_path`/file."""
    (tmp_path / "file").write_bytes(b"half")
    fd = os.open(tmp_path / "file", os.O_RDONLY)
    yield fd
    os.close(fd)


def test_a_file_has_a_writer_until_that_closes_it(tmp_path: Path, reader: int) -> None:
    """Half a message would be sent, and the other half deleted."""
    writer = os.open(tmp_path / "file", os.O_WRONLY)
    assert safety.has_writer(reader)
    os.close(writer)
    assert not safety.has_writer(reader)


@pytest.mark.parametrize("changed", [True, False])
def test_a_writer_that_closes_the_file_it_has_just_renamed_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: bool
) -> None:
    """A daemon is woken by the rename; held, the message would wait for the next look around.

    One that goes on writing has begun it in new/, and may not be done.
    """
    path = make_maildir(tmp_path / "M")
    writer = os.open(path / "new" / "1.a", os.O_WRONLY | os.O_CREAT)
    os.write(writer, b"whole")
    done: list[float] = []

    def sleep(seconds: float) -> None:
        done.append(seconds)
        if len(done) == 3:
            if changed:
                os.write(writer, b" and more")
            os.close(writer)

    monkeypatch.setattr(time, "sleep", sleep)
    with Maildir(os.fsencode(path)) as maildir:
        if changed:
            with pytest.raises(FileChangedError, match="is being written to"):
                maildir.load(maildir.new, b"1.a")
        else:
            message = maildir.load(maildir.new, b"1.a")
            assert message is not None
            assert message.data == b"whole"
    assert len(done) == 3
    assert sum(done) < safety.CLOSING_S


@pytest.mark.parametrize("age_s", [0, 5])
def test_a_writer_that_keeps_the_file_open_is_not_waited_for_long(
    tmp_path: Path, reader: int, monkeypatch: pytest.MonkeyPatch, age_s: int
) -> None:
    """All other mail would wait with it; and not at all where it is at it for long."""
    writer = os.open(tmp_path / "file", os.O_WRONLY)
    status = os.fstat(reader)
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    monkeypatch.setattr(time, "time", lambda: status.st_mtime + age_s)
    assert not safety.closes_soon(reader, status)
    os.close(writer)
    assert sum(slept) == pytest.approx(0 if age_s else safety.CLOSING_S)


def test_whoever_opens_the_file_afterwards_does_not_wait(tmp_path: Path, reader: int) -> None:
    """A lease that is not given back holds up each writer for 45 s."""
    assert not safety.has_writer(reader)
    os.close(os.open(tmp_path / "file", os.O_WRONLY | os.O_NONBLOCK))


def test_a_writer_that_comes_just_then_does_not_kill_us(
    reader: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel says so by a signal, and SIGIO ends whoever does not handle it."""
    calls: list[tuple[int, int]] = []
    real = fcntl.fcntl

    def call(fd: int, what: int, value: int) -> int:
        calls.append((what, value))
        return int(real(fd, what, value))

    monkeypatch.setattr(fcntl, "fcntl", call)
    safety.has_writer(reader)
    assert calls[:2] == [
        (fcntl.F_SETSIG, signal.SIGURG),
        (fcntl.F_SETLEASE, fcntl.F_RDLCK),
    ]


def test_a_message_that_somebody_writes_in_new_is_held(path: Path, maildir: Maildir) -> None:
    """It is sent once its writer has closed it."""
    with (path / "new" / "1.a").open("wb") as writer:
        writer.write(b"half")
        writer.flush()
        with pytest.raises(FileChangedError, match=r"1\.a is being written to"):
            maildir.load(maildir.new, b"1.a")
    message = maildir.load(maildir.new, b"1.a")
    assert message is not None
    assert message.data == b"half"


def test_root_trusts_the_maildirs_owner_and_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hard link of somebody else's file would otherwise be mailed out by root."""
    if os.geteuid() == 0:
        os.chown(tmp_path, 54_321, -1)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    fd = os.open(tmp_path, os.O_RDONLY)
    assert safety.trusted_owners(fd) == frozenset({0, tmp_path.stat().st_uid})
    monkeypatch.setattr(os, "geteuid", lambda: 1_000)
    assert safety.trusted_owners(fd) is None
    os.close(fd)


def test_a_file_of_somebody_who_is_not_trusted_is_held(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reason says whose it is, and what to do."""
    add_message(path, "1.a")
    strangers = frozenset({os.geteuid() + 1})
    monkeypatch.setattr(safety, "trusted_owners", lambda fd: strangers)
    with Maildir(os.fsencode(path)) as maildir:
        said = rf"1\.a belongs to user {os.geteuid()}, who is not the maildir's owner"
        with pytest.raises(LocalError, match=said):
            maildir.load(maildir.new, b"1.a")


@pytest.mark.parametrize("part", ["new", "cur", "tmp"])
def test_a_directory_that_was_replaced_is_noticed(path: Path, maildir: Maildir, part: str) -> None:
    """What is open then is a directory that nobody else sees."""
    assert maildir.is_current()
    (path / part).rename(path / "away")
    (path / part).mkdir()
    assert not maildir.is_current()


@pytest.mark.parametrize(("number", "stays"), [(errno.EIO, True), (errno.ESTALE, False)])
def test_a_path_that_cannot_be_looked_at_is_not_replaced(
    monkeypatch: pytest.MonkeyPatch, maildir: Maildir, number: int, stays: bool
) -> None:
    """A daemon would forget what it knows of its messages, for a disk that is back in a moment."""

    def failing(*_: object, **__: object) -> os.stat_result:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "stat", failing)
    assert maildir.is_current() is stays


def test_a_maildir_that_was_replaced_is_noticed(path: Path, maildir: Maildir) -> None:
    """Mail would go into the old one, where nobody reads it."""
    path.rename(path.with_name("away"))
    assert not maildir.is_current()
    make_maildir(path)
    assert not maildir.is_current()
    shutil.rmtree(path)


def test_a_message_that_a_reader_moved_meanwhile_is_found(path: Path, maildir: Maildir) -> None:
    """It would stay, and be sent again; the second time what was listed before is out of date."""
    for name in ("1.a", "2.a"):
        add_message(path, name)
        message = maildir.load(maildir.new, name.encode())
        assert message is not None
        (path / "new" / name).rename(path / "cur" / f"{name}:2,S")
        assert not maildir.follow(message, include_cur=False)
        assert maildir.follow(message, include_cur=True)
        assert (message.folder, message.name) == (maildir.cur, f"{name}:2,S".encode())
        assert maildir.is_same(message)
    assert names(path / "new") == []


def test_a_message_that_mutt_marked_as_new_meanwhile_is_found(path: Path, maildir: Maildir) -> None:
    """It is moved from cur/ back into new/, and would be sent again from there."""
    add_message(path, "1.a:2,S", folder="cur")
    message = maildir.load(maildir.cur, b"1.a:2,S")
    assert message is not None
    (path / "cur" / "1.a:2,S").rename(path / "new" / "1.a")
    assert maildir.follow(message, include_cur=True)
    assert (message.folder, message.name) == (maildir.new, b"1.a")
    assert maildir.is_same(message)
