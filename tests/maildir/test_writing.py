"""Putting files in: after a crash at any point the message is there, whole, once."""

import errno
import os
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from maildirqmtp.errors import FileChangedError, LocalError
from maildirqmtp.mail.sidecar import Sidecar
from maildirqmtp.maildir import writing
from maildirqmtp.maildir.files import Message
from maildirqmtp.maildir.maildir import Maildir
from tests.fakes import FileSystem
from tests.helpers import add_message, add_sidecar, make_maildir, names, open_descriptors

CONTENT = Sidecar(b"s@x", (b"a@y", b"b@y"))


@pytest.fixture
def maildir(tmp_path: Path) -> Iterator[Maildir]:
    """The maildir that messages come from."""
    with Maildir(os.fsencode(make_maildir(tmp_path / "from"))) as opened:
        yield opened


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Maildir]:
    """The maildir that takes them."""
    with Maildir(os.fsencode(make_maildir(tmp_path / "to"))) as opened:
        yield opened


@pytest.fixture
def message(tmp_path: Path, maildir: Maildir) -> Message:
    """A message named 1.a with a flag."""
    (tmp_path / "from" / "new" / "1.a:2,S").write_bytes(b"hello")
    os.utime(tmp_path / "from" / "new" / "1.a:2,S", ns=(5, 1_234_567_890_123_456_789))
    loaded = maildir.load(maildir.new, b"1.a:2,S")
    assert loaded is not None
    return loaded


def denied(*_: object, **__: object) -> None:
    """What the system says where something is not allowed."""
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


# Names and maildirs


def test_names_are_unique_and_tell_their_time() -> None:
    """Two deliveries in one microsecond must not be one file; scans sort by the seconds."""
    made = [writing.unique_name() for _ in range(1000)]
    assert len(set(made)) == 1000
    for name in made:
        seconds, unique, host = name.split(b".", 2)
        assert seconds.isdigit()
        assert b"P%dQ" % os.getpid() in unique
        assert host
        assert not {b"/", b":"} & {name[i : i + 1] for i in range(len(name))}


def test_names_of_one_microsecond_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of two deliveries would fail, or replace the other."""
    monkeypatch.setattr(time, "time_ns", lambda: 1_234_567_890_123_456_789)
    assert writing.unique_name() != writing.unique_name()


def test_a_strange_host_name_makes_no_strange_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """maildir(5): / and : are written in octal."""
    writing.host_in_names.cache_clear()
    monkeypatch.setattr("socket.gethostname", lambda: "a/b:c")
    assert writing.unique_name().endswith(b".a\\057b\\072c")
    writing.host_in_names.cache_clear()


def test_making_a_maildir_is_for_the_owner_only(tmp_path: Path) -> None:
    """Mail is private; and making it twice is harmless."""
    for _ in range(2):
        writing.create(os.fsencode(tmp_path / "made"))
        with Maildir(os.fsencode(tmp_path / "made")):
            pass
    for part in ("", "new", "cur", "tmp"):
        assert stat.S_IMODE((tmp_path / "made" / part).stat().st_mode) == 0o700


def test_making_one_is_durable_where_an_earlier_run_died_in_between(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The maildir may be there and its name not durable: what is put into it would go with it."""
    path = os.fsencode(tmp_path / "made")
    writing.create(path)
    system = FileSystem(monkeypatch, tmp_path)
    writing.create(path)
    assert [call for call in system.calls if call.startswith("fsync")] == ["fsync made", "fsync ."]


def test_making_one_where_it_cannot_be_says_so(tmp_path: Path) -> None:
    """With the directory that could not be made."""
    with pytest.raises(LocalError, match=r"cannot make the directory .*missing/made"):
        writing.create(os.fsencode(tmp_path / "missing" / "made"))


# Delivering


