"""A model of what a power cut may leave: nothing is durable but what was fsynced.

ext4 makes every change before an fsync durable with it, whatever file that was
for; POSIX promises no such thing, and other file systems do not do it. Here the
program works on a real file system while each system call on files is noted:

    a file's content   is durable as it was at its last fsync, before that torn
    an entry of a      is durable (or durably gone) once the directory was
    directory          fsynced after it; until then, nobody knows

After every call `check` may look at each `View` that a cut at this moment might
leave: no unsynced change of any directory survives; all of them do; and for
each directory, any state that it had since its last fsync, with none or with
all of the others' changes. What is in tmp/ matters to nobody, and is left out.
"""

from __future__ import annotations

import contextlib
import functools
import os
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.ledger import View

Entries = dict[str, int]


class Model:
    """Everything under a directory, as it is, and as it is for certain."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self._paths: dict[tuple[int, int], int] = {}
        self._next = 1
        self._names: dict[int, str] = {}
        self.now: dict[int, Entries] = {}
        #: States of each directory since its last fsync; the first is durable.
        self.since: dict[int, list[Entries]] = {}
        self._unimportant: set[int] = set()
        self.content: dict[int, bytes | None] = {}
        self._root = self._adopt(base)

    def _adopt(self, path: Path) -> int:
        """Take what is there at first as durable."""
        number = self._number(os.lstat(path), fresh=True)
        if path.is_dir():
            self.now[number] = {file.name: self._adopt(file) for file in path.iterdir()}
            self.since[number] = [dict(self.now[number])]
            if path.name == "tmp":
                self._unimportant.add(number)
        else:
            self.content[number] = path.read_bytes()
        return number

    def _number(self, status: os.stat_result, fresh: bool = False) -> int:
        key = (status.st_dev, status.st_ino)
        if fresh or key not in self._paths:
            self._paths[key] = self._next
            self._next += 1
        return self._paths[key]

    def forget(self, directory: str, name: str) -> None:
        """Take an entry as not yet durable: a run that was killed made it just now."""
        number = self._find(directory)
        self.since[number].insert(0, dict(self.now[number]))
        del self.since[number][0][name]

    def _find(self, directory: str) -> int:
        number = self._root
        for part in directory.split("/"):
            number = self.now[number][part]
        return number

    # What happens

    def directory(self, dir_fd: int | None, path: bytes | str) -> tuple[int, str] | None:
        """Return the directory's number and the name in it; None where it is not ours."""
        head, tail = os.path.split(os.fsdecode(path))
        status = os.fstat(dir_fd) if dir_fd is not None and not head else os.stat(head or ".")
        number = self._paths.get((status.st_dev, status.st_ino))
        return None if number is None or number not in self.now else (number, tail)

    def made(self, place: tuple[int, str], status: os.stat_result) -> None:
        """Note a new file or directory."""
        number = self._number(status, fresh=True)
        self.named(place, number)
        if stat.S_ISDIR(status.st_mode):
            self.now[number], self.since[number] = {}, [{}]
            if place[1] == "tmp":
                self._unimportant.add(number)
        else:
            self.content[number] = None

    def named(self, place: tuple[int, str], number: int) -> None:
        """Note a name for a file."""
        self.now[place[0]][place[1]] = number
        self._changed(place[0])

    def unnamed(self, place: tuple[int, str]) -> int:
        """Note that a name is gone."""
        number = self.now[place[0]].pop(place[1])
        self._changed(place[0])
        return number

    def _changed(self, directory: int) -> None:
        if directory not in self._unimportant:
            self.since[directory].append(dict(self.now[directory]))

    def written(self, status: os.stat_result) -> bool:
        """Note that a file's content is not what was synced; False where it is not ours."""
        number = self._paths.get((status.st_dev, status.st_ino))
        if number not in self.content:
            return False
        self.content[number] = None
        return True

    def syncing(self, fd: int) -> Callable[[], None]:
        """Note that an fsync begins; call what this returns when it has succeeded.

        What comes meanwhile, from another thread, is not known to be durable.
        """
        status = os.fstat(fd)
        number = self._paths.get((status.st_dev, status.st_ino))
        if number in self.now:
            entries, states = dict(self.now[number]), self.since[number]
            count = len(states)

            def end() -> None:
                if self.since[number] is states:  # else another one has ended meanwhile
                    self.since[number] = [entries, *states[count:]]

            return end
        if number in self.content:
            with open(f"/proc/self/fd/{fd}", "rb") as file:
                data = file.read()
            return lambda: self.content.update({number: data})
        return lambda: None

    # What a cut may leave

    def views(self) -> Iterator[View]:
        """Yield what a cut at this moment may leave."""
        durable = {number: states[0] for number, states in self.since.items()}
        latest = {number: states[-1] for number, states in self.since.items()}
        yield self._view(durable)
        pending = [number for number, states in self.since.items() if len(states) > 1]
        if pending:
            yield self._view(latest)
        for number in pending:
            for state in self.since[number]:
                yield self._view({**durable, number: state})
                yield self._view({**latest, number: state})

    def least(self) -> View:
        """Return what a cut leaves at least: only what was fsynced."""
        return self._view({number: states[0] for number, states in self.since.items()})

    def unsynced(self, directory: str) -> int:
        """Count the changes of a directory that are not durable."""
        number = self._find(directory)
        return len(self.now[number].items() ^ self.since[number][0].items())

    def _view(self, entries_of: dict[int, Entries]) -> View:
        seen: View = {}
        waiting = [("", self._root)]
        while waiting:
            path, number = waiting.pop()
            files: dict[str, bytes | None] = {}
            for name, entry in entries_of[number].items():
                if entry in self.now:
                    waiting.append((f"{path}{name}/", entry))
                else:
                    files[name] = self.content[entry]
            seen[path[:-1]] = files
        return seen


