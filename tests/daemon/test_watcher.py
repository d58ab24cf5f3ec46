"""Events of directories, with the real watchdog: hints that come, and what is done without."""

import ctypes
import errno
import io
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from maildirqmtp.daemon import watcher as watch_module
from maildirqmtp.daemon.watcher import APPEARS, Watch, Watcher, file_system
from maildirqmtp.maildir.safety import prove_changeable
from tests.helpers import open_descriptors, wait_until

IN_MOVED_FROM, IN_MOVED_TO, IN_CREATE, IN_DELETE = 0x40, 0x80, 0x100, 0x200
IN_DELETE_SELF = 0x400
READS = 0x1 | 0x8 | 0x10 | 0x20  # IN_ACCESS, IN_CLOSE_WRITE, IN_CLOSE_NOWRITE, IN_OPEN


class Watched:
    """A directory, a watch on it, how often that said "look again", and what it had to say."""

    def __init__(self, path: Path, watcher: Watcher | None = None) -> None:
        self.path = path
        path.mkdir()
        self.hints = 0
        self.named: list[bytes | None] = []
        self.said: list[str] = []
        self.watcher = Watcher() if watcher is None else watcher
        self.watch = Watch(os.fsencode(path), self.hint, self.said.append, self.watcher)

    def hint(self, name: bytes | None) -> None:
        """Count."""
        self.hints += 1
        self.named.append(name)

    def hinted_by(self, action: Callable[[], object]) -> None:
        """Wait for a hint that an action makes."""
        before = self.hints
        action()
        wait_until(lambda: self.hints > before, "a hint")

    @property
    def reader(self) -> Any:
        """watchdog's thread."""
        return self.watcher._reader


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Watched]:
    """A directory that is watched; no thread and no descriptor may be left of it."""
    threads = set(threading.enumerate())
    descriptors = open_descriptors()
    made = Watched(tmp_path / "new")
    made.watch.check()
    assert made.watch.watching
    yield made
    made.watch.close()
    assert not made.watch.watching
    assert set(threading.enumerate()) <= threads, "a thread of watchdog's is left"
    assert open_descriptors() == descriptors


# What is a hint, and what is none


def test_a_file_that_is_moved_in_is_a_hint(watched: Watched, tmp_path: Path) -> None:
    """As delivery agents do: from tmp/, by rename."""
    (tmp_path / "1.x").write_bytes(b"")
    watched.hinted_by(lambda: (tmp_path / "1.x").rename(watched.path / "1.x"))
    assert watched.named == [b"1.x"], "it is tried by its name"


def test_a_file_that_is_linked_in_is_a_hint(watched: Watched, tmp_path: Path) -> None:
    """As qmail-local does."""
    (tmp_path / "1.x").write_bytes(b"")
    watched.hinted_by(lambda: (watched.path / "1.x").hardlink_to(tmp_path / "1.x"))
    assert watched.watch.watching


def test_a_file_that_is_made_there_is_a_hint(watched: Watched) -> None:
    """As those do who know no tmp/."""
    watched.hinted_by(lambda: (watched.path / "1.x").write_bytes(b""))
    assert watched.watch.watching


def test_our_own_probe_is_no_hint(watched: Watched) -> None:
    """A route that cannot change its --sent tries again with each hint: it would never rest."""
    fd = os.open(watched.path, os.O_RDONLY)
    prove_changeable(fd, b"new")
    os.close(fd)
    # In order: when the hint of the message is there, that of the probe would be, too.
    watched.hinted_by(lambda: (watched.path / "1.x").write_bytes(b""))
    assert watched.named == [b"1.x"]


def test_the_kernel_is_asked_for_what_appears_and_nothing_else(watched: Watched) -> None:
    """Our own reads and removals would wake us, and a move-out holds back all that follows."""
    assert APPEARS == IN_CREATE | IN_MOVED_TO | IN_DELETE_SELF
    assert not APPEARS & (IN_MOVED_FROM | IN_DELETE | READS)
    info = next(
        line
        for fd in os.listdir("/proc/self/fdinfo")
        for line in _lines(f"/proc/self/fdinfo/{fd}")
        if line.startswith("inotify wd:")
    )
    asked = int(info.split("mask:")[1].split()[0], 16)
    assert asked & 0xFFF == APPEARS, "the kernel was asked for something else"


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []  # the descriptor of the listing itself