def test_delivering_is_durable_before_it_shows(
    tmp_path: Path, target: Maildir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader must never see half a message, nor a power cut leave one."""
    system = FileSystem(monkeypatch, tmp_path / "to")
    name = writing.write_tmp(target, [b"one ", b"", b"two"])
    assert names(tmp_path / "to" / "new") == []
    assert writing.publish(target, name) == name
    shown = os.fsdecode(name)
    assert system.calls == ["fsync tmp/*", f"link tmp/* -> new/{shown}", "unlink tmp/*"]
    assert (tmp_path / "to" / "new" / shown).read_bytes() == b"one two"
    assert stat.S_IMODE((tmp_path / "to" / "new" / shown).stat().st_mode) == 0o600
    assert names(tmp_path / "to" / "tmp") == []


def test_mail_that_is_taken_back_keeps_its_sidecar_until_that_is_durable(
    tmp_path: Path, target: Maildir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a power cut it may be there again, and would go to whom its header names."""
    name = writing.publish(target, writing.write_tmp(target, [b"text"]))
    shown = os.fsdecode(name)
    add_sidecar(tmp_path / "to", shown, "s@x", "a@y")
    envelope = target.durable_envelope()
    system = FileSystem(monkeypatch, tmp_path / "to")
    writing.withdraw(target, [name], envelope)
    removed = [f"unlink new/{shown}", "fsync new", f"unlink envelope/{shown}.json"]
    assert [call for call in system.calls if call in removed] == removed
    assert names(tmp_path / "to" / "new") == names(tmp_path / "to" / "envelope") == []


def test_short_writes_go_on(
    tmp_path: Path, target: Maildir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system may take a part; the rest must not be lost."""
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, bytes(data[:2])))
    name = writing.write_tmp(target, [b"hello", b"!"])
    assert (tmp_path / "to" / "tmp" / os.fsdecode(name)).read_bytes() == b"hello!"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_what_cannot_be_written_whole_is_removed(
    tmp_path: Path, target: Maildir, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """A full disk must not stay full of halves; nor is a failed fsync believed."""
    system = FileSystem(monkeypatch, tmp_path / "to")
    system.fail("fsync tmp/*", number)
    with pytest.raises(LocalError, match=f"cannot write .*{os.strerror(number)}"):
        writing.write_tmp(target, [b"hello"])
    assert names(tmp_path / "to" / "tmp") == []
    with pytest.raises(ZeroDivisionError):
        writing.write_tmp(target, (b"%d" % (1 // n) for n in (1, 0)))


def test_where_nothing_can_be_made_it_says_so(
    target: Maildir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And no descriptor is left."""
    before = open_descriptors()
    monkeypatch.setattr(os, "open", denied)
    with pytest.raises(LocalError, match="cannot write"):
        writing.write_tmp(target, [b"x"])
    assert open_descriptors() == before


def test_a_delivery_that_fails_leaves_no_rubbish(
    tmp_path: Path, target: Maildir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sender tries again, and again."""
    system = FileSystem(monkeypatch, tmp_path / "to")
    system.fail("link", errno.ENOSPC)
    with pytest.raises(LocalError, match=r"cannot deliver .*No space"):
        writing.enqueue(target, Sidecar(b"", (b"a@b",)), [b"x"])
    assert names(tmp_path / "to" / "tmp") == names(tmp_path / "to" / "new") == []


def test_a_delivery_never_replaces_a_message(tmp_path: Path, target: Maildir) -> None:
    """A rename would."""
    name = writing.write_tmp(target, [b"new"])
    there = tmp_path / "to" / "new" / os.fsdecode(name)
    there.write_bytes(b"old")
    with pytest.raises(LocalError):
        writing.publish(target, name)
    assert there.read_bytes() == b"old"


def test_a_rename_is_in_one_place_and_replaces_nothing(tmp_path: Path, target: Maildir) -> None:
    """After a crash a file in tmp/ was never delivered; and another's message stays."""
    there = tmp_path / "to" / "new"
    name = writing.write_tmp(target, [b"x"])
    writing.publish_by_rename(target, name)
    assert names(there) == [os.fsdecode(name)]
    assert names(tmp_path / "to" / "tmp") == []
    name = writing.write_tmp(target, [b"new"])
    (there / os.fsdecode(name)).write_bytes(b"old")
    with pytest.raises(LocalError):
        writing.publish_by_rename(target, name)
    assert (there / os.fsdecode(name)).read_bytes() == b"old"


# Adopting


def test_a_file_under_a_name_of_its_own_is_durable_and_replaces_itself(
    tmp_path: Path, target: Maildir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bounce that is made again after a crash is there once, and its message may go then."""
    for _ in range(2):
        system = FileSystem(monkeypatch, tmp_path / "to")
        writing.deliver_as(target, b"bounce.1", [b"text"])
        assert system.calls == ["fsync tmp/*", "rename tmp/* -> new/bounce.1", "fsync new"]
    assert names(tmp_path / "to" / "new") == ["bounce.1"]
    assert names(tmp_path / "to" / "tmp") == []


def test_adopting_by_link(
    tmp_path: Path, target: Maildir, message: Message, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same file, with its time, under a second name; the first is the caller's to remove."""
    system = FileSystem(monkeypatch, tmp_path)
    writing.adopt(target, message, b"1.a")
    assert system.calls == [
        "link from/new/1.a:2,S -> to/tmp/*",
        "link to/tmp/* -> to/new/1.a",
        "unlink to/tmp/*",
    ]
    assert (tmp_path / "to" / "new" / "1.a").samefile(tmp_path / "from" / "new" / "1.a:2,S")
    assert names(tmp_path / "to" / "tmp") == []


@pytest.mark.parametrize(
    "number", [errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS]
)
def test_adopting_by_copy(
    tmp_path: Path,
    target: Maildir,
    message: Message,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
) -> None:
    """On another file system, or one without links: durable first, and with the same time."""
    system = FileSystem(monkeypatch, tmp_path)
    system.fail("link from", number)
    writing.adopt(target, message, b"1.a")
    assert system.calls == [
        "link from/new/1.a:2,S -> to/tmp/*",
        "fsync to/tmp/*",
        "link to/tmp/* -> to/new/1.a",
        "unlink to/tmp/*",
    ]
    copy = tmp_path / "to" / "new" / "1.a"
    assert copy.read_bytes() == b"hello"
    assert copy.stat().st_mtime_ns == 1_234_567_890_123_456_789
    assert not copy.samefile(tmp_path / "from" / "new" / "1.a:2,S")
    assert writing.free_name(target, message) == b"1.a"


def test_adopting_across_file_systems(message: Message, tmp_path: Path) -> None:
    """The same with a real one."""
    shm = Path("/dev/shm")
    if not shm.is_dir() or shm.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("no second file system here")
    import tempfile

    with tempfile.TemporaryDirectory(dir=shm) as directory:
        make_maildir(Path(directory))
        with Maildir(os.fsencode(directory)) as target:
            writing.adopt(target, message, b"1.a")
        assert (Path(directory) / "new" / "1.a").read_bytes() == b"hello"
        assert names(Path(directory) / "tmp") == []


@pytest.mark.parametrize("link", [True, False], ids=["link", "copy"])
@pytest.mark.parametrize("change", ["gone", "replaced", "grown"])
def test_another_file_of_that_name_is_not_adopted(
    tmp_path: Path,
    target: Maildir,
    message: Message,
    monkeypatch: pytest.MonkeyPatch,
    link: bool,
    change: str,
) -> None:
    """It is not the one that the server answered for."""
    file = tmp_path / "from" / "new" / "1.a:2,S"
    if change == "grown":
        with file.open("ab") as opened:
            opened.write(b"!")
    else:
        file.unlink()
    if change == "replaced":
        file.write_bytes(b"other")
    if not link:
        FileSystem(monkeypatch, tmp_path).fail("link from", errno.EXDEV)
    with pytest.raises(FileChangedError, match=r"1\.a:2,S changed while it was being sent"):
        writing.adopt(target, message, b"1.a")
    assert names(tmp_path / "to" / "new") == names(tmp_path / "to" / "tmp") == []


@pytest.mark.parametrize("part", ["tmp", "new"])
def test_a_target_that_was_removed_is_no_change_of_the_message(
    tmp_path: Path, target: Maildir, message: Message, part: str
) -> None:
    """Taken for one, the message would be sent again and again, for nobody has touched it."""
    (tmp_path / "to" / part).rmdir()
    with pytest.raises(LocalError, match=rf"to/{part}"):
        writing.adopt(target, message, b"1.a")
    assert names(tmp_path / "from" / "new") == ["1.a:2,S"]


def _moving(target: Path) -> Iterator[bytes]:
    """A message that takes so long to come that its maildir is moved meanwhile."""
    yield b"text"
    target.rename(f"{target}.old")


def test_a_maildir_that_was_moved_has_not_taken_a_message(tmp_path: Path, target: Maildir) -> None:
    """Whoever is told that it was taken will never hear of it again; told that not, tries again."""
    with pytest.raises(LocalError, match="was renamed, replaced or mounted over"):
        writing.enqueue(target, Sidecar(b"", (b"a@b",)), _moving(tmp_path / "to"))
    assert [names(tmp_path / "to.old" / p) for p in ("new", "tmp", "envelope")] == [[], [], []]


def test_a_maildir_that_was_moved_has_not_taken_a_bounce(tmp_path: Path, target: Maildir) -> None:
    """Its message would go, and its sender never hear of it."""
    with pytest.raises(LocalError, match="was renamed, replaced or mounted over"):
        writing.deliver_as(target, b"bounce.1", _moving(tmp_path / "to"))


@pytest.mark.parametrize("call", ["link from", "link to", "fsync to/tmp"])
def test_adopting_that_fails_leaves_no_rubbish(
    tmp_path: Path,
    target: Maildir,
    message: Message,
    monkeypatch: pytest.MonkeyPatch,
    call: str,
) -> None:
    """The message is still where it was."""
    system = FileSystem(monkeypatch, tmp_path)
    if call.startswith("fsync"):
        system.fail("link from", errno.EXDEV)
    system.always_fail(call, errno.ENOSPC)
    with pytest.raises(LocalError, match="No space left"):
        writing.adopt(target, message, b"1.a")
    assert names(tmp_path / "to" / "new") == names(tmp_path / "to" / "tmp") == []
    assert names(tmp_path / "from" / "new") == ["1.a:2,S"]


def test_copying_what_may_not_be_read_says_so(
    tmp_path: Path, target: Maildir, message: Message, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the message, not of the target."""
    FileSystem(monkeypatch, tmp_path).always_fail("link from", errno.EXDEV)
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", denied)
        with pytest.raises(LocalError, match=r"cannot open .*from/new/1\.a.*Permission denied"):
            writing.adopt(target, message, b"1.a")
    monkeypatch.setattr(os, "utime", denied)
    with pytest.raises(LocalError, match=r"cannot copy .*from/new/1\.a.*Permission denied"):
        writing.adopt(target, message, b"1.a")
    assert names(tmp_path / "to" / "new") == []


def test_what_vanishes_from_tmp_while_adopting_is_this_machines_trouble(
    target: Maildir, message: Message, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not a crash: messages in flight are still to be settled."""
    real: Callable[..., object] = os.stat

    def stat_fails(path: object, *, dir_fd: int | None = None, **more: object) -> object:
        if dir_fd == target.tmp.fd:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        return real(path, dir_fd=dir_fd, **more)

    monkeypatch.setattr(os, "stat", stat_fails)
    with pytest.raises(LocalError, match="No such file"):
        writing.adopt(target, message, b"1.a")


# Collisions


def test_a_name_that_is_taken_gets_a_number(
    tmp_path: Path, target: Maildir, message: Message
) -> None:
    """Nobody's message is replaced, nor taken for ours."""
    new = tmp_path / "to" / "new"
    assert writing.free_name(target, message) == b"1.a"
    (new / "1.a").write_bytes(b"somebody else's")
    assert writing.free_name(target, message) == b"1.a.1"
    (new / "1.a.1").write_bytes(b"hello")
    assert writing.free_name(target, message) == b"1.a.2"
    with pytest.raises(LocalError, match="File exists"):
        writing.adopt(target, message, b"1.a")
    assert (new / "1.a").read_bytes() == b"somebody else's"
    assert names(tmp_path / "to" / "tmp") == []


@pytest.mark.parametrize(
    ("folder", "name"), [("cur", "1.a:2,S"), ("new", "1.a,U=7"), ("cur", "1.a,S=5,U=7:2,")]
)
def test_a_name_whose_sidecar_a_mail_reader_has_moved_is_taken(
    tmp_path: Path, target: Maildir, message: Message, folder: str, name: str
) -> None:
    """Else two files have one sidecar, and the one without it is sent to whom its header names."""
    add_message(tmp_path / "to", name, folder=folder)
    add_sidecar(tmp_path / "to", "1.a", "s@x", "a@y")
    assert writing.free_name(target, message) == b"1.a.1"


def test_a_name_of_an_orphan_is_free(tmp_path: Path, target: Maildir, message: Message) -> None:
    """Else each try on a full disk would leave one more sidecar."""
    add_message(tmp_path / "to", "1.ab:2,S", folder="cur")
    add_sidecar(tmp_path / "to", "1.a", "s@x", "a@y")
    assert writing.free_name(target, message) == b"1.a"


def test_after_a_crash_the_second_go_takes_the_same_name(
    tmp_path: Path, target: Maildir, message: Message
) -> None:
    """Else each crash would leave one more copy in the failed maildir."""
    for _ in range(2):
        name = writing.free_name(target, message)
        assert name == b"1.a"
        writing.adopt(target, message, name)
    assert names(tmp_path / "to" / "new") == ["1.a"]


def test_a_target_that_cannot_be_looked_at_says_so(
    target: Maildir, message: Message, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Taking it for free could not be wrong, but would not be right."""
    monkeypatch.setattr(os, "stat", denied)
    with pytest.raises(LocalError, match=r"cannot look at .*to/new/1\.a"):
        writing.free_name(target, message)
