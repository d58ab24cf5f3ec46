"""A route: a maildir, a prefix, a server, and the policy between them.

Values only; where they come from (flags, a configuration file) is for the edge.
"""

from maildirqmtp.address import QMTP_PORT as QMTP_PORT
from maildirqmtp.address import Address as Address
from maildirqmtp.address import Server as Server
from maildirqmtp.address import Tls as Tls
from maildirqmtp.address import parse_port as parse_port
from maildirqmtp.address import parse_server as parse_server
from maildirqmtp.errors import ConfigError
from maildirqmtp.values import Value

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


class Route(Value):
    """What to forward, where to, and how.

    `sender` and `recipients` replace what the messages' own lines say, where
    they are given. `failed` None means `.Failed` inside the maildir; `sent`
    None means that accepted messages are removed. `bounce_via` is `sendmail`
    (then `sendmail` is the command and its first arguments), `server`, or
    `maildir:` and a path. `tls` None is TLS by this system's certificate
    authorities, where the server has it.
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
        "tls",
        "window_bytes",
        "window_messages",
        "write_timeout_s",
    )

    def __init__(
        self,
        maildir: bytes,
        server: Address,
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
        tls: Tls | None = None,
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
        self.tls = tls


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
