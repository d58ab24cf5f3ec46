"""Doubles for the unit tests: a clock, a transport, a server, a file system that fails."""

from __future__ import annotations

import errno
import os
import selectors
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from maildirqmtp.errors import TransportError
from maildirqmtp.forwarder.queued_message import QueuedMessage
from maildirqmtp.maildir.files import Folder, Message, identity_of
from maildirqmtp.maildir.maildir import TOP_BYTES
from maildirqmtp.qmtp.package_reader import MessageData, MessageStart, PackageEnd, PackageReader
from tests.helpers import Package


def framed(*texts: bytes) -> bytes:
    """Responses as a server writes them."""
    return b"".join(b"%d:%b," % (len(text), text) for text in texts)


def broken(what: str = "connection reset") -> TransportError:
    """What a transport raises when the connection is gone."""
    return TransportError(errno.ECONNRESET, what)


# Time


class FakeClock:
    """Seconds that pass only when told to; `at` plans something for a time."""

    def __init__(self, now: float = 1_000.0) -> None:
        self.now = now
        self._planned: list[tuple[float, Callable[[], None]]] = []

    def __call__(self) -> float:
        return self.now

    def at(self, when: float, action: Callable[[], None]) -> None:
        """Plan an action."""
        self._planned.append((when, action))
        self._planned.sort(key=lambda plan: plan[0])

    def advance(self, seconds: float) -> None:
        """Let time pass, at most up to and including the next planned action."""
        until = self.now + seconds
        if self._planned and self._planned[0][0] <= until:
            until, action = self._planned.pop(0)
            self.now = until
            action()
        self.now = until


class _Patient(selectors.BaseSelector):
    """A selector that never waits: where nothing is ready, the clock goes on instead."""

    clock: FakeClock
    turns = 0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """See `selectors`."""
        ready = super().select(0)
        if not ready:
            assert timeout is not None, "this would wait for ever"
            self.clock.advance(timeout)
        self.turns += 1
        assert self.turns < 20_000, "this goes round in circles"
        return ready


class PatientSelector(_Patient, selectors.DefaultSelector):
    """See `_Patient`."""


class PatientPoll(_Patient, selectors.PollSelector):
    """See `_Patient`."""


def never_wait(monkeypatch: pytest.MonkeyPatch, clock: FakeClock) -> None:
    """Make whoever uses `selectors` wait in the clock's time."""
    for name, kind in (("DefaultSelector", PatientSelector), ("PollSelector", PatientPoll)):
        monkeypatch.setattr(selectors, name, type(name, (kind,), {"clock": clock}))


# A connection


class FakeTransport:
    """A connection in memory.

    `takes` are the steps of sending, one for each call: bytes that are taken at
    most, 0 where it would block, or what is raised; when they are used up,
    everything is taken. `incoming` are the chunks that come, None for would
    block; an exception is raised.
    """

    def __init__(
        self,
        *incoming: bytes | TransportError | None,
        takes: Iterable[int | TransportError] = (),
        can_send_file: bool = True,
        name: str = "mail.example.org:209",
    ) -> None:
        self.name = name
        self.can_send_file = can_send_file
        self.send_needs_read = self.receive_needs_write = self.close_waits = False
        self.piecemeal = False
        self.read_fd = self.write_fd = -1
        self.incoming = deque(incoming)
        self.takes = deque(takes)
        self.sent = bytearray()
        self.sends = 0
        self.closed = self.useless = False

    def _room(self, wanted: int) -> int:
        self.sends += 1
        step = self.takes.popleft() if self.takes else wanted
        if isinstance(step, TransportError):
            raise step
        return min(step, wanted)

    def send(self, data: bytes | bytearray | memoryview) -> int:
        """See `transport.Transport`."""
        room = self._room(len(data))
        self._take(bytes(data[:room]))
        return room

    def send_file(self, fd: int, offset: int, count: int) -> int | None:
        """See `transport.Transport`."""
        assert self.can_send_file
        room = self._room(count)
        if not room:
            return None
        data = os.pread(fd, room, offset)
        self._take(data)
        return len(data)

    def receive(self, max_bytes: int) -> bytes | None:
        """See `transport.Transport`."""
        if not self.incoming:
            return None
        step = self.incoming.popleft()
        if isinstance(step, TransportError):
            raise step
        assert step is None or len(step) <= max_bytes
        return step

    def hang_up(self) -> None:
        """See `transport.Transport`."""

    def report_useless(self) -> None:
        """See `transport.Transport`."""
        self.useless = True

    def close(self) -> None:
        """See `transport.Transport`."""
        self.closed = True

    def _take(self, data: bytes) -> None:
        self.sent += data

    @property
    def packages(self) -> list[Package]:
        """The whole packages that were sent."""
        collector = Collector()
        return collector.feed(bytes(self.sent))


