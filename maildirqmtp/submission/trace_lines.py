"""Lines that a delivery agent has put on top of a message that is now submitted.

They are about an earlier delivery: preline(1), procmail and maildrop write an
mbox `From ` line and Return-Path, Delivered-To or Envelope-to. If it stayed, the
`From ` line would end the header of the message that is sent. Mail that was
delivered more than once has several, escaped as `>From `; Postfix's sendmail
removes them all. A field goes with all of its lines: what stayed of one would end the header, and
show what the rest of it hides.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from maildirqmtp.mail import envelope, fields

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

#: Bytes on top of a message that are examined first, and at most: the numbers of
#: `maildir.maildir`, which is slow to load.
TOP_BYTES = 64 << 10
WHOLE_MAX = 1 << 20

_FROM_LINES = re.compile(rb"(?:>*+From [^\n]*+(?:\n|\Z))++")


def remove_trace(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Yield a message without the lines of an earlier delivery on top of it.

    The `From ` lines are removed, and those trace lines that the forwarder removes: the
    first Return-Path, the first Delivered-To, all Envelope-to. Later ones stay, because
    mail loops are found by them; so if the forwarder would then remove one more, all
    trace lines are left to it. At most 1 MiB is held.
    """
    source = iter(pieces)
    top, complete, limit = b"", False, TOP_BYTES
    while True:
        while not complete and len(top) < limit:
            piece = next(source, None)
            complete = piece is None
            top += piece or b""
        kept = _without_trace(top, complete)
        if kept is not None or limit >= WHOLE_MAX:
            break
        limit *= 4
    yield top if kept is None else kept
    yield from source


def _without_trace(top: bytes, complete: bool) -> bytes | None:
    """Return the beginning of a message without its trace lines; None if more is needed."""
    if found := _FROM_LINES.match(top):
        if found.end() == len(top) and not complete:
            return None
        top = top[found.end() :]
    unfolded = _unfolded(top, complete)
    rest = None if unfolded is None else _as_sent(unfolded, complete)
    if rest is None:
        return None
    return rest if _as_sent(rest, complete) == rest else unfolded


def _unfolded(top: bytes, complete: bool) -> bytes | None:
    """Return a beginning with each trace field on one line; None if more is needed.

    Without Envelope-to: it may name a blind recipient, and where these lines are left to the
    forwarder, a line that is put above them would keep it from them.

    Lines that begin with a blank belong to the field above them if another field follows: no
    message begins so. Without one, they may be the text of a message that has no header.
    """
    head = fields.read(top, complete)
    if head is None:
        return None if len(top) < WHOLE_MAX else top
    parts, at = [], 0
    for field in head.fields[:-1]:
        if field.name not in envelope.FIELDS:
            break
        if field.name in envelope.REMOVED_ONCE:
            parts.append(field.raw.replace(b"\r\n", b"").replace(b"\n", b"") + b"\n")
        elif field.name != b"envelope-to":
            parts.append(field.raw)
        at += len(field.raw)
    return b"".join(parts) + top[at:]


def _as_sent(top: bytes, complete: bool) -> bytes | None:
    """Return what the forwarder sends of a message with this beginning; None if more is needed."""
    trace = envelope.read_trace(top, complete)
    return None if trace is None else trace.kept + top[trace.offset :]
