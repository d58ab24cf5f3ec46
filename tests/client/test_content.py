"""Messages from programs: every kind of part, byte for byte, in bounded memory."""

from __future__ import annotations

import gzip
import io
import os
import tempfile
import threading
from pathlib import Path

import pytest

from maildirqmtp.client import content
from maildirqmtp.client.content import MEMORY_BYTES, Content
from maildirqmtp.client.package import Message, Part
from maildirqmtp.errors import FileChangedError, PackageError
from maildirqmtp.pipeline.outgoing import FilePiece
from tests.helpers import open_descriptors

LARGE = bytes(range(251)) * 8_400  # 2.1 MB
LIMIT = 200_000_000


def text_of(one: Content) -> bytes:
    """Return what would be sent."""
    whole = bytearray()
    for piece in one.append_to(whole):
        if isinstance(piece, FilePiece):
            whole += os.pread(piece.fd, piece.left, piece.offset)
            piece.offset, piece.left = piece.offset + piece.left, 0  # as sending does
        else:
            whole += piece
    return bytes(whole)


def check(message: Message, expected: bytes) -> None:
    """Open a message and compare; twice, as for a server that answers once per package."""
    one = Content(message)
    try:
        assert one.length == len(expected)
        assert text_of(one) == expected
        assert text_of(one) == expected
        assert one.unchanged()
    finally:
        one.close()
        one.close()


@pytest.fixture(autouse=True)
def _no_descriptor_is_left() -> object:
    before = open_descriptors()
    yield
    assert open_descriptors() <= before


@pytest.mark.parametrize("size", [0, 1, 5_000, MEMORY_BYTES, MEMORY_BYTES + 1, len(LARGE)])
def test_every_kind_of_part(tmp_path: Path, size: int) -> None:
    """However it is given, the same bytes."""
    data = LARGE[:size]
    path = tmp_path / "message"
    path.write_bytes(data)
    check(data, data)
    check(bytearray(data), data)
    check(memoryview(data), data)
    check(path, data)
    check(str(path), data)
    check(io.BytesIO(data), data)
    with path.open("rb") as file:
        check(file, data)
        assert file.read() == data, "put back to where it was"
        file.seek(0)
    with path.open("rb", buffering=0) as file:
        check(file, data)
    with path.open("r+b") as file:
        check([file, b"!"], data + b"!")


def test_parts_follow_each_other_in_order(tmp_path: Path) -> None:
    """What Net::QMTP could not: text and files together."""
    path = tmp_path / "message"
    path.write_bytes(LARGE)
    check([], b"")
    check([b"", b""], b"")
    check((b"a", b"b"), b"ab")
    check([path, b"x", path, io.BytesIO(LARGE), b""], LARGE + b"x" + LARGE + LARGE)
    check([io.BytesIO(LARGE), b"x", io.BytesIO(b"y")], LARGE + b"xy")


def test_a_file_object_is_sent_from_where_it_stands(tmp_path: Path) -> None:
    """A program that has read the first line does not want it sent."""
    path = tmp_path / "message"
    path.write_bytes(b"first\n" + LARGE)
    with path.open("rb") as file:
        file.readline()
        check(file, LARGE)
        file.seek(2)
        os.truncate(path, 10)
        check(file, b"rst\n" + LARGE[:4])


def test_a_file_object_is_not_used_up(tmp_path: Path) -> None:
    """Sent again after a failure, or to the next recipient, it was an empty message."""
    path = tmp_path / "message.gz"
    path.write_bytes(gzip.compress(LARGE))
    with path.open("rb") as file, gzip.open(path) as inside:
        for source in (io.BytesIO(LARGE), inside):
            assert source.read(2) == LARGE[:2]
            check(source, LARGE[2:])
            check([source, b"!"], LARGE[2:] + b"!")
        check(file, path.read_bytes())
        check(file, path.read_bytes())


