"""Signal handlers for as long as something runs."""

import os
import signal

import pytest

from maildirqmtp.transport.signals import signal_handlers, stop_handler


def _fail_with_handlers(seen: list[int], wakeup_fd: int) -> None:
    signals = (signal.SIGUSR1, signal.SIGTERM)
    with signal_handlers(signals, lambda number, _: seen.append(number), wakeup_fd=wakeup_fd):
        for number in signals:
            signal.raise_signal(number)
        raise RuntimeError


def test_the_handlers_of_before_come_back() -> None:
    """Also where what ran has failed; a program that calls us keeps its own Ctrl-C."""
    seen: list[int] = []
    before = signal.getsignal(signal.SIGUSR1), signal.getsignal(signal.SIGTERM)
    reader, writer = os.pipe2(os.O_NONBLOCK)
    wakeup_before = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(wakeup_before)
    try:
        with pytest.raises(RuntimeError):
            _fail_with_handlers(seen, writer)
        # The bytes that end the wait of a selector.
        assert os.read(reader, 9) == bytes([signal.SIGUSR1, signal.SIGTERM])
    finally:
        os.close(reader)
        os.close(writer)
    assert seen == [signal.SIGUSR1, signal.SIGTERM]
    assert (signal.getsignal(signal.SIGUSR1), signal.getsignal(signal.SIGTERM)) == before
    assert signal.set_wakeup_fd(wakeup_before) == wakeup_before


@pytest.mark.parametrize("keep_ignored", [False, True])
def test_what_the_caller_ignores_stays_ignored_where_that_is_asked(keep_ignored: bool) -> None:
    """`nohup mail &` must not lose its message to the end of the session."""
    seen: list[int] = []
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signal_handlers(
            [signal.SIGHUP], lambda n, _: seen.append(n), keep_ignored=keep_ignored
        ):
            signal.raise_signal(signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
    assert bool(seen) is not keep_ignored


@pytest.mark.parametrize(
    ("numbers", "told"),
    [
        pytest.param([signal.SIGTERM], 1, id="an administrator"),
        pytest.param([signal.SIGTERM, signal.SIGTERM], 2, id="one who will not wait"),
        pytest.param([signal.SIGINT, signal.SIGTERM], 2, id="one who will not wait for ^C"),
        pytest.param([signal.SIGHUP], 1, id="a terminal that is gone"),
        pytest.param([signal.SIGHUP, signal.SIGHUP], 1, id="gone, and its master too"),
        pytest.param([signal.SIGTERM, signal.SIGHUP], 1, id="systemd ends a session"),
        pytest.param([signal.SIGHUP, signal.SIGTERM], 1, id="the same, handled in numbers' order"),
        pytest.param([signal.SIGTERM, signal.SIGHUP, signal.SIGTERM], 2, id="and then kill(1)"),
        pytest.param([signal.SIGHUP, signal.SIGTERM, signal.SIGTERM], 2, id="and kill(1) again"),
    ],
)
def test_only_a_user_who_repeats_it_ends_what_is_in_flight(
    numbers: list[signal.Signals], told: int
) -> None:
    """The end of a session sends two signals; taken for haste, mail in flight comes twice."""
    calls: list[None] = []
    handler = stop_handler(lambda: calls.append(None))
    for number in numbers:
        handler(number, None)
    assert len(calls) == told
