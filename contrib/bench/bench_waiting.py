"""The benchmark of what waits: the daemon's memory for each message that its server defers."""

import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from bench_cases import Result, Setting
from bench_harness import BenchError, sink
from bench_maildir import MESSAGE_BYTES, empty_maildir, text, trace_lines

WAITING = 500_000
FEW = 50_000
#: Seconds in which at least one scan is made when all are deferred (`--rescan` is 30 s).
SETTLE_S = 40.0
DEADLINE_S = 1_800.0
MOST_KB = 0.25


def linked_stock(path: Path, count: int) -> Path:
    """Make a maildir of so many messages that are one file: the daemon knows them by their names.

    Files of their own would take the memory of 2 GB of tmpfs.
    """
    root = empty_maildir(path)
    top = trace_lines(0)
    (root / "tmp" / "only").write_bytes(top + text(MESSAGE_BYTES - len(top), 0))
    first_s = int(time.time()) - count // 1000 - 1
    new = os.open(root / "new", os.O_RDONLY | os.O_DIRECTORY)
    try:
        for number in range(count):
            name = f"{first_s + number // 1000}.M{number:06d}P4711Q{number}.bench.example.org"
            os.link(root / "tmp" / "only", name, dst_dir_fd=new)
    finally:
        os.close(new)
    return root


def memory_kib(pid: int, which: str) -> int:
    """What /proc says of a process's memory: `VmRSS` now, `VmHWM` at its peak."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{which}:"):
            return int(line.split()[1])
    raise BenchError(f"/proc/{pid}/status has no {which}")


def held(setting: Setting, count: int) -> tuple[int, int]:
    """The memory of a daemon with so many messages that wait, in KiB: now, and at its peak."""
    box = linked_stock(setting.memory() / "box", count)
    status = box / ".maildirqmtp-status.json"
    with sink(setting.tools.sink, "Z") as server, setting.log.open("wb") as output:
        argv = ["-q", "--watch", str(box), f"127.0.0.1:{server.port}"]
        daemon = subprocess.Popen(
            [*setting.forwarder, *argv], env=setting.env, stdout=output, stderr=output
        )
        try:
            wait_for(lambda: counted(status) >= count, f"{count} to be deferred")
            time.sleep(setting.size(1, 0) * SETTLE_S)
            return memory_kib(daemon.pid, "VmRSS"), memory_kib(daemon.pid, "VmHWM")
        finally:
            daemon.terminate()
            daemon.wait()


def counted(status: Path) -> int:
    """How many the daemon says are deferred."""
    return int(json.loads(status.read_text())["counters"]["deferred"]) if status.exists() else 0


def wait_for(happened: Callable[[], bool], what: str) -> None:
    """Wait until something has happened."""
    give_up = time.monotonic() + DEADLINE_S
    while not happened():
        if time.monotonic() > give_up:
            raise BenchError(f"waited {DEADLINE_S:g} s for {what}")
        time.sleep(0.2)


def waiting(setting: Setting) -> Result:
    """500,000 messages that wait, against 50,000: memory for each more of them."""
    few, many = setting.size(FEW, 500), setting.size(WAITING, 3_000)
    (few_kib, _), (many_kib, peak_kib) = held(setting, few), held(setting, many)
    each_kb = (many_kib - few_kib) * 1.024 / (many - few)
    notes = [f"peak {peak_kib * 1024 / 1e6:.0f} MB, {few_kib * 1024 / 1e6:.0f} MB with {few}"]
    return Result(
        "waiting", "kB", [each_kb], [MOST_KB], each_kb, " kB/message", MOST_KB, notes=notes
    )


CASES: dict[str, Callable[[Setting], Result]] = {"waiting": waiting}
