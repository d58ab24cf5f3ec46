"""Options of `qmtpmaildir` about the hand-off: `--deliver HOW` and what belongs to it."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING

from maildirqmtp.errors import ConfigError
from maildirqmtp.receiver.handoff.how import CONNECTIONS, CommandWords, parse_how

if TYPE_CHECKING:
    from maildirqmtp.receiver.handoff.destination import HandOff, NextHop

#: Connections to the next server, or commands, at once at most.
_MAX_CONNECTIONS = 1_000


def add_handoff_options(parser: argparse.ArgumentParser) -> None:
    """Add the options about the hand-off."""
    add = parser.add_argument
    add(
        "--deliver",
        metavar="HOW",
        help="hand mail on instead: lmtp:HOST:PORT, lmtp:unix:PATH, smtp:HOST[:PORT], or "
        "exec:COMMAND with {recipient} or {recipients} and {sender} in it",
    )
    add(
        "--deliver-connections",
        metavar="N",
        help=f"hand on so many messages at once (default {CONNECTIONS})",
    )
    add(
        "--deliver-plain",
        action="store_true",
        help="hand on without TLS, also beyond this machine",
    )


def connections(options: argparse.Namespace) -> int | None:
    """Return how much is handed on at once; None without --deliver. Raises `ConfigError`."""
    text = options.deliver_connections
    if options.deliver is None:
        for flag, value in (("connections", text), ("plain", options.deliver_plain)):
            if value:
                raise ConfigError(f"--deliver-{flag}: only with --deliver")
        return None
    if text is None:
        return CONNECTIONS
    if not (text.isascii() and text.isdigit() and 0 < int(text[:6]) <= _MAX_CONNECTIONS):
        raise ConfigError(f"--deliver-connections: from 1 to {_MAX_CONNECTIONS}, not {text!r}")
    return int(text)


def hand_off(options: argparse.Namespace, complain: Callable[[str], None]) -> HandOff:
    """Return the destination of `--deliver`. Raises `ConfigError` and `LocalError`."""
    from maildirqmtp.receiver.handoff.destination import HandOff

    return HandOff(_next_hop(options, complain))


def _next_hop(options: argparse.Namespace, complain: Callable[[str], None]) -> NextHop:
    how = parse_how(options.deliver)
    if isinstance(how, CommandWords):
        from maildirqmtp.receiver.handoff.command import Command

        if options.deliver_plain:
            raise ConfigError("--deliver-plain: only for smtp: and lmtp:")
        return Command(how.words)
    from maildirqmtp.receiver.handoff.next_server import NextServer
    from maildirqmtp.transport.host_name import full_host_name

    return NextServer(how, full_host_name(), options.deliver_plain, complain)
