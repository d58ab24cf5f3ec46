"""Options of `qmtpmaildir` about who may send, and what they mean together.

    | way in                          | who may relay (--queue, --deliver)           |
    | ------------------------------- | -------------------------------------------- |
    | TCP on loopback, a Unix socket  | everybody                                    |
    | TCP beyond loopback             | with --domain: everybody, to these domains   |
    |                                 | with --tls-client-ca: certificate holders    |
    | --stdio, the client on loopback | as above: the socket itself tells, whatever  |
    | or on a Unix socket             | program opened it                            |
    | --stdio, from elsewhere         | with --domain: everybody, to these domains   |
    | --stdio on a pipe               | with --relay, or as the line above           |

With --domain, no client can send to other domains, whatever its origin; nor by way of
`victim%other.example@here.example`, which a next server that trusts us would relay.
"""

import argparse
import contextlib
import os
import pwd
import socket
from collections.abc import Iterator, Sequence

from maildirqmtp.errors import ConfigError
from maildirqmtp.qmtp.protocol import MAX_MESSAGE
from maildirqmtp.receiver import listener as listening
from maildirqmtp.receiver.clients import Client, Origin
from maildirqmtp.receiver.policy import DEFAULT_POLICY, Policy, only_domains
from maildirqmtp.settings.units import parse_bytes
from maildirqmtp.text import printable
from maildirqmtp.transport.endpoint import parse_tcp

#: Where to listen by default.
DEFAULT_LISTEN = "127.0.0.1:209"
#: Permissions of the Unix socket of a queue: any local user may submit.
EVERYBODY = 0o666


def add_relay_options(parser: argparse.ArgumentParser) -> None:
    """Add the options about who may send mail, and how much."""
    add = parser.add_argument
    add(
        "--domain",
        metavar="NAME",
        action="append",
        default=[],
        help="take recipients of this domain only; may be repeated; "
        "required to listen beyond loopback",
    )
    add(
        "--relay",
        action="store_true",
        help="with --queue or --deliver and --stdio on a pipe: take mail for everybody",
    )
    add(
        "--allow-users",
        metavar="USER,...",
        action="append",
        default=[],
        help="on a Unix socket, take mail of these users only, by name or number",
    )
    add(
        "--user-quota",
        metavar="SIZE",
        help="on a Unix socket, defer a user's mail while so much of it waits in the queue",
    )
    add(
        "--socket-mode",
        metavar="MODE",
        help="permissions of the Unix socket (default 0600: its owner only; with --queue 0666)",
    )


def policy_of(options: argparse.Namespace) -> Policy:
    """Return what is accepted, and from whom. Raises `ConfigError` if an option is wrong."""
    max_size = parse_bytes(options.max_size, "--max-size")
    if max_size < 1:
        raise ConfigError(f"--max-size: at least one byte, not {options.max_size!r}")
    if options.queue is not None and max_size > MAX_MESSAGE:
        raise ConfigError(f"--max-size: at most {MAX_MESSAGE} with --queue: no more goes by QMTP")
    domains = [os.fsencode(name) for name in options.domain]
    for domain in domains:
        if not domain or any(c in b"@ \t\r\n\0" for c in domain):
            raise ConfigError(f"--domain: a name as example.org, not {printable(domain)!r}")
    relays = relays_mail(options)
    if options.relay and not (relays and options.stdio):
        raise ConfigError("--relay: only for --queue and --deliver, with --stdio")
    return Policy(
        max_size=max_size,
        min_free=parse_bytes(options.min_free, "--min-free"),
        refuse=only_domains(domains, not _goes_on(options)) if domains else DEFAULT_POLICY.refuse,
        relays=relays,
        verified=options.tls_client_ca is not None,
        pipes_relay=options.relay,
        users=_users(options.allow_users) if options.allow_users else None,
    )


def relays_mail(options: argparse.Namespace) -> bool:
    """Return whether mail is relayed, to wherever its recipients are."""
    return options.queue is not None or options.deliver is not None


def _goes_on(options: argparse.Namespace) -> bool:
    """Return whether the next hop may send mail on elsewhere; an LMTP server only delivers."""
    return options.queue is not None or str(options.deliver).startswith(("smtp:", "exec:"))


def user_quota(options: argparse.Namespace) -> int | None:
    """Return how many bytes a user may have waiting; None for no limit.

    Raises `ConfigError` if the size is malformed, or without --queue.
    """
    if options.user_quota is None:
        return None
    if options.queue is None:
        raise ConfigError("--user-quota: only for --queue")
    quota = parse_bytes(options.user_quota, "--user-quota")
    if quota < 1:
        raise ConfigError("--user-quota: at least one byte; leave it out for no limit")
    return quota


