"""The envelope, from the trace lines on top of a message.

serialmail's rule is `Return-Path: <...>` and then `Delivered-To: ...`. Today's delivery agents
write a few more lines, in another order. This block is looked at, and nothing below it:

    block      = the lines on top whose field is one of these, in any letter case:
                 Return-Path, Delivered-To                 the first of each is removed
                 Envelope-to (Exim)                        removed: it can name hidden recipients
                 X-Original-To (Postfix), Delivery-date    kept
    sender     = the first Return-Path, between < and >; <> is the null sender
    recipients = the first Delivered-To, else the first Envelope-to

A Return-Path or Delivered-To without a value goes on in the next line if that begins with a blank:
Python's email package folds long addresses so. Still longer ones it writes as encoded words (RFC
2047) of several lines, and it cuts quoted ones in two: such a field goes on to its end, and is
unclear. Otherwise a line that begins with a blank after one of these two is the first line of the
message; the other fields go on over all such lines.

From: and To: are never looked at. An unclear line is never guessed at, and holds the message only
if the envelope depends on it.
"""

import re
from typing import NamedTuple

from maildirqmtp.errors import EnvelopeError
from maildirqmtp.mail import addresses
from maildirqmtp.qmtp.protocol import MAX_RECIPIENTS, check_address
from maildirqmtp.text import printable

#: Bytes of a line that the envelope is taken from, its end included.
MAX_LINE = 8_192
#: Bytes of a value that a reason repeats.
_SHOWN_BYTES = 200


class Trace(NamedTuple):
    """The envelope that the block on top of a message gives, and the text to be sent.

    `sender` is None and `recipients` is empty if no line gives them, or if the
    line is unclear: `sender_fault` or `recipients_fault` then says what is wrong
    with it. The text to be sent is `kept` and then the file from `offset` on.
    """

    sender: bytes | None
    recipients: tuple[bytes, ...]
    kept: bytes
    offset: int
    sender_fault: str = ""
    recipients_fault: str = ""


# The block that qmail's own delivery writes, with nothing below it that begins like a field of the
# block. Everything else takes the slow path, whose pattern is compiled only then.
_CLASSIC = re.compile(
    rb"Return-Path: <((?!\")[^\n\r\0]{0,999})>\n"
    rb"Delivered-To: ([^\n\r\0\t <\"][^\n\r\0]{0,998})\n"
    rb"(?!(?i:ret|del|x-o|env))"
)
# Bytes below it that are needed to tell whether another of these fields follows.
_CLASSIC_MARGIN = 3
#: The fields of the block of which the first is removed, in lower case.
REMOVED_ONCE = (b"return-path", b"delivered-to")
#: The fields of the block, in lower case.
FIELDS = (*REMOVED_ONCE, b"x-original-to", b"envelope-to", b"delivery-date")
_FIELD = rb"(?i:(" + b"|".join(FIELDS) + rb"))[ \t]*+:"
# An encoded word: what stands in a header for a text that cannot stand there, or is too long.
_ENCODED = re.compile(rb"=\?[^?\s]+\?[BbQq]\?[^?\s]*\?=")
# A value that ends within brackets or quotes.
_OPEN = re.compile(rb"[ \t]*(?:<[^>]*|<?\"(?:[^\"\\]|\\.)*)", re.DOTALL)
_BLANK = b" \t"


def read_trace(top: bytes, complete: bool) -> Trace | None:
    """Read the block on top of a message; return None if more of the file is needed for that.

    `top` is the beginning of the file, `complete` whether it is all of it: then the
    result is never None. A message without a block has a trace without an envelope.
    """
    classic = classic_trace(top)
    if classic is not None:
        sender, recipient, offset = classic
        if complete or len(top) - offset >= _CLASSIC_MARGIN:
            return Trace(sender, (recipient,), b"", offset)
    return _read_block(top, complete)


