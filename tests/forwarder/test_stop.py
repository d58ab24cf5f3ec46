"""What is left of a run that is told to stop, and of the mailer that it has started."""

from __future__ import annotations

from maildirqmtp.forwarder.stop import MAILER_S, Stop
from tests.fakes import FakeClock


def test_a_mailer_gets_a_few_seconds_once_told_to_stop_and_none_at_the_end() -> None:
    """One that works has the bounce by then; one that hangs must not outlast the process."""
    clock = FakeClock()
    stop = Stop(clock, 20.0)
    assert (stop.at, stop.is_due, stop.mailer_s()) == (None, False, float("inf"))
    stop.tell()
    assert (stop.at, stop.is_due, stop.mailer_s()) == (clock.now + 20.0, False, MAILER_S)
    by = stop.at
    clock.now += 19.0
    stop.tell()
    assert (stop.at, stop.mailer_s()) == (by, MAILER_S), "told twice, it would end later"
    clock.now += 1.0
    assert (stop.is_due, stop.mailer_s()) == (True, 0.0)


def test_at_once_is_now() -> None:
    """A second signal: nothing is waited for any more."""
    clock = FakeClock()
    stop = Stop(clock, 20.0)
    stop.tell()
    stop.tell(at_once=True)
    assert (stop.at, stop.is_due, stop.mailer_s()) == (clock.now, True, 0.0)
