"""The text of a program's message: bytes, files, file objects, made ready to be sent.

Its length comes first in a package, so it has to be known before the first byte
is sent. Regular files are opened and streamed, small ones read at once; a source
without a length (a pipe, a decompressor) is read to its end, beyond 1 MiB into a
temporary file. At most 1 MiB of a message's files is in memory.
"""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Callable, Sequence
from typing import IO, TYPE_CHECKING, cast

from maildirqmtp.client.package import Message, Part, SupportsRead
from maildirqmtp.errors import FileChangedError, LocalError, PackageError
from maildirqmtp.pipeline.outgoing import FilePiece
from maildirqmtp.qmtp.protocol import MAX_MESSAGE
from maildirqmtp.text import printable

if TYPE_CHECKING:
    from maildirqmtp.pipeline.outgoing import Piece

#: Bytes of a message's files that are read into memory.
MEMORY_BYTES = 1 << 20
#: Bytes up to which a message is gathered with others into one piece; a larger one is not.
GATHERED_BYTES = 1 << 20

_CHUNK_BYTES = 256 << 10


class Content:
    """A message's text, opened; `length` is its bytes.

    Raises `OSError` if a file cannot be opened or read, `PackageError` if the
    whole is too long for QMTP, a str has a line end in it or a file object stands at its
    end, `FileChangedError` if a file grows or shrinks while it is read,
    `TypeError` for any other part.
    """

    def __init__(self, message: Message) -> None:
        self.length = 0
        self._name: str | bytes = "the message"
        self._pieces: list[Piece] = []
        self._open: list[tuple[int, os.stat_result]] = []
        self._spool: IO[bytes] | None = None
        self._spooled = 0
        self._memory_left = MEMORY_BYTES
        try:
            for part in _parts(message):
                self._add(part)
        except BaseException:
            self.close()
            raise

    @property
    def label(self) -> str:
        """The name of the last file in it, else "the message"."""
        return printable(os.fsencode(self._name))

    @property
    def in_memory(self) -> bool:
        """True if none of it is still to be read from a file."""
        return not self._open and self._spool is None

    def append_to(self, into: bytearray) -> Sequence[Piece]:
        """See `OutgoingMessage`. May be called again, for another package of it."""
        pieces = self._pieces
        if self.in_memory and self.length <= GATHERED_BYTES:
            for piece in pieces:
                into += piece  # type: ignore[arg-type]
            return ()
        return [
            FilePiece(p.fd, p.offset, p.left) if isinstance(p, FilePiece) else p for p in pieces
        ]

    def unchanged(self) -> bool:
        """Return whether the files that are streamed are as they were when they were opened.

        Raises `LocalError` if one cannot be looked at, as after a server of NFS has lost it.
        """
        try:
            return all(_same(os.fstat(fd), before) for fd, before in self._open)
        except OSError as error:
            raise LocalError(f"cannot look at it: {error.strerror}") from error

    def close(self) -> None:
        """Close its files and drop its text; harmless twice."""
        self._pieces = []
        while self._open:
            os.close(self._open.pop()[0])
        if self._spool is not None:
            self._spool.close()
            self._spool = None

    def _add(self, part: Part) -> None:
        if isinstance(part, (bytes, bytearray, memoryview)):
            self._add_bytes(memoryview(part).cast("B") if len(part) else memoryview(b""))
        elif isinstance(part, (str, os.PathLike)):
            self._add_path(os.fspath(part))
        elif hasattr(part, "read"):
            self._add_file(cast(SupportsRead, part))
        else:
            raise TypeError(
                f"a part of a message is bytes, a path or a binary file, not {type(part).__name__}"
            )

    def _add_bytes(self, data: memoryview) -> None:
        self._count(len(data))
        if len(data):
            self._pieces.append(data)

    def _count(self, count: int) -> None:
        self.length += count
        if self.length > MAX_MESSAGE:
            raise PackageError(f"a message above {MAX_MESSAGE} bytes; servers take no more by QMTP")

    def _add_path(self, path: str | bytes) -> None:
        if isinstance(path, str) and "\n" in path:
            raise PackageError("a message as str is the path of a file; encode a text to bytes")
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY)
        try:
            if self._add_regular(fd, 0, path):
                return
            self._add_stream(lambda count: os.read(fd, count))
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)

    def _add_file(self, file: SupportsRead) -> None:
        if isinstance(file, io.TextIOBase):
            raise TypeError("a file object has to be binary: open it with mode 'rb'")
        seekable = _seekable(file)
        began = None if seekable is None else seekable.tell()
        before = self.length
        if not self._add_open(file):
            try:
                self._add_stream(file.read)
            finally:
                if seekable is not None and began is not None:
                    seekable.seek(began)
        if self.length == before and began:
            # After a failure, or for the next recipient, it would go out as an empty message.
            raise PackageError(
                "a file object stands at its end: it was read or written before; seek(0) first"
            )

    def _add_open(self, file: SupportsRead) -> bool:
        """Add a regular file by its descriptor; return False, and do nothing, if it has none."""
        fd = _descriptor(file)
        if fd is None:
            return False
        assert isinstance(file, (io.FileIO, io.BufferedReader, io.BufferedRandom))
        file.flush()
        name = file.name if isinstance(file.name, (str, bytes)) else self._name
        fd = os.dup(fd)
        kept = False
        try:
            kept = self._add_regular(fd, file.tell(), name)
        finally:
            if not kept:
                os.close(fd)
        return kept

    def _add_regular(self, fd: int, offset: int, name: str | bytes) -> bool:
        """Add a regular file from `offset` on; return False, and do nothing, for any other file.

        So for one that has not the bytes that it is said to have, as in /proc. A small file is read
        and closed at once, a larger one stays open: its `fd` is ours then.
        """
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            return False
        size = max(0, status.st_size - offset)
        self._name = name
        if size > self._memory_left:
            self._count(size)
            self._pieces.append(FilePiece(fd, offset, size))
            self._open.append((fd, status))
            return True
        data = os.pread(fd, size + 1, offset)
        if len(data) != size:
            if _same(os.fstat(fd), status):
                return False
            raise FileChangedError(f"{self.label} changed while it was being read")
        self._memory_left -= size
        self._add_bytes(memoryview(data))
        os.close(fd)
        return True

    def _add_stream(self, read: Callable[[int], bytes]) -> None:
        """Read a source without a length to its end: into memory, then into a temporary file."""
        while True:
            data = read(_CHUNK_BYTES)
            if not isinstance(data, bytes):
                raise TypeError(f"a file to be sent gave {type(data).__name__} instead of bytes")
            if not data:
                return
            if len(data) <= self._memory_left:
                self._memory_left -= len(data)
                self._add_bytes(memoryview(data))
            else:
                self._memory_left = 0
                self._count(len(data))
                self._add_spooled(data)

    def _add_spooled(self, data: bytes) -> None:
        if self._spool is None:
            import tempfile

            self._spool = tempfile.TemporaryFile()  # noqa: SIM115 (close does it)
        self._spool.write(data)
        self._spool.flush()
        fd, last = self._spool.fileno(), self._pieces[-1] if self._pieces else None
        if isinstance(last, FilePiece) and last.fd == fd:
            last.left += len(data)
        else:
            self._pieces.append(FilePiece(fd, self._spooled, len(data)))
        self._spooled += len(data)


def _parts(message: Message) -> Sequence[Part]:
    if isinstance(message, (bytes, bytearray, memoryview, str)) or hasattr(message, "read"):
        return (cast(Part, message),)
    return cast(Sequence[Part], message) if isinstance(message, Sequence) else (message,)


def _descriptor(file: object) -> int | None:
    """Return the descriptor of the regular file whose bytes this object reads as they are.

    None for any other object, even one with a descriptor: a decompressor has that of the
    compressed file.
    """
    raw = file.raw if isinstance(file, (io.BufferedReader, io.BufferedRandom)) else file
    if not isinstance(raw, io.FileIO):
        return None
    fd = raw.fileno()
    return fd if raw.readable() and stat.S_ISREG(os.fstat(fd).st_mode) else None


def _seekable(file: SupportsRead) -> IO[bytes] | None:
    """Return a file object that can be put back to where it was; None for any other."""
    seekable = getattr(file, "seekable", None)
    return cast(IO[bytes], file) if callable(seekable) and seekable() else None


def _same(now: os.stat_result, before: os.stat_result) -> bool:
    return now.st_size == before.st_size and now.st_mtime_ns == before.st_mtime_ns
