"""What waits in a maildir, and why: the daemon's status file, and `--status`.

    DIR/.maildirqmtp-status.json            of the route without a prefix
    DIR/.maildirqmtp-status-HEX.json        of one with, HEX being the prefix in hexadecimal

The file is one object: `version pid maildir` and what `snapshot` has; times are
seconds of the epoch, 0 for never. It is of use while its `pid` holds the
maildir's lock; what waits is read from the maildir itself.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import time
from typing import TYPE_CHECKING

from maildirqmtp.errors import EnvelopeError, FileChangedError, LocalError, SidecarError
from maildirqmtp.exit_codes import EXIT_OK, EXIT_TEMPORARY
from maildirqmtp.forwarder.queued_message import prepare
from maildirqmtp.forwarder.route import Route
from maildirqmtp.maildir import files, locking, sidecars
from maildirqmtp.maildir.files import local_error
from maildirqmtp.maildir.maildir import Maildir
from maildirqmtp.text import LAST_S, printable
from maildirqmtp.transport.endpoint import TcpEndpoint

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from maildirqmtp.daemon.snapshot import Snapshot

_VERSION = 1
_NAME = b".maildirqmtp-status"
#: Status files that are looked at; a maildir has few routes.
_MAX_FILES = 1_000
#: Bytes of a status file that are read.
_MAX_BYTES = 16 << 20
#: How deep the values of a status file are shown; its own are three deep, in one more.
_MAX_DEPTH = 6


def _name(prefix: bytes) -> bytes:
    which = b"-" + prefix.hex()[:200].encode() if prefix else b""
    return b"%b%b.json" % (_NAME, which)


def write(snapshot: Snapshot) -> None:
    """Write a route's status file; readers find the old or the new one. Raises `LocalError`."""
    route = snapshot.route
    content = {
        "version": _VERSION,
        "pid": os.getpid(),
        "maildir": os.fsdecode(route.maildir),
        **snapshot.as_dict(),
    }
    with Maildir(route.maildir) as maildir:
        name = _name(route.prefix)
        data = json.dumps(content, ensure_ascii=True).encode()
        files.replace(maildir.root, name, data, tmp=maildir.tmp, durable=False)


def read(maildir: Maildir, prefix: bytes) -> dict[str, Any] | None:
    """Return the status of the daemon that has the maildir now; None where there is none."""
    return _read(maildir, _name(prefix))


