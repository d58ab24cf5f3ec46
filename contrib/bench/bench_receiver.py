"""The benchmarks of the receiver, beside mailfront; and of many clients in one event loop.

mailfront runs under tcpserver with its backend queuedir, which fsyncs each message and its
directory as the receiver does (Debian: mailfront, ucspi-tcp; without them these are skipped). What
is measured is the forwarders' time, from the start of the first to the end of the last.
"""

import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from statistics import median

from bench_cases import Result, Setting
from bench_harness import HERE, TIMEOUT_S, BenchError, SkippedError, sink
from bench_maildir import stock

MESSAGES = 5_000
LOOP_CLIENTS = 50

#: Gives a place for new mail, and the port that it has to be sent to.
Server = Callable[[Path], contextlib.AbstractContextManager[int]]


@contextlib.contextmanager
def receiver(place: Path) -> Iterator[int]:
    """`qmtpmaildir` of this interpreter."""
    argv = [sys.executable, "-m", "maildirqmtp.cli.qmtpmaildir", "--listen", "127.0.0.1:0"]
    env = {**os.environ, "PYTHONPATH": str(HERE.parent.parent)}
    with subprocess.Popen([*argv, str(place)], stderr=subprocess.PIPE, text=True, env=env) as run:
        assert run.stderr is not None
        try:
            found = re.search(r":(\d+)$", run.stderr.readline().strip())
            if found is None:
                raise BenchError("qmtpmaildir does not say where it listens")
            yield int(found[1])
        finally:
            run.terminate()


@contextlib.contextmanager
def mailfront(place: Path) -> Iterator[int]:
    """mailfront with queuedir, a process for each connection."""
    tcpserver, program = shutil.which("tcpserver"), shutil.which("mailfront", path=_path())
    if tcpserver is None or program is None:
        raise SkippedError("no tcpserver and mailfront (Debian: ucspi-tcp, mailfront)")
    for name in ("tmp", "new"):
        (place / name).mkdir(parents=True)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    argv = [tcpserver, "-HRl0", "127.0.0.1", str(port), program, "qmtp", "queuedir", "accept"]
    env = {**os.environ, "QUEUEDIR": str(place)}
    with subprocess.Popen(argv, env=env, stderr=subprocess.DEVNULL) as run:
        try:
            _wait_for(port)
            yield port
        finally:
            run.terminate()


def _path() -> str:
    return f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"


def _wait_for(port: int) -> None:
    until_s = time.monotonic() + 10
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except OSError:
            if time.monotonic() > until_s:
                raise BenchError("mailfront does not listen") from None
            time.sleep(0.02)
        else:
            return


def forwarders(setting: Setting, server: Server, number: int, place: Path) -> float:
    """Send all messages by so many forwarders at once to a server on disk; seconds."""
    each, memory = setting.size(MESSAGES, 200) // number, setting.memory()
    boxes = [stock(memory / f"box{n}", each) for n in range(number)]
    os.sync()
    with server(place) as port:
        began_s = time.perf_counter()
        runs = [
            subprocess.Popen(
                [*setting.forwarder, "-q", str(box.path), f"127.0.0.1:{port}"], env=setting.env
            )
            for box in boxes
        ]
        codes = [run.wait(TIMEOUT_S) for run in runs]
        wall_s = time.perf_counter() - began_s
    stored = len(os.listdir(place / "new"))
    if any(codes) or stored != each * number:
        raise BenchError(f"exit codes {codes}, {stored} of {each * number} messages stored")
    return wall_s


def beside_mailfront(setting: Setting, name: str, number: int) -> Result:
    """5,000 messages of 2 KB, each durable before its answer."""
    # Nothing is removed between the runs: some file systems take their time afterwards.
    disk, numbers = setting.disk(), count(1)
    both = [
        [
            forwarders(setting, server, number, disk / str(next(numbers)))
            for server in (receiver, mailfront)
        ]
        for _ in range(setting.size(5, 1))
    ]
    ours, theirs = [a for a, _ in both], [b for _, b in both]
    figure = median(ours) / median(theirs)
    return Result(name, "s", ours, theirs, figure, "x", 0.8)


def one(setting: Setting) -> Result:
    """One forwarder, one connection."""
    return beside_mailfront(setting, "receiver", 1)


def eight(setting: Setting) -> Result:
    """Eight forwarders at once."""
    return beside_mailfront(setting, "receiver-8", 8)


def loop(setting: Setting) -> Result:
    """50 AsyncQMTPClients at once: the longest that anything else in their loop waits."""
    packages = setting.size(400, 20)
    longest: dict[int, list[float]] = {}
    for clients in (LOOP_CLIENTS, 1):
        argv = [sys.executable, str(HERE / "loop_program.py"), str(clients), str(packages)]
        longest[clients] = []
        for _ in range(setting.size(5, 1)):
            with sink(setting.tools.sink) as server:
                done = subprocess.run(
                    [*argv, str(server.port)],
                    env=setting.env,
                    stdout=subprocess.PIPE,
                    check=True,
                    timeout=TIMEOUT_S,
                )
            longest[clients].append(float(done.stdout))
    many, alone = longest[LOOP_CLIENTS], longest[1]
    notes = ["longest block of the loop, in processor time; the reference is one client"]
    return Result("loop", "ms", many, alone, median(many), " ms", 20.0, notes=notes)


CASES: dict[str, Callable[[Setting], Result]] = {
    "receiver": one,
    "receiver-8": eight,
    "loop": loop,
}
