"""The two clients of the library, called in one way, for tests of both."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from typing import Any

from maildirqmtp import AsyncQMTPClient, Package, QMTPClient, SendResult

#: What the servers of the tests answer, where nothing else is asked of them.
SEEN = "Kok"


class Sync:
    """The synchronous client, called in the way both can be."""

    def __init__(self, server: str, **options: Any) -> None:
        self.client = QMTPClient(server, **options)

    def send(self, *arguments: Any, **options: Any) -> SendResult:
        """Send one."""
        return self.client.send(*arguments, **options)

    def send_many(self, packages: Iterable[Package], stop_after: int = 1 << 30) -> list[SendResult]:
        """Send many; leave the loop after so many results. Errors have the results as `results`."""
        results: list[SendResult] = []
        try:
            for result in self.client.send_many(packages):
                results.append(result)
                if len(results) == stop_after:
                    break
        except Exception as error:
            error.results = results  # type: ignore[attr-defined]
            raise
        return results

    def connect(self) -> None:
        """Connect."""
        self.client.connect()

    def close(self) -> None:
        """Let go of everything."""
        self.client.disconnect()


class Async:
    """The asynchronous one."""

    async_iterable = False

    def __init__(self, server: str, **options: Any) -> None:
        self.client = AsyncQMTPClient(server, **options)
        self.loop = asyncio.new_event_loop()
        try:
            if not options.get("defer_connect"):
                self.connect()
        except BaseException:
            self.loop.close()
            raise

    def send(self, *arguments: Any, **options: Any) -> SendResult:
        """Send one."""
        return self.loop.run_until_complete(self.client.send(*arguments, **options))

    def send_many(self, packages: Iterable[Package], stop_after: int = 1 << 30) -> list[SendResult]:
        """See `Sync`."""
        return self.loop.run_until_complete(self._send_many(packages, stop_after))

    async def _send_many(self, packages: Iterable[Package], stop_after: int) -> list[SendResult]:
        async def one_by_one() -> AsyncIterator[Package]:
            for package in packages:
                yield package

        results: list[SendResult] = []
        source = one_by_one() if self.async_iterable else packages
        try:
            async with contextlib.aclosing(self.client.send_many(source)) as stream:
                async for result in stream:
                    results.append(result)
                    if len(results) == stop_after:
                        break
        except Exception as error:
            error.results = results  # type: ignore[attr-defined]
            raise
        return results

    def connect(self) -> None:
        """Connect."""
        self.loop.run_until_complete(self.client.connect())

    def close(self) -> None:
        """Let go of everything; harmless twice."""
        if self.loop.is_closed():
            return
        self.client.disconnect()
        self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        self.loop.close()


class AsyncIterable(Async):
    """The same with packages from an asynchronous iterable."""

    async_iterable = True


Client = Sync | Async
Make = Callable[..., Client]
#: All of them.
KINDS = (Sync, Async, AsyncIterable)


@contextlib.contextmanager
def making(kind: type[Client]) -> Iterator[Make]:
    """Return what makes clients of a kind, which are closed in the end."""
    made: list[Client] = []

    def create(server: str, **options: Any) -> Client:
        made.append(kind(server, **options))
        return made[-1]

    yield create
    for client in made:
        client.close()


def packages(count: int, size: int = 100) -> Iterator[Package]:
    """Packages that are all different."""
    for number in range(count):
        text = b"%d " % number + b"x" * size
        yield Package(f"s{number}@x", [f"r{number}@y"], text)


def said(results: Iterable[SendResult]) -> list[str]:
    """What was answered, of packages with one recipient."""
    return [str(result[0].response) for result in results]
