"""The lines of a daemon's log: text with the time in front, or JSON (`--log-format`).

    text     2026-01-31T12:00:00.250Z maildirqmtp: /M: 1.a: r@y: deferred: later
    journal  <4>maildirqmtp: /M: 1.a: r@y: deferred: later
    json     {"time": "2026-01-31T12:00:00.250Z", "level": "warning", "route": "/M",
              "event": "deferred", "text": "1.a: r@y: deferred: later"}

The journal records the time itself and expects priorities (sd-daemon(3)), which it
strips, also in front of JSON. The texts are printable already; JSON is ASCII, with
everything else escaped (RFC 8259, 7), so that a line is one object whatever a server
or a file name contains.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from maildirqmtp.daemon.systemd import to_journal
from maildirqmtp.forwarder.report import ERROR, INFO, WARNING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

JSON = "json"
_LEVELS = {ERROR: "error", WARNING: "warning", INFO: "info"}


def log_line(
    log_format: str,
    name: str,
    route: str,
    *,
    environment: Mapping[str, str] = os.environ,
    fd: int = 2,
    clock: Callable[[], float] = time.time,
) -> Callable[[str, int, str], str]:
    """Return the function that makes a line of an event, a priority and a text (`Report`).

    `name` distinguishes a route from the others in a text, empty for the only one;
    `route` names it in JSON. `fd` is the descriptor that the lines go to, `clock`
    seconds of the epoch.
    """
    journal = to_journal(environment, fd)
    prefix = f"maildirqmtp: {name}: " if name else "maildirqmtp: "

    def text_line(event: str, level: int, text: str) -> str:
        return f"{f'<{level}>' if journal else f'{stamp(clock())} '}{prefix}{text}"

    def json_line(event: str, level: int, text: str) -> str:
        import json

        found = {"time": stamp(clock()), "level": _LEVELS[level], "route": route}
        found |= {"event": event, "text": text}
        return f"{f'<{level}>' if journal else ''}{json.dumps(found)}"

    return json_line if log_format == JSON else text_line


def stamp(seconds: float) -> str:
    """Return a time (seconds of the epoch) in RFC 3339 format: UTC, with milliseconds."""
    whole, thousandths = divmod(int(seconds * 1_000), 1_000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(whole))}.{thousandths:03}Z"
