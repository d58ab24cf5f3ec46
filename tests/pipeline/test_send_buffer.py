"""What goes out: bytes lost or doubled here are mail lost or doubled."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from maildirqmtp.errors import FileChangedError, TransportError
from maildirqmtp.forwarder.queued_message import QueuedMessage
from maildirqmtp.pipeline.outgoing import FilePiece, OutgoingMessage
from maildirqmtp.pipeline.send_buffer import GATHER_BYTES, SendBuffer
from tests.fakes import FakeClock, FakeTransport, broken, large_queued, queued

if TYPE_CHECKING:
    from maildirqmtp.pipeline.outgoing import Piece

BOTH = pytest.mark.parametrize("can_send_file", [True, False], ids=["sendfile", "read and send"])


class Flow:
    """A send buffer on a fake transport."""

    def __init__(
        self,
        transport: FakeTransport | None = None,
        unchanged: Callable[[QueuedMessage], bool] = lambda queued: True,
    ) -> None:
        self.clock = FakeClock()
        self.transport = transport or FakeTransport()
        self.out = SendBuffer(self.transport, unchanged, self.clock)

    @property
    def sent(self) -> bytes:
        """What went out."""
        assert self.out.sent == len(self.transport.sent)
        return bytes(self.transport.sent)


def test_nothing_is_waiting_at_first() -> None:
    """Or the selector would spin on a writable socket."""
    flow = Flow()
    assert (flow.out.waiting, flow.out.streaming, flow.out.has_room()) == (False, False, True)
    flow.out.write()
    assert flow.transport.sends == 0


def test_small_packages_share_one_send() -> None:
    """A system call for each message would halve the speed."""
    flow = Flow()
    lengths = [flow.out.put(queued(b"1.a", text=b"x%d" % n), b"<", b">") for n in range(9)]
    assert lengths == [4] * 9
    assert (flow.out.waiting, flow.out.queued, flow.out.sent) == (True, 36, 0)
    flow.out.write()
    assert flow.sent == b"".join(b"<x%d>" % n for n in range(9))
    assert flow.transport.sends == 1
    assert not flow.out.waiting


def test_the_trace_lines_are_left_out_and_the_kept_ones_sent() -> None:
    """A Return-Path that is sent on shows up as a second one at the recipient."""
    flow = Flow()
    one = queued(b"1.a", text=b"Return-Path: <>\nbody")
    one.kept, one.offset = b"X-Original-To: a\n", 16
    one.length = len(one.kept) + 4
    length = flow.out.put(one, b"<", b">")
    flow.out.write()
    assert flow.sent == b"<X-Original-To: a\nbody>"
    assert length == flow.out.queued == len(flow.sent)


def test_it_goes_on_where_the_socket_stopped() -> None:
    """A byte lost or repeated in the middle shifts every length after it."""
    flow = Flow(FakeTransport(takes=[3, 0, 1]))
    flow.out.put(queued(text=b"abcdef"), b"<", b">")
    flow.out.write()
    assert (flow.sent, flow.out.waiting) == (b"<ab", True)
    flow.out.write()
    assert flow.sent == b"<ab"
    flow.out.put(queued(text=b"ghi"), b"<", b">")
    flow.out.write()
    assert flow.sent == b"<abc"
    flow.out.write()
    assert flow.sent == b"<abcdef><ghi>"


def test_there_is_room_until_enough_is_gathered() -> None:
    """Without an end the whole maildir would be read into memory before a slow link."""
    flow = Flow()
    count = 0
    while flow.out.has_room():
        flow.out.put(queued(text=b"x" * 1000), b"", b"")
        count += 1
    assert count == -(-GATHER_BYTES // 1000)
    flow.out.write()
    assert flow.out.has_room()


def test_progress_counts_from_when_a_byte_could_go() -> None:
    """A connection that was idle for an hour is not stuck the moment a message comes."""
    flow = Flow(FakeTransport(takes=[0, 2, 0]))
    flow.clock.advance(3600)
    flow.out.put(queued(), b"", b"")
    assert flow.out.progress_at == 4600
    flow.clock.advance(5)
    flow.out.put(queued(), b"", b"")
    flow.out.write()
    assert flow.out.progress_at == 4600
    flow.out.write()
    assert flow.out.progress_at == 4605
    flow.clock.advance(5)
    flow.out.write()
    assert flow.out.progress_at == 4605


def test_a_broken_connection_is_told_and_nothing_counted() -> None:
    """What was not sent must not be in doubt."""
    flow = Flow(FakeTransport(takes=[broken()]))
    flow.out.put(queued(), b"", b"")
    with pytest.raises(TransportError):
        flow.out.write()
    assert flow.out.sent == 0


@BOTH
def test_a_large_message_is_streamed_whole(tmp_path: Path, can_send_file: bool) -> None:
    """Every byte once, between what stood before it and what comes after."""
    asked: list[QueuedMessage] = []
    transport = FakeTransport(can_send_file=can_send_file, takes=[5, 0, 100_000, 0, 7])
    flow = Flow(transport, lambda d: not asked.append(d))  # type: ignore[func-returns-value]
    large = large_queued(tmp_path / "1.a", kept=b"kept\n", offset=10)
    body = (tmp_path / "1.a").read_bytes()[10:]
    flow.out.put(queued(text=b"small"), b"<", b">")
    length = flow.out.put(large, b"{", b"}")
    assert (flow.out.streaming, flow.out.has_room(), flow.out.waiting) == (True, False, True)
    for _ in range(50):
        flow.out.write()
    assert flow.sent == b"<small>{kept\n" + body + b"}"
    assert length == len(body) + 7
    assert flow.out.queued == flow.out.sent
    assert (flow.out.streaming, flow.out.waiting) == (False, False)
    assert asked == [large]
    large.message.close()


def test_the_last_byte_waits_for_the_last_look(tmp_path: Path) -> None:
    """Once it is out the server may keep the message, and half a message is no message."""
    flow = Flow(unchanged=lambda d: False)
    large = large_queued(tmp_path / "1.a")
    flow.out.put(large, b"<", b">")
    with pytest.raises(FileChangedError, match=r"1\.a changed while it was being sent"):
        flow.out.write()
    assert flow.sent == b"<" + (tmp_path / "1.a").read_bytes()[:-1]
    assert not flow.out.waiting
    large.message.close()


@BOTH
@pytest.mark.parametrize("left", [0, 1, 100_000, (2 << 20) - 1])
def test_a_file_that_shrank_never_gets_its_last_byte(
    tmp_path: Path, can_send_file: bool, left: int
) -> None:
    """Padding or cutting it would deliver half a message as a whole one."""
    transport = FakeTransport(can_send_file=can_send_file)
    flow = Flow(transport)
    large = large_queued(tmp_path / "1.a")
    os.truncate(tmp_path / "1.a", left)
    flow.out.put(large, b"<", b">")
    with pytest.raises(FileChangedError):
        flow.out.write()
    assert flow.out.sent < flow.out.queued
    assert len(flow.sent) == 1 + left
    large.message.close()


@BOTH
def test_a_file_that_cannot_be_read_is_not_sent(
    tmp_path: Path, can_send_file: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bad block on the disk is that message's trouble; the others must go on."""
    real = os.pread

    def pread(fd: int, count: int, offset: int) -> bytes:
        if count == 1:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(fd, count, offset)

    flow = Flow(FakeTransport(can_send_file=can_send_file))
    large = large_queued(tmp_path / "1.a", size=(1 << 20) + 1)
    flow.out.put(large, b"<", b">")
    monkeypatch.setattr(os, "pread", pread)
    with pytest.raises(FileChangedError, match=r"1\.a cannot be read: Input/output error"):
        flow.out.write()
    assert flow.sent == b"<" + (tmp_path / "1.a").read_bytes()[:-1]
    assert not flow.out.waiting
    large.message.close()


