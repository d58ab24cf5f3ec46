"""How the clients that there are talk, as they write it on the wire, to the installed receiver.

Read in their sources: Net::QMTP 0.06, serialqmtp of serialmail 0.75, qmail-remote of s/qmail and
indimail, flim's qmtp.el. Each story is told to a maildir and to a receiver that hands mail on.
"""

from __future__ import annotations

import contextlib
import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.helpers import DEADLINE_S, wait_until
from tests.receiving import delivered, receiver
from tests.scripted_smtp import scripted_server

TEXT = b"Subject: x\n\n.hi\n"
#: Returns the texts that have arrived, without the Received line.
Arrived = Callable[[], list[bytes]]


def netstring(data: bytes) -> bytes:
    return b"%d:%b," % (len(data), data)


@pytest.fixture(params=["maildir", "lmtp"])
def far_end(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, Arrived]]:
    """A receiver; where it listens, and what has arrived behind it, once for each recipient."""
    with contextlib.ExitStack() as stack:
        if request.param == "maildir":
            maildir = tmp_path / "Maildir"
            _, where = stack.enter_context(receiver(maildir))
            yield where, lambda: delivered(maildir)
            return
        server = stack.enter_context(scripted_server(lmtp=True))
        how = f"lmtp:127.0.0.1:{server.port}"
        _, where = stack.enter_context(receiver(Path(how), "--deliver"))

        def arrived() -> list[bytes]:
            texts = []
            for told in server.conversations:
                rcpts = [b"".join(group).count(b"RCPT") for group in transactions(told.commands)]
                for text, count in zip(told.texts, rcpts, strict=False):
                    body = re.sub(rb"(?m)^\.", b"", text.replace(b"\r\n", b"\n"))
                    texts += [body.partition(b"\n")[2]] * count
            return sorted(texts)

        yield where, arrived


def transactions(commands: list[bytes]) -> list[list[bytes]]:
    """Return the commands by transaction."""
    groups: list[list[bytes]] = []
    for command in commands:
        if command.startswith(b"MAIL"):
            groups.append([])
        elif groups:
            groups[-1].append(command)
    return groups


class Wire:
    """A connection of a client that was written by somebody else."""

    def __init__(self, where: str) -> None:
        host, _, port = where.rpartition(":")
        self.sock = socket.create_connection((host, int(port)), DEADLINE_S)
        self._file = self.sock.makefile("rb")

    def say(self, *pieces: bytes) -> None:
        """Write the pieces, each by itself."""
        for piece in pieces:
            self.sock.sendall(piece)

    def response(self) -> bytes:
        """Read a netstring as strictly as they do; its first letter."""
        length = b""
        while (byte := self._file.read(1)) != b":":
            assert byte.isdigit(), (length, byte)
            length += byte
        text = self._file.read(int(length))
        assert self._file.read(1) == b","
        return text[:1]

    def close(self) -> None:
        """Hang up, with whatever has not been read."""
        self._file.close()
        self.sock.close()


@pytest.fixture
def wire(far_end: tuple[str, Arrived]) -> Iterator[Wire]:
    """A connection to the receiver."""
    made = Wire(far_end[0])
    with contextlib.closing(made):
        yield made


def test_net_qmtp(wire: Wire, far_end: tuple[str, Arrived]) -> None:
    """Message, sender and recipients by a print each; every answer, then the next message."""
    for encoding, text in ((b"\n", TEXT), (b"\r", TEXT.replace(b"\n", b"\r\n"))):
        wire.say(
            netstring(encoding + text),
            netstring(b"s@x"),
            netstring(netstring(b"a@y") + netstring(b"b@y")),
        )
        assert wire.response() + wire.response() == b"KK"
    wire.close()
    assert far_end[1]() == [TEXT] * 4


