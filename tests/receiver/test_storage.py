"""The receiver's maildir: known by its path, and only good where mail can be found."""

import contextlib
import errno
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from maildirqmtp.errors import LocalError
from maildirqmtp.maildir import writing
from maildirqmtp.maildir.files import Folder
from maildirqmtp.qmtp.protocol import package_head, package_tail
from maildirqmtp.receiver.maildir_destination import MaildirDestination
from maildirqmtp.receiver.policy import Policy, Severity
from maildirqmtp.receiver.session import Session
from maildirqmtp.receiver.spool import MEMORY_MAX, Spool
from maildirqmtp.receiver.storage import Copy, Storage
from tests.fakes import FileSystem
from tests.helpers import DEADLINE_S, open_descriptors, wait_until
from tests.receiving import letters

PACKAGE = package_head(3) + b"hi\n" + package_tail(b"a@b", (b"c@example.org",))
LARGE = package_head(300_000) + b"x" * 300_000 + package_tail(b"a@b", (b"c@example.org",))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "M"


@pytest.fixture
def destination(path: Path) -> Iterator[MaildirDestination]:
    with contextlib.closing(MaildirDestination(os.fsencode(path))) as opened:
        yield opened


@pytest.fixture
def storage(destination: MaildirDestination) -> Storage:
    return destination.storage


def stored(storage: Storage, pieces: Sequence[bytes]) -> Copy:
    """Write a copy, and publish it."""
    copy = storage.stage(pieces)
    storage.publish(copy)
    return copy


def new(path: Path) -> int:
    return len(os.listdir(path / "new"))


def moved_away(path: Path) -> None:
    """`mv DIR`: the descriptors of the receiver go along."""
    path.rename(path.with_name("old"))


def made_anew(path: Path) -> None:
    """Replaced by another maildir, or mounted over."""
    moved_away(path)
    writing.create(os.fsencode(path))


def only_new_made_anew(path: Path) -> None:
    """A mount on new/ alone does the same."""
    (path / "new").rename(path / "old-new")
    (path / "new").mkdir()


@pytest.mark.parametrize("package", [PACKAGE, LARGE])
@pytest.mark.parametrize("replace", [moved_away, made_anew, only_new_made_anew])
def test_mail_that_nobody_would_find_is_not_accepted(
    destination: MaildirDestination, path: Path, package: bytes, replace: object
) -> None:
    """A K for it would be mail lost: it lies where no reader looks."""
    log: list[str] = []
    session = Session(destination, "p", log=lambda _, text: log.append(text))
    assert letters(session.receive(package)) == "K"
    assert session.receive(package[:-10]) == b""
    replace(path)  # type: ignore[operator]
    assert letters(session.receive(package[-10:])) == "Z"
    assert "was renamed, replaced or mounted over" in log[1]
    if replace is moved_away:
        assert letters(session.receive(package)) == "Z"
        assert "cannot open the maildir directory" in log[-2]
        assert not path.exists(), "a maildir that is missing must not be filled again"
        path.with_name("old").rename(path)
        assert letters(session.receive(package)) == "K"
        assert new(path) == 2
    else:
        assert letters(session.receive(package)) == "K"
        assert new(path) == 1


def test_a_maildir_that_is_removed_and_comes_back(
    destination: MaildirDestination, path: Path
) -> None:
    """Without a restart, though no file can be made in what is open."""
    session = Session(destination, "p")
    for name in ("new", "cur", "tmp"):
        (path / name).rmdir()
    path.rmdir()
    assert letters(session.receive(PACKAGE)) == "Z"
    writing.create(os.fsencode(path))
    assert letters(session.receive(PACKAGE)) == "K"
    assert new(path) == 1


