"""The header as fields: nothing is lost or changed between reading and writing it."""

from __future__ import annotations

from email.header import decode_header, make_header
from email.headerregistry import Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maildirqmtp.mail import fields


@pytest.mark.parametrize(
    ("text", "names", "body"),
    [
        (b"", [], b""),
        (b"\nbody", [], b"body"),
        (b"To: a\n\nbody", [b"to"], b"body"),
        (b"To: a\n b\nCC : c\n\n", [b"to", b"cc"], b""),
        (b"To: a", [b"to"], b""),
        (b"To: a\n", [b"to"], b""),
        (b"To: a\nno field\n\nbody", [b"to"], b"no field\n\nbody"),
        (b"hello\n", [], b"hello\n"),
        (b" To: a\n", [], b" To: a\n"),
        (b"To: a\n \n\nbody", [b"to"], b"body"),
        (b"T\xc3\xb6: a\n", [], b"T\xc3\xb6: a\n"),
        (b"http://x\n", [b"http"], b""),
    ],
)
def test_where_the_header_ends(text: bytes, names: list[bytes], body: bytes) -> None:
    """A body that is taken for a header is read by nobody; a Bcc that is not, by everybody."""
    head = fields.read(text, True)
    assert head is not None
    assert [field.name for field in head.fields] == names
    assert text[head.body_at :] == body


@given(st.text(st.sampled_from("aT: \n\t-ü"), max_size=60), st.integers(0, 60))
def test_wherever_it_is_cut(text: str, cut: int) -> None:
    """A pipe gives what it has; what is said of a part must hold for the whole."""
    raw = text.encode()
    whole = fields.read(raw, True)
    assert whole is not None
    assert fields.read(raw[:cut], False) in (None, whole)
    header = b"".join(field.raw for field in whole.fields)
    assert header.rstrip(b"\n") == raw[: whole.body_at].rstrip(b"\n")


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("", ""),
        ("Ann Bee", "Ann Bee"),
        ("CronDaemon", "CronDaemon"),
        ("Joe Q. Public", '"Joe Q. Public"'),
        ('Ann "the bee" \\', '"Ann \\"the bee\\" \\\\"'),
        ("a, b", '"a, b"'),
        ("Ann\r\nBcc: x@y", '"Ann Bcc: x@y"'),
        ("Jürgen", "=?utf-8?b?SsO8cmdlbg==?="),
        ("=?utf-8?q?x?=", '"=?utf-8?q?x?="'),
    ],
)
def test_a_name_before_an_address(name: str, written: str) -> None:
    """GECOS fields hold anything; a header is no place for it."""
    assert fields.phrase(name) == written


@given(st.text(max_size=100))
def test_any_name_is_one_phrase(name: str) -> None:
    """That mail programs show as it was, in lines that may travel."""
    written = fields.phrase(name)
    plain = " ".join("".join(c if c.isprintable() else " " for c in name).split())
    assert written.isascii()
    assert all(len(line) <= 76 for line in written.split("\n")[1:])
    if plain.isascii():
        assert written in (plain, str(Address(plain)).removesuffix(" <>"))
    else:
        decoded = "".join(map(str, [make_header(decode_header(written))]))
        assert decoded == plain.encode("utf-8", "replace").decode()
