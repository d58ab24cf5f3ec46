"""The configuration file: what it comes to, and that an error names file, line and key."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maildirqmtp.errors import ConfigError
from maildirqmtp.forwarder.route import SENDMAIL, BounceMethod, BounceVia, Route
from maildirqmtp.maildir.shard import Shard
from maildirqmtp.pipeline.timeouts import FENCE_GRACE_S, SESSION_S
from maildirqmtp.settings import config
from maildirqmtp.settings.command_line import parse
from maildirqmtp.settings.config import Config, effective
from maildirqmtp.settings.config_file import MAX_BYTES, ConfigFile
from maildirqmtp.settings.types import quoted
from maildirqmtp.transport.endpoint import (
    CommandEndpoint,
    TcpEndpoint,
    UnixEndpoint,
    parse_endpoint,
)


def write(path: Path, text: str | bytes) -> str:
    """Write a configuration file and return its path."""
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


def read(path: str, *flags: str) -> Config:
    """Read it, with these flags on the command line."""
    return config.read(path, parse(["--config", path, *flags]))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the file is."""
    return tmp_path / "m.toml"


ROUTE = '[[route]]\nmaildir = "M"\nserver = "h"\n'


# What is understood


def test_the_smallest(path: Path) -> None:
    """A maildir and a server; the rest as the command line has it."""
    assert read(write(path, ROUTE)) == Config((Route(b"M", TcpEndpoint("h")),), path=str(path))


EVERYTHING = """\
metrics-file = "/run/m.prom"
metrics-listen = "[::1]:9209"
health-listen = "0.0.0.0:8080"
log-format = "json"
json = true
quiet = true

[defaults]
server = "mail.example.org"
connect-timeout = "30s"
max-bounces = 7

[[route]]
maildir = "/a"
prefix = "p-"
port = 2009
window = "100,1M"
connect-timeout = 5
write-timeout = "1m"
response-timeout = "2h"
lifetime = "3d"
sent = "/sent"
failed = "/failed"
sender = "s@x"
recipient = ["a@y", "b@y"]
bounce = false
bounce-via = "server"
sendmail = "mta -x"
cur = true
one-recipient = true
rescan = 10
idle-timeout = "5m"

[[route]]
maildir = "/b"
server = "other:6"
"""


def test_every_key(path: Path) -> None:
    """Each arrives in its field; what the route does not say, the defaults do."""
    first = Route(
        b"/a",
        TcpEndpoint("mail.example.org", 2009),
        prefix=b"p-",
        window_messages=100,
        window_bytes=1 << 20,
        connect_timeout_s=5,
        write_timeout_s=60,
        response_timeout_s=7200,
        lifetime_s=3 * 86_400,
        sent=b"/sent",
        failed=b"/failed",
        sender=b"s@x",
        recipients=(b"a@y", b"b@y"),
        bounce=False,
        bounce_via=BounceVia(BounceMethod.SERVER),
        sendmail=(b"mta", b"-x"),
        include_cur=True,
        one_recipient=True,
        rescan_s=10,
        idle_s=300,
        max_bounces=7,
    )
    second = Route(b"/b", TcpEndpoint("other", 6), connect_timeout_s=30, max_bounces=7)
    assert read(write(path, EVERYTHING)) == Config(
        (first, second),
        metrics_file=b"/run/m.prom",
        metrics_listen=("::1", 9209),
        health_listen=("0.0.0.0", 8080),
        log_format="json",
        json=True,
        verbosity=-1,
        path=str(path),
    )


def test_flags_beat_routes_beat_defaults(path: Path) -> None:
    """For every route: somebody tries something out and leaves the file alone."""
    text = '[defaults]\nrescan = 1\nlifetime = 1\nwindow = 1\nserver = "d:1"\n'
    text += '[[route]]\nmaildir = "a"\nlifetime = 2\nwindow = 2\n[[route]]\nmaildir = "b"\n'
    one, two = read(write(path, text), "--window=3").routes
    assert (one.rescan_s, one.lifetime_s, one.window_messages) == (1, 2, 3)
    assert (two.rescan_s, two.lifetime_s, two.window_messages) == (1, 1, 3)
    one, two = read(str(path), "--no-bounce", "--cur", "--sent=S", "--recipient=a@b").routes
    for route in (one, two):
        assert (route.bounce, route.include_cur, route.sent) == (False, True, b"S")
        assert route.recipients == (b"a@b",)


