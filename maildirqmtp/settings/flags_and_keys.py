"""The table of settings: each flag of the command line and each key of a file, once.

A new setting is a field with its default in `Route` (or in `Config`) and a line
here. From these come the flag, the key, the help, `--check-config` and the test
that the documents mention it.

    text of a flag, TOML value -> values by field -> Route, Config
"""

# No postponed annotations; see `forwarder.route`.
from collections.abc import Iterable
from typing import Any, Generic, NamedTuple, TypeVar

from maildirqmtp.forwarder.route import Route
from maildirqmtp.pipeline.window import WINDOW_BYTES, WINDOW_MESSAGES
from maildirqmtp.settings.mail_types import (
    BounceViaType,
    ListenType,
    PinType,
    PortType,
    ServersType,
    ShardType,
    ShellWordsType,
    SizeType,
    WindowType,
)
from maildirqmtp.settings.types import (
    AddressType,
    BytesType,
    ChoiceType,
    CountType,
    DurationType,
    HostNameType,
    ListType,
    NumberType,
    PathType,
    SwitchType,
    ValueType,
)
from maildirqmtp.transport.endpoint import (
    QMTP_PORT,
    QMTPS_PORT,
    Endpoint,
    TcpEndpoint,
    parse_endpoint,
)

T = TypeVar("T")

#: The values given on a command line or in a table of a file, by field. A field that was not
#: given is absent.
Values = dict[str, Any]


class Setting(NamedTuple, Generic[T]):
    """A setting: `--key` on the command line, `key` in a file, `field` of `Route` or `Config`.

    `help` may hold `{default}`. `short` is the flag of one letter, if there is one.
    """

    key: str
    field: str
    type: ValueType[T]
    help: str
    short: str = ""

    @property
    def flag(self) -> str:
        """The long flag."""
        return f"--{self.key}"

    @property
    def default(self) -> T | None:
        """The value if none is given; None if there is none, or it depends on the form."""
        found: T | None = _DEFAULTS.get(self.field)
        return found

    @property
    def described(self) -> str:
        """The help, with the default in it."""
        if self.default is None or "{default}" not in self.help:
            return self.help
        return self.help.replace("{default}", self.type.to_text(self.default))

    def from_flag(self, text: str) -> T:
        """Parse the flag's text. Raises `ConfigError` if it is wrong."""
        return self.type.parse(text, self.flag)


#: Least seconds that failed messages are kept: they may be the only copies, and somebody who
#: writes `keep-failed = 30` means days.
KEEP_FAILED_LEAST_S = 86_400.0

#: Settings that are not fields of `Route` are parts of its fields; see `make_route`.
_DEFAULTS: Values = {
    **Route._field_defaults,
    "port": QMTP_PORT,
    "window": (WINDOW_MESSAGES, WINDOW_BYTES),
}

#: The keys of a `[[route]]` that are arguments on the command line.
MAILDIR = Setting("maildir", "maildir", PathType("DIR"), "the maildir that is forwarded")
PREFIX = Setting("prefix", "prefix", BytesType("PREFIX"), "what recipients begin with")
SERVER = Setting(
    "server", "server", ServersType("SERVER"), "where messages go, in the order of preference"
)

