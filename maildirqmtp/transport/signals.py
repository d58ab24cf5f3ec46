"""Signal handlers that are in place while a block runs."""

from __future__ import annotations

import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from types import FrameType


@contextmanager
def signal_handlers(
    numbers: Iterable[int],
    handler: Callable[[int, FrameType | None], object],
    *,
    wakeup_fd: int | None = None,
    keep_ignored: bool = False,
) -> Iterator[None]:
    """Have `handler` handle these signals, and put the earlier handlers back at the end.

    Python runs a handler between two bytecodes of the main thread. One that runs just
    before a selector waits would not end that wait: so the interpreter also writes a
    byte to `wakeup_fd`, which the selector watches. `keep_ignored` leaves signals that
    the caller ignores ignored, as nohup(1) expects. In the main thread only.
    """
    chosen = [
        number
        for number in numbers
        if not (keep_ignored and signal.getsignal(number) is signal.SIG_IGN)
    ]
    before = {number: signal.signal(number, handler) for number in chosen}
    earlier_fd = None
    if wakeup_fd is not None:
        earlier_fd = signal.set_wakeup_fd(wakeup_fd, warn_on_full_buffer=False)
    try:
        yield
    finally:
        if earlier_fd is not None:
            signal.set_wakeup_fd(earlier_fd)
        for number, earlier in before.items():
            signal.signal(number, earlier)


@contextmanager
def stop_signals(
    handler: Callable[[int, FrameType | None], object], wakeup_fd: int
) -> Iterator[None]:
    """Have `handler` handle SIGTERM, SIGINT, and SIGHUP of a terminal that is gone.

    Under nohup(1), which has SIGHUP ignored, it stays so. See `signal_handlers`.
    """
    with (
        signal_handlers((signal.SIGTERM, signal.SIGINT), handler, wakeup_fd=wakeup_fd),
        signal_handlers((signal.SIGHUP,), handler, keep_ignored=True),
    ):
        yield


def stop_handler(stop: Callable[[], object]) -> Callable[[int, FrameType | None], None]:
    """Return a handler of signals that calls `stop` for the first one, and where a user repeats it.

    SIGTERM and SIGHUP come together where a session ends, and Python handles either first: only a
    second signal that is not SIGHUP tells to stop again.
    """
    told = False
    asked = 0

    def handle(number: int, _: FrameType | None) -> None:
        nonlocal told, asked
        asked += number != signal.SIGHUP
        if not told or asked > 1:
            told = True
            stop()

    return handle
