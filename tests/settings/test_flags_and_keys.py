"""Each setting, once: flag, key, field, and the way between a text, TOML and a value."""

from __future__ import annotations

import os
import tomllib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maildirqmtp.errors import ConfigError
from maildirqmtp.forwarder.route import BounceMethod, BounceVia, Route
from maildirqmtp.pipeline.timeouts import MAX_SECONDS
from maildirqmtp.settings import flags_and_keys
from maildirqmtp.settings.command_line import make_parser, parse
from maildirqmtp.settings.config import Config
from maildirqmtp.settings.flags_and_keys import Setting
from maildirqmtp.settings.types import expanded, quoted, unexpanded
from maildirqmtp.transport.endpoint import TcpEndpoint
from maildirqmtp.transport.tls_options import Tls

ALL = {setting.key: setting for setting in (*flags_and_keys.ROUTE, *flags_and_keys.PROCESS)}
KEYS = list(ALL)
PLAIN = Route(b"M", TcpEndpoint("h"))


def through_toml(setting: Setting[Any], value: Any) -> Any:
    """Show a value and read it back, as a configuration file would."""
    read = tomllib.loads(f"x = {setting.type.to_toml(value)}")["x"]
    return setting.type.from_toml(read, setting.key)


def make(**values: Any) -> Route:
    """Make a route of these values by field, and of the necessary ones."""
    if isinstance(server := values.pop("server", "h"), str):
        server = (server,)
    return flags_and_keys.make_route({"maildir": b"M", "server": server} | values)


# The table


def test_no_key_twice() -> None:
    """Else one of them would be read and the other forgotten."""
    everything = (
        *flags_and_keys.ROUTE,
        *flags_and_keys.PROCESS,
        flags_and_keys.MAILDIR,
        flags_and_keys.SERVER,
    )
    keys = [setting.key for setting in (*everything, flags_and_keys.PREFIX)]
    assert len(keys) == len(set(keys))


@pytest.mark.parametrize("key", KEYS)
def test_every_setting_is_a_flag(key: str) -> None:
    """What the file can say, the command line can, in the same words."""
    (action,) = [a for a in make_parser()._actions if f"--{key}" in a.option_strings]
    assert action.dest == ALL[key].field
    shown = " ".join(make_parser().format_help().split())
    assert ALL[key].described in shown
    assert "{" not in shown


@pytest.mark.parametrize("key", KEYS)
def test_every_setting_has_a_value(key: str) -> None:
    """Of a route, or of the process: what `--check-config` cannot show would be lost by it."""
    if ALL[key] in flags_and_keys.PROCESS:
        assert key in ("verbose", "quiet") or hasattr(Config((PLAIN,)), ALL[key].field)
        return
    route = make(server="qmtps://h", tls_pins=(bytes(32),))
    assert key == "port" or ALL[key].field in flags_and_keys.route_values(route)


def test_every_field_has_a_setting() -> None:
    """Two are the protocol's and nobody's to change."""
    set_by = {
        "maildir",
        "prefix",
        "server",
        "fallback_servers",
        "window_messages",
        "window_bytes",
        "tls",
    }
    set_by |= {setting.field for setting in flags_and_keys.ROUTE}
    assert set(Route._fields) - set_by == {"grace_s", "session_s"}


@pytest.mark.parametrize("key", [key for key in KEYS if "{default}" in ALL[key].help])
def test_the_default_that_is_shown_holds(key: str) -> None:
    """It is read off the route, and the flag would understand it."""
    setting = ALL[key]
    assert setting.default is not None
    text = setting.type.to_text(setting.default)
    assert f"({text})" in setting.described
    value = setting.from_flag(text)
    assert value == setting.default
    assert make(**{setting.field: value}) == PLAIN


# Values of TOML

ADDRESS = "a text"
WRONG: dict[str, list[Any]] = {
    "port": ["209", 2.5, True, [], {}],
    "window": [2.5, True, [1], {}],
    "connect-timeout": [True, [], {}, ["60s"]],
    "lifetime": [False, []],
    "sent": [1, True, ["M"]],
    "failed": [1.5],
    "sender": [1, ["s@x"]],
    "recipient": [1, [1], ["a@b", 1], [["a@b"]], {}],
    "bounce": ["true", 1, 0],
    "max-bounces": ["100", 1.0, True],
    "bounce-via": [True, ["server"]],
    "sendmail": [1, ["sendmail"]],
    "cur": ["yes", 1],
    "hostname": [1, ["h"]],
    "tls-ca": [True, 1, ["ca.pem"]],
    "tls-pin": [1, [1], {}],
    "rescan": [True, {}],
    "metrics-file": [True],
    "metrics-listen": [9209, ["127.0.0.1:1"]],
    "log-format": [True, 1, ["json"]],
    "health-listen": [8080, True, ["0.0.0.0:1"]],
    "json": ["true"],
    "verbose": [1],
    "quiet": ["no"],
}


