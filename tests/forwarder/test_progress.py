"""The progress bar: never where nobody looks, never where rich is missing."""

import builtins
import io

import pytest

from maildirqmtp.forwarder import progress


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        """Say so."""
        return True


def test_none_without_a_terminal() -> None:
    """A log file full of escape sequences helps nobody; and rich is slow to import."""
    assert progress.make(io.StringIO()) is None


def test_none_without_rich(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is an extra: without it everything else works."""
    real = builtins.__import__

    def without(name: str, *arguments: object, **more: object) -> object:
        if name.startswith("rich"):
            raise ImportError(name)
        return real(name, *arguments, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", without)
    assert progress.make(Terminal()) is None


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
