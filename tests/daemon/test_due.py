"""When what waits is due: never before its time, and never forgotten."""

from __future__ import annotations

from maildirqmtp.daemon.due import DueTimes


def test_what_is_put_off_is_not_due_at_its_old_time() -> None:
    """Also where the second of the old time has come already: it would be sent again and again."""
    due = {b"a": 10.5}
    times = DueTimes(due.get)
    times.add(b"a", 10.5)
    assert times.first(10.2) is None
    due[b"a"] = 20.0
    times.add(b"a", 20.0)
    assert times.first(11.0) is None
    assert times.first(20.0) == b"a"


def test_what_was_taken_is_not_due_again() -> None:
    """A message that is under way would be sent a second time."""
    due: dict[bytes, float | None] = {b"a": 10.0}
    times = DueTimes(due.get)
    times.add(b"a", 10.0)
    assert times.first(10.0) == b"a"
    times.pop()
    due[b"a"] = None
    times.add(b"a", 10.0)
    assert times.first(11.0) is None
    assert times.next_at() is None