@pytest.mark.parametrize(("key", "value"), [(k, v) for k, vs in WRONG.items() for v in vs])
def test_a_value_of_the_wrong_type(key: str, value: Any) -> None:
    """`bounce = "false"` would be true, `port = true` would be 1."""
    setting = ALL[key]
    with pytest.raises(ConfigError, match=f"^{key}: .*needed, not (a |an |true or false)"):
        setting.type.from_toml(value, key)


def test_a_date_is_called_a_date() -> None:
    """TOML has them, we have no use for them."""
    value = tomllib.loads("x = 2026-01-31")["x"]
    with pytest.raises(ConfigError, match=r"rescan: a time .*, not a date or time"):
        ALL["rescan"].type.from_toml(value, "rescan")


RIGHT: list[tuple[str, Any, Any]] = [
    ("port", 2009, 2009),
    ("window", 100, (100, 32 << 20)),
    ("window", "100", (100, 32 << 20)),
    ("window", "100,1k", (100, 1024)),
    ("connect-timeout", "2m", 120.0),
    ("connect-timeout", 90, 90.0),
    ("connect-timeout", 0.25, 0.25),
    ("lifetime", 0, 0.0),
    ("lifetime", "0", 0.0),
    ("sent", "Sent", b"Sent"),
    ("sender", "", b""),
    ("recipient", [], ()),
    ("recipient", "a@b", (b"a@b",)),
    ("recipient", ["a@b", "\u00fc@d"], (b"a@b", "\u00fc@d".encode())),
    ("bounce", False, False),
    ("max-bounces", 0, 0),
    ("bounce-via", "maildir:/B", BounceVia(BounceMethod.MAILDIR, b"/B")),
    ("bounce-via", "server", BounceVia(BounceMethod.SERVER)),
    ("sendmail", "'/opt/my mta' -C x", (b"/opt/my mta", b"-C", b"x")),
    ("hostname", "mx-1.example.org", "mx-1.example.org"),
    ("metrics-listen", "127.0.0.1:9209", ("127.0.0.1", 9209)),
    ("metrics-listen", "[::1]:9209", ("::1", 9209)),
    ("metrics-listen", "localhost:1", ("localhost", 1)),
    ("metrics-listen", "127.9.9.9:1", ("127.9.9.9", 1)),
    ("health-listen", "0.0.0.0:8080", ("0.0.0.0", 8080)),
    ("health-listen", "[::]:8080", ("::", 8080)),
    ("health-listen", "192.0.2.1:8080", ("192.0.2.1", 8080)),
    ("health-listen", "localhost:8080", ("localhost", 8080)),
    ("log-format", "text", "text"),
    ("log-format", "json", "json"),
]


@pytest.mark.parametrize(("key", "written", "value"), RIGHT)
def test_values(key: str, written: Any, value: Any) -> None:
    """What is written, and what it comes to; and back."""
    read = ALL[key].type.from_toml(written, key)
    assert read == value
    assert type(read) is type(value)
    assert through_toml(ALL[key], read) == value