SENDER = Setting(
    "sender", "sender", AddressType("sender"), "envelope sender, instead of what messages say"
)
_DEFAULT_SENDER = Setting(
    "default-sender",
    "default_sender",
    AddressType("sender"),
    "envelope sender if a message names none",
)
RECIPIENT = Setting(
    "recipient",
    "recipients",
    ListType(AddressType("recipient")),
    "envelope recipient, instead of what messages say; may be given again",
)
SENT = Setting(
    "sent", "sent", PathType("MAILDIR"), "move accepted messages there instead of removing them"
)
FAILED = Setting("failed", "failed", PathType("MAILDIR"), "where failed messages go (DIR/.Failed)")
KEEP_SENT = Setting(
    "keep-sent",
    "keep_sent_s",
    DurationType(),
    "remove mail that has been in --sent this long (never)",
)
KEEP_FAILED = Setting(
    "keep-failed",
    "keep_failed_s",
    DurationType(least_s=KEEP_FAILED_LEAST_S),
    "remove mail that has been in the failed maildir this long, 1d or more (never)",
)
BOUNCE_VIA = Setting(
    "bounce-via",
    "bounce_via",
    BounceViaType("HOW"),
    "sendmail, server or maildir:DIR ({default})",
)
_BOUNCE = Setting(
    "bounce",
    "bounce",
    SwitchType(both_ways=True),
    "tell senders of failures, or not (with PREFIX: yes; else: no)",
)
WARN_AFTER = Setting(
    "warn-after",
    "warn_after_s",
    DurationType(),
    "tell senders once of messages that wait this long (4h is usual; never)",
)
_CUR = Setting(
    "cur",
    "include_cur",
    SwitchType(both_ways=True),
    "take messages from cur/, too (with PREFIX: yes; else: no); trash and drafts stay",
)
_PORT = Setting(
    "port",
    "port",
    PortType("N"),
    f"port, if SERVER has none ({{default}}); with qmtps: {QMTPS_PORT}",
)
_RESCAN = Setting(
    "rescan", "rescan_s", DurationType(), "look for messages at least this often ({default})"
)
_IDLE_TIMEOUT = Setting(
    "idle-timeout", "idle_s", DurationType(), "close an idle connection ({default})"
)
_SERVER_CONNECTIONS = Setting(
    "server-connections",
    "server_connections",
    CountType("N", 10_000),
    "connections to one server, of all routes together ({default})",
)

SHARD = Setting(
    "shard",
    "shard",
    ShardType("K/N"),
    "only part K (from 0) of N of the messages, by their names",
)

#: The settings of a route besides its maildir, prefix and server, in the order of the help.
ROUTE: tuple[Setting[Any], ...] = (
    _PORT,
    Setting(
        "window",
        "window",
        WindowType("N[,SIZE]"),
        "most messages and bytes in flight ({default})",
    ),
    Setting(
        "connect-timeout",
        "connect_timeout_s",
        DurationType(),
        "for each address of the server ({default})",
    ),
    Setting(
        "write-timeout",
        "write_timeout_s",
        DurationType(),
        "without a byte taken by the server ({default})",
    ),
    Setting(
        "response-timeout",
        "response_timeout_s",
        DurationType(),
        "without an answer from the server, while it owes one ({default})",
    ),
    Setting(
        "lifetime",
        "lifetime_s",
        DurationType(positive=False),
        "age at which a deferral counts as a failure ({default})",
    ),
    SENT,
    KEEP_SENT,
    FAILED,
    KEEP_FAILED,
    SENDER,
    _DEFAULT_SENDER,
    RECIPIENT,
    _BOUNCE,
    Setting(
        "max-bounces",
        "max_bounces",
        NumberType("N"),
        "bounces in a run, or an hour of it ({default}); then to the failed maildir",
    ),
    WARN_AFTER,
    BOUNCE_VIA,
    Setting(
        "sendmail",
        "sendmail",
        ShellWordsType("COMMAND"),
        "run as COMMAND -i -f '' -- SENDER ({default})",
    ),
    Setting(
        "hostname", "hostname", HostNameType("NAME"), "name in bounces (this host's full name)"
    ),
    _CUR,
    Setting(
        "connections",
        "connections",
        CountType("N"),
        "connections at the same time ({default})",
    ),
    _SERVER_CONNECTIONS,
    Setting(
        "in-doubt-wait",
        "in_doubt_wait_s",
        DurationType(positive=False),
        "for the one of several servers that may have a message, before it goes to another "
        "({default})",
    ),
    Setting(
        "large",
        "large_bytes",
        SizeType("SIZE"),
        "larger messages let the others go first ({default})",
    ),
    Setting(
        "max-size",
        "max_bytes",
        SizeType("SIZE"),
        "hold larger messages (none)",
    ),
    SHARD,
    Setting(
        "one-recipient",
        "one_recipient",
        SwitchType(),
        "a package for each recipient: the server answers once per package",
    ),
    Setting(
        "tls-ca",
        "tls_ca",
        PathType("FILE"),
        "authorities for the certificates of qmtps:// servers (this system's list)",
    ),
    Setting("tls-cert", "tls_cert", PathType("FILE"), "our certificate for a qmtps:// server"),
    Setting("tls-key", "tls_key", PathType("FILE"), "its key, if it is not in the same file"),
    Setting(
        "tls-pin",
        "tls_pins",
        ListType(PinType("PIN")),
        "sha256:DIGEST of the server's public key; vouches for it without --tls-ca",
    ),
    _RESCAN,
    _IDLE_TIMEOUT,
)

