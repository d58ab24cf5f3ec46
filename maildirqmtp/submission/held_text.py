"""A text that is read once and handed over as often as it takes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from maildirqmtp.errors import LocalError
from maildirqmtp.maildir.files import write_all

if TYPE_CHECKING:
    import io
    from collections.abc import Iterable, Iterator
    from typing import Self

#: Bytes that are kept in memory; a longer text goes to a file without a name.
MEMORY_BYTES = 1 << 20
_PIECE_BYTES = 1 << 18


class HeldText:
    """All of some pieces; `length` is its bytes. A context manager; leaving it frees them.

    Raises `LocalError` where there is no room for them, and what `pieces` raises.
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

            # Without a buffer, so that an error is that of the write which it belongs to.
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
        """Free it; harmless twice."""
        self._memory = []
        if self._file is not None:
            self._file.close()
            self._file = None

    def put_before(self, piece: bytes) -> None:
        """Put a piece before all that is there."""
        self._before = piece + self._before
        self.length += len(piece)

    def pieces(self) -> Iterator[bytes]:
        """Yield all of it, from the beginning. Raises `LocalError`."""
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
