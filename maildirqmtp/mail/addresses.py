"""Forms of addresses: raw in an envelope, quoted in headers and command lines.

    raw       jane x@example.org      envelopes of QMTP, sidecars (qmail's addresses(5))
    quoted    "jane x"@example.org    headers, DSN fields, SMTP, arguments (RFC 5321, 4.1.2)

An address is bytes. The null sender is the empty address; Postfix's pipe(8) writes it as
MAILER-DAEMON. getmail writes `unknown` if it knows no address.
"""

import re

from maildirqmtp.qmtp.protocol import check_address
from maildirqmtp.text import printable

#: The raw null sender.
NULL_SENDER = b""
#: The sender of qmail's double bounces.
DOUBLE_BOUNCE_SENDER = b"#@[]"

# `<>` as well: programs that keep the null sender as text include its brackets.
_NULL_SENDER_NAMES = (b"mailer-daemon", b"<>")
_UNKNOWN = b"unknown"

# A non-empty local part in quotes, and at most a domain after it (RFC 5321, 4.1.2). More bytes than
# its qtextSMTP are accepted: to the program that wrote the header, this was one address.
_QUOTED = rb'(?s)"((?:[^"\\\r\n\0]|\\[^\r\n\0])+)"(@[^@]*)?'
_PAIR = rb"(?s)\\(.)"
_TO_ESCAPE = rb'(["\\])'
# Dot-string (RFC 5321, 4.1.2), with the bytes of UTF-8 (RFC 6531, 3.3).
_ATOM = rb"[A-Za-z0-9!#$%&'*+/=?^_`{|}~\-\x80-\xff]+"
_DOT_STRING = rb"%b(?:\.%b)*" % (_ATOM, _ATOM)
# One address, in angle brackets or bare, with blanks around it; then the same as a list element.
_PIECE = rb'"(?:[^"\\]|\\.)*"|[^ \t"<>,]'
_ONE = rb"[ \t]*+(?:<((?:%b)*)>|((?:%b)+))[ \t]*+" % (_PIECE, _PIECE)
_LISTED = rb"(?:%b|[ \t]*+)(?:,|\Z)" % _ONE
# An address given by an option. A local part is a quoted string, or has none of the specials,
# blanks and controls of RFC 5322, 3.2.3; dots may stand anywhere, as with qmail and some providers.
_PLAIN = rb'[^\x00-\x20\x7f()<>\[\]:;@\\,".]'
_LOCAL_PART = rb'(?:"(?:[^"\\\r\n\0]|\\[^\r\n\0])*+"|(?:%b|\.)++)' % _PLAIN
_DOMAIN = rb"(?:%b++(?:\.%b++)*+\.?|\[[^\x00-\x20\x7f\[\]\\]*+\])" % (_PLAIN, _PLAIN)
_ADDRESS = rb"%b(?:@%b)?" % (_LOCAL_PART, _DOMAIN)
# The sender that qmail makes a VERP of: LOCAL-@HOST-@[] (qmail-send(8)).
_VERP_SENDER = rb"%b-@%b-@\[\]" % (rb"(?:%b|\.)+" % _PLAIN, rb"%b+(?:\.%b+)*?" % (_PLAIN, _PLAIN))


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

    `<>` is the null sender, and so is MAILER-DAEMON without a domain, in any letter case.
    """
    address = unquote(address)
    return NULL_SENDER if address.lower() in _NULL_SENDER_NAMES else address


def parse(text: bytes, what: str) -> bytes:
    """Return the raw form of the one address of an option: bare or in brackets, maybe quoted.

    `what` is "sender" or "recipient"; only a sender may be empty. A domain may be missing, but not
    the local part before one. Raises `ValueError`, which says what is wrong, for anything but one
    address that servers accept.
    """
    written = bare(text.strip(b" \t") or text)
    address = raw_sender(written) if what == "sender" else unquote(written)
    fault = check_address(address, what)
    if fault is None and not written and what != "sender":
        fault = f"a {what} must not be empty"
    if fault is None and written and not _is_one(written, what):
        fault = f"{printable(text)!r} is not one address: {_why_not(written)}"
    if fault is not None:
        raise ValueError(fault)
    return address


def _is_one(written: bytes, what: str) -> bool:
    if re.fullmatch(_ADDRESS, written):
        return True
    return what == "sender" and re.fullmatch(_VERP_SENDER, written) is not None


def _why_not(written: bytes) -> str:
    """Return why this is not an address, and what to write instead."""
    if written.startswith(b"@"):
        if b":" in written:
            return "a route stands before it (RFC 5321, C); write what follows the last colon"
        return "nothing stands before the @"
    if written.endswith(b"@"):
        return "no domain follows the @"
    if re.fullmatch(rb"%b(?:@%b){2,}" % (_LOCAL_PART, _DOMAIN), written):
        return 'it has more than one @; write "a@b"@example.org where one is in the local part'
    return (
        'no blank, control byte or ()<>[]:;@\\," may be in it but in quotes, as in '
        '"jane x"@example.org'
    )


def takes_no_bounce(sender: bytes) -> bool:
    """Return whether this raw sender must not be sent a bounce (RFC 5321, 4.5.5).

    True for the null sender, in every spelling, and for the sender of qmail's double bounces.
    """
    return sender in (NULL_SENDER, DOUBLE_BOUNCE_SENDER) or sender.lower() in _NULL_SENDER_NAMES


def is_unknown(address: bytes) -> bool:
    """Return whether a trace line gives `unknown` in place of an address, as getmail's do."""
    return address == _UNKNOWN


def bare(text: bytes) -> bytes:
    """Return the text without the angle brackets around it, if any; else the text as it is."""
    stripped = text.strip(b" \t")
    return stripped[1:-1] if stripped[:1] == b"<" and stripped[-1:] == b">" else text


def split(text: bytes) -> list[bytes]:
    """Split an unfolded list of addresses at its commas (RFC 5322, 3.4); remove brackets.

    Quoted addresses stay quoted. Raises `ValueError` if anything in it is not an
    address: a display name, a comment, a quotation mark without its partner.
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
