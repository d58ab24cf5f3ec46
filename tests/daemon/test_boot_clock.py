"""What the daemon's clock makes of a machine that sleeps."""

from maildirqmtp.daemon.boot_clock import GRACE_S, Sleeps


def test_a_sleep_excuses_for_a_while() -> None:
    """What was being waited for goes on after it; what hangs is noticed all the same."""
    now, slept = [1_000.0], [0.0]
    sleeps = Sleeps(lambda: now[0] + slept[0], lambda: now[0])
    assert not sleeps.look()
    now[0] += 3_600.0
    assert not sleeps.look()
    assert not sleeps.slept_lately(now[0])
    slept[0] += 3_600.0
    assert sleeps.look()
    assert not sleeps.look()
    woken = now[0] + slept[0]
    assert sleeps.slept_lately(woken)
    assert sleeps.slept_lately(woken + GRACE_S - 1.0)
    assert not sleeps.slept_lately(woken + GRACE_S)


def test_clocks_that_are_read_one_after_the_other_are_no_sleep() -> None:
    """A busy machine may take a second between the two."""
    slept = [0.0]
    sleeps = Sleeps(lambda: 1_000.0 + slept[0], lambda: 1_000.0)
    slept[0] = 1.0
    assert not sleeps.look()
