"""Files written, replaced and read: never half, never through a link, never for ever."""

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from maildirqmtp.errors import LocalError
from maildirqmtp.maildir.files import Folder, create, load, replace, write_all


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Folder]:
    """A directory held open."""
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield Folder(fd, os.fsencode(tmp_path))
    os.close(fd)


def test_a_file_is_replaced_as_a_whole_with_its_mode(folder: Folder, tmp_path: Path) -> None:
    """Whoever reads it meanwhile has the old one open; the umask changes nothing."""
    (tmp_path / "x").write_text("old")
    mask = os.umask(0o777)
    try:
        with (tmp_path / "x").open() as reader:
            replace(folder, b"x", b"new", mode=0o640)
            assert reader.read() == "old"
    finally:
        os.umask(mask)
    assert (tmp_path / "x").read_text() == "new"
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o640
    assert os.listdir(tmp_path) == ["x"]


def test_nobody_can_foresee_the_name_of_the_temporary_file(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever may write there could plant something under it, and stop us for good."""
    seen: list[bytes] = []
    real = os.rename

    def rename(source: bytes, target: bytes, *, src_dir_fd: int, dst_dir_fd: int) -> None:
        seen.append(source)
        real(source, target, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)

    monkeypatch.setattr(os, "rename", rename)
    for _ in range(5):
        replace(folder, b"x", b"new")
    assert len(set(seen)) == 5


@pytest.mark.parametrize("call", ["write", "fsync", "rename"])
def test_what_cannot_be_replaced_stays_and_nothing_is_left(
    folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """On a full disk the old state is better than none."""

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (tmp_path / "x").write_text("old")
    with monkeypatch.context() as patched:
        patched.setattr(os, call, full)
        with pytest.raises(LocalError, match=r"cannot write .*/x: No space left"):
            replace(folder, b"x", b"new")
    assert (tmp_path / "x").read_text() == "old"
    assert os.listdir(tmp_path) == ["x"]


def test_the_data_is_durable_before_its_name_and_the_name_before_it_returns(
    folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other way round a power cut leaves an empty file in place of the old one."""
    done: list[str] = []
    fsync, rename = os.fsync, os.rename

    def new_fsync(fd: int) -> None:
        done.append("directory" if stat.S_ISDIR(os.fstat(fd).st_mode) else "file")
        fsync(fd)

    def new_rename(source: bytes, target: bytes, **folders: int) -> None:
        done.append("rename")
        rename(source, target, **folders)

    monkeypatch.setattr(os, "fsync", new_fsync)
    monkeypatch.setattr(os, "rename", new_rename)
    replace(folder, b"x", b"new")
    assert done == ["file", "rename", "directory"]
    replace(folder, b"x", b"newer", durable=False)
    assert done[3:] == ["rename"]


def test_the_temporary_file_is_made_where_it_is_wanted(folder: Folder, tmp_path: Path) -> None:
    """In a maildir's tmp/, where what a crash leaves is cleaned."""
    (tmp_path / "tmp").mkdir()
    fd = os.open(tmp_path / "tmp", os.O_RDONLY | os.O_DIRECTORY)
    try:
        before = (tmp_path / "tmp").stat().st_mtime_ns
        os.utime(tmp_path / "tmp", ns=(0, 0))
        replace(folder, b".x", b"new", tmp=Folder(fd, b"tmp"))
    finally:
        os.close(fd)
    assert (tmp_path / "tmp").stat().st_mtime_ns >= before
    assert (tmp_path / ".x").read_bytes() == b"new"


def test_nothing_that_is_there_is_opened_in_place_of_a_new_file(
    folder: Folder, tmp_path: Path
) -> None:
    """A link or a FIFO under our name would have us write elsewhere, or wait for ever."""
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in (b"fifo", b"link"):
        with pytest.raises(FileExistsError):
            create(folder, name)
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to others")
def test_what_root_makes_belongs_to_the_folders_owner(folder: Folder, tmp_path: Path) -> None:
    """Else the maildir's owner can neither read nor replace it, and their next run fails."""
    folder.owner = (1234, 2345)
    replace(folder, b"x", b"new")
    found = (tmp_path / "x").stat()
    assert (found.st_uid, found.st_gid) == (1234, 2345)


def test_only_regular_files_of_a_bounded_length_are_read(folder: Folder, tmp_path: Path) -> None:
    """A FIFO is waited for, a device is endless, a link leads elsewhere."""
    (tmp_path / "x").write_bytes(b"12345")
    assert load(folder, b"x", 5) == b"12345"
    with pytest.raises(OSError, match="more than 4 bytes"):
        load(folder, b"x", 4)
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("x")
    (tmp_path / "dir").mkdir()
    for name in (b"fifo", b"dir"):
        with pytest.raises(OSError, match="not a regular file"):
            load(folder, name, 5)
    with pytest.raises(OSError, match=os.strerror(errno.ELOOP)):
        load(folder, b"link", 5)
    with pytest.raises(FileNotFoundError):
        load(folder, b"none", 5)


def test_a_write_that_takes_a_part_is_gone_on_with(
    folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel may take less than it was given; the rest must not be lost."""
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, bytes(data)[:3]))
    fd = create(folder, b"x")
    try:
        write_all(fd, b"0123456789")
    finally:
        os.close(fd)
    assert (tmp_path / "x").read_bytes() == b"0123456789"


def test_a_file_system_that_does_not_count_its_bytes_is_not_full(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some of FUSE's say that they have 0 of 0 bytes: nothing would ever be put there."""
    found = os.fstatvfs(folder.fd)
    assert abs(folder.free_bytes() - found.f_bavail * found.f_frsize) < 1 << 30
    monkeypatch.setattr(os, "fstatvfs", lambda _: os.statvfs_result([512, 512, *[0] * 9]))
    assert folder.free_bytes() > 1 << 60
