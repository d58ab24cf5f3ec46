"""Dropping messages, and putting failed ones back: nothing is lost on the way, nor sent twice."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from maildirqmtp.errors import FileChangedError, LocalError
from maildirqmtp.mail.sidecar import Sidecar
from maildirqmtp.maildir import requeue, sidecars
from maildirqmtp.maildir.files import Folder, Identity, identity_of
from maildirqmtp.maildir.maildir import Maildir
from tests.fakes import FileSystem
from tests.helpers import add_message, add_sidecar, make_maildir, names, sidecar

CONTENT = Sidecar(b"s@x", (b"a@y",))


def known(maildir: Maildir, name: bytes, folder: Folder | None = None) -> Identity:
    """Return what a file is known by."""
    where = maildir.new if folder is None else folder
    return identity_of(os.stat(name, dir_fd=where.fd, follow_symlinks=False))


@pytest.fixture
def failed(path: Path) -> Iterator[Maildir]:
    """The failed maildir of `path`, open, with the message 1.a in it."""
    inside = make_maildir(path / ".Failed")
    add_message(inside, "1.a", b"refused\n")
    add_sidecar(inside, "1.a", "s@x", "a@y")
    with Maildir(os.fsencode(inside)) as opened:
        opened.find_envelopes()
        yield opened


# Drop


def test_what_is_dropped_goes_with_its_sidecar(path: Path, maildir: Maildir) -> None:
    """And nothing else does."""
    for name in ("1.a", "2.b"):
        add_message(path, name)
        add_sidecar(path, name, "s@x", "a@y")
    maildir.find_envelopes()
    chosen = [(maildir.new, b"1.a", known(maildir, b"1.a"))]
    assert requeue.drop(maildir, chosen) == [None]
    assert names(path / "new") == ["2.b"]
    assert names(path / "envelope") == ["2.b.json"]


def test_another_file_of_that_name_is_not_dropped(path: Path, maildir: Maildir) -> None:
    """It came after somebody had looked, and nobody has seen it."""
    add_message(path, "1.a")
    before = known(maildir, b"1.a")
    add_message(path, "1.a", b"another, and longer\n")
    (why,) = requeue.drop(maildir, [(maildir.new, b"1.a", before)])
    assert why is not None
    assert "changed" in why
    assert names(path / "new") == ["1.a"]


def test_what_is_gone_already_is_told(path: Path, maildir: Maildir) -> None:
    """It may have been sent: who drops it must not believe that it was not."""
    add_message(path, "1.a")
    before = known(maildir, b"1.a")
    (path / "new" / "1.a").unlink()
    (why,) = requeue.drop(maildir, [(maildir.new, b"1.a", before)])
    assert why is not None
    assert "it was sent" in why


def test_the_removal_is_durable_before_the_sidecar_goes(
    path: Path, maildir: Maildir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a power cut brings the message back without it, and its trace lines are trusted."""
    add_message(path, "1.a")
    add_sidecar(path, "1.a", "s@x", "a@y")
    maildir.find_envelopes()
    seen: list[tuple[list[str], list[str]]] = []
    fsync = os.fsync

    def noting(fd: int) -> None:
        seen.append((names(path / "new"), names(path / "envelope")))
        fsync(fd)

    monkeypatch.setattr(os, "fsync", noting)
    requeue.drop(maildir, [(maildir.new, b"1.a", known(maildir, b"1.a"))])
    assert seen == [([], ["1.a.json"])]


