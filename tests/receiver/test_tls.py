"""The receiver's TLS: handshakes that take their time, refused clients, slow readers."""

from __future__ import annotations

import contextlib
import hmac
import os
import re
import select
import shutil
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from maildirqmtp.errors import LocalError
from maildirqmtp.qmtp.protocol import ResponseReader, package_head, package_tail
from maildirqmtp.receiver.connection import HANDSHAKE_S
from maildirqmtp.receiver.policy import Severity
from maildirqmtp.receiver.server import Server
from maildirqmtp.receiver.tls import TlsServer, names_of
from tests.certificates import Authority, Identity
from tests.helpers import DEADLINE_S, wait_until
from tests.receiver.doubles import Clock, Log, serving_thread

PACKAGE = package_head(3) + b"hi\n" + package_tail(b"a@b", (b"c@example.org",))


@pytest.fixture(scope="module")
def identity(authority: Authority) -> Identity:
    """The receiver's."""
    return authority.issue("localhost")


Start = Callable[..., Server]


@pytest.fixture
def start(tmp_path: Path, identity: Identity, log: Log, clock: Clock) -> Iterator[Start]:
    """Starts receivers that end with the test."""
    with contextlib.ExitStack() as stack:

        def start(**options: str | tuple[str, ...]) -> Server:
            tls_server = TlsServer(identity.cert, identity.key, **options)  # type: ignore[arg-type]
            server = stack.enter_context(
                Server(
                    tmp_path / "Maildir",
                    listen=("127.0.0.1", 0),
                    wrap=tls_server.wrap,
                    log=log,
                    clock=clock,
                )
            )
            stack.enter_context(serving_thread(server))
            return server

        yield start


def dial(server: Server) -> socket.socket:
    """Connect in plain."""
    assert server.address is not None
    return socket.create_connection(server.address, DEADLINE_S)


def connect(server: Server, authority: Authority, client: Identity | None = None) -> ssl.SSLSocket:
    """Connect with TLS."""
    context = ssl.create_default_context(cafile=authority.file)
    if client is not None:
        context.load_cert_chain(client.cert, client.key)
    return context.wrap_socket(dial(server), server_hostname="localhost")


def responses(sock: socket.socket, count: int) -> str:
    """Wait for `count` responses; return their letters."""
    reader, letters = ResponseReader(), ""
    while len(letters) < count:
        response = reader.next()
        if response is None:
            data = sock.recv(65_536)
            assert data, f"closed after {letters!r}"
            reader.feed(data)
        else:
            letters += response.status.value
    return letters


def wake(server: Server) -> None:
    """Make the server look at the clock."""
    server._wakeup.set()


def test_a_client_that_does_not_finish_its_handshake_is_dropped(
    start: Start, authority: Authority, log: Log, clock: Clock
) -> None:
    """And holds nobody up before that; some port scanner is always there."""
    server = start()
    with dial(server) as silent, dial(server) as slow:
        slow.sendall(b"\x16\x03\x01\x02\x00\x01")  # the beginning of TLS
        for _ in range(2):
            log.wait_for("connected")
        with connect(server, authority) as client:
            client.sendall(PACKAGE)
            assert responses(client, 1) == "K"
            clock.now_s += HANDSHAKE_S - 1
            wake(server)
            client.sendall(PACKAGE)
            assert responses(client, 1) == "K"
            assert not select.select([silent, slow], [], [], 0)[0]
            clock.now_s += 1
            wake(server)
            for _ in range(2):
                log.wait_for("did not finish its TLS handshake in 30 s")
            assert silent.recv(1) == b""
            client.sendall(PACKAGE)
            assert responses(client, 1) == "K"


def test_the_time_for_the_handshake_is_not_that_of_the_session(
    start: Start, authority: Authority, clock: Clock
) -> None:
    """A client that has come in stays in."""
    server = start()
    with connect(server, authority) as client:
        client.sendall(PACKAGE)
        assert responses(client, 1) == "K"
        clock.now_s += 2 * HANDSHAKE_S
        wake(server)
        client.sendall(PACKAGE)
        assert responses(client, 1) == "K"


def test_a_client_that_speaks_plain_is_dropped(start: Start, log: Log, tmp_path: Path) -> None:
    """Nothing of it is stored: it was sent for everybody to read."""
    with dial(start()) as client:
        client.sendall(PACKAGE)
        log.wait_for("connection broken: TLS: ")
        with contextlib.suppress(ConnectionResetError):
            while client.recv(1 << 16):
                pass
    assert list((tmp_path / "Maildir" / "new").iterdir()) == []


def test_a_probe_that_does_no_handshake_is_no_news(start: Start, log: Log) -> None:
    """A balancer that looks whether the port is open: a line in the log every ten seconds."""
    dial(start()).close()
    assert log.severities[log.wait_for("connection broken: ")] is Severity.INFO