@pytest.mark.parametrize(
    ("text", "flags", "verbosity"),
    [
        ("", (), 0),
        ("verbose = true\n", (), 1),
        ("quiet = true\n", (), -1),
        ("quiet = true\n", ("-v",), 1),
        ("verbose = true\n", ("-q",), -1),
        ("verbose = false\nquiet = false\n", (), 0),
        ("", ("-v", "-q"), -1),
    ],
)
def test_verbosity(path: Path, text: str, flags: tuple[str, ...], verbosity: int) -> None:
    """A flag beats either key."""
    assert read(write(path, text + ROUTE), *flags).verbosity == verbosity


def test_other_flags_of_the_process(path: Path) -> None:
    """They beat the file, too."""
    write(path, 'metrics-file = "a"\nmetrics-listen = "localhost:1"\n' + ROUTE)
    made = read(str(path), "--metrics-file=b", "--metrics-listen=127.0.0.1:2", "--json")
    assert (made.metrics_file, made.metrics_listen, made.json) == (b"b", ("127.0.0.1", 2), True)


@pytest.mark.parametrize(
    ("defaults", "own", "flags", "bounces"),
    [
        ("", "", (), False),
        ("", 'prefix = ""', (), False),
        ("", 'prefix = "p-"', (), True),
        ("bounce = false", 'prefix = "p-"', (), False),
        ("bounce = true", "", (), True),
        ("bounce = true", "bounce = false", (), False),
        ("bounce = true", "bounce = false", ("--bounce",), True),
    ],
)
def test_bounces(
    path: Path, defaults: str, own: str, flags: tuple[str, ...], bounces: bool
) -> None:
    """On with a prefix, as serialmail; a first try on somebody's inbox tells no strangers."""
    (route,) = read(write(path, f"[defaults]\n{defaults}\n{ROUTE}{own}\n"), *flags).routes
    assert route.bounce is bounces


@pytest.mark.parametrize(
    ("defaults", "own", "flags", "takes"),
    [
        ("", "", (), False),
        ("", 'prefix = ""', (), False),
        ("", 'prefix = "p-"', (), True),
        ("cur = false", 'prefix = "p-"', (), False),
        ("cur = true", "", (), True),
        ("", 'prefix = "p-"\ncur = false', (), False),
        ("cur = true", 'prefix = "p-"', ("--no-cur",), False),
        ("cur = true", "cur = false", ("--cur",), True),
    ],
)
def test_read_mail(
    path: Path, defaults: str, own: str, flags: tuple[str, ...], takes: bool
) -> None:
    """Goes with a prefix, as with serialmail; an inbox keeps what its owner has read."""
    (route,) = read(write(path, f"[defaults]\n{defaults}\n{ROUTE}{own}\n"), *flags).routes
    assert route.include_cur is takes


def test_a_route_can_take_back_the_recipients_of_the_defaults(path: Path) -> None:
    """By an empty array."""
    text = f'[defaults]\nrecipient = "a@b"\n{ROUTE}recipient = []\n'
    assert read(write(path, text)).routes[0].recipients == ()


