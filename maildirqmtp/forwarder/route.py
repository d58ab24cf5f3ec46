"""A route: a maildir, a prefix, a server, and the policy between them.

Values only; `maildirqmtp.settings` makes them from flags and configuration files.
"""

# No postponed annotations, and no string ones: a named tuple compiles each of these, and the first
# takes 9 of the 130 million instructions of a run that finds its maildir empty.
import os
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

from maildirqmtp.pipeline.timeouts import (
    CONNECT_TIMEOUT_S,
    FENCE_GRACE_S,
    IDLE_S,
    RESPONSE_TIMEOUT_S,
    SESSION_S,
    WRITE_TIMEOUT_S,
)
from maildirqmtp.pipeline.window import WINDOW_BYTES, WINDOW_MESSAGES
from maildirqmtp.transport.endpoint import Endpoint

if TYPE_CHECKING:
    from maildirqmtp.maildir.shard import Shard
    from maildirqmtp.transport.tls_options import Tls
else:
    Tls = object  # a dataclass, which takes longer to import than such a run
    Shard = object  # rarely needed

#: Seconds after which a deferral counts as a failure: 14 days.
LIFETIME_S = 14 * 86_400.0
#: Seconds after which a watched maildir is scanned, whatever events the kernel reports.
RESCAN_S = 30.0
#: Connections at the same time, for servers whose answers take long.
CONNECTIONS = 1
#: Connections to one server, of all routes of a process together.
SERVER_CONNECTIONS = 20
#: Seconds that a message in doubt at one server of several waits for that server.
IN_DOUBT_WAIT_S = 300.0
#: Bytes above which a message is large, and lets the others go first.
LARGE_BYTES = 256 << 10
#: Most bounces in one run, or in an hour of it.
MAX_BOUNCES = 100
#: The command that takes bounces, and its first arguments.
SENDMAIL = (b"/usr/sbin/sendmail",)


class BounceMethod(Enum):
    """Where a DSN goes: to a command, through the route's own server, or into a maildir."""

    SENDMAIL = "sendmail"
    SERVER = "server"
    MAILDIR = "maildir"


class BounceVia(NamedTuple):
    """Where a DSN goes; `maildir` is set with `BounceMethod.MAILDIR` only."""

    method: BounceMethod = BounceMethod.SENDMAIL
    maildir: bytes | None = None


class Route(NamedTuple):
    """What to forward, where to, and how.

    `sender` and `recipients`, if given, replace what the messages' trace lines
    say; `default_sender` is used if these give no sender.
    `failed` None means `.Failed` inside the maildir; `sent` None means that
    accepted messages are removed. `sendmail` is the command that takes DSNs, and
    its first arguments. `hostname` is the name of this host in DSNs, None for its
    fully qualified one. `warn_after_s` is the age at which senders are told that messages
    wait, None for never. `keep_sent_s` and `keep_failed_s` are the ages at which messages are
    removed from `sent` and the failed maildir, None for never. `tls` None means that servers with
    TLS are verified by this system's certificate authorities. `one_recipient`: the server
    answers once per package, so that each recipient gets a package of its own.
    Messages above `large_bytes` let the others go first; those above `max_bytes` are held.
    `shard` is the part of the messages that this route forwards, None for all.

    `server` is the preferred one; `fallback_servers` are the others, in the order in which they
    are tried. `tls` is for those of them that have TLS. A message in doubt at one of them waits
    for that server, `in_doubt_wait_s` seconds at most.
    """

    maildir: bytes
    server: Endpoint
    prefix: bytes = b""
    sender: bytes | None = None
    default_sender: bytes | None = None
    recipients: tuple[bytes, ...] = ()
    include_cur: bool = False
    sent: bytes | None = None
    failed: bytes | None = None
    keep_sent_s: float | None = None
    keep_failed_s: float | None = None
    bounce: bool = False
    bounce_via: BounceVia = BounceVia()
    sendmail: tuple[bytes, ...] = SENDMAIL
    hostname: str | None = None
    max_bounces: int = MAX_BOUNCES
    warn_after_s: float | None = None
    lifetime_s: float = LIFETIME_S
    window_messages: int = WINDOW_MESSAGES
    window_bytes: int = WINDOW_BYTES
    connect_timeout_s: float = CONNECT_TIMEOUT_S
    write_timeout_s: float = WRITE_TIMEOUT_S
    response_timeout_s: float = RESPONSE_TIMEOUT_S
    grace_s: float = FENCE_GRACE_S
    session_s: float = SESSION_S
    rescan_s: float = RESCAN_S
    idle_s: float = IDLE_S
    connections: int = CONNECTIONS
    server_connections: int = SERVER_CONNECTIONS
    one_recipient: bool = False
    large_bytes: int = LARGE_BYTES
    max_bytes: int | None = None
    shard: Shard | None = None
    tls: Tls | None = None
    fallback_servers: tuple[Endpoint, ...] = ()
    in_doubt_wait_s: float = IN_DOUBT_WAIT_S

    @property
    def failed_maildir(self) -> bytes:
        """Where failed messages go."""
        return os.path.join(self.maildir, b".Failed") if self.failed is None else self.failed

    @property
    def servers(self) -> tuple[Endpoint, ...]:
        """All servers of the route, the preferred one first."""
        return (self.server, *self.fallback_servers)