# If it is gone just then, `wrap_socket` leaves what it has made to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_client_that_is_gone_at_once(start: Start, authority: Authority, log: Log) -> None:
    """By a reset, maybe before it is accepted: the next one is served."""
    server = start()
    for _ in range(20):
        sock = dial(server)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        sock.close()
    with connect(server, authority) as client:
        client.sendall(PACKAGE)
        assert responses(client, 1) == "K"


def test_a_client_that_is_not_permitted_stores_nothing(
    start: Start, authority: Authority, log: Log, tmp_path: Path
) -> None:
    """Though its certificate is of the right authority."""
    server = start(client_ca=authority.file, client_names=("laptop.example.org",))
    with connect(server, authority, authority.issue("other.example.org")) as client:
        with contextlib.suppress(OSError):
            client.sendall(PACKAGE)
        log.wait_for("its certificate is for other.example.org, which is not permitted")
    assert list((tmp_path / "Maildir" / "new").iterdir()) == []
    with connect(server, authority, authority.issue("LAPTOP.example.org")) as client:
        client.sendall(PACKAGE)
        assert responses(client, 1) == "K"


def test_a_certificate_that_cannot_be_read_ends_that_client_only(
    start: Start, authority: Authority, log: Log
) -> None:
    """An old authority has written a name in Latin-1 into it: the receiver ended, for all."""
    server = start(client_ca=authority.file, client_names=("laptop.example.org",))
    with connect(server, authority, authority.issue_raw(b"m\xfcller@example.org")) as client:
        with contextlib.suppress(OSError):
            client.sendall(PACKAGE)
        log.wait_for("its certificate cannot be read: ")
    with connect(server, authority, authority.issue("laptop.example.org")) as client:
        client.sendall(PACKAGE)
        assert responses(client, 1) == "K"


def test_responses_are_not_lost_when_they_have_to_wait(
    start: Start, authority: Authority, log: Log
) -> None:
    """A client that reads late gets each of them, once and in order."""
    server = start()
    server._listeners[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4_096)
    raw = socket.socket()
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
    assert server.address is not None
    raw.connect(server.address)
    raw.settimeout(DEADLINE_S)
    context = ssl.create_default_context(cafile=authority.file)
    count = 4_000
    refused = package_head(0) + package_tail(b"a@b", (b"",))
    with context.wrap_socket(raw, server_hostname="localhost") as client:
        sending = threading.Thread(target=client.sendall, args=(refused * count,))
        sending.start()
        sending.join(0.5)  # long before it is through, both sides are full
        assert responses(client, count) == "D" * count
        sending.join(DEADLINE_S)


def record(secret: bytes, number: int, kind: int, text: bytes) -> bytes:
    """Make a record of TLS_AES_256_GCM_SHA384 by hand (RFC 8446, 5.2, 5.3, 7.1 and 7.3)."""

    def expand(label: bytes, length: int) -> bytes:
        full = b"tls13 " + label
        info = length.to_bytes(2, "big") + bytes([len(full)]) + full + b"\0\1"
        return hmac.digest(secret, info, "sha384")[:length]

    inner = text + bytes([kind])
    head = b"\x17\3\3" + (len(inner) + 16).to_bytes(2, "big")
    nonce = int.from_bytes(expand(b"iv", 12), "big") ^ number
    return head + AESGCM(expand(b"key", 32)).encrypt(nonce.to_bytes(12, "big"), inner, head)


def test_half_a_message_of_tls_s_own_ends_it(
    start: Start, authority: Authority, log: Log, tmp_path: Path
) -> None:
    """Writing waits for the other half then, with room all the time: one client, one processor."""
    server = start()
    server._listeners[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4_096)
    context = ssl.create_default_context(cafile=authority.file)
    context.keylog_filename = str(tmp_path / "keys")
    plain = socket.socket()
    plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
    assert server.address is not None
    plain.connect(server.address)
    plain.settimeout(DEADLINE_S)
    with context.wrap_socket(plain, server_hostname="localhost") as client:
        assert client.cipher() == ("TLS_AES_256_GCM_SHA384", "TLSv1.3", 256)
        keys = (tmp_path / "keys").read_text()
        (line,) = re.findall("^CLIENT_TRAFFIC_SECRET_0 .*$", keys, re.MULTILINE)
        secret = bytes.fromhex(line.split()[2])
        with socket.socket(fileno=os.dup(client.fileno())) as raw:
            # Responses that have to wait until we read, but not so many that it reads no more.
            refused = package_head(0) + package_tail(b"a@b", (b"",))
            for number in range(2):
                raw.sendall(record(secret, number, 23, refused * 500))
            raw.sendall(record(secret, 2, 22, b"\x18\0\0\1"))  # key_update, of one byte
            wait_until(lambda: not unread(raw), "it to have read all that")
        with contextlib.suppress(OSError):
            while client.recv(65_536):
                pass
    log.wait_for("half a handshake message, and no rest")


