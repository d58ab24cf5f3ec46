"""Many clients in one event loop: counted in rounds of the loop and in work, not in time."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from maildirqmtp import AsyncQMTPClient, Package, QMTPClient
from maildirqmtp.client import bounded
from maildirqmtp.client.bounded import BoundedTransport
from maildirqmtp.client.loop_share import ROUND_WORK, LoopShare
from maildirqmtp.client.session import LOOK_PACKAGES, WORK_BYTES
from tests.clients import packages
from tests.fakes import FakeTransport
from tests.helpers import DEADLINE_S, Peer, answer_all, serving

CLIENTS = 50
EACH = 100
#: What one step may do: the packages of a look, or the answers of one `receive` and its writes.
STEP = max(LOOK_PACKAGES, 1 + bounded.RECEIVE_BYTES // 12 + bounded.TURN_BYTES // WORK_BYTES)


async def watched(work: Callable[[], int], sending: asyncio.Future[Any]) -> list[int]:
    """Return how much work was done in each round of the loop, until this is done."""
    rounds: list[int] = []
    before = work()
    while not sending.done():
        await asyncio.sleep(0)
        now = work()
        rounds.append(now - before)
        before = now
    return rounds


async def _send_by_all(server: str) -> list[int]:
    """Send by many clients at once; return the work of each round of the loop."""

    async def send(client: AsyncQMTPClient) -> int:
        return len([result async for result in client.send_many(packages(EACH)) if result.accepted])

    clients = [AsyncQMTPClient(server) for _ in range(CLIENTS)]
    sending = asyncio.gather(*map(send, clients))
    rounds = await watched(lambda: sum(c._session.work_done for c in clients), sending)
    for client in clients:
        client.disconnect()
    assert await sending == [EACH] * CLIENTS
    return rounds


def test_many_clients_leave_the_loop_to_others() -> None:
    """Fifty at once kept everything else in the program waiting for half a second at a time."""

    with serving(answer_all()) as server:
        rounds = asyncio.run(asyncio.wait_for(_send_by_all(server.address), 60))
    # Of each package there is one envelope, one answer and one result.
    assert sum(rounds) >= 3 * EACH * CLIENTS
    assert max(rounds) <= ROUND_WORK + 2 * STEP
    assert len([done for done in rounds if done]) >= sum(rounds) / (ROUND_WORK + 2 * STEP)


def test_one_client_gives_way_too() -> None:
    """Packages and results that are at hand are no reason to go on without end."""

    async def main(server: str) -> list[int]:
        async with AsyncQMTPClient(server) as client:

            async def send() -> None:
                assert len([r async for r in client.send_many(packages(2_000))]) == 2_000

            sending = asyncio.ensure_future(send())
            rounds = await watched(lambda: client._session.work_done, sending)
            await sending
            return rounds

    with serving(answer_all()) as server:
        rounds = asyncio.run(asyncio.wait_for(main(server.address), 60))
    assert max(rounds) <= ROUND_WORK + 2 * STEP


def test_answers_that_come_to_all_at_once_are_shared_out() -> None:
    """After a pause of the server each client has a thousand of them to take in."""
    all_there = threading.Barrier(CLIENTS)

    def script(peer: Peer) -> None:
        peer.read_package()
        peer.respond(b"Kok")
        for _ in range(EACH - 1):
            peer.read_package()
        all_there.wait(DEADLINE_S)
        peer.respond(*[b"Kok"] * (EACH - 1))
        peer.read_package()

    with serving(script) as server:
        rounds = asyncio.run(asyncio.wait_for(_send_by_all(server.address), 60))
    assert max(rounds) <= ROUND_WORK + 2 * STEP


def test_a_server_that_is_asked_for_each_recipient_is_asked_bit_by_bit() -> None:
    """Hundreds of packages come of one, and all are at hand at once."""
    puts = [0]

    def script(peer: Peer) -> None:
        while peer.read_package() is not None:
            peer.respond(b"Kok")

    async def main(server: str) -> list[int]:
        async with AsyncQMTPClient(server, grace_time=0.05) as client:
            put = client._session._put

            def counted(pipeline: Any) -> None:
                puts[0] += 1
                put(pipeline)

            client._session._put = counted  # type: ignore[method-assign]
            recipients = [f"r{number}@y" for number in range(600)]
            sending = asyncio.ensure_future(client.send("s@x", recipients, b"x"))
            rounds = await watched(lambda: puts[0], sending)
            assert len((await sending).accepted) == 600
            return rounds

    with serving(script) as server:
        rounds = asyncio.run(asyncio.wait_for(main(server.address), 60))
    assert sum(rounds) >= 600
    assert max(rounds) <= LOOK_PACKAGES + 1


def test_each_that_waits_gets_its_turn_in_order() -> None:
    """One busy client must not keep another from sending at all."""

    async def main() -> list[int]:
        share = LoopShare.of(asyncio.get_running_loop())
        turns: list[int] = []

        async def client(number: int) -> None:
            for _ in range(3):
                await share.wait()
                turns.append(number)
                share.spend(ROUND_WORK)

        await asyncio.gather(*map(client, range(4)))
        return turns

    assert asyncio.run(asyncio.wait_for(main(), 30)) == [0, *[0, 1, 2, 3] * 2, 1, 2, 3]


def test_a_cancelled_one_takes_nobodys_turn() -> None:
    """After a time-out of one client the others would wait for ever."""

    async def main() -> list[int]:
        share = LoopShare.of(asyncio.get_running_loop())
        assert share is LoopShare.of(asyncio.get_running_loop())
        turns: list[int] = []

        async def client(number: int) -> None:
            await share.wait()
            turns.append(number)
            share.spend(ROUND_WORK)

        tasks = [asyncio.create_task(client(number)) for number in range(6)]
        await asyncio.sleep(0)
        for number in (1, 2, 5):
            tasks[number].cancel()
        for task in tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task
        return turns

    assert asyncio.run(asyncio.wait_for(main(), 30)) == [0, 3, 4]


def test_each_loop_has_a_share_of_its_own() -> None:
    """A program may run one loop after the other, or one in each thread."""

    async def spend() -> LoopShare:
        share = LoopShare.of(asyncio.get_running_loop())
        share.spend(2 * ROUND_WORK)
        return share

    assert asyncio.run(spend()) is not asyncio.run(spend())

    async def main() -> None:
        await LoopShare.of(asyncio.get_running_loop()).wait()

    asyncio.run(asyncio.wait_for(main(), 30))


def test_a_round_sends_no_more_than_its_part(tmp_path: Path) -> None:
    """200 MB to a server on the same machine would go in one piece."""
    path = tmp_path / "large"
    path.write_bytes(os.urandom(3 * bounded.TURN_BYTES))
    inner = FakeTransport()
    transport = BoundedTransport(inner)
    with path.open("rb") as file:
        sent = 0
        with transport.bounded():
            while (count := transport.send_file(file.fileno(), sent, 1 << 30)) is not None:
                sent += count
        assert sent == bounded.TURN_BYTES
        with transport.bounded():
            sent += transport.send(b"x" * 10)
            assert transport.send_file(file.fileno(), sent, 1 << 30) == bounded.TURN_BYTES - 10
            assert transport.send(b"x") == 0
        assert transport.send_file(file.fileno(), 0, 1 << 30) == 3 * bounded.TURN_BYTES


def test_answers_are_taken_in_part_by_part() -> None:
    """Thousands of them come at once after a time without a look."""
    asked: list[int] = []

    class Asked(FakeTransport):
        def receive(self, max_bytes: int) -> bytes | None:
            asked.append(max_bytes)
            return super().receive(max_bytes)

    transport = BoundedTransport(Asked(b"3:Kok,"))
    assert transport.receive(256 << 10) == b"3:Kok,"
    assert transport.receive(10) is None
    assert asked == [bounded.RECEIVE_BYTES, 10]


@pytest.mark.parametrize("kind", ["client", "async"])
def test_a_large_message_arrives_whole_in_parts(tmp_path: Path, kind: str) -> None:
    """Each turn stops in the middle of it, and the next one goes on where that was."""
    path = tmp_path / "large"
    data = os.urandom(5 * bounded.TURN_BYTES + 17)
    path.write_bytes(data)
    package = Package("s@x", "r@y", path)

    async def main(server: str) -> bool:
        async with AsyncQMTPClient(server) as client:
            return bool((await client.send("s@x", "r@y", path)).accepted)

    with serving(answer_all()) as server:
        if kind == "async":
            assert asyncio.run(asyncio.wait_for(main(server.address), 60))
        else:
            with QMTPClient(server.address) as client:
                (result,) = client.send_many([package])
                assert result.accepted
    assert server.packages[0].text == data
