"""One client at work: names to it, results from it, both as they come.

A result counts only for a name that was given and has none yet. After anything
else the client is not trusted: its next result may call a refused message
accepted.
"""

from __future__ import annotations

import selectors
from typing import TYPE_CHECKING

from maildirqmtp.serialmail.client import Client
from maildirqmtp.serialmail.report import path_of
from maildirqmtp.serialmail.wire import ResultReader, WireError
from maildirqmtp.text import printable
from maildirqmtp.transport.readiness import seconds_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from maildirqmtp.forwarder.queued_message import QueuedMessage
    from maildirqmtp.response import Response
    from maildirqmtp.transport.wakeup import Wakeup

#: Names without a result beyond which a client gets no more, because each is kept in memory. A
#: client that reads all names before its first result gets the rest in another run.
MAX_UNANSWERED = 20_000
_NAMES_A_TURN = 64


class Feeder:
    """Feeds one client; `results` counts the results it has written.

    `take` returns the next message, or None if there is none; `settle` is
    called with each result. `clock` is monotonic seconds.
    """

    def __init__(
        self,
        client: Client,
        take: Callable[[], QueuedMessage | None],
        settle: Callable[[QueuedMessage, Response], None],
        wake: Wakeup,
        clock: Callable[[], float],
    ) -> None:
        self.results = 0
        self._client = client
        self._take = take
        self._settle = settle
        self._wake = wake
        self._clock = clock
        self._reader = ResultReader()
        self._next: QueuedMessage | None = None
        self._given: dict[bytes, QueuedMessage] = {}
        self._answered: set[bytes] = set()
        self._exited = False
        self._selector = selectors.DefaultSelector()
        self._selector.register(wake.fd, selectors.EVENT_READ)
        self._selector.register(client.names_fd, selectors.EVENT_WRITE)
        self._selector.register(client.results_fd, selectors.EVENT_READ)
        self._selector.register(client.exit_fd, selectors.EVENT_READ)

    @property
    def is_over(self) -> bool:
        """True once the client has exited, and all its results are settled."""
        return self._exited and not self._client.gives_results

    def turn(self, until: float | None) -> None:
        """Write names, wait until the time `until` at most, read results.

        Raises `WireError` if the client writes anything but a result for a name that has none.
        """
        self._give()
        client, selector = self._client, self._selector
        for key, _ in selector.select(seconds_until(until, self._clock())):
            if key.fd == self._wake.fd:
                self._wake.clear()
            elif key.fd == client.exit_fd:
                self._exited = True
                selector.unregister(client.exit_fd)
            elif key.fd == client.results_fd:
                self._read()

    def stop_giving(self) -> None:
        """Give no more names, and close the client's input."""
        if self._client.names_fd in self._selector.get_map():
            self._selector.unregister(self._client.names_fd)
        self._client.close_names()

    def close(self) -> None:
        """Close the selector, before the client's descriptors are closed."""
        self._selector.close()

    def _give(self) -> None:
        """Write names while the pipe has room, but few enough that results do not pile up."""
        for _ in range(_NAMES_A_TURN):
            if not self._client.takes_names:
                return
            if self._next is None and len(self._given) < MAX_UNANSWERED:
                self._next = self._take()
            queued = self._next
            if queued is None:
                self.stop_giving()
                return
            name = path_of(queued.message.folder, queued.message.name)
            if not self._client.give(name):
                if not self._client.takes_names:
                    self.stop_giving()
                return
            self._given[name] = queued
            self._next = None

    def _read(self) -> None:
        client = self._client
        data = client.read()
        if not client.gives_results:
            self._selector.unregister(client.results_fd)
            # It can report nothing of what it does from here on.
            self.stop_giving()
        self._reader.feed(data)
        while (result := self._reader.next()) is not None:
            self._result(*result)

    def _result(self, name: bytes, answer: Response) -> None:
        queued = self._given.pop(name, None)
        if queued is None:
            again = name in self._answered
            what = "a second result for" if again else "a result for a name that was not given,"
            raise WireError(f"{what} {printable(name)}")
        self._answered.add(name)
        self.results += 1
        self._settle(queued, answer)
