"""The daemon's status file: what it says of a route, for `--status` (`cli.status`).

    DIR/.maildirqmtp-status.json            of the route without a prefix
    DIR/.maildirqmtp-status-HEX.json        of one with, HEX being the prefix in hexadecimal

The file is one object: `version pid maildir` and what `snapshot` has; times are
seconds of the epoch, 0 for never. It is of use while its `pid` holds the
maildir's lock; what waits is read from the maildir itself.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

from maildirqmtp.maildir import files, locking
from maildirqmtp.maildir.files import local_error
from maildirqmtp.maildir.maildir import Maildir

if TYPE_CHECKING:
    from typing import Any

    from maildirqmtp.daemon.snapshot import Snapshot

_VERSION = 1
_NAME = b".maildirqmtp-status"
#: Status files that are looked at; a maildir has few routes.
_MAX_FILES = 1_000
#: Bytes of a status file that are read.
_MAX_BYTES = 16 << 20


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