def record(
    monkeypatch: pytest.MonkeyPatch,
    model: Model,
    check: Callable[[], None],
    cannot_link: bool = False,
    pause: Callable[[], None] = lambda: None,
) -> contextlib.AbstractContextManager[object]:
    """Note every call of this process on files, and check after each.

    With `cannot_link`, links out of the maildir `m` fail as across file systems. Threads make
    their calls one after the other, but for the fsyncs, whose duration `pause` prolongs.
    """
    lock = threading.RLock()
    real: dict[str, Any] = {
        name: getattr(os, name)
        for name in ("open", "write", "fsync", "link", "unlink", "rename", "mkdir")
    }

    def open_(path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        place = model.directory(dir_fd, path) if flags & os.O_CREAT else None
        existed = place is not None and place[1] in model.now[place[0]]
        fd: int = real["open"](path, flags, mode, dir_fd=dir_fd)
        if place is not None and not existed:
            model.made(place, os.fstat(fd))
            check()
        return fd

    def write(fd: int, data: Any) -> int:
        written: int = real["write"](fd, data)
        if model.written(os.fstat(fd)):
            check()
        return written

    def fsync(fd: int) -> None:
        with lock:
            end = model.syncing(fd)
        pause()
        real["fsync"](fd)
        with lock:
            end()
            check()

    def link(
        src: Any,
        dst: Any,
        *,
        src_dir_fd: int | None = None,
        dst_dir_fd: int | None = None,
        follow_symlinks: bool = True,
    ) -> None:
        source, target = model.directory(src_dir_fd, src), model.directory(dst_dir_fd, dst)
        assert source is not None
        assert target is not None
        if cannot_link and source[0] == model._find("m/new"):
            raise OSError(18, "Invalid cross-device link")
        real["link"](
            src, dst, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd, follow_symlinks=follow_symlinks
        )
        model.named(target, model.now[source[0]][source[1]])
        check()

    def unlink(path: Any, *, dir_fd: int | None = None) -> None:
        place = model.directory(dir_fd, path)
        real["unlink"](path, dir_fd=dir_fd)
        if place is not None:
            model.unnamed(place)
            check()

    def rename(
        src: Any, dst: Any, *, src_dir_fd: int | None = None, dst_dir_fd: int | None = None
    ) -> None:
        source, target = model.directory(src_dir_fd, src), model.directory(dst_dir_fd, dst)
        assert source is not None
        assert target is not None
        real["rename"](src, dst, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)
        model.named(target, model.unnamed(source))
        check()

    def mkdir(path: Any, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        place = model.directory(dir_fd, path)
        real["mkdir"](path, mode, dir_fd=dir_fd)
        if place is not None:
            model.made(place, os.stat(path, dir_fd=dir_fd))
            check()

    def locked(call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)
        def one_at_a_time(*arguments: Any, **options: Any) -> Any:
            with lock:
                return call(*arguments, **options)

        return one_at_a_time

    for name, double in (
        ("open", open_),
        ("write", write),
        ("fsync", fsync),
        ("link", link),
        ("unlink", unlink),
        ("rename", rename),
        ("mkdir", mkdir),
    ):
        monkeypatch.setattr(os, name, double if name == "fsync" else locked(double))
    return lock
