"""Options of `qmtpmaildir` about the hand-off: `--deliver HOW` and those that refine it."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING

from maildirqmtp.errors import ConfigError
from maildirqmtp.receiver.handoff.how import CONNECTIONS, CommandWords, SmtpAddress, parse_how
from maildirqmtp.settings.parser import a_path

if TYPE_CHECKING:
    from maildirqmtp.receiver.handoff.destination import HandOff, NextHop

#: The most connections to the next server, or commands, at once.
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
    add(
        "--deliver-ca",
        metavar="FILE",
        type=a_path,
        help="beyond this machine, trust this authority (PEM) and none of the system's",
    )


def connections(options: argparse.Namespace) -> int | None:
    """Return how many messages are handed on at once; None without --deliver.

    Raises `ConfigError` if the number is not one from 1 to 1,000, or an option needs --deliver.
    """
    text = options.deliver_connections
    if options.deliver is None:
        for flag in ("connections", "plain", "ca"):
            if getattr(options, f"deliver_{flag}"):
                raise ConfigError(f"--deliver-{flag}: only with --deliver")
        return None
    if text is None:
        return CONNECTIONS
    if not (text.isascii() and text.isdigit() and 0 < int(text[:6]) <= _MAX_CONNECTIONS):
        raise ConfigError(f"--deliver-connections: from 1 to {_MAX_CONNECTIONS}, not {text!r}")
    return int(text)


def hand_off(options: argparse.Namespace, complain: Callable[[str], None]) -> HandOff:
    """Return the destination of `--deliver`.

    Raises `ConfigError` if HOW is not understood or another option does not fit it, and
    `LocalError` if the directory for temporary files cannot be opened.
    """
    from maildirqmtp.receiver.handoff.destination import HandOff

    return HandOff(_next_hop(options, complain))


def _next_hop(options: argparse.Namespace, complain: Callable[[str], None]) -> NextHop:
    how = parse_how(options.deliver)
    if isinstance(how, CommandWords):
        from maildirqmtp.receiver.handoff.command import Command

        if options.deliver_plain or options.deliver_ca:
            flag = "plain" if options.deliver_plain else "ca"
            raise ConfigError(f"--deliver-{flag}: only for smtp: and lmtp:")
        return Command(how.words)
    _check_ca(options, how)
    from maildirqmtp.receiver.handoff.next_server import NextServer
    from maildirqmtp.transport.host_name import full_host_name

    return NextServer(how, full_host_name(), options.deliver_plain, complain, ca=options.deliver_ca)


def _check_ca(options: argparse.Namespace, how: SmtpAddress) -> None:
    """Raise `ConfigError` if `--deliver-ca` would be ignored, or its file cannot be used."""
    if options.deliver_ca is None:
        return
    if options.deliver_plain:
        raise ConfigError("--deliver-ca and --deliver-plain: one or the other")
    if how.path:
        raise ConfigError("--deliver-ca: TLS is for TCP; a Unix socket needs none")
    from maildirqmtp.transport.tls_socket import client_context

    try:
        client_context(options.deliver_ca)
    except OSError as error:
        raise ConfigError(f"--deliver-ca: {error.strerror}") from error
