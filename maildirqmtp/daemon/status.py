"""The daemon's status files, one for each route, for `--status` and `qmtpq`.

    DIR/.maildirqmtp-status.json            of the route without a prefix
    DIR/.maildirqmtp-status-HEX.json        of a route with one; HEX is it in hexadecimal
    DIR/...-shard-K-N.json                  of a shard of either

A file is one object: `version pid maildir` and what `snapshot` has; times are
seconds of the epoch, 0 for never. It counts only while its `pid` holds the
maildir's lock; what waits is read from the maildir itself.
"""

from __future__ import annotations

import json
import os
import re
from typing import TYPE_CHECKING

from maildirqmtp.maildir import files, locking
from maildirqmtp.maildir.files import local_error
from maildirqmtp.maildir.maildir import Maildir
from maildirqmtp.maildir.shard import MAX_SHARDS, Shard
from maildirqmtp.qmtp.protocol import check_address

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from maildirqmtp.daemon.snapshot import Snapshot

_VERSION = 1
_NAME = b".maildirqmtp-status"
#: The most status files that are read; a maildir has few routes.
_MAX_FILES = 1_000
#: The most bytes of a status file; a longer one is ignored.
_MAX_BYTES = 16 << 20


def _name(prefix: bytes, shard: Shard | None) -> bytes:
    which = b"-" + prefix.hex()[:200].encode() if prefix else b""
    return b"%b%b%b.json" % (_NAME, which, shard.suffix if shard else b"")


def write(snapshot: Snapshot) -> None:
    """Write a route's status file; readers find the old or the new one, never a part.

    Raises `LocalError` if the maildir cannot be opened, or the file cannot be written.
    """
    route = snapshot.route
    content = {
        "version": _VERSION,
        "pid": os.getpid(),
        "maildir": os.fsdecode(route.maildir),
        **snapshot.as_dict(),
    }
    with Maildir(route.maildir) as maildir:
        name = _name(route.prefix, route.shard)
        data = json.dumps(content, ensure_ascii=True).encode()
        files.replace(maildir.root, name, data, tmp=maildir.tmp, durable=False)


def read(maildir: Maildir, prefix: bytes, shard: Shard | None = None) -> dict[str, Any] | None:
    """Return the status of the daemon that serves the maildir, or a shard, now; None for none."""
    return _read(maildir, _name(prefix, shard), shard)


def _read(maildir: Maildir, name: bytes, shard: Shard | None) -> dict[str, Any] | None:
    try:
        found = json.loads(files.load(maildir.root, name, _MAX_BYTES), parse_constant=_not_a_number)
    except (OSError, ValueError, RecursionError):
        return None  # no daemon, or none of ours: what waits can be told without it
    if not isinstance(found, dict) or found.get("version") != _VERSION:
        return None
    holder = locking.holder(maildir.root, shard)
    return found if holder is not None and holder == found.get("pid") else None


def _not_a_number(constant: str) -> None:
    """Read NaN and Infinity, which are not JSON (RFC 8259, 6), as null."""


def served(maildir: Maildir) -> list[tuple[bytes, Shard | None]]:
    """Return the prefixes and shards of the routes that daemons serve in the maildir now.

    If one shard is served, all are listed. Raises `LocalError` if the maildir cannot be listed.
    """
    routes: set[tuple[bytes, Shard | None]] = set()
    try:
        found = [os.fsencode(name) for name in os.listdir(maildir.root.fd)]
    except OSError as error:
        raise local_error("list", maildir.path, error) from error
    for name in [name for name in found if name.startswith(_NAME)][:_MAX_FILES]:
        shard = _shard_of(name)
        told = _read(maildir, name, shard) or {}
        prefix = told.get("prefix")
        if not isinstance(prefix, str) or told.get("state") == "stopped":
            continue
        try:
            encoded = prefix.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError:  # nothing that we have written
            continue
        if _name(encoded, shard) == name:
            shards = (
                [None] if shard is None else [Shard(k, shard.total) for k in range(shard.total)]
            )
            routes.update((encoded, one) for one in shards)
    return sorted(routes, key=lambda route: (route[0], route[1] or ()))


def settings_of(
    maildir: Maildir, routes: Iterable[tuple[bytes, Shard | None]]
) -> dict[bytes, dict[str, Any]]:
    """Return fields of these routes, as `served` returns them, by prefix.

    They are those that say which messages are sent, and with which envelope.
    """
    return {
        prefix: _settings(told, bool(prefix))
        for prefix, shard in routes
        if (told := read(maildir, prefix, shard))
    }


def _settings(told: dict[str, Any], has_prefix: bool) -> dict[str, Any]:
    """Return the fields of a route in its status file, which the maildir's owner may have forged.

    Version 1.0.0 does not tell them.
    """
    size, recipients = told.get("max_size"), told.get("recipients")
    found = [_address(one) for one in recipients] if isinstance(recipients, list) else []
    return {
        "include_cur": told.get("cur", has_prefix) is True,
        "sender": _address(told.get("sender")),
        "default_sender": _address(told.get("default_sender")),
        "recipients": tuple(filter(None, found)),
        "max_bytes": size if type(size) is int and size > 0 else None,
    }


def _address(text: object) -> bytes | None:
    if not isinstance(text, str):
        return None
    try:
        address = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # nothing that we have written
        return None
    return address if check_address(address, "address") is None else None


def _shard_of(name: bytes) -> Shard | None:
    """Return the shard in the name of a status file; None if it names none."""
    found = re.search(rb"-shard-([0-9]{1,4})-([0-9]{1,4})\.json\Z", name)
    if found is None or not 0 < int(found[2]) <= MAX_SHARDS:
        return None
    return Shard(int(found[1]), int(found[2]))
