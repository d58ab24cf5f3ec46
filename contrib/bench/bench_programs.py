"""The benchmarks of the library, and of several connections; made like those of `bench_cases`."""

import shlex
import sys
from collections.abc import Callable
from functools import partial

from bench_cases import Result, Send, Setting, in_turns, once, ours, ratio, walls
from bench_harness import HERE, Run, delay_proxy, slow_server, timed
from bench_maildir import Stock, stock

CLIENT_ROUND_TRIP_S = 0.02
ANSWER_MS = 20.0
CONNECTIONS = 8


def library(how: str, one_way_s: float | None = None) -> Send:
    """A program that sends by the library; through the delay proxy, where there is a delay."""

    def send(setting: Setting, box: Stock, port: int) -> Run:
        argv = [sys.executable, str(HERE / "client_program.py"), how, str(box.path)]
        if one_way_s is None:
            return timed([*argv, str(port)], setting.env, setting.log)
        with delay_proxy(port, one_way_s * 1000) as proxy_port:
            return timed([*argv, str(proxy_port)], setting.env, setting.log)

    return send


def sent_by_library(setting: Setting, box: Stock, how: str, one_way_s: float | None = None) -> Run:
    """Send a maildir's messages by the library, which removes none of them."""
    send = library(how, one_way_s)
    return once(setting, box, send, left=box.count, whole_files=True)


def client(setting: Setting) -> Result:
    """2,000 packages by send_many against one send after the other, both at 20 ms round trip."""
    count, pairs = setting.size(2_000, 50), setting.size(3, 1)
    place, one_way_s = setting.memory(), CLIENT_ROUND_TRIP_S / 2
    a, b = in_turns(
        pairs,
        lambda: sent_by_library(setting, stock(place / "box", count), "many", one_way_s),
        lambda: sent_by_library(setting, stock(place / "box", count), "one", one_way_s),
    )
    percent = ratio(walls(a), walls(b)) * 100
    notes = ["of the time of one send after the other; whole processes, start-up included"]
    return Result("client", "s", walls(a), walls(b), percent, " %", 1.0, notes=notes)


def client_many(setting: Setting) -> Result:
    """2,000 packages by send_many against the forwarder with the same messages, on tmpfs."""
    count, pairs = setting.size(2_000, 500), setting.size(9, 1)
    place = setting.memory()
    a, b = in_turns(
        pairs,
        lambda: sent_by_library(setting, stock(place / "box", count), "many"),
        lambda: once(setting, stock(place / "box", count), ours),
    )
    return Result("client-many", "s", walls(a), walls(b), ratio(walls(a), walls(b)), "x", 1.5)


def over(connections: int) -> Send:
    """The forwarder, with so many connections."""

    def send(setting: Setting, box: Stock, port: int) -> Run:
        argv = [*setting.forwarder, "--connections", str(connections)]
        return timed([*argv, str(box.path), f"127.0.0.1:{port}"], setting.env, setting.log)

    return send


def connections(setting: Setting) -> Result:
    """400 messages to a server that takes 20 ms for each answer: eight connections against one."""
    count, pairs = setting.size(400, 24), setting.size(3, 1)
    place, server_of = setting.memory(), partial(slow_server, ANSWER_MS)

    def run(number: int) -> Run:
        return once(setting, stock(place / "box", count), over(number), server_of=server_of)

    a, b = in_turns(pairs, lambda: run(CONNECTIONS), lambda: run(1))
    notes = [f"{CONNECTIONS} connections against 1; whole processes, start-up included"]
    figure = ratio(walls(a), walls(b))
    return Result("connections", "s", walls(a), walls(b), figure, "x", 1 / 6, notes=notes)


def in_shards(setting: Setting, box: Stock, port: int) -> Run:
    """Two processes at the same time, each with its half of the maildir."""
    parts = [
        shlex.join([*setting.forwarder, "--shard", f"{k}/2", str(box.path), f"127.0.0.1:{port}"])
        for k in range(2)
    ]
    script = f"{parts[0]} & first=$!; {parts[1]} || exit; wait $first"
    return timed(["sh", "-c", script], setting.env, setting.log)


def shards(setting: Setting) -> Result:
    """20,000 messages of 2 KB on tmpfs by two processes with --shard, against one."""
    count, pairs = setting.size(20_000, 500), setting.size(5, 1)
    place = setting.memory()
    a, b = in_turns(
        pairs,
        lambda: once(setting, stock(place / "box", count), in_shards),
        lambda: once(setting, stock(place / "box", count), ours),
    )
    notes = ["the server takes its share of the cores"]
    figure = ratio(walls(a), walls(b))
    return Result("shards", "s", walls(a), walls(b), figure, "x", 1.0, notes=notes)


CASES: dict[str, Callable[[Setting], Result]] = {
    "client": client,
    "client-many": client_many,
    "connections": connections,
    "shards": shards,
}
