"""`AsyncQMTPClient`: the client for asyncio, over the same session."""

import asyncio
import contextlib
import threading
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Callable,
    Iterable,
    Iterator,
)
from typing import Self

from maildirqmtp.client.client import BaseClient
from maildirqmtp.client.loop_share import LoopShare
from maildirqmtp.client.package import Encoding, MailAddress, Message, Package
from maildirqmtp.client.session import ClientSession, NextStep
from maildirqmtp.descriptor_limit import threads_reason
from maildirqmtp.errors import ConnectError, TransportError
from maildirqmtp.results import SendResult
from maildirqmtp.transport.endpoint import Endpoint
from maildirqmtp.transport.transport import Transport
from maildirqmtp.transport.wrapper import TransportWrapper

#: Seconds for which the loop waits for the exit status of a command whose output has ended: that
#: of ssh says that there was no connection, and then nothing is in doubt.
STATUS_S = 0.1


class AsyncQMTPClient(BaseClient):
    """A connection to a QMTP server, for asyncio; everything else is as in `QMTPClient`.

        async with AsyncQMTPClient("mail.example.org") as client:
            result = await client.send("me@example.org", ["you@example.net"], b"...")

    The constructor takes the same options and does not connect; `async with`
    does, unless `defer_connect`. Name lookups, connecting (TLS handshakes included)
    and waiting for the end of a command run in threads. Everything else runs in the
    event loop's thread, where files are read without awaiting. In each round of a
    loop, all its clients together handle about `ROUND_WORK` packages, answers and
    results, so that other tasks wait for milliseconds, however many clients there are.

    Several tasks may use one client: they take turns, a whole `send_many` each. To
    keep the link full, use one `send_many`.
    """

    _loop: asyncio.AbstractEventLoop | None = None
    _turns: asyncio.Lock
    _connecting_lock: asyncio.Lock
    _disconnected: "asyncio.Future[None] | None" = None
    _owner: "asyncio.Task[object] | None" = None
    _run: "_Run | None" = None

    async def __aenter__(self) -> Self:
        if not self._defer_connect:
            await self.connect()
        return self

    async def __aexit__(self, *exception: object) -> None:
        self.disconnect()

    def __del__(self) -> None:
        # A constructor that raised has made no session.
        if hasattr(self, "_session"):
            self.disconnect()

    async def connect(self) -> None:
        """See `QMTPClient.connect`."""
        self._enter_loop()
        async with self._connecting_lock:
            if not self._must_connect():
                return
            address = self._address
            transport = await self._dial_in_thread(address)
            self._use(_ClosedInThread(transport) if transport.close_waits else transport, address)

    def _enter_loop(self) -> None:
        """Make the locks, for the loop that runs now: they cannot be used in another one."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._loop, self._turns, self._connecting_lock = loop, asyncio.Lock(), asyncio.Lock()

    async def _dial_in_thread(self, address: Endpoint) -> Transport:
        """Return the connection. Raises `ConnectError` if that fails, or on `disconnect`."""
        loop = asyncio.get_running_loop()
        connecting = _in_thread(loop, self._dial, address)
        disconnected = self._disconnected = loop.create_future()
        made: Transport | None = None
        try:
            await asyncio.wait((connecting, disconnected), return_when=asyncio.FIRST_COMPLETED)
            if disconnected.done():
                raise ConnectError(f"told to disconnect while connecting to {address}")
            made = connecting.result()
        finally:
            self._disconnected = None
            if made is None:
                # The thread goes on connecting; the connection it makes must not stay open.
                connecting.add_done_callback(_close_late)
        return made

    def disconnect(self) -> None:
        """See `QMTPClient.disconnect`.

        A task that is sending or connecting meanwhile gets a `TransportError`.
        """
        if self._disconnected is not None and not self._disconnected.done():
            self._disconnected.set_result(None)
        if self._run is not None:
            self._run.stop_waiting()
        super().disconnect()

    async def reconnect(self) -> None:
        """See `QMTPClient.reconnect`."""
        self.disconnect()
        await self.connect()

    async def send(
        self,
        sender: MailAddress,
        recipients: MailAddress | Iterable[MailAddress],
        message: Message,
        *,
        encoding: Encoding = "unix",
    ) -> SendResult:
        """See `QMTPClient.send`. Cancelling it closes the connection.

        Raises `RuntimeError` if this task is in a `send_many` of this client already.
        """
        package = Package(sender, recipients, message, encoding=encoding)
        (result,) = [result async for result in self.send_many((package,))]
        return result

    async def send_many(
        self, packages: Iterable[Package] | AsyncIterable[Package]
    ) -> AsyncGenerator[SendResult, None]:
        """See `QMTPClient.send_many`; sending goes on while an async iterable is awaited.

        That wait is cancelled when the connection breaks; a package that has come is deferred.
        To leave the loop early, close it with `contextlib.aclosing`, as always with
        asynchronous generators. Raises `RuntimeError` if this task is in a `send_many`
        of this client already, also as what `packages` does to give the next one.
        """
        self._enter_loop()
        task = asyncio.current_task()
        if self._owner is task or (self._run is not None and self._run.awaits(task)):
            raise RuntimeError("this task is in a send_many of this client already")
        async with self._turns:
            run = self._run = _Run(self, self._session, packages)
            self._owner = task
            self._session.begin()
            try:
                while (step := await run.next_step()) is not NextStep.NOTHING:
                    if step is NextStep.RESULT:
                        yield self._session.result()
                    else:
                        await run.take_step(step)
                if self._session.error is not None:
                    raise self._session.error
            finally:
                self._owner = self._run = None
                run.end()
                self._session.end()


class _Run:
    """One `send_many`: where its packages come from, and how it waits."""

    def __init__(
        self,
        client: AsyncQMTPClient,
        session: ClientSession,
        packages: Iterable[Package] | AsyncIterable[Package],
    ) -> None:
        self._client = client
        self._session = session
        self._source: Iterator[Package] | None = None
        self._async_source: AsyncIterator[Package] | None = None
        self._coming: asyncio.Future[Package] | None = None
        self._woken: asyncio.Future[None] | None = None
        self._waiting_for: Transport | None = None
        self._share = LoopShare.of(asyncio.get_running_loop())
        self._counted = session.work_done
        if isinstance(packages, AsyncIterable):
            self._async_source = aiter(packages)
        else:
            self._source = iter(packages)

    def awaits(self, task: "asyncio.Task[object] | None") -> bool:
        """Return whether this is the task in which the source makes the next package."""
        return self._coming is not None and task is self._coming

    async def next_step(self) -> NextStep:
        """See `ClientSession.next_step`; let others run first if the round's share is used up."""
        await self._give_way()
        step = self._session.next_step()
        if self._coming is not None and not self._session.wants_packages:
            await self._take_last(self._coming)
            step = self._session.next_step()
        return step

    async def _give_way(self) -> None:
        done = self._session.work_done
        self._share.spend(done - self._counted)
        self._counted = done
        await self._share.wait()

    async def take_step(self, step: NextStep) -> None:
        """Carry out any step but RESULT."""
        if step is NextStep.PACKAGE:
            await self._take()
        elif step is NextStep.CONNECTION:
            try:
                await self._client.connect()
            except TransportError as error:
                self._session.fail(error)
        else:
            await self._turn(self._session.wait_s() if step is NextStep.WAIT else 0.0)

    def end(self) -> None:
        """Ask for no more packages."""
        if self._coming is not None:
            self._coming.cancel()

    async def _take(self) -> None:
        if self._async_source is not None and self._coming is None:
            self._coming = asyncio.ensure_future(_next(self._async_source))
            # Often the package is there at once: cheaper than to wait for it and the connection.
            await asyncio.sleep(0)
            if not self._coming.done():
                return  # other tasks have run, and may have disconnected
        coming = self._coming
        if coming is not None and not coming.done():
            if self._session.in_flight:
                await self._turn(self._session.wait_s())
            else:
                await asyncio.wait((coming,))
            if not coming.done():
                return
        self._coming = None
        if coming is None:
            self._take_from(self._next, StopIteration)
        else:
            self._take_from(coming.result, StopAsyncIteration)

    async def _take_last(self, coming: "asyncio.Future[Package]") -> None:
        """End the wait for a package that cannot be sent any more; one that has come is deferred.

        It may be out of a queue of the program's, which learns from its result what became of it.
        """
        coming.cancel()
        await asyncio.wait((coming,))
        self._coming = None
        if not coming.cancelled():
            self._take_from(coming.result, StopAsyncIteration)

    def _take_from(self, source: Callable[[], Package], end: type[Exception]) -> None:
        try:
            try:
                package = source()
            except end:
                self._session.no_more()
            else:  # see QMTPClient
                self._session.take(package)
        except Exception as error:
            self._session.stop(error)

    def _next(self) -> Package:
        assert self._source is not None
        return next(self._source)

    async def _turn(self, timeout_s: float | None) -> None:
        """Wait for the connection, a package or the time-out, then give the session a turn."""
        transport = self._session.transport
        assert transport is not None
        loop = asyncio.get_running_loop()
        self._woken = loop.create_future()
        self._waiting_for = transport
        ready: set[str] = set()

        def is_ready(what: str) -> None:
            ready.add(what)
            self._wake()

        timer = loop.call_later(timeout_s, self._wake) if timeout_s is not None else None
        if self._session.wants_read:
            loop.add_reader(transport.read_fd, is_ready, "to read")
        if self._session.wants_write:
            loop.add_writer(transport.write_fd, is_ready, "to write")
        if self._coming is not None:
            self._coming.add_done_callback(self._wake)
        try:
            await self._woken
        finally:
            self.stop_waiting()
            if timer is not None:
                timer.cancel()
            if self._coming is not None:
                self._coming.remove_done_callback(self._wake)
        await self._give_way()
        self._session.turn("to read" in ready, "to write" in ready)

    def stop_waiting(self) -> None:
        """Stop watching the connection, so that it may be closed."""
        transport, self._waiting_for = self._waiting_for, None
        if transport is not None:
            loop = asyncio.get_running_loop()
            loop.remove_reader(transport.read_fd)
            loop.remove_writer(transport.write_fd)
            self._wake()

    def _wake(self, _: object = None) -> None:
        if self._woken is not None and not self._woken.done():
            self._woken.set_result(None)


