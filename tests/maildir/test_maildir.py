"""The maildir: what is taken for a message, in which order, and what may be removed."""

import errno
import fcntl
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from maildirqmtp.errors import FileChangedError, LocalError
from maildirqmtp.maildir import by_age
from maildirqmtp.maildir.cleanup import clean
from maildirqmtp.maildir.files import Message
from maildirqmtp.maildir.maildir import TOP_BYTES, WHOLE_MAX, Maildir, Removal
from tests.fakes import FileSystem
from tests.helpers import names, open_descriptors

NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


def load(maildir: Maildir, name: bytes) -> Message:
    """Open a message that is one."""
    message = maildir.load(maildir.new, name)
    assert message is not None
    return message


def scanned(maildir: Maildir, include_cur: bool = False) -> list[bytes]:
    """The names that a scan finds, in order."""
    return [name for _, name in maildir.scan(include_cur)]


def denied(*_: object, **__: object) -> None:
    """What the system says where something is not allowed."""
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


# Opening


@pytest.mark.parametrize("missing", ["new", "cur", "tmp"])
def test_a_directory_that_is_no_maildir_is_refused(path: Path, missing: str) -> None:
    """Pointing it at a home directory must do nothing to it."""
    (path / missing).rmdir()
    before = open_descriptors()
    with pytest.raises(LocalError, match=f"{missing}: No such file.*is it a maildir"):
        Maildir(os.fsencode(path))
    assert open_descriptors() == before


def test_a_path_that_is_not_there_is_refused(tmp_path: Path) -> None:
    """With the path in the message."""
    with pytest.raises(
        LocalError,
        match="nowhere: No such file or directory; check the path, or make one: mkdir -p ",
    ):
        Maildir(os.fsencode(tmp_path / "nowhere"))


def test_its_directories_are_never_links(path: Path, tmp_path: Path) -> None:
    """Somebody who may write the maildir could make us remove files anywhere."""
    (path / "new").rmdir()
    (path / "new").symlink_to(tmp_path)
    with pytest.raises(LocalError, match="new"):
        Maildir(os.fsencode(path))


def test_the_maildir_itself_may_be_a_link(path: Path, tmp_path: Path) -> None:
    """As many are."""
    (tmp_path / "link").symlink_to(path)
    with Maildir(os.fsencode(tmp_path / "link")) as opened:
        assert opened.new.join(b"x").endswith(b"/link/new/x")


def test_leaving_closes_every_descriptor(path: Path) -> None:
    """A service opens one for each run."""
    before = open_descriptors()
    with Maildir(os.fsencode(path)) as opened:
        opened.envelope()
    opened.close()
    assert open_descriptors() == before


def test_drafts_and_what_was_trashed_stay_in_cur(path: Path, maildir: Maildir) -> None:
    """A draft would be sent before it is finished; in new/ flags mean nothing."""
    for name in ("1.a:2,D", "2.a:2,ST", "3.a:2,S", "4.a"):
        (path / "cur" / name).touch()
    (path / "new" / "5.a:2,D").touch()
    found = [name for _, name in maildir.scan(include_cur=True)]
    assert found == [b"3.a:2,S", b"4.a", b"5.a:2,D"]


# The lock


def test_a_second_forwarder_is_told_who_has_the_lock(path: Path, maildir: Maildir) -> None:
    """Both would send everything."""
    maildir.lock()
    maildir.lock()
    code = (
        "import sys\nfrom maildirqmtp.maildir.maildir import Maildir\n"
        "try: Maildir(sys.argv[1].encode()).lock()\nexcept Exception as e: print(e)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
    )
    assert f"is locked by process {os.getpid()}" in result.stdout


def test_closing_lets_go_of_the_lock(path: Path) -> None:
    """Else a second run in one process could never begin."""
    for _ in range(2):
        with Maildir(os.fsencode(path)) as opened:
            opened.lock()
            with Maildir(os.fsencode(path)) as second, pytest.raises(LocalError, match="is locked"):
                second.lock()


def test_without_proc_it_is_somebody(path: Path, maildir: Maildir, tmp_path: Path) -> None:
    """The name is a courtesy, the lock is not."""
    maildir.lock()
    with Maildir(os.fsencode(path)) as second, pytest.MonkeyPatch.context() as patch:
        patch.setattr("builtins.open", denied)
        with pytest.raises(LocalError, match="locked by another process"):
            second.lock()
        locks = tmp_path / "locks"
        locks.write_text("1: POSIX  ADVISORY  WRITE 1 00:00:1 0 EOF\nshort\n")
        patch.setattr("builtins.open", lambda name: locks.open())
        with pytest.raises(LocalError, match="locked by another process"):
            second.lock()


