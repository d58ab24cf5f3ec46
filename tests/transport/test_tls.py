"""TLS on the way to the server: who it is, what is sent, and how it ends."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import select
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from maildirqmtp.errors import ConfigError, ConnectError, ConnectTimeout, TransportError
from maildirqmtp.transport import tls_socket
from maildirqmtp.transport.connect import connect
from maildirqmtp.transport.endpoint import TcpEndpoint, parse_pin
from maildirqmtp.transport.tls import TlsTransport
from maildirqmtp.transport.tls_options import Tls
from maildirqmtp.transport.tls_socket import (
    RECORD_BYTES,
    TlsSocket,
    client_context,
    is_cut_off,
    server_context,
)
from maildirqmtp.transport.transport import Transport
from tests.certificates import Authority, Identity, over_tls, reads_all
from tests.helpers import DEADLINE_S, Peer, Script, serving, wait_until


def received(transport: Transport) -> bytes:
    """Wait for what comes next."""
    while (data := transport.receive(1 << 16)) is None:
        assert select.select([transport.read_fd], [], [], DEADLINE_S)[0], "nothing came"
    return data


@contextlib.contextmanager
def connected(script: Script, tls: Tls, host: str = "127.0.0.1") -> Iterator[Transport]:
    """Connect to a server that runs the script."""
    with serving(script) as server:
        transport = connect(TcpEndpoint(host, server.port, tls=True), DEADLINE_S, tls)
        try:
            yield transport
        finally:
            transport.close()


def refusal(script: Script, tls: Tls, host: str = "127.0.0.1") -> str:
    """Say why a server that runs the script is not connected to."""
    with serving(script) as server:
        address = TcpEndpoint(host, server.port, tls=True)
        with pytest.raises(ConnectError) as raised:
            connect(address, DEADLINE_S, tls)
        assert str(raised.value).startswith(f"cannot connect to {address}: 127.0.0.1: ")
        assert str(raised.value).isprintable()
        return str(raised.value)


def echo(peer: Peer) -> None:
    """Send back what comes."""
    with contextlib.suppress(OSError):
        while data := peer.socket.recv(1 << 16):
            peer.socket.sendall(data)


def test_bytes_go_both_ways(authority: Authority, identity: Identity) -> None:
    """And nobody in between can read them."""
    with connected(over_tls(identity.context(), echo), Tls(ca=authority.file)) as transport:
        assert transport.name.startswith("qmtps://127.0.0.1:")
        assert not transport.can_send_file
        assert not os.get_blocking(transport.read_fd)
        assert transport.send(b"hello") == 5
        assert received(transport) == b"hello"


@pytest.mark.parametrize("host", ["localhost", "localhost."])
def test_a_name_is_checked_as_it_stands_in_certificates(
    authority: Authority, identity: Identity, host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The dot of the root is for the resolver; no certificate has it."""
    real = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda _, *a, **k: real("127.0.0.1", *a, **k))
    with connected(over_tls(identity.context(), echo), Tls(ca=authority.file), host) as transport:
        assert transport.send(b"x") == 1


def test_an_unknown_authority_is_refused(stranger: Authority, authority: Authority) -> None:
    """Anybody can make a certificate for any name."""
    script = over_tls(stranger.issue("127.0.0.1").context(), echo)
    assert "its certificate is not trusted: " in refusal(script, Tls(ca=authority.file))
    assert "its certificate is not trusted: " in refusal(script, Tls())


def test_another_name_is_refused(authority: Authority) -> None:
    """The authority has other customers."""
    script = over_tls(authority.issue("mail.example.org", "127.0.0.2").context(), echo)
    said = refusal(script, Tls(ca=authority.file))
    assert "its certificate is not trusted: " in said
    assert "127.0.0.1" in said


def test_an_expired_certificate_is_refused(authority: Authority) -> None:
    """Its key may have been lost since."""
    script = over_tls(authority.issue("127.0.0.1", expired=True).context(), echo)
    assert "certificate has expired" in refusal(script, Tls(ca=authority.file))


def hang_up(peer: Peer) -> None:
    """Be a server that takes the beginning of TLS for nonsense."""
    with contextlib.suppress(OSError):
        peer.socket.recv(5)