def test_what_leaves_is_no_hint(watched: Watched, tmp_path: Path) -> None:
    """Each message that we remove, or move to --sent, would make a scan of the whole directory."""
    for number in range(20):
        (watched.path / f"{number}").write_bytes(b"")
    wait_until(lambda: watched.hints == 20, "the hints of what came")
    for number in range(10):
        (watched.path / f"{number}").unlink()
        (watched.path / f"{number + 10}").rename(tmp_path / f"{number}")
    (watched.path / "0").write_bytes(b"x")
    # In order: when this one's is there, those of the ones that left would be, too.
    wait_until(lambda: watched.hints >= 21, "the hint of what came last")
    assert watched.hints == 21


def test_reading_and_writing_are_no_hints(watched: Watched) -> None:
    """We read each message: that must not wake us."""
    (watched.path / "1.x").write_bytes(b"text")
    wait_until(lambda: watched.hints == 1, "the hint")
    (watched.path / "1.x").read_bytes()
    (watched.path / "1.x").chmod(0o600)
    watched.hinted_by(lambda: (watched.path / "2.x").write_bytes(b""))
    assert watched.hints == 2


def test_directories_within_it_are_none_of_its_business(watched: Watched) -> None:
    """A million files in a directory below new/ cost nothing."""
    (watched.path / "below").mkdir()
    (watched.path / "below" / "1.x").write_bytes(b"")
    watched.hinted_by(lambda: (watched.path / "2.x").write_bytes(b""))
    assert watched.hints == 1


# What breaks


def test_a_directory_that_is_removed_and_made_again(watched: Watched) -> None:
    """Its end is a hint; and whoever then looks has events again."""
    watched.hinted_by(watched.path.rmdir)
    assert watched.named[-1] is None, "whatever it is, a scan finds it"
    watched.path.mkdir()
    wait_until(lambda: not watched.watch.watching, "the end of the watch")
    watched.watch.check()
    watched.hinted_by(lambda: (watched.path / "1.x").write_bytes(b""))
    assert watched.watch.watching
    assert watched.said == []


def test_a_directory_that_is_gone_is_said_and_waited_for(watched: Watched) -> None:
    """Once; and that it works again."""
    watched.path.rmdir()
    wait_until(lambda: not watched.watch.watching, "the end of the watch")
    for _ in range(3):
        watched.watch.check()
        assert not watched.watch.watching
    watched.path.mkdir()
    watched.watch.check()
    assert len(watched.said) == 2
    assert "cannot be watched: No such file or directory" in watched.said[0]
    assert watched.said[1] == "watching for events again"
    watched.hinted_by(lambda: (watched.path / "1.x").write_bytes(b""))
    assert watched.watch.watching


def test_a_directory_that_is_moved_away_is_watched_anew(watched: Watched, tmp_path: Path) -> None:
    """The worker closes the watch and makes one of the same path: that is the new directory."""
    watched.path.rename(tmp_path / "old")
    watched.path.mkdir()
    watched.watch.close()
    watched.watch.check()
    watched.hinted_by(lambda: (watched.path / "1.x").write_bytes(b""))
    (tmp_path / "old" / "2.x").write_bytes(b"")
    watched.hinted_by(lambda: (watched.path / "3.x").write_bytes(b""))
    assert b"2.x" not in watched.named


def test_while_it_works_checking_changes_nothing(watched: Watched) -> None:
    """Each rescan checks: events that come meanwhile must not be lost by a new beginning."""
    old, descriptor = watched.reader, watched.watch.descriptor
    for _ in range(3):
        watched.watch.check()
    assert watched.reader is old
    assert watched.watch.descriptor == descriptor
    assert watched.said == []


