"""Several servers, as they are written: which texts are a list, and which lists make no sense."""

from __future__ import annotations

import re

import pytest

from maildirqmtp.errors import ConfigError
from maildirqmtp.transport.endpoint import CommandEndpoint, Endpoint, TcpEndpoint, UnixEndpoint
from maildirqmtp.transport.server_list import is_loopback, parse_servers, split_servers


@pytest.mark.parametrize(
    ("text", "servers"),
    [
        ("mx", ("mx",)),
        ("mx1,mx2:2009", ("mx1", "mx2:2009")),
        ("qmtps://a,qmtps://b:1,qmtps://c", ("qmtps://a", "qmtps://b:1", "qmtps://c")),
        ("[::1],::2", ("[::1]", "::2")),
        ("exec:sh -c 'a,b',c", ("exec:sh -c 'a,b',c",)),
        ("unix:/run/a,b", ("unix:/run/a,b",)),
        ("-", ("-",)),
        # What is wrong with these is said when each is read.
        ("a,", ("a", "")),
        (",", ("", "")),
        ("a, b", ("a", " b")),
    ],
)
def test_which_texts_are_a_list(text: str, servers: tuple[str, ...]) -> None:
    """A command or a path with a comma is one server."""
    assert split_servers(text) == servers


@pytest.mark.parametrize("text", ["mx,unix:/run/qmtp", "mx,exec:ssh mx2,b", "a,b,unix:x"])
def test_a_list_with_a_command_is_an_array(text: str) -> None:
    """Where it ends could only be guessed; the error says how to write it."""
    with pytest.raises(ConfigError, match="an array in a configuration file"):
        split_servers(text)


def test_a_list_is_read_in_its_order() -> None:
    """Each of any kind, with the port that is the default of all."""
    texts = ("localhost", "exec:ssh mx2", "unix:/run/a,b", "qmtps://mx3", "qmtps://mx4:1")
    assert parse_servers(texts, 2_009) == (
        TcpEndpoint("localhost", 2_009),
        CommandEndpoint(("ssh", "mx2")),
        UnixEndpoint("/run/a,b"),
        TcpEndpoint("mx3", 2_009, tls=True),
        TcpEndpoint("mx4", 1, tls=True),
    )
    assert parse_servers(("a", "qmtps://a")[:1]) == (TcpEndpoint("a", 209),)


@pytest.mark.parametrize(
    ("texts", "says"),
    [
        ((), "at least one"),
        (("a", ""), "server '': no host name"),
        (("a", " b"), "server ' b': no host name"),
        (("a,b", "c"), "server 'a,b': no host name"),
        (("a", "-"), "is one server; not in a list"),
        (("-", "a"), "is one server; not in a list"),
        (("a", "b", "a"), "server a:209: it stands in the list twice"),
        (("a", "a:209"), "twice"),
        (("exec:x  y", "exec:x y"), "twice"),
        (("a", "b:x"), "a port is a number"),
    ],
)
def test_a_list_that_makes_no_sense(texts: tuple[str, ...], says: str) -> None:
    """Found at the start, not when the first server is down."""
    with pytest.raises(ConfigError, match=re.escape(says)):
        parse_servers(texts)


@pytest.mark.parametrize(
    ("texts", "allowed"),
    [
        (("qmtps://a", "b"), False),
        (("a", "qmtps://b"), False),
        (("qmtps://a", "qmtp://b"), False),
        (("qmtps://a", "qmtps://b", "192.0.2.1"), False),
        (("qmtps://a", "localhost.example.org"), False),
        (("qmtps://a", "127.example.org"), False),
        (("qmtps://a", "0.0.0.0"), False),
        (("qmtps://a", "qmtps://b"), True),
        (("a", "b"), True),
        (("qmtps://a", "127.0.0.1:2009"), True),
        (("qmtps://a", "[::1]:2009"), True),
        (("localhost", "qmtps://a"), True),
        (("qmtps://a", "unix:/run/qmtp"), True),
        (("qmtps://a", "exec:ssh mx"), True),
    ],
)
def test_tls_and_plain_tcp_do_not_go_together(texts: tuple[str, ...], allowed: bool) -> None:
    """Whoever can make the first unreachable would read the mail."""
    if allowed:
        assert len(parse_servers(texts)) == len(texts)
        return
    with pytest.raises(ConfigError, match="would go there in plain text; write qmtps://"):
        parse_servers(texts)


@pytest.mark.parametrize(
    ("host", "is_one"),
    [
        ("localhost", True), ("LOCALHOST", True), ("localhost.", True), ("a.localhost", True),
        ("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("::ffff:127.0.0.1", True),
        ("mylocalhost", False), ("localhost.example.org", False), ("128.0.0.1", False),
        ("::", False), ("::2", False), ("::ffff:128.0.0.1", False), ("", False),
    ],
)  # fmt: skip
def test_what_is_loopback(host: str, is_one: bool) -> None:
    """By its name alone: what a name leads to may be another host tomorrow."""
    assert is_loopback(host) is is_one


def test_each_server_is_written_as_it_is_read() -> None:
    """What is remembered of a server is known by this text."""
    servers: tuple[Endpoint, ...] = parse_servers(("a", "exec:ssh 'm x'", "unix:/x"))
    assert parse_servers([server.text for server in servers]) == servers
