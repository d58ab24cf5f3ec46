"""The documents' examples of the library run as they stand there."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from maildirqmtp.receiver.server import Server
from maildirqmtp.receiver.streams import SocketStream, Stream
from maildirqmtp.receiver.tls import TlsServer
from tests.certificates import Authority
from tests.documents import blocks, place, section
from tests.e2e import test_net_qmtp
from tests.helpers import command

#: All but the writer of sidecars, which test_sidecars.py runs.
EXAMPLES = [block for block in blocks("python") if "from maildirqmtp" in block.text]

#: What stands before an example: mail.example.org is our receiver, and so is mx, by ssh.
PROLOGUE = """
import maildirqmtp.client.client
from maildirqmtp.transport.endpoint import TcpEndpoint
real = maildirqmtp.client.client.connect
def connect(server, *more):
    if isinstance(server, TcpEndpoint):
        assert server.host == "mail.example.org" and server.port == (6209 if server.tls else 209)
        server = TcpEndpoint("localhost", {tls_port} if server.tls else {port}, server.tls)
    return real(server, *more)
maildirqmtp.client.client.connect = connect
"""

SSH = """#!/bin/sh
test "$1" = mx || exit 255
shift
PATH={path}:$PATH exec sh -c "$*"
"""


@contextlib.contextmanager
def served(maildir: Path, wrap: Callable[[socket.socket], Stream] = SocketStream) -> Iterator[int]:
    """Run our receiver on a port."""
    with Server(maildir, listen=("127.0.0.1", 0), wrap=wrap) as server:
        thread = threading.Thread(target=server.serve)
        thread.start()
        try:
            assert server.address is not None
            yield server.address[1]
        finally:
            server.stop()
            thread.join()


@pytest.fixture
def ports(tmp_path: Path) -> Iterator[tuple[int, int]]:
    """Run our receiver without TLS and with it."""
    authority = Authority(tmp_path, "our-ca")
    own = authority.issue("localhost")
    with (
        served(tmp_path / "Maildir") as port,
        served(tmp_path / "Maildir", TlsServer(own.cert, own.key).wrap) as tls_port,
    ):
        yield port, tls_port


@pytest.mark.parametrize("example", [b.text for b in EXAMPLES], ids=[place(b) for b in EXAMPLES])
def test_example(
    example: str, ports: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An example that does not run is the first thing that a new user tries."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "ssh").write_text(SSH.format(path=Path(command("qmtpmaildir")[0]).parent))
    (tmp_path / "bin" / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    (tmp_path / "report.txt").write_bytes(b"All is well.\n")
    (tmp_path / "letter.eml").write_bytes(b"Subject: x\r\n\r\nHi\r\n")
    code = PROLOGUE.format(port=ports[0], tls_port=ports[1]) + example
    done = subprocess.run(
        [sys.executable, "-bb", "-W", "error", "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert bool(done.stderr) is ("logging" in example), done.stderr
    if "QMTPClient(" in example:
        assert list((tmp_path / "Maildir" / "new").iterdir())


def test_every_example_runs_somewhere() -> None:
    """Here, or, the writer of sidecars, beside the tests of these."""
    (writer,) = set(blocks("python")) - set(EXAMPLES)
    assert writer.text.startswith("# A writer of messages with sidecars")
    assert len(EXAMPLES) >= 8


def test_the_table_has_a_line_for_each_row_of_the_test() -> None:
    """What is promised is tried, and what is tried is told."""
    table = section("Net::QMTP and this")
    lines = [line for line in table.splitlines() if line.startswith("| ")][2:]
    todo = [line for line in lines if line.startswith("| TODO: ")]
    rows = [row.__name__ for row in test_net_qmtp.ROWS]
    assert len(todo) == sum(name.startswith("todo_") for name in rows)
    names = "new Port Debug DeferConnect ConnectTimeout sender recipient server message_from_file"
    for name in [*names.split(), "message(", "encoding(", "send()", "new_envelope", "new_message"]:
        assert any(name in line for line in lines), name
    for name in ("disconnect", "reconnect", "destructor"):
        assert any(name in line for line in lines), name
