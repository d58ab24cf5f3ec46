"""The library over every way to the server: TLS, Unix sockets, commands, several addresses.

Each test runs with both clients; see `tests.clients`. What happens to messages
on the way is the same as over TCP, so this is about the way.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from maildirqmtp import (
    AsyncQMTPClient,
    ConnectError,
    ConnectTimeout,
    Package,
    QMTPClient,
    SendResult,
    Tls,
    TransportError,
)
from maildirqmtp.transport import command as command_module
from tests.certificates import Authority, Identity, over_tls
from tests.clients import SEEN, Make, packages, said
from tests.helpers import Peer, answer_all, closed_port, command, runs, serving, wait_until
from tests.receiving import delivered, receiver

RECEIVER = shlex.join(command("qmtpmaildir"))


def mixed(tmp_path: Path) -> tuple[list[Package], list[bytes]]:
    """Two hundred packages, of which some are streamed from a file or from memory; their texts."""
    large = tmp_path / "large"
    large.write_bytes(b"large\n" * 500_000)
    sent = [*packages(198), Package("s@x", "r@y", large), Package("s@x", "r@y", b"y" * 2_000_000)]
    texts = [b"%d " % number + b"x" * 100 for number in range(198)]
    return sent, sorted([*texts, large.read_bytes(), b"y" * 2_000_000])


def all_arrive(make: Make, tmp_path: Path, server: str, tls: Tls | None = None) -> None:
    """Send to our receiver, whose maildir is `there`."""
    sent, texts = mixed(tmp_path)
    client = make(server, tls=tls)
    assert client.client.connected
    results = client.send_many(sent)
    assert all(result.accepted for result in results)
    assert client.send("s@x", ["a@y", "b@y"], b"last").accepted
    client.close()
    assert delivered(tmp_path / "there") == sorted([*texts, b"last", b"last"])


def refused(make: Make, server: str, tls: Tls | None, says: str) -> None:
    """Try to send to a server that is to be refused: nothing was sent, so nothing is in doubt."""
    client = make(server, tls=tls, defer_connect=True)
    with pytest.raises(ConnectError, match=says) as caught:
        client.send("s@x", ["a@y", "b@y"], b"secret")
    assert caught.value.result is not None
    assert [r.recipient for r in caught.value.result.deferred] == ["a@y", "b@y"]
    assert not caught.value.result.in_doubt
    assert not client.client.connected


# TLS


def test_over_tls(make: Make, tmp_path: Path, authority: Authority, identity: Identity) -> None:
    """With the server's name checked; `tls` says only who vouches for it."""
    flags = ["--tls-cert", identity.cert, "--tls-key", identity.key]
    with receiver(tmp_path / "there", *flags) as (_, server):
        all_arrive(make, tmp_path, f"qmtps://{server}", Tls(ca=authority.file))


def test_servers_that_are_not_the_one_that_was_meant(
    make: Make, authority: Authority, stranger: Authority, identity: Identity
) -> None:
    """Unknown authority, another name, another key; no byte of a message gets there."""
    ca = authority.file
    cases = [
        (stranger.issue("127.0.0.1"), Tls(ca=ca), "certificate is not trusted"),
        (identity, None, "certificate is not trusted"),
        (identity, Tls(), "certificate is not trusted"),
        (authority.issue("mail.example.org"), Tls(ca=ca), "certificate is not trusted"),
        (identity, Tls(pins=bytes(32)), "is not a pinned one"),
        (identity, Tls(ca=ca, pins=[bytes(32)]), "is not a pinned one"),
    ]
    for shown, tls, says in cases:
        with serving(over_tls(shown.context(), answer_all())) as server:
            refused(make, f"qmtps://{server.address}", tls, says)
            assert not server.packages


def test_a_pinned_key(make: Make, stranger: Authority) -> None:
    """For a certificate that the server has made itself."""
    own = stranger.issue("somebody.example", expired=True)
    with serving(over_tls(own.context(), answer_all())) as server:
        client = make(f"qmtps://{server.address}", tls=Tls(pins=[bytes(32), own.pin]))
        assert said([client.send("s@x", "r@y", b"x")]) == [SEEN]
        client.close()


def test_a_client_certificate(make: Make, authority: Authority, identity: Identity) -> None:
    """With it all is well; without, nothing is taken for accepted, whenever the server tells."""
    context = identity.context(client_ca=authority.file)
    own = authority.issue("client@example.org")
    with serving(over_tls(context, answer_all())) as server:
        name = f"qmtps://{server.address}"
        client = make(name, tls=Tls(authority.file, own.cert, own.key))
        assert said([client.send("s@x", "r@y", b"x")]) == [SEEN]
        client.close()
        client = make(name, tls=Tls(authority.file))
        with pytest.raises(TransportError) as caught:
            client.send("s@x", "r@y", b"x")
        assert caught.value.result is not None
        assert caught.value.result.deferred
        assert len(server.packages) == 1