def test_a_disk_that_fails_under_sendfile_is_not_a_broken_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next server would get the blame as well, and the message defer for ever."""
    flow = Flow(FakeTransport(can_send_file=True))
    large = large_queued(tmp_path / "1.a", size=(1 << 20) + 1)
    flow.out.put(large, b"<", b">")
    failed = TransportError(errno.EIO, "connection broke while sending a file")

    def send_file(*_: object) -> int:
        raise failed

    monkeypatch.setattr(flow.transport, "send_file", send_file)
    with pytest.raises(TransportError) as raised:
        flow.out.write()
    assert raised.value is failed  # the file can be read

    def pread(*_: object) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "pread", pread)
    with pytest.raises(FileChangedError, match=r"1\.a cannot be read: Input/output error"):
        flow.out.write()
    large.message.close()


def test_packages_of_one_large_message_follow_each_other(tmp_path: Path) -> None:
    """A server that answers once per package gets the message once for each recipient."""
    flow = Flow()
    large = large_queued(tmp_path / "1.a", b"a@y", b"b@y", size=1_500_000)
    body = (tmp_path / "1.a").read_bytes()
    for tail in (b"A", b"B"):
        flow.out.put(large, b"<", tail)
        flow.out.write()
    assert flow.sent == b"<" + body + b"A<" + body + b"B"
    large.message.close()


class Parts(OutgoingMessage):
    """A message of several parts, in memory and in files."""

    __slots__ = ("parts",)

    def __init__(self, *parts: bytes | FilePiece) -> None:
        sizes = [part.left if isinstance(part, FilePiece) else len(part) for part in parts]
        super().__init__(b"s@x", (b"r@y",), sum(sizes))
        self.parts = parts

    def append_to(self, into: bytearray) -> list[Piece]:
        """Stream all of it."""
        return [part if isinstance(part, FilePiece) else memoryview(part) for part in self.parts]

    @property
    def label(self) -> str:
        """Its name."""
        return "parts"


@BOTH
@pytest.mark.parametrize("same", [True, False])
def test_parts_are_streamed_in_order_and_the_tail_waits_for_the_last_look(
    tmp_path: Path, can_send_file: bool, same: bool
) -> None:
    """A program's message may be text, file, text; each byte once, and none after a doubt."""
    path = tmp_path / "file"
    path.write_bytes(bytes(range(256)) * 4_000)
    body = path.read_bytes()
    expected = b"<" + b"a" * 700_000 + body[7:900_007] + body[:1]
    transport = FakeTransport(takes=[3, 0, 100_000, 0], can_send_file=can_send_file)
    out = SendBuffer[Parts](transport, lambda parts: same, FakeClock())

    def send_all() -> None:
        while out.waiting:
            assert not (out.has_room() and out.streaming)
            out.write()

    with path.open("rb") as file:
        pieces = FilePiece(file.fileno(), 7, 900_000), FilePiece(file.fileno(), 0, 1)
        length = out.put(Parts(b"a" * 700_000, *pieces, b"end"), b"<", b">")
        if same:
            send_all()
            assert transport.sent == expected + b"end>"
            assert out.sent == out.queued == length
        else:
            with pytest.raises(FileChangedError, match="parts changed while it was being sent"):
                send_all()
            assert transport.sent == expected
            assert out.sent < out.queued
