"""What the library needs in memory: measured on a program of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from maildirqmtp.qmtp.protocol import package_head, package_tail
from tests.certificates import Authority, over_tls
from tests.helpers import Peer, serving

#: Bytes of the large message; a file with a hole, which costs no disk.
SIZE = 150_000_000
#: Bytes that a program may have at most, interpreter and all; it is some 20 MB in fact.
PEAK = 60_000_000

PROGRAM = """
import sys
from maildirqmtp import Package, QMTPClient, Tls
path, server, ca = sys.argv[1:]
with QMTPClient(server, tls=Tls(ca) if ca else None) as client:
    def packages():
        yield Package("s@x", "r@y", b"first")
        {packages}
    assert all(result.accepted for result in client.send_many(packages()))
# Not getrusage: that counts what the parent had when it forked.
print(*[line for line in open("/proc/self/status") if line.startswith("VmHWM:")])
"""

LARGE = "yield Package('s@x', 'r@y', path)"
MANY = "for n in range(40_000): yield Package('s@x', 'r@y', b'x' * 2_000)"


def length(text: int) -> int:
    """Return the length in bytes of a package with so much text."""
    return len(package_head(text)) + text + len(package_tail(b"s@x", [b"r@y"]))


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "TLS"])
@pytest.mark.parametrize(
    ("packages", "lengths"),
    [(LARGE, [5, SIZE]), (MANY, [5] + [2_000] * 40_000)],
    ids=["one large file", "many small messages"],
)
def test_memory_is_bounded(tmp_path: Path, packages: str, lengths: list[int], tls: bool) -> None:
    """A program that sends 150 MB must not become 150 MB larger, in one message or in many."""
    path = tmp_path / "message"
    with path.open("wb") as file:
        file.truncate(SIZE)
    ends = [length(text) for text in lengths]

    def script(peer: Peer) -> None:
        # A server that forgets at once: this process keeps nothing either.
        left = 0
        for end in ends:
            left += end
            while left > 0:
                data = peer.socket.recv(1 << 20)
                if not data:
                    return
                left -= len(data)
            peer.respond(b"Kok")

    authority = Authority(tmp_path)
    secured = over_tls(authority.issue("127.0.0.1").context(), script) if tls else script
    with serving(secured) as server:
        code = PROGRAM.format(packages=packages)
        where = ("qmtps://" if tls else "") + server.address
        done = subprocess.run(
            [sys.executable, "-c", code, str(path), where, authority.file if tls else ""],
            capture_output=True,
            text=True,
            check=False,
            timeout=100,
        )
    assert done.returncode == 0, done.stderr
    name, peak, unit = done.stdout.split()
    assert (name, unit) == ("VmHWM:", "kB")
    assert int(peak) * 1024 < PEAK
