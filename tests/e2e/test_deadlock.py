"""Both sides full, neither reading: the run that never ends.

A client that writes all before it reads stops a server that answers as it goes;
one that waits for answers before it writes stops a server that answers at the
end. QMTP leaves this to the client (qmtp.txt, section 2).
"""

from __future__ import annotations

import random
import select
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.e2e.evil import Evil, RecordingTransport, Run, evil_server, forward, judge, stock
from tests.helpers import command

SOME = random.Random(7).randbytes(2 << 20)
#: 36 MB in 4,500 messages, and 80 MB in 40 that are streamed from their files.
SMALL = tuple(b"Subject: %d\n\n" % i + SOME[i : i + 8_000] for i in range(4_500))
LARGE = tuple(b"Subject: %d\n\n" % i + SOME[i:] for i in range(40))
#: Wide enough that the client never has to wait because of it.
WIDE = ("--window", "100000,1G")


def small_buffers(line: RecordingTransport) -> None:
    """Make the server's end hold little, so that a writer on either side soon blocks."""
    line.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16 << 10)
    line.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 << 10)


def writes_first(line: RecordingTransport, number: int) -> None:
    """Write a long answer to each package, and read nothing before it is gone."""
    small_buffers(line)
    for package in line.packages_from(chunk=64 << 10):
        # In all some megabytes: more than the client's socket takes before anybody reads it.
        length = 60_000 if len(package.text) > 1 << 20 else 2_000
        line.send(b"%d:K%b," % (length + 1, b"y" * length))


def writes_by_the_byte(line: RecordingTransport, number: int) -> None:
    """Like qmail-qmtpd: collect answers while there is more to read, then write them all."""
    small_buffers(line)
    waiting = b""
    for _ in line.packages_from(chunk=4 << 10):
        waiting += b"3:Kok,"
        if not select.select([line.socket], [], [], 0)[0]:
            line.send(waiting)
            waiting = b""
    line.send(waiting)


def reads_first(count: int) -> Evil:
    """Make a server that answers the first package, then none before it has read them all."""

    def evil(line: RecordingTransport, number: int) -> None:
        for package in line.packages_from():
            if package is line.packages[0]:
                line.send(b"3:Kok,")
            elif len(line.packages) == count and package is line.packages[-1]:
                line.send(b"20001:K" + b"y" * 20_000 + b"," + b"3:Kok," * (count - 2))

    return evil


@pytest.mark.parametrize(
    ("texts", "flags"),
    [
        pytest.param(SMALL, WIDE, id="36-MB-of-8-KB-wide"),
        pytest.param(SMALL, (), id="36-MB-of-8-KB"),
        pytest.param(SMALL[:1_000], ("--window", "3"), id="8-MB-of-8-KB-three"),
        pytest.param(LARGE, WIDE, id="40-of-2-MB-wide"),
        pytest.param(LARGE, (), id="40-of-2-MB"),
        pytest.param(LARGE, ("--window", "3"), id="40-of-2-MB-three"),
    ],
)
def test_a_server_that_reads_nothing_while_it_writes(
    tmp_path: Path, texts: Sequence[bytes], flags: tuple[str, ...]
) -> None:
    """A client that did not read while it writes would hang here for ever."""
    made = stock(tmp_path / "m", *texts)
    ran, server = forward(made, writes_first, *flags)
    assert ran.code == 0, ran.stderr
    assert not made.new
    assert len(server.lines) == 1


@pytest.mark.parametrize("texts", [SMALL, LARGE], ids=["36-MB-of-8-KB", "40-of-2-MB"])
def test_a_server_that_writes_nothing_before_it_has_read_all(
    tmp_path: Path, texts: Sequence[bytes]
) -> None:
    """A client that waited for answers within a wide window would hang here for ever."""
    made = stock(tmp_path / "m", *texts)
    ran, server = forward(made, reads_first(len(texts)), *WIDE)
    assert ran.code == 0, ran.stderr
    assert not made.new
    assert len(server.lines) == 1


def test_a_server_that_answers_when_there_is_nothing_more_to_read(tmp_path: Path) -> None:
    """The real ones do this; whatever the window, somebody must always make the next step."""
    made = stock(tmp_path / "m", *SMALL[:1_500], *LARGE[:10])
    for flags in (WIDE, (), ("--window", "2,1")):
        again = stock(tmp_path / "-".join(("n", *flags)), *SMALL[:500], *LARGE[:5])
        ran, server = forward(again, writes_by_the_byte, *flags)
        assert ran.code == 0, ran.stderr
        assert len(server.lines) == 1
    ran, _ = forward(made, writes_by_the_byte)
    assert ran.code == 0, ran.stderr


def test_more_large_messages_in_flight_than_files_may_be_open(tmp_path: Path) -> None:
    """Each streamed message keeps a file open; a wide window must not run out of them."""
    made = stock(tmp_path / "m", *(b"%d\n" % i + b"x" * (1 << 20) for i in range(60)))
    few_files = ["sh", "-c", 'ulimit -n 40; exec "$@"', "sh", *command(), *WIDE]
    with evil_server(reads_first(60)) as server:
        done = subprocess.run(
            [*few_files, made.maildir, server.address, "--response-timeout", "20"],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    judge(made, server, Run(done.returncode, [], done.stderr))
    assert done.returncode == 0, done.stderr
    assert len(server.lines) == 1
