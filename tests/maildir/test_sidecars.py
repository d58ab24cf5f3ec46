"""Sidecars in a maildir: lost, or another's, the mail goes to those who have it or never should."""

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from maildirqmtp.errors import LocalError, SidecarError
from maildirqmtp.mail import sidecar
from maildirqmtp.mail.sidecar import Sidecar
from maildirqmtp.maildir import sidecars
from maildirqmtp.maildir.maildir import Maildir
from tests.fakes import FileSystem
from tests.helpers import add_sidecar, make_maildir, names, snapshot

CONTENT = Sidecar(b"s@x", (b"a@y", b"b@y"))


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Maildir]:
    """A maildir, open."""
    with Maildir(os.fsencode(make_maildir(tmp_path / "to"))) as opened:
        yield opened


def denied(*_: object, **__: object) -> None:
    """What the system says where something is not allowed."""
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def test_a_sidecar_is_durable_before_it_takes_the_old_ones_place(
    tmp_path: Path, target: Maildir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a sidecar holds the message, none sends it to those who have it."""
    target.durable_envelope()
    system = FileSystem(monkeypatch, tmp_path / "to")
    sidecars.write(target, b"1.a:2,S", CONTENT)
    assert system.calls == ["fsync tmp/*", "rename tmp/* -> envelope/1.a.json", "fsync envelope"]
    assert sidecars.read(target, b"1.a") == CONTENT
    sidecars.write(target, b"1.a", Sidecar(b"", ()))
    assert sidecars.read(target, b"1.a:2,") == Sidecar(b"", ())
    sidecars.remove(target.envelope(), b"1.a:2,F")
    sidecars.remove(target.envelope(), b"1.a")
    assert sidecars.read(target, b"1.a") is None


def test_the_directory_of_sidecars_is_durable_before_the_first_of_them(
    tmp_path: Path, target: Maildir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut would take it, and the message would go to whoever its header names."""
    system = FileSystem(monkeypatch, tmp_path / "to")
    sidecars.write(target, b"1.a", CONTENT)
    assert system.of("mkdir", "fsync", "rename") == [
        "mkdir envelope",
        "fsync .",
        "fsync tmp/*",
        "rename tmp/* -> envelope/1.a.json",
        "fsync envelope",
    ]


@pytest.mark.parametrize("call", ["fsync tmp", "rename"])
def test_a_sidecar_that_cannot_be_written_leaves_the_old_one(
    tmp_path: Path, target: Maildir, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """On a full disk, say."""
    sidecars.write(target, b"1.a", CONTENT)
    before = snapshot(tmp_path / "to")
    system = FileSystem(monkeypatch, tmp_path / "to")
    system.fail(call, errno.ENOSPC)
    with pytest.raises(LocalError, match="No space"):
        sidecars.write(target, b"1.a", Sidecar(b"", ()))
    assert snapshot(tmp_path / "to") == before


def test_a_sidecar_whose_directory_does_not_sync_is_not_believed(
    tmp_path: Path, target: Maildir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What comes next relies on its being there after a power cut."""
    system = FileSystem(monkeypatch, tmp_path / "to")
    system.fail("fsync envelope", errno.EIO)
    with pytest.raises(LocalError, match="envelope: Input/output error"):
        sidecars.write(target, b"1.a", CONTENT)


def test_a_sidecar_that_is_a_link_is_not_followed(tmp_path: Path, target: Maildir) -> None:
    """It could name any file, which would then be shown in a log."""
    sidecars.write(target, b"real", CONTENT)
    (tmp_path / "to" / "envelope" / "1.a.json").symlink_to("real.json")
    with pytest.raises(SidecarError, match="cannot be read"):
        sidecars.read(target, b"1.a")


def test_a_sidecar_that_is_a_directory_or_fifo_holds_the_message(
    tmp_path: Path, target: Maildir
) -> None:
    """And never the program."""
    target.envelope()
    (tmp_path / "to" / "envelope" / "1.a.json").mkdir()
    with pytest.raises(SidecarError, match="cannot be read"):
        sidecars.read(target, b"1.a")
    os.mkfifo(tmp_path / "to" / "envelope" / "2.a.json")
    with pytest.raises(SidecarError):
        sidecars.read(target, b"2.a")


def test_a_sidecar_that_may_not_be_read_holds_the_message(
    target: Maildir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It exists: the message's own lines are not to be believed."""
    sidecars.write(target, b"1.a", CONTENT)
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", denied)
        with pytest.raises(SidecarError, match="cannot be read: Permission denied"):
            sidecars.read(target, b"1.a")
    monkeypatch.setattr(os, "read", denied)
    with pytest.raises(SidecarError, match="cannot be read: Permission denied"):
        sidecars.read(target, b"1.a")


@pytest.mark.parametrize(("more", "fits"), [(0, True), (1, False)])
def test_a_sidecar_of_more_than_a_mebibyte_holds_the_message(
    tmp_path: Path, target: Maildir, more: int, fits: bool
) -> None:
    """Memory is bounded, and half of it must not be believed."""
    sidecars.write(target, b"1.a", CONTENT)
    file = tmp_path / "to" / "envelope" / "1.a.json"
    data = file.read_bytes()
    file.write_bytes(data + b" " * (sidecar.MAX_BYTES - len(data) + more))
    if fits:
        assert sidecars.read(target, b"1.a") == CONTENT
    else:
        with pytest.raises(SidecarError, match="more than"):
            sidecars.read(target, b"1.a")


# Names that mail readers have changed


@pytest.mark.parametrize("name", [b"1.a,U=2", b"1.a,U=2:2,S", b"1.a,S=3,W=4,U=2:2,", b"1.a,S=3"])
def test_a_sidecar_belongs_to_its_message_whatever_mbsync_added_to_the_name(
    tmp_path: Path, target: Maildir, name: bytes
) -> None:
    """Else the message goes to its header's recipient, and those it is owed never get it."""
    add_sidecar(tmp_path / "to", "1.a", "s@x", "a@y")
    assert sidecars.read(target, name) == Sidecar(b"s@x", (b"a@y",))
    sidecars.write(target, name, CONTENT)
    assert names(tmp_path / "to" / "envelope") == ["1.a.json"]
    assert sidecars.read(target, b"1.a") == CONTENT
    sidecars.remove(target.envelope(), name)
    assert names(tmp_path / "to" / "envelope") == []
    assert sidecars.read(target, name) is None


def test_the_sidecar_of_the_exact_name_comes_first(tmp_path: Path, target: Maildir) -> None:
    """A writer may use such names itself; the other sidecar is another message's."""
    add_sidecar(tmp_path / "to", "1.a", "s@x", "other@y")
    add_sidecar(tmp_path / "to", "1.a,U=2", "s@x", "a@y")
    assert sidecars.read(target, b"1.a,U=2:2,S") == Sidecar(b"s@x", (b"a@y",))
    sidecars.write(target, b"1.a,U=2", CONTENT)
    sidecars.remove(target.envelope(), b"1.a,U=2")
    assert names(tmp_path / "to" / "envelope") == ["1.a.json"]
    assert sidecars.read(target, b"1.a") == Sidecar(b"s@x", (b"other@y",))


def test_a_sidecar_that_cannot_be_used_is_not_passed_over(tmp_path: Path, target: Maildir) -> None:
    """What the shorter name has may be older: the message is held."""
    add_sidecar(tmp_path / "to", "1.a", "s@x", "other@y")
    (tmp_path / "to" / "envelope" / "1.a,U=2.json").write_text("{")
    with pytest.raises(SidecarError):
        sidecars.read(target, b"1.a,U=2")


def test_a_new_sidecar_is_found_after_mbsync_has_numbered_its_message_anew(
    target: Maildir,
) -> None:
    """It does so when a folder is made anew; recipients that are done would get it again."""
    sidecars.write(target, b"1.a,S=3,U=2:2,S", CONTENT)
    assert sidecars.read(target, b"1.a,S=3,U=77") == CONTENT
    assert sidecars.read(target, b"1.a,S=3") == CONTENT


def test_a_sidecar_that_was_replaced_is_told_from_the_one_that_was_read(
    tmp_path: Path, target: Maildir
) -> None:
    """The recipient that it names now is still owed the message."""
    assert sidecars.identity(target, b"1.a") is None
    sidecars.write(target, b"1.a", CONTENT)
    before = sidecars.identity(target, b"1.a,U=2:2,S")
    assert before is not None
    assert sidecars.identity(target, b"1.a") == before
    sidecars.write(target, b"1.a", CONTENT)
    assert sidecars.identity(target, b"1.a") != before


def test_a_name_too_long_for_a_sidecar_has_none(target: Maildir) -> None:
    """Nobody can have made a file of that name."""
    assert sidecars.read(target, b"x" * 255) is None
    assert sidecars.identity(target, b"x" * 255) is None
    sidecars.remove(target.envelope(), b"x" * 255)


# A directory of sidecars that is moved away


def test_a_sidecar_is_written_where_the_path_leads(
    tmp_path: Path, target: Maildir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a directory that was moved away meanwhile nobody would look for it."""
    envelope = tmp_path / "to" / "envelope"
    target.durable_envelope()
    rename = os.rename

    def meanwhile(*names: bytes, **where: Any) -> None:
        if not envelope.with_name("old").exists():
            rename(envelope, envelope.with_name("old"))
        rename(*names, **where)

    monkeypatch.setattr(os, "rename", meanwhile)
    sidecars.write(target, b"1.a", CONTENT)
    assert names(envelope) == ["1.a.json"]


def restored(envelope: Path) -> None:
    """Put a copy of the directory in its place, as a backup does."""
    shutil.copytree(envelope, envelope.with_name("copy"))
    envelope.rename(envelope.with_name("old"))
    envelope.with_name("copy").rename(envelope)


def written_anew(envelope: Path) -> None:
    """Put the same sidecar there once more."""
    file = envelope / "1.a.json"
    data = file.read_bytes()
    file.unlink()
    file.write_bytes(data)


def changed_in_one_tick(envelope: Path) -> None:
    """Put another there of the same size and time."""
    restored(envelope)
    file = envelope / "1.a.json"
    status = file.stat()
    file.write_bytes(file.read_bytes().replace(b"a@", b"c@"))
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


def garbled_in_one_tick(envelope: Path) -> None:
    """Put one there that cannot be used, of the same size and time."""
    restored(envelope)
    file = envelope / "1.a.json"
    status = file.stat()
    file.write_bytes(b"x" * status.st_size)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize(
    ("change", "another"),
    [
        (lambda envelope: None, False),
        (restored, False),
        (shutil.rmtree, False),
        (lambda envelope: (envelope / "1.a.json").unlink(), False),
        (written_anew, True),
        (changed_in_one_tick, True),
        (garbled_in_one_tick, True),
    ],
)
def test_what_another_sidecar_says_is_still_owed(
    tmp_path: Path, target: Maildir, change: Callable[[Path], object], another: bool
) -> None:
    """A copy of it says nothing new: those who have the message would get it again."""
    sidecars.write(target, b"1.a", CONTENT)
    os.utime(tmp_path / "to" / "envelope" / "1.a.json", (1, 1))
    found = sidecars.read_known(target, b"1.a")
    assert found is not None
    change(tmp_path / "to" / "envelope")
    assert sidecars.is_another(target, b"1.a", *found) == another


def test_a_first_sidecar_is_another(target: Maildir) -> None:
    """The message was sent by its header, and others are owed it."""
    assert not sidecars.is_another(target, b"1.a", None, None)
    sidecars.write(target, b"1.a", CONTENT)
    assert sidecars.is_another(target, b"1.a", None, None)


def test_only_the_sidecar_of_the_message_that_is_gone_goes(target: Maildir) -> None:
    """Another one's message is about to come, or stays for as long as nobody removes it."""
    for name in (b"1.a", b"2.a", b"3.a"):
        sidecars.write(target, name, CONTENT)
    known = [(name, sidecars.identity(target, name)) for name in (b"1.a", b"2.a")]
    sidecars.write(target, b"2.a", CONTENT)
    sidecars.remove_known(target, [*known, (b"3.a", None), (b"4.a", known[0][1])])
    assert sidecars.read(target, b"1.a") is None
    assert sidecars.read(target, b"2.a") == sidecars.read(target, b"3.a") == CONTENT
