"""Deliveries under way in this process: one at a time for each key."""

from __future__ import annotations

import threading

from maildirqmtp.qmtp.protocol import Response, Status
from maildirqmtp.receiver.destination import Outcome

_GIVEN_UP = Outcome(
    Response(Status.DEFERRED, b"451 it is being delivered, try again later (#4.4.5)")
)
# Seconds between two looks at whether the client is still there.
_LOOK_S = 0.25


class Claim:
    """A key that one batch delivers; others wait for its outcome: None if it was not tried."""

    __slots__ = ("_ended", "_outcome", "key")

    def __init__(self, key: bytes) -> None:
        self.key = key
        self._ended = threading.Event()
        self._outcome: Outcome | None = None

    def wait(self, no_more: threading.Event) -> Outcome | None:
        """Wait until the batch is done with the key; return the outcome.

        Once `no_more` is set, that is a deferral: whoever wanted to know it has gone, or will.
        """
        while not self._ended.wait(_LOOK_S):
            if no_more.is_set():
                return _GIVEN_UP
        return self._outcome

    def end(self, outcome: Outcome | None) -> None:
        """Set the outcome, and wake the threads that wait for it."""
        self._outcome = outcome
        self._ended.set()


class Claims:
    """The claims of all sessions. For any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._claims: dict[bytes, Claim] = {}

    def claim(self, key: bytes) -> tuple[Claim, bool]:
        """Return the claim of a key, and whether the caller made it and so has to end it."""
        with self._lock:
            found = self._claims.get(key)
            if found is not None:
                return found, False
            made = self._claims[key] = Claim(key)
            return made, True

    def end(self, claim: Claim, outcome: Outcome | None) -> None:
        """End a claim with its outcome; harmless twice."""
        with self._lock:
            if self._claims.get(claim.key) is claim:
                del self._claims[claim.key]
        claim.end(outcome)
