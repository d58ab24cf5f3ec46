"""The lines of a daemon's log: when, how bad, of which route, and what."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from maildirqmtp.daemon.log_lines import log_line, stamp
from maildirqmtp.forwarder.report import ERROR, INFO, WARNING

NOW_S = 1_769_860_800.25


def made(log_format: str, name: str = "", environment: dict[str, str] | None = None) -> str:
    """Return a line."""
    line = log_line(log_format, name, "/M p-", environment=environment or {}, clock=lambda: NOW_S)
    return line("deferred", WARNING, '1.a: r@y: deferred: "no" \\ \u00fc')


def test_text_has_the_time_in_front() -> None:
    """A file of a week of lines without times tells nothing."""
    said = 'maildirqmtp: 1.a: r@y: deferred: "no" \\ \u00fc'
    assert made("text") == f"2026-01-31T12:00:00.250Z {said}"
    named = said.replace("maildirqmtp: ", "maildirqmtp: /M: ")
    assert made("text", "/M") == f"2026-01-31T12:00:00.250Z {named}"


def test_the_journal_gets_priorities_and_keeps_the_time(tmp_path: Path) -> None:
    """Also in front of JSON: it takes them off."""
    with (tmp_path / "log").open("wb") as log:
        status = os.fstat(log.fileno())
        environment = {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"}
        text, as_json = (
            log_line(how, "", "/M", environment=environment, fd=log.fileno(), clock=lambda: NOW_S)
            for how in ("text", "json")
        )
    assert text("note", INFO, "hello") == "<6>maildirqmtp: hello"
    assert as_json("trouble", ERROR, "no")[:3] == "<3>"
    assert json.loads(as_json("trouble", ERROR, "no")[3:])["level"] == "error"


def test_json_is_one_object_in_ascii() -> None:
    """Whatever a server says: its quotes and letters are escaped, as RFC 8259, 7 has it."""
    line = made("json", "/M")
    assert line.isascii()
    assert line.isprintable()
    assert json.loads(line) == {
        "time": "2026-01-31T12:00:00.250Z",
        "level": "warning",
        "route": "/M p-",
        "event": "deferred",
        "text": '1.a: r@y: deferred: "no" \\ \u00fc',
    }


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0.0, "1970-01-01T00:00:00.000Z"),
        (0.9996, "1970-01-01T00:00:00.999Z"),
        (1_769_860_799.001, "2026-01-31T11:59:59.001Z"),
        (-0.5, "1969-12-31T23:59:59.500Z"),
    ],
)
def test_times(seconds: float, shown: str) -> None:
    """UTC, whatever the machine's zone, and no minute of 60 seconds."""
    assert stamp(seconds) == shown