class Collector:
    """Puts packages together from the bytes of a connection."""

    def __init__(self) -> None:
        self._reader = PackageReader()
        self._text = b""
        self._encoding = b""

    def feed(self, data: bytes) -> list[Package]:
        """Return the packages that these bytes complete."""
        packages = []
        self._reader.feed(data)
        while (event := self._reader.next()) is not None:
            if isinstance(event, MessageStart):
                self._text, self._encoding = b"", event.encoding
            elif isinstance(event, MessageData):
                self._text += event.data
            else:
                assert isinstance(event, PackageEnd)
                packages.append(Package(self._text, self._encoding, event.sender, event.recipients))
        return packages


class FakeServer(FakeTransport):
    """A connection to a server that is a function: called with each package, when it is whole.

    It has descriptors for a selector: always writable, readable when something
    has come. `two_fds` gives reading and writing one each, as a pipe has them.
    """

    def __init__(
        self,
        on_package: Callable[[FakeServer, Package], None],
        *,
        two_fds: bool = False,
        takes: Iterable[int | TransportError] = (),
        can_send_file: bool = True,
    ) -> None:
        super().__init__(takes=takes, can_send_file=can_send_file)
        self.received: list[Package] = []
        self._on_package = on_package
        self._collector = Collector()
        self._event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.read_fd = self.write_fd = self._event
        if two_fds:
            self.write_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def say(self, chunk: bytes | TransportError) -> None:
        """Let something come; b"" is the end."""
        self.incoming.append(chunk)
        os.eventfd_write(self._event, 1)

    def respond(self, *texts: bytes) -> None:
        """Let responses come."""
        self.say(framed(*texts))

    def hang_up(self) -> None:
        """Close the connection from the server's side."""
        self.say(b"")

    def receive(self, max_bytes: int) -> bytes | None:
        """See `transport.Transport`."""
        chunk = super().receive(max_bytes)
        if not self.incoming and not self.closed:
            os.eventfd_write(self._event, 1)
            os.eventfd_read(self._event)
        return chunk

    def close(self) -> None:
        """See `transport.Transport`."""
        if not self.closed:
            for fd in {self.read_fd, self.write_fd}:
                os.close(fd)
        super().close()

    def _take(self, data: bytes) -> None:
        super()._take(data)
        for package in self._collector.feed(data):
            self.received.append(package)
            self._on_package(self, package)


FakeScript = Callable[[FakeServer, Package], None]


def accept(server: FakeServer, package: Package) -> None:
    """Answer K for each recipient."""
    server.respond(*[b"Kok"] * len(package.recipients))


class ServersInTurn:
    """Servers that are reached one after the other.

    `scripts` are the servers of the connections in turn; the last one serves
    all that follow. An exception is what connecting raises.
    """

    def __init__(self) -> None:
        self.scripts: list[FakeScript | Exception] = [accept]
        self.servers: list[FakeServer] = []
        self.reached = 0
        #: Called at each attempt to connect.
        self.before: Callable[[], None] = lambda: None

    def next_script(self) -> FakeScript:
        """Return what serves the next connection, or raise what stands in its place."""
        self.reached += 1
        assert self.reached < 200, "it never stops"
        script = self.scripts.pop(0) if len(self.scripts) > 1 else self.scripts[0]
        self.before()
        if isinstance(script, Exception):
            raise script
        return script


# Messages


def queued(
    name: bytes = b"1.a", *recipients: bytes, text: bytes = b"hello\n", sender: bytes = b"s@x"
) -> QueuedMessage:
    """A small message in memory, on its way to some recipients."""
    folder = Folder(-1, b"/Maildir/new")
    message = Message(folder, name, (1, 2, len(text), 3), text, len(text))
    return QueuedMessage(message, sender, recipients or (b"r@y",), b"", 0)


