"""`maildirqmtp --status`: what waits in maildirs, and why; what has failed there.

What waits is read from the maildir itself; when it is tried next from the daemon's status
file, and how often it was tried from that and from the state file.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import stat
import sys
import textwrap
import time
from functools import partial
from typing import TYPE_CHECKING

from maildirqmtp.cli import queue_output
from maildirqmtp.daemon.known_state import KnownState
from maildirqmtp.daemon.listing import daemon_text
from maildirqmtp.daemon.status import read, served, settings_of
from maildirqmtp.errors import EnvelopeError, FileChangedError, LocalError, SidecarError
from maildirqmtp.exit_codes import EXIT_OK, EXIT_TEMPORARY
from maildirqmtp.forwarder.large_messages import how_far
from maildirqmtp.forwarder.queued_message import PassedOver, prepare
from maildirqmtp.forwarder.route import Route
from maildirqmtp.maildir import holds, sidecars
from maildirqmtp.maildir.files import local_error
from maildirqmtp.maildir.maildir import Maildir
from maildirqmtp.maildir.oldest import oldest
from maildirqmtp.settings.units import ago
from maildirqmtp.text import LAST_S, printable, printable_text
from maildirqmtp.transport.endpoint import TcpEndpoint

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from maildirqmtp.maildir.attempts import Attempts
    from maildirqmtp.maildir.maildir import Candidates
    from maildirqmtp.settings.flags_and_keys import Values

#: The most messages that are listed of each maildir by default.
LIMIT = 100
#: Names whose files are opened, if no higher limit is given; the others are only counted.
LOOK = 2_000
#: The settings that say which messages are sent, with which envelope, and where failures go.
_GIVEN = ("include_cur", "sender", "default_sender", "recipients", "max_bytes", "failed")
#: How deep nested values of a status file are shown; a genuine file has three levels, and one is
#: added around it.
_MAX_DEPTH = 6


def show_maildir(path: bytes, given: Values, as_json: bool, limit: int | None = None) -> int:
    """Print what waits in a maildir, and what has failed; return 111 if anything waits.

    Each route and shard that a daemon serves is shown; without a daemon, the whole maildir.
    The settings of a route in `given` override those that the daemon tells; a shard in them is the
    only one that is shown.
    """
    try:
        with Maildir(path) as maildir:
            found = served(maildir)
            settings = settings_of(maildir, found)
    except LocalError:
        found, settings = [], {}  # it is told when it is looked at
    if (shard := given.get("shard")) is not None:
        found = [(prefix, shard) for prefix in sorted({prefix for prefix, _ in found}) or [b""]]
    server = TcpEndpoint("nowhere")
    own = {field: value for field, value in given.items() if field in _GIVEN}
    routes = [
        Route(path, server, prefix=prefix, shard=part, **settings.get(prefix, {}) | own)
        for prefix, part in found or [(b"", None)]
    ]
    return show(routes, as_json, limit)


def show(routes: Sequence[Route], as_json: bool, limit: int | None = None) -> int:
    """Print what waits for each route, and then what each failed maildir holds.

    Of each, the oldest `limit` messages are listed (None means `LIMIT`) and the others counted.
    Returns 111 if anything waits, or a maildir could not be read.
    """
    code = EXIT_OK
    limit = LIMIT if limit is None else limit
    # Routes may share a failed maildir.
    failed = dict.fromkeys((route.failed_maildir, route.failed is None) for route in routes)
    for route in routes:
        found = _or_complain(partial(_look, route, limit))
        if found is None or found["messages"]:
            code = EXIT_TEMPORARY
        if found is not None:
            _put("status", found, as_json, _print)
    for path, is_own in failed:
        if os.path.lexists(path):
            found = _or_complain(partial(_look_at_failed, path, is_own, limit))
            if found is None:
                code = EXIT_TEMPORARY
            elif found["count"]:
                _put("failed-maildir", found, as_json, _print_failed)
    sys.stdout.flush()
    return code


def _or_complain(look: Callable[[], dict[str, Any]]) -> dict[str, Any] | None:
    try:
        return look()
    except LocalError as error:
        # If this cannot be printed, the exit code still tells; the other maildirs are shown anyway.
        with contextlib.suppress(OSError):
            print(f"maildirqmtp: {error}", file=sys.stderr, flush=True)
        return None


def _put(
    event: str, found: dict[str, Any], as_json: bool, show: Callable[[dict[str, Any]], None]
) -> None:
    if as_json:
        print(json.dumps({"event": event, **_safe(found)}, allow_nan=False))
    else:
        show(found)


def _candidates(maildir: Maildir, include_cur: bool, limit: int) -> tuple[int, Candidates]:
    """Return how many names are only counted, and those whose files are opened, oldest first."""
    count, found = oldest(maildir, max(limit, LOOK), include_cur)
    if count > len(found):
        return count - len(found), found
    return 0, maildir.scan(include_cur)


def _look(route: Route, limit: int) -> dict[str, Any]:
    """Return what waits in a maildir, and what its daemon's status file says."""
    now_s = time.time()
    waiting: list[dict[str, Any]] = []
    with Maildir(route.maildir, shard=route.shard) as maildir:
        daemon = read(maildir, route.prefix, route.shard)
        told = daemon.get("waiting") if daemon else None
        state = KnownState(maildir)
        held = state.held()
        last_run = printable_text(state.last_stop())
        more, candidates = _candidates(maildir, route.include_cur, limit)
        for folder, name in candidates:
            about = _about(maildir, route, folder, name)
            if about is not None and len(waiting) >= limit:
                more += 1
            elif about is not None:
                known = told.get(os.fsdecode(name)) if isinstance(told, dict) else None
                if holds.key(name) in held and not about["reason"]:
                    about["reason"] = f"held: {held[holds.key(name)]}"
                broken = state.broken(name)
                why = how_far(*broken) if broken else ""
                waiting.append(_merged(about, known, state.attempts(name), why, now_s))
    if daemon is not None:
        daemon.pop("waiting", None)
    shown: dict[str, Any] = {"maildir": printable(route.maildir), "prefix": printable(route.prefix)}
    shown |= {"shard": str(route.shard) if route.shard else None, "messages": len(waiting) + more}
    return {**shown, "daemon": daemon, "last_run": last_run, "waiting": waiting}


