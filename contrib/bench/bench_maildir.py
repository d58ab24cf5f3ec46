"""Maildirs full of messages to measure with."""

import os
import time
from dataclasses import dataclass
from pathlib import Path

from bench_harness import BenchError, SkippedError

MESSAGE_BYTES = 2048
CHUNK_BYTES = 1 << 20
# tmpfs and most disks give a file whole pages; the inode and the name come on top.
ROOM_BYTES_PER_MESSAGE = 4096 + 1024
LINE = b"The quick brown fox jumps over the lazy dog, and the dog does not mind at all.\n"


@dataclass(frozen=True, slots=True)
class Stock:
    """A maildir, how many messages were put in, and how many bytes of them must be sent."""

    path: Path
    count: int
    file_bytes: int
    text_bytes: int

    def left(self) -> int:
        """How many messages are in new/ now."""
        return len(os.listdir(self.path / "new"))

    def check(self, expected: int) -> None:
        """Raise unless new/ holds as many messages as it should."""
        if (left := self.left()) != expected:
            raise BenchError(f"{self.path}/new holds {left} messages, expected {expected}")


def trace_lines(number: int) -> bytes:
    """The envelope on top of a message; as long for every number."""
    return b"Return-Path: <sender@example.org>\nDelivered-To: user%06d@example.net\n" % number


def text(size: int, number: int) -> bytes:
    """The start of a message of at least the size, without its envelope, cut to the size."""
    head = (
        b"Received: (qmail %06d invoked from network); 31 Jan 2026 12:00:00 -0000\n"
        b"Message-ID: <%06d.bench@example.org>\n"
        b"From: Sender <sender@example.org>\nTo: User <user@example.net>\n"
        b"Subject: benchmark message %06d\n\n" % (number, number, number)
    )
    return (head + LINE * (size // len(LINE) + 1))[: size - 1] + b"\n"


def empty_maildir(path: Path) -> Path:
    """Make a maildir."""
    for name in ("cur", "new", "tmp"):
        (path / name).mkdir(parents=True, mode=0o700)
    return path


def need_room(place: Path, size: int) -> None:
    """Skip the benchmark if the file system has less free than it needs."""
    status = os.statvfs(place)
    if status.f_bavail * status.f_frsize < size:
        raise SkippedError(f"{place} has less than {size // 1_000_000} MB free")


def stock(path: Path, count: int) -> Stock:
    """Make a maildir of so many messages of 2 KB, named and delivered as a delivery agent does.

    All are written before the first is renamed: between the two an agent's fsync takes its time,
    and a file that got its name when it was last written to could still have its writer.
    """
    need_room(path.parent, count * ROOM_BYTES_PER_MESSAGE)
    root = os.open(empty_maildir(path), os.O_RDONLY | os.O_DIRECTORY)
    first_s = int(time.time()) - count // 1000 - 1
    top = len(trace_lines(0))
    try:
        for number in range(count):
            name = f"{first_s + number // 1000}.M{number:06d}P4711Q{number}.bench.example.org"
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
            fd = os.open(f"tmp/{name}", flags, 0o600, dir_fd=root)
            os.write(fd, trace_lines(number) + text(MESSAGE_BYTES - top, number))
            os.close(fd)
        for name in os.listdir(path / "tmp"):
            os.rename(f"tmp/{name}", f"new/{name}", src_dir_fd=root, dst_dir_fd=root)
    finally:
        os.close(root)
    return Stock(path, count, count * MESSAGE_BYTES, count * (MESSAGE_BYTES - top))


def large_stock(path: Path, size: int) -> Stock:
    """Make a maildir of one message of so many bytes, without holding it in memory."""
    need_room(path.parent, size + CHUNK_BYTES)
    empty_maildir(path)
    top = trace_lines(0)
    chunk = text(CHUNK_BYTES, 0)
    name = f"{int(time.time())}.M0P4711Q1.bench.example.org"
    with (path / "tmp" / name).open("wb") as file:
        file.write(top)
        left = size - len(top)
        while left > 0:
            left -= file.write(chunk[:left])
    (path / "tmp" / name).rename(path / "new" / name)
    return Stock(path, 1, size, size - len(top))
