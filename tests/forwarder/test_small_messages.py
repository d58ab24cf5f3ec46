"""Small messages in batches: the same outcome as one by one; what is unusual goes that way."""

from __future__ import annotations

import os
from collections import deque
from pathlib import Path

import pytest

from maildirqmtp.forwarder.queued_message import QueuedMessage, prepare
from maildirqmtp.forwarder.route import Route
from maildirqmtp.forwarder.small_messages import BATCH_MESSAGES, SMALL_MAX, SmallBatch, gather
from maildirqmtp.maildir.files import Folder
from maildirqmtp.maildir.maildir import Maildir
from maildirqmtp.transport.endpoint import TcpEndpoint
from tests.helpers import make_maildir

TOP = b"Return-Path: <s@x>\nDelivered-To: p-r@y\n"


class Gathering:
    """A maildir of which batches are gathered."""

    def __init__(self, root: Path) -> None:
        self.path = make_maildir(root / "M")
        self.maildir = Maildir(os.fsencode(self.path))
        self.queue: deque[tuple[Folder, bytes]] = deque()

    def add(self, *contents: bytes) -> None:
        """Put files with these contents into new/, and all of new/ into the queue."""
        for number, content in enumerate(contents):
            path = self.path / "new" / f"{number}.a"
            path.write_bytes(content)
            os.utime(path, (1_000_000, 1_000_000))
        self.queue = self.maildir.scan()

    def gather(
        self, prefix: bytes = b"p-", most: int = 1_000, max_bytes: int = 1 << 20
    ) -> tuple[SmallBatch | None, bytes | None]:
        """Gather a batch; return it, and the name of the candidate that ended it."""

        def take() -> tuple[Folder, bytes] | None:
            return self.queue.popleft() if self.queue else None

        batch, odd = gather(self.maildir, prefix, take, most, max_bytes)
        return batch, odd and odd[1]


@pytest.fixture
def gathering(tmp_path: Path) -> Gathering:
    """An empty maildir."""
    return Gathering(tmp_path)


def names_of(batch: SmallBatch | None) -> list[bytes]:
    """Return the names of a batch's messages."""
    return [] if batch is None else [message[1] for message in batch.messages]


def test_a_batch_is_the_packages_that_would_be_sent_one_by_one(gathering: Gathering) -> None:
    """A byte more or less, and the server reads the next package in the middle of this one."""
    gathering.add(TOP + b"Subject: a\n\nhello\n", TOP + b"\0\xff\r\n", TOP)
    batch, odd = gathering.gather()
    assert odd is None
    assert batch is not None
    assert batch.data == (
        b"19:\nSubject: a\n\nhello\n,3:s@x,6:3:r@y,,"
        b"5:\n\0\xff\r\n,3:s@x,6:3:r@y,,"
        b"1:\n,3:s@x,6:3:r@y,,"
    )
    assert sum(batch.sizes) == len(batch.data)
    assert batch.text_bytes(0, 3) == 18 + 4


@pytest.mark.parametrize(
    "content",
    [
        b"Subject: no envelope\n\n",
        b"Delivered-To: p-r@y\nReturn-Path: <s@x>\n\n",
        b"Return-Path: <s@x>\nDelivered-To: other@y\n\n",
        b"Return-Path: <s@x>\nDelivered-To: p-\n\n",
        b"Return-Path: <MAILER-DAEMON>\nDelivered-To: p-r@y\n\n",
        b'Return-Path: <"a b"@x>\nDelivered-To: p-r@y\n\n',
        b"Return-Path: <s@x>\nDelivered-To: unknown\n\n",
        TOP + b"Envelope-to: blind@y\n\n",
        TOP + b"Received: x\n" * 100 + b"\n",
        TOP + b"x" * SMALL_MAX,
    ],
    ids=[
        "no envelope",
        "other order",
        "for others",
        "nothing but the prefix",
        "null sender",
        "quoted",
        "unknown",
        "more trace lines",
        "mail loop",
        "large",
    ],
)
def test_what_is_not_as_usual_ends_a_batch(gathering: Gathering, content: bytes) -> None:
    """It is looked at by itself; taken for a usual one it goes to a wrong address, or for ever."""
    gathering.add(TOP + b"\n", content, TOP + b"\n")
    batch, odd = gathering.gather()
    assert names_of(batch) == [b"0.a"]
    assert odd == b"1.a"
    batch, odd = gathering.gather()
    assert names_of(batch) == [b"2.a"]
    assert odd is None


