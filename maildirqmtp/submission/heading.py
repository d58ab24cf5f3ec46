"""The header of a submitted message: its recipients, the fields to remove and those to add.

It follows RFC 5322, 3.6, and Postfix's sendmail and cleanup(8): if there is any Resent- field, the
recipients of -t and the missing fields are those of the Resent- fields (RFC 5322, 3.6.6).
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from maildirqmtp.errors import EnvelopeError
from maildirqmtp.mail import address_list, fields
from maildirqmtp.mail.addresses import quote
from maildirqmtp.mail.fields import Field, Head
from maildirqmtp.text import rfc5322_date

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

#: Most bytes of a header; it must be complete before any of it is sent, for Bcc may come last.
MAX_BYTES = 1 << 20

_BLIND = (b"bcc", b"resent-bcc")
_RECIPIENTS = (b"to", b"cc", b"bcc")
_OTHER_ADDRESSES = (b"from", b"sender", b"reply-to", b"to", b"cc")
_RESENT = b"resent-"
_ADDRESSES = {*_OTHER_ADDRESSES, *(_RESENT + name for name in _OTHER_ADDRESSES)}
_MARKS_RESENT = {_RESENT + name for name in (*_OTHER_ADDRESSES, b"bcc", b"date", b"message-id")}


class Missing(NamedTuple):
    """Values for fields that a header lacks; made only if needed, since that may take time."""

    author: Callable[[], bytes]
    date_s: float
    message_id: Callable[[], bytes]


def read(pieces: Iterable[bytes]) -> tuple[Head, bytes, Iterator[bytes]]:
    """Read a message up to its body: return the header, the body's beginning, and the rest of it.

    Raises `EnvelopeError` for a header above `MAX_BYTES`, and what reading `pieces` raises.
    """
    source = iter(pieces)
    read, wanted = bytearray(), 0
    while True:
        complete = False
        while not complete and len(read) <= wanted:
            piece = next(source, None)
            complete = piece is None
            read += piece or b""
        top = bytes(read)
        head = fields.read(top, complete)
        if head is not None and head.body_at <= MAX_BYTES:
            return head, top[head.body_at :], source
        if len(top) > MAX_BYTES:
            raise EnvelopeError(f"the message's header is larger than {MAX_BYTES} bytes")
        wanted = 2 * len(top)


def is_resent(head: Head) -> bool:
    """Return whether the header has Resent- fields, which mark a message that is sent again."""
    return any(field.name in _MARKS_RESENT for field in head.fields)


def recipients(head: Head) -> list[bytes]:
    """Return the recipients that -t takes from a header, raw.

    Raises `EnvelopeError` if such a field is not a list of addresses.
    """
    prefix = _RESENT if is_resent(head) else b""
    wanted = {prefix + name for name in _RECIPIENTS}
    found = []
    for field in head.fields:
        if field.name in wanted:
            try:
                found += [mailbox.address for mailbox in address_list.parse(field.value)]
            except ValueError as error:
                raise EnvelopeError(f"{field.name.decode().title()}: {error}") from None
    return found


def completed(head: Head, domain: bytes, missing: Missing) -> bytes:
    """Return the header to send, with the empty line that ends it.

    Bcc and Resent-Bcc are removed; addresses without a domain get `domain`, unless
    that is empty; From, Date and Message-ID are added if they are missing.
    """
    kept = [_with_domain(field, domain) for field in head.fields if field.name not in _BLIND]
    resent = is_resent(head)
    added = list(_added(kept, b"Resent-" if resent else b"", missing))
    # Resent- fields stand in a block above the fields of the original message.
    return fields.join([*added, *kept] if resent else [*kept, *added])


def _added(kept: Sequence[Field], prefix: bytes, missing: Missing) -> Iterator[Field]:
    there = {field.name for field in kept}
    makers: tuple[tuple[bytes, Callable[[], bytes]], ...] = (
        (b"From", missing.author),
        (b"Date", lambda: rfc5322_date(missing.date_s).encode()),
        (b"Message-ID", missing.message_id),
    )
    for name, make in makers:
        full_name = prefix + name
        if full_name.lower() not in there:
            yield Field(full_name.lower(), b"%b: %b\n" % (full_name, make()))


def author(name: str, address: bytes) -> bytes:
    """Return the value of From for a person with this name and raw address."""
    phrase = fields.phrase(name).encode()
    return b"%b <%b>" % (phrase, quote(address)) if phrase else quote(address)


def _with_domain(field: Field, domain: bytes) -> Field:
    """Return a field with `domain` added to addresses that have none; unchanged if no list."""
    if not domain or field.name not in _ADDRESSES:
        return field
    try:
        mailboxes = address_list.parse(field.value)
    except ValueError:
        return field
    at = len(field.raw) - len(field.value)
    places = sorted(at + m.domain_at for m in mailboxes if m.domain_at is not None)
    # Split and joined once: a list of a megabyte may lack a hundred thousand domains.
    parts = [field.raw[before:after] for before, after in pairwise([0, *places, len(field.raw)])]
    return Field(field.name, (b"@" + domain).join(parts))