@pytest.mark.parametrize("replace", [made_anew, only_new_made_anew])
def test_a_full_maildir_that_is_replaced_by_one_with_room(
    destination: MaildirDestination,
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    replace: Callable[[Path], None],
) -> None:
    """--min-free: all mail would be deferred until a restart, for nothing is stored meanwhile."""
    full, real = os.stat(path / "new").st_ino, Folder.free_bytes
    monkeypatch.setattr(
        Folder,
        "free_bytes",
        lambda folder: 0 if os.fstat(folder.fd).st_ino == full else real(folder),
    )
    session = Session(destination, "p", Policy(min_free=1))
    assert letters(session.receive(PACKAGE)) == "Z"
    replace(path)
    assert letters(session.receive(PACKAGE)) == "K"
    assert new(path) == 1


def test_a_full_disk_under_large_messages_is_replaced(
    destination: MaildirDestination, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their texts go into tmp/ before anything is stored: deferred until a restart, likewise."""
    full, real = os.stat(path / "tmp").st_ino, os.open

    def opened(name: bytes, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if dir_fd is not None and flags & os.O_CREAT and os.fstat(dir_fd).st_ino == full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(name, flags, mode, dir_fd=dir_fd)

    monkeypatch.setattr(os, "open", opened)
    session = Session(destination, "p")
    assert letters(session.receive(LARGE)) == "Z"
    made_anew(path)
    assert letters(session.receive(LARGE)) == "K"
    assert new(path) == 1


def test_a_copy_in_the_old_maildir_never_counts(storage: Storage, path: Path) -> None:
    """Another client has made the receiver open the new one, in between."""
    early = stored(storage, [b"early"])
    made_anew(path)
    with pytest.raises(LocalError):
        storage.commit([stored(storage, [b"x"])])
    late = stored(storage, [b"late"])
    with pytest.raises(LocalError, match="not the maildir that the mail went to"):
        storage.commit([early])
    storage.commit([late])
    assert storage.withdraw([early]) == []
    assert new(path) == 1


def test_only_its_own_copies_are_withdrawn(storage: Storage, path: Path) -> None:
    """A file of that name in another maildir is somebody's mail."""
    early = stored(storage, [b"early"])
    made_anew(path)
    with pytest.raises(LocalError):
        storage.commit([early])
    late = stored(storage, [b"late"])
    (path / "new" / os.fsdecode(early.name)).write_bytes(b"another's")
    assert storage.withdraw([early, late]) == []
    assert os.listdir(path / "new") == [os.fsdecode(early.name)]


def test_copies_are_durable_before_they_count(
    storage: Storage, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """K is said after that; a power cut must not take what was accepted."""
    system = FileSystem(monkeypatch, path)
    copies = [stored(storage, [b"text"]) for _ in range(2)]
    storage.commit(copies)
    assert system.of("fsync") == ["fsync tmp/*", "fsync tmp/*", "fsync new"]
    system.fail("fsync new", errno.EIO)
    with pytest.raises(LocalError):
        storage.commit(copies)


def test_opening_the_maildir_again_costs_no_descriptor(storage: Storage, path: Path) -> None:
    """A receiver runs for years, and its maildir may be mounted anew each day."""
    before = len(open_descriptors())
    for number in range(3):
        path.rename(path.with_name(f"old-{number}"))
        writing.create(os.fsencode(path))
        with pytest.raises(LocalError):
            storage.commit([stored(storage, [b"x"])])
        storage.commit([stored(storage, [b"x"])])
    assert len(open_descriptors()) == before


@pytest.mark.parametrize("size", [10, MEMORY_MAX + 10])
def test_a_spool_goes_on_after_a_write_that_took_a_part(
    storage: Storage, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """The system may take a part; the rest must not be lost."""
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, bytes(data[: 100 << 10])))
    text = os.urandom(size)
    spool = Spool(storage, crlf=False)
    spool.append(text)
    spool.finish()
    assert b"".join(spool.pieces(b"top\n")) == b"top\n" + text
    spool.discard()


def test_a_path_that_cannot_be_looked_at(
    destination: MaildirDestination, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No K without an answer to that; and the log has the reason, not a guess."""
    log: list[str] = []
    session = Session(destination, "p", log=lambda _, text: log.append(text))
    real = os.stat

    def stat(name: bytes, **options: object) -> os.stat_result:
        if name == os.fsencode(path):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(name, **options)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", stat)
        assert letters(session.receive(PACKAGE)) == "Z"
    assert f"cannot look at {path}: Input/output error" in log[0]
    assert letters(session.receive(PACKAGE)) == "K"
    assert new(path) == 1


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK])
def test_without_hard_links_it_does_not_start(
    path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Else each message is deferred, for ever, and the reason stands in a log."""

    def link(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", link)
    with pytest.raises(LocalError, match="needs a file system with hard links"):
        Storage(os.fsencode(path))
    assert os.listdir(path / "tmp") == os.listdir(path / "new") == []


def test_new_on_another_file_system(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No link leads from one file system to another."""
    writing.create(os.fsencode(path))
    fstat = os.fstat
    new = os.stat(path / "new").st_ino

    def elsewhere(fd: int) -> os.stat_result:
        found = fstat(fd)
        if found.st_ino != new:
            return found
        return os.stat_result((*found[:2], found.st_dev + 1, *found[3:]))

    monkeypatch.setattr(os, "fstat", elsewhere)
    with pytest.raises(LocalError, match="is on another file system than tmp/"):
        Storage(os.fsencode(path))


@pytest.mark.parametrize("call", ["open", "link"])
def test_a_full_disk_does_not_keep_it_from_starting(
    path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """It may have room when mail comes; until then the mail is deferred."""
    writing.create(os.fsencode(path))
    real = getattr(os, call)

    def full(*arguments: object, **options: object) -> object:
        if call == "link" or len(arguments) > 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*arguments, **options)

    log: list[tuple[Severity, str]] = []
    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        with contextlib.closing(MaildirDestination(os.fsencode(path))) as destination:
            session = Session(destination, "p", log=lambda *line: log.append(line))
            assert letters(session.receive(PACKAGE)) == "Z"
    assert "No space left on device" in log[0][1]
    assert os.listdir(path / "tmp") == os.listdir(path / "new") == []


def test_free_bytes(storage: Storage, path: Path) -> None:
    """As df(1) counts what is available."""
    found = os.statvfs(path)
    assert abs(storage.free_bytes() - found.f_bavail * found.f_frsize) < 1 << 30


# Several threads


def in_threads(count: int, work: Callable[[int], object]) -> list[object]:
    """Do this in so many threads at once; return what came of it, or the errors."""
    results: list[object] = [None] * count

    def run(number: int) -> None:
        try:
            results[number] = work(number)
        except LocalError as error:
            results[number] = error

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
        assert not thread.is_alive()
    return results


class SlowSync:
    """`new/` is fsynced slowly: each fsync ends when the test lets it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
        self.begun = threading.Semaphore(0)
        self.may_end = threading.Semaphore(0)
        self.count = 0
        self.error: OSError | None = None
        real, new = os.fsync, os.stat(path / "new").st_ino

        def fsync(fd: int) -> None:
            if os.fstat(fd).st_ino != new:
                return real(fd)
            self.count += 1
            error, self.error = self.error, None
            self.begun.release()
            assert self.may_end.acquire(timeout=DEADLINE_S)
            if error is not None:
                raise error
            return real(fd)

        monkeypatch.setattr(os, "fsync", fsync)

    def wait(self) -> None:
        """Wait for one to begin."""
        assert self.begun.acquire(timeout=DEADLINE_S)


def waiting_commits(storage: Storage) -> int:
    """How many threads wait for somebody else's fsync."""
    return len(storage._place._new_turns.changed._waiters)  # type: ignore[attr-defined]


def test_commits_share_an_fsync_that_begins_after_their_links(
    storage: Storage, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight clients at once cost two; but none may count on one that was under way before."""
    copies = [stored(storage, [b"%d" % number]) for number in range(8)]
    slow = SlowSync(monkeypatch, path)
    done: list[int] = []

    def commit(number: int) -> None:
        if number:
            first.wait(DEADLINE_S)
        storage.commit([copies[number]])
        done.append(number)

    first = threading.Event()
    control = threading.Thread(target=in_threads, args=(8, commit))
    control.start()
    slow.wait()
    first.set()
    wait_until(lambda: waiting_commits(storage) == 7, "the others wait for it")
    slow.may_end.release()
    slow.wait()
    wait_until(lambda: done == [0], "the first is done")
    assert slow.count == 2
    slow.may_end.release()
    control.join(DEADLINE_S)
    assert sorted(done) == list(range(8))
    assert slow.count == 2


def test_an_fsync_that_failed_counts_for_nobody(
    storage: Storage, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel tells of a lost write once; the next fsync succeeds, without the entry."""
    early, late = stored(storage, [b"early"]), stored(storage, [b"late"])
    shares = stored(storage, [b"shares"])
    slow = SlowSync(monkeypatch, path)
    slow.error = OSError(errno.EIO, os.strerror(errno.EIO))
    found: list[list[object]] = []
    threads = [
        threading.Thread(
            target=lambda copy=copy: found.append(in_threads(1, lambda _: storage.commit([copy])))
        )
        for copy in (early, shares)
    ]
    threads[0].start()
    slow.wait()
    threads[1].start()
    wait_until(lambda: waiting_commits(storage) == 1, "the second waits for the first")
    for _ in range(3):
        slow.may_end.release()
    for thread in threads:
        thread.join(DEADLINE_S)
    assert all("Input/output error" in str(error) for (error,) in found), found
    with pytest.raises(LocalError, match="Input/output error"):
        storage.commit([late])
    assert storage.withdraw([early, late, shares]) == []
    assert new(path) == 0
    fresh = stored(storage, [b"fresh"])
    slow.may_end.release()
    storage.commit([fresh])
    assert new(path) == 1


def test_a_file_whose_fsync_failed_is_given_up(
    storage: Storage, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second fsync of it would succeed, of pages that the kernel has thrown away."""
    synced: list[int] = []

    def fsync(fd: int) -> None:
        synced.append(os.fstat(fd).st_ino)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        with pytest.raises(LocalError, match="Input/output error"):
            stored(storage, [b"x"])
    assert len(synced) == 1
    assert os.listdir(path / "tmp") == os.listdir(path / "new") == []


def test_a_maildir_stays_open_for_whoever_writes_into_it(
    storage: Storage, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its descriptors, closed by another thread, may be another maildir's by then."""
    before = len(open_descriptors())
    old = stored(storage, [b"old"])
    tmp = storage.tmp
    made_anew(path)
    with pytest.raises(LocalError):
        storage.commit([stored(storage, [b"x"])])
    assert stored(storage, [b"new"]).place is not old.place
    assert os.path.samestat(os.fstat(tmp.fd), os.stat(path.with_name("old") / "tmp"))
    assert storage.withdraw([old]) == []
    assert os.fsdecode(old.name) not in os.listdir(path.with_name("old") / "new")
    del old, tmp
    assert len(open_descriptors()) == before


def test_many_threads_and_a_maildir_that_is_replaced(storage: Storage, path: Path) -> None:
    """What was committed is in one of the maildirs, and nothing else is, whoever came when."""
    replaced = threading.Event()

    def store(number: int) -> set[bytes]:
        kept = set()
        for turn in range(30):
            copies = []
            try:
                copies.append(stored(storage, [b"%d.%d" % (number, turn)]))
                storage.commit(copies)
                kept.add(copies[0].name)
            except LocalError:
                assert storage.withdraw(copies) == []
            if number == 0 and turn == 10:
                made_anew(path)
                replaced.set()
        return kept

    kept: set[bytes] = set().union(*in_threads(6, store))  # type: ignore[arg-type]
    assert replaced.is_set()
    folders = [path / "new", path.with_name("old") / "new"]
    there = {os.fsencode(name) for folder in folders for name in os.listdir(folder)}
    assert there == kept