def _users(lists: Sequence[str]) -> frozenset[int]:
    """Return the user IDs in lists of names and numbers. Raises `ConfigError` for unknown names."""
    found = set()
    for word in ",".join(lists).split(","):
        if word.isascii() and word.isdigit():
            found.add(int(word))
            continue
        try:
            found.add(pwd.getpwnam(word).pw_uid)
        except (KeyError, ValueError):
            raise ConfigError(f"--allow-users: there is no user {word!r} here") from None
    return frozenset(found)


def require_permission(options: argparse.Namespace, policy: Policy, client: Client) -> None:
    """Raise `ConfigError` if the client on stdin may not send, or options need its unknown user."""
    if client.origin is Origin.UNKNOWN and not policy.may_relay(client):
        raise ConfigError(
            "--stdio: nothing is known of a client on a pipe; say with --relay that it may have "
            "mail sent to everybody, or with --domain which mail it may send"
        )
    if client.user is None:
        _refuse_user_options(options)


def _refuse_user_options(options: argparse.Namespace) -> None:
    for flag, value in (("allow-users", options.allow_users), ("user-quota", options.user_quota)):
        if value:
            raise ConfigError(f"--{flag}: only a Unix socket tells which user a client is")


@contextlib.contextmanager
def open_listeners(options: argparse.Namespace) -> Iterator[list[socket.socket]]:
    """Open the sockets to listen on, or take those that systemd has opened.

    Raises `ConfigError` if an option is wrong or does not fit a socket, or if systemd passed on
    anything but listening sockets, and `LocalError` if a socket cannot be opened.
    """
    with contextlib.ExitStack() as stack:
        listeners = [stack.enter_context(s) for s in listening.inherited(os.environ)]
        if listeners and options.listen:
            raise ConfigError("--listen: the sockets were opened already (LISTEN_FDS)")
        if not listeners:
            places = [parse_listen(text) for text in options.listen or [DEFAULT_LISTEN]]
            for place in places:
                listeners.append(stack.enter_context(_open(place, places, _mode(options))))
        for sock in listeners:
            if sock.family != socket.AF_UNIX:
                _refuse_user_options(options)
            elif options.tls_cert is not None:
                raise ConfigError("--tls-cert: TLS is for TCP; a Unix socket needs none")
        yield listeners


def _open(
    place: tuple[str, int] | bytes, places: Sequence[tuple[str, int] | bytes], mode: int
) -> socket.socket:
    """Open a socket to listen at `place`, one of all `places`."""
    if isinstance(place, bytes):
        return listening.open_unix_listener(place, mode)
    host, port = place
    # [::] would take IPv4 as well, and 0.0.0.0 beside it be in use.
    return listening.open_listener(host, port, v6_only=("0.0.0.0", port) in places)


def _mode(options: argparse.Namespace) -> int:
    text = options.socket_mode
    if text is None:
        # Not with --deliver: what a command or the next server does is for its owner to allow.
        return EVERYBODY if options.queue is not None else listening.OWNER_ONLY
    if not text or text.strip("01234567") or len(text) > 4 or int(text, 8) > 0o777:
        raise ConfigError(f"--socket-mode: three octal digits, as in 0660, not {text!r}")
    return int(text, 8)


def parse_listen(text: str) -> tuple[str, int] | bytes:
    """Parse HOST:PORT, HOST, [::1]:PORT or unix:PATH; port 0 lets the kernel choose.

    A path is returned as bytes. Raises `ConfigError` for anything else.
    """
    if text.startswith("unix:"):
        path = os.fsencode(text.removeprefix("unix:"))
        if not path or b"\0" in path or path.endswith(b"/"):
            raise ConfigError(f"--listen {text!r}: a path is needed, as in unix:/run/qmtp.sock")
        return path
    if text.isascii() and text.isdigit():
        raise ConfigError(f"--listen {text!r}: that is a port; write 127.0.0.1:{text}")
    rest = text.removesuffix(":0")
    any_port = rest != text and (rest.endswith("]") or ":" not in rest)
    try:
        server = parse_tcp(rest if any_port else text)
    except ConfigError:
        raise ConfigError(
            f"--listen {text!r}: write HOST:PORT, as in 127.0.0.1:209 or [::1]:209, or unix:PATH"
        ) from None
    return server.host, 0 if any_port else server.port
