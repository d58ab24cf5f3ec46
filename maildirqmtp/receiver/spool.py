"""The text of one message while it arrives: in memory, or in a file once it is large.

The file has a name in tmp/ only between open() and unlink(), so that nothing
is left of it after a crash.
"""

import contextlib
import errno
import os
from collections.abc import Iterator
from typing import Protocol

from maildirqmtp.errors import LocalError
from maildirqmtp.maildir import writing
from maildirqmtp.maildir.files import Folder, local_error, write_all

#: Bytes of text that are kept in memory; a larger text goes to a file.
MEMORY_MAX = 256 << 10

_CREATE = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_COPY_BYTES = 1 << 20


class SpoolPlace(Protocol):
    """Provides the directory for the files of spools."""

    @property
    def tmp(self) -> Folder:
        """The directory; looked up for each file, since it may have been replaced."""


class Spool:
    """A text that is appended to, and then read once for each recipient.

    With `crlf` every CR LF becomes LF as it is stored; a CR without LF stays
    (qmtp.txt, section 4). An error of the file is kept in `trouble`, not
    raised: the rest of the message has to be read in any case, and is discarded.
    `size` is the bytes stored so far.
    """

    __slots__ = ("_crlf", "_fd", "_held", "_memory", "_path", "_place", "size", "trouble")

    def __init__(self, place: SpoolPlace, crlf: bool) -> None:
        self._place = place
        self._crlf = crlf
        self._held = b""
        self._memory = bytearray()
        self._fd = -1
        self._path = b""
        self.size = 0
        self.trouble: LocalError | None = None

    def append(self, data: bytes) -> None:
        """Append a piece of the text, as the client sent it."""
        if self._crlf:
            data = self._held + data
            # The CR that ends this piece may belong to a LF that begins the next one.
            self._held = b"\r" if data.endswith(b"\r") else b""
            data = data.removesuffix(b"\r").replace(b"\r\n", b"\n")
        self._store(data)

    def finish(self) -> None:
        """Mark the text as complete, and store a CR that was held back."""
        self._store(self._held)
        self._held = b""

    def _store(self, data: bytes) -> None:
        if self.trouble is not None:
            return
        self.size += len(data)
        if self.size <= MEMORY_MAX:
            self._memory += data
            return
        try:
            if self._fd < 0:
                tmp, name = self._place.tmp, writing.unique_name()
                self._path = tmp.join(name)
                self._fd = os.open(name, _CREATE, 0o600, dir_fd=tmp.fd)
                os.unlink(name, dir_fd=tmp.fd)
                write_all(self._fd, self._memory)
                self._memory = bytearray()
            write_all(self._fd, data)
        except OSError as error:
            self.trouble = local_error("write", self._path, error)
            self.discard()

    def top(self, count: int) -> bytes:
        """Return the first `count` bytes. Raises `LocalError` if the file cannot be read."""
        if self._fd < 0:
            return bytes(self._memory[:count])
        try:
            return os.pread(self._fd, count, 0)
        except OSError as error:
            raise local_error("read the text that was stored in", self._path, error) from error

    def pieces(self, header: bytes) -> Iterator[bytes]:
        """Yield `header` and then the text, in pieces; may be called for each recipient.

        Raises `OSError` if the file cannot be read, or is shorter than what was written.
        """
        if self._fd < 0:
            yield header + self._memory
            return
        yield header
        offset = 0
        while offset < self.size:
            piece = os.pread(self._fd, _COPY_BYTES, offset)
            if not piece:
                raise OSError(errno.EIO, "the spooled text is shorter than what was written")
            offset += len(piece)
            yield piece

    def discard(self) -> None:
        """Free the text's memory and file; harmless twice."""
        self._memory = bytearray()
        fd, self._fd = self._fd, -1
        if fd >= 0:
            # NFS may report a full disk only here, for a text that nobody needs any more.
            with contextlib.suppress(OSError):
                os.close(fd)
