"""Deliveries of one message by several sessions: the second one waits, but not for ever."""

import threading

from maildirqmtp.qmtp.protocol import Response, Status
from maildirqmtp.receiver.destination import Outcome
from maildirqmtp.receiver.once.claims import Claims
from tests.helpers import DEADLINE_S

OUTCOME = Outcome(Response(Status.ACCEPTED, b"ok"))


def test_the_second_has_the_outcome_of_the_first() -> None:
    """Delivered by both, it is there twice."""
    claims, told = Claims(), []
    first, is_ours = claims.claim(b"key")
    second, too = claims.claim(b"key")
    assert (is_ours, too) == (True, False)
    no_more = threading.Event()
    thread = threading.Thread(target=lambda: told.append(second.wait(no_more)))
    thread.start()
    claims.end(first, OUTCOME)
    thread.join(DEADLINE_S)
    assert told == [OUTCOME]
    assert claims.claim(b"key")[1]


def test_whose_client_has_gone_waits_no_longer() -> None:
    """The first one's disk hangs; its threads would be missing for everybody else."""
    claims = Claims()
    claims.claim(b"key")
    second, _ = claims.claim(b"key")
    no_more = threading.Event()
    no_more.set()
    outcome = second.wait(no_more)
    assert outcome is not None
    assert outcome.response.status is Status.DEFERRED