def greet(peer: Peer) -> None:
    """Be an SMTP server."""
    peer.send(b"220 mail.example.org ESMTP\r\n")
    with contextlib.suppress(OSError):
        while peer.socket.recv(1 << 16):
            pass


def test_a_server_that_speaks_plain_is_refused(authority: Authority) -> None:
    """And gets no byte of any message; the reason says where to look."""
    for script in (hang_up, greet):
        said = refusal(script, Tls(ca=authority.file))
        assert "does it speak TLS on this port?" in said or "reset" in said
    with serving(greet) as server:
        with pytest.raises(ConnectError):
            connect(TcpEndpoint("127.0.0.1", server.port, tls=True), DEADLINE_S, Tls())
        assert not server.packages


def test_a_server_that_says_nothing_is_given_up() -> None:
    """The time to connect counts until it is known who the server is."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = TcpEndpoint("127.0.0.1", listener.getsockname()[1], tls=True)
        with pytest.raises(ConnectTimeout, match=r"127\.0\.0\.1: no answer in 0\.2 s"):
            connect(address, 0.2)


def test_a_pin_takes_the_place_of_an_authority(stranger: Authority) -> None:
    """For a certificate that the server has made itself; name and dates do not matter."""
    own = stranger.issue("somebody.example", expired=True)
    tls = Tls(pins=(bytes(32), parse_pin(own.pin)))
    with connected(over_tls(own.context(), echo), tls) as transport:
        transport.send(b"x")
        assert received(transport) == b"x"


def test_another_key_than_the_pinned_is_refused(stranger: Authority, identity: Identity) -> None:
    """Even where it has a good certificate; the reason has the pin that would fit."""
    other = parse_pin(stranger.issue("127.0.0.1").pin)
    said = refusal(over_tls(identity.context(), echo), Tls(pins=(other,)))
    assert f"its public key, {identity.pin}, is not a pinned one" in said


def test_with_both_an_authority_and_a_pin_both_must_fit(
    authority: Authority, stranger: Authority, identity: Identity
) -> None:
    """Who gives two wants two."""
    script = over_tls(identity.context(), echo)
    both = Tls(ca=authority.file, pins=(parse_pin(identity.pin),))
    with connected(script, both) as transport:
        transport.send(b"x")
        assert received(transport) == b"x"
    assert "not a pinned one" in refusal(script, Tls(ca=authority.file, pins=(bytes(32),)))
    said = refusal(script, Tls(ca=stranger.file, pins=both.pins))
    assert "its certificate is not trusted" in said
    elsewhere = authority.issue("mail.example.org")
    pinned = Tls(ca=authority.file, pins=(parse_pin(elsewhere.pin),))
    said = refusal(over_tls(elsewhere.context(), echo), pinned)
    assert "its certificate is not trusted" in said


def test_a_client_certificate_is_shown(authority: Authority, identity: Identity) -> None:
    """s/qmail lets in who has one."""
    client = authority.issue("client@example.org")
    script = over_tls(identity.context(client_ca=authority.file), echo)
    with connected(script, Tls(authority.file, client.cert, client.key)) as transport:
        transport.send(b"x")
        assert received(transport) == b"x"


def connect_and_receive(server: TcpEndpoint, tls: Tls) -> bytes:
    """Connect, and wait for what the server says."""
    transport = connect(server, DEADLINE_S, tls)
    try:
        return received(transport)
    finally:
        transport.close()


def test_nothing_is_in_doubt_at_a_server_that_refuses_our_certificate(
    authority: Authority, identity: Identity
) -> None:
    """It has read nothing of what was sent after the handshake; another server may have it."""
    context = identity.context(client_ca=authority.file)
    with serving(over_tls(context, echo)) as server:
        address = TcpEndpoint("127.0.0.1", server.port, tls=True)
        transport = connect(address, DEADLINE_S, Tls(authority.file))
        assert transport.bytes_unread == 0
        with pytest.raises(TransportError) as raised:
            received(transport)
        if "alert" in str(raised.value):  # else the server's reset has overtaken it
            assert transport.bytes_unread > 1 << 40
        transport.close()


@pytest.mark.parametrize(
    ("alert", "nothing_in_doubt"),
    [
        ("TLSV13_ALERT_CERTIFICATE_REQUIRED", True),
        ("SSLV3_ALERT_BAD_CERTIFICATE", True),
        ("TLSV1_ALERT_UNKNOWN_CA", True),
        ("TLSV1_ALERT_ACCESS_DENIED", True),
        ("TLSV1_ALERT_INTERNAL_ERROR", False),
        ("TLSV1_ALERT_USER_CANCELLED", False),
        ("SSLV3_ALERT_BAD_RECORD_MAC", False),
        ("CERTIFICATE_VERIFY_FAILED", False),
    ],
)
def test_what_a_server_may_have_read_before_its_alert_is_in_doubt(
    authority: Authority, identity: Identity, alert: str, nothing_in_doubt: bool
) -> None:
    """It may have taken a package and then failed: another server must not get it at once."""
    error = ssl.SSLError(1, "alert")
    error.reason = alert
    with serving(over_tls(identity.context(), echo)) as server:
        address = TcpEndpoint("127.0.0.1", server.port, tls=True)
        transport = connect(address, DEADLINE_S, Tls(authority.file))
        assert isinstance(transport, TlsTransport)
        raised = transport._broken("reading", tls_socket._tls_error(error))
        assert isinstance(raised, ConnectError) is nothing_in_doubt
        assert (transport.bytes_unread > 1 << 40) is nothing_in_doubt
        transport.close()


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("wrong", [False, True])
def test_without_the_right_client_certificate_the_connection_breaks(
    authority: Authority,
    stranger: Authority,
    identity: Identity,
    version: ssl.TLSVersion,
    wrong: bool,
) -> None:
    """TLS 1.3 tells only after the handshake; it is as if there were no server, either way."""
    context = identity.context(client_ca=authority.file)
    context.maximum_version = version
    client = stranger.issue("client@example.org") if wrong else Identity("", "", "")
    tls = Tls(authority.file, client.cert or None, client.key or None)
    with (
        serving(over_tls(context, echo)) as server,
        pytest.raises(TransportError, match=r"TLS: .*alert|reset|closed|cut off") as raised,
    ):
        connect_and_receive(TcpEndpoint("127.0.0.1", server.port, tls=True), tls)
    if "alert" in str(raised.value):  # else the server's reset has overtaken it
        assert isinstance(raised.value, ConnectError)


def test_an_end_that_the_server_announced_is_an_end(
    authority: Authority, identity: Identity
) -> None:
    """As `b""`, after all that came before it."""

    def script(peer: Peer) -> None:
        peer.send(b"last words")

    with connected(over_tls(identity.context(), script), Tls(ca=authority.file)) as transport:
        assert received(transport) == b"last words"
        assert received(transport) == b""


def test_an_end_that_nobody_announced_is_an_error(authority: Authority, identity: Identity) -> None:
    """Whoever holds the wire can cut it; that must not pass for the server's own doing."""

    def script(peer: Peer) -> None:
        peer.send(b"last words")

    cut = over_tls(identity.context(), script, farewell=False)
    with connected(cut, Tls(ca=authority.file)) as transport:
        assert received(transport) == b"last words"
        with pytest.raises(TransportError, match=r"broke while reading: it was cut off, without"):
            received(transport)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [(ssl.SSLEOFError, None), (ssl.SSLError, "UNEXPECTED_EOF_WHILE_READING")],
)
def test_every_python_says_that_it_was_cut_off(kind: type[ssl.SSLError], reason: str) -> None:
    """With Debian 12's, the log would say that TLS is broken, and not that the wire was cut."""
    error = kind(1, "no text that a version could not change")
    error.reason = reason
    assert is_cut_off(error)
    error = ssl.SSLError(1, "")
    error.reason = "WRONG_VERSION_NUMBER"
    assert not is_cut_off(error)


