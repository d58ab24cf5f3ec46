"""What only the asynchronous client does: waiting elsewhere than in the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from maildirqmtp.client.async_client import _ClosedInThread
from maildirqmtp.transport.connect import connect
from maildirqmtp.transport.endpoint import CommandEndpoint


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
    transport = _ClosedInThread(command)
    asyncio.run(close())
    assert (command.read_fd, command.write_fd) == (-1, -1)
    assert transport.bytes_unread == 0
    (wait,) = waits
    wait()
    assert command.process.exit_status() is not None  # type: ignore[attr-defined]
