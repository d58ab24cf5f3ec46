"""Who a client is, by what its connection proves; who may relay hangs on that."""

from __future__ import annotations

import os
import pwd
import socket
import sys
from typing import Any

import pytest

from maildirqmtp.receiver import clients
from maildirqmtp.receiver.clients import Client, Origin, client_at, client_on_stdio, user_name
from maildirqmtp.receiver.policy import Policy, only_domains
from maildirqmtp.receiver.user_quota import mark_of

LOCAL, REMOTE, UNKNOWN = Origin.LOCAL, Origin.REMOTE, Origin.UNKNOWN


class Connected:
    """A connected socket, as far as its addresses go."""

    type = socket.SOCK_STREAM

    def __init__(self, family: int, peer: Any, own: Any, user: int | None = None) -> None:
        self.family = family
        self.user = os.geteuid() if user is None else user
        self.getpeername = lambda: peer
        self.getsockname = lambda: own

    def getsockopt(self, level: int, option: int, size: int) -> bytes:
        assert (level, option) == (socket.SOL_SOCKET, socket.SO_PEERCRED)
        # As the kernel has it: pid_t, uid_t, gid_t.
        found = (1).to_bytes(4, sys.byteorder) + self.user.to_bytes(4, sys.byteorder) + bytes(4)
        assert size == len(found)
        return found


INET, INET6, UNIX = socket.AF_INET, socket.AF_INET6, socket.AF_UNIX


@pytest.mark.parametrize(
    ("family", "peer", "own", "origin"),
    [
        (INET, ("127.0.0.1", 1), ("127.0.0.1", 209), LOCAL),
        (INET, ("127.1.2.3", 1), ("127.0.0.2", 209), LOCAL),
        (INET6, ("::1", 1, 0, 0), ("::1", 209, 0, 0), LOCAL),
        (INET6, ("::ffff:127.0.0.1", 1, 0, 0), ("::ffff:127.0.0.1", 209, 0, 0), LOCAL),
        # A listener on :: or 0.0.0.0, systemd's among them, has clients from everywhere.
        (INET, ("192.0.2.9", 1), ("192.0.2.1", 209), REMOTE),
        (INET6, ("2001:db8::9", 1, 0, 0), ("2001:db8::1", 209, 0, 0), REMOTE),
        (INET6, ("::ffff:192.0.2.9", 1, 0, 0), ("::ffff:192.0.2.1", 209, 0, 0), REMOTE),
        # Its own address beyond loopback is no proof of anything.
        (INET, ("192.0.2.1", 1), ("192.0.2.1", 209), REMOTE),
        (INET6, ("fe80::1%lo", 1, 0, 1), ("fe80::1%lo", 209, 0, 1), REMOTE),
        # Redirected (DNAT): a listener on loopback gets a client from elsewhere.
        (INET, ("192.0.2.9", 1), ("127.0.0.1", 209), REMOTE),
        (INET6, ("::ffff:192.0.2.9", 1, 0, 0), ("::ffff:127.0.0.1", 209, 0, 0), REMOTE),
        # A forged source address: it never got through to an address of loopback.
        (INET, ("127.0.0.1", 1), ("192.0.2.1", 209), REMOTE),
        # IPv4-compatible (RFC 4291, 2.5.5.1), and NAT64's: not loopback.
        (INET6, ("::127.0.0.1", 1, 0, 0), ("::1", 209, 0, 0), REMOTE),
        (INET6, ("64:ff9b::7f00:1", 1, 0, 0), ("::1", 209, 0, 0), REMOTE),
        # From another virtual machine.
        (40, (3, 1), (2, 209), REMOTE),
        (UNIX, "", "/run/q.sock", LOCAL),
        (UNIX, "", b"\0abstract", LOCAL),
        (UNIX, "", "", UNKNOWN),
        (UNIX, "/run/q.sock", "", UNKNOWN),
    ],
)
def test_where_a_client_is(family: int, peer: Any, own: Any, origin: Origin) -> None:
    """To take one from elsewhere for a local one makes an open relay."""
    client = client_at(Connected(family, peer, own))  # type: ignore[arg-type]
    assert client.origin is origin
    assert (client.user == os.geteuid()) is (family == UNIX and origin is LOCAL)


@pytest.mark.parametrize("user", [0, 1_000, (1 << 31) - 1, 1 << 31, 3_000_000_000, (1 << 32) - 2])
def test_every_number_that_a_user_may_have(user: int) -> None:
    """Containers and directories have large ones.

    Read as negative, --allow-users refuses that user, and --user-quota does not count.
    """
    client = client_at(Connected(UNIX, "", "/run/q.sock", user))  # type: ignore[arg-type]
    assert client.user == user
    assert f"(uid {user})" in client.name
    policy = Policy(relays=True, users=frozenset([user])).for_client(client)
    assert policy.refuse(b"a@b") is None
    assert mark_of(client.user) == f"U{user}"