def classic_trace(top: bytes) -> tuple[bytes, bytes, int] | None:
    """Return sender, recipient and offset of a block of qmail's two lines; None for any other.

    They are as `read_trace` returns them if `top` is all of the message, or has at least
    `_CLASSIC_MARGIN` bytes from the offset on.
    """
    match = _CLASSIC.match(top)
    if match is None:
        return None
    sender, recipient = match.groups()
    # These may be a spelling of the null sender, what getmail writes for an unknown address, or an
    # encoded word.
    if (sender and b"@" not in sender) or recipient == b"unknown" or b"=?" in sender + recipient:
        return None
    return sender, recipient, match.end()


class _Line(NamedTuple):
    """One field of the block: its name in lower case, and the indices of field and value."""

    name: bytes
    start: int
    value: int
    end: int


def _read_block(top: bytes, complete: bool) -> Trace | None:
    field_at = re.compile(_FIELD).match
    lines: list[_Line] = []
    offset = 0
    while match := field_at(top, offset):
        name = match[1].lower()
        end = _end_of(top, match.end(), name)
        if end < 0:
            if not complete:
                return None
            end = len(top)
        lines.append(_Line(name, offset, match.end(), end))
        offset = end
    if not complete and _may_go_on(top, offset):
        return None
    return _trace(top, lines, offset)


def _end_of(top: bytes, value: int, name: bytes) -> int:
    """Return the index after a field and its line end; -1 if `top` ends within a line of it."""
    end = _next_line(top, value)
    if name in REMOVED_ONCE:
        if end > 0 and not top[value:end].strip(b" \t\r\n") and top[end : end + 1] in (b" ", b"\t"):
            value, end = end, _next_line(top, end)
        if not _is_unfinished(top[value:end].rstrip(b"\r\n")):
            return end
    while end > 0 and top[end : end + 1] in (b" ", b"\t"):
        end = _next_line(top, end)
    return end


def _is_unfinished(value: bytes) -> bool:
    """Return whether one line of a value is clearly not all of it, or no address."""
    return bool(_ENCODED.search(value) or _OPEN.fullmatch(value))


def _next_line(top: bytes, at: int) -> int:
    """Return the index after the LF of the line at `at`; -1 if it has none."""
    return top.find(b"\n", at) + 1 or -1


def _may_go_on(top: bytes, offset: int) -> bool:
    """Return whether the block may go on in the part of the file that `top` does not have."""
    rest = top[offset:].rstrip(_BLANK).lower()  # blanks may stand before the colon
    return any(name.startswith(rest) for name in FIELDS)


def _trace(top: bytes, lines: list[_Line], offset: int) -> Trace:
    first: dict[bytes, _Line] = {}
    kept: list[bytes] = []
    for line in lines:
        is_first = first.setdefault(line.name, line) is line
        if line.name == b"envelope-to":
            continue
        if not (is_first and line.name in REMOVED_ONCE):
            kept.append(top[line.start : line.end])
    sender, sender_fault = _sender(top, first.get(b"return-path"))
    recipients, fault = _delivered_to(top, first.get(b"delivered-to"))
    if not recipients and not fault:
        recipients, fault = _envelope_to(top, first.get(b"envelope-to"))
    return Trace(sender, recipients, b"".join(kept), offset, sender_fault, fault)


def _unclear(top: bytes, line: _Line) -> str:
    """Return a fault if no address can be taken from a field because of how it is written."""
    name, value = _title(line.name), top[line.value : line.end]
    if fault := _too_long(top, line):
        return fault
    if not value.endswith(b"\n"):
        return f"its {name} line does not end: the file may be cut off"
    if _ENCODED.search(value):
        return f"its {name} has an encoded word (RFC 2047) for an address: {_shown(value.strip())}"
    first, _, second = value.lstrip(b" \t\r\n").partition(b"\n")
    first = first.rstrip(b" \t\r")
    if second and line.name != b"envelope-to":
        if line.name == b"return-path":
            return f"its Return-Path is not of the form <address>: {_shown(first)}"
        return f"its {name} is folded within an address: {_shown(first)}"
    return ""


def _too_long(top: bytes, line: _Line) -> str:
    """Return a fault if a line of a field is too long to take an address from, else ""."""
    at = line.start
    while at < line.end:
        end = top.find(b"\n", at, line.end) + 1 or line.end
        if end - at > MAX_LINE:
            name = _title(line.name)
            return f"its {name} line is longer than {MAX_LINE} bytes"
        at = end
    return ""