def test_what_is_not_connected_any_more_is_never_used_in_plain() -> None:
    """Python would wrap it without a handshake, and send what follows as it is."""
    with socket.socket() as gone, pytest.raises(OSError, match="not connected"):
        TlsSocket(gone, client_context(), "localhost")


def test_we_say_farewell(authority: Authority, identity: Identity) -> None:
    """A server that logs every cut connection would log every run."""
    taken: list[bytes] = []
    script = over_tls(identity.context(), reads_all(taken.append))
    with connected(script, Tls(ca=authority.file)) as transport:
        transport.send(b"all of it")
        transport.close()
        transport.close()
        wait_until(lambda: b"".join(taken) == b"all of it", "the server to have read it")
        assert transport._socket.fileno() == -1, "it is not closed"  # type: ignore[attr-defined]


def send_for_ever(transport: Transport) -> None:
    """Until it breaks."""
    while True:
        transport.send(b"x")


def test_a_broken_connection_names_the_server(authority: Authority, identity: Identity) -> None:
    """While sending as well."""

    def script(peer: Peer) -> None:
        peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

    cut = over_tls(identity.context(), script, farewell=False)
    with connected(cut, Tls(ca=authority.file)) as transport:
        select.select([transport.read_fd], [], [], DEADLINE_S)
        said = r"connection to qmtps://127\.0\.0\.1:\d+ broke while sending: "
        with pytest.raises(TransportError, match=said):
            send_for_ever(transport)


