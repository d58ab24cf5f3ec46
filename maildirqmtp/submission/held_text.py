"""A text that is read once and can be handed over several times."""

from __future__ import annotations

from typing import TYPE_CHECKING

from maildirqmtp.errors import LocalError
from maildirqmtp.maildir.files import write_all

if TYPE_CHECKING:
    import io
    from collections.abc import Iterable, Iterator
    from typing import Self

#: Most bytes that are kept in memory; a longer text goes to a file without a name.
MEMORY_BYTES = 1 << 20
_PIECE_BYTES = 1 << 18


class HeldText:
    """A text made of pieces; `length` is its bytes. A context manager; leaving it frees the text.

    Raises `LocalError` if the text cannot be kept, and what reading `pieces` raises.
    """

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self.length = 0
        self._before = b""
        self._memory: list[bytes] = []
        self._file: io.FileIO | None = None
        try:
            for piece in pieces:
                self.length += len(piece)
                self._add(piece)
        except OSError as error:
            self.close()
            raise LocalError(f"cannot keep the message: {error.strerror}") from error
        except BaseException:
            self.close()
            raise

    def _add(self, piece: bytes) -> None:
        if self._file is None and self.length <= MEMORY_BYTES:
            self._memory.append(piece)
            return
        if self._file is None:
            import tempfile  # 6 ms, which small messages do not wait for

            # Without a buffer, so that an error is raised by the write that it belongs to.
            self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 (close does it)
            for held in self._memory:
                write_all(self._file.fileno(), held)
            self._memory.clear()
        write_all(self._file.fileno(), piece)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the text; harmless twice."""
        self._memory = []
        if self._file is not None:
            self._file.close()
            self._file = None

    def put_before(self, piece: bytes) -> None:
        """Put a piece at the beginning of the text."""
        self._before = piece + self._before
        self.length += len(piece)

    def pieces(self) -> Iterator[bytes]:
        """Yield the text from its beginning. Raises `LocalError` if its file cannot be read."""
        yield self._before
        if self._file is None:
            yield from self._memory
            return
        try:
            self._file.seek(0)
            while piece := self._file.read(_PIECE_BYTES):
                yield piece
        except OSError as error:
            raise LocalError(f"cannot read the message again: {error.strerror}") from error
