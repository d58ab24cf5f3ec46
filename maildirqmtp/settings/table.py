"""The settings: each flag of the command line and key of a configuration file, once.

What a route is made of is in `ROUTE`, what the whole process has in `PROCESS`.
Adding a setting means a line here and a field in `Route` or `Config`; flag, key,
help, `--check-config` and their tests follow.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from maildirqmtp.forwarder import route
from maildirqmtp.settings.mail_types import (
    Address,
    Addresses,
    BounceVia,
    Command,
    Loopback,
    Port,
    TlsFile,
    TlsPins,
    Window,
)
from maildirqmtp.settings.types import (
    BothWays,
    Count,
    Number,
    Path,
    PositiveTime,
    Prefix,
    Setting,
    Switch,
    Time,
)
from maildirqmtp.text import printable
from maildirqmtp.transport.endpoint import make_tls, parse_endpoint

if TYPE_CHECKING:
    from typing import Any

SENDER = Address("sender", "sender", "ADDRESS", "envelope sender, whatever the messages say")
RECIPIENT = Addresses(
    "recipient",
    "recipients",
    "ADDRESS",
    "envelope recipient, whatever the messages say; may be given again",
)

#: What a route has besides its maildir, prefix and server, in the order of the help.
ROUTE: tuple[Setting, ...] = (
    Port("port", "server", "N", "port, where SERVER has none (209); with qmtps: 6209", "209"),
    Window(
        "window",
        "window_messages",
        "N[,SIZE]",
        "most messages and bytes in flight (4096,32M)",
        "4096,32M",
    ),
    PositiveTime(
        "connect-timeout",
        "connect_timeout_s",
        "TIME",
        "for each address of the server (60s)",
        "60s",
    ),
    PositiveTime(
        "write-timeout",
        "write_timeout_s",
        "TIME",
        "without a byte taken by the server (73s)",
        "73s",
    ),
    PositiveTime(
        "response-timeout", "response_timeout_s", "TIME", "for the answer to a message (1h)", "1h"
    ),
    Time(
        "lifetime",
        "lifetime_s",
        "TIME",
        "age at which a deferral counts as a failure (14d)",
        "14d",
    ),
    Path("sent", "sent", "MAILDIR", "move accepted messages there instead of removing them"),
    Path("failed", "failed", "MAILDIR", "where failed messages go (DIR/.Failed)"),
    SENDER,
    RECIPIENT,
    BothWays("bounce", "bounce", "tell senders of failures, or not (with PREFIX: yes; else: no)"),
    Number(
        "max-bounces",
        "max_bounces",
        "N",
        "bounces in one run (100); then to the failed maildir",
        "100",
    ),
    BounceVia(
        "bounce-via", "bounce_via", "HOW", "sendmail, server or maildir:DIR (sendmail)", "sendmail"
    ),
    Command(
        "sendmail",
        "sendmail",
        "COMMAND",
        "run as COMMAND -i -f '' -- SENDER",
        "/usr/sbin/sendmail",
    ),
    Switch("cur", "include_cur", "take messages from cur/ as well as from new/"),
    Count("connections", "connections", "N", "connections at the same time (1)", "1"),
    TlsFile("tls-ca", "tls", "FILE", "who vouches for a qmtps:// server (this system's list)"),
    TlsFile("tls-cert", "tls", "FILE", "our certificate for a qmtps:// server"),
    TlsFile("tls-key", "tls", "FILE", "its key, where it is not in the same file"),
    TlsPins(
        "tls-pin",
        "tls",
        "PIN",
        "sha256:DIGEST of the server's public key; vouches for it without --tls-ca",
    ),
    PositiveTime("rescan", "rescan_s", "TIME", "look for messages at least so often (30s)", "30s"),
    PositiveTime("idle-timeout", "idle_s", "TIME", "close an idle connection (60s)", "60s"),
)

#: The keys of a `[[route]]` that are arguments on the command line.
MAILDIR = Path("maildir", "maildir", "DIR", "the maildir whose messages are forwarded")
PREFIX = Prefix("prefix", "prefix", "PREFIX", "only recipients that begin with it, without it")
SERVER = Setting("server", "server", "SERVER", "where to")

_VERBOSE = Switch("verbose", "verbose", "a line for each recipient")
_QUIET = Switch("quiet", "quiet", "errors only")

#: What the process has, whatever its routes.
PROCESS: tuple[Setting, ...] = (
    Path("metrics-file", "metrics_file", "FILE", "write metrics there, for Prometheus' textfiles"),
    Loopback("metrics-listen", "metrics_listen", "HOST:PORT", "serve metrics there, on loopback"),
    Switch("json", "json", "write events to standard output, one object a line"),
    _VERBOSE,
    _QUIET,
)

#: What to do, where it is not one batch; not for a file.
_INSTEAD: tuple[Setting, ...] = (
    Switch("dry-run", "", "list what would be sent, and send nothing"),
    Switch("watch", "", "stay, and send each message as it arrives"),
    Setting("config", "", "FILE", "stay, with the routes that the file says"),
    Switch("check-config", "", "show what the file comes to, and exit"),
    Switch("status", "", "show what waits in DIR, or by the file, and why"),
)
_ALSO: tuple[Setting, ...] = (
    Setting("enqueue", "", "DIR", "put the message on standard input into DIR, and exit"),
    Switch("demo", "", "show a whole run on messages made up for it"),
)

#: All flags, in the order of the help; and those that have one letter, too.
FLAGS: tuple[Setting, ...] = (*ROUTE, *_INSTEAD, *PROCESS, *_ALSO)
SHORT = {"-v": _VERBOSE, "-q": _QUIET}

#: Those that mean nothing to a run that ends.
WATCHING = ("rescan", "idle-timeout", "metrics-file", "metrics-listen")


class Options:
    """What a command line says: `arguments`, and each of `FLAGS` by its `dest`.

    A flag that takes a value has a text, or None where it was not given; one
    that may be given again a list; a switch true or false.
    """

    arguments: list[str]

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...


def given(options: Options, table: tuple[Setting, ...]) -> dict[str, Any]:
    """Return the values of the flags that were given, by key. Raises `ConfigError`."""
    found: dict[str, Any] = {}
    for setting in table:
        value = getattr(options, setting.dest)
        if value is None or value == [] or (value is False and not setting.both_ways):
            continue
        found[setting.key] = setting.from_flag(value)
    return found


def make_route(maildir: bytes, prefix: bytes, server: str, values: dict[str, Any]) -> route.Route:
    """Return a route with these values, by key; the others are the defaults. `ConfigError`."""
    fields: dict[str, Any] = {}
    for setting in ROUTE:
        if setting.key in values:
            fields |= setting.fields(values[setting.key])
    where = parse_endpoint(server, values.get("port"))
    ca, cert, key = (values.get(f"tls-{part}") for part in ("ca", "cert", "key"))
    tls = make_tls(where, ca, cert, key, values.get("tls-pin", ()))
    return route.Route(maildir, where, prefix=prefix, tls=tls, **fields)


def own_target(chosen: route.Route) -> tuple[str, str] | None:
    """Return the key of a target that is the route's own maildir, and what is wrong with it."""
    via, _, bounces = chosen.bounce_via.partition(":")
    for key, path in (
        ("sent", chosen.sent),
        ("failed", chosen.failed),
        ("bounce-via", os.fsencode(bounces) if via == "maildir" else None),
    ):
        if path is not None and os.path.realpath(path) == os.path.realpath(chosen.maildir):
            return key, f"{printable(path)} is the maildir that is forwarded"
    return None
