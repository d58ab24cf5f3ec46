"""A route: a maildir, a prefix, a server, and the policy between them.

Values only; where they come from (flags, a configuration file) is for the edge.
"""

from maildirqmtp.errors import ConfigError
from maildirqmtp.values import Value

#: TCP port of QMTP (qmtp.txt, section 1).
QMTP_PORT = 209
#: Messages in flight at once.
WINDOW_MESSAGES = 4_096
#: Bytes in flight at once.
WINDOW_BYTES = 32 << 20
#: Seconds for each address of the server.
CONNECT_TIMEOUT_S = 60.0
#: Seconds without a byte taken by the server.
WRITE_TIMEOUT_S = 73.0
#: Seconds from a package's last byte to its last response.
RESPONSE_TIMEOUT_S = 3_600.0
#: Seconds after which a connection takes no new package; the protocol's hour less ten minutes.
SESSION_S = 3_000.0
#: Seconds for the other responses of a package after its first, from a server not yet known.
GRACE_S = 10.0
#: Seconds after which a deferral counts as a failure: 14 days.
LIFETIME_S = 14 * 86_400.0
#: Seconds after which a watched maildir is looked at, whatever the kernel tells of it.
RESCAN_S = 30.0
#: Seconds after which a connection with nothing to do is closed.
IDLE_S = 60.0
#: Connections at the same time, for servers whose answers take long.
CONNECTIONS = 1
#: Bounces in one run.
MAX_BOUNCES = 100
#: The command that takes bounces, and its first arguments.
SENDMAIL = (b"/usr/sbin/sendmail",)


class Server(Value):
    """A QMTP server on TCP."""

    __slots__ = ("host", "port")

    def __init__(self, host: str, port: int = QMTP_PORT) -> None:
        self.host = host
        self.port = port

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Route(Value):
    """What to forward, where to, and how.

    `sender` and `recipients` replace what the messages' own lines say, where
    they are given. `failed` None means `.Failed` inside the maildir; `sent`
    None means that accepted messages are removed. `bounce_via` is `sendmail`
    (then `sendmail` is the command and its first arguments), `server`, or
    `maildir:` and a path.
    """

    __slots__ = (
        "bounce",
        "bounce_via",
        "connect_timeout_s",
        "connections",
        "failed",
        "grace_s",
        "idle_s",
        "include_cur",
        "lifetime_s",
        "maildir",
        "max_bounces",
        "prefix",
        "recipients",
        "rescan_s",
        "response_timeout_s",
        "sender",
        "sendmail",
        "sent",
        "server",
        "session_s",
        "window_bytes",
        "window_messages",
        "write_timeout_s",
    )

    def __init__(
        self,
        maildir: bytes,
        server: Server,
        *,
        prefix: bytes = b"",
        sender: bytes | None = None,
        recipients: tuple[bytes, ...] = (),
        include_cur: bool = False,
        sent: bytes | None = None,
        failed: bytes | None = None,
        bounce: bool = False,
        bounce_via: str = "sendmail",
        sendmail: tuple[bytes, ...] = SENDMAIL,
        max_bounces: int = MAX_BOUNCES,
        lifetime_s: float = LIFETIME_S,
        window_messages: int = WINDOW_MESSAGES,
        window_bytes: int = WINDOW_BYTES,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        write_timeout_s: float = WRITE_TIMEOUT_S,
        response_timeout_s: float = RESPONSE_TIMEOUT_S,
        grace_s: float = GRACE_S,
        session_s: float = SESSION_S,
        rescan_s: float = RESCAN_S,
        idle_s: float = IDLE_S,
        connections: int = CONNECTIONS,
    ) -> None:
        self.maildir = maildir
        self.server = server
        self.prefix = prefix
        self.sender = sender
        self.recipients = recipients
        self.include_cur = include_cur
        self.sent = sent
        self.failed = failed
        self.bounce = bounce
        self.bounce_via = bounce_via
        self.sendmail = sendmail
        self.max_bounces = max_bounces
        self.lifetime_s = lifetime_s
        self.window_messages = window_messages
        self.window_bytes = window_bytes
        self.connect_timeout_s = connect_timeout_s
        self.write_timeout_s = write_timeout_s
        self.response_timeout_s = response_timeout_s
        self.grace_s = grace_s
        self.session_s = session_s
        self.rescan_s = rescan_s
        self.idle_s = idle_s
        self.connections = connections