def test_a_file_of_ours_that_is_no_use(make: Make, authority: Authority, tmp_path: Path) -> None:
    """The name of the file is all that helps."""
    unreadable = tmp_path / "missing.key"
    own = authority.issue("client@example.org")
    refused(make, "qmtps://127.0.0.1:1", Tls(cert=own.cert, key=unreadable), str(unreadable))
    refused(make, "qmtps://127.0.0.1:1", Tls(ca=tmp_path / "missing.pem"), "missing.pem: No such")
    refused(make, "qmtps://127.0.0.1:1", Tls(ca=tmp_path), str(tmp_path))


@pytest.mark.parametrize("rest", [b"", b"3:Kok", b"3:Kok,3:Ko"])
def test_cut_off_without_farewell(
    make: Make, authority: Authority, identity: Identity, rest: bytes
) -> None:
    """Whoever holds the wire can cut it anywhere; what was not answered is not accepted."""
    answered = 1 + rest.count(b",")

    def script(peer: Peer) -> None:
        peer.read_package()
        peer.respond(b"Kok")
        for _ in range(4):
            peer.read_package()
        peer.send(rest)

    with serving(over_tls(identity.context(), script, farewell=False)) as server:
        client = make(f"qmtps://{server.address}", tls=Tls(ca=authority.file))
        with pytest.raises(TransportError, match=r"without the end that TLS has") as caught:
            client.send_many(packages(5))
    results: list[SendResult] = caught.value.results  # type: ignore[attr-defined]
    assert said(results[:answered]) == [SEEN] * answered
    assert [len(result.deferred) for result in results[answered:]] == [1] * (5 - answered)
    assert caught.value.result == results[answered]
    assert caught.value.result.in_doubt


def test_an_idle_connection_that_was_just_dropped_is_replaced(
    make: Make, authority: Authority, identity: Identity
) -> None:
    """Servers restart; a program that sends once an hour must not hear of it."""

    def one_each(peer: Peer) -> None:
        if peer.read_package() is not None:
            peer.respond(b"Kok")

    with serving(over_tls(identity.context(), one_each, farewell=False)) as server:
        client = make(f"qmtps://{server.address}", tls=Tls(ca=authority.file))
        for _ in range(3):
            assert said([client.send("s@x", "r@y", b"")]) == [SEEN]
            wait_until(lambda: not client.client.connected, "the end of the connection")
    assert server.connections == 3


def test_a_server_that_wants_to_be_read_first_is_read(
    make: Make, authority: Authority, identity: Identity
) -> None:
    """Records that OpenSSL has read, and no selector tells of, would be the end of it."""
    long = b"K" + b"x" * 60_000
    answers = answer_all(lambda package, recipient: long)
    with serving(over_tls(identity.context(), answers)) as server:
        client = make(f"qmtps://{server.address}", tls=Tls(ca=authority.file))
        assert all(result.accepted for result in client.send_many(packages(100, size=60_000)))
        client.close()
    assert len(server.packages) == 100


def test_a_handshake_without_end_is_given_up(make: Make) -> None:
    """The time to connect counts until it is known who the server is."""

    def script(peer: Peer) -> None:
        while peer.socket.recv(1 << 16):
            pass

    with serving(script) as server, pytest.raises(ConnectTimeout):
        make(f"qmtps://{server.address}", connect_timeout=0.1)


def test_the_event_loop_goes_on_while_a_server_shakes_hands(
    authority: Authority, identity: Identity
) -> None:
    """Or the whole program stands still for as long as one server likes."""
    go_on = threading.Event()
    secured = over_tls(identity.context(), answer_all())

    def script(peer: Peer) -> None:
        go_on.wait(30)
        secured(peer)

    async def main(server: str) -> None:
        client = AsyncQMTPClient(server, tls=Tls(ca=authority.file), connect_timeout=20)
        sending = asyncio.create_task(client.send("s@x", "r@y", b"x"))
        # This runs while the handshake waits, or the handshake never ends.
        asyncio.get_running_loop().call_later(0.01, go_on.set)
        assert said([await sending]) == [SEEN]
        client.disconnect()

    with serving(script) as server:
        asyncio.run(asyncio.wait_for(main(f"qmtps://{server.address}"), 30))


def test_two_tasks_that_connect_make_one_connection() -> None:
    """The other one would belong to nobody."""

    async def main(server: str) -> None:
        client = AsyncQMTPClient(server)
        await asyncio.gather(client.connect(), client.connect(), client.send("s@x", "r@y", b""))
        client.disconnect()

    with serving(answer_all()) as server:
        asyncio.run(main(server.address))
        assert server.connections == 1


# Unix sockets, commands, several addresses