@contextlib.contextmanager
def narrow_pair(
    authority: Authority, identity: Identity, buffer_bytes: int = 4_096
) -> Iterator[tuple[Transport, ssl.SSLSocket]]:
    """Return a transport whose buffers are soon full, and the server's end of it."""
    ours, theirs = socket.socketpair()
    for sock in (ours, theirs):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer_bytes)
    made: list[ssl.SSLSocket] = []

    def accept() -> None:
        made.append(identity.context().wrap_socket(theirs, server_side=True))

    thread = threading.Thread(target=accept)
    thread.start()
    wrapped = TlsSocket(ours, client_context(authority.file), "localhost")
    assert wrapped.handshake()
    thread.join(DEADLINE_S)
    transport = TlsTransport(wrapped, "mail.example.org:6209")
    try:
        yield transport, made[0]
    finally:
        made[0].close()
        transport.close()


def records(data: bytes) -> list[bytes]:
    """Take TLS's records apart (RFC 8446, 5.1)."""
    found = []
    while data:
        end = 5 + int.from_bytes(data[3:5], "big")
        found.append(data[:end])
        data = data[end:]
    return found


def test_a_server_that_keeps_half_a_message_of_its_own_back_is_waited_for(
    authority: Authority, identity: Identity
) -> None:
    """To send again as soon as there is room, as it seems, would keep a processor busy."""
    # It is in the ticket for a next session, which gets too large for one record by it.
    client = authority.issue(*(f"{'x' * 50}{number}.example.org" for number in range(600)))
    context = identity.context(client_ca=authority.file)
    go_on = threading.Event()

    def script(peer: Peer) -> None:
        coming, going = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = context.wrap_bio(coming, going, server_side=True)
        shaking_hands = True
        while shaking_hands:
            try:
                tls.do_handshake()
                shaking_hands = False
            except ssl.SSLWantReadError:
                peer.send(going.read())
                coming.write(peer.socket.recv(1 << 16))
        first, *rest = records(going.read())
        peer.send(first)
        go_on.wait(DEADLINE_S)
        peer.send(b"".join(rest))
        coming.write(peer.socket.recv(1 << 16))
        tls.write(tls.read())
        peer.send(going.read())

    with connected(script, Tls(authority.file, client.cert, client.key)) as transport:
        assert select.select([transport.read_fd], [], [], DEADLINE_S)[0]
        assert transport.receive(1 << 16) is None
        assert transport.send(b"hello") == 0
        assert transport.send_needs_read
        assert not select.select([transport.read_fd], [], [], 0)[0]
        go_on.set()
        sent = 0
        while not sent:
            assert select.select([transport.read_fd], [], [], DEADLINE_S)[0]
            assert transport.receive(1 << 16) is None
            assert not transport.send_needs_read
            sent = transport.send(b"hello")
        assert sent == 5
        assert received(transport) == b"hello"


