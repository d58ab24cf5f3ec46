"""Whatever Net::QMTP does, or has on its TODO list, and what does it here.

A row for each method, option, behaviour and TODO line of its manual (version
0.06, 2004); each is tried against our receiver and, where it can be, against
mailfront, whose parser is not ours. contrib/doc/net-qmtp.md has the same table in words.
"""

from __future__ import annotations

import contextlib
import gc
import io
import logging
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from maildirqmtp import (
    ConnectError,
    Fault,
    FileChangedError,
    Package,
    PackageError,
    QMTPClient,
    QMTPError,
    Response,
    ResponseTimeout,
    Status,
    TransportError,
)
from maildirqmtp.receiver.policy import Policy
from maildirqmtp.receiver.server import Server
from tests.helpers import Peer, closed_port, have_mailfront, mailfront, serving

ME, ANN, BOB = "me@example.org", "ann@example.net", "bob@example.net"
FULL, NOBODY = "full@example.net", "nobody@example.net"
TEXT = b"From: me@example.org\nSubject: QMTP test\n\nHi Joe!\n"
#: Seconds; mailfront answers once per package, and this is how long we wait for more.
GRACE_S = 0.3

Mail = tuple[bytes, bytes, bytes]


class Place:
    """A running server, and what it has taken: sender, recipient, text of each."""

    def __init__(self, kind: str, server: str, root: Path) -> None:
        self.kind = kind
        self.server = server
        self.root = root

    @property
    def host(self) -> str:
        """The server without its port."""
        return self.server.rpartition(":")[0]

    @property
    def port(self) -> int:
        """Its port."""
        return int(self.server.rpartition(":")[2])

    def client(self) -> QMTPClient:
        """Connect to it."""
        return QMTPClient(self.server, grace_time=GRACE_S)

    def mails(self) -> list[Mail]:
        """Return what it has taken, sorted."""
        found: list[Mail] = []
        for path in (self.root / "new").iterdir():
            found += (_maildir if self.kind == "receiver" else _queuedir)(path.read_bytes())
        return sorted(found)


def _maildir(content: bytes) -> list[Mail]:
    sender, recipient, rest = content.split(b"\n", 2)
    assert rest.startswith(b"Received: ")
    text = rest[rest.index(b"\n") + 1 :]
    while text[:1] in (b" ", b"\t"):
        text = text[text.index(b"\n") + 1 :]
    sender = sender.removeprefix(b"Return-Path: <").removesuffix(b">")
    return [(sender, recipient.removeprefix(b"Delivered-To: "), text)]


def _queuedir(content: bytes) -> list[Mail]:
    sender, rest = content.split(b"\0", 1)
    recipients = []
    while any(rest.startswith(address.encode() + b"\0") for address in (ANN, BOB)):
        recipient, rest = rest.split(b"\0", 1)
        recipients.append(recipient)
    return [(sender, recipient, rest) for recipient in recipients]


def _refuse(recipient: bytes) -> Response | None:
    if recipient == FULL.encode():
        return Response(Status.DEFERRED, b"452 mailbox full (#4.2.2)")
    if recipient == NOBODY.encode():
        return Response(Status.FAILED, b"550 no such user (#5.1.1)")
    return None


@contextlib.contextmanager
def receiver(root: Path) -> Iterator[Place]:
    """Run our receiver in a thread."""
    with Server(root, listen=("127.0.0.1", 0), policy=Policy(refuse=_refuse)) as server:
        assert server.address is not None
        host, port = server.address
        thread = threading.Thread(target=server.serve)
        thread.start()
        try:
            yield Place("receiver", f"{host}:{port}", root)
        finally:
            server.stop()
            thread.join()


@contextlib.contextmanager
def running(kind: str, root: Path) -> Iterator[Place]:
    """Run one of the servers."""
    if kind == "receiver":
        with receiver(root) as place:
            yield place
    else:
        with mailfront(root) as server:
            yield Place(kind, server, root)


def mail(recipient: str = ANN, text: bytes = TEXT, sender: str = ME) -> Mail:
    """What the server should have taken."""
    return (sender.encode(), recipient.encode(), text)


class LogLines(logging.Handler):
    """What was logged at DEBUG."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep it."""
        self.lines.append(record.getMessage())


@contextlib.contextmanager
def debugging() -> Iterator[LogLines]:
    """Listen to the logger, as a program does."""
    handler, logger = LogLines(), logging.getLogger("maildirqmtp")
    logger.addHandler(handler)
    before = logger.level
    logger.setLevel(logging.DEBUG)
    try:
        yield handler
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


def _reads_one(peer: Peer) -> None:
    """Take a package and hang up."""
    peer.read_package()


