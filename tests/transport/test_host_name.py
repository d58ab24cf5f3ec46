"""The name of this host: a bounce from `MAILER-DAEMON@laptop` is thrown away by many servers."""

import socket
from collections.abc import Iterator

import pytest

from maildirqmtp.transport.host_name import full_host_name


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    full_host_name.cache_clear()
    yield
    full_host_name.cache_clear()


@pytest.mark.parametrize(
    ("short", "canonical", "full"),
    [
        ("laptop", "laptop.example.org", "laptop.example.org"),
        ("laptop", "laptop.example.org.", "laptop.example.org"),
        ("mx.example.org", "unasked", "mx.example.org"),
        ("laptop", "laptop", "laptop"),
        ("laptop", "localhost", "laptop"),
        ("laptop", "localhost.localdomain", "laptop"),
        ("laptop", "", "laptop"),
        ("laptop", None, "laptop"),
    ],
)
def test_the_full_name(
    monkeypatch: pytest.MonkeyPatch, short: str, canonical: str | None, full: str
) -> None:
    """Where /etc/hosts or the DNS has one; `localhost` names every host."""

    def getaddrinfo(host: str, *_: object, **__: object) -> list[tuple[object, ...]]:
        assert host == "laptop"
        if canonical is None:
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, canonical, ("127.0.1.1", 0))]

    monkeypatch.setattr(socket, "gethostname", lambda: short)
    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    assert full_host_name() == full


def test_a_name_that_the_resolver_cannot_take(monkeypatch: pytest.MonkeyPatch) -> None:
    """A label of more than 63 characters is a UnicodeError of Python's, not the resolver's."""
    monkeypatch.setattr(socket, "gethostname", lambda: "x" * 64)
    assert full_host_name() == "x" * 64