def large_queued(
    path: Path, *recipients: bytes, kept: bytes = b"", offset: int = 0, size: int = 2 << 20
) -> QueuedMessage:
    """A message in a file, to be streamed; the file is made."""
    path.write_bytes(b"".join(b"%09d\n" % n for n in range(size // 10 + 1))[:size])
    fd = os.open(path, os.O_RDONLY)
    folder = Folder(-1, os.fsencode(path.parent))
    top = os.pread(fd, TOP_BYTES, 0)
    message = Message(folder, os.fsencode(path.name), identity_of(os.fstat(fd)), top, size, fd)
    return QueuedMessage(message, b"s@x", recipients or (b"r@y",), kept, offset)


class LateThread:
    """A thread that does its work only when it is waited for: as late as it can be."""

    def __init__(self, work: Callable[[], None]) -> None:
        self.join = work


# Files


class FileSystem:
    """Writes down what is done to the files under a path, and fails where it is told to.

    A call is a line, with paths below the root; names in tmp/ are `*`:

        fsync new | unlink new/1.a | link new/1.a -> .Failed/tmp/* |
        rename tmp/* -> envelope/1.a.json
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
        self.calls: list[str] = []
        self._root = os.fsencode(root)
        self._faults: dict[str, list[int]] = {}
        self._always: dict[str, int] = {}
        unlink, link, rename, fsync, mkdir = os.unlink, os.link, os.rename, os.fsync, os.mkdir

        def new_unlink(path: bytes, *, dir_fd: int | None = None) -> None:
            self._call(f"unlink {self._path(path, dir_fd)}")
            unlink(path, dir_fd=dir_fd)

        def new_mkdir(path: bytes, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
            self._call(f"mkdir {self._path(path, dir_fd)}")
            mkdir(path, mode, dir_fd=dir_fd)

        def new_link(
            source: bytes,
            target: bytes,
            *,
            src_dir_fd: int | None = None,
            dst_dir_fd: int | None = None,
            follow_symlinks: bool = True,
        ) -> None:
            paths = (self._path(source, src_dir_fd), self._path(target, dst_dir_fd))
            self._call(f"link {paths[0]} -> {paths[1]}")
            link(
                source,
                target,
                src_dir_fd=src_dir_fd,
                dst_dir_fd=dst_dir_fd,
                follow_symlinks=follow_symlinks,
            )

        def new_rename(
            source: bytes,
            target: bytes,
            *,
            src_dir_fd: int | None = None,
            dst_dir_fd: int | None = None,
        ) -> None:
            paths = (self._path(source, src_dir_fd), self._path(target, dst_dir_fd))
            self._call(f"rename {paths[0]} -> {paths[1]}")
            rename(source, target, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)

        def new_fsync(fd: int) -> None:
            self._call(f"fsync {self._path(b'', fd)}")
            fsync(fd)

        for name, function in (
            ("unlink", new_unlink),
            ("mkdir", new_mkdir),
            ("link", new_link),
            ("rename", new_rename),
            ("fsync", new_fsync),
        ):
            monkeypatch.setattr(os, name, function)

    def fail(self, call: str, *numbers: int) -> None:
        """Fail the next calls that begin so with these errnos, one after the other; 0 is none."""
        self._faults[call] = list(numbers)

    def always_fail(self, call: str, number: int) -> None:
        """Fail every call that begins so."""
        self._always[call] = number

    def fail_nth(self, call: str, nth: int, number: int) -> None:
        """Fail only the nth call from now on that begins so."""
        self.fail(call, *[0] * (nth - 1), number)

    def heal(self) -> bool:
        """Fail no more; say whether everything has failed that was to."""
        done = not any(self._faults.values())
        self._faults.clear()
        self._always.clear()
        return done

    def of(self, *names: str) -> list[str]:
        """Return the calls of these functions."""
        return [call for call in self.calls if call.split()[0] in names]

    def _call(self, line: str) -> None:
        self.calls.append(line)
        for call, numbers in self._faults.items():
            if line.startswith(call) and numbers:
                number = numbers.pop(0)
                if number:
                    raise OSError(number, os.strerror(number))
        for call, number in self._always.items():
            if line.startswith(call):
                raise OSError(number, os.strerror(number))

    def _path(self, name: bytes, dir_fd: int | None) -> str:
        directory = b"" if dir_fd is None else os.fsencode(os.readlink(f"/proc/self/fd/{dir_fd}"))
        path = os.path.join(directory, os.fsencode(name)) if name else directory
        short = os.path.relpath(path, self._root) if path.startswith(self._root) else path
        parent = os.path.dirname(short)
        if os.path.basename(parent) == b"tmp":
            short = os.path.join(parent, b"*")
        return os.fsdecode(short)