def _about(maildir: Maildir, route: Route, folder: Any, name: bytes) -> dict[str, Any] | None:
    """Return what a message's files tell; None if it is no message, or not of this route."""
    about: dict[str, Any] = {"message": printable(name), "recipients": [], "reason": ""}
    try:
        queued = prepare(maildir, route, folder, name)
        if isinstance(queued, PassedOver):
            return None
        message = queued.message
        message.close()
        about |= {
            "sender": printable(queued.sender),
            "recipients": [printable(r) for r in queued.recipients],
            "bytes": queued.length,
            "since": message.mtime_s,
        }
    except (EnvelopeError, FileChangedError, LocalError) as error:
        about["reason"] = f"held: {error}"
    about["failures"] = _failures(maildir, name)
    return about


def _look_at_failed(path: bytes, is_own: bool, limit: int) -> dict[str, Any]:
    """Return what a failed maildir holds, and why; `is_own` if it is inside its maildir.

    Raises `LocalError` if the maildir or one of its files cannot be looked at.
    """
    now_s = time.time()
    messages: list[dict[str, Any]] = []
    with Maildir(path, nofollow=is_own) as maildir:
        more, candidates = _candidates(maildir, True, limit)
        for folder, name in candidates:
            if len(messages) >= limit:
                more += 1
                continue
            try:
                status = os.stat(name, dir_fd=folder.fd, follow_symlinks=False)
            except FileNotFoundError:
                continue
            except OSError as error:
                raise local_error("look at", folder.join(name), error) from error
            if stat.S_ISREG(status.st_mode):
                messages.append(
                    {
                        "message": printable(name),
                        "bytes": status.st_size,
                        "age_s": round(max(0.0, now_s - status.st_mtime), 1),
                        "failures": _failures(maildir, name),
                    }
                )
    return {"maildir": printable(path), "count": len(messages) + more, "messages": messages}


def _failures(maildir: Maildir, name: bytes) -> list[dict[str, str]]:
    try:
        sidecar = sidecars.read(maildir, name)
    except (SidecarError, LocalError):
        return []  # then the message is held, and that is shown
    failures = sidecar.failures if sidecar else ()
    return [
        {"recipient": printable(f.recipient), "response": f.response, "at": f.at} for f in failures
    ]