def test_a_home_directory(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No shell reads the file."""
    monkeypatch.setenv("HOME", "/home/ann")
    text = '[[route]]\nmaildir = "~/Maildir"\nserver = "h"\n'
    assert read(write(path, text)).routes[0].maildir == b"/home/ann/Maildir"


def test_one_maildir_two_prefixes(path: Path) -> None:
    """What the prefix is for."""
    text = ROUTE + 'prefix = "a-"\n' + ROUTE + 'prefix = "b-"\n' + ROUTE
    assert [route.prefix for route in read(write(path, text)).routes] == [b"a-", b"b-", b""]


def test_inline_tables_and_dotted_keys(path: Path) -> None:
    """TOML is TOML."""
    text = 'defaults.server = "h"\nroute = [{maildir = "a"}, {maildir = "b"}]\n'
    assert [route.maildir for route in read(write(path, text)).routes] == [b"a", b"b"]


# What is refused


def refused(path: Path, text: str | bytes, *flags: str) -> str:
    """Read what cannot be read; return what is said after the file's name."""
    with pytest.raises(ConfigError) as raised:
        read(write(path, text), *flags)
    said = str(raised.value)
    assert said.startswith(str(path))
    assert "\n" not in said
    return said.removeprefix(str(path)).lstrip(",: ")


DATE = "rescan = 2026-01-31\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no route; write a [[route]] with maildir and server"),
        ("route = []\n", "no route"),
        ("x = 1\n" + ROUTE, "line 1: unknown key 'x' at the top"),
        ("\n# x\n\n'js on' = 1\n" + ROUTE, "line 4: unknown key 'js on' at the top; did you"),
        ("rescan = 5\n" + ROUTE, "line 1: unknown key 'rescan' at the top; it has its place in [d"),
        ("[default]\n" + ROUTE, "line 1: unknown key 'default' at the top; did you mean defaults?"),
        ("[[routes]]\n" + ROUTE, "line 1: unknown key 'routes' at the top; did you mean route?"),
        (
            "[defaults]\nmaildir = 'M'\n" + ROUTE,
            "line 2: unknown key 'maildir' in [defaults]; it has its place in [[route]]",
        ),
        (
            "[defaults]\njson = true\n" + ROUTE,
            "line 2: unknown key 'json' in [defaults]; it has its place at the top",
        ),
        (ROUTE + "x.y = 1\n", "line 4: unknown key 'x' in [[route]]"),
        (
            ROUTE + ROUTE + "connect_timeout = 1\n",
            "line 7: unknown key 'connect_timeout' in [[route]]; did you mean connect-timeout?",
        ),
        (ROUTE + "bounce = 'yes'\n", "line 4: bounce: true or false is needed, not a text"),
        (ROUTE + DATE, 'line 4: rescan: a time as in "90s", or a number of seconds, is needed'),
        (ROUTE + "rescan = 0\n", "line 4: rescan: more than 0 seconds are needed, not 0"),
        ("[defaults]\nrescan = '1y'\n" + ROUTE, "line 2: rescan: a time is a number with s, m"),
        (ROUTE + 'recipient = [\n  "a@b",\n  1,\n]\n', "line 4: recipient: a text or an array"),
        (ROUTE + "[route.sent]\n", "line 4: sent: a path in quotes is needed, not a table"),
        ("defaults = 1\n" + ROUTE, "line 1: defaults: a table is needed, written [defaults]"),
        ("[[defaults]]\n" + ROUTE, "line 1: defaults: a table is needed, written [defaults]"),
        ("\n[route]\nmaildir = 'M'\n", "line 2: route: each route is a table, written [[route]]"),
        ("route = [1]\n", "line 1: route: each route is a table"),
        (ROUTE + "[[route]]\n", "line 4: the route has no maildir"),
        ("#\n[[route]]\nmaildir = 'M'\n", "line 2: the route has no server"),
        (ROUTE + ROUTE.replace("h", "a b"), "line 6: server 'a b': no host name"),
        ("[defaults]\nserver = ':'\n[[route]]\nmaildir = 'M'\n", "line 2: server ':': no host"),
        (ROUTE.replace("'h'", "1").replace('"h"', "1"), "line 3: server: a text or an array"),
        (ROUTE + "sent = './M/'\n", "line 4: sent: ./M/ is the maildir that is forwarded"),
        ("[defaults]\nfailed = 'M'\n" + ROUTE, "line 2: failed: M is the maildir that is forw"),
        (ROUTE + "bounce-via = 'maildir:M'\n", "line 4: bounce-via: M is the maildir"),
        (ROUTE + "warn-after = '4h'\n", "line 4: warn-after: senders are told nothing without b"),
        ("[defaults]\nwarn-after = 1\n" + ROUTE, "line 2: warn-after: senders are told nothing"),
        (ROUTE + "keep-sent = '30d'\n", "line 4: keep-sent: accepted messages are removed at once"),
        ("[defaults]\nkeep-sent = 1\n" + ROUTE, "line 2: keep-sent: accepted messages are remov"),
        (ROUTE + "keep-failed = 30\n", "line 4: keep-failed: at least 1d is needed, not 30"),
        (ROUTE + "keep-failed = '23h'\n", "line 4: keep-failed: at least 1d is needed, not '23h'"),
        (
            ROUTE + "keep-failed = '2d'\nprefix = 'a-'\n" + ROUTE,
            "line 7: keep-failed: M/.Failed is a maildir of sent or failed messages twice",
        ),
        (
            ROUTE + "keep-failed = '2d'\nfailed = 'N'\n" + ROUTE.replace('"M"', '"N"'),
            "line 2: keep-failed: N has what waits there to be forwarded, which would be removed; "
            "name another maildir (the other route is at line 7)",
        ),
        (ROUTE + "warn-after = 0\n", "line 4: warn-after: more than 0 seconds are needed"),
        ("verbose = true\nquiet = true\n" + ROUTE, "line 2: quiet: not together with verbose"),
        ("metrics-listen = '0.0.0.0:1'\n" + ROUTE, "line 1: metrics-listen: 0.0.0.0 is not loop"),
        ("x = \n", "Invalid value (at line 1, column 5): x = (text is written in quotes)"),
        ("a = 1\nx = y\x1b\n", "Invalid value (at line 2, column 5): x = y? (text"),
        ("[[route]\n", "Expected ']]' at the end of an array declaration (at line 1, column 8): "),
        ("a = [\n", "Invalid value (at end of document)"),
        ("a = 1\na = 2\n", "Cannot overwrite a value (at line 2, column 6)"),
        (b"a = 1\n\n# \xff\n", "line 3: not UTF-8, which TOML has to be"),
        (f"a = {'9' * 5000}\n", "Exceeds the limit"),
        (f"a = 0x{'f' * 5000}\n" + ROUTE, "line 1: unknown key"),
        (ROUTE + f"port = 0x{'f' * 5000}\n", "line 4: port: the number is too large"),
        (f"a = {'[' * 5000}\n", "nested too deeply"),
        (b"#" * (MAX_BYTES + 1), f"larger than {MAX_BYTES} bytes"),
    ],
)
def test_errors_name_the_place(path: Path, text: str | bytes, said: str) -> None:
    """An administrator finds it in a long file; and nothing has been started."""
    assert refused(path, text).startswith(said)


