"""The command line: the table of settings, what to do, and the arguments, read by argparse."""

from __future__ import annotations

import argparse
import os
from functools import partial
from typing import TYPE_CHECKING, Any

from maildirqmtp import __version__
from maildirqmtp.errors import ConfigError
from maildirqmtp.exit_codes import EXIT_USAGE
from maildirqmtp.settings import flags_and_keys
from maildirqmtp.settings.conflicts import find_conflict
from maildirqmtp.settings.flags_and_keys import Setting, Values
from maildirqmtp.settings.parser import Parser
from maildirqmtp.settings.types import ListType, NumberType, SwitchType

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import NoReturn

    from maildirqmtp.forwarder.route import Route

_USAGE = """\
maildirqmtp [OPTION...] DIR [PREFIX] SERVER
       maildirqmtp [OPTION...] --watch DIR [PREFIX] SERVER
       maildirqmtp [OPTION...] --config FILE [--check-config]
       maildirqmtp --status DIR | --status --config FILE
       maildirqmtp --enqueue DIR --sender ADDRESS --recipient ADDRESS... < FILE
       maildirqmtp --demo"""
_DESCRIPTION = """\
Forward the messages of a maildir to a mail server over QMTP, and exit; or
stay, with --watch or --config. The Return-Path and Delivered-To lines on top
of a message (or its sidecar) are its envelope; From and To do not count. It is
removed when the server has taken it. With PREFIX, only recipients that begin
with it are served, and the prefix is removed.
"""
_EPILOG = """\
SERVER is NAME, NAME:PORT, [::1]:PORT or qmtp://NAME[:PORT];
qmtps://NAME[:PORT] for TLS; unix:PATH; exec:COMMAND, which speaks QMTP on its
standard input and output; or - for descriptors 6 and 7, as tcpclient has them.
SERVER,SERVER is several: the next one is used if the first cannot be.
TIME is in seconds, or as in 90s, 5m, 2h, 14d; SIZE in bytes, or as in 64k, 32M.

Examples:
  maildirqmtp ~/Maildir mail.example.org            once: cron, or link-up
  maildirqmtp --watch ~/Maildir mail.example.org    stay
  maildirqmtp --config /etc/maildirqmtp.toml        stay, with several routes
  maildirqmtp ~/Maildir 'exec:ssh mx qmtpmaildir --stdio Maildir'
  maildirqmtp --status ~/Maildir                    what waits, and why

Exit codes: 0 nothing of ours is left; 111 something is left (deferred, held,
server unreachable) or went to the failed maildir; 100 wrong usage.
"""

_SETTINGS = {setting.field: setting for setting in (*flags_and_keys.ROUTE, *flags_and_keys.PROCESS)}

#: The groups of the help, and their settings; all other settings are in the server's group.
_ENVELOPES, _FAILURES, _SERVER, _TLS = "messages", "failures and bounces", "the server", "TLS"
_OUTPUT = "output and monitoring"
_GROUPS = {
    _ENVELOPES: (
        *("sender", "default-sender", "recipient", "cur", "shard", "max-size", "sent"),
        "keep-sent",
    ),
    _FAILURES: (
        *("lifetime", "failed", "keep-failed", "bounce", "max-bounces", "bounce-via", "sendmail"),
        *("hostname", "warn-after"),
    ),
    _SERVER: (),
    _TLS: ("tls-ca", "tls-cert", "tls-key", "tls-pin"),
    _OUTPUT: tuple([setting.key for setting in flags_and_keys.PROCESS]),
}
_GROUP_OF = {key: title for title, keys in _GROUPS.items() for key in keys}

#: Columns of the help: at least, and at most on a wide terminal.
_MIN_COLUMNS, _MAX_COLUMNS = 80, 120


