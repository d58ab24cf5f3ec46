"""What earlier runs have found out about a server, and what this run adds, in the state file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from maildirqmtp.errors import ProtocolError
from maildirqmtp.maildir.state import ONE_RECIPIENT, PROVEN
from maildirqmtp.pipeline.capabilities import Capabilities

if TYPE_CHECKING:
    from maildirqmtp.forwarder.queued_message import QueuedMessage
    from maildirqmtp.maildir.state import State
    from maildirqmtp.pipeline.pipeline import Pipeline
    from maildirqmtp.transport.endpoint import Endpoint


class ServerMemory:
    """Remembers for 30 days what a server has shown, under its name as it is given.

    `one_recipient`: a setting says that it answers once per package. `capabilities` begins with
    what is remembered.
    """

    def __init__(self, server: Endpoint, one_recipient: bool, state: State) -> None:
        self._state = state
        self._server = str(server)
        remembered = state.has_shown(self._server, ONE_RECIPIENT)
        self.capabilities = Capabilities(
            proven=state.has_shown(self._server, PROVEN),
            one_recipient=one_recipient or remembered,
        )

    def learn(self, pipeline: Pipeline[QueuedMessage]) -> None:
        """Remember what a connection that has ended has shown."""
        if isinstance(pipeline.error, ProtocolError):
            self.capabilities.proven = False
            self._state.forget_shown(self._server, PROVEN)
        elif pipeline.answered:
            self._state.remember(self._server, PROVEN)
        if self.capabilities.take_news():
            self._state.remember(self._server, ONE_RECIPIENT)
