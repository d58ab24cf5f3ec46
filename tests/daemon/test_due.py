"""What is due when: in order, and what was taken or put off since is not handed out."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from maildirqmtp.daemon.due import DueTimes

TIMES = st.floats(0, 5, allow_nan=False).map(lambda t: round(t, 2))


@given(st.lists(st.tuples(st.sampled_from([b"a", b"b", b"c", b"d"]), TIMES)), TIMES)
def test_keys_are_due_at_the_time_that_was_said_last(
    added: list[tuple[bytes, float]], now: float
) -> None:
    """In the order of their times; each once, however often it was put off."""
    current: dict[bytes, float] = {}
    times = DueTimes(current.get)
    for key, due in added:
        current[key] = due
        times.add(key, due)
    expected = sorted((due, key) for key, due in current.items() if due <= now)
    if expected:
        at = times.next_at()
        assert at is not None
        assert at <= expected[0][0]
    found = []
    while (first := times.first(now)) is not None:
        times.pop()
        found.append((current.pop(first), first))
    assert found == expected
    later = times.next_at()
    if current:
        assert later is not None, "what waits would wait for ever"
        assert later <= min(current.values())


def test_what_is_due_now_all_of_it() -> None:
    """`try_all`: each once, and what was said before is forgotten."""
    current = {b"b": 9.0, b"a": 99.5}
    times = DueTimes(current.get)
    for key, due in current.items():
        times.add(key, due)
    times.reset(list(current), 3.5)
    current.update(dict.fromkeys(current, 3.5))
    assert times.first(3.0) is None
    assert times.next_at() == 3.5
    assert times.first(3.5) == b"a"
    times.pop()
    assert times.first(3.5) == b"b"
    times.pop()
    assert times.next_at() is None
