"""The envelope, from the trace lines on top of a message.

serialmail's rule is `Return-Path: <...>` and then `Delivered-To: ...`, and both
go before the message is sent. The delivery agents of today write a few more
lines, in another order; so this is what is looked at, and nothing below it:

    block      = the lines on top whose field is one of these, any letter case:
                 Return-Path, Delivered-To            taken, and removed
                 X-Original-To (Postfix)              kept
                 Envelope-to, Delivery-date (Exim)    kept
    sender     = the first Return-Path, between < and >; <> is the null sender
    recipients = the first Delivered-To, else Envelope-to

From: and To: are never looked at. What is not clear raises; it is never guessed.
"""

import re
from typing import NamedTuple

from maildirqmtp.errors import EnvelopeError
from maildirqmtp.qmtp.protocol import MAX_RECIPIENTS, check_address
from maildirqmtp.text import printable

#: Bytes of one line of the block, its end included.
MAX_LINE = 8_192
#: Bytes on top of a message within which the block has to end.
MAX_BLOCK = 65_536


class Trace(NamedTuple):
    """What the block on top of a message says, and what is left of it.

    `sender` is None and `recipients` empty where no line says. What is to be
    sent is `kept` and then the file from `offset` on.
    """

    sender: bytes | None
    recipients: tuple[bytes, ...]
    kept: bytes
    offset: int


# The form that qmail's own delivery writes, and below it nothing that begins as a line of the
# block does. Everything else takes the long way round, whose patterns are compiled only then.
_CLASSIC = re.compile(
    rb"Return-Path: <([^\n\r\0]{0,999})>\n"
    rb"Delivered-To: ([^\n\r\0\t <][^\n\r\0]{0,998})\n"
    rb"(?!(?i:ret|del|x-o|env)|[ \t])"
)
_REMOVED = (b"return-path", b"delivered-to")
_FIELDS = rb"return-path|delivered-to|x-original-to|envelope-to|delivery-date"
_LINE = rb"(?i:(" + _FIELDS + rb"))[ \t]*:[ \t]?([^\n]*?)\r?(?:\n|\Z)"
_FOLDED = rb"[ \t][^\n]*(?:\n|\Z)"


def read_trace(top: bytes, complete: bool) -> Trace:
    """Read the block on top of a message.

    `top` is the file's beginning, `complete` whether it is all of it. Raises
    `EnvelopeError` for a line above 8 KiB, a block above 64 KiB, a Return-Path
    or Delivered-To that is folded or not understood, and an address that no
    server takes. A message without a block gives a `Trace` without a sender.
    """
    match = _CLASSIC.match(top)
    if match and (complete or len(top) - match.end() >= MAX_LINE):
        sender, recipient = match.groups()
        return Trace(sender, (recipient,), b"", match.end())
    return _read_block(top, complete)


def _read_block(top: bytes, complete: bool) -> Trace:
    line_at, folded_at = re.compile(_LINE).match, re.compile(_FOLDED).match
    first: dict[bytes, bytes] = {}
    kept: list[bytes] = []
    name = b""
    counts = False
    offset = 0
    while match := line_at(top, offset) or (folded_at(top, offset) if name else None):
        line = match[0]
        if len(line) > MAX_LINE or (match.end() == len(top) and not complete):
            raise EnvelopeError(f"a trace line on top of it is longer than {MAX_LINE} bytes")
        if match.lastindex:
            name = match[1].lower()
            counts = name not in first
            if counts:
                first[name] = match[2]
        elif name in _REMOVED:
            raise EnvelopeError("its Return-Path or Delivered-To line is folded")
        elif counts:
            first[name] += line
        if name not in _REMOVED:
            kept.append(line)
        offset = match.end()
        if offset > MAX_BLOCK:
            raise EnvelopeError(f"the trace lines on top of it are more than {MAX_BLOCK} bytes")
    if not complete and len(top) - offset < MAX_LINE and top.find(b"\n", offset) < 0:
        # What follows is cut, and may be a Return-Path that would not be removed.
        raise EnvelopeError(f"the trace lines on top of it do not end within {len(top)} bytes")
    sender = _return_path(first[b"return-path"]) if b"return-path" in first else None
    recipients: tuple[bytes, ...] = ()
    if b"delivered-to" in first:
        recipients = (_bare(first[b"delivered-to"]),)
    elif b"envelope-to" in first:
        recipients = _split(first[b"envelope-to"])
    _check(sender, recipients)
    return Trace(sender, recipients, b"".join(kept), offset)


def _return_path(value: bytes) -> bytes:
    value = value.strip(b" \t")
    if value[:1] != b"<" or value[-1:] != b">":
        raise EnvelopeError(
            f"its Return-Path is not of the form <address>: {printable(value[:200])}"
        )
    return value[1:-1]


def _bare(value: bytes) -> bytes:
    """Take off the angle brackets that some delivery agents (Dovecot's LMTP) write."""
    stripped = value.strip(b" \t")
    return stripped[1:-1] if stripped[:1] == b"<" and stripped[-1:] == b">" else value


def _split(value: bytes) -> tuple[bytes, ...]:
    """Split Exim's Envelope-to, which has several addresses where they shared a delivery."""
    if b'"' in value:
        raise EnvelopeError(
            f"its Envelope-to has a quoted address, which is not understood: "
            f"{printable(value[:200])}"
        )
    # Unfolded (RFC 5322, 2.2.3). A CR elsewhere stays, to be refused: a blank in its place, or
    # nothing, would make it another address.
    parts = value.replace(b"\r\n", b"").replace(b"\n", b"").split(b",")
    if len(parts) > MAX_RECIPIENTS:  # more than a sidecar could hold after a partial outcome
        raise EnvelopeError(f"its Envelope-to has more than {MAX_RECIPIENTS} addresses")
    return tuple(_bare(part) for part in (p.strip(b" \t") for p in parts) if part)


def _check(sender: bytes | None, recipients: tuple[bytes, ...]) -> None:
    """Refuse what no server takes, before it costs a connection."""
    reasons = [check_address(sender, "sender")] if sender is not None else []
    reasons += [check_address(recipient, "recipient") for recipient in recipients]
    for reason in filter(None, reasons):
        raise EnvelopeError(f"its envelope cannot be sent: {reason}")
    if b"" in recipients:
        raise EnvelopeError("its recipient is empty")


def ours(recipients: tuple[bytes, ...], prefix: bytes) -> tuple[bytes, ...]:
    """Return the recipients that begin with `prefix`, without it; maybe none.

    Bytes, case-sensitive; the others are not ours (serialmail, maildirqmtp(1)).
    Raises `EnvelopeError` where nothing is left of one.
    """
    if not prefix:
        return recipients
    cut = len(prefix)
    stripped = tuple(r[cut:] for r in recipients if r.startswith(prefix))
    if b"" in stripped:
        raise EnvelopeError(f"its recipient is nothing but the prefix {printable(prefix)}")
    return stripped