def _merged(
    about: dict[str, Any], known: Any, attempts: Attempts, otherwise: str, now_s: float
) -> dict[str, Any]:
    """Return all that is known of a message; `otherwise` is the reason if no daemon knows one.

    `attempts` are those in the state file, which survive a restart.
    """
    known = known if isinstance(known, dict) else {}
    tries, why, next_s = known.get("tries"), known.get("reason"), known.get("next")
    tries = tries if isinstance(tries, int) else None
    # Released since the daemon has tried it, which takes a server.
    why = why if isinstance(why, str) and why not in (holds.REASON, holds.BOUNCING) else ""
    # A number of hundreds of digits, or NaN, would spoil the table.
    if not isinstance(next_s, (int, float)) or not 0 < next_s < LAST_S:
        next_s = None
    since = about.get("since")
    before, last = attempts
    otherwise = otherwise or (last[0][1] if last else "")
    return {
        **about,
        "age_s": round(max(0.0, now_s - since), 1) if since is not None else None,
        "tries": max(tries or 0, before) if tries or before else tries,
        "reason": about["reason"] or why or otherwise,
        "next": next_s,
        "attempts": [{"at": at, "text": text} for at, text in last],
    }


def _print(found: dict[str, Any]) -> None:
    waiting, who = found["waiting"], daemon_text(found["daemon"], found["last_run"])
    prefix = f" {found['prefix']}" if found["prefix"] else ""
    shard = f", shard {found['shard']}" if found["shard"] else ""
    _print_wrapped(f"{found['maildir']}{prefix}{shard}: {found['messages']} waiting; {who}")
    if not waiting:
        return
    rows = [("AGE", "TRIES", "NEXT", "BYTES", "MESSAGE", "FOR", "WHY")]
    for one in waiting:
        recipients = one["recipients"]
        more = f" and {len(recipients) - 1} more" if len(recipients) > 1 else ""
        rows.append(
            (
                ago(one["age_s"]),
                "-" if one["tries"] is None else str(one["tries"]),
                "-" if one["next"] is None else ago(max(0.0, one["next"] - time.time())),
                str(one.get("bytes", "-")),
                one["message"],
                f"{recipients[0]}{more}" if recipients else "-",
                printable_text(one["reason"]),
            )
        )
    _print_table(rows)
    _print_more(found["messages"] - len(waiting))


def _print_more(count: int) -> None:
    if count:
        print(f"  and {count:,} more")


def _print_failed(found: dict[str, Any]) -> None:
    print(f"{found['maildir']}: {found['count']} failed")
    if not found["messages"]:
        return
    rows = [("AGE", "BYTES", "MESSAGE", "FOR", "WHY")]
    for one in found["messages"]:
        unknown = [{"recipient": "-", "response": "-no sidecar says why"}]
        rows += [
            (
                ago(one["age_s"]),
                str(one["bytes"]),
                one["message"],
                failure["recipient"],
                printable(failure["response"][1:].encode("utf-8", "replace")),
            )
            for failure in one["failures"] or unknown
        ]
    _print_table(rows)
    _print_more(found["count"] - len(found["messages"]))


def _print_table(rows: Sequence[Sequence[str]]) -> None:
    """Print rows in aligned columns; the last cell of a row may have any length.

    On a terminal, where it would wrap, it is on lines of its own below the row, which is cut.
    """
    screen = queue_output.columns()
    if screen is not None:
        column = rows[0].index("MESSAGE")
        shown = queue_output.shortest([row[column] for row in rows])
        rows = [
            (*row[:column], name, *row[column + 1 :]) for row, name in zip(rows, shown, strict=True)
        ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        if screen is None:
            print("  " + "  ".join([*cells, row[-1]]).rstrip())
            continue
        print(queue_output.fitted("  " + "  ".join(cells).rstrip(), screen))
        if row is not rows[0]:
            _print_wrapped(row[-1], " " * 8)


def _print_wrapped(text: str, indent: str = "") -> None:
    """Print a text, on a terminal on as many lines as it takes; paths and addresses stay whole."""
    screen = queue_output.columns()
    if screen is None:
        print(f"{indent}{text}")
        return
    lines = textwrap.wrap(
        text,
        screen,
        initial_indent=indent,
        subsequent_indent=indent or " " * 8,
        break_long_words=False,
        break_on_hyphens=False,
    )
    for line in lines:
        print(line)


def _safe(value: Any, depth: int = 0) -> Any:
    """Return a value from a status file, made safe for a terminal and for JSON.

    The maildir's owner may have forged the file, and root may print it.
    """
    if isinstance(value, str):
        return printable(value.encode("utf-8", "replace"))
    if isinstance(value, float) and not math.isfinite(value):  # as 1e999 is read
        return None
    if depth < _MAX_DEPTH:
        if isinstance(value, dict):
            return {_safe(key): _safe(item, depth + 1) for key, item in value.items()}
        if isinstance(value, list):
            return [_safe(item, depth + 1) for item in value]
    return None if isinstance(value, (dict, list)) else value
