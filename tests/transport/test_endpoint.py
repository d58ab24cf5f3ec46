"""What an administrator writes on the command line or in a configuration file."""

import contextlib
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maildirqmtp.errors import ConfigError, Fault
from maildirqmtp.transport.endpoint import (
    CommandEndpoint,
    Endpoint,
    TcpEndpoint,
    UcspiEndpoint,
    UnixEndpoint,
    parse_endpoint,
    parse_pin,
    parse_port,
)
from maildirqmtp.transport.tls_options import Tls, make_tls

CHECKED = settings(deadline=None)

SERVERS = [
    ("mail.example.org", "mail.example.org", 209),
    ("mail.example.org:6209", "mail.example.org", 6209),
    ("mail.example.org:1", "mail.example.org", 1),
    ("mail.example.org:65535", "mail.example.org", 65_535),
    ("mail.example.org.", "mail.example.org.", 209),
    ("MX", "MX", 209),
    ("192.0.2.1", "192.0.2.1", 209),
    ("192.0.2.1:2090", "192.0.2.1", 2_090),
    ("::1", "::1", 209),
    ("2001:db8::1", "2001:db8::1", 209),
    ("[::1]", "::1", 209),
    ("[::1]:2090", "::1", 2_090),
    ("[::ffff:192.0.2.1]:2090", "::ffff:192.0.2.1", 2_090),
    ("fe80::1%eth0", "fe80::1%eth0", 209),
    ("[fe80::1%eth0]:2090", "fe80::1%eth0", 2_090),
    ("qmtp://mail.example.org", "mail.example.org", 209),
    ("qmtp://mail.example.org/", "mail.example.org", 209),
    ("qmtp://mail.example.org:2090", "mail.example.org", 2_090),
    ("qmtp://mail.example.org:2090/", "mail.example.org", 2_090),
    ("qmtp://[::1]:2090", "::1", 2_090),
    ("qmtp://[::1]/", "::1", 209),
    ("b\u00fccher.example", "b\u00fccher.example", 209),
]

TLS_SERVERS = [
    ("qmtps://mail.example.org", "mail.example.org", 6_209),
    ("qmtps://mail.example.org/", "mail.example.org", 6_209),
    ("qmtps://mail.example.org:209", "mail.example.org", 209),
    ("qmtps://[::1]", "::1", 6_209),
    ("qmtps://[::1]:2090/", "::1", 2_090),
]

OTHER_SERVERS = [
    ("-", UcspiEndpoint()),
    ("unix:/run/qmtp.sock", UnixEndpoint("/run/qmtp.sock")),
    ("unix:qmtp.sock", UnixEndpoint("qmtp.sock")),
    ("unix:/with space:and colon", UnixEndpoint("/with space:and colon")),
    ("exec:qmtpmaildir", CommandEndpoint(("qmtpmaildir",))),
    (
        "exec:ssh -p 22 mx qmtpmaildir --stdio Maildir",
        CommandEndpoint(("ssh", "-p", "22", "mx", "qmtpmaildir", "--stdio", "Maildir")),
    ),
    ("exec:/bin/sh -c 'a; b' $HOME", CommandEndpoint(("/bin/sh", "-c", "a; b", "$HOME"))),
]

BAD_SERVERS = [
    ("", "no host name"),
    (":209", "no host name"),
    ("/", "no host name"),
    ("[]", "no host name"),
    ("[]:209", "no host name"),
    ("qmtp://", "no host name"),
    ("qmtp:///", "no host name"),
    ("qmtp://mail/x", "no host name"),
    ("user@mail", "no host name"),
    ("mail example", "no host name"),
    (" mail", "no host name"),
    ("mail\n", "no host name"),
    ("mail\x1b[2J", "no host name"),
    ("mail\u202e", "no host name"),
    ("mail\udcff", "no host name"),
    ("mail]", "no host name"),
    ("ma[il", "no host name"),
    ("mail/", "no host name"),
    ("mail:", "a port is a number"),
    ("mail:0", "a port is a number"),
    ("mail:65536", "a port is a number"),
    ("mail:209209", "a port is a number"),
    ("mail:+209", "a port is a number"),
    ("mail:-1", "a port is a number"),
    ("mail: 209", "a port is a number"),
    ("mail:qmtp", "a port is a number"),
    ("mail:\u0662\u0660\u0669", "a port is a number"),
    ("mail:209/", "a port is a number"),
    ("[::1]:", "a port is a number"),
    ("[::1]:x", "a port is a number"),
    ("[::1", "an IPv6 address is written"),
    ("[::1]209", "an IPv6 address is written"),
    ("[::1]]", "an IPv6 address is written"),
    ("[::1]x:209", "an IPv6 address is written"),
    ("mail.example.org:209:", "'mail.example.org:209:' is no IPv6 address"),
    ("mail:209:210", "'mail:209:210' is no IPv6 address"),
    ("a:b:c", "'a:b:c' is no IPv6 address"),
    ("[mail:209]", "'mail:209' is no IPv6 address"),
    ("::1::2", "'::1::2' is no IPv6 address"),
    ("QMTP://mail", "this way is not known"),
    ("smtp://mail", "this way is not known"),
    ("://mail", "this way is not known"),
    ("qmtps://", "no host name"),
    ("qmtps://mail:x", "a port is a number"),
    ("qmtps://qmtps://mail", "a port is a number"),
    ("unix:", "a socket's path"),
    ("unix:a\0b", "a socket's path"),
    ("exec:", "a command is needed"),
    ("exec: ", "a command is needed"),
    ("exec:''", "a command is needed"),
    ("exec:a\0b", "a command is needed"),
    ("exec:ssh 'mx", "No closing quotation"),
]