class CommandLine(argparse.Namespace):
    """What a command line says: `arguments`, what to do, and the settings by field.

    A setting that was not given is None.
    """

    arguments: list[str]
    check_config: bool
    config: str | None
    demo: bool
    dry_run: bool
    enqueue: str | None
    limit: int | None
    status: bool
    sysexits: bool
    watch: bool

    def values(self, settings: Iterable[Setting[Any]]) -> Values:
        """Return the values of the settings that were given; of repeated values each once."""
        found: Values = {}
        for setting in settings:
            value = getattr(self, setting.field)
            if value is not None:
                several = isinstance(value, list)
                found[setting.field] = tuple(dict.fromkeys(value)) if several else value
        return found


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    def _get_help_string(self, action: argparse.Action) -> str | None:
        """Put the defaults into the help, only here because most runs show none."""
        setting = _SETTINGS.get(action.dest)
        return action.help if setting is None else setting.described


class _Parser(Parser):
    def error(self, message: str) -> NoReturn:
        """Exit 100, as qmail's programs do for wrong usage; argparse would exit 2."""
        self.exit(EXIT_USAGE, f"{self.prog}: {message}; try {self.prog} --help\n")


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line. A wrong value raises `ConfigError`."""
    parser = _Parser(
        prog="maildirqmtp",
        usage=_USAGE,
        description=_DESCRIPTION,
        epilog=_EPILOG,
        # The width is given: argparse would load shutil to find it, in every run.
        formatter_class=partial(_HelpFormatter, max_help_position=28, width=_columns() - 2),
        allow_abbrev=False,
    )
    parser.add_argument(
        "arguments", nargs="*", metavar="DIR [PREFIX] SERVER", help=argparse.SUPPRESS
    )
    add = parser.add_argument
    add("--dry-run", action="store_true", help="list what would be sent, and send nothing")
    add("--watch", action="store_true", help="stay, and send each message as it arrives")
    add("--config", metavar="FILE", help="stay, with the routes in FILE")
    add("--check-config", action="store_true", help="show the settings that FILE gives, and exit")
    add(
        "--status",
        action="store_true",
        help="show what waits in DIR, or for the routes, and why",
    )
    limit = partial(NumberType().parse, where="--limit")
    add("--limit", type=limit, metavar="N", help="with --status: list N of each (100)")
    add("--enqueue", metavar="DIR", help="put the message on standard input into DIR, and exit")
    add("--sysexits", action="store_true", help="with --enqueue, exit codes of sysexits(3)")
    add("--demo", action="store_true", help="show the whole way of three sample messages")
    add("--version", action="version", version=f"maildirqmtp {__version__}")
    groups = {title: parser.add_argument_group(title) for title in _GROUPS}
    for setting in (*flags_and_keys.ROUTE, *flags_and_keys.PROCESS):
        _add_setting(groups[_GROUP_OF.get(setting.key, _SERVER)], setting)
    return parser


def _columns() -> int:
    try:
        columns = os.get_terminal_size().columns
    except OSError:  # standard output is no terminal
        columns = 0
    return min(max(columns, _MIN_COLUMNS), _MAX_COLUMNS)


def _add_setting(group: argparse._ArgumentGroup, setting: Setting[Any]) -> None:
    names = [setting.short, setting.flag] if setting.short else [setting.flag]
    shared: dict[str, Any] = {"dest": setting.field, "help": setting.help}
    if isinstance(setting.type, SwitchType):
        if setting.type.both_ways:
            group.add_argument(*names, action=argparse.BooleanOptionalAction, **shared)
        else:
            group.add_argument(*names, action="store_const", const=True, **shared)
        return
    action = "extend" if isinstance(setting.type, ListType) else "store"
    group.add_argument(
        *names, action=action, type=setting.from_flag, metavar=setting.type.metavar, **shared
    )


def parse(words: list[str]) -> CommandLine:
    """Parse a command line; exit if it is wrong, or asks for help.

    Raises `ConfigError` if a value is wrong. All words after the first `--` are
    arguments, whatever they begin with.
    """
    parser = make_parser()
    end = words.index("--") if "--" in words else len(words)
    line = parser.parse_intermixed_args(words[:end], CommandLine())
    line.arguments += words[end + 1 :]
    return line


def check_together(line: CommandLine) -> None:
    """Raise `ConfigError`, with what to write, for flags that make no sense together."""
    stays = {"watch": line.watch, "config": line.config is not None}
    stays |= {"status": line.status, "check-config": line.check_config}
    ends = {"demo": line.demo, "enqueue": line.enqueue is not None, "dry-run": line.dry_run}
    first = [flag for flag, given in stays.items() if given]
    for flag in [flag for flag, given in ends.items() if given]:
        if first:
            raise ConfigError(f"--{flag} does its work and exits; write it without --{first[0]}")
        first = [flag]
    configured = line.config is not None
    for wrong, why in (
        (
            line.check_config and not configured,
            "--check-config checks a file; write --config FILE --check-config",
        ),
        (
            line.check_config and line.status,
            "--check-config and --status are two questions; write one of them",
        ),
        (line.watch and configured, "--config watches all its routes; write it without --watch"),
        (line.limit is not None and not line.status, "--limit only makes sense with --status"),
        (
            line.watch and line.status,
            "--status shows and exits; write --status DIR, without --watch",
        ),
        (
            line.sysexits and line.enqueue is None,
            "--sysexits changes the exit codes of --enqueue; write both",
        ),
    ):
        if wrong:
            raise ConfigError(why)
    if line.config is not None and line.arguments:
        raise ConfigError(
            f"--config: maildir and server stand in the file; {line.arguments[0]!r} is too much"
        )
    if line.status and line.config is None and len(line.arguments) != 1:
        raise ConfigError("--status needs DIR, without SERVER, or --config FILE")
    if not line.watch and line.config is None:
        _refuse_daemon_only(line)


def _refuse_daemon_only(line: CommandLine) -> None:
    for setting in flags_and_keys.DAEMON_ONLY:
        if getattr(line, setting.field) is not None:
            raise ConfigError(
                f"{setting.flag} only makes sense with --watch or --config; add one of them"
            )


def _check_arguments(words: list[str]) -> None:
    """Raise `ConfigError` unless the arguments are DIR [PREFIX] SERVER.

    A port after a blank, as telnet takes it, would be read as SERVER, and the host
    as PREFIX; no host has the number of a port as its name.
    """
    host, port = words[-2:] if len(words) > 1 else ("", "")
    if port.isascii() and port.isdigit() and 0 < int(port[:6]) < 65_536 and len(words) > 1:
        where = f"{host}:{port}" if len(words) > 2 else f"HOST:{port}"
        raise ConfigError(f"{port!r} is a port, no server; write {where} as one word")
    if not 2 <= len(words) <= 3:
        raise ConfigError("DIR and SERVER, or DIR, PREFIX and SERVER are needed")


def make_route(line: CommandLine) -> Route:
    """Return the route that the command line asks for.

    Raises `ConfigError` if arguments or settings are wrong, or conflict.
    """
    words = line.arguments
    _check_arguments(words)
    values = flags_and_keys.prefix_defaults(len(words) == 3) | line.values(flags_and_keys.ROUTE)
    if len(words) == 3:
        values[flags_and_keys.PREFIX.field] = os.fsencode(words[1])
    values |= {
        flags_and_keys.MAILDIR.field: flags_and_keys.MAILDIR.type.parse(words[0], "DIR"),
        flags_and_keys.SERVER.field: flags_and_keys.SERVER.type.parse(words[-1], "SERVER"),
    }
    route = flags_and_keys.make_route(values)
    if found := find_conflict(route):
        raise ConfigError(f"{found[0].flag}: {found[1]}")
    return route


def envelope(line: CommandLine) -> tuple[bytes | None, tuple[bytes, ...]]:
    """Return the sender and the recipients that the command line names."""
    found = line.values((flags_and_keys.SENDER, flags_and_keys.RECIPIENT))
    return found.get(flags_and_keys.SENDER.field), found.get(flags_and_keys.RECIPIENT.field, ())
