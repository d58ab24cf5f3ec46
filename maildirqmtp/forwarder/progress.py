"""Shows on a terminal how far a run is: a bar with the extra `progress` (rich), else a line."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TextIO, cast

if TYPE_CHECKING:
    from collections.abc import Callable

    import rich.progress

    from maildirqmtp.forwarder.report import Progress

#: Seconds after which the line appears, so that short runs are quiet; and between two updates.
FIRST_S, EVERY_S = 1.0, 0.25


def make(stream: TextIO) -> Progress | None:
    """Return what shows progress on `stream`, or None if that is no terminal."""
    if not stream.isatty():
        return None
    try:
        import rich.console
        import rich.progress
    except ImportError:
        return ProgressLine(stream)
    console = rich.console.Console(file=stream)
    columns = (
        *rich.progress.Progress.get_default_columns(),
        rich.progress.TextColumn("{task.fields[rate]}"),
    )
    return _Bar(rich.progress.Progress(*columns, console=console, transient=True))


def log_of(progress: Progress | None, stream: TextIO) -> TextIO:
    """Return where lines of the log go: a `ProgressLine`, which clears itself, or `stream`."""
    # Only `write` and `flush` of it are used.
    return cast("TextIO", progress) if isinstance(progress, ProgressLine) else stream


class _Rate:
    """Messages a second since the beginning."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._began = clock()

    @property
    def elapsed_s(self) -> float:
        return self._clock() - self._began

    def of(self, done: int) -> float:
        return done / self.elapsed_s if self.elapsed_s > 0 else 0.0


class _Bar:
    def __init__(self, bar: rich.progress.Progress) -> None:
        self._bar = bar
        self._rate = _Rate(time.monotonic)
        self._task = bar.add_task("forwarding", total=None, rate="")
        bar.start()

    def update(self, done: int, total: int) -> None:
        """See `report.Progress`."""
        rate = _rate_text(self._rate.of(done))
        self._bar.update(self._task, completed=done, total=total, rate=rate)

    def close(self) -> None:
        """See `report.Progress`."""
        self._bar.stop()


class ProgressLine:
    """A line that overwrites itself, without colour and without escape sequences.

    Lines of the log are written to it, so that it can clear itself first.
    """

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._rate = _Rate(clock)
        self._next_s = FIRST_S
        self._shown = 0

    def update(self, done: int, total: int) -> None:
        """See `report.Progress`."""
        elapsed_s = self._rate.elapsed_s
        if elapsed_s < self._next_s:
            return
        self._next_s = elapsed_s + EVERY_S
        rate = self._rate.of(done)
        left = f", {_duration((total - done) / rate)} left" if rate > 0 and total > done else ""
        text = f"{done:,} of {total:,} messages, {_rate_text(rate)}{left}"
        self._put(f"\r{text.ljust(self._shown)}")
        self._shown = len(text)

    def write(self, text: str) -> int:
        """Write a line of the log, in place of the line of progress."""
        self.close()
        return self._stream.write(text)

    def flush(self) -> None:
        """Flush the terminal."""
        self._stream.flush()

    def close(self) -> None:
        """See `report.Progress`."""
        if self._shown:
            self._put(f"\r{' ' * self._shown}\r")
            self._shown = 0

    def _put(self, text: str) -> None:
        try:
            self._stream.write(text)
            self._stream.flush()
        except OSError:
            self._next_s = float("inf")  # nobody looks any more; the log says so where it matters


def _rate_text(rate: float) -> str:
    return f"{rate:,.0f}/s" if rate >= 10 else f"{rate:.1f}/s"


def _duration(seconds: float) -> str:
    """Return a time for people: 7 s, 12:30, 2:05:00."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