def test_net_qmtp_from_a_file(wire: Wire, far_end: tuple[str, Arrived]) -> None:
    """The length first, then the file line by line, as it is read."""
    lines = TEXT.splitlines(keepends=True)
    wire.say(b"%d:\n" % (len(TEXT) + 1), *lines, b",", netstring(b""), b"6:", b"3:a@y,", b",")
    assert wire.response() == b"K"
    assert far_end[1]() == [TEXT]


def test_net_qmtp_gives_up_amid_a_message(wire: Wire, far_end: tuple[str, Arrived]) -> None:
    """`reconnect` after what failed: nothing of it is delivered, and the next one is."""
    wire.say(b"%d:\n" % (len(TEXT) + 1), TEXT[:5])
    wire.close()
    again = Wire(far_end[0])
    with contextlib.closing(again):
        again.say(netstring(b"\n" + TEXT), netstring(b"s@x"), netstring(netstring(b"a@y")))
        assert again.response() == b"K"
    assert far_end[1]() == [TEXT]


def test_serialqmtp(wire: Wire, far_end: tuple[str, Arrived]) -> None:
    """All messages without waiting, one recipient each; the answers in their order."""
    for number in range(50):
        recipient = b"%d:k%d@y," % (len(b"k%d@y" % number), number)
        wire.say(b"%d:\n" % (len(TEXT) + 1), TEXT, b",0:,", netstring(recipient))
    assert b"".join(wire.response() for _ in range(50)) == b"K" * 50
    wire.close()
    assert far_end[1]() == [TEXT] * 50


def test_serialqmtp_ends_its_side_before_the_answers(
    wire: Wire, far_end: tuple[str, Arrived]
) -> None:
    """Behind ssh its end closes with the last message; the answers are owed all the same."""
    wire.say(netstring(b"\n" + TEXT), netstring(b"s@x"), netstring(netstring(b"a@y")))
    wire.sock.shutdown(socket.SHUT_WR)
    assert wire.response() == b"K"
    assert wire.sock.recv(1) == b""
    assert far_end[1]() == [TEXT]


def test_qmail_remote_of_s_qmail(wire: Wire, far_end: tuple[str, Arrived]) -> None:
    """One package for all recipients, in blocks of its buffer; then the answers, and it exits."""
    recipients = [b"r%d@y" % number for number in range(30)]
    package = (
        netstring(b"\n" + TEXT)
        + netstring(b"s@x")
        + netstring(b"".join(map(netstring, recipients)))
    )
    wire.say(*(package[start : start + 100] for start in range(0, len(package), 100)))
    assert b"".join(wire.response() for _ in recipients) == b"K" * 30
    wire.close()
    assert far_end[1]() == [TEXT] * 30


@pytest.mark.parametrize("encoding", [b"\n", b"\r\n"])
def test_a_last_line_without_an_end(
    wire: Wire, far_end: tuple[str, Arrived], encoding: bytes
) -> None:
    """qmtp.txt, section 4: it may be partial; SMTP and LMTP end it."""
    wire.say(netstring(encoding[:1] + b"x" + encoding + b"end"), b"3:s@x,", b"6:3:a@y,,")
    assert wire.response() == b"K"
    assert [text.removesuffix(b"\n") for text in far_end[1]()] == [b"x\nend"]


@pytest.mark.parametrize("count", [1, 3])
def test_qmtp_el(wire: Wire, far_end: tuple[str, Arrived], count: int) -> None:
    """Emacs: a LF more at the end; it reads the first answer only, and hangs up at once."""
    recipients = b"".join(netstring(b"r%d@y" % number) for number in range(count))
    wire.say(b"%d:\n" % (len(TEXT) + 2) + TEXT + b"\n,3:s@x,", netstring(recipients))
    assert wire.sock.recv(2).rstrip(b":").isdigit()
    wire.close()
    wait_until(lambda: len(far_end[1]()) == count, "each recipient's message")
    assert far_end[1]() == [TEXT + b"\n"] * count
    again = Wire(far_end[0])
    with contextlib.closing(again):
        again.say(netstring(b"\n" + TEXT), netstring(b"s@x"), netstring(netstring(b"a@y")))
        assert again.response() == b"K"
