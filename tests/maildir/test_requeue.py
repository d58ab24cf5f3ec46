"""Dropping messages, and putting failed ones back: nothing is lost on the way, nor sent twice."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from maildirqmtp.errors import FileChangedError, LocalError
from maildirqmtp.mail.sidecar import Sidecar
from maildirqmtp.maildir import requeue, sidecars
from maildirqmtp.maildir.files import Folder, Identity, identity_of
from maildirqmtp.maildir.maildir import Maildir
from maildirqmtp.maildir.requeue import Seen
from tests.fakes import FileSystem
from tests.helpers import add_message, add_sidecar, make_maildir, names, sidecar

CONTENT = Sidecar(b"s@x", (b"a@y",))


def known(maildir: Maildir, name: bytes, folder: Folder | None = None) -> Identity:
    """Return what a file is known by."""
    where = maildir.new if folder is None else folder
    return identity_of(os.stat(name, dir_fd=where.fd, follow_symlinks=False))


def seen(maildir: Maildir, name: bytes, folder: Folder | None = None) -> Seen:
    """Return a message as whoever looks at it now sees it."""
    where = maildir.new if folder is None else folder
    return Seen(where, name, known(maildir, name, where), sidecars.identity(maildir, name))


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
    assert requeue.drop(maildir, [seen(maildir, b"1.a")]) == [None]
    assert names(path / "new") == ["2.b"]
    assert names(path / "envelope") == ["2.b.json"]


def test_another_file_of_that_name_is_not_dropped(path: Path, maildir: Maildir) -> None:
    """It came after somebody had looked, and nobody has seen it."""
    add_message(path, "1.a")
    before = seen(maildir, b"1.a")
    add_message(path, "1.a", b"another, and longer\n")
    (why,) = requeue.drop(maildir, [before])
    assert why is not None
    assert "changed" in why
    assert names(path / "new") == ["1.a"]


def test_what_is_gone_already_is_told(path: Path, maildir: Maildir) -> None:
    """It may have been sent: who drops it must not believe that it was not."""
    add_message(path, "1.a")
    before = seen(maildir, b"1.a")
    (path / "new" / "1.a").unlink()
    (why,) = requeue.drop(maildir, [before])
    assert why is not None
    assert "it was sent" in why


def test_the_removal_is_durable_before_the_sidecar_goes(
    path: Path, maildir: Maildir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a power cut brings the message back without it, and its trace lines are trusted."""
    add_message(path, "1.a")
    add_sidecar(path, "1.a", "s@x", "a@y")
    maildir.find_envelopes()
    listed: list[tuple[list[str], list[str]]] = []
    fsync = os.fsync

    def noting(fd: int) -> None:
        listed.append((names(path / "new"), names(path / "envelope")))
        fsync(fd)

    monkeypatch.setattr(os, "fsync", noting)
    requeue.drop(maildir, [seen(maildir, b"1.a")])
    assert listed == [([], ["1.a.json"])]


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
    assert requeue.drop(maildir, [seen(maildir, b"1.a")]) == [None]
    assert (path / "envelope" / "1.a.json").read_text() == '{"version": 1}'


# Requeue


def test_a_failed_message_waits_again(path: Path, maildir: Maildir, failed: Maildir) -> None:
    """Under a name of its own, with its text and its age."""
    before = seen(failed, b"1.a")
    name = requeue.requeue(failed, maildir, before, CONTENT)
    assert names(path / "new") == [name.decode()]
    assert known(maildir, name) == before.identity
    assert (path / "new" / name.decode()).read_bytes().endswith(b"refused\n")
    assert sidecar(path, name.decode())["recipients"] == ["a@y"]
    assert names(path / ".Failed" / "new") == names(path / ".Failed" / "envelope") == []
    assert names(path / "tmp") == []