@pytest.mark.parametrize(("text", "host", "port"), SERVERS)
def test_servers(text: str, host: str, port: int) -> None:
    """The host and the port that were meant; written out, they are understood again."""
    server = parse_endpoint(text)
    assert server == TcpEndpoint(host, port)
    assert parse_endpoint(str(server)) == server


@pytest.mark.parametrize(("text", "host", "port"), TLS_SERVERS)
def test_servers_with_tls(text: str, host: str, port: int) -> None:
    """Written out, TLS does not get lost: the log line says what is protected."""
    server = parse_endpoint(text)
    assert server == TcpEndpoint(host, port, tls=True)
    assert server != TcpEndpoint(host, port)
    assert parse_endpoint(str(server)) == server


@pytest.mark.parametrize(("text", "server"), OTHER_SERVERS)
def test_servers_that_are_not_on_tcp(text: str, server: Endpoint) -> None:
    """Each way has its own value; written out, it is understood again."""
    assert parse_endpoint(text) == server
    assert parse_endpoint(str(server)) == parse_endpoint(server.text) == server


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("unix:/tmp/\x1b[2J\n", "unix:/tmp/?[2J?"),
        ("unix:/tmp/\udcff", "unix:/tmp/?"),
        ("exec:a\u202eb c\udc80", "exec:'a?b' 'c?'"),
    ],
)
def test_a_server_is_shown_in_one_harmless_line(text: str, shown: str) -> None:
    """A path may hold any byte; the terminal must not obey it."""
    server = parse_endpoint(text)
    assert str(server) == shown
    assert parse_endpoint(server.text) == server


def test_a_command_is_called_by_its_name() -> None:
    """As the lines that it writes are to begin."""
    assert CommandEndpoint(("/usr/bin/ssh", "mx")).command == "ssh"
    assert CommandEndpoint(("ssh\x1b",)).command == "ssh?"
    assert CommandEndpoint(("/",)).command == "/"


def test_what_is_not_on_tcp_has_no_name_in_the_dns() -> None:
    """A bounce names the server to strangers; a path or a command is no name."""
    ways = (UnixEndpoint("/x"), CommandEndpoint(("x",)), UcspiEndpoint())
    assert [way.host for way in ways] == [
        "", "", "",
    ]  # fmt: skip


@pytest.mark.parametrize(("text", "says"), BAD_SERVERS)
def test_what_is_no_server_is_named(text: str, says: str) -> None:
    """Found at the start, with what was written; not as a name that is never found."""
    with pytest.raises(ConfigError, match=re.escape(f"server {text!r}: ")) as raised:
        parse_endpoint(text)
    assert says in str(raised.value)
    assert str(raised.value).isprintable()
    assert raised.value.fault is Fault.USAGE
    assert raised.value.permanent


def test_the_default_port_is_only_a_default() -> None:
    """An option for the port must not override what stands in the server."""
    assert parse_endpoint("mail", 2_090) == TcpEndpoint("mail", 2_090)
    assert parse_endpoint("qmtp://[::1]", 2_090) == TcpEndpoint("::1", 2_090)
    assert parse_endpoint("mail:209", 2_090) == TcpEndpoint("mail", 209)
    assert parse_endpoint("qmtps://mail", 2_090) == TcpEndpoint("mail", 2_090, tls=True)
    assert parse_endpoint("qmtps://mail:209", 2_090) == TcpEndpoint("mail", 209, tls=True)