_METRICS_FILE = Setting(
    "metrics-file",
    "metrics_file",
    PathType("FILE"),
    "write metrics there, for Prometheus' textfiles",
)
_METRICS_LISTEN = Setting(
    "metrics-listen",
    "metrics_listen",
    ListenType("HOST:PORT", loopback_only=True),
    "serve metrics there, on loopback",
)
_HEALTH_LISTEN = Setting(
    "health-listen",
    "health_listen",
    ListenType("HOST:PORT"),
    "serve /livez, /readyz and /metrics there, at any address",
)
_LOG_FORMAT = Setting(
    "log-format",
    "log_format",
    ChoiceType("text", "json"),
    "lines of a daemon's log: text, or one JSON object a line",
)

#: The settings of the process, whatever its routes.
PROCESS: tuple[Setting[Any], ...] = (
    _METRICS_FILE,
    _METRICS_LISTEN,
    _HEALTH_LISTEN,
    _LOG_FORMAT,
    Setting("json", "json", SwitchType(), "write events to standard output, one object a line"),
    Setting("verbose", "verbose", SwitchType(), "a line for each recipient", "-v"),
    Setting("quiet", "quiet", SwitchType(), "errors only", "-q"),
)

#: The settings that only make sense in watch mode.
DAEMON_ONLY: tuple[Setting[Any], ...] = (
    _RESCAN,
    _IDLE_TIMEOUT,
    _SERVER_CONNECTIONS,
    _METRICS_FILE,
    _METRICS_LISTEN,
    _HEALTH_LISTEN,
    _LOG_FORMAT,
)


def prefix_defaults(classic: bool) -> Values:
    """Return the defaults that depend on the form: the classic one, with a prefix, or the other.

    The classic form is serialmail's, which bounces and takes read mail as well. The other
    form, tried on an inbox, must neither tell strangers of failures nor empty it.
    """
    return {_BOUNCE.field: classic, _CUR.field: classic}


def make_route(values: Values) -> Route:
    """Return a route, with defaults. Raises `ConfigError` if the server or its TLS is wrong."""
    rest = dict(values)
    texts, port = rest.pop(SERVER.field), rest.pop("port", None)
    if len(texts) == 1:
        servers: tuple[Endpoint, ...] = (parse_endpoint(texts[0], port),)
    else:
        from maildirqmtp.transport.server_list import parse_servers  # most routes have one server

        servers = parse_servers(texts, port)
    ca, cert, key = (rest.pop(f"tls_{part}", None) for part in ("ca", "cert", "key"))
    pins = rest.pop("tls_pins", ())
    tls = None
    if pins or not ca is cert is key is None:
        from maildirqmtp.transport.tls_options import make_tls  # a dataclass: not for each run

        over_tls = [one for one in servers if isinstance(one, TcpEndpoint) and one.tls]
        tls = make_tls((over_tls or servers)[0], ca, cert, key, pins)
    if "window" in rest:
        rest["window_messages"], rest["window_bytes"] = rest.pop("window")
    return Route(server=servers[0], fallback_servers=servers[1:], tls=tls, **rest)


def route_values(route: Route) -> Values:
    """Return the values that `make_route` makes this route of; those not set are None or empty."""
    values = route._asdict()
    del values["fallback_servers"]
    values[SERVER.field] = tuple([server.text for server in route.servers])
    values["window"] = route.window_messages, route.window_bytes
    tls = values.pop("tls")
    if tls is not None:
        values |= {"tls_ca": tls.ca, "tls_cert": tls.cert, "tls_key": tls.key}
        values["tls_pins"] = tls.pins
    return values


def verbosity(values: Values) -> int:
    """Return -1 for quiet, 1 for verbose, else 0."""
    return -1 if values.get("quiet") else int(values.get("verbose", False))


def by_key(settings: Iterable[Setting[Any]]) -> dict[str, Setting[Any]]:
    """Return settings by their keys."""
    return {setting.key: setting for setting in settings}