def test_a_file_that_is_not_there(path: Path, tmp_path: Path) -> None:
    """File and reason."""
    with pytest.raises(ConfigError) as raised:
        read(str(path))
    assert str(raised.value) == f"cannot read {path}: No such file or directory"
    with pytest.raises(ConfigError, match=r"^cannot read .*: Is a directory$"):
        read(str(tmp_path))
    with pytest.raises(ConfigError, match=r"^cannot read a\?b: embedded null"):
        read("a\0b")


def test_the_same_messages_twice(path: Path, tmp_path: Path) -> None:
    """Two routes would fight over each message; a link does not hide it."""
    (tmp_path / "M").mkdir()
    (tmp_path / "L").symlink_to("M")
    routes = [f'[[route]]\nserver = "h"\nmaildir = "{tmp_path}/{name}"\n' for name in "ML"]
    said = refused(path, "\n".join(routes))
    assert said == (
        f"line 7: maildir: {tmp_path}/L with this prefix has its route at line 3; "
        f"give one of them another prefix"
    )


def test_a_flag_can_be_what_is_wrong(path: Path) -> None:
    """Then it is what is named, and the route for which."""
    assert refused(path, ROUTE, "--sent=M").startswith("line 2: --sent: M is the maildir")
    with pytest.raises(ConfigError, match=r"^--rescan: more than 0"):
        read(write(path, ROUTE), "--rescan=0")