class _ClosedInThread(TransportWrapper):
    """A transport to a command; it waits for the command's end in a thread."""

    close_waits = False
    _closed = False

    def __init__(self, inner: Transport) -> None:
        from maildirqmtp.transport.command import CommandTransport

        super().__init__(inner)
        if isinstance(inner, CommandTransport):
            inner.status_s = STATUS_S

    def close(self) -> None:
        """See `Transport`; without a running event loop, the calling thread waits."""
        if not self._closed:
            self._closed = True
            self._inner.hang_up()  # in this thread, which asks for the unread bytes next
            _close(self._inner)


def _close(transport: Transport) -> None:
    if transport.close_waits:
        with contextlib.suppress(RuntimeError):  # no loop, or one that ends
            asyncio.get_running_loop().run_in_executor(None, transport.close)
            return
    transport.close()


async def _next(source: AsyncIterator[Package]) -> Package:
    return await anext(source)


def _in_thread(
    loop: asyncio.AbstractEventLoop, dial: Callable[[Endpoint], Transport], address: Endpoint
) -> "asyncio.Future[Transport]":
    """Dial in a thread of its own, which keeps neither the program nor others from going on.

    In the loop's executor, a few that nobody waits for any more would take all its threads.
    Raises `ConnectError` if there can be no more threads.
    """
    dialled: asyncio.Future[Transport] = loop.create_future()

    def done(made: Transport | None, error: BaseException | None) -> None:
        if error is not None:
            dialled.set_exception(error)
        elif made is not None:
            dialled.set_result(made)

    def work() -> None:
        made, failed = None, None
        try:
            made = dial(address)
        except BaseException as error:
            failed = error
        try:
            loop.call_soon_threadsafe(done, made, failed)
        except RuntimeError:  # the loop is closed, and nobody will use the connection
            if made is not None:
                made.close()

    try:
        threading.Thread(target=work, daemon=True).start()
    except RuntimeError as error:
        raise ConnectError(f"cannot connect to {address}: {threads_reason(error)}") from error
    return dialled


def _close_late(connecting: "asyncio.Future[Transport]") -> None:
    if not connecting.cancelled() and connecting.exception() is None:
        _close(connecting.result())