def _title(name: bytes) -> str:
    """Return a field's name as it is usually written."""
    return {b"return-path": "Return-Path", b"delivered-to": "Delivered-To"}.get(name, "Envelope-to")


def _value(top: bytes, line: _Line) -> bytes:
    """Return the value after the colon, unfolded (RFC 5322, 2.2.3) and without its line end.

    A CR elsewhere is kept, so that the address is refused: with a blank in its
    place, or nothing, it would be another address.
    """
    value = top[line.value : line.end]
    if value.endswith(b"\n"):
        value = value[:-1]
    return value.removesuffix(b"\r").replace(b"\r\n", b"").replace(b"\n", b"")


def _sender(top: bytes, line: _Line | None) -> tuple[bytes | None, str]:
    """Return the sender that a Return-Path gives, None if it gives none, and a fault or ""."""
    if line is None:
        return None, ""
    fault = _unclear(top, line)
    if fault:
        return None, fault
    value = _value(top, line).strip(_BLANK)
    sender = addresses.raw_sender(addresses.bare(value))
    if addresses.is_unknown(sender):
        return None, ""
    # Without brackets, only a spelling of the null sender is clear.
    if not (value.startswith(b"<") and value.endswith(b">")) and (sender or not value):
        return None, f"its Return-Path is not of the form <address>: {_shown(value)}"
    fault = check_address(sender, "sender") or ""
    return (None, f"its envelope cannot be sent: {fault}") if fault else (sender, "")


def _delivered_to(top: bytes, line: _Line | None) -> tuple[tuple[bytes, ...], str]:
    """Return the recipient that a Delivered-To gives, if it gives one, and a fault or ""."""
    if line is None:
        return (), ""
    fault = _unclear(top, line)
    if fault:
        return (), fault
    value = _value(top, line)
    if value[:1] in (b" ", b"\t"):
        value = value[1:]
    if top.find(b"\n", line.start, line.end) + 1 < line.end:  # its value is in a second line
        value = value.strip(_BLANK)
    recipient = addresses.bare(value)
    if addresses.is_unknown(recipient):
        return (), ""
    return _recipients([recipient])


def _envelope_to(top: bytes, line: _Line | None) -> tuple[tuple[bytes, ...], str]:
    """Return the recipients of an Envelope-to, several if they shared a delivery; and a fault."""
    if line is None:
        return (), ""
    fault = _unclear(top, line)
    if fault:
        return (), fault
    value = _value(top, line)
    try:
        found = addresses.split(value)
    except ValueError:
        return (), f"its Envelope-to is not understood: {_shown(value.strip(_BLANK))}"
    if len(found) > MAX_RECIPIENTS:  # more than a sidecar could hold after a partial outcome
        return (), f"its Envelope-to has more than {MAX_RECIPIENTS} addresses"
    return _recipients([address for address in found if not addresses.is_unknown(address)])


def _recipients(found: list[bytes]) -> tuple[tuple[bytes, ...], str]:
    """Return the raw form of a header's recipients, each once, or none of them and a fault."""
    recipients = tuple(dict.fromkeys(map(addresses.unquote, found)))
    for recipient in recipients:
        fault = check_address(recipient, "recipient")
        if fault:
            return (), f"its envelope cannot be sent: {fault}"
    return ((), "its recipient is empty") if b"" in recipients else (recipients, "")


def _shown(value: bytes) -> str:
    return printable(value[:_SHOWN_BYTES])


def ours(recipients: tuple[bytes, ...], prefix: bytes) -> tuple[bytes, ...]:
    """Return the recipients that begin with `prefix`, without it; maybe none.

    Bytes are compared, case-sensitively; recipients without the prefix are left for
    other routes (serialmail, maildirqmtp(1)). Raises `EnvelopeError` if a recipient
    is nothing but the prefix.
    """
    if not prefix:
        return recipients
    cut = len(prefix)
    stripped = tuple(r[cut:] for r in recipients if r.startswith(prefix))
    if b"" in stripped:
        raise EnvelopeError(f"its recipient is nothing but the prefix {printable(prefix)}")
    return stripped
