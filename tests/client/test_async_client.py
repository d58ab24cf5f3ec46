"""What only the asynchronous client does: waiting elsewhere than in the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest

from maildirqmtp import AsyncQMTPClient, Package, SendResult, TransportError
from maildirqmtp.client.async_client import _ClosedInThread
from maildirqmtp.transport.command import CommandTransport
from maildirqmtp.transport.connect import connect
from maildirqmtp.transport.endpoint import CommandEndpoint
from tests.helpers import Peer, serving

Source = Callable[[AsyncQMTPClient], AsyncIterator[Package]]


def send_until_it_breaks(
    source: Source, then: Callable[[], None] = lambda: None
) -> tuple[list[SendResult], TransportError]:
    """Send to a server that hangs up on the first package; return the results and the error.

    `then` is called after each result, and others run.
    """

    def hang_up(peer: Peer) -> None:
        peer.read_package()

    async def main(server: str) -> tuple[list[SendResult], TransportError]:
        results: list[SendResult] = []
        async with AsyncQMTPClient(server) as client:
            try:
                async for result in client.send_many(source(client)):
                    results.append(result)
                    then()
                    for _ in range(5):
                        await asyncio.sleep(0)
            except TransportError as error:
                return results, error
        raise AssertionError("no error")

    with serving(hang_up) as server:
        return asyncio.run(asyncio.wait_for(main(server.address), 30))


def test_a_connection_that_breaks_takes_no_package_from_a_queue() -> None:
    """It was taken while the results were handed out, and had none: the program lost it."""
    queue: asyncio.Queue[bytes] = asyncio.Queue()

    async def source(client: AsyncQMTPClient) -> AsyncIterator[Package]:
        while True:
            yield Package("s@x", "r@y", await queue.get())

    queue.put_nowait(b"first")
    results, _ = send_until_it_breaks(source, lambda: queue.put_nowait(b"second"))
    assert len(results) == 1
    assert queue.qsize() == 1


def test_a_package_that_comes_as_the_connection_breaks_has_its_result() -> None:
    """The source has given it, and would never learn that it was not sent."""

    async def source(client: AsyncQMTPClient) -> AsyncIterator[Package]:
        yield Package("s@x", "first@y", b"1")
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            yield Package("s@x", "second@y", b"2")

    (first, second), error = send_until_it_breaks(source)
    assert error.result == first
    assert [outcome.recipient for outcome in first.in_doubt] == ["first@y"]
    assert (second.in_doubt, [outcome.recipient for outcome in second]) == ((), ["second@y"])
    assert second[0].response.text == f"not sent: {error}"


def test_a_source_that_fails_as_the_connection_breaks_hides_no_result() -> None:
    """The error of the connection has the result of the package that may have arrived."""

    async def source(client: AsyncQMTPClient) -> AsyncIterator[Package]:
        yield Package("s@x", "first@y", b"1")
        try:
            await asyncio.Event().wait()
        finally:
            raise ValueError("from the database")

    (first,), error = send_until_it_breaks(source)
    assert error.result == first
    assert isinstance(error.__context__, ValueError)


def test_a_source_that_sends_as_it_is_ended_is_told() -> None:
    """By the same client, which waits for it: neither would ever end."""

    async def source(client: AsyncQMTPClient) -> AsyncIterator[Package]:
        yield Package("s@x", "first@y", b"1")
        try:
            await asyncio.Event().wait()
        finally:
            await client.send("s@x", "postmaster@y", b"2")

    _, error = send_until_it_breaks(source)
    assert isinstance(error.__context__, RuntimeError)


def test_results_are_not_kept_back_until_the_source_gives_more() -> None:
    """A source that waits for the result of the first package would wait for ever."""

    async def source(client: AsyncQMTPClient) -> AsyncIterator[Package]:
        yield Package("s@x", "first@y", b"1")
        client.disconnect()
        await asyncio.Event().wait()

    (first,), error = send_until_it_breaks(source)
    assert error.result == first


def test_a_command_is_hung_up_before_another_thread_waits_for_it() -> None:
    """What it has not read is asked for meanwhile; that may be amid the closing of its pipe."""
    waits: list[Callable[[], object]] = []

    async def close() -> None:
        loop = asyncio.get_running_loop()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loop, "run_in_executor", lambda pool, wait: waits.append(wait))
            transport.close()
            transport.close()

    command = connect(CommandEndpoint(("cat",)), 1)
    assert isinstance(command, CommandTransport)
    transport = _ClosedInThread(command)
    assert command.status_s <= 0.1, "the loop would stand still where its output ends first"
    asyncio.run(close())
    assert (command.read_fd, command.write_fd) == (-1, -1)
    assert transport.bytes_unread == 0
    (wait,) = waits
    wait()
    assert command.process.exit_status() is not None