def test_a_sidecar_that_was_put_there_since_stays(
    path: Path, maildir: Maildir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It belongs to a message that is about to come back under this name."""
    add_message(path, "1.a")
    add_sidecar(path, "1.a", "s@x", "a@y")
    maildir.find_envelopes()
    sync = Folder.sync

    def meanwhile(folder: Folder) -> None:
        (path / "envelope" / "new.json").write_text('{"version": 1}')
        (path / "envelope" / "new.json").rename(path / "envelope" / "1.a.json")
        sync(folder)

    monkeypatch.setattr(Folder, "sync", meanwhile)
    assert requeue.drop(maildir, [(maildir.new, b"1.a", known(maildir, b"1.a"))]) == [None]
    assert (path / "envelope" / "1.a.json").read_text() == '{"version": 1}'


# Requeue


def test_a_failed_message_waits_again(path: Path, maildir: Maildir, failed: Maildir) -> None:
    """Under a name of its own, with its text and its age."""
    before = known(failed, b"1.a")
    name = requeue.requeue(failed, maildir, failed.new, b"1.a", before, CONTENT)
    assert names(path / "new") == [name.decode()]
    assert known(maildir, name) == before
    assert (path / "new" / name.decode()).read_bytes().endswith(b"refused\n")
    assert sidecar(path, name.decode())["recipients"] == ["a@y"]
    assert names(path / ".Failed" / "new") == names(path / ".Failed" / "envelope") == []
    assert names(path / "tmp") == []


def test_it_is_durable_in_the_queue_before_its_sidecar_goes(
    path: Path, maildir: Maildir, failed: Maildir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a power cut leaves it in the failed maildir without what it says, or in neither."""
    system = FileSystem(monkeypatch, path)
    requeue.requeue(failed, maildir, failed.new, b"1.a", known(failed, b"1.a"), None)
    (moved,) = system.of("rename")
    rest = system.calls[system.calls.index(moved) + 1 :]
    assert rest == ["fsync new", "fsync .Failed/new", "unlink .Failed/envelope/1.a.json"]


def test_what_still_waits_of_the_same_message_is_left_alone(
    path: Path, maildir: Maildir, failed: Maildir
) -> None:
    """Others of its recipients were deferred: both files are one, and each keeps its envelope."""
    os.link(path / ".Failed" / "new" / "1.a", path / "new" / "1.a")
    add_sidecar(path, "1.a", "s@x", "later@y")
    name = requeue.requeue(failed, maildir, failed.new, b"1.a", known(failed, b"1.a"), CONTENT)
    assert names(path / "new") == sorted(["1.a", name.decode()])
    assert sidecar(path, "1.a")["recipients"] == ["later@y"]
    assert sidecar(path, name.decode())["recipients"] == ["a@y"]
    assert names(path / ".Failed" / "new") == []


def test_its_sidecar_is_there_before_it(
    path: Path, maildir: Maildir, failed: Maildir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A daemon that sees the message first would send it to whom its trace lines name."""
    seen: list[list[str]] = []
    rename = os.rename

    def noting(source: bytes, target: bytes, **fds: int) -> None:
        seen.append(names(path / "envelope"))
        rename(source, target, **fds)

    monkeypatch.setattr(os, "rename", noting)
    name = requeue.requeue(failed, maildir, failed.new, b"1.a", known(failed, b"1.a"), CONTENT)
    assert seen[-1] == [f"{name.decode()}.json"]


def test_one_that_was_replaced_is_not_sent(path: Path, maildir: Maildir, failed: Maildir) -> None:
    """Another text would go to these recipients."""
    before = known(failed, b"1.a")
    add_message(path / ".Failed", "1.a", b"another, and longer\n")
    with pytest.raises(FileChangedError):
        requeue.requeue(failed, maildir, failed.new, b"1.a", before, CONTENT)
    assert names(path / "new") == []
    assert names(path / ".Failed" / "new") == ["1.a"]
    assert not (path / "envelope").exists()


def test_where_it_cannot_be_moved_it_stays_as_it_was(
    path: Path, maildir: Maildir, failed: Maildir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its sidecar there, and none left here."""

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    sidecars.write(maildir, b"other", CONTENT)
    before = known(failed, b"1.a")
    write = sidecars.write

    def then_full(*args: object) -> None:
        write(*args)  # type: ignore[arg-type]
        monkeypatch.setattr(os, "rename", full)

    monkeypatch.setattr(sidecars, "write", then_full)
    with pytest.raises(LocalError, match=r"cannot move .*No space left"):
        requeue.requeue(failed, maildir, failed.new, b"1.a", before, CONTENT)
    assert names(path / "envelope") == ["other.json"]
    assert names(path / ".Failed" / "envelope") == ["1.a.json"]
    assert known(failed, b"1.a") == before


def test_on_another_file_system_it_is_copied(
    path: Path, maildir: Maildir, failed: Maildir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Durable before the original goes, with its age."""
    rename, link = os.rename, os.link

    def far_rename(source: bytes, target: bytes, **fds: int) -> None:
        if fds["src_dir_fd"] == failed.new.fd:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        rename(source, target, **fds)

    def far_link(source: bytes, target: bytes, **options: int) -> None:
        if options["src_dir_fd"] == failed.new.fd:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        link(source, target, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "rename", far_rename)
    monkeypatch.setattr(os, "link", far_link)
    before = known(failed, b"1.a")
    system = FileSystem(monkeypatch, path)
    name = requeue.requeue(failed, maildir, failed.new, b"1.a", before, CONTENT)
    gone = system.calls.index("unlink .Failed/new/1.a")
    assert system.calls[gone - 1] == "fsync new"
    assert system.calls[gone + 1 : gone + 3] == ["fsync new", "fsync .Failed/new"]
    assert known(maildir, name)[2:] == before[2:]
    assert (path / "new" / name.decode()).read_bytes().endswith(b"refused\n")
    assert names(path / ".Failed" / "new") == names(path / ".Failed" / "envelope") == []


def test_a_message_flagged_by_a_mail_reader_goes_to_new(
    path: Path, maildir: Maildir, failed: Maildir
) -> None:
    """Somebody has looked at it; in cur/ of the queue it would wait for ever."""
    os.rename(path / ".Failed" / "new" / "1.a", path / ".Failed" / "cur" / "1.a:2,S")
    before = known(failed, b"1.a:2,S", failed.cur)
    name = requeue.requeue(failed, maildir, failed.cur, b"1.a:2,S", before, CONTENT)
    assert names(path / "new") == [name.decode()]
    assert b":" not in name
    assert names(path / ".Failed" / "cur") == names(path / ".Failed" / "envelope") == []


def test_without_a_sidecar_it_goes_without_one(
    path: Path, maildir: Maildir, failed: Maildir
) -> None:
    """Its trace lines say whom it is for."""
    (path / ".Failed" / "envelope" / "1.a.json").unlink()
    requeue.requeue(failed, maildir, failed.new, b"1.a", known(failed, b"1.a"), None)
    assert len(names(path / "new")) == 1
    assert not (path / "envelope").exists()
