"""The benchmarks beside serialmail 0.75: `maildirserial`, `tcpclient` and `serialqmtp`.

Its programs are not ours to ship: the environment's SERIALMAIL names the folder of `maildirserial`
and `serialqmtp`, built with -O2, and `tcpclient` is on the PATH. Without them these are skipped.
"""

import os
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from bench_cases import (
    ROUND_TRIP_S,
    TEMPORARY,
    Result,
    Send,
    Setting,
    in_turns,
    once,
    ours,
    ours_deferred,
    ratio,
    walls,
)
from bench_harness import BenchError, Run, SkippedError, delay_link, timed
from bench_maildir import Stock, large_stock, stock

LIFETIME_S = 1_209_600
AGE_S = 10
STATE_NAME = ".maildirqmtp-state.json"


def aged(box: Stock) -> Stock:
    """Make the messages older than this second: serialmail leaves younger ones for the next run."""
    then_s = time.time() - AGE_S
    with os.scandir(box.path / "new") as entries:
        for entry in entries:
            os.utime(entry.path, (then_s, then_s))
    return box


def serialmail(expected_exit: int = 0) -> Send:
    """The three programs as maildirqmtp.sh of serialmail starts them, without a prefix."""
    folder = os.environ.get("SERIALMAIL")
    programs = [Path(folder or "", name) for name in ("maildirserial", "serialqmtp")]
    tcpclient = shutil.which("tcpclient")
    if not folder or not all(program.is_file() for program in programs) or tcpclient is None:
        raise SkippedError("SERIALMAIL names no folder with maildirserial and serialqmtp")
    maildirserial, serialqmtp = map(str, programs)

    def send(setting: Setting, box: Stock, port: int) -> Run:
        link = setting.link
        client = [tcpclient, "-RHl0", "--", link.host, str(port), serialqmtp, ""]
        words = [maildirserial, "-b", "-t", str(LIFETIME_S), "--", str(box.path), "", *client]
        return timed([*link.near, *words], setting.env, setting.log, expected_exit)

    return send


def acquainted(setting: Setting, send: Send, box: Path) -> bytes:
    """The state file of a maildir of which one message went this way: it knows the server."""
    state = b""

    def and_keep_the_state(setting: Setting, box: Stock, port: int) -> Run:
        nonlocal state
        run = send(setting, box, port)
        state = (box.path / STATE_NAME).read_bytes()
        return run

    once(setting, stock(box, 1), and_keep_the_state)
    if b"proven" not in state:
        raise BenchError(f"the server is not remembered: {state!r}")
    return state


def beside(
    setting: Setting,
    name: str,
    make: Callable[[], Stock],
    pair: tuple[Send, Send],
    target: float,
    *,
    answer: str = "K",
    left: int = 0,
    sync: bool = False,
) -> Result:
    """Ours and serialmail in turns, the same messages and the same server."""
    mine, theirs = pair
    a, b = in_turns(
        setting.size(5, 1),
        lambda: once(setting, aged(make()), mine, answer=answer, left=left, sync=sync),
        lambda: once(setting, aged(make()), theirs, answer=answer, left=left, sync=sync),
    )
    figure = ratio(walls(a), walls(b))
    return Result(name, "s", walls(a), walls(b), figure, "x", target)


def tmpfs(setting: Setting) -> Result:
    """20,000 messages of 2 KB on tmpfs."""
    box, count = setting.memory() / "box", setting.size(20_000, 500)
    return beside(setting, "s-tmpfs", lambda: stock(box, count), (ours, serialmail()), 1.35)


def disk(setting: Setting) -> Result:
    """20,000 messages of 2 KB on disk, after sync."""
    box, count = setting.disk() / "box", setting.size(20_000, 500)
    pair = (ours, serialmail())
    return beside(setting, "s-disk", lambda: stock(box, count), pair, 1.1, sync=True)


def latency(setting: Setting, name: str, count: int, target: float) -> Result:
    """So many messages at a round trip of 100 ms, nothing remembered."""
    box, pair = setting.memory() / "box", (ours, serialmail())
    with delay_link(ROUND_TRIP_S / 2 * 1000) as link:
        far = replace(setting, link=link)
        return beside(far, name, lambda: stock(box, count), pair, target)


def latency_known(setting: Setting) -> Result:
    """1,000 messages at a round trip of 100 ms, to a server that is remembered."""
    box, count, pair = setting.memory() / "box", setting.size(1_000, 50), (ours, serialmail())
    with delay_link(ROUND_TRIP_S / 2 * 1000) as link:
        far = replace(setting, link=link)
        state = acquainted(far, ours, box)

        def make() -> Stock:
            made = stock(box, count)
            (box / STATE_NAME).write_bytes(state)
            return made

        return beside(far, "s-latency", make, pair, 1.2)


def latency_many(setting: Setting) -> Result:
    """1,000 messages at a round trip of 100 ms, nothing remembered."""
    return latency(setting, "s-latency-first", setting.size(1_000, 50), 1.62)


def latency_few(setting: Setting) -> Result:
    """10 messages at a round trip of 100 ms."""
    return latency(setting, "s-latency-10", 10, 1.15)


def large(setting: Setting) -> Result:
    """One message of 190 MB."""
    box, size = setting.memory() / "box", setting.size(190_000_000, 5_000_000)
    return beside(setting, "s-large", lambda: large_stock(box, size), (ours, serialmail()), 0.42)


def deferred(setting: Setting) -> Result:
    """20,000 messages that the server defers."""
    box, count = setting.memory() / "box", setting.size(20_000, 500)
    pair = (ours_deferred, serialmail(TEMPORARY))
    return beside(
        setting, "s-deferred", lambda: stock(box, count), pair, 0.14, answer="Z", left=count
    )


CASES: dict[str, Callable[[Setting], Result]] = {
    "s-tmpfs": tmpfs,
    "s-disk": disk,
    "s-latency": latency_known,
    "s-latency-first": latency_many,
    "s-latency-10": latency_few,
    "s-large": large,
    "s-deferred": deferred,
}
