"""The benchmark of many routes in one process: what an administrator waits for, and what it costs.

Each figure is held against its limit; what is returned for each is the measured value and the
limit. The server is in this process, as in `bench_watch`.
"""

import os
import random
import signal
import socket
import subprocess
import time
from pathlib import Path
from statistics import quantiles

from bench_harness import BenchError
from bench_maildir import empty_maildir
from bench_watch import Receiver, deliver

#: The soft limit of descriptors that Debian gives a user's processes.
SOFT_LIMIT = 1_024
DEADLINE_S = 300.0
EACH = 10
FRESH = 200

#: A figure: name, unit, measured, limit.
Figure = tuple[str, str, float, float]


class Notified:
    """What a daemon tells systemd."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self.path)
        self._socket.settimeout(DEADLINE_S)

    def wait_for_ready(self) -> None:
        """Wait for READY=1."""
        while b"READY=1" not in self._socket.recv(1 << 16):
            pass

    def close(self) -> None:
        """Listen no more."""
        self._socket.close()


def measure(
    forwarder: list[str], env: dict[str, str], place: Path, count: int, log: Path, idle_s: float
) -> tuple[list[Figure], list[float]]:
    """Return the figures of so many routes, and the seconds that each fresh message took."""
    maildirs = [empty_maildir(place / f"m{number}") for number in range(count)]
    receiver = Receiver()
    config = place / "config.toml"
    server = f"127.0.0.1:{receiver.port}"
    config.write_text(
        "".join(f'[[route]]\nmaildir = "{m}"\nserver = "{server}"\n' for m in maildirs)
    )
    notified = Notified(place / "notify")
    limited = ["prlimit", f"--nofile={SOFT_LIMIT}:", *forwarder, "-q", "--config", str(config)]
    with log.open("wb") as output:
        began = time.perf_counter()
        daemon = subprocess.Popen(
            limited,
            env={**env, "NOTIFY_SOCKET": notified.path},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    try:
        notified.wait_for_ready()
        figures = [("ready", "s", time.perf_counter() - began, 5.0 * max(1.0, count / 1_000))]
        _deliver_all(maildirs, receiver)
        figures.append(("idle", "% of a core", _idle(daemon.pid, idle_s), 1.0))
        fresh = [_one(maildirs, receiver, number) for number in range(FRESH)]
        figures.append(("fresh p99", "ms", quantiles(fresh, n=100)[98] * 1_000, 50.0))
        figures += _size(daemon.pid, count)
        began = time.perf_counter()
        daemon.send_signal(signal.SIGHUP)
        notified.wait_for_ready()
        figures.append(("HUP", "s", time.perf_counter() - began, 3.0))
        began = time.perf_counter()
        daemon.terminate()
        if daemon.wait(DEADLINE_S) != 0:
            raise BenchError(f"the daemon ended with {daemon.returncode}")
        figures.append(("TERM", "s", time.perf_counter() - began, 3.0))
        return figures, fresh
    finally:
        daemon.kill()
        daemon.wait()
        notified.close()


def _deliver_all(maildirs: list[Path], receiver: Receiver) -> None:
    for number in range(EACH):
        for maildir in maildirs:
            deliver(maildir, number)
    for _ in range(EACH * len(maildirs)):
        receiver.wait()
    give_up = time.perf_counter() + DEADLINE_S
    while any(os.listdir(maildir / "new") for maildir in maildirs):
        if time.perf_counter() > give_up:
            raise BenchError("something was delivered and not removed")
        time.sleep(0.1)


def _one(maildirs: list[Path], receiver: Receiver, number: int) -> float:
    """Return the seconds from a rename into one of the maildirs until the server has it."""
    began = deliver(random.choice(maildirs), EACH + number)
    return receiver.wait() - began


def _idle(pid: int, for_s: float) -> float:
    """Return the share of a core that it takes, in per cent, after the connections are closed."""
    time.sleep(for_s)
    before = _cpu_s(pid)
    time.sleep(for_s)
    return (_cpu_s(pid) - before) / for_s * 100


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _size(pid: int, count: int) -> list[Figure]:
    descriptors, threads = (len(os.listdir(f"/proc/{pid}/{what}")) for what in ("fd", "task"))
    return [
        ("descriptors a route", "", descriptors / count, 9.0),
        ("threads a route", "", threads / count, 2.0),
    ]