def _reads_on(peer: Peer) -> None:
    """Take packages and never answer."""
    while peer.read_package() is not None:
        pass


# The rows


def new_connects(place: Place) -> None:
    """`new(HOST)`: connected when it is made; an exception where that fails."""
    with QMTPClient(place.server) as client:
        assert client.connected
    with pytest.raises(ConnectError):
        QMTPClient("127.0.0.1", port=closed_port())


def defer_connect(place: Place) -> None:
    """`DeferConnect`: nothing until it is told to, or sends."""
    client = QMTPClient(place.server, defer_connect=True)
    assert not client.connected
    client.reconnect()
    assert client.connected
    client.disconnect()
    QMTPClient("127.0.0.1", port=closed_port(), defer_connect=True)


def connect_timeout(place: Place) -> None:
    """`ConnectTimeout`: in seconds, fractions too; senseless ones are refused at once."""
    with QMTPClient(place.server, connect_timeout=2.5) as client:
        assert client.connected
    with pytest.raises(QMTPError):
        QMTPClient(place.server, connect_timeout=0)


def port(place: Place) -> None:
    """`Port`: 209 unless said otherwise, here or in the server's name."""
    with QMTPClient(place.host, port=place.port) as client:
        assert client.send(ME, ANN, TEXT).accepted
    assert QMTPClient("mail.example.org", defer_connect=True).port is None
    with pytest.raises(QMTPError, match="1 to 65535"):
        QMTPClient(place.host, port=65_536)


def debug(place: Place) -> None:
    """`Debug`: the logger `maildirqmtp` at DEBUG; texts of messages never."""
    with debugging() as log, place.client() as client:
        client.send(ME, ANN, TEXT)
    told = "\n".join(log.lines)
    assert f"package from <{ME}> to {ANN}, {len(TEXT)} bytes" in told
    assert f"response for {ANN}: K" in told
    assert "Joe" not in told


def sender(place: Place) -> None:
    """`sender(ADDRESS)`: an argument; the empty one is the null sender."""
    with place.client() as client:
        client.send(ME, ANN, TEXT)
        client.send("", ANN, TEXT)
    assert place.mails() == sorted([mail(), mail(sender="")])


def recipient(place: Place) -> None:
    """`recipient(ADDRESS)`, called for each: a list, kept in order and with its doubles."""
    with place.client() as client:
        result = client.send(ME, [ANN, BOB, ANN.encode()], TEXT)
    assert [r.recipient for r in result] == [ANN, BOB, ANN]
    assert len(result.accepted) == 3
    assert set(place.mails()) == {mail(ANN), mail(BOB)}


def no_recipient(place: Place) -> None:
    """A message to nobody: said by us, because no server answers it."""
    with place.client() as client:
        with pytest.raises(ValueError, match="without recipients"):
            client.send(ME, [], TEXT)
        assert client.send(ME, ANN, TEXT).accepted
    assert place.mails() == [mail()]


def server(place: Place) -> None:
    """`server(HOST)`: a property; it counts from the next connect on."""
    client = QMTPClient("127.0.0.1", port=closed_port(), defer_connect=True)
    with pytest.raises(ConnectError):
        client.connect()
    client.server, client.port = place.host, place.port
    assert (client.server, client.port) == (place.host, place.port)
    client.reconnect()
    client.server = "127.0.0.2"
    assert client.send(ME, ANN, TEXT).accepted
    client.disconnect()


def message(place: Place) -> None:
    """`message(TEXT)`, called again to append: a list of parts; an empty one is valid."""
    with place.client() as client:
        client.send(ME, ANN, TEXT)
        client.send(ME, BOB, [b"Subject: x\n", b"\n", b"y\n"])
        client.send(ME, ANN, b"")
    assert place.mails() == sorted([mail(), mail(BOB, b"Subject: x\n\ny\n"), mail(ANN, b"")])


def message_from_file(place: Place) -> None:
    """`message_from_file(FILE)`: a path or a file object; large ones are streamed."""
    path = place.root.with_suffix(".message")
    large = bytes(range(256)) * 12_000
    with place.client() as client:
        path.write_bytes(TEXT)
        client.send(ME, ANN, path)
        client.send(ME, BOB, io.BytesIO(b"in memory\n"))
        path.write_bytes(large)
        with path.open("rb") as file:
            client.send(ME, BOB, file)
            assert not file.closed
            client.send(ME, ANN, str(path))
    expected = [mail(), mail(BOB, b"in memory\n"), mail(BOB, large), mail(ANN, large)]
    assert place.mails() == sorted(expected)