@pytest.mark.parametrize("origin", Origin)
@pytest.mark.parametrize(
    ("policy", "may"),
    [
        (Policy(relays=True), {LOCAL}),
        (Policy(relays=True, pipes_relay=True), {LOCAL, UNKNOWN}),
        (Policy(relays=True, verified=True), set(Origin)),
    ],
)
def test_who_may_relay(policy: Policy, may: set[Origin], origin: Origin) -> None:
    """--relay is about pipes only: it opens no socket to the world."""
    refusal = policy.for_client(Client("p", origin)).refuse(b"a@example.net")
    assert (refusal is None) is (origin in may)
    assert refusal is None or refusal.status.value == "D"


@pytest.mark.parametrize("origin", Origin)
def test_with_domains_nobody_relays_elsewhere(origin: Origin) -> None:
    """Not even from loopback, where a proxy hides clients from everywhere."""
    policy = Policy(relays=True, refuse=only_domains([b"example.org"]))
    refuse = policy.for_client(Client("p", origin)).refuse
    assert refuse(b"a@example.org") is None
    assert refuse(b"a@example.net") is not None


@pytest.mark.parametrize("origin", Origin)
def test_a_maildir_is_no_relay(origin: Origin) -> None:
    """What is delivered here goes nowhere; the socket decides who comes in."""
    assert Policy().for_client(Client("p", origin)).refuse(b"a@b") is None


def test_only_these_users() -> None:
    """Whoever is no local user is none of them."""
    policy = Policy(relays=True, users=frozenset([1000]))
    for user, allowed in ((1000, True), (0, False), (None, False)):
        refusal = policy.for_client(Client("p", LOCAL, user=user)).refuse(b"a@b")
        assert (refusal is None) is allowed
        assert refusal is None or b"(#5.7.1)" in refusal.raw


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("ann", "ann (uid 12345)"),
        ("www-data_2.x", "www-data_2.x (uid 12345)"),
        ("a b\nReceived: x", "unix (uid 12345)"),
        ("f(o)o", "unix (uid 12345)"),
        ("x" * 33, "unix (uid 12345)"),
        ("äö", "unix (uid 12345)"),
        ("", "unix (uid 12345)"),
        (None, "unix (uid 12345)"),
    ],
)
def test_names_of_users(monkeypatch: pytest.MonkeyPatch, name: str | None, shown: str) -> None:
    """They go into a header line, and may come from a directory that others write to."""

    class Entry:
        pw_name = name

    def getpwuid(number: int) -> Entry:
        if name is None:
            raise KeyError(number)
        return Entry()

    monkeypatch.setattr(pwd, "getpwuid", getpwuid)
    assert user_name(12345) == shown


# Standard input


@pytest.fixture(autouse=True)
def no_server_in_between(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests may themselves run under ssh."""
    for name in (*clients._REMOTE_VARIABLES, "SSH_CONNECTION"):
        monkeypatch.delenv(name, raising=False)


def tcp_pair(address: str = "127.0.0.1") -> tuple[socket.socket, socket.socket]:
    """Return a client's socket and the accepted one."""
    with socket.create_server((address, 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        return client, listener.accept()[0]


def test_a_pipe_or_a_file_tells_nothing() -> None:
    """The variables of ssh and tcpserver give it a name, and nothing else."""
    read, write = os.pipe()
    try:
        assert client_on_stdio(read) == Client("stdin", UNKNOWN)
    finally:
        os.close(read)
        os.close(write)
    null = os.open(os.devnull, os.O_RDONLY)
    try:
        assert client_on_stdio(null).origin is UNKNOWN
    finally:
        os.close(null)


def test_a_socket_that_is_not_connected_is_not_local() -> None:
    """UDP brings packages from anybody; and whoever has hung up can no longer be told."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        assert client_on_stdio(udp.fileno()).origin is REMOTE
        udp.bind(("127.0.0.1", 0))
        udp.connect(udp.getsockname())
        assert client_on_stdio(udp.fileno()).origin is REMOTE
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert client_on_stdio(listener.fileno()).origin is REMOTE
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with one, other:
        assert client_on_stdio(one.fileno()).origin is REMOTE


def test_a_pair_of_sockets_is_a_pipe() -> None:
    """stunnel's `exec` and sshd make one for whoever connects from wherever."""
    one, other = socket.socketpair()
    with one, other:
        assert client_on_stdio(one.fileno()).origin is UNKNOWN


@pytest.mark.parametrize(
    ("variable", "value", "origin"),
    [
        (None, "", LOCAL),
        ("TCPREMOTEIP", "127.0.0.1", LOCAL),
        ("TCPREMOTEIP", "192.0.2.9", REMOTE),
        ("TCP6REMOTEIP", "2001:db8::9", REMOTE),
        ("TCP6REMOTEIP", "::ffff:192.0.2.9", REMOTE),
        ("REMOTE_ADDR", "192.0.2.9", REMOTE),
        ("REMOTE_HOST", "client.example.net", REMOTE),
        ("REMOTE_ADDR", "/run/client.sock", LOCAL),
    ],
)
def test_a_server_in_between_makes_nobody_local(
    monkeypatch: pytest.MonkeyPatch, variable: str | None, value: str, origin: Origin
) -> None:
    """But the client from elsewhere of which it tells is one, though it connects on loopback."""
    if variable is not None:
        monkeypatch.setenv(variable, value)
    client, accepted = tcp_pair()
    with client, accepted:
        assert client_on_stdio(accepted.fileno()).origin is origin