def _read(maildir: Maildir, name: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(files.load(maildir.root, name, _MAX_BYTES), parse_constant=_not_a_number)
    except (OSError, ValueError, RecursionError):
        return None  # no daemon, or none of ours: what waits can be told without it
    if not isinstance(found, dict) or found.get("version") != _VERSION:
        return None
    holder = locking.holder(maildir.root)
    return found if holder is not None and holder == found.get("pid") else None


def _not_a_number(constant: str) -> None:
    """Read NaN and Infinity, which are not JSON (RFC 8259, 6), as null."""


def _safe(value: Any, depth: int = 0) -> Any:
    """Return a value from a file, safe for the terminals of those who print it, and JSON.

    A status file may have been forged by the maildir's owner, and root looks at it.
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


def served(maildir: Maildir) -> list[bytes]:
    """Return the prefixes of the routes of the daemon that has the maildir now. `LocalError`."""
    prefixes = set()
    try:
        found = [os.fsencode(name) for name in os.listdir(maildir.root.fd)]
    except OSError as error:
        raise local_error("list", maildir.path, error) from error
    for name in [name for name in found if name.startswith(_NAME)][:_MAX_FILES]:
        told = _read(maildir, name) or {}
        prefix = told.get("prefix")
        if not isinstance(prefix, str) or told.get("state") == "stopped":
            continue
        try:
            encoded = prefix.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError:  # nothing that we have written
            continue
        if _name(encoded) == name:
            prefixes.add(encoded)
    return sorted(prefixes)


def show_maildir(path: bytes, include_cur: bool, as_json: bool) -> int:
    """Print what waits in a maildir; return 111 where anything does.

    For each route that a daemon has it with; where there is none, for all that is in it.
    """
    try:
        with Maildir(path) as maildir:
            prefixes = served(maildir)
    except LocalError:
        prefixes = []  # it is told when it is looked at
    server = TcpEndpoint("nowhere")
    return show(
        [Route(path, server, prefix=p, include_cur=include_cur) for p in prefixes or [b""]],
        as_json,
    )


def show(routes: Iterable[Route], as_json: bool) -> int:
    """Print what waits for each route; return 111 where anything does."""
    code = EXIT_OK
    for route in routes:
        try:
            found = _look(route)
        except LocalError as error:
            code = EXIT_TEMPORARY
            # Where nobody can be told, the exit code says it; the others are shown all the same.
            with contextlib.suppress(OSError):
                print(f"maildirqmtp: {error}", file=sys.stderr, flush=True)
            continue
        if found["waiting"]:
            code = EXIT_TEMPORARY
        if as_json:
            print(json.dumps({"event": "status", **_safe(found)}, allow_nan=False))
        else:
            _print(found)
    sys.stdout.flush()
    return code


def _look(route: Route) -> dict[str, Any]:
    """Return what waits in a maildir, and what its daemon says."""
    now_s = time.time()
    waiting = []
    with Maildir(route.maildir) as maildir:
        daemon = read(maildir, route.prefix)
        told = daemon.get("waiting") if daemon else None
        for folder, name in maildir.scan(route.include_cur):
            about = _about(maildir, route, folder, name)
            if about is not None:
                known = told.get(os.fsdecode(name)) if isinstance(told, dict) else None
                waiting.append(_merged(about, known, now_s))
    if daemon is not None:
        daemon.pop("waiting", None)
    shown = {"maildir": printable(route.maildir), "prefix": printable(route.prefix)}
    return {**shown, "daemon": daemon, "waiting": waiting}


def _about(maildir: Maildir, route: Route, folder: Any, name: bytes) -> dict[str, Any] | None:
    """Return what a message says of itself; None for what is none, or not of this route."""
    about: dict[str, Any] = {"message": printable(name), "recipients": [], "reason": ""}
    try:
        queued = prepare(maildir, route, folder, name)
        if queued is None:
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


def _failures(maildir: Maildir, name: bytes) -> list[dict[str, str]]:
    if not maildir.has_envelopes:
        return []
    try:
        sidecar = sidecars.read(maildir, name)
    except (SidecarError, LocalError):
        return []  # then the message is held, and that is shown
    failures = sidecar.failures if sidecar else ()
    return [
        {"recipient": printable(f.recipient), "response": f.response, "at": f.at} for f in failures
    ]


def _merged(about: dict[str, Any], known: Any, now_s: float) -> dict[str, Any]:
    known = known if isinstance(known, dict) else {}
    tries, why, next_s = known.get("tries"), known.get("reason"), known.get("next")
    # What a number of hundreds of digits, or NaN, would do to a table.
    if not isinstance(next_s, (int, float)) or not 0 < next_s < LAST_S:
        next_s = None
    since = about.get("since")
    return {
        **about,
        "age_s": round(max(0.0, now_s - since), 1) if since is not None else None,
        "tries": tries if isinstance(tries, int) else None,
        "reason": about["reason"] or (why if isinstance(why, str) else ""),
        "next": next_s,
    }


def _print(found: dict[str, Any]) -> None:
    waiting, daemon = found["waiting"], found["daemon"]
    who = "no daemon"
    if daemon is not None:
        who = f"process {daemon['pid']}, {daemon.get('state')}, to {daemon.get('server')}"
        if daemon.get("state") == "backing off":
            who += f" ({daemon.get('excuse')})"
    prefix = f" {found['prefix']}" if found["prefix"] else ""
    who = printable(who.encode("utf-8", "replace"))
    print(f"{found['maildir']}{prefix}: {len(waiting)} waiting; {who}")
    if not waiting:
        return
    rows = [("AGE", "TRIES", "NEXT", "BYTES", "MESSAGE", "FOR", "WHY")]
    for one in waiting:
        recipients = one["recipients"]
        more = f" and {len(recipients) - 1} more" if len(recipients) > 1 else ""
        rows.append(
            (
                _ago(one["age_s"]),
                "-" if one["tries"] is None else str(one["tries"]),
                "-" if one["next"] is None else _ago(max(0.0, one["next"] - time.time())),
                str(one.get("bytes", "-")),
                one["message"],
                f"{recipients[0]}{more}" if recipients else "-",
                printable(one["reason"].encode("utf-8", "replace")),
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(6)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        print("  " + "  ".join([*cells, row[6]]).rstrip())


def _ago(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    for unit, size in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if seconds >= size:
            return f"{seconds / size:.1f}{unit}"
    return f"{seconds:.0f}s"