def test_what_had_to_wait_goes_out_once_and_as_it_was(
    authority: Authority, identity: Identity
) -> None:
    """A record half out cannot be changed; sent anew, the server would get it twice."""
    whole = random.Random(1).randbytes(1_000_000)
    came = bytearray()
    with narrow_pair(authority, identity) as (transport, theirs):
        theirs.setblocking(False)

        def read() -> None:
            """Read all that is there, if it is only a part of a record."""
            with contextlib.suppress(ssl.SSLWantReadError):
                while len(came) < len(whole):
                    came.extend(theirs.recv(1 << 16))

        at, waited = 0, 0
        while at < len(whole):
            # Another object, of another length, as a send buffer that has grown meanwhile.
            if waited % 2:
                taken = transport.send(memoryview(whole)[at : at + 200_000])
            else:
                taken = transport.send(bytearray(whole[at : at + 100_000]))
            at += taken
            if not taken:
                waited += 1
                read()
        read()
    assert waited > 10
    assert came == whole


def test_a_file_that_shrinks_is_not_called_a_broken_connection(
    authority: Authority, identity: Identity
) -> None:
    """What is left of it is shorter than the record that waits; OpenSSL would not have that."""
    with narrow_pair(authority, identity) as (transport, theirs):
        while transport.send(bytes(RECORD_BYTES)):
            pass
        thread = threading.Thread(target=theirs.recv, args=(1 << 20,))
        thread.start()
        while not transport.send(b"short"):
            select.select([], [transport.write_fd], [], DEADLINE_S)
            if not thread.is_alive():
                theirs.recv(1 << 20)
        thread.join(DEADLINE_S)


def test_what_went_out_before_it_had_to_wait_is_progress(
    authority: Authority, identity: Identity
) -> None:
    """On a slow link a buffer takes longer than a server may go without taking a byte."""
    with narrow_pair(authority, identity, 2 * RECORD_BYTES) as (transport, _):
        sent = transport.send(bytes(10 * RECORD_BYTES))
        assert 0 < sent < 10 * RECORD_BYTES
        assert not sent % RECORD_BYTES


def test_what_went_out_before_it_broke_counts(authority: Authority, identity: Identity) -> None:
    """The server may have taken it: as never sent, it came twice, and was not in doubt."""
    with narrow_pair(authority, identity, 1 << 20) as (transport, theirs):
        send, out = ssl.SSLSocket.send, 0

        def breaks(sock: ssl.SSLSocket, data: bytes, flags: int = 0) -> int:
            nonlocal out
            if out == 2:
                raise BrokenPipeError(errno.EPIPE, "Broken pipe")
            out += 1
            return send(sock, data, flags)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ssl.SSLSocket, "send", breaks)
            assert transport.send(bytes(5 * RECORD_BYTES)) == 2 * RECORD_BYTES
            with pytest.raises(TransportError, match="Broken pipe"):
                transport.send(bytes(3 * RECORD_BYTES))
            out = 0  # whatever becomes of the socket, the record in between is missing
            with pytest.raises(TransportError, match="Broken pipe"):
                transport.send(bytes(3 * RECORD_BYTES))
        assert len(theirs.recv(RECORD_BYTES)) == RECORD_BYTES


def test_nothing_stays_where_the_selector_cannot_see_it(
    authority: Authority, identity: Identity
) -> None:
    """The last responses of a run would be waited for, decrypted long ago."""
    with narrow_pair(authority, identity) as (transport, theirs):
        theirs.settimeout(DEADLINE_S)
        thread = threading.Thread(target=theirs.sendall, args=(b"x" * RECORD_BYTES,))
        thread.start()
        got = b""
        while not got:
            select.select([transport.read_fd], [], [], DEADLINE_S)
            got = transport.receive(10) or b""
        thread.join(DEADLINE_S)
        assert len(got) == RECORD_BYTES
        assert transport.receive(10) is None


def encrypted(identity: Identity, path: Path) -> str:
    """Make a copy of a key that needs a password."""
    subprocess.run(
        ["openssl", "pkey", "-in", identity.key, "-aes128", "-passout", "pass:x", "-out", path],
        check=True,
    )
    return str(path)