def test_a_file_system_without_locks_says_so(
    maildir: Maildir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Going on without a lock is not safe."""

    def flock(fd: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(LocalError, match=r"cannot lock .*No locks available"):
        maildir.lock()


# Proof


def test_the_proof_leaves_nothing_behind(path: Path, maildir: Maildir) -> None:
    """Not even what an earlier run that was killed left."""
    (path / "new" / ".maildirqmtp-probe").write_bytes(b"")
    maildir.prove_changeable()
    assert names(path / "new") == names(path / "cur") == []


@pytest.mark.parametrize("call", ["unlink", "open"])
def test_the_proof_of_two_at_once(
    path: Path, maildir: Maildir, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """Two routes of one maildir begin together: neither may take the other's proof for a fault."""
    other = path / "new" / ".maildirqmtp-probe"
    real: Callable[..., object] = getattr(os, call)
    calls: list[bytes] = []

    def meanwhile(name: bytes, *arguments: object, **more: object) -> object:
        calls.append(name)
        try:
            return real(name, *arguments, **more)
        finally:
            if len(calls) == 1 and call == "unlink":
                other.touch()  # the other has made its own, after we looked
            elif len(calls) == 1:
                other.unlink()  # the other takes ours for one left behind

    with monkeypatch.context() as patch:
        patch.setattr(os, call, meanwhile)
        maildir.prove_changeable()
    assert names(path / "new") == ([other.name] if call == "unlink" else [])


@pytest.mark.parametrize("folder", ["new", "cur"])
@pytest.mark.parametrize("call", ["open", "unlink"])
@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_a_maildir_that_cannot_be_changed_is_found_out(
    maildir: Maildir, monkeypatch: pytest.MonkeyPatch, folder: str, call: str, number: int
) -> None:
    """Its messages would be sent again by every run."""
    real: Callable[..., object] = getattr(os, call)
    fd = getattr(maildir, folder).fd

    def fails(*arguments: object, dir_fd: int | None = None, **more: object) -> object:
        if dir_fd == fd:
            raise OSError(number, os.strerror(number))
        return real(*arguments, dir_fd=dir_fd, **more)

    monkeypatch.setattr(os, call, fails)
    with pytest.raises(LocalError, match=f"{folder}.*{os.strerror(number)}"):
        maildir.prove_changeable(include_cur=True)
    if folder == "cur":
        maildir.prove_changeable()


@pytest.mark.parametrize("number", NO_SPACE)
def test_on_a_full_disk_permissions_have_to_do(
    maildir: Maildir, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Sending is what makes room on it."""

    def full(*_: object, **__: object) -> int:
        raise OSError(number, os.strerror(number))

    allowed = True
    monkeypatch.setattr(os, "open", full)
    monkeypatch.setattr(os, "access", lambda *_, **__: allowed)
    maildir.prove_changeable()
    allowed = False
    with pytest.raises(LocalError, match="nothing was sent"):
        maildir.prove_changeable()


# Scanning


def test_oldest_first_by_the_seconds_in_the_name(path: Path, maildir: Maildir) -> None:
    """By number, not by text; and without a stat of each."""
    for name in ("10.b", "9.z", "1000000000.a", "9.a", "00000000008.x"):
        (path / "new" / name).write_bytes(b"")
    assert scanned(maildir) == [b"00000000008.x", b"9.a", b"9.z", b"10.b", b"1000000000.a"]


def test_else_by_the_modification_time(path: Path, maildir: Maildir) -> None:
    """For names that some other program made."""
    for name, mtime in (("later", 3000), ("sooner", 1000), ("123456789012.x", 2000), ("1x.y", 5)):
        (path / "new" / name).write_bytes(b"")
        os.utime(path / "new" / name, (mtime, mtime))
    (path / "new" / "1500.seconds").write_bytes(b"")
    assert scanned(maildir) == [b"1x.y", b"sooner", b"1500.seconds", b"123456789012.x", b"later"]


def test_no_stat_for_names_with_seconds(
    path: Path, maildir: Maildir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """200,000 of them would hold the first message up for seconds."""
    for number in range(3):
        (path / "new" / f"{number}.a").write_bytes(b"")
    monkeypatch.setattr(by_age, "os", None)
    assert len(maildir.scan()) == 3


def test_the_usual_names_are_sorted_like_all_others(path: Path, maildir: Maildir) -> None:
    """A name of another kind among them must not change whose turn it is."""
    usual = [b"1000000000.b", b"1000000000.a", b"9999999999.a", b"1795806102.M5", b"1795806102.M40"]
    for name in usual:
        (path / "new" / os.fsdecode(name)).write_bytes(b"")
    assert scanned(maildir) == sorted(usual)
    for other in ("10000000000.a", "999999999.a"):
        (path / "new" / other).write_bytes(b"")
    assert scanned(maildir) == [b"999999999.a", *sorted(usual), b"10000000000.a"]


def test_a_name_that_vanishes_meanwhile_is_no_trouble(
    path: Path, maildir: Maildir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mail reader is at work in the same maildir."""
    (path / "new" / "strange").write_bytes(b"")
    (path / "new" / "7.a").write_bytes(b"")
    looked_at = os.stat

    def stat(name: bytes, **where: Any) -> os.stat_result:
        if name == b"strange":
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        return looked_at(name, **where)

    monkeypatch.setattr(os, "stat", stat)
    assert scanned(maildir) == [b"strange", b"7.a"]


def test_cur_only_when_asked(path: Path, maildir: Maildir) -> None:
    """What has been read stays."""
    (path / "new" / "2.a").write_bytes(b"")
    (path / "cur" / "1.a:2,S").write_bytes(b"")
    assert list(maildir.scan()) == [(maildir.new, b"2.a")]
    assert list(maildir.scan(True)) == [(maildir.cur, b"1.a:2,S"), (maildir.new, b"2.a")]


def test_dot_files_are_nobodys(path: Path, maildir: Maildir) -> None:
    """maildir(5)."""
    (path / "new" / ".hidden").write_bytes(b"")
    assert scanned(maildir) == []


def test_names_may_be_any_bytes(path: Path, maildir: Maildir) -> None:
    """A name that is no UTF-8 is a message all the same."""
    with open(os.fsencode(path) + b"/new/1.\xff\n", "wb"):
        pass
    assert scanned(maildir) == [b"1.\xff\n"]
    assert load(maildir, b"1.\xff\n").data == b""


def test_a_directory_that_cannot_be_listed_says_so(
    maildir: Maildir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An empty answer would look as if nothing were left."""
    monkeypatch.setattr(os, "listdir", denied)
    monkeypatch.setattr(os, "scandir", denied)
    with pytest.raises(LocalError, match=r"cannot list .*new: Permission denied"):
        maildir.scan()
    with pytest.raises(LocalError, match=r"cannot list .*tmp: Permission denied"):
        clean(maildir, 0)


# Sidecars


def test_a_directory_of_sidecars_counts_as_soon_as_it_is_there(
    path: Path, maildir: Maildir
) -> None:
    """Looking makes none: other programs may take a maildir without for one of theirs."""
    assert maildir.find_envelopes() is None
    assert not maildir.may_have_envelopes()
    assert "envelope" not in names(path)
    (path / "envelope").mkdir()
    assert maildir.may_have_envelopes()
    assert maildir.find_envelopes() is maildir.envelope()
    assert maildir.envelope().path.endswith(b"/envelope")


def moved(path: Path) -> None:
    path.rename(path.with_name("envelope.old"))


@pytest.mark.parametrize("go", [Path.rmdir, moved])
def test_sidecars_are_looked_for_where_the_path_leads(
    path: Path, maildir: Maildir, go: Callable[[Path], object]
) -> None:
    """In one that was moved away nobody puts any: messages would go to whom their headers name."""
    maildir.durable_envelope()
    before = len(open_descriptors())
    go(path / "envelope")
    assert maildir.find_envelopes() is None
    assert not maildir.may_have_envelopes()
    (path / "envelope").mkdir()
    found = maildir.find_envelopes()
    assert found is not None
    assert os.path.samestat(os.fstat(found.fd), os.stat(path / "envelope"))
    assert maildir.envelope() is found
    assert len(open_descriptors()) == before


def test_a_directory_of_sidecars_that_was_made_anew_is_durable_anew(
    path: Path, maildir: Maildir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut would take it with all that was put there since."""
    maildir.durable_envelope()
    (path / "envelope").rmdir()
    system = FileSystem(monkeypatch, path)
    maildir.durable_envelope()
    assert system.calls == ["mkdir envelope", "fsync ."]


def test_where_sidecars_cannot_be_looked_for_there_may_be_some(
    path: Path, maildir: Maildir
) -> None:
    """Also where they could be before: nothing goes by its header meanwhile."""
    maildir.envelope()
    (path / "envelope").rmdir()
    (path / "envelope").symlink_to("/tmp")
    assert maildir.may_have_envelopes()
    for _ in range(2):
        with pytest.raises(LocalError, match="envelope: it is a symbolic link"):
            maildir.find_envelopes()
        assert maildir.may_have_envelopes()


def test_mail_that_nobody_would_find_is_told(path: Path, maildir: Maildir) -> None:
    """Who has put it there, or would take the maildir for empty, believed to be done."""
    envelope = maildir.envelope()
    maildir.check_path(envelope)
    moved(path / "envelope")
    maildir.check_path()
    with pytest.raises(LocalError, match="was renamed, replaced or mounted over"):
        maildir.check_path(envelope)
    (path / "new").rename(path / "new.old")
    with pytest.raises(LocalError, match="was renamed, replaced or mounted over"):
        maildir.check_path()


def test_the_directory_of_sidecars_is_made_for_the_owner_and_durable(
    path: Path, maildir: Maildir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut must not take it with all its sidecars."""
    system = FileSystem(monkeypatch, path)
    folder = maildir.durable_envelope()
    assert system.calls == ["mkdir envelope", "fsync ."]
    assert maildir.durable_envelope() is folder
    assert len(system.calls) == 2
    assert stat.S_IMODE((path / "envelope").stat().st_mode) == 0o700
    assert maildir.envelope() is folder
    with Maildir(os.fsencode(path)) as again:
        again.durable_envelope()
    assert system.calls[2:] == ["fsync ."], "who made it may have been killed before its fsync"


def test_a_directory_of_sidecars_that_is_none_stops_everything(path: Path) -> None:
    """Without its sidecars a message would be sent by its lines."""
    (path / "envelope").symlink_to("/tmp")
    with Maildir(os.fsencode(path)) as opened:
        with pytest.raises(LocalError, match="envelope"):
            opened.scan()
        with pytest.raises(LocalError, match="envelope"):
            opened.envelope()


def test_one_that_cannot_be_looked_at_or_made_says_so(
    maildir: Maildir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And is not taken for one that is not there."""
    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", denied)
        with pytest.raises(LocalError, match=r"cannot look at .*envelope: Permission denied"):
            maildir.scan()
    monkeypatch.setattr(os, "mkdir", denied)
    with pytest.raises(LocalError, match=r"cannot make .*envelope: Permission denied"):
        maildir.envelope()


# Loading


def test_a_message_is_read_whole(path: Path, maildir: Maildir) -> None:
    """With what it will be known by."""
    (path / "new" / "1.a").write_bytes(b"hello")
    os.utime(path / "new" / "1.a", (5, 1234.5))
    message = load(maildir, b"1.a")
    assert (message.data, message.size, message.fd) == (b"hello", 5, -1)
    assert message.mtime_s == 1234.5
    status = (path / "new" / "1.a").stat()
    assert message.identity == (status.st_dev, status.st_ino, 5, status.st_mtime_ns)
    message.close()


def test_an_empty_one_as_well(path: Path, maildir: Maildir) -> None:
    """It has no envelope; but that is for others to say."""
    (path / "new" / "1.a").write_bytes(b"")
    assert load(maildir, b"1.a").data == b""


@pytest.mark.parametrize(("more", "whole"), [(0, True), (1, False)])
def test_a_large_one_stays_open(path: Path, maildir: Maildir, more: int, whole: bool) -> None:
    """Memory is bounded: only the top of it is read."""
    size = WHOLE_MAX + more
    (path / "new" / "1.a").write_bytes(b"x" * size)
    message = load(maildir, b"1.a")
    assert message.size == size
    assert len(message.data) == (size if whole else TOP_BYTES)
    assert (message.fd == -1) is whole
    if not whole:
        assert os.pread(message.fd, 10, size - 3) == b"xxx"
    fd = message.fd
    message.close()
    message.close()
    assert message.fd == -1
    if fd >= 0:
        with pytest.raises(OSError, match="Bad file"):
            os.fstat(fd)


def test_what_is_no_regular_file_is_none(path: Path, maildir: Maildir) -> None:
    """Each of these has wedged some mailer's queue."""
    new = path / "new"
    (new / "directory").mkdir()
    (new / "link").symlink_to("/etc/passwd")
    (new / "dangling").symlink_to("nowhere")
    (new / "loop").symlink_to("loop")
    os.mkfifo(new / "fifo")
    there = os.getcwd()
    os.chdir(new)
    try:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind("socket")
    finally:
        os.chdir(there)
    assert len(maildir.scan()) == 6
    for _, name in maildir.scan():
        assert maildir.load(maildir.new, name) is None, name
    assert maildir.load(maildir.new, b"gone") is None


@pytest.mark.skipif(os.getuid() != 0, reason="only root makes devices")
@pytest.mark.parametrize("device", [(1, 3), (5, 0), (250, 77)], ids=["null", "tty", "none"])
def test_a_device_is_none(path: Path, maildir: Maildir, device: tuple[int, int]) -> None:
    """Reading a terminal or a tape from new/ would hang."""
    try:
        os.mknod(path / "new" / "device", stat.S_IFCHR | 0o600, os.makedev(*device))
    except PermissionError:
        pytest.skip("no devices in this container")
    assert maildir.load(maildir.new, b"device") is None


def test_one_that_cannot_be_opened_is_held(
    path: Path, maildir: Maildir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mail that is there and not sent must be told of; a directory needs no telling."""
    (path / "new" / "1.a").write_bytes(b"x")
    (path / "new" / "directory").mkdir()
    monkeypatch.setattr(os, "open", denied)
    with pytest.raises(LocalError, match=r"open .*1\.a: Permission denied; chmod or chown it"):
        maildir.load(maildir.new, b"1.a")
    assert maildir.load(maildir.new, b"directory") is None
    monkeypatch.setattr(os, "stat", denied)
    with pytest.raises(LocalError, match="directory: Permission denied"):
        maildir.load(maildir.new, b"directory")


def test_one_that_cannot_be_read_is_held(
    path: Path, maildir: Maildir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bad block."""
    (path / "new" / "1.a").write_bytes(b"x")
    before = open_descriptors()
    monkeypatch.setattr(os, "read", denied)
    with pytest.raises(LocalError, match=r"cannot read .*1\.a"):
        maildir.load(maildir.new, b"1.a")
    assert open_descriptors() == before


@pytest.mark.parametrize("pieces", [[b"hello more"], [b"hel", b""], [b"", b""], [b"hel", b"lo!"]])
def test_one_that_is_being_written_is_held(
    path: Path, maildir: Maildir, monkeypatch: pytest.MonkeyPatch, pieces: list[bytes]
) -> None:
    """A length that is not that of the text breaks the connection, or mixes two messages."""
    (path / "new" / "1.a").write_bytes(b"hello")
    left = iter(pieces)
    monkeypatch.setattr(os, "read", lambda fd, count: next(left)[:count])
    with pytest.raises(FileChangedError, match=r"1\.a is being written to"):
        maildir.load(maildir.new, b"1.a")


def test_a_large_message_does_not_keep_its_writers_out(path: Path, maildir: Maildir) -> None:
    """Who opens it for writing while it is sent would wait for 45 s, for a lease of ours."""
    (path / "new" / "1.a").write_bytes(b"x" * (WHOLE_MAX + 1))
    message = maildir.load(maildir.new, b"1.a")
    assert message is not None
    assert message.fd >= 0
    os.close(os.open(path / "new" / "1.a", os.O_WRONLY | os.O_NONBLOCK))
    message.close()


def test_a_message_that_came_by_tmp_may_still_be_open_with_its_writer(
    path: Path, maildir: Maildir
) -> None:
    """It was renamed, so it is complete; to hold it would make mail wait for a slow program."""
    with (path / "tmp" / "1.a").open("wb") as file:
        file.write(b"text")
        file.flush()
        os.utime(file.fileno(), (5, 5))
        (path / "tmp" / "1.a").rename(path / "new" / "1.a")
        message = maildir.load(maildir.new, b"1.a")
    assert message is not None
    assert message.data == b"text"


def test_short_reads_are_put_together(
    path: Path, maildir: Maildir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal may cut a read on some file systems."""
    (path / "new" / "1.a").write_bytes(b"hello")
    real = os.read
    monkeypatch.setattr(os, "read", lambda fd, count: real(fd, min(count, 2)))
    assert load(maildir, b"1.a").data == b"hello"


# Removing


def test_removing(path: Path, maildir: Maildir) -> None:
    """Once; the second time it is gone, and that is all right."""
    (path / "new" / "1.a").write_bytes(b"x")
    message = load(maildir, b"1.a")
    assert maildir.is_same(message)
    assert maildir.remove(message) is Removal.DONE
    assert names(path / "new") == []
    assert not maildir.is_same(message)
    assert maildir.remove(message) is Removal.GONE


def grow(file: Path) -> None:
    """Append to it."""
    with file.open("ab") as opened:
        opened.write(b"y")


def replace(file: Path) -> None:
    """Put another file of the same size and time in its place."""
    status = file.stat()
    other = file.with_name("other")
    other.write_bytes(b"z")
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    other.rename(file)


def rewrite(file: Path) -> None:
    """Write the same size into it, at another time."""
    file.write_bytes(b"z")
    os.utime(file, (99, 99))


def relink(file: Path) -> None:
    """Put a link to it in its place."""
    file.rename(file.parent.parent / "elsewhere")
    file.symlink_to(file.parent.parent / "elsewhere")


@pytest.mark.parametrize("change", [grow, replace, rewrite, relink])
def test_only_the_file_that_was_sent_is_removed(
    path: Path, maildir: Maildir, change: Callable[[Path], None]
) -> None:
    """What has that name now nobody has sent."""
    (path / "new" / "1.a").write_bytes(b"x")
    message = load(maildir, b"1.a")
    change(path / "new" / "1.a")
    assert not maildir.is_same(message)
    assert maildir.remove(message) is Removal.CHANGED
    assert names(path / "new") == ["1.a"]


def test_errors_name_the_file(
    path: Path, maildir: Maildir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what was tried."""
    (path / "new" / "1.a").write_bytes(b"x")
    message = load(maildir, b"1.a")
    system = FileSystem(monkeypatch, path)
    system.fail("unlink new/1.a", errno.EROFS, errno.EACCES)
    with pytest.raises(LocalError, match=r"cannot remove .*1\.a: Read-only file system"):
        maildir.remove(message)
    with pytest.raises(LocalError, match=r"cannot remove .*1\.a: Permission denied"):
        maildir.new.discard(b"1.a")
    system.fail("fsync new", errno.EIO)
    with pytest.raises(LocalError, match=r"cannot make durable .*new: Input/output error"):
        maildir.new.sync()
    monkeypatch.setattr(os, "stat", denied)
    with pytest.raises(LocalError, match=r"cannot look at .*1\.a: Permission denied"):
        maildir.is_same(message)
    with pytest.raises(LocalError, match=r"cannot remove .*1\.a: Permission denied"):
        maildir.remove(message)


def test_discarding_what_is_gone_is_no_trouble(path: Path, maildir: Maildir) -> None:
    """Somebody else cleaned up."""
    (path / "tmp" / "here").touch()
    for name in (b"here", b"here", b"gone"):
        maildir.tmp.discard(name)
    assert names(path / "tmp") == []


def test_control_characters_of_a_path_never_reach_a_terminal(tmp_path: Path) -> None:
    """Whoever names a file must not write on the administrator's screen."""
    with pytest.raises(LocalError) as raised:
        Maildir(os.fsencode(tmp_path / "evil\x1b[2J"))
    assert "\x1b" not in str(raised.value)
    assert "evil?[2J" in str(raised.value)


# tmp/


def test_old_files_in_tmp_are_cleaned(path: Path, maildir: Maildir) -> None:
    """36 hours after nobody touched them, maildir(5); nothing else is."""
    now = 10_000_000.0
    for name, atime, mtime in (
        ("old", 1, 1),
        ("read", now - 36 * 3_600, 1),
        ("written", 1, now - 36 * 3_600),
        ("just", now - 36 * 3_600 - 1, now - 36 * 3_600 - 1),
    ):
        (path / "tmp" / name).write_bytes(b"")
        os.utime(path / "tmp" / name, (atime, mtime))
    (path / "tmp" / "directory").mkdir()
    os.utime(path / "tmp" / "directory", (1, 1))
    assert clean(maildir, now) == 2
    assert names(path / "tmp") == ["directory", "read", "written"]


def test_cleaning_takes_what_others_do_as_it_comes(
    path: Path, maildir: Maildir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another cleaner is no trouble; a file that cannot be removed is told of."""
    for name in ("a", "b"):
        (path / "tmp" / name).write_bytes(b"")
    system = FileSystem(monkeypatch, path)
    system.fail("unlink tmp", errno.ENOENT)
    assert clean(maildir, 1e12) == 1
    system.fail("unlink tmp", errno.EACCES)
    with pytest.raises(LocalError, match=r"cannot clean up .*tmp/.: Permission denied"):
        clean(maildir, 1e12)
