"""Packages: what no server takes is refused before anything is sent."""

import pytest

from maildirqmtp.client.package import Package
from maildirqmtp.errors import Fault, PackageError, QMTPError
from maildirqmtp.qmtp.protocol import MAX_RECIPIENTS


def test_addresses_are_str_or_bytes() -> None:
    """UTF-8 on the wire; other bytes survive the way through str."""
    package = Package("jürgen@x", ["a@y", b"\xff@y", "\udcff@z"], b"")
    assert package.sender == "jürgen@x".encode()
    assert package.recipients == (b"a@y", b"\xff@y", b"\xff@z")
    assert package.first_byte == b"\n"


@pytest.mark.parametrize("recipients", ["a@y", b"a@y", ["a@y"], (b"a@y",), iter(["a@y"])])
def test_a_single_address_is_a_list_of_one(recipients: str) -> None:
    """A forgotten bracket must not send to `a`, `@` and `y`."""
    assert Package("", recipients, b"").recipients == (b"a@y",)


def test_the_longest_address_is_999_bytes() -> None:
    """qmail-qmtpd refuses 1,000."""
    assert Package("s" * 999, "ü" * 499, b"").recipients == ("ü".encode() * 499,)


@pytest.mark.parametrize(
    ("sender", "recipients", "says"),
    [
        ("s" * 1000, ["a@y"], "sender of 1000 bytes"),
        ("", ["a@y", "ü" * 500], "recipient of 1000 bytes"),
        ("", ["a\0@y"], "has a NUL"),
        ("s\0", ["a@y"], "sender s. has a NUL"),
        ("", ["a@y\nRCPT"], "has a LF"),
        ("", ["a@y\r"], "has a CR"),
        ("", [], "without recipients"),
        ("", [""], "a recipient must not be empty"),
        ("", ["a@y", "", "b@y"], "a recipient must not be empty"),
        ("", ["a@y"] * (MAX_RECIPIENTS + 1), "10001 recipients"),
    ],
    ids=str,
)
def test_what_cannot_be_sent_is_a_value_error(
    sender: str, recipients: list[str], says: str
) -> None:
    """At the line that made it, and of our own tree as well."""
    with pytest.raises(ValueError, match=says) as caught:
        Package(sender, recipients, b"")
    assert isinstance(caught.value, PackageError)
    assert isinstance(caught.value, QMTPError)
    assert (caught.value.fault, caught.value.permanent) == (Fault.MESSAGE, True)


def test_a_package_is_not_changed_afterwards() -> None:
    """Its recipients were checked when it was made; others would go out unchecked."""
    package = Package("", "a@y", b"")
    with pytest.raises(AttributeError):
        package.recipients = (b"",)  # type: ignore[misc]


def test_encodings() -> None:
    """The first byte of the message says how its lines end (qmtp.txt, section 4)."""
    assert Package("", "a@y", b"", encoding="unix").first_byte == b"\n"
    assert Package("", "a@y", b"", encoding="dos").first_byte == b"\r"
    with pytest.raises(PackageError, match="neither 'unix' nor 'dos'"):
        Package("", "a@y", b"", encoding="crlf")  # type: ignore[arg-type]
