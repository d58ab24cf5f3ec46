"""Addresses as they leave QMTP, for SMTP and for the arguments of a command: quoted, and one each.

An envelope's raw address may hold nearly any byte. An address that has no form
outside QMTP is refused here: the next server, or a command, might read it as
something other than one address.
"""

import re

from maildirqmtp.mail import addresses

# Characters of a domain, or of an address literal in brackets (RFC 5321, 4.1.3; RFC 6531); a
# blank or a `>` would end the address in a RCPT command, and begin its parameters.
_DOMAIN = re.compile(rb"[A-Za-z0-9._\-\x80-\xff]*|\[[A-Za-z0-9.:\-]*\]")
_CONTROL = re.compile(rb"[\x00-\x1f\x7f]")


def outside_sender(sender: bytes) -> bytes:
    """Return the raw sender to hand on: empty for a sender that takes no bounces.

    qmail's `#@[]` is no address to SMTP servers.
    """
    return addresses.NULL_SENDER if addresses.takes_no_bounce(sender) else sender


def fault_of(address: bytes) -> str | None:
    """Return why a raw address has no form outside QMTP; None if it has one."""
    _, at, domain = address.rpartition(b"@")
    if _CONTROL.search(address):
        return "the address has a control character in it"
    if at and not _DOMAIN.fullmatch(domain):
        return "its domain is none"
    if not address.isascii() and not _is_utf8(address):
        return "the address is not UTF-8"
    return None


def _is_utf8(address: bytes) -> bool:
    try:
        address.decode()
    except UnicodeDecodeError:
        return False
    return True