def test_over_a_unix_socket(make: Make, tmp_path: Path) -> None:
    """`port` is for names only."""
    path = tmp_path / "socket"
    with receiver(tmp_path / "there", "--listen", f"unix:{path}") as (_, server):
        all_arrive(make, tmp_path, server)
    refused(make, server, None, f"cannot connect to unix:{path}: No such file")


def test_over_a_command(make: Make, tmp_path: Path) -> None:
    """As `exec:ssh mx qmtpmaildir --stdio Maildir`."""
    there = shlex.quote(str(tmp_path / "there"))
    all_arrive(make, tmp_path, f"exec:{RECEIVER} --stdio {there}")


def test_a_command_that_fails(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    """What it says is in the program's log, its status in the error; nothing was accepted."""
    script = shlex.quote("echo no route >&2; cat >/dev/null & exit 255")
    client = make(f"exec:sh -c {script}", defer_connect=True)
    with (
        caplog.at_level(logging.WARNING, "maildirqmtp"),
        pytest.raises(ConnectError, match="sh exited with status 255") as caught,
    ):
        client.send("s@x", "r@y", b"x")
    assert caught.value.result is not None
    assert caught.value.result.deferred
    client.close()
    assert [r.getMessage() for r in caplog.records] == ["sh: no route"]
    refused(make, "exec:/nonexistent/ssh mx", None, "cannot start ssh for exec:/nonexistent/ssh mx")


def test_a_command_that_does_not_end_does_not_hold_up_the_event_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It has seconds to exit, in which nothing else would be done; it is ended all the same."""
    monkeypatch.setattr(command_module, "EXIT_GRACE_S", 1_000.0)

    async def main() -> None:
        client = AsyncQMTPClient("exec:sleep 1000")
        await client.connect()
        transport = client._session.transport
        assert transport is not None
        process = transport._inner._inner.process  # type: ignore[attr-defined]
        client.disconnect()
        assert not client.connected
        assert runs(process.pid)
        process.signal(signal.SIGKILL)

    asyncio.run(asyncio.wait_for(main(), 30))  # the thread that waits for it included


def test_the_next_address_is_tried(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """An IPv6 address without IPv6 is the usual first one."""
    real = socket.getaddrinfo
    tried: list[int] = []
    with serving(answer_all()) as server:
        ports = [closed_port(), server.port]

        def getaddrinfo(host: str, *_: object, **__: object) -> list[object]:
            tried.append(len(tried))
            return [real("127.0.0.1", port, type=socket.SOCK_STREAM)[0] for port in ports]

        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
        client = make("several.example")
        for _ in range(2):
            assert said([client.send("s@x", "r@y", b"x")]) == [SEEN]
            client.client.disconnect()
        assert server.connections == 2
        assert len(tried) == 2


def test_an_address_that_hangs_up_is_not_used_again(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two load balancers one is broken: with the next connection, the other one is used."""
    real = socket.getaddrinfo
    with serving(lambda peer: None) as broken, serving(answer_all()) as good:
        found = [
            real("127.0.0.1", port, type=socket.SOCK_STREAM)[0] for port in (broken.port, good.port)
        ]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
        client = make("twofold.example", defer_connect=True)
        with pytest.raises(TransportError):
            client.send("s@x", "r@y", b"x")
        for _ in range(3):
            assert said([client.send("s@x", "r@y", b"x")]) == [SEEN]
            client.client.disconnect()
        assert (broken.connections, good.connections) == (1, 3)


def test_under_a_ucspi_client(tmp_path: Path) -> None:
    """A program of one's own in the place of `maildirqmtp DIR -`."""
    program = tmp_path / "program.py"
    program.write_text(
        "from maildirqmtp import QMTPClient\n"
        "with QMTPClient('-') as client:\n"
        "    assert client.send('s@x', 'r@y', b'text').accepted\n"
    )
    ours, theirs = socket.socketpair()
    words = [*command("qmtpmaildir"), "--stdio", str(tmp_path / "there")]
    with (
        theirs,
        subprocess.Popen(words, stdin=theirs.fileno(), stdout=theirs.fileno()) as receiving,
    ):
        with ours:
            fd = ours.fileno()
            script = f'exec "$@" 6<&{fd} 7>&{fd}'
            done = subprocess.run(
                ["bash", "-c", script, "bash", sys.executable, "-bb", str(program)],
                pass_fds=[fd],
                capture_output=True,
                text=True,
                check=False,
                timeout=60,
                env=dict(os.environ, TCPREMOTEIP="192.0.2.1"),
            )
        assert done.returncode == 0, done.stderr
        assert receiving.wait(30) == 0
    assert delivered(tmp_path / "there") == [b"text"]


def test_a_client_that_is_let_go_ends_its_command() -> None:
    """A program that forgets to disconnect must not collect commands."""
    client = QMTPClient("exec:cat")
    transport = client._session.transport
    assert transport is not None
    process = transport._inner.process  # type: ignore[attr-defined]
    assert runs(process.pid)
    del client, transport
    assert not runs(process.pid)
