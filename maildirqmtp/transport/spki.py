"""The public key inside a certificate, for pins. Pure.

It parses only as much DER (ITU-T X.690) as is needed: by RFC 5280, 4.1, a
version that may be missing, a serial number and four sequences come before the
SubjectPublicKeyInfo.
"""

from hashlib import sha256

_INTEGER = 0x02
_SEQUENCE = 0x30
_VERSION = 0xA0
#: The most bytes of a length: no certificate is above 16 MiB.
_MAX_LENGTH_BYTES = 3


def public_key_digest(certificate: bytes) -> bytes:
    """Return the SHA-256 of a DER certificate's SubjectPublicKeyInfo (RFC 7469, 2.4).

    Raises `ValueError` if it is no certificate.
    """
    at, end = _element(certificate, 0, len(certificate), _SEQUENCE)
    if end != len(certificate):
        raise ValueError("bytes after the certificate")
    at, end = _element(certificate, at, end, _SEQUENCE)  # tbsCertificate
    if certificate[at : at + 1] == bytes([_VERSION]):
        _, at = _element(certificate, at, end, _VERSION)
    _, at = _element(certificate, at, end, _INTEGER)  # serialNumber
    for _ in ("signature", "issuer", "validity", "subject"):
        _, at = _element(certificate, at, end, _SEQUENCE)
    _, after = _element(certificate, at, end, _SEQUENCE)
    return sha256(certificate[at:after]).digest()


def _element(data: bytes, at: int, end: int, tag: int) -> tuple[int, int]:
    """Return where the content of the element at `at` starts, and where it ends."""
    if end - at < 2 or data[at] != tag:
        raise ValueError(f"no element of kind {tag:#04x} at byte {at}")
    length = data[at + 1]
    start = at + 2
    if length >= 0x80:
        count = length - 0x80
        raw = data[start : min(start + count, end)]
        start += count
        length = int.from_bytes(raw, "big")
        # X.690, 10.1: definite, and in as few bytes as possible.
        if not 0 < count <= _MAX_LENGTH_BYTES or len(raw) < count or not raw[0] or length < 0x80:
            raise ValueError(f"no proper length at byte {at + 1}")
    if length > end - start:
        raise ValueError(f"the element at byte {at} is cut off")
    return start, start + length
