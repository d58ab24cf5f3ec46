"""A long run removes messages by a second process: seen from outside it is one run."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from pathlib import Path

import pytest

from tests.helpers import (
    Package,
    add_message,
    answer_all,
    log_lines,
    names,
    run,
    runs,
    serving,
    start,
    wait_until,
)

MESSAGES = 1_100

#: A command that connects to a server; it notes that its input has ended.
BRIDGE = """
import socket, sys, threading
with socket.create_connection((sys.argv[1], int(sys.argv[2]))) as sock:
    def back():
        while data := sock.recv(65536):
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
    threading.Thread(target=back, daemon=True).start()
    while data := sys.stdin.buffer.raw.read(65536):
        sock.sendall(data)
open(sys.argv[0] + ".ended", "w").close()
"""

two_cores = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="this machine has one core")


def fill(maildir: Path) -> None:
    """Put so many messages into new/ that a second process is of use."""
    for number in range(MESSAGES):
        add_message(maildir, f"{number}.a", b"text %d\n" % number)
        os.utime(maildir / "new" / f"{number}.a", (1_000_000, 1_000_000))


def children(process: int) -> list[int]:
    """Return the IDs of a process's children."""
    return [int(n) for n in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


@two_cores
@pytest.mark.usefixtures("hang_up")
@pytest.mark.parametrize("number", [None, signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_it_ends_with_the_run(maildir: Path, number: int | None) -> None:
    """What is accepted is removed; a signal reaches both, as of a terminal or of systemd."""
    fill(maildir)
    found: list[int] = []

    def first(package: Package, recipient: bytes) -> bytes:
        if not found:
            wait_until(lambda: bool(pids), "the run to be started")
            found.extend(children(pids[0]))
            for process in [*pids, *found] if number is not None else ():
                os.kill(process, number or 0)
        return b"Kok"

    pids: list[int] = []
    with serving(answer_all(first)) as server, start(maildir, server.address) as process:
        pids.append(process.pid)
        _, stderr = process.communicate(timeout=60)
    assert len(found) == 1
    assert not runs(found[0])
    accepted = {package.text for package in server.packages}
    assert len(accepted) == len(server.packages) == MESSAGES - len(names(maildir / "new"))
    assert f"{len(accepted)} accepted" in log_lines(stderr)[-1]
    assert process.returncode == (0 if number is None else 111)


@two_cores
def test_a_command_sees_the_end_of_its_input(maildir: Path, tmp_path: Path) -> None:
    """With a process that keeps its pipe open, a run over ssh would wait for the time-out."""
    fill(maildir)
    with serving(answer_all(lambda package, recipient: b"Kok")) as server:
        host, port = server.address.rsplit(":", 1)
        bridge = tmp_path / "bridge.py"
        bridge.write_text(BRIDGE)
        command = shlex.join([sys.executable, str(bridge), host, port])
        result = run(maildir, f"exec:{command}")
    assert result.returncode == 0
    assert names(maildir / "new") == []
    assert (tmp_path / "bridge.py.ended").exists()
