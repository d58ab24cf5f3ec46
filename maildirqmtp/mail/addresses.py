"""Forms of addresses: raw in an envelope, quoted in headers and command lines.

    raw       jane x@example.org      envelopes of QMTP, sidecars (qmail's addresses(5))
    quoted    "jane x"@example.org    headers, DSN fields, SMTP, arguments (RFC 5321, 4.1.2)

An address is bytes. The null sender is the empty address; Postfix's pipe(8) writes it as
MAILER-DAEMON. getmail writes `unknown` where it knows no address.
"""

import re

from maildirqmtp.qmtp.protocol import check_address
from maildirqmtp.text import printable

#: The raw null sender.
NULL_SENDER = b""
#: The sender of qmail's double bounces.
DOUBLE_BOUNCE_SENDER = b"#@[]"

_NULL_SENDER_NAME = b"mailer-daemon"
_UNKNOWN = b"unknown"

# A local part in quotes that is not empty, and at most a domain after it (RFC 5321, 4.1.2). More
# bytes than its qtextSMTP are taken: what a header can hold was one address where it came from.
_QUOTED = rb'(?s)"((?:[^"\\\r\n\0]|\\[^\r\n\0])+)"(@[^@]*)?'
_PAIR = rb"(?s)\\(.)"
_TO_ESCAPE = rb'(["\\])'
# Dot-string (RFC 5321, 4.1.2), with the bytes of UTF-8 (RFC 6531, 3.3).
_ATOM = rb"[A-Za-z0-9!#$%&'*+/=?^_`{|}~\-\x80-\xff]+"
_DOT_STRING = rb"%b(?:\.%b)*" % (_ATOM, _ATOM)
# One address, in angle brackets or bare, and blanks around it; and such a one in a list.
_PIECE = rb'"(?:[^"\\]|\\.)*"|[^ \t"<>,]'
_ONE = rb"[ \t]*+(?:<((?:%b)*)>|((?:%b)+))[ \t]*+" % (_PIECE, _PIECE)
_LISTED = rb"(?:%b|[ \t]*+)(?:,|\Z)" % _ONE


def unquote(address: bytes) -> bytes:
    """Return the raw form of an address from a header, an option or a command line.

    A local part that is not one well-formed quoted string, or is `""`, stays as it is.
    """
    match = re.fullmatch(_QUOTED, address) if address.startswith(b'"') else None
    return re.sub(_PAIR, rb"\1", match[1]) + (match[2] or b"") if match else address


def quote(address: bytes) -> bytes:
    """Return the form of a raw address for headers, DSN fields, SMTP and arguments.

    `unquote` gives back the raw form. An empty local part has no quoted form
    that means the same, and stays as it is.
    """
    local, at, domain = address.rpartition(b"@")
    if not at:
        local, domain = address, b""
    if local in (b"", b'""') or re.fullmatch(_DOT_STRING, local):
        return address
    return b'"%b"%b%b' % (re.sub(_TO_ESCAPE, rb"\\\1", local), at, domain)


def raw_sender(address: bytes) -> bytes:
    """Return the raw form of a sender from a header, an option or a command line.

    MAILER-DAEMON without a domain, in any letter case, is the null sender.
    """
    address = unquote(address)
    return NULL_SENDER if address.lower() == _NULL_SENDER_NAME else address


def parse(text: bytes, what: str) -> bytes:
    """Return the raw form of the one address of an option: bare or in brackets, maybe quoted.

    `what` is "sender" or "recipient"; only a sender may be empty. Raises
    `ValueError` for anything else than one address that servers take, and says
    what is wrong.
    """
    match = re.compile(_ONE, re.DOTALL).fullmatch(text or b"<>")
    if match is None:
        raise ValueError(
            f"{printable(text)!r} is not one address; write one with a blank in it as "
            f'"jane x"@example.org'
        )
    written = bytes(match[match.lastindex or 0])
    address = raw_sender(written) if what == "sender" else unquote(written)
    fault = check_address(address, what)
    if fault is None and not address and what != "sender":
        fault = f"a {what} must not be empty"
    if fault is not None:
        raise ValueError(fault)
    return address


def takes_no_bounce(sender: bytes) -> bool:
    """Say whether a raw sender must not be sent a bounce (RFC 5321, 4.5.5).

    The null sender, however it is spelled, and that of qmail's double bounces.
    """
    return sender in (NULL_SENDER, DOUBLE_BOUNCE_SENDER) or sender.lower() == _NULL_SENDER_NAME


def is_unknown(address: bytes) -> bool:
    """Say whether a trace line gives `unknown` in place of an address, as getmail's do."""
    return address == _UNKNOWN


def bare(text: bytes) -> bytes:
    """Return what is in the angle brackets, where text is in them; else the text as it is."""
    stripped = text.strip(b" \t")
    return stripped[1:-1] if stripped[:1] == b"<" and stripped[-1:] == b">" else text


def split(text: bytes) -> list[bytes]:
    """Split a list of addresses at its commas (RFC 5322, 3.4), unfolded; brackets are removed.

    The addresses are as they are written, quoted ones still quoted. Raises
    `ValueError` for anything that is not an address: display names, comments,
    a quotation mark without its other.
    """
    listed = re.compile(_LISTED, re.DOTALL)
    found = []
    at = 0
    while at < len(text):
        match = listed.match(text, at)
        if match is None:
            raise ValueError("not a list of addresses")
        if match.lastindex is not None:
            found.append(match[match.lastindex])
        at = match.end()
    return found