REFUSED: list[tuple[str, Any, str]] = [
    ("port", 0, "1 to 65535"),
    ("port", -1, "1 to 65535"),
    ("port", 65_536, "1 to 65535"),
    ("port", 1 << 80, "too large"),
    ("window", 0, "MESSAGES"),
    ("window", -5, "MESSAGES"),
    ("window", "1,0", "at least one byte"),
    ("max-bounces", -1, "a number is needed"),
    ("max-bounces", 10**9, "a number is needed"),
    ("connect-timeout", 0, "more than 0 seconds are needed, not 0"),
    ("connect-timeout", "0s", "more than 0 seconds are needed, not '0s'"),
    ("rescan", 0.0, "more than 0 seconds"),
    ("idle-timeout", "0", "more than 0 seconds"),
    ("rescan", -1, "negative"),
    ("rescan", float("nan"), "negative, or endless"),
    ("rescan", float("inf"), "negative, or endless"),
    ("rescan", 1 << 80, "the number is too large"),
    ("lifetime", 4_000_000_000, "4000000000 is more than 100 years"),
    ("lifetime", 1e300, "1e+300 is more than 100 years"),
    ("lifetime", "200000w", "'200000w' is more than 100 years"),
    ("lifetime", -1e300, "negative, or endless"),
    ("rescan", "1 m", "a time is a number"),
    ("lifetime", "", "a time is a number"),
    ("sent", "", "a path is needed"),
    ("sent", "a\0b", "a path is needed"),
    ("failed", "~nobody-of-this-name/x", "no such user; write ./~"),
    ("bounce-via", "maildir:", "sendmail, server or maildir:DIR"),
    ("bounce-via", "maildir:~nobody-of-this-name", "no such user"),
    ("sendmail", "'", "No closing quotation"),
    ("sendmail", " ", "a command is needed"),
    ("sender", "a\nb", "has a LF"),
    ("recipient", [""], "must not be empty"),
    ("recipient", "", "must not be empty"),
    *(
        ("hostname", name, "a name as in mail.example.org is needed")
        for name in ("", ".", "-", "mx.", "a..b", "a b", "a\nb", "m\u00fcll.de", "a@b", "x" * 254)
    ),
    ("metrics-listen", "0.0.0.0:9209", "not loopback; write 127.0.0.1"),
    ("metrics-listen", "[::]:9209", "not loopback"),
    ("metrics-listen", "192.0.2.1:9209", "not loopback"),
    ("metrics-listen", "localhost.example.org:1", "not loopback"),
    ("metrics-listen", "127.0.0.1", "HOST:PORT"),
    ("metrics-listen", ":9209", "HOST:PORT"),
    ("metrics-listen", "::1:9209", "HOST:PORT"),
    ("metrics-listen", "qmtp://127.0.0.1:9209", "HOST:PORT"),
    ("metrics-listen", "127.0.0.1:0", "HOST:PORT"),
    ("log-format", "JSON", "text or json is needed, not 'JSON'"),
    ("log-format", "", "text or json is needed"),
    ("health-listen", "8080", "HOST:PORT"),
    ("health-listen", ":8080", "HOST:PORT"),
    ("health-listen", ":::8080", "HOST:PORT"),
    ("health-listen", "0.0.0.0", "HOST:PORT"),
    ("health-listen", "0.0.0.0:0", "HOST:PORT"),
    ("health-listen", "0.0.0.0:65536", "HOST:PORT"),
    ("health-listen", "*:8080", "write 0.0.0.0 or [::]"),
    ("health-listen", "mx.example.org:8080", "mx.example.org is no address"),
]


@pytest.mark.parametrize(("key", "value", "said"), REFUSED)
def test_values_that_cannot_be(key: str, value: Any, said: str) -> None:
    """Found at the start and not in the night in which they would matter."""
    with pytest.raises(ConfigError) as raised:
        ALL[key].type.from_toml(value, key)
    assert str(raised.value).startswith(f"{key}: ")
    assert said in str(raised.value)


# Home directories


def test_a_tilde_is_home_in_a_file_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """No shell reads the file; one has read the flags."""
    monkeypatch.setenv("HOME", "/home/ann")
    assert ALL["sent"].type.from_toml("~/Sent", "x") == b"/home/ann/Sent"
    assert ALL["bounce-via"].type.from_toml("maildir:~/B", "x").maildir == b"/home/ann/B"
    assert ALL["sendmail"].type.from_toml("~/bin/mta -C '~'", "x") == (
        b"/home/ann/bin/mta",
        b"-C",
        b"~",
    )
    assert ALL["sent"].from_flag("~/Sent") == b"~/Sent"
    assert flags_and_keys.PREFIX.type.from_toml("~", "x") == b"~"


def test_what_is_really_called_so_is_shown_so_that_it_stays() -> None:
    """A flag may name a directory `~`."""
    assert unexpanded("~/x") == "./~/x"
    assert expanded("./~/x", "x") == "./~/x"
    assert ALL["sent"].type.to_toml(b"~x") == '"./~x"'


# Quoting


@given(st.text(st.characters(codec="utf-8")))
def test_every_text_can_be_written(text: str) -> None:
    """In one line that a terminal does not obey."""
    shown = quoted(text)
    assert tomllib.loads(f"x = {shown}") == {"x": text}
    assert shown.isprintable()


def test_what_is_no_utf8_cannot() -> None:
    """TOML has no way to say it; a flag has."""
    with pytest.raises(ConfigError, match="no UTF-8"):
        ALL["sent"].type.to_toml(b"\xff")