def unread(sock: socket.socket) -> int:
    """Return how many bytes the other side has not read, or not even received (proc(5))."""
    ours, theirs = sock.getsockname()[1], sock.getpeername()[1]
    waiting = 0
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        words = line.split()
        ports = int(words[1].partition(":")[2], 16), int(words[2].partition(":")[2], 16)
        queued = [int(part, 16) for part in words[4].split(":")]
        waiting += queued[0] if ports == (ours, theirs) else 0
        waiting += queued[1] if ports == (theirs, ours) else 0
    return waiting


def test_the_end_is_announced(start: Start, authority: Authority, log: Log) -> None:
    """To a client that waits for the last responses after its own end, and to one we drop."""
    server = start()
    with connect(server, authority) as client:
        client.sendall(PACKAGE)
        client.suppress_ragged_eofs = False  # type: ignore[attr-defined]
        assert responses(client, 1) == "K"
        client.sendall(b"no package")
        log.wait_for("protocol violation")
        assert client.recv(100) == b""
    wait_until(lambda: not server._connections, "the client to be gone")


def test_an_end_without_farewell_is_an_end(
    start: Start, authority: Authority, log: Log, tmp_path: Path
) -> None:
    """What was complete is stored, what was not is thrown away."""
    server = start()
    client = connect(server, authority)
    client.sendall(PACKAGE + PACKAGE[:-5])
    assert responses(client, 1) == "K"
    client.close()
    log.wait_for("in the middle of a package; nothing of it was stored")
    assert len(list((tmp_path / "Maildir" / "new").iterdir())) == 1


def test_the_names_in_a_certificate() -> None:
    """DNS and e-mail names, and common names; nothing else, as an IP address, is a name."""
    assert names_of({}) == []
    certificate = {
        "subject": ((("countryName", "XX"),), (("commonName", "a"), ("commonName", "b"))),
        "subjectAltName": (
            ("DNS", "c"),
            ("email", "d@e"),
            ("IP Address", "192.0.2.1"),
            ("URI", "f"),
        ),
    }
    assert names_of(certificate) == ["c", "d@e", "a", "b"]


def shown(server: TlsServer) -> bytes | None:
    """Return the certificate that a client gets to see."""
    ours, theirs = socket.socketpair()
    with contextlib.closing(server.wrap(ours)) as stream:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        come, go = ssl.MemoryBIO(), ssl.MemoryBIO()
        client = context.wrap_bio(come, go)
        with theirs:
            while True:
                try:
                    client.do_handshake()
                    return client.getpeercert(binary_form=True)
                except ssl.SSLWantReadError:
                    theirs.sendall(go.read())
                    stream.read()
                    come.write(theirs.recv(1 << 16))


def test_a_renewed_certificate_is_shown_without_a_restart(
    authority: Authority, tmp_path: Path
) -> None:
    """Else no client could send any more, once the one of the start has expired."""
    cert, key = tmp_path / "live.crt", tmp_path / "live.key"
    old, new = authority.issue("localhost"), authority.issue("localhost")
    cert.write_bytes(Path(old.cert).read_bytes())
    key.write_bytes(Path(old.key).read_bytes())
    said: list[str] = []
    server = TlsServer(str(cert), str(key), complain=said.append)
    before = shown(server)
    os.replace(shutil.copy(new.cert, tmp_path / "next"), cert)
    assert shown(server) == before  # its key is still to come
    assert re.search("stays in use$", said.pop())
    key.unlink()
    assert shown(server) == before
    assert re.search("No such file.*; the one read before stays in use$", said.pop())
    shutil.copy(new.key, key)
    assert shown(server) == ssl.PEM_cert_to_DER_cert(Path(new.cert).read_text())
    assert said == []


def test_files_that_are_no_use(identity: Identity, authority: Authority, tmp_path: Path) -> None:
    """The receiver does not begin, and says which; a password is never asked for."""
    other = authority.issue("x")
    for arguments, says in (
        (("/nonexistent",), "the certificate and key /nonexistent: No such file"),
        ((identity.cert,), f"the certificate and key {identity.cert}: TLS: no PEM of that kind"),
        ((identity.cert, other.key), f"{other.key}: TLS: key values mismatch"),
        ((identity.cert, identity.key, "/nonexistent"), "authority /nonexistent: No such file"),
    ):
        with pytest.raises(LocalError) as raised:
            TlsServer(*arguments)
        assert says in str(raised.value)