@pytest.mark.parametrize("kind", ["link", "fifo", "directory", "gone"])
def test_what_is_no_file_ends_a_batch(gathering: Gathering, kind: str) -> None:
    """A link could have any file sent, and a FIFO would wait for ever."""
    path = gathering.path / "new" / "0.b"
    if kind == "link":
        (gathering.path / "secret").write_bytes(TOP)
        path.symlink_to(gathering.path / "secret")
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    gathering.queue.append((gathering.maildir.new, b"0.b"))
    assert gathering.gather() == (None, b"0.b")


def test_a_fifo_is_not_read_from(gathering: Gathering) -> None:
    """What another program has put into it would be gone."""
    path = gathering.path / "new" / "0.b"
    os.mkfifo(path)
    fd = os.open(path, os.O_RDWR | os.O_NONBLOCK)
    os.write(fd, b"x")
    os.utime(path, (1_000_000, 1_000_000))
    gathering.queue.append((gathering.maildir.new, b"0.b"))
    assert gathering.gather() == (None, b"0.b")
    assert os.read(fd, 1) == b"x"
    os.close(fd)


def test_a_file_that_may_still_be_written_to_is_not_small(gathering: Gathering) -> None:
    """One begun in new/ would be sent without its end; whether it is one takes a closer look."""
    path = gathering.path / "new" / "0.a"
    path.write_bytes(TOP + b"the beginning")
    gathering.queue = gathering.maildir.scan()
    status = path.stat()
    expected = status.st_ctime_ns == status.st_mtime_ns
    assert (gathering.gather() == (None, b"0.a")) == expected


def test_a_file_of_another_user_is_not_small(gathering: Gathering) -> None:
    """As root: somebody linked another's mail into the maildir."""
    gathering.add(TOP)
    gathering.maildir.owners = frozenset({12_345})
    assert gathering.gather() == (None, b"0.a")


def test_a_batch_has_a_limit_of_messages_and_bytes(gathering: Gathering) -> None:
    """More than the window allows would be in doubt, and more than that in memory."""
    gathering.add(*[TOP + b"x" * 90] * (BATCH_MESSAGES + 2))
    batch, odd = gathering.gather(most=2)
    assert (len(names_of(batch)), odd) == (2, None)
    assert batch is not None
    batch, odd = gathering.gather(max_bytes=3 * batch.sizes[0] - 1)
    assert (len(names_of(batch)), odd) == (2, b"4.a")
    gathering.add(*[TOP + b"x"] * (BATCH_MESSAGES + 2))
    assert len(names_of(gathering.gather()[0])) == BATCH_MESSAGES


def test_an_expanded_message_is_what_prepare_makes(gathering: Gathering) -> None:
    """What is refused or in doubt is settled as this; with another address it bounces to it."""
    gathering.add(TOP + b"Subject: a\n\nhello\n")
    route = Route(os.fsencode(gathering.path), TcpEndpoint("mail.example.org"), prefix=b"p-")
    wanted = prepare(gathering.maildir, route, gathering.maildir.new, b"0.a")
    assert isinstance(wanted, QueuedMessage)
    batch, _ = gathering.gather()
    assert batch is not None
    made = batch.expand(0)
    for name in ("sender", "recipients", "length", "offset", "kept", "others", "sidecar"):
        assert getattr(made, name) == getattr(wanted, name), name
    assert made.message.identity == wanted.message.identity
    assert made.message.size == wanted.message.size
    assert made.label == wanted.label