def test_a_file_object_that_was_read_before_is_no_empty_message(tmp_path: Path) -> None:
    """Nobody means to send what is left at its end, and the server would say K to it."""
    path = tmp_path / "message"
    path.write_bytes(b"hi\n")
    memory = io.BytesIO(b"x")
    memory.read()
    with path.open("rb") as read, (tmp_path / "new").open("w+b") as written:
        read.read()
        written.write(b"new\n")
        used: list[Part] = [memory, read, written]
        for part in used:
            with pytest.raises(PackageError, match="stands at its end"):
                Content([b"head\n\n", part])


def test_an_empty_file_is_an_empty_message(tmp_path: Path) -> None:
    """As b"" is; it was not read before."""
    path = tmp_path / "message"
    path.touch()
    with path.open("rb") as file:
        check(file, b"")
    check(io.BytesIO(), b"")
    check(path, b"")


def test_what_was_written_before_is_sent_too() -> None:
    """A program's own buffer is part of its file."""
    with tempfile.TemporaryFile(buffering=1 << 22) as file:
        file.write(LARGE)
        file.seek(0)
        file.write(b"!")
        file.seek(0)
        check(file, b"!" + LARGE[1:])


def test_a_write_that_still_waits_is_no_change_meanwhile(tmp_path: Path) -> None:
    """The program's own buffer, written out while we send, is no meddling of others."""
    path = tmp_path / "message"
    path.write_bytes(LARGE)
    os.utime(path, (1, 1))
    with path.open("r+b") as file:
        file.write(b"!")
        check(file, LARGE[1:])


def test_a_decompressor_is_read_and_not_its_file(tmp_path: Path) -> None:
    """It has a descriptor too: that of the compressed bytes."""
    path = tmp_path / "message.gz"
    with gzip.open(path, "wb") as packed:
        packed.write(LARGE)
    with gzip.open(path) as file:
        check(file, LARGE)
    with gzip.open(path) as file:
        check(io.BufferedReader(file), LARGE)


@pytest.mark.parametrize("size", [10, len(LARGE)])
def test_a_pipe_is_read_to_its_end(size: int) -> None:
    """Its length is only known then, and stands first in the package."""
    read_fd, write_fd = os.pipe()

    def write() -> None:
        with open(write_fd, "wb") as file:
            file.write(LARGE[:size])

    thread = threading.Thread(target=write)
    thread.start()
    with open(read_fd, "rb") as file:
        check(file, LARGE[:size])
    thread.join()


def test_a_path_may_be_that_of_a_pipe() -> None:
    """`/dev/stdin`, or what a shell makes of `<(command)`."""
    read_fd, write_fd = os.pipe()
    os.write(write_fd, b"from a pipe")
    os.close(write_fd)
    check(f"/dev/fd/{read_fd}", b"from a pipe")
    os.close(read_fd)


def test_large_files_are_never_in_memory(tmp_path: Path) -> None:
    """A window of large messages would be gigabytes."""
    path = tmp_path / "message"
    path.write_bytes(LARGE)
    messages: list[Message] = [path, io.BytesIO(LARGE), [io.BytesIO(LARGE[:5]), path]]
    for message in messages:
        one = Content(message)
        gathered = bytearray()
        pieces = one.append_to(gathered)
        in_memory = len(gathered) + sum(len(p) for p in pieces if isinstance(p, memoryview))
        assert in_memory <= MEMORY_BYTES
        one.close()


def test_many_small_files_do_not_add_up_in_memory(tmp_path: Path) -> None:
    """Nor may they use up the descriptors, so they share one."""
    before = open_descriptors()
    one = Content([io.BytesIO(LARGE[:100_000]) for _ in range(50)])
    gathered = bytearray()
    pieces = one.append_to(gathered)
    assert sum(len(p) for p in pieces if isinstance(p, memoryview)) <= MEMORY_BYTES
    assert len(open_descriptors() - before) <= 1
    assert text_of(one) == LARGE[:100_000] * 50
    one.close()