def encoding_unix(place: Place) -> None:
    """`encoding("unix")`: the default; bytes are sent as they are."""
    text = b"Subject: x\n\nmixed\r\nline ends\r\n"
    with place.client() as client:
        client.send(ME, ANN, text)
        client.send(ME, BOB, text, encoding="unix")
    assert place.mails() == sorted([mail(ANN, text), mail(BOB, text)])


def encoding_dos(place: Place) -> None:
    """`encoding("dos")`: CR LF line ends, told apart by the package's first byte."""
    with place.client() as client:
        result = client.send(ME, ANN, b"Subject: x\r\n\r\ny\r\n", encoding="dos")
        if place.kind == "receiver":
            assert place.mails() == [mail(ANN, b"Subject: x\n\ny\n")]
        else:
            # It knows only the other one, says so with a Z, and hangs up.
            assert result.deferred
            assert place.mails() == []


def encoding_is_never_guessed(place: Place) -> None:
    """The manual's trap, a guess from `$/`: here it is what the caller says, and no third."""
    with place.client() as client, pytest.raises(ValueError, match="neither 'unix' nor 'dos'"):
        client.send(ME, ANN, TEXT, encoding="mac")  # type: ignore[arg-type]
    assert place.mails() == []


def send_returns_each_response(place: Place) -> None:
    """`send()`: keyed by recipient, and in order; `success:`, `deferral:`, `failure:`."""
    with place.client() as client:
        result = client.send(ME, [ANN], TEXT)
        assert result[ANN].status is Status.ACCEPTED
        assert result[ANN.encode()].text == result[0].response.text
        if place.kind == "receiver":
            result = client.send(ME, [FULL, ANN, NOBODY], TEXT)
            assert [r.response.status.name for r in result] == ["DEFERRED", "ACCEPTED", "FAILED"]
            assert result[FULL].text == "452 mailbox full (#4.2.2)"
            assert result[NOBODY].raw == b"550 no such user (#5.1.1)"
            assert [r.recipient for r in result.failed] == [NOBODY]
    with pytest.raises(KeyError):
        result["somebody@example.net"]


def send_fails_then_reconnects(place: Place) -> None:
    """`send()` that failed: the connection is closed, and the next one makes another."""
    path = place.root.with_suffix(".message")
    path.write_bytes(b"x" * 3_000_000)
    with place.client() as client:
        with path.open("r+b") as file, pytest.raises(FileChangedError):
            client.send(ME, ANN, [file, _Truncates(path)])
        assert not client.connected
        assert client.send(ME, ANN, TEXT).accepted
        assert client.connected


