"""The bounce: a delivery status notification, as bytes.

    multipart/report (RFC 6522)
      text/plain                          what happened, for people
      message/delivery-status (RFC 3464)  what happened, for programs
      message/rfc822                      the message, or text/rfc822-headers, its header only

If a recipient is not ASCII, the last two are message/global-delivery-status and message/global or
message/global-headers (RFC 6533). Text from the original's header, from an address or from a
response is made one printable line before it enters a header field of the bounce.
"""

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass

from maildirqmtp.mail.addresses import quote
from maildirqmtp.text import printable, rfc5322_date

#: Bytes up to which an original is quoted whole; of a longer one, only the header is.
QUOTE_BYTES = 50_000
#: Bytes of a line; longer ones cannot travel unencoded (RFC 5322, 2.1.1).
MAX_LINE = 998

# Bytes of a response and of an address that are shown; each fits in a line with its field's name.
_RESPONSE_BYTES = 600
_ADDRESS_BYTES = 900

_NOT_ASCII = re.compile(r"[^\x20-\x7e]")
# A status code (RFC 3463) that is not part of an IP address or of a version number.
_CODE = re.compile(r"(?<![0-9.])([45])(\.[0-9]{1,3}\.[0-9]{1,3})(?!\.?[0-9])")
_IP_ADDRESS = re.compile(r"[0-9.]+|[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*")
# An address that can stand in To: as it is, with the non-ASCII characters of RFC 6532; the local
# part may be a quoted string (RFC 5322, 3.4.1) without anything that a careless parser splits at.
_ATEXT = r"A-Za-z0-9!#$%&'*+/=?^_`{|}~\-\x80-\U0010ffff"
_DOT_ATOM = rf"[{_ATEXT}]+(?:\.[{_ATEXT}]+)*"
_PLAIN = re.compile(rf'(?:{_DOT_ATOM}|"[{_ATEXT}. ]+")@{_DOT_ATOM}')


@dataclass(frozen=True, slots=True)
class Failed:
    """A recipient and the server's final answer, with its letter (`Dno such user`)."""

    recipient: bytes
    response: str


@dataclass(frozen=True, slots=True)
class Delay:
    """A delay, which a warning reports in place of a failure: the message is tried again.

    Until when, and when it was last tried, None if that is not known: seconds of the epoch.
    """

    retry_until_s: float
    attempted_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounce:
    """The content of a bounce.

    `original` is the text as it was sent, or its first bytes if `complete` is
    false. `identifier` is always the same for the same failure; `host` is this
    machine, `server` the host that answered: "" if it has no name in the DNS,
    None if no server was asked. Times are seconds of the epoch. `earlier` has
    time and text of attempts before the last one, newest first. With `delay` it is a warning, not a
    bounce: `failed` has the recipients that wait, with an empty response if none is known.
    """

    sender: bytes
    failed: tuple[Failed, ...]
    original: bytes
    complete: bool
    identifier: str
    host: str
    server: str | None
    arrived_s: float
    now_s: float
    earlier: tuple[tuple[int, str], ...] = ()
    delay: Delay | None = None


def identify(name: bytes, arrived_ns: int, recipients: Iterable[bytes]) -> str:
    """Return the identifier of a failure: always the same for the same message and recipients.

    `name` is the message's name without what mail readers add. A bounce that is
    made again after a crash replaces the first if the mailer allows that, and is
    recognised as a duplicate otherwise.
    """
    digest = hashlib.sha256(b"%b\0%d" % (name, arrived_ns))
    for recipient in sorted(recipients):
        digest.update(b"\0" + recipient)
    return digest.hexdigest()[:32]