def test_of_many_small_files_only_so_much_is_read_at_once(tmp_path: Path) -> None:
    """A message with a thousand attachments would be in memory with all of them."""
    paths = [tmp_path / str(number) for number in range(30)]
    for path in paths:
        path.write_bytes(LARGE[:100_000])
    one = Content(paths)
    pieces = one.append_to(bytearray())
    assert sum(len(p) for p in pieces if isinstance(p, memoryview)) <= MEMORY_BYTES
    assert text_of(one) == LARGE[:100_000] * 30
    one.close()


@pytest.mark.parametrize("change", ["grow", "shrink", "rewrite"])
def test_a_file_that_changes_is_noticed(tmp_path: Path, change: str) -> None:
    """Half old, half new is nobody's message."""
    path = tmp_path / "message"
    path.write_bytes(LARGE)
    os.utime(path, (1, 1))
    one = Content([b"x", path, b"y"])
    if change == "grow":
        with path.open("ab") as file:
            file.write(b"!")
    elif change == "shrink":
        os.truncate(path, len(LARGE) - 1)
    else:
        with path.open("r+b") as file:
            file.write(b"!")
    assert not one.unchanged()
    one.close()


def test_a_small_file_that_changes_while_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same, in the moment of reading."""
    path = tmp_path / "message"
    path.write_bytes(b"0123456789")
    real = os.pread

    def pread(fd: int, count: int, offset: int) -> bytes:
        os.truncate(path, 5)
        return real(fd, count, offset)

    monkeypatch.setattr(os, "pread", pread)
    with pytest.raises(FileChangedError, match="message changed while it was being read"):
        Content(path)


def test_a_file_whose_size_is_not_known_is_read_to_its_end() -> None:
    """A status report mails /proc/mdstat; the kernel says that it is empty."""
    path = "/proc/self/limits"
    text = Path(path).read_bytes()
    assert text
    with open(path, "rb") as file:
        for part in (path, file):
            one = Content([b"Subject: limits\n\n", part])
            assert text_of(one) == b"Subject: limits\n\n" + text
            one.close()
        assert file.read() == text


def test_files_that_cannot_be_opened_are_the_systems_errors(tmp_path: Path) -> None:
    """As from `open`, which programs know how to handle."""
    with pytest.raises(FileNotFoundError):
        Content(tmp_path / "missing")
    with pytest.raises(IsADirectoryError):
        Content([b"x", tmp_path])


def test_a_text_in_place_of_a_path_is_explained() -> None:
    """`File name too long` would not tell anybody what is wrong."""
    with pytest.raises(PackageError, match="encode a text to bytes"):
        Content("Subject: x\n\ny\n")


def test_what_is_no_part_is_a_type_error(tmp_path: Path) -> None:
    """Before anything is sent."""
    (tmp_path / "message").write_bytes(b"x")
    with pytest.raises(TypeError, match="not int"):
        Content([b"x", 7])  # type: ignore[list-item]
    with (tmp_path / "message").open() as text, pytest.raises(TypeError, match="mode 'rb'"):
        Content(text)  # type: ignore[arg-type]

    class Strange:
        def read(self, size: int) -> str:
            return "text"

    with pytest.raises(TypeError, match="gave str instead of bytes"):
        Content(Strange())  # type: ignore[arg-type]


def test_what_no_server_takes_is_refused_before_it_is_read(tmp_path: Path) -> None:
    """qmail-qmtpd gives up at lengths above 200,000,000."""
    path = tmp_path / "message"
    path.touch()
    os.truncate(path, LIMIT)
    Content(path).close()
    with pytest.raises(PackageError, match="above 200000000 bytes"):
        Content([path, b"x"])

    class Endless:
        given = 0

        def read(self, size: int) -> bytes:
            self.given += size
            return bytes(size)

    endless = Endless()
    with pytest.raises(PackageError, match="above 200000000 bytes"):
        Content([b"x" * (LIMIT - 10), endless])
    assert endless.given <= content.MEMORY_BYTES
