"""The benchmarks of `qmtp-sendmail`: a cron job's mail, and 200 at once, into a Unix socket."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bench_cases import Result, Setting, in_turns, ratio, walls
from bench_harness import TIMEOUT_S, BenchError, Run, timed

CRON_MS = 150.0
AT_ONCE = 200
MESSAGE = b"From: root (Cron Daemon)\nTo: root\nSubject: Cron\n\nall is well\n"


def program(name: str) -> list[str]:
    """The console script next to the interpreter, or else its module."""
    script = Path(sys.executable).with_name(name)
    module = f"maildirqmtp.cli.{name.replace('-', '_')}"
    return [str(script)] if script.exists() else [sys.executable, "-m", module]


@contextmanager
def receiver(setting: Setting) -> Iterator[tuple[dict[str, str], Path]]:
    """A receiver on a Unix socket, with a home that is configured for it, and its maildir."""
    place = setting.disk()
    path, config = place / "submit.sock", place / ".config" / "maildirqmtp.toml"
    config.parent.mkdir()
    config.write_text(f'[submission]\nsocket = "{path}"\ndomain = "example.org"\n')
    argv = [*program("qmtpmaildir"), "-q", "--listen", f"unix:{path}", str(place / "Maildir")]
    with subprocess.Popen(argv, env=setting.env) as process:
        try:
            give_up = time.monotonic() + TIMEOUT_S
            while not path.exists():
                if process.poll() is not None or time.monotonic() > give_up:
                    raise BenchError("the receiver does not listen")
                time.sleep(0.01)
            yield {**setting.env, "HOME": str(place)}, place / "Maildir" / "new"
        finally:
            process.terminate()


def cron(setting: Setting) -> Result:
    """One mail, as cron hands it over, until it is on disk; against 150 ms."""
    pairs = setting.size(25, 3)
    words = ["-i", "-FCronDaemon", "-B8BITMIME", "-oem", "root"]
    given = setting.scratch / "mail"
    given.write_bytes(MESSAGE)
    # `timed` gives no input; a shell would be one more process than cron has.
    opener = "import os, sys; os.dup2(os.open(sys.argv[1], os.O_RDONLY), 0)"
    with receiver(setting) as (env, new):
        argv = [sys.executable, "-c", f"{opener}; os.execv(sys.argv[2], sys.argv[2:])", str(given)]
        a, b = in_turns(
            pairs,
            lambda: timed([*argv, *program("qmtp-sendmail"), *words], env, setting.log),
            lambda: timed([*argv, sys.executable, "-c", "pass"], env, setting.log),
        )
        check(new, pairs)
    notes = ["both with the start of an interpreter that opens the input"]
    took_ms = sorted(walls(a))[pairs // 2] * 1000
    return Result("submit", "s", walls(a), walls(b), took_ms, " ms", CRON_MS, notes=notes)


def many(setting: Setting) -> Result:
    """200 at once, none lost, against as many bare interpreters."""
    count, pairs = setting.size(AT_ONCE, 10), setting.size(3, 1)
    with receiver(setting) as (env, new):
        words = ["-i", "a@example.net"]
        a, b = in_turns(
            pairs,
            lambda: at_once([*program("qmtp-sendmail"), *words], env, count),
            lambda: at_once([sys.executable, "-c", "pass"], env, count),
        )
        check(new, count * pairs)
    notes = [f"{count / sorted(walls(a))[pairs // 2]:.0f} mails a second"]
    return Result(
        "submit-many", "s", walls(a), walls(b), ratio(walls(a), walls(b)), "x", 8.0, notes=notes
    )


def at_once(argv: list[str], env: dict[str, str], count: int) -> Run:
    """Start so many processes, and wait for all."""
    start = time.perf_counter()
    started = [subprocess.Popen(argv, env=env, stdin=subprocess.DEVNULL) for _ in range(count)]
    codes = {process.wait(TIMEOUT_S) for process in started}
    if codes != {0}:
        raise BenchError(f"{argv[0]}: exit codes {sorted(codes)}")
    return Run(time.perf_counter() - start, 0, 0)


def check(new: Path, count: int) -> None:
    """What was said to be taken is there."""
    found = len(list(new.iterdir()))
    if found != count:
        raise BenchError(f"{count} mails were handed over, and {found} are there")


CASES: dict[str, Callable[[Setting], Result]] = {"submit": cron, "submit-many": many}