def test_a_server_is_shown_as_it_can_be_written() -> None:
    """The log line can be pasted into the configuration."""
    assert str(TcpEndpoint("mail")) == "mail:209"
    assert str(TcpEndpoint("::1", 2_090)) == "[::1]:2090"


def test_servers_are_compared_by_value() -> None:
    """Two routes to one server are to be seen as such, in a set as well."""
    server = TcpEndpoint("mail", 209)
    assert server == TcpEndpoint("mail")
    assert server != TcpEndpoint("mail", 210)
    assert server != TcpEndpoint("other")
    assert server != "mail:209"
    assert len({server, TcpEndpoint("mail"), TcpEndpoint("mail", 210)}) == 2
    assert repr(server) == "TcpEndpoint(host='mail', port=209, tls=False)"


DIGEST = bytes(range(224, 256))
PINS = [
    f"sha256:{DIGEST.hex()}",
    f"sha256:{DIGEST.hex().upper()}",
    "sha256:4OHi4+Tl5ufo6err7O3u7/Dx8vP09fb3+Pn6+/z9/v8=",
]
BAD_PINS = ["", "sha256:", DIGEST.hex(), "sha1:" + "00" * 20, "sha256:" + "00" * 31,
            "sha256:" + "00" * 33, "sha256:" + "0g" * 32, "SHA256:" + "00" * 32,
            "sha256//4OHi4+Tl5ufo6err7O3u7/Dx8vP09fb3+Pn6+/z9/v8=",
            "sha256:4OHi4+Tl5ufo6err7O3u7/Dx8vP09fb3+Pn6+/z9/v8",
            "sha256:4OHi4-Tl5ufo6err7O3u7_Dx8vP09fb3-Pn6-_z9_v8=",
            "sha256:" + "\u0660" * 64]  # fmt: skip


@pytest.mark.parametrize("text", PINS)
def test_pins(text: str) -> None:
    """As openssl writes a digest, and as RFC 7469 does."""
    assert parse_pin(text) == DIGEST


@pytest.mark.parametrize("text", BAD_PINS)
def test_a_pin_that_is_none_is_named(text: str) -> None:
    """Taken for another digest, it would shut every server out."""
    with pytest.raises(ConfigError, match=r"^--tls-pin: sha256: and the digest"):
        parse_pin(text)


QMTPS = TcpEndpoint("mail", 6_209, tls=True)


def test_what_tls_is_to_check() -> None:
    """Nothing asked for is None: the system's certificate authorities."""
    assert make_tls(QMTPS) is None
    assert make_tls(UcspiEndpoint(), None, None, None, ()) is None
    assert make_tls(QMTPS, ca="ca.pem") == Tls(ca="ca.pem")
    assert make_tls(QMTPS, cert="c.pem") == Tls(cert="c.pem")
    assert make_tls(QMTPS, cert="c.pem", key="k.pem") == Tls(cert="c.pem", key="k.pem")
    assert make_tls(QMTPS, pins=(DIGEST,)) == Tls(pins=(DIGEST,))


def test_a_key_without_its_certificate_is_no_use() -> None:
    """Found at the start, not by a server that misses the certificate."""
    with pytest.raises(ConfigError, match=r"^--tls-key: its certificate is needed"):
        make_tls(QMTPS, key="k.pem")


@pytest.mark.parametrize("flag", ["--tls-ca", "--tls-cert", "--tls-key"])
def test_an_empty_path_is_no_file(flag: str) -> None:
    """`--tls-ca "$CA"` without CA would trust everybody that the system trusts."""
    files = ["" if flag == name else "x.pem" for name in ("--tls-ca", "--tls-cert", "--tls-key")]
    with pytest.raises(ConfigError, match=f"^{flag}: the path of a file is needed"):
        make_tls(QMTPS, files[0], files[1], files[2])


def test_tls_as_programs_write_it(tmp_path: Path) -> None:
    """Paths of any kind, pins as they are written elsewhere; one pin is one."""
    pin = f"sha256:{DIGEST.hex()}"
    assert Tls(tmp_path, tmp_path, tmp_path) == Tls(*[str(tmp_path)] * 3)
    assert Tls(pins=pin) == Tls(pins=[pin]) == Tls(pins=DIGEST) == Tls(pins=(DIGEST,))
    assert Tls(pins=iter([DIGEST, bytes(32)])).pins == (DIGEST, bytes(32))


