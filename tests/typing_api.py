"""A program that uses all of the public API; never run, only read by type checkers.

`mypy --strict` reads it with everything else, `tests/test_public.py` has
pyright read it.
"""

from __future__ import annotations

import io
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import aclosing, closing
from pathlib import Path
from typing import IO, assert_type

import maildirqmtp
from maildirqmtp import (
    AsyncQMTPClient,
    ConfigError,
    ConnectError,
    ConnectTimeout,
    EnvelopeError,
    Fault,
    FileChangedError,
    LocalError,
    NetstringError,
    Outcome,
    Package,
    PackageError,
    ProtocolError,
    QMTPClient,
    QMTPError,
    Response,
    ResponseTimeout,
    SendResult,
    SidecarError,
    Status,
    Tls,
    TransportError,
    WriteTimeout,
    netstring,
)


def results(result: SendResult) -> None:
    """Everything a result has."""
    assert_type(result[0], Outcome)
    assert_type(result["a@example.net"], Response)
    assert_type(result[b"a@example.net"], Response)
    assert_type(result[1:], Sequence[Outcome])
    assert_type(len(result), int)
    for outcome in result:
        assert_type(outcome.recipient, str)
        assert_type(outcome.address, bytes)
        assert_type(outcome.answered, bool)
        assert_type(outcome.in_doubt, bool)
        assert_type(outcome.response, Response)
        assert_type(outcome.response.status, Status)
        assert_type(outcome.response.text, str)
        assert_type(outcome.response.raw, bytes)
    assert_type(result.accepted, tuple[Outcome, ...])
    assert_type(result.deferred, tuple[Outcome, ...])
    assert_type(result.failed, tuple[Outcome, ...])
    assert_type(result.in_doubt, tuple[Outcome, ...])
    assert_type("a@example.net" in result, bool)
    assert result[0].response.status in (Status.ACCEPTED, Status.DEFERRED, Status.FAILED)


def packages(file: IO[bytes]) -> Iterator[Package]:
    """Every kind of argument."""
    yield Package("me@example.org", "a@example.net", b"text")
    yield Package(b"", [b"a@example.net", "b@example.net"], bytearray(b"text"), encoding="dos")
    yield Package("", ("a@example.net",), Path("message"), encoding="unix")
    yield Package("", {"a@example.net"}, "path/to/message")
    yield Package("", "a@example.net", file)
    yield Package("", "a@example.net", io.BytesIO(b"text"))
    yield Package("", "a@example.net", [b"X: y\n", Path("message"), file, memoryview(b"z")])
    yield Package("", "a@example.net", [b"only", b"bytes"])


def tls() -> Tls:
    """Everything that can be said of TLS."""
    Tls("ca.pem", b"cert.pem", Path("key.pem"), "sha256:00")
    Tls(pins=bytes(32))
    made = Tls(ca=Path("ca.pem"), cert="cert.pem", key="key.pem", pins=["sha256:00", bytes(32)])
    assert_type(made.ca, str | bytes | None)
    assert_type(made.cert, str | bytes | None)
    assert_type(made.key, str | bytes | None)
    assert_type(made.pins, tuple[bytes, ...])
    return made


def synchronous(file: IO[bytes]) -> None:
    """The client with all its options and methods."""
    client = QMTPClient(
        "mail.example.org",
        port=209,
        defer_connect=True,
        connect_timeout=60,
        write_timeout=73.0,
        response_timeout=3600.0,
        grace_time=10.0,
        session_limit=3000.0,
        tls=None,
        window=(4096, 32 << 20),
    )
    QMTPClient("qmtps://mail.example.org", tls=tls())
    AsyncQMTPClient("qmtps://mail.example.org", tls=tls())
    client.server = "other.example.org"
    client.port = None
    assert_type(QMTPClient("mail.example.org").server, str)
    assert_type(QMTPClient("mail.example.org").port, int | None)
    assert_type(client.connected, bool)
    client.connect()
    client.reconnect()
    client.disconnect()
    with QMTPClient("mail.example.org", window=100) as client:
        assert_type(client, QMTPClient)
        results(client.send("me@example.org", ["a@example.net"], b"text", encoding="dos"))
        for result in client.send_many(packages(file)):
            assert_type(result, SendResult)
        with closing(client.send_many([])) as stream:
            next(stream)


async def asynchronous(file: IO[bytes]) -> None:
    """The same for asyncio."""

    async def source() -> AsyncIterator[Package]:
        for package in packages(file):
            yield package

    async with AsyncQMTPClient("mail.example.org", port=209, defer_connect=True) as client:
        assert_type(client, AsyncQMTPClient)
        await client.connect()
        await client.reconnect()
        results(await client.send("me@example.org", "a@example.net", Path("message")))
        async for result in client.send_many(packages(file)):
            results(result)
        async with aclosing(client.send_many(source())) as stream:
            async for result in stream:
                results(result)
        client.disconnect()
        assert_type(client.connected, bool)


def errors(client: QMTPClient) -> None:
    """What can be caught, and what it says."""
    try:
        client.send("", "a@example.net", b"")
    except (ConnectTimeout, ResponseTimeout, WriteTimeout) as error:
        timeout: TimeoutError = error
        raise timeout from None
    except (ConnectError, TransportError) as error:
        os_error: OSError = error
        raise os_error from None
    except PackageError as error:
        value_error: ValueError = error
        raise value_error from None
    except (ProtocolError, NetstringError, FileChangedError, LocalError):
        raise
    except (EnvelopeError, SidecarError, ConfigError):
        raise
    except QMTPError as error:
        assert_type(error.fault, Fault)
        assert_type(error.permanent, bool)
        if error.result is not None:
            results(error.result)


def netstrings(file: IO[bytes]) -> None:
    """What Text::Netstring offers."""
    assert_type(netstring.encode(b"hello"), bytes)
    assert_type(netstring.decode(b"5:hello,"), bytes)
    assert_type(netstring.is_valid(b"5:hello,"), bool)
    assert_type(netstring.read(file), bytes | None)
    assert_type(netstring.read(io.BytesIO(), max_length=10), bytes | None)


VERSION: str = maildirqmtp.__version__
