"""When what waits is due: never before its time, and never forgotten."""

from __future__ import annotations

from maildirqmtp.daemon.due import DueTimes


def test_what_is_put_off_is_not_due_at_its_old_time() -> None:
    """Also where the second of the old time has come already: it would be sent again and again."""
    due: dict[bytes, int] = {}
    times = DueTimes(due.get)
    due[b"a"] = times.add(b"a", 10.5)
    due[b"b"] = times.add(b"b", 10.5)
    assert times.first(10.9) is None
    assert times.first(11.0) == b"a"
    due[b"a"] = times.add(b"a", 20.0)
    assert times.first(11.0) == b"b"
    due[b"b"] = times.add(b"b", 19.0)
    assert times.first(11.5) is None
    assert times.next_at() == 19.0
    assert times.first(20.0) == b"b"


def test_what_was_taken_is_not_due_again() -> None:
    """A message that is under way would be sent a second time."""
    due: dict[bytes, int | None] = {}
    times = DueTimes(due.get)
    due[b"a"] = times.add(b"a", 10.0)
    assert times.first(10.0) == b"a"
    times.pop()
    due[b"a"] = None
    times.add(b"a", 10.0)
    assert times.first(11.0) is None
    assert times.next_at() is None


def test_what_is_due_in_one_second_has_one_time() -> None:
    """Of half a million that wait, each would need an object for its own time."""
    due: dict[bytes, int] = {}
    times = DueTimes(due.get)
    second = times.add(b"a", 1_000_000.2)
    assert times.add(b"b", 1_000_000.7) is second
    assert times.add(b"c", 1_000_001.2) is not second