def build(bounce: Bounce) -> bytes:
    """Return the bounce, or the warning, with LF line ends."""
    subject = "Undelivered mail returned to sender" if bounce.delay is None else "Delayed mail"
    wide = not all(f.recipient.isascii() for f in bounce.failed)
    parts = [_explanation(bounce), _status(bounce, wide), _quotation(bounce, wide)]
    boundary = _boundary(bounce.identifier, parts)
    head = [
        f"From: Mail Delivery System <MAILER-DAEMON@{_host(bounce.host)}>",
        f"To: {_to(bounce.sender)}",
        f"Subject: {subject}",
        f"Date: {rfc5322_date(bounce.now_s)}",
        f"Message-ID: <{bounce.identifier}@{_host(bounce.host)}>",
        "Auto-Submitted: auto-replied",
        "MIME-Version: 1.0",
        "Content-Type: multipart/report; report-type=delivery-status;",
        f'\tboundary="{boundary}"',
        *(["Content-Transfer-Encoding: 8bit"] if not all(map(bytes.isascii, parts)) else []),
        "",
        "This is a delivery status notification in MIME format.",
        "",
    ]
    mark = boundary.encode()
    body = b"".join(b"--%b\n%b\n" % (mark, part) for part in parts)
    return "\n".join(head).encode() + b"\n" + body + b"--%b--\n" % mark


def _explanation(bounce: Bounce) -> bytes:
    lines = [
        f"This is the mail forwarder at {_host(bounce.host)}.",
        "",
        *_meaning(bounce),
        "",
    ]
    for failed in bounce.failed:
        said = failed.response[1:] if failed.response else "It could not be delivered so far."
        lines += [f"<{_shown(failed.recipient)}>:", f"  {_one_line(said)}", ""]
    lines += _earlier(bounce.earlier)
    text = "\n".join(lines).encode()
    kind = b"Content-Type: text/plain; charset=utf-8\n"
    return kind + _encoding(text) + b"\n" + text


def _meaning(bounce: Bounce) -> list[str]:
    if bounce.delay is None:
        return [
            "Your message could not be delivered to the recipients below, and will not be tried",
            f"again. {_source(bounce.server)} is with each of them.",
        ]
    return [
        "This is a warning only: you need not send your message again. It could not be delivered",
        "to the recipients below yet, and goes on being tried until",
        f"{rfc5322_date(bounce.delay.retry_until_s)}.",
    ]


def _earlier(attempts: tuple[tuple[int, str], ...]) -> list[str]:
    """Return lines about the attempts before the last one, the oldest first."""
    if not attempts:
        return []
    said = [f"  {rfc5322_date(at)}: {_one_line(text)}" for at, text in reversed(attempts)]
    return ["It was tried before, and this was the reason to try again each time:", "", *said, ""]


def _source(server: str | None) -> str:
    return "The reason" if server is None else f"What {_one_line(server or 'the server')} said"


def _status(bounce: Bounce, wide: bool) -> bytes:
    kind = "global-delivery-status" if wide else "delivery-status"
    lines = [
        f"Reporting-MTA: dns; {_host(bounce.host)}",
        f"Arrival-Date: {rfc5322_date(bounce.arrived_s)}",
    ]
    # ASCII only, except in the wide form (RFC 3464, 2.1.1; RFC 6533, 3).
    line = _one_line if wide else lambda text: _NOT_ASCII.sub("?", _one_line(text))
    server = bounce.server or ""
    server = f"[{server}]" if _IP_ADDRESS.fullmatch(server) else server
    for failed in bounce.failed:
        address = "rfc822" if failed.recipient.isascii() else "utf-8"
        lines += [
            "",
            f"Final-Recipient: {address}; {_shown(failed.recipient)}",
            "Action: failed" if bounce.delay is None else "Action: delayed",
            f"Status: {_code(failed.response, '4.4.7' if bounce.delay is None else '4.0.0')}",
            *([f"Remote-MTA: dns; {line(server)}"] if server else []),
            *([f"Diagnostic-Code: x-qmtp; {line(failed.response)}"] if failed.response else []),
            *_attempts(bounce),
        ]
    text = "\n".join([*lines, ""]).encode()
    return f"Content-Type: message/{kind}\n".encode() + _encoding(text) + b"\n" + text