# Lines

FILLERS = [
    "# [[route]]",
    "",
    's{} = """\n[[route]]\nx = 1\n"""',
    "s{} = '''\nk0 = 1\n\\'''",
    "s{} = [\n  1, # ]\n\n  [2],\n]",
    "s{} = {{a = 1, b = [\n1]}}",
    's{} = "\\"# [["',
]


@given(
    st.lists(st.sampled_from(FILLERS), max_size=8),
    st.lists(st.sampled_from(FILLERS), max_size=8),
    st.sampled_from(["\n", "\r\n"]),
)
def test_the_line_of_a_key_among_whatever_else_there_is(
    tmp_path_factory: pytest.TempPathFactory, before: list[str], after: list[str], newline: str
) -> None:
    """Strings and arrays of several lines, comments, and what looks like the key and is not."""
    above = [filler.format(number) for number, filler in enumerate(before)]
    below = [filler.format(number + 50) for number, filler in enumerate(after)]
    text = "\n".join([*above, "[[route]]", *above, "[[route]]", *above, "k0 = [", "1]", *below])
    path = tmp_path_factory.getbasetemp() / "lines.toml"
    file = ConfigFile(write(path, text.replace("\n", newline)))
    lines = sum(part.count("\n") + 1 for part in above)
    assert file.line(("route", 0)) == lines + 1
    assert file.line(("route", 1)) == 2 * lines + 2
    assert file.line(("route", 1, "k0")) == 3 * lines + 3


def test_lines_end_as_they_do_elsewhere(path: Path) -> None:
    """An editor of another system wrote it."""
    text = (ROUTE + "x = 1\n").replace("\n", "\r\n")
    assert refused(path, text).startswith("line 4: unknown key 'x'")


def test_a_byte_order_mark_is_no_error(path: Path) -> None:
    """Notepad writes one; `Invalid statement (at line 1, column 1)` helps nobody."""
    (route,) = read(write(path, b"\xef\xbb\xbf" + ROUTE.encode())).routes
    assert route.maildir == b"M"
    assert refused(path, b"\xef\xbb\xbf" + ROUTE.encode() + b"x = 1\n").startswith("line 4: unk")
    # In the middle of the file it is still one.
    assert refused(path, ROUTE.encode() + b"\xef\xbb\xbfx = 1\n").startswith("Invalid statement")
    assert refused(path, ROUTE.encode("utf-16")).startswith("line 1: not UTF-8")


def test_a_long_file_is_no_longer_wait(path: Path) -> None:
    """The search halves; it does not read the file once for each line."""
    routes = [f'[[route]]\nmaildir = "M{number}"\nserver = "h"\n' for number in range(600)]
    assert refused(path, "".join(routes) + "x = 1\n").startswith("line 1801: unknown key 'x'")


# --check-config


def back(made: Config, path: Path) -> Config:
    """Write what is shown of a configuration to its file and read that."""
    return read(write(path, effective(made)))


@pytest.mark.parametrize("text", [ROUTE, EVERYTHING, "verbose = true\n" + ROUTE + "window = 5\n"])
def test_what_is_shown_comes_to_the_same(path: Path, text: str) -> None:
    """So it can be kept, and compared with the next version's."""
    made = read(write(path, text), "--connect-timeout=1.25")
    shown = effective(made)
    assert back(made, path) == made
    assert effective(made) == shown


