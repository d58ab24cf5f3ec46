"""When to try again, whatever clocks and files say."""

import math

from hypothesis import given
from hypothesis import strategies as st

from maildirqmtp.daemon.schedule import BACKOFF_FIRST_S, BACKOFF_MOST_S, Backoff, retry_at

NOW = 1_800_000_000.0
#: What a file's time can be: tmpfs keeps whatever 64 bits of seconds hold.
times = st.floats(-(2.0**63), 2.0**63)
unit = st.floats(0.0, 1.0)


def test_tries_are_at_birth_and_400_n_squared() -> None:
    """qmail's schedule: after 400 s, 1,600 s, 3,600 s ... of the message's age."""
    at = NOW
    for number in range(1, 50):
        at = retry_at(NOW, at)
        assert math.isclose(at - NOW, 400.0 * number**2)


@given(times, times)
def test_never_in_the_past(birth_s: float, now_s: float) -> None:
    """A retry that is due at once would hammer the server: whatever the clocks, it is not."""
    at = retry_at(birth_s, now_s)
    assert math.isfinite(at)
    assert at - now_s >= 400.0 or math.isclose(at, now_s + 400.0, rel_tol=1e-12)


@given(times, st.floats(0.0, 1e9), st.floats(0.0, 1e9))
def test_an_older_message_waits_longer(birth_s: float, age_s: float, more_s: float) -> None:
    """And one try never comes before the one that was made earlier."""
    first = retry_at(birth_s, birth_s + age_s)
    assert retry_at(birth_s, birth_s + age_s + more_s) >= first


def test_a_birth_in_the_future_is_now() -> None:
    """A file from a machine whose clock is years ahead is not left for years."""
    assert retry_at(NOW + 1e9, NOW) == NOW + 400.0


@given(st.lists(unit, min_size=1, max_size=40))
def test_backoff_doubles_up_to_five_minutes(jitters: list[float]) -> None:
    """Each wait is between four fifths of its step and the step, and never above the most."""
    chosen = iter(jitters)
    backoff = Backoff(lambda: next(chosen))
    for number in range(len(jitters)):
        step_s = min(BACKOFF_MOST_S, BACKOFF_FIRST_S * 2.0**number)
        assert 0.8 * step_s - 1e-9 <= backoff.failed() <= step_s
        assert backoff.failures == number + 1


def test_backoff_spreads_its_callers() -> None:
    """A thousand ships do not call at the same moment."""
    assert Backoff(lambda: 0.0).failed() == 1.0
    assert Backoff(lambda: 1.0).failed() == 0.8


def test_backoff_survives_years_of_failures() -> None:
    """2.0 ** 1024 is an OverflowError: a link that is down for a week must not kill the daemon."""
    backoff = Backoff(lambda: 0.0)
    assert {backoff.failed() for _ in range(3_000)} >= {BACKOFF_MOST_S}
    assert backoff.failed() == BACKOFF_MOST_S


def test_backoff_begins_anew_after_a_success() -> None:
    """One good connection, and the next failure waits a second, not five minutes."""
    backoff = Backoff(lambda: 0.0)
    assert [backoff.failed() for _ in range(4)] == [1.0, 2.0, 4.0, 8.0]
    backoff.succeeded()
    assert backoff.failures == 0
    assert [backoff.failed() for _ in range(2)] == [1.0, 2.0]