def _attempts(bounce: Bounce) -> list[str]:
    """Return the fields for the time of the last attempt and, of a delay, the end of retries."""
    if bounce.delay is None:
        return [f"Last-Attempt-Date: {rfc5322_date(bounce.now_s)}"]
    lines = [f"Will-Retry-Until: {rfc5322_date(bounce.delay.retry_until_s)}"]
    if bounce.delay.attempted_s is not None:
        lines.insert(0, f"Last-Attempt-Date: {rfc5322_date(bounce.delay.attempted_s)}")
    return lines


def _quotation(bounce: Bounce, wide: bool) -> bytes:
    """Quote the original: whole if it is short and can travel unencoded, else its header."""
    # The same line ends as in the rest of the bounce.
    original = bounce.original.replace(b"\r\n", b"\n")
    if bounce.complete and len(bounce.original) <= QUOTE_BYTES and _travels(original):
        kind = b"message/global" if wide else b"message/rfc822"
        text = original if original.endswith(b"\n") else original + b"\n"
    else:
        kind = b"message/global-headers" if wide else b"text/rfc822-headers"
        text = _header(original)
    return b"Content-Type: %b\n" % kind + _encoding(text) + b"\n" + text


def _header(original: bytes) -> bytes:
    """Return the header within the first `QUOTE_BYTES`, made fit to travel unencoded."""
    # The added LF gives a text that begins with an empty line an empty header.
    header = (b"\n" + original[:QUOTE_BYTES]).partition(b"\n\n")[0]
    lines = (printable(line.replace(b"\t", b" "))[:200].encode() for line in header.split(b"\n"))
    return b"".join(line + b"\n" for line in lines if line)


def _travels(text: bytes) -> bool:
    if b"\0" in text or b"\r" in text:
        return False
    return all(len(line) <= MAX_LINE for line in text.split(b"\n"))


def _encoding(text: bytes) -> bytes:
    return b"" if text.isascii() else b"Content-Transfer-Encoding: 8bit\n"


def _boundary(identifier: str, parts: list[bytes]) -> str:
    """Return a boundary that none of the parts contains."""
    number = 0
    while any(b"%b-%d" % (identifier.encode(), number) in part for part in parts):
        number += 1
    return f"{identifier}-{number}"


def _code(response: str, otherwise: str) -> str:
    """Return the status code (RFC 3463) of a response.

    A D is permanent, whatever code its text gives: class 5, with subject and detail
    of that code (RFC 3463, 2: they mean the same in each class), or 5.0.0 if there
    is none. A Z has the 4.x.x of its text, else `otherwise`: 4.4.7, delivery time
    expired, for a deferral that was too old; 4.0.0 in a warning.
    """
    codes = list(_CODE.finditer(response))
    letter = "5" if response.startswith("D") else "4"  # an empty response, in a warning, is class 4
    for found in codes:
        if found[1] == letter:
            return found[0]
    if letter == "4":
        return otherwise
    return f"5{codes[0][2]}" if codes else "5.0.0"


def _to(sender: bytes) -> str:
    shown = _shown(sender)
    whole = shown.encode() == quote(sender)  # not cut, and nothing in it made printable
    plain = whole and _PLAIN.fullmatch(shown)
    return f"<{shown}>" if plain else "undisclosed-recipients:;"


def _shown(address: bytes) -> str:
    return printable(quote(address)[:_ADDRESS_BYTES])


def _host(host: str) -> str:
    """Return a host name that can stand in any header field."""
    return re.sub(r"[^A-Za-z0-9.\-]", "-", host) or "localhost"


def _one_line(text: str) -> str:
    """Return untrusted text as one printable line of a bounded length."""
    raw = text.encode("utf-8", "replace")[:_RESPONSE_BYTES]
    return printable(raw).strip() or "(no reason given)"