def test_a_file_that_is_no_use_is_named(
    authority: Authority, identity: Identity, tmp_path: Path
) -> None:
    """Found before anything is connected; never asked for on the terminal."""
    rubbish = tmp_path / "rubbish.pem"
    rubbish.write_text("rubbish\n")
    other = authority.issue("localhost")
    locked = encrypted(identity, tmp_path / "locked.key")
    for tls, says in (
        (Tls(ca="/nonexistent"), "the certificate authority /nonexistent: No such file"),
        (Tls(ca=str(rubbish)), f"the certificate authority {rubbish}: TLS: no certificate"),
        (Tls(cert="/nonexistent"), "the certificate and key /nonexistent: No such file"),
        (
            Tls(cert=identity.cert),
            f"the certificate and key {identity.cert}: TLS: no PEM of that kind in it",
        ),
        (
            Tls(cert=identity.cert, key=other.key),
            f"the certificate and key {identity.cert} and {other.key}: TLS: key values mismatch",
        ),
        (
            Tls(cert=identity.cert, key=locked),
            f"the certificate and key {identity.cert} and {locked}: the key is encrypted",
        ),
    ):
        with pytest.raises(ConnectError) as raised:
            connect(TcpEndpoint("127.0.0.1", 1, tls=True), DEADLINE_S, tls)
        assert f"cannot connect to qmtps://127.0.0.1:1: cannot use {says}" in str(raised.value)


def test_the_next_address_is_tried_where_tls_fails(
    authority: Authority, identity: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A captive portal on one of them must not stop mail on the other."""
    real = socket.getaddrinfo
    with serving(hang_up) as bad, serving(over_tls(identity.context(), echo)) as good:

        def getaddrinfo(*_: object, **__: object) -> list[object]:
            kind = socket.SOCK_STREAM
            return [real("127.0.0.1", port, type=kind)[0] for port in (bad.port, good.port)]

        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
        transport = connect(
            TcpEndpoint("localhost", 1, tls=True), DEADLINE_S, Tls(ca=authority.file)
        )
        transport.send(b"x")
        assert received(transport) == b"x"
        transport.close()
        assert bad.connections == good.connections == 1


def test_a_host_that_no_certificate_can_name_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a host that cannot be connected to, not with a traceback."""
    real = socket.getaddrinfo
    with serving(greet) as server:
        found = real("127.0.0.1", server.port, type=socket.SOCK_STREAM)
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
        for host in (".", "a" * 300, ".example.org"):
            with pytest.raises(ConnectError, match="no name for TLS"):
                connect(TcpEndpoint(host, server.port, tls=True), DEADLINE_S)


def test_being_told_to_stop_ends_the_handshake(monkeypatch: pytest.MonkeyPatch) -> None:
    """TERM must not wait for a server that says nothing."""

    def told_to_stop(_: ssl.SSLSocket, *__: object) -> None:
        raise ConnectError("told to stop")

    monkeypatch.setattr(ssl.SSLSocket, "do_handshake", told_to_stop)
    with (
        serving(greet) as server,
        pytest.raises(ConnectError, match=r"^told to stop$"),
    ):
        connect(TcpEndpoint("127.0.0.1", server.port, tls=True), DEADLINE_S)


def test_tls_is_not_forgotten_where_the_server_has_none() -> None:
    """Who says how to check a certificate does not want a connection without one."""
    with pytest.raises(ConfigError, match=r"with the server 127\.0\.0\.1:209: write qmtps"):
        connect(TcpEndpoint("127.0.0.1"), DEADLINE_S, Tls())


def test_plain_tcp_loads_neither_ssl_nor_subprocess() -> None:
    """Each takes as long to load as a run on an empty maildir."""
    code = (
        "import sys, maildirqmtp.forwarder.batch, maildirqmtp.forwarder.forwarder;"
        "import maildirqmtp.transport.transport;"
        "print({'ssl', 'subprocess', 'shlex', 'ipaddress'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_neither_side_negotiates_anew(identity: Identity) -> None:
    """With TLS 1.2 the other side could be another one after it, or keep a processor busy."""
    for context in (client_context(), server_context(identity.cert, identity.key)):
        assert context.options & ssl.OP_NO_RENEGOTIATION