WRONG_TLS: list[tuple[dict[str, Any], str]] = [
    ({"ca": ""}, "tls ca: the path of a file is needed"),
    ({"cert": b""}, "tls cert: the path of a file is needed"),
    ({"ca": "a\0b"}, "tls ca: the path of a file is needed"),
    ({"key": "k.pem"}, "tls key: its certificate is needed too, with tls cert"),
    ({"pins": "sha256:abc"}, "tls pins: sha256: and the digest"),
    ({"pins": [bytes(31)]}, "tls pins: a digest of SHA-256 has 32 bytes, not 31"),
]


@pytest.mark.parametrize(("options", "says"), WRONG_TLS)
def test_tls_that_makes_no_sense_is_refused(options: dict[str, Any], says: str) -> None:
    """Found where it is written: a pin that never fits, a file that is none for OpenSSL."""
    with pytest.raises(ConfigError, match=f"^{says}"):
        Tls(**options)


@pytest.mark.parametrize(
    "server",
    [TcpEndpoint("mail", 6_209), UnixEndpoint("/x"), CommandEndpoint(("x",)), UcspiEndpoint()],
)
def test_tls_options_are_refused_where_there_is_no_tls(server: Endpoint) -> None:
    """`mail.example.org` in place of `qmtps://mail.example.org` must not send mail in plain."""
    with pytest.raises(ConfigError, match="write qmtps://NAME"):
        make_tls(server, ca="ca.pem")


PORTS = [("1", 1), ("209", 209), ("65535", 65_535), ("00209", 209)]
BAD_PORTS = ["", "0", "00000", "65536", "100000", "000209", "-1", "+1", " 1", "1 ", "1.0", "x",
             "\u0661", "\u00b2", "1_0"]  # fmt: skip


@pytest.mark.parametrize(("text", "port"), PORTS)
def test_ports(text: str, port: int) -> None:
    """All of 1 to 65535."""
    assert parse_port(text) == port


@pytest.mark.parametrize("text", BAD_PORTS)
def test_what_is_no_port_is_named(text: str) -> None:
    """The option and the text are in the error, so that it can be found and mended."""
    for place in ("port", "--option"):
        with pytest.raises(ConfigError) as raised:
            parse_port(text) if place == "port" else parse_port(text, place)
        assert str(raised.value).startswith(f"{place}: ")
        assert str(raised.value).endswith(f"not {text!r}")


@CHECKED
@given(st.text(max_size=12) | st.text("[]:/.0123456789abf%-@qmtp", max_size=16))
def test_no_text_raises_anything_but_a_config_error(text: str) -> None:
    """A typo must not end in a traceback; what is taken can be written again."""
    with contextlib.suppress(ConfigError):
        assert 0 < parse_port(text) < 65_536
    try:
        server = parse_endpoint(text)
    except ConfigError:
        return
    if isinstance(server, TcpEndpoint):
        assert server.host
        assert 0 < server.port < 65_536
        assert parse_endpoint(str(server)) == server
    assert str(server).isprintable()
    assert parse_endpoint(server.text) == server


KINDS: list[Endpoint] = [
    TcpEndpoint("a"),
    TcpEndpoint("a", 1),
    TcpEndpoint("a", 209, True),
    TcpEndpoint("unix", 209),
    UnixEndpoint("a"),
    UnixEndpoint("209"),
    CommandEndpoint(("a",)),
    CommandEndpoint(("a", "a")),
    UcspiEndpoint(),
]


@pytest.mark.parametrize("one", KINDS, ids=repr)
def test_an_endpoint_equals_only_its_own_kind(one: Endpoint) -> None:
    """A client told to use `exec:a` after `unix:a` would go on with the old connection."""
    assert [other for other in KINDS if other == one] == [one]
    assert len([other for other in KINDS if other != one]) == len(KINDS) - 1
    assert one != tuple(one) if isinstance(one, tuple) else one != "-"
    again = parse_endpoint(one.text)
    assert (again, hash(again)) == (one, hash(one))
    assert len({*KINDS, again}) == len(KINDS)


@pytest.mark.parametrize("one", KINDS, ids=repr)
def test_an_endpoint_is_true(one: Endpoint) -> None:
    """`server or default` must not lose `-`, which has no fields."""
    assert one


@pytest.mark.parametrize("one", [*KINDS, Tls()], ids=repr)
def test_endpoints_and_options_cannot_be_changed(one: object) -> None:
    """They are shared by routes, threads and connections."""
    with pytest.raises((AttributeError, TypeError)):
        one.host = "b"  # type: ignore[attr-defined]
    with pytest.raises((AttributeError, TypeError)):
        one.ca = "b"  # type: ignore[attr-defined]
