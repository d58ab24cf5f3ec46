"""The progress bar: never where nobody looks, never where rich is missing."""

import builtins
import io

import pytest

from maildirqmtp.forwarder import progress
from maildirqmtp.forwarder.report import Report
from tests.fakes import FakeClock


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        """Say so."""
        return True


def test_none_without_a_terminal() -> None:
    """A log file full of escape sequences helps nobody; and rich is slow to import."""
    assert progress.make(io.StringIO()) is None


def test_a_line_without_rich(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is an extra: without it a run of minutes is not silent either."""
    real = builtins.__import__

    def without(name: str, *arguments: object, **more: object) -> object:
        if name.startswith("rich"):
            raise ImportError(name)
        return real(name, *arguments, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", without)
    stream = Terminal()
    assert isinstance(progress.make(stream), progress.ProgressLine)
    assert progress.log_of(progress.make(stream), stream) is not stream


def test_a_line_says_how_far_how_fast_and_how_long() -> None:
    """Not at once, not too often, in plain text; nothing of it is left."""
    stream, clock = Terminal(), FakeClock(0.0)
    line = progress.ProgressLine(stream, clock)
    for second, done in ((0.5, 500), (2.0, 5_000), (2.1, 5_250), (4.0, 10_000)):
        clock.now = second
        line.update(done, 20_000)
    first, second_one = stream.getvalue().split("\r")[1:]
    assert first == "5,000 of 20,000 messages, 2,500/s, 6 s left"
    assert second_one == "10,000 of 20,000 messages, 2,500/s, 4 s left"
    line.close()
    assert stream.getvalue().endswith("\r" + " " * len(second_one) + "\r")
    assert stream.getvalue().replace("\r", "").isprintable()
    assert len(second_one) < 80


def test_a_line_of_the_log_takes_its_place() -> None:
    """What is deferred is to be read, and not written over."""
    stream, clock = Terminal(), FakeClock(0.0)
    line = progress.ProgressLine(stream, clock)
    clock.now = 100.0
    line.update(10, 100_000)
    shown = len(stream.getvalue()) - 1
    assert stream.getvalue() == "\r10 of 100,000 messages, 0.1/s, 277:45:00 left"
    report = Report(progress.log_of(line, stream), None, 0, line)
    report.note("something")
    rest = stream.getvalue()[shown + 1 :]
    assert rest == "\r" + " " * shown + "\rmaildirqmtp: something\n"
    clock.now = 200.0
    line.update(10, 0)
    assert "left" not in stream.getvalue()[shown + 1 :]


def test_a_terminal_that_has_gone_away_ends_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mail goes on after a hang-up, and nothing more is written there."""
    stream, clock = Terminal(), FakeClock(0.0)
    written = []

    def fail(text: str) -> int:
        written.append(text)
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(stream, "write", fail)
    line = progress.ProgressLine(stream, clock)
    clock.now = 100.0
    line.update(10, 20)
    clock.now = 200.0
    line.update(20, 20)
    line.close()
    assert len(written) == 2  # the line, and what would have cleared it


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """It shows how far it is, and leaves the terminal as it was."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.delenv("NO_COLOR", raising=False)
    stream = Terminal()
    bar = progress.make(stream)
    assert bar is not None
    bar.update(30, 60)
    bar.update(60, 60)
    bar.close()
    shown = stream.getvalue()
    assert "forwarding" in shown
    assert "100%" in shown
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h")
    written = len(shown)
    bar.close()
    assert "forwarding" not in stream.getvalue()[written:]


def test_no_color_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    """no-color.org."""
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("NO_COLOR", "1")
    stream = Terminal()
    bar = progress.make(stream)
    assert bar is not None
    bar.update(30, 60)
    bar.close()
    assert "\x1b[3" not in stream.getvalue()
    assert "\x1b[9" not in stream.getvalue()