PREFIX = st.text(
    st.characters(exclude_characters="\0\r\n", codec="utf-8"), min_size=1, max_size=20
).map(str.encode)
#: Raw, as a route holds them; what is not plain is quoted where it is shown.
LOCAL = st.text(
    st.characters(exclude_characters="\0\r\n", codec="utf-8"), min_size=1, max_size=20
).map(str.encode)
ENVELOPE_ADDRESS = st.builds(b"%b@%b".__mod__, st.tuples(LOCAL, st.just(b"example.org")))
PATH = st.text(st.characters(exclude_characters="\0", codec="utf-8"), min_size=1, max_size=20).map(
    lambda text: b"/" + text.encode()
)
FALLBACKS = [
    TcpEndpoint("localhost", 6),
    TcpEndpoint("127.0.0.1", 6),
    UnixEndpoint("/run/a,b"),
    CommandEndpoint(("ssh", "m x", "a,b")),
]
TIME = st.floats(min_value=0.001, max_value=1e9) | st.integers(1, 10**9).map(float)


@given(
    st.builds(
        Route,
        PATH,
        st.builds(TcpEndpoint, st.sampled_from(["h", "::1", "192.0.2.1"]), st.integers(1, 65_535)),
        prefix=st.just(b"") | PREFIX,
        sender=st.none() | st.just(b"") | ENVELOPE_ADDRESS,
        default_sender=st.none() | st.just(b"") | ENVELOPE_ADDRESS,
        recipients=st.lists(ENVELOPE_ADDRESS, max_size=3, unique=True).map(tuple),
        include_cur=st.booleans(),
        sent=st.none() | PATH.map(lambda path: b"/sent" + path),
        failed=st.none() | PATH.map(lambda path: b"/failed" + path),
        bounce=st.booleans(),
        bounce_via=st.sampled_from(
            [*map(BounceVia, list(BounceMethod)[:2]), BounceVia(BounceMethod.MAILDIR, b"/a b")]
        ),
        max_bounces=st.integers(0, 10**9 - 1),
        lifetime_s=TIME,
        window_messages=st.integers(1, 10**9 - 1),
        window_bytes=st.integers(1, 10**15 - 1),
        connect_timeout_s=TIME,
        rescan_s=TIME,
        idle_s=TIME,
        # A named tuple's other fields would be made up as well.
        sendmail=st.just(SENDMAIL),
        hostname=st.sampled_from([None, "h.example"]),
        write_timeout_s=TIME,
        response_timeout_s=TIME,
        grace_s=st.just(FENCE_GRACE_S),
        session_s=st.just(SESSION_S),
        connections=st.integers(1, 100),
        server_connections=st.integers(1, 100),
        large_bytes=st.integers(1, 10**9),
        max_bytes=st.none() | st.integers(1, 10**9),
        shard=st.none() | st.builds(Shard, st.just(0), st.integers(1, 1_000)),
        one_recipient=st.booleans(),
        tls=st.none(),
        fallback_servers=st.lists(st.sampled_from(FALLBACKS), unique=True).map(tuple),
        in_doubt_wait_s=TIME,
        warn_after_s=st.none() | TIME,
        keep_sent_s=st.none() | TIME,
        keep_failed_s=st.none() | st.integers(86_400, 10**9).map(float),
    )
    .map(lambda route: route if route.bounce else route._replace(warn_after_s=None))
    .map(lambda route: route if route.sent else route._replace(keep_sent_s=None)),
    st.integers(-1, 1),
)
def test_whatever_is_configured_comes_back(
    tmp_path_factory: pytest.TempPathFactory, route: Route, verbosity: int
) -> None:
    """A setting that is shown wrongly would be believed."""
    path = tmp_path_factory.getbasetemp() / "back.toml"
    made = Config((route,), verbosity=verbosity, path=str(path))
    assert back(made, path) == made


def test_what_cannot_be_written_is_said(path: Path) -> None:
    """Not shown wrongly. Only a flag can bring it in."""
    made = read(write(path, ROUTE), "--sent=\udcff")
    assert made.routes[0].sent == b"\xff"
    with pytest.raises(ConfigError, match=r"^sent: .* is no UTF-8"):
        effective(made)


