"""What earlier runs have found out about a server, and what this one adds, in the state file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from maildirqmtp.errors import ProtocolError
from maildirqmtp.forwarder.slow_answers import SlowAnswers
from maildirqmtp.maildir.state import ONE_RECIPIENT, PROVEN
from maildirqmtp.pipeline.capabilities import Capabilities

if TYPE_CHECKING:
    from collections.abc import Callable

    from maildirqmtp.forwarder.queued_message import QueuedMessage
    from maildirqmtp.forwarder.report import Report
    from maildirqmtp.forwarder.route import Route
    from maildirqmtp.maildir.state import State
    from maildirqmtp.pipeline.pipeline import Pipeline


class ServerMemory:
    """Remembers, for 30 days, what the server of a route has shown; by its name as it is given.

    `capabilities` is what is known at the start.
    """

    def __init__(
        self, route: Route, state: State, report: Report, clock: Callable[[], float]
    ) -> None:
        self._state = state
        self._slow_answers = SlowAnswers(report, state, clock) if route.connections == 1 else None
        self._server = str(route.server)
        remembered = state.has_shown(self._server, ONE_RECIPIENT)
        self.capabilities = Capabilities(
            proven=state.has_shown(self._server, PROVEN),
            one_recipient=route.one_recipient or remembered,
        )

    def answered(self, pipeline: Pipeline[QueuedMessage], answers: int, waiting: int) -> None:
        """So many messages were answered; `waiting` are not in flight yet."""
        if self._slow_answers is not None:
            self._slow_answers.answered(pipeline, answers, waiting)

    def learn(self, pipeline: Pipeline[QueuedMessage]) -> None:
        """Take down what a connection that has ended has shown."""
        if isinstance(pipeline.error, ProtocolError):
            self.capabilities.proven = False
            self._state.forget_shown(self._server, PROVEN)
        elif pipeline.answered:
            self._state.remember(self._server, PROVEN)
        if self.capabilities.take_news():
            self._state.remember(self._server, ONE_RECIPIENT)
