"""The window: too wide after a crash, much is sent twice; too narrow, the link stands idle."""

import pytest

from maildirqmtp.pipeline.window import Window, shares


def test_it_starts_wide_open() -> None:
    """A first run over a good link must not creep up from one message."""
    window = Window(4096, 32 << 20)
    assert (window.size, window.maximum, window.max_bytes) == (4096, 4096, 32 << 20)


@pytest.mark.parametrize(
    ("in_flight", "size"),
    [(4096, 512), (9999, 512), (800, 100), (15, 1), (8, 1), (7, 1), (1, 1), (0, 1)],
)
def test_it_falls_to_an_eighth_of_what_was_in_flight(in_flight: int, size: int) -> None:
    """What is in doubt once is not in doubt to the same extent again."""
    window = Window(4096, 1)
    assert window.shrink(in_flight)
    assert window.size == size


def test_it_says_when_it_can_fall_no_further() -> None:
    """Else a server that always hangs up is tried for ever."""
    window = Window(64, 1)
    assert [window.shrink(64), window.shrink(64), window.shrink(64)] == [True, True, False]
    assert window.size == 1


def test_it_never_rises_by_falling() -> None:
    """More in flight than the window (it had been wider) still narrows it."""
    window = Window(64, 1)
    window.shrink(8)
    assert not window.shrink(64)
    assert window.size == 1


def test_it_doubles_with_each_full_window() -> None:
    """After an accident the link must get full again."""
    window = Window(64, 1)
    window.shrink(64)
    assert window.size == 8
    window.answered(7)
    assert window.size == 8
    window.answered(1)
    assert window.size == 16
    window.answered(15)
    assert window.size == 16
    window.answered(1)
    assert window.size == 32


def test_many_answers_at_once_double_it_more_than_once() -> None:
    """Answers come by the hundred in one read."""
    window = Window(100, 1)
    window.shrink(8)
    window.answered(1 + 2 + 4 + 3)
    assert window.size == 8
    window.answered(5)
    assert window.size == 16


def test_it_never_grows_beyond_its_maximum() -> None:
    """The maximum is the user's --window."""
    window = Window(100, 1)
    window.shrink(100)
    window.answered(10_000)
    assert window.size == 100
    window.answered(10_000)
    assert window.size == 100


def test_answers_before_the_fall_do_not_count_after_it() -> None:
    """A window that springs up at once after an accident does not protect anything."""
    window = Window(64, 1)
    window.shrink(64)
    window.answered(7)
    window.shrink(8)
    assert window.size == 1
    window.answered(1)
    assert window.size == 2
    window.answered(1)
    assert window.size == 2


def test_answers_while_wide_open_are_not_hoarded() -> None:
    """Else it would be wide open again right after its first fall."""
    window = Window(64, 1)
    window.answered(1_000)
    window.shrink(64)
    window.answered(1)
    assert window.size == 8


def test_connections_share_the_window() -> None:
    """What may be in doubt does not grow with the number of connections."""
    parts = shares(4_096, 32 << 20, 3)
    assert [(w.size, w.max_bytes) for w in parts] == [(1_365, (32 << 20) // 3)] * 3
    assert [(w.size, w.max_bytes) for w in shares(2, 1, 4)] == [(1, 1)] * 4


def test_what_is_answered_and_not_settled_counts_as_in_flight() -> None:
    """After a crash it is sent again, beside all that is in flight."""
    window = Window(100, 1 << 20)
    window.unsettled = 30
    assert window.limits(proven=True) == (70, 1 << 20)
    assert window.limits(proven=False) == (64, 64 << 10)
    window.unsettled = 90
    assert window.limits(proven=False) == (10, 64 << 10)