# --watch without a file


def test_the_command_line_alone() -> None:
    """One route, no file."""
    words = ["--watch", "M", "p-", "h", "--rescan=5", "-v", "--metrics-file", "m"]
    route = Route(b"M", TcpEndpoint("h"), prefix=b"p-", include_cur=True, bounce=True, rescan_s=5)
    expected = Config((route,), metrics_file=b"m", verbosity=1)
    assert config.from_command_line(parse(words)) == expected


def test_two_configurations_are_told_apart() -> None:
    """HUP goes by this."""
    route = Route(b"M", TcpEndpoint("h"))
    assert Config((route,)) == Config((Route(b"M", TcpEndpoint("h")),))
    assert Config((route,)) != Config((Route(b"M", TcpEndpoint("h"), rescan_s=5),))
    assert Config((route,)) != Config((route,), json=True)
    assert os.fsdecode(route.maildir) in repr(Config((route,)))


@pytest.mark.parametrize(
    "server",
    [
        "qmtps://h:6209",
        "[::1]:209",
        "unix:/run/with space \u202e.sock",
        "exec:ssh mx 'a b' \u00e4",
    ],
)
def test_every_way_to_a_server_comes_back(path: Path, server: str) -> None:
    """`--check-config` shows what can be put into a file again, even what a terminal cannot."""
    text = f'[[route]]\nmaildir = "M"\nserver = {quoted(server)}\n'
    if server.startswith("qmtps:"):
        text += f'tls-ca = "~/ca.pem"\ntls-pin = "sha256:{"00" * 32}"\n'
    config = read(write(path, text))
    assert config.routes[0].server == parse_endpoint(server)
    assert read(write(path, effective(config))) == config


def test_a_ucspi_client_is_not_for_those_who_stay(path: Path) -> None:
    """The second connection could never be made."""
    with pytest.raises(ConfigError, match=f"^{re.escape(str(path))}: server -: a UCSPI client"):
        read(write(path, '[[route]]\nmaildir = "M"\nserver = "-"\n'))


@pytest.mark.parametrize(
    ("written", "servers"),
    [
        ('"a,b:1"', ["a:209", "b:1"]),
        ('["a", "b:1"]', ["a:209", "b:1"]),
        ('["a"]', ["a:209"]),
        ('["exec:sh -c \'a,b\'", "unix:/run/a,b", "qmtps://c"]',
         ["exec:sh -c a,b", "unix:/run/a,b", "qmtps://c:6209"]),
        ('"exec:a,b"', ["exec:a,b"]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("place", ["route", "defaults"])
def test_several_servers_in_a_file(
    path: Path, written: str, servers: list[str], place: str
) -> None:
    """As a text or an array, also for all routes; `--check-config` shows what comes to the same."""
    text = f"server = {written}\n"
    if place == "route":
        text = f'[[route]]\nmaildir = "M"\n{text}'
    else:
        text = f'[defaults]\n{text}[[route]]\nmaildir = "M"\n'
    made = read(write(path, text))
    assert [server.text for server in made.routes[0].servers] == servers
    assert read(write(path, effective(made))) == made


@pytest.mark.parametrize(
    ("written", "says"),
    [
        ("[]", "line 3: server: at least one is needed"),
        ('["a", 1]', "line 3: server: a text or an array of texts is needed, not a number"),
        ('["a", "b,c"]', "line 3: server 'b,c': no host name"),
        ('"a,unix:/x"', "line 3: server 'a,unix:/x': unix: and exec: take the whole rest"),
        ('["qmtps://a", "b"]', "line 3: server b:209: what qmtps://a:6209 gets under TLS"),
        ('["a", "-"]', "line 3: server -: what tcpclient has opened is one server"),
    ],
)
def test_a_list_in_a_file_that_makes_no_sense(path: Path, written: str, says: str) -> None:
    """With the line that it stands on."""
    assert refused(path, f'[[route]]\nmaildir = "M"\nserver = {written}\n').startswith(says)