def parse_server(text: str, default_port: int = QMTP_PORT) -> Server:
    """Read SERVER: `name`, `name:port`, `[::1]:port` or `qmtp://` and one of these.

    Raises `ConfigError`, which says what is wrong and what is understood.
    """
    rest = text.removeprefix("qmtp://")
    if rest != text:
        rest = rest.removesuffix("/")
    elif text == "-" or "://" in text or text.startswith(("unix:", "exec:")):
        raise ConfigError(
            f"server {text!r}: this version reaches servers over TCP only; "
            f"write NAME, NAME:PORT, [::1]:PORT or qmtp://NAME[:PORT]"
        )
    if rest.startswith("["):
        host, bracket, port = rest[1:].partition("]")
        if not bracket or (port and not port.startswith(":")):
            raise ConfigError(f"server {text!r}: an IPv6 address is written [::1] or [::1]:PORT")
        port = port[1:] if port else ""
        has_port = rest.endswith(":") or bool(port)
    elif rest.count(":") > 1:
        host, port, has_port = rest, "", False
    else:
        host, colon, port = rest.partition(":")
        has_port = bool(colon)
    if not host or any(c.isspace() or not c.isprintable() or c in "/@[]" for c in host):
        raise ConfigError(f"server {text!r}: no host name; write NAME, NAME:PORT or [::1]:PORT")
    if ":" in host:
        _check_ipv6(host, text)
    return Server(host, parse_port(port, f"server {text!r}") if has_port else default_port)


def _check_ipv6(host: str, text: str) -> None:
    """Refuse what would otherwise be looked up as a name, as in `name:209:`."""
    from ipaddress import IPv6Address

    try:
        IPv6Address(host)
    except ValueError:
        raise ConfigError(f"server {text!r}: {host!r} is no IPv6 address") from None


def parse_port(text: str, where: str = "port") -> int:
    """Read a TCP port, 1 to 65535. Raises `ConfigError`."""
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and 0 < int(text) < 65_536):
        raise ConfigError(f"{where}: a port is a number from 1 to 65535, not {text!r}")
    return int(text)


#: Seconds: what the kernel and Python can wait for, and more than anybody means.
MAX_SECONDS = 100 * 365 * 86_400.0
_SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}
_BYTES = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30}


def parse_seconds(text: str, where: str = "time") -> float:
    """Read a time: seconds, or with a unit as in `90s 5m 2h 14d 1w`. Raises `ConfigError`."""
    number, unit = (text[:-1], text[-1]) if text[-1:] in _SECONDS else (text, "s")
    if not (number.isascii() and number.replace(".", "", 1).isdigit() and len(number) <= 12):
        raise ConfigError(f"{where}: a time is a number with s, m, h, d or w, not {text!r}")
    seconds = float(number) * _SECONDS[unit]
    if seconds > MAX_SECONDS:
        raise ConfigError(f"{where}: {text!r} is more than 100 years")
    return seconds


def parse_bytes(text: str, where: str = "size") -> int:
    """Read a size: bytes, or with a unit as in `64k 32M 1G` (powers of 1,024). `ConfigError`."""
    number, unit = (text[:-1], text[-1].lower()) if text[-1:].lower() in _BYTES else (text, "")
    if not (number.isascii() and number.isdigit() and len(number) <= 15):
        raise ConfigError(f"{where}: a size is a number of bytes or with k, M or G, not {text!r}")
    return int(number) * _BYTES.get(unit, 1)


def parse_window(text: str, where: str = "window") -> tuple[int, int]:
    """Read a window: `MESSAGES` or `MESSAGES,SIZE`. Raises `ConfigError`."""
    count, comma, size = text.partition(",")
    if not (count.isascii() and count.isdigit() and len(count) <= 9 and int(count) > 0):
        raise ConfigError(f"{where}: MESSAGES or MESSAGES,SIZE as in 4096,32M, not {text!r}")
    window_bytes = parse_bytes(size, where) if comma else WINDOW_BYTES
    if window_bytes < 1:
        raise ConfigError(f"{where}: at least one byte, not {text!r}")
    return int(count), window_bytes