SECONDS = st.one_of(
    st.floats(min_value=0, max_value=MAX_SECONDS),
    st.integers(0, 3 * 10**9).map(float),
    st.builds(
        lambda n, unit: n * float(unit), st.integers(0, 36_000), st.sampled_from([60, 86_400])
    ),
)


@given(SECONDS)
def test_every_time_comes_back(seconds: float) -> None:
    """To the last bit: HUP compares routes, and one that differs is begun anew."""
    assert through_toml(ALL["lifetime"], seconds) == seconds


@given(st.integers(1, 10**9 - 1), st.integers(1, 10**15 - 1), st.sampled_from([1, 1024, 1 << 30]))
def test_every_window_comes_back(messages: int, size: int, unit: int) -> None:
    """As the times do."""
    window = (messages, size * unit)
    assert through_toml(ALL["window"], window) == window


@given(st.lists(st.text(st.characters(exclude_characters="\0", codec="utf-8")), min_size=1))
def test_every_command_comes_back(words: list[str]) -> None:
    """With blanks and quotes in its words."""
    if not words[0] or words[0].startswith("~"):
        words[0] = "x"
    command = tuple(map(os.fsencode, words))
    assert through_toml(ALL["sendmail"], command) == command


# What a route is made of


def test_a_route_of_nothing_but_the_necessary() -> None:
    """Everything else is the route's own default."""
    assert make() == PLAIN


def test_the_port_is_for_servers_without() -> None:
    """As on the command line."""
    assert make(port=5).server == TcpEndpoint("h", 5)
    assert make(server="h:6", port=5).server == TcpEndpoint("h", 6)


def test_the_settings_of_tls_are_one_value() -> None:
    """And what it holds is shown again, setting by setting."""
    pin = bytes(range(32))
    values = {"tls_ca": b"/ca", "tls_cert": b"/c", "tls_key": b"/k", "tls_pins": (pin,)}
    made = make(server="qmtps://h", **values)
    assert made.server == TcpEndpoint("h", 6_209, tls=True)
    assert made.tls == Tls(b"/ca", b"/c", b"/k", (pin,))
    assert values.items() <= flags_and_keys.route_values(made).items()
    assert not values.keys() & flags_and_keys.route_values(PLAIN).keys()
    part = flags_and_keys.route_values(make(server="qmtps://h", tls_pins=(pin,)))
    assert [part[field] for field in values] == [None, None, None, (pin,)]


def test_a_route_is_made_of_its_own_values() -> None:
    """`--check-config` shows them; what it shows is what holds."""
    made = make(server="qmtps://h", window=(7, 8), tls_pins=(bytes(32),), recipients=(b"a@b",))
    assert flags_and_keys.make_route(flags_and_keys.route_values(made)) == made
    several = make(server=("qmtps://h", "exec:ssh mx", "localhost"), tls_pins=(bytes(32),))
    assert flags_and_keys.make_route(flags_and_keys.route_values(several)) == several


def test_pins_come_back() -> None:
    """One, or several while the server changes its key."""
    pin = ALL["tls-pin"]
    for pins in ((bytes(32),), (bytes(32), bytes(range(32)))):
        assert through_toml(pin, pins) == pins
    assert pin.type.from_toml(f"sha256:{'00' * 32}", "x") == (bytes(32),)
    line = parse([f"--tls-pin=sha256:{'00' * 32}", "M", f"--tls-pin=sha256:{'01' * 32}"])
    assert line.values(flags_and_keys.ROUTE) == {"tls_pins": (bytes(32), b"\1" * 32)}


def test_tls_is_asked_for_of_a_server_that_has_it() -> None:
    """`server = "h"` below `tls-ca` is a slip that must not send mail in plain."""
    with pytest.raises(ConfigError, match="write qmtps://NAME for TLS"):
        make(tls_ca=b"/ca")


def test_only_flags_that_were_given_count() -> None:
    """Else every default of a flag would beat the file."""
    assert parse([]).values((*flags_and_keys.ROUTE, *flags_and_keys.PROCESS)) == {}
    words = ["--cur", "--no-bounce", "--sender=", "--max-bounces=0", "--recipient=a@b"]
    assert parse(words).values(flags_and_keys.ROUTE) == {
        "include_cur": True,
        "bounce": False,
        "sender": b"",
        "max_bounces": 0,
        "recipients": (b"a@b",),
    }
