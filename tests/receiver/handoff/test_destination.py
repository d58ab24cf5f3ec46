"""The destination of a hand-off: how long what it hands on may take."""

from __future__ import annotations

import contextlib
import threading

import pytest

from maildirqmtp.qmtp.protocol import Status
from maildirqmtp.receiver.destination import Mail
from maildirqmtp.receiver.handoff.command import TIMEOUT_S
from maildirqmtp.receiver.handoff.destination import BEGIN_S, MOST_TOGETHER, HandOff
from maildirqmtp.receiver.spool import Spool
from tests.receiver.doubles import Clock, Hop

#: Seconds for which a forwarder waits for an answer.
FORWARDER_S = 3_600.0


@pytest.mark.parametrize("together", [True, False], ids=["together", "one by one, as with --once"])
def test_a_batch_is_answered_before_the_forwarder_gives_up(together: bool) -> None:
    """Else it sends all of it again: everybody gets copies, again and again, and it never ends."""
    clock = Clock()
    slow = Hop(clock, TIMEOUT_S)
    with contextlib.closing(HandOff(slow, clock)) as destination:
        began_s = clock()
        deliveries = []
        for package in range(16):
            delivery = destination.begin(Mail(b"", Spool(destination, False), b"", 0.0, None))
            for recipient in range(5):
                delivery.deliver(b"%d.%d" % (package, recipient))
            deliveries.append(delivery)
        for batch in [deliveries] if together else [[delivery] for delivery in deliveries]:
            destination.commit(batch)
        assert clock() - began_s <= BEGIN_S + TIMEOUT_S < FORWARDER_S
        outcomes = [outcome.response for delivery in deliveries for outcome in delivery.outcomes]
        assert len(outcomes) == 16 * 5
        accepted = [response.status is Status.ACCEPTED for response in outcomes]
        assert accepted == [True] * len(slow.taken) + [False] * (16 * 5 - len(slow.taken))
        assert len(slow.taken) == BEGIN_S / TIMEOUT_S
        later = destination.begin(Mail(b"", Spool(destination, False), b"", 0.0, None))
        later.deliver(b"later")
        destination.commit([later])
        assert later.outcomes[0].response.status is Status.ACCEPTED


def test_only_what_is_taken_quickly_waits_for_others() -> None:
    """What a scanner has taken, and the forwarder was not told of, comes twice after a restart."""
    clock = Clock()
    hop = Hop(clock)
    with contextlib.closing(HandOff(hop, clock)) as destination:

        def hand_on(count: int, seconds: float, *, gone: bool = False) -> int:
            """Hand on so many; return how many would be answered together then."""
            hop.seconds = seconds
            no_more = threading.Event()
            if gone:
                no_more.set()
            for _ in range(count):
                mail = Mail(b"", Spool(destination, False), b"", 0.0, None, no_more)
                delivery = destination.begin(mail)
                delivery.deliver(b"a@y")
                destination.commit([delivery])
            return destination.packages_together

        assert destination.packages_together == 1, "nothing is known"
        assert hand_on(20, 0.0005) == MOST_TOGETHER
        assert hand_on(1, 0.5) == 1
        assert hand_on(20, 0.5, gone=True) == 1, "what is not begun takes no time"
        assert 1 < hand_on(20, 0.01) < MOST_TOGETHER
        assert hand_on(20, 0.0) == MOST_TOGETHER