def test_it_is_durable_in_the_queue_before_its_sidecar_goes(
    path: Path, maildir: Maildir, failed: Maildir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a power cut leaves it in the failed maildir without what it says, or in neither."""
    system = FileSystem(monkeypatch, path)
    requeue.requeue(failed, maildir, seen(failed, b"1.a"), None)
    (moved,) = system.of("rename")
    rest = system.calls[system.calls.index(moved) + 1 :]
    assert rest == ["fsync new", "fsync .Failed/new", "unlink .Failed/envelope/1.a.json"]


def test_what_still_waits_of_the_same_message_is_left_alone(
    path: Path, maildir: Maildir, failed: Maildir
) -> None:
    """Others of its recipients were deferred: both files are one, and each keeps its envelope."""
    os.link(path / ".Failed" / "new" / "1.a", path / "new" / "1.a")
    add_sidecar(path, "1.a", "s@x", "later@y")
    name = requeue.requeue(failed, maildir, seen(failed, b"1.a"), CONTENT)
    assert names(path / "new") == sorted(["1.a", name.decode()])
    assert sidecar(path, "1.a")["recipients"] == ["later@y"]
    assert sidecar(path, name.decode())["recipients"] == ["a@y"]
    assert names(path / ".Failed" / "new") == []


def test_its_sidecar_is_there_before_it(
    path: Path, maildir: Maildir, failed: Maildir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A daemon that sees the message first would send it to whom its trace lines name."""
    listed: list[list[str]] = []
    rename = os.rename

    def noting(source: bytes, target: bytes, **fds: int) -> None:
        listed.append(names(path / "envelope"))
        rename(source, target, **fds)

    monkeypatch.setattr(os, "rename", noting)
    name = requeue.requeue(failed, maildir, seen(failed, b"1.a"), CONTENT)
    assert listed[-1] == [f"{name.decode()}.json"]


def test_one_that_was_replaced_is_not_sent(path: Path, maildir: Maildir, failed: Maildir) -> None:
    """Another text would go to these recipients."""
    before = seen(failed, b"1.a")
    add_message(path / ".Failed", "1.a", b"another, and longer\n")
    with pytest.raises(FileChangedError):
        requeue.requeue(failed, maildir, before, CONTENT)
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
    before = seen(failed, b"1.a")
    write = sidecars.write

    def then_full(*args: object) -> None:
        write(*args)  # type: ignore[arg-type]
        monkeypatch.setattr(os, "rename", full)

    monkeypatch.setattr(sidecars, "write", then_full)
    with pytest.raises(LocalError, match=r"cannot move .*No space left"):
        requeue.requeue(failed, maildir, before, CONTENT)
    assert names(path / "envelope") == ["other.json"]
    assert names(path / ".Failed" / "envelope") == ["1.a.json"]
    assert seen(failed, b"1.a") == before


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
    before = seen(failed, b"1.a")
    system = FileSystem(monkeypatch, path)
    name = requeue.requeue(failed, maildir, before, CONTENT)
    gone = system.calls.index("unlink .Failed/new/1.a")
    assert system.calls[gone - 1] == "fsync new"
    assert system.calls[gone + 1 : gone + 3] == ["fsync new", "fsync .Failed/new"]
    assert known(maildir, name)[2:] == before.identity[2:]
    assert (path / "new" / name.decode()).read_bytes().endswith(b"refused\n")
    assert names(path / ".Failed" / "new") == names(path / ".Failed" / "envelope") == []


def test_a_message_flagged_by_a_mail_reader_goes_to_new(
    path: Path, maildir: Maildir, failed: Maildir
) -> None:
    """Somebody has looked at it; in cur/ of the queue it would wait for ever."""
    os.rename(path / ".Failed" / "new" / "1.a", path / ".Failed" / "cur" / "1.a:2,S")
    before = seen(failed, b"1.a:2,S", failed.cur)
    name = requeue.requeue(failed, maildir, before, CONTENT)
    assert names(path / "new") == [name.decode()]
    assert b":" not in name
    assert names(path / ".Failed" / "cur") == names(path / ".Failed" / "envelope") == []


def test_without_a_sidecar_it_goes_without_one(
    path: Path, maildir: Maildir, failed: Maildir
) -> None:
    """Its trace lines say whom it is for."""
    (path / ".Failed" / "envelope" / "1.a.json").unlink()
    requeue.requeue(failed, maildir, seen(failed, b"1.a"), None)
    assert len(names(path / "new")) == 1
    assert not (path / "envelope").exists()


def test_a_queue_that_was_moved_meanwhile_gets_nothing(
    path: Path, maildir: Maildir, failed: Maildir, tmp_path: Path
) -> None:
    """No forwarder would find the message there, and it would be a failed one no more."""
    path.rename(tmp_path / "moved")
    with pytest.raises(LocalError, match="was renamed, replaced or mounted over"):
        requeue.requeue(failed, maildir, seen(failed, b"1.a"), CONTENT)
    moved = tmp_path / "moved"
    assert names(moved / "new") == names(moved / "envelope") == []
    assert names(moved / ".Failed" / "new") == ["1.a"]
    assert names(moved / ".Failed" / "envelope") == ["1.a.json"]


# Another of its recipients fails meanwhile


def fail_another(path: Path) -> None:
    """Do what a forwarder does that finds the message in the failed maildir."""
    add_sidecar(path / ".Failed", "1.a", "s@x", "a@y", "late@y")


def test_a_failed_message_that_is_dropped_keeps_who_failed_since(
    path: Path, failed: Maildir
) -> None:
    """While the question waits, or a mailer: nobody would ever read that they failed."""
    before = seen(failed, b"1.a")
    fail_another(path)
    (why,) = requeue.drop(failed, [before])
    assert why is not None
    assert "changed" in why
    assert names(path / ".Failed" / "new") == ["1.a"]
    assert sidecar(path / ".Failed", "1.a")["recipients"] == ["a@y", "late@y"]


def test_a_failed_message_that_is_resent_keeps_who_failed_before(
    path: Path, maildir: Maildir, failed: Maildir
) -> None:
    """Between the look at it and its turn: its envelope says nothing of them."""
    before = seen(failed, b"1.a")
    fail_another(path)
    with pytest.raises(FileChangedError, match="has changed"):
        requeue.requeue(failed, maildir, before, CONTENT)
    assert names(path / "new") == []
    assert names(path / ".Failed" / "new") == ["1.a"]
    assert sidecar(path / ".Failed", "1.a")["recipients"] == ["a@y", "late@y"]


def test_a_failed_message_that_is_resent_keeps_who_fails_during_the_fsyncs(
    path: Path, maildir: Maildir, failed: Maildir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It never appears in the queue: a daemon would send it to those that it still lists here."""
    system = FileSystem(monkeypatch, path)
    write = sidecars.write

    def then_fail(*arguments: object) -> None:
        write(*arguments)  # type: ignore[arg-type]
        fail_another(path)

    monkeypatch.setattr(sidecars, "write", then_fail)
    with pytest.raises(FileChangedError, match="has changed"):
        requeue.requeue(failed, maildir, seen(failed, b"1.a"), CONTENT)
    assert [call for call in system.of("rename") if "-> new" in call] == []
    assert names(path / "envelope") == []
    assert names(path / ".Failed" / "new") == ["1.a"]


@pytest.mark.parametrize("folder", ["new", "cur"])
def test_a_failed_message_that_is_resent_keeps_who_fails_at_that_moment(
    path: Path, maildir: Maildir, failed: Maildir, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    """It is put back, durably, before it goes from the queue, and there before its sidecar."""
    name = "1.a" if folder == "new" else "1.a:2,S"
    os.rename(path / ".Failed" / "new" / "1.a", path / ".Failed" / folder / name)
    before = seen(failed, os.fsencode(name), failed.new if folder == "new" else failed.cur)
    rename = os.rename

    def then_fail(source: bytes, target: bytes, **fds: int) -> None:
        rename(source, target, **fds)
        if source == before.name:
            fail_another(path)

    monkeypatch.setattr(os, "rename", then_fail)
    system = FileSystem(monkeypatch, path)
    with pytest.raises(FileChangedError, match="has changed"):
        requeue.requeue(failed, maildir, before, CONTENT)
    assert names(path / "new") == names(path / "envelope") == names(path / ".Failed" / "cur") == []
    assert names(path / ".Failed" / "new") == ["1.a"]
    assert sidecar(path / ".Failed", "1.a")["recipients"] == ["a@y", "late@y"]
    back = next(n for n, call in enumerate(system.calls) if "-> .Failed/new/1.a" in call)
    after = [re.sub(r"/[0-9].*", "", call) for call in system.calls[back + 2 :]]
    assert after == ["fsync .Failed/new", "unlink new", "fsync new", "unlink envelope"]
