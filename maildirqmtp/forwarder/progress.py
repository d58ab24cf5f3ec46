"""The progress bar, where the extra `progress` (rich) is installed and a terminal is there."""

from __future__ import annotations

from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    import rich.progress

    from maildirqmtp.forwarder.report import Progress


def make(stream: TextIO) -> Progress | None:
    """Return a progress bar on `stream`, or None where it is no terminal or rich is missing."""
    if not stream.isatty():
        return None
    try:
        import rich.console
        import rich.progress
    except ImportError:
        return None
    console = rich.console.Console(file=stream)
    return _Bar(rich.progress.Progress(console=console, transient=True))


class _Bar:
    def __init__(self, bar: rich.progress.Progress) -> None:
        self._bar = bar
        self._task = bar.add_task("forwarding", total=None)
        bar.start()

    def update(self, done: int, total: int) -> None:
        """See `report.Progress`."""
        self._bar.update(self._task, completed=done, total=total)

    def close(self) -> None:
        """See `report.Progress`."""
        self._bar.stop()
