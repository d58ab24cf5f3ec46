"""The digest of a public key: for pins, it must be the one that everybody else computes."""

import contextlib
import hashlib
import ssl
import subprocess
from pathlib import Path

import pytest
import trustme
from hypothesis import given, settings
from hypothesis import strategies as st

from maildirqmtp.transport.spki import public_key_digest

AUTHORITY = trustme.CA()
CERTIFICATES = {
    "elliptic": AUTHORITY.issue_cert("mail.example.org"),
    "rsa": AUTHORITY.issue_cert("mail.example.org", key_type=trustme.KeyType.RSA),
    "many names": AUTHORITY.issue_cert(*(f"{n}.example.org" for n in range(3_000))),
}
DER = {
    name: ssl.PEM_cert_to_DER_cert(made.cert_chain_pems[0].bytes().decode())
    for name, made in CERTIFICATES.items()
}


@pytest.mark.parametrize("name", CERTIFICATES)
def test_it_is_what_openssl_says(name: str, tmp_path: Path) -> None:
    """A pin that was made by the recipe in administration.md must fit."""
    (tmp_path / "cert.der").write_bytes(DER[name])
    key = subprocess.run(
        ["openssl", "x509", "-inform", "der", "-in", tmp_path / "cert.der", "-pubkey", "-noout"],
        check=True,
        capture_output=True,
    ).stdout
    der = subprocess.run(
        ["openssl", "pkey", "-pubin", "-outform", "der"], input=key, check=True, capture_output=True
    ).stdout
    assert public_key_digest(DER[name]) == hashlib.sha256(der).digest()


def der(tag: int, *contents: bytes) -> bytes:
    """Write an element, as X.690 has it."""
    content = b"".join(contents)
    if len(content) < 0x80:
        return bytes([tag, len(content)]) + content
    size = len(content).to_bytes((len(content).bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 + len(size)]) + size + content


KEY = der(0x30, der(0x30, b"algorithm"), der(0x03, b"\0key"))
BEFORE = [der(0x02, b"\1")] + [der(0x30, name) for name in (b"sig", b"iss", b"val", b"sub")]


def certificate(*parts: bytes) -> bytes:
    """Make what could be a certificate of these parts."""
    return der(0x30, der(0x30, *parts), der(0x30, b"sig"), der(0x03, b"\0sig"))


def test_a_version_may_be_missing() -> None:
    """As in certificates of version 1; the key is the sixth element then."""
    digest = hashlib.sha256(KEY).digest()
    assert public_key_digest(certificate(*BEFORE, KEY)) == digest
    assert public_key_digest(certificate(der(0xA0, der(2, b"\2")), *BEFORE, KEY)) == digest
    assert public_key_digest(certificate(*BEFORE, KEY, der(0xA3, b"x" * 300))) == digest


GOOD = certificate(*BEFORE, KEY)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x30",
        b"\x30\x80" + GOOD[2:] + b"\0\0",
        GOOD + b"\0",
        GOOD[:-1],
        certificate(*BEFORE),
        certificate(*BEFORE[1:], KEY),
        certificate(*BEFORE, b"\x04" + KEY[1:]),
        certificate(*BEFORE, KEY[:-1]),
        b"\x30\x81" + GOOD[1:],
        b"\x30\x84\0\0\0" + GOOD[1:],
        b"\x30\x85" + b"\xff" * 5 + GOOD[2:],
        b"\x30\x82\xff",
    ],
)
def test_what_is_no_certificate_is_refused(data: bytes) -> None:
    """A part taken for the key could be one that others can have, too."""
    with pytest.raises(ValueError, match=r"element|length|after"):
        public_key_digest(data)


@settings(deadline=None)
@given(st.data())
def test_damage_gives_another_key_or_none(data: st.DataObject) -> None:
    """Nothing but `ValueError` comes out of bytes that somebody else has chosen."""
    whole = bytearray(DER["elliptic"])
    cut = data.draw(st.integers(0, len(whole)))
    at = data.draw(st.integers(0, len(whole) - 1))
    whole[at] ^= data.draw(st.integers(1, 255))
    for damaged in (bytes(whole), bytes(whole[:cut])):
        with contextlib.suppress(ValueError):
            assert len(public_key_digest(damaged)) == 32
