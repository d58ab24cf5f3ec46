"""The benchmarks of what goes on from the receiver: by LMTP to a sink, and over a hop to another.

Both sides of each have the same messages of 2 KB. What is measured is the time from the start of
the program that sends until the last message has arrived.
"""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bench_cases import Result, Setting, in_turns, ratio, walls
from bench_harness import HERE, TIMEOUT_S, BenchError, Run, needs_watchdog, running, sink, timed
from bench_maildir import Stock, stock


@contextmanager
def receiver(setting: Setting, *words: str) -> Iterator[int]:
    """`qmtpmaildir` of this interpreter; its port."""
    argv = [sys.executable, "-m", "maildirqmtp.cli.qmtpmaildir", "--listen", "127.0.0.1:0", *words]
    with subprocess.Popen(argv, stderr=subprocess.PIPE, text=True, env=setting.env) as run:
        assert run.stderr is not None
        try:
            found = re.search(r":(\d+)$", run.stderr.readline().strip())
            if found is None:
                raise BenchError("qmtpmaildir does not say where it listens")
            yield int(found[1])
        finally:
            run.terminate()


@contextmanager
def lmtp_sink(count: int) -> Iterator[int]:
    """An LMTP server, which must get so many messages; its port."""
    with running([sys.executable, str(HERE / "lmtp_sink.py")]) as server:
        yield server.port
        server.process.terminate()
        said = server.process.communicate(timeout=60)[1]
        if not said.startswith(f"messages={count} "):
            raise BenchError(f"the LMTP server got {said.strip()}, expected {count} messages")


def by_qmtp(setting: Setting, box: Stock) -> Run:
    """The forwarder, to a receiver that hands on by LMTP."""
    with (
        lmtp_sink(box.count) as port,
        receiver(setting, "--deliver", f"lmtp:127.0.0.1:{port}") as where,
    ):
        run = timed(
            [*setting.forwarder, "-q", str(box.path), f"127.0.0.1:{where}"],
            setting.env,
            setting.log,
        )
    return gone(box, run)


def by_smtplib(setting: Setting, box: Stock) -> Run:
    """A script with smtplib, straight to the LMTP server."""
    argv = [sys.executable, str(HERE / "smtplib_program.py"), str(box.path)]
    with lmtp_sink(box.count) as port:
        run = timed([*argv, str(port)], setting.env, setting.log)
    return gone(box, run)


def gone(box: Stock, run: Run) -> Run:
    """The run, of a maildir that has to be empty after it."""
    box.check(0)
    shutil.rmtree(box.path)
    return run


def hand_off(setting: Setting) -> Result:
    """5,000 messages over QMTP and on by LMTP, against smtplib without QMTP between."""
    count, pairs, place = setting.size(5_000, 100), setting.size(5, 1), setting.memory()
    a, b = in_turns(
        pairs,
        lambda: by_qmtp(setting, stock(place / "box", count)),
        lambda: by_smtplib(setting, stock(place / "box", count)),
    )
    return result("hand-off", count, a, b, 1.5)


def over_a_hop(setting: Setting, box: Stock, queue: Path) -> Run:
    """The forwarder, to a queue that a second one forwards; until the queue is empty."""
    with sink(setting.tools.sink) as end, receiver(setting, "--queue", str(queue)) as where:
        argv = [*setting.forwarder, "-q", "--watch", str(queue), f"127.0.0.1:{end.port}"]
        with subprocess.Popen(argv, env=setting.env) as relay:
            try:
                run = sent(setting, box, where)
                began_s, left = time.perf_counter(), queue / "new"
                while os.listdir(left):
                    if time.perf_counter() > began_s + TIMEOUT_S:
                        raise BenchError(f"{len(os.listdir(left))} messages stay in the queue")
                    time.sleep(0.005)
                more_s = time.perf_counter() - began_s
            finally:
                relay.terminate()
        totals = end.stop()
    if (totals.packages, totals.recipients) != (box.count, box.count):
        raise BenchError(f"the far end got {totals}, expected {box.count} packages")
    return Run(run.wall_s + more_s, run.peak_kib, run.exit_code)


def sent(setting: Setting, box: Stock, port: int) -> Run:
    """The forwarder alone."""
    argv = [*setting.forwarder, "-q", str(box.path), f"127.0.0.1:{port}"]
    return gone(box, timed(argv, setting.env, setting.log))


def into_a_maildir(setting: Setting, box: Stock, there: Path) -> Run:
    """The forwarder, to a receiver that keeps the mail."""
    with receiver(setting, str(there)) as where:
        run = sent(setting, box, where)
    if (found := len(os.listdir(there / "new"))) != box.count:
        raise BenchError(f"{found} messages have arrived, expected {box.count}")
    return run


def relay(setting: Setting) -> Result:
    """5,000 messages through a relay, queue on disk, against a receiver that only keeps them."""
    needs_watchdog()
    count, pairs = setting.size(5_000, 100), setting.size(5, 1)
    memory, disk = setting.memory(), setting.disk()
    numbers = iter(range(2 * pairs))
    a, b = in_turns(
        pairs,
        lambda: over_a_hop(setting, stock(memory / "box", count), disk / str(next(numbers))),
        lambda: into_a_maildir(setting, stock(memory / "box", count), disk / str(next(numbers))),
    )
    return result("relay", count, a, b, 2.0)


def result(name: str, count: int, a: list[Run], b: list[Run], target: float) -> Result:
    """The ratio of the times, and how many messages a second that is."""
    ours, reference = walls(a), walls(b)
    each = [f"{count / sorted(times)[len(times) // 2]:,.0f}" for times in (ours, reference)]
    notes = [f"{each[0]} messages a second; the reference {each[1]}"]
    return Result(name, "s", ours, reference, ratio(ours, reference), "x", target, notes=notes)


CASES: dict[str, Callable[[Setting], Result]] = {"hand-off": hand_off, "relay": relay}