def test_a_thread_of_watchdogs_that_has_ended_is_noticed(watched: Watched) -> None:
    """Nothing comes any more, and nothing says so: deaf for ever."""
    old = watched.reader
    old.stop()
    old.join(30)
    assert not watched.watch.watching
    watched.watch.check()
    assert watched.reader is not old
    watched.hinted_by(lambda: (watched.path / "1.x").write_bytes(b""))
    assert watched.watch.watching


def test_a_watch_that_the_kernel_has_dropped_is_noticed(watched: Watched) -> None:
    """As it does when the file system is unmounted (inotify(7), IN_IGNORED)."""
    from watchdog.observers.inotify_c import inotify_rm_watch

    descriptor = watched.watch.descriptor
    assert descriptor is not None
    watched.hinted_by(lambda: inotify_rm_watch(watched.reader._inotify_fd, descriptor))
    assert not watched.watch.watching
    watched.watch.check()
    watched.hinted_by(lambda: (watched.path / "1.x").write_bytes(b""))
    assert watched.watch.watching


# Several directories


def inotify_instances() -> int:
    """Count those of this process."""
    links = (f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd"))
    return sum(os.readlink(link) == "anon_inode:inotify" for link in links if os.path.exists(link))


def test_all_share_one_instance(watched: Watched, tmp_path: Path) -> None:
    """A user has 128 of them: a hundred routes would leave other programs none."""
    threads = threading.active_count()
    others = [Watched(tmp_path / f"{number}", watched.watcher) for number in range(20)]
    for other in others:
        other.watch.check()
        other.hinted_by((other.path / "1.x").touch)
        assert other.named == [b"1.x"]
    assert watched.named == []
    assert inotify_instances() == 1
    assert threading.active_count() == threads, "a thread for each"
    for other in others:
        other.watch.close()
    watched.hinted_by((watched.path / "1.x").touch)


def test_two_routes_on_one_maildir(watched: Watched, tmp_path: Path) -> None:
    """Both hear; and when one of them ends, the other still does."""
    other = Watched(tmp_path / "unused", watched.watcher)
    second = Watch(os.fsencode(watched.path), other.hint, print, watched.watcher)
    second.check()
    watched.hinted_by((watched.path / "1.x").touch)
    wait_until(lambda: other.named == [b"1.x"], "the other's hint")
    second.close()
    watched.hinted_by((watched.path / "2.x").touch)
    assert other.named == [b"1.x"]


def test_one_that_goes_away_takes_no_other_along(watched: Watched, tmp_path: Path) -> None:
    """A disk is unmounted, and the mail on another one waits for the rescan."""
    other = Watched(tmp_path / "other", watched.watcher)
    other.watch.check()
    other.hinted_by(other.path.rmdir)
    wait_until(lambda: not other.watch.watching, "the end of the watch")
    other.watch.check()
    assert watched.watch.watching
    watched.hinted_by((watched.path / "1.x").touch)
    assert watched.named == [b"1.x"]
    other.watch.close()


def test_a_new_instance_is_one_for_all(watched: Watched, tmp_path: Path) -> None:
    """The one that notices mends it for all, and what came meanwhile is looked for."""
    other, gone = (Watched(tmp_path / name, watched.watcher) for name in ("other", "gone"))
    other.watch.check()
    gone.watch.check()
    gone.path.rmdir()
    watched.reader.stop()
    watched.reader.join(30)
    hints = other.hints
    (other.path / "1.x").touch()
    watched.watch.check()
    assert other.hints > hints
    assert other.named[-1] is None
    assert other.watch.watching
    assert not gone.watch.watching
    other.hinted_by((other.path / "2.x").touch)
    assert other.named[-1] == b"2.x"
    other.watch.close()
    gone.watch.close()


def test_an_overflow_of_the_kernels_queue_is_a_hint(watched: Watched, tmp_path: Path) -> None:
    """Events were lost, and nobody knows whose."""
    from watchdog.observers.inotify_c import InotifyEvent, Mask, WatchDescriptor

    other = Watched(tmp_path / "other", watched.watcher)
    other.watch.check()
    overflow = InotifyEvent(WatchDescriptor(-1), Mask(0x4000), 0, b"")
    watched.hinted_by(lambda: watched.reader.handle_event(overflow))
    assert other.named == watched.named == [None]
    assert watched.watch.watching
    other.watch.close()
    watched.hinted_by(lambda: watched.reader.handle_event(overflow))
    assert other.hints == 1, "of no use to those who have closed"


def test_watchdogs_warnings_are_not_shown(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line about inotify among those about mail helps nobody."""
    shown = io.StringIO()
    root = logging.StreamHandler(shown)
    monkeypatch.setattr(logging, "lastResort", root)
    logging.getLogger().addHandler(root)
    try:
        logging.getLogger("watchdog.observers").warning("queue overflow")
    finally:
        logging.getLogger().removeHandler(root)
    assert shown.getvalue() == ""


def test_what_closes_it_in_the_midst_of_events(tmp_path: Path) -> None:
    """TERM under load: no thread is left, and none shows a traceback."""
    threads = set(threading.enumerate())
    for number in range(5):
        watched = Watched(tmp_path / f"new{number}")
        watched.watch.check()
        for name in range(200):
            (watched.path / f"{name}").write_bytes(b"")
        watched.watch.close()
        assert set(threading.enumerate()) <= threads, "a thread of watchdog's is left"
        watched.watch.close()


# What cannot be had


@pytest.mark.parametrize(
    ("number", "hint"),
    [(errno.EMFILE, "max_user_instances"), (errno.ENOSPC, "max_user_watches")],
)
def test_no_instance_and_no_watch_left(
    watched: Watched, monkeypatch: pytest.MonkeyPatch, number: int, hint: str
) -> None:
    """Other programs have them: said once, with what to change; and again when it works."""
    from watchdog.observers import inotify_c

    watched.watch.close()
    threads = set(threading.enumerate())
    function = "inotify_init" if number == errno.EMFILE else "inotify_add_watch"

    def refuse(*_: object) -> int:
        ctypes.set_errno(number)
        return -1

    descriptors = open_descriptors()
    with monkeypatch.context() as patch:
        patch.setattr(inotify_c, function, refuse)
        for _ in range(5):
            watched.watch.check()
            assert not watched.watch.watching
        assert len(watched.said) == 1
        assert hint in watched.said[0]
        assert "looking from time to time" in watched.said[0]
        wait_until(lambda: set(threading.enumerate()) <= threads, "the end of watchdog's threads")
        assert open_descriptors() == descriptors
    watched.watch.check()
    assert watched.said[1:] == ["watching for events again"]
    watched.hinted_by(lambda: (watched.path / "1.x").write_bytes(b""))
    assert watched.watch.watching
    with monkeypatch.context() as patch:
        patch.setattr(inotify_c, function, refuse)
        watched.watch.close()
        watched.watch.check()
        assert len(watched.said) == 3, "trouble that comes again is said again"


def test_a_directory_that_may_not_be_watched(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """watchdog takes EACCES for a success; nothing would ever come, and nothing be said."""
    from watchdog.observers import inotify_c

    def refuse(*_: object) -> int:
        ctypes.set_errno(errno.EACCES)
        return -1

    watched.watch.close()
    with monkeypatch.context() as patch:
        patch.setattr(inotify_c, "inotify_add_watch", refuse)
        watched.watch.check()
        assert not watched.watch.watching
        assert "Permission denied" in watched.said[0]
    watched.watch.check()
    assert watched.watch.watching


def test_no_thread_is_left(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit on tasks is no reason to stop forwarding."""
    from watchdog.observers.inotify_c import InotifyFD

    tries = []

    def refuse(self: object) -> None:
        tries.append(1)
        raise RuntimeError("can't start new thread")

    watched.watch.close()
    made: list[Any] = []
    with monkeypatch.context() as patch:
        patch.setattr(InotifyFD, "start", refuse)
        real = InotifyFD.__init__

        def note(self: Any) -> None:
            real(self)
            made.append(self)

        patch.setattr(InotifyFD, "__init__", note)
        for _ in range(4):
            watched.watch.check()
    assert not watched.watch.watching
    assert len(watched.said) == 1
    assert "can't start new thread" in watched.said[0]
    assert len(tries) == 1, "each try leaves descriptors of watchdog's open"
    made[0]._close_resources()


def test_without_watchdog_it_is_said_once(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another version of it, or another system: rescans bring all mail."""
    watched.watch.close()
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "watchdog.observers.inotify_c", None)
        for _ in range(3):
            watched.watch.check()
    assert not watched.watch.watching
    assert len(watched.said) == 1
    assert "cannot be watched" in watched.said[0]


def mountinfo(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *lines: str) -> None:
    """Have the kernel say this of the mounted file systems."""
    fake = tmp_path / "mountinfo"
    fake.write_text("".join(f"{line}\n" for line in lines))

    def fake_open(path: Any, *arguments: Any, **more: Any) -> Any:
        assert path == "/proc/self/mountinfo"
        return open(fake, *arguments, **more)

    monkeypatch.setattr(watch_module, "open", fake_open, raising=False)


def mount(path: Path, kind: str) -> str:
    """Return the line of a mount (proc(5))."""
    device = os.stat(path).st_dev
    where = f"{os.major(device)}:{os.minor(device)}"
    return f"36 35 {where} / /mnt rw,noatime master:1 - {kind} server:/export rw"


@pytest.mark.parametrize("kind", ["nfs", "nfs4", "cifs", "smb3", "fuse", "fuse.sshfs", "9p"])
def test_on_remote_file_systems_it_does_not_even_try(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str
) -> None:
    """inotify says nothing of what other machines do: rescans, and that is said once."""
    watched = Watched(tmp_path / "new")
    mountinfo(monkeypatch, tmp_path, "1 0 0:1 / / rw - proc proc rw", mount(watched.path, kind))
    for _ in range(3):
        watched.watch.check()
    assert not watched.watch.watching
    assert len(watched.said) == 1
    assert f"is on {kind}," in watched.said[0]
    watched.watch.close()


@pytest.mark.parametrize("lines", [[], ["36 35 999:999 / / rw - nfs a rw"]])
def test_a_file_system_nobody_knows_is_watched(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, lines: list[str]
) -> None:
    """btrfs and containers have devices that the kernel's table does not."""
    mountinfo(monkeypatch, tmp_path, *lines)
    assert file_system(os.fsencode(tmp_path)) == ""


def test_the_file_system_of_what_is_not_there() -> None:
    """Whoever scans it will say so."""
    assert file_system(b"/no/such/directory") == ""


def test_a_local_file_system_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Optional fields or none: the type stands after the dash."""
    mountinfo(monkeypatch, tmp_path, mount(tmp_path, "ext4").replace(" master:1", ""))
    assert file_system(os.fsencode(tmp_path)) == "ext4"


def test_a_mount_point_may_have_any_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Anyone who may mount a stick names its folder; a CR there ended the daemon of all routes."""
    odd = "36 35 999:999 / /mnt/a\rb\tc rw - nfs a rw"
    mountinfo(monkeypatch, tmp_path, odd, mount(tmp_path, "ext4"))
    assert file_system(os.fsencode(tmp_path)) == "ext4"


def test_a_name_that_is_no_utf8_is_watched(tmp_path: Path) -> None:
    """Paths are bytes."""
    directory = os.fsencode(tmp_path) + b"/\xff\xfe"
    os.mkdir(directory)
    hints: list[bytes | None] = []
    watch = Watch(directory, hints.append, print, Watcher())
    watch.check()
    try:
        with open(directory + b"/\xe9", "wb"):
            wait_until(lambda: bool(hints), "a hint")
        assert hints == [b"\xe9"]
    finally:
        watch.close()