class _Truncates:
    """A part of a message that cuts the file before it, when it is read."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self, size: int) -> bytes:
        """Return nothing."""
        os.truncate(self._path, 2_000_000)
        return b""


def early_close_is_discarded(place: Place) -> None:
    """Closing early takes the package back: half a message is never delivered."""
    path = place.root.with_suffix(".message")
    path.write_bytes(b"x" * 3_000_000)
    with place.client() as client:
        with path.open("rb") as file, pytest.raises(FileChangedError) as caught:
            client.send(ME, ANN, [file, _Truncates(path)])
        assert caught.value.result is not None
        assert not caught.value.result.in_doubt
        client.send(ME, BOB, TEXT)
    assert place.mails() == [mail(BOB)]


def new_envelope(place: Place) -> None:
    """`new_envelope()`: nothing to reset; the same message to others is another `send`."""
    with place.client() as client:
        for to in (ANN, BOB):
            client.send(ME, to, TEXT)
    assert place.mails() == sorted([mail(ANN), mail(BOB)])


def new_message(place: Place) -> None:
    """`new_message()`: the same envelope with another message."""
    with place.client() as client:
        for text in (TEXT, b"another\n"):
            client.send(ME, ANN, text)
    assert place.mails() == sorted([mail(), mail(ANN, b"another\n")])


def disconnect(place: Place) -> None:
    """`disconnect()`: harmless twice; a with block does it."""
    client = place.client()
    client.disconnect()
    client.disconnect()
    assert not client.connected
    with place.client() as client:
        pass
    assert not client.connected


def reconnect(place: Place) -> None:
    """`reconnect()`: a new connection, whatever there was."""
    with debugging() as log, place.client() as client:
        client.reconnect()
        client.disconnect()
        client.reconnect()
        assert client.send(ME, ANN, TEXT).accepted
    assert sum(line.endswith(": connected") for line in log.lines) == 3


def destructor(place: Place) -> None:
    """The destructor closes the connection, without a warning."""
    with debugging() as log:
        client = place.client()
        del client
        gc.collect()
    assert log.lines[-1].endswith(": closed")


def todo_error_message(place: Place) -> None:
    """TODO "how to report an error message?": exceptions that say what, whose fault, how long."""
    with pytest.raises(QMTPError, match="cannot connect to 127") as caught:
        QMTPClient("127.0.0.1", port=closed_port())
    assert isinstance(caught.value, OSError)
    assert (caught.value.fault, caught.value.permanent) == (Fault.NETWORK, False)
    with place.client() as client, pytest.raises(PackageError, match="NUL") as wrong:
        client.send(ME, "a\0b", TEXT)
    assert isinstance(wrong.value, ValueError)
    assert wrong.value.permanent


def todo_message_and_file(place: Place) -> None:
    """TODO: "message data can't be created from message() and message_from_file()"."""
    path = place.root.with_suffix(".message")
    path.write_bytes(TEXT)
    with place.client() as client:
        client.send(ME, ANN, [b"X-Above: yes\n", path, io.BytesIO(b"below\n"), b"end\n"])
    assert place.mails() == [mail(ANN, b"X-Above: yes\n" + TEXT + b"below\nend\n")]


def todo_timeouts(place: Place) -> None:
    """TODO "socket timeout granularity? read timeout?": one for each wait, all in seconds."""
    with QMTPClient(place.server, write_timeout=5, response_timeout=0.5) as client:
        assert client.send(ME, ANN, TEXT).accepted
    with (
        serving(_reads_on) as silent,
        QMTPClient(silent.address, response_timeout=0.05) as client,
        pytest.raises(ResponseTimeout) as caught,
    ):
        client.send(ME, ANN, TEXT)
    assert isinstance(caught.value, TimeoutError)
    assert caught.value.result is not None
    assert [r.recipient for r in caught.value.result.in_doubt] == [ANN]


def todo_pipelining(place: Place) -> None:
    """TODO "client does NOT need to wait": send_many, which also reads while it writes."""
    texts = [b"Subject: %d\n\n" % n + b"x" * 3_000 for n in range(300)]
    with place.client() as client:
        packages = (Package(ME, ANN, text) for text in texts)
        results = list(client.send_many(packages))
    assert [len(result.accepted) for result in results] == [1] * 300
    assert place.mails() == sorted(mail(ANN, text) for text in texts)


def todo_more_tests(place: Place) -> None:
    """TODO: "we should write more tests": there is one for each line of the manual."""
    assert {row.__name__ for row in ROWS} >= {todo_more_tests.__name__}
    assert all(row.__doc__ for row in ROWS)


def todo_server_closes(place: Place) -> None:
    """TODO "server is permitted to close at any time": unanswered is deferred, and in doubt."""
    with (
        serving(_reads_one) as closes,
        QMTPClient(closes.address) as client,
        pytest.raises(TransportError) as caught,
    ):
        client.send(ME, [ANN, BOB], TEXT)
    result = caught.value.result
    assert result is not None
    assert [r.recipient for r in result.deferred] == [ANN, BOB]
    assert result.in_doubt == tuple(result)
    assert not any(r.answered for r in result)


def todo_one_hour(place: Place) -> None:
    """TODO "at most 1 hour": connections are replaced by themselves, between packages."""
    with (
        debugging() as log,
        QMTPClient(place.server, session_limit=1e-6) as client,
    ):
        results = list(client.send_many(Package(ME, ANN, b"%d\n" % n) for n in range(5)))
        assert all(result.accepted for result in results)
    assert sum(line.endswith(": connected") for line in log.lines) >= 5
    assert len(place.mails()) == 5


ROWS: list[Callable[[Place], None]] = [
    new_connects,
    defer_connect,
    connect_timeout,
    port,
    debug,
    sender,
    recipient,
    no_recipient,
    server,
    message,
    message_from_file,
    encoding_unix,
    encoding_dos,
    encoding_is_never_guessed,
    send_returns_each_response,
    send_fails_then_reconnects,
    early_close_is_discarded,
    new_envelope,
    new_message,
    disconnect,
    reconnect,
    destructor,
    todo_error_message,
    todo_message_and_file,
    todo_timeouts,
    todo_pipelining,
    todo_more_tests,
    todo_server_closes,
    todo_one_hour,
]

MAILFRONT = pytest.param(
    "mailfront",
    marks=pytest.mark.skipif(
        not have_mailfront(),
        reason="NOT RUN AGAINST A FOREIGN SERVER: "
        "apt-get install --no-install-recommends mailfront ucspi-tcp",
    ),
)


@pytest.mark.parametrize("kind", ["receiver", MAILFRONT])
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.__name__)
def test_net_qmtp(row: Callable[[Place], None], kind: str, tmp_path: Path) -> None:
    """A program moved over from Net::QMTP finds everything it used, and what it missed."""
    with running(kind, tmp_path / "server") as place:
        row(place)
