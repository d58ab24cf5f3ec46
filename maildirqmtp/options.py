"""The options of the command line: the parser, and what is made of what it found."""

from __future__ import annotations

import argparse
import os

from maildirqmtp import __version__, settings
from maildirqmtp.errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

    from maildirqmtp.config import Config
    from maildirqmtp.kinds import Setting
    from maildirqmtp.route import Route

EXIT_USAGE = 100
_SHORT = {"verbose": ("-v",), "quiet": ("-q",)}

_DESCRIPTION = """\
Forward the messages of a maildir to a mail server over QMTP, and exit; or stay,
with --watch or --config. Each message is sent to the envelope that its
Return-Path and Delivered-To lines (or its sidecar) say, and goes when the
server has taken it. With PREFIX, only recipients that begin with it, and
without it.
"""
_EPILOG = """\
SERVER is NAME, NAME:PORT, [::1]:PORT or qmtp://NAME[:PORT]; qmtps://NAME[:PORT] for
TLS; unix:PATH; exec:COMMAND, which speaks QMTP on its standard input and output;
or - for what tcpclient has on descriptors 6 and 7.
TIME is in seconds, or as in 90s, 5m, 2h, 14d; SIZE in bytes, or as in 64k, 32M.

Exit codes: 0 nothing of ours is left; 111 something is left (deferred, held,
server unreachable) or went to the failed maildir; 100 wrong usage.
"""


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Help of a fixed width: asking the terminal for its own would import shutil at every start."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30, width=98)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Exit 100, as qmail's programs do for wrong usage; argparse would say 2."""
        self.exit(EXIT_USAGE, f"{self.prog}: {message}\n{self.format_usage()}")


def make_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="maildirqmtp",
        usage="maildirqmtp [OPTION...] DIR [PREFIX] SERVER\n"
        "       maildirqmtp [OPTION...] --watch DIR [PREFIX] SERVER\n"
        "       maildirqmtp [OPTION...] --config FILE [--check-config]\n"
        "       maildirqmtp --status DIR | --status --config FILE\n"
        "       maildirqmtp --enqueue DIR --sender ADDRESS --recipient ADDRESS... < MESSAGE\n"
        "       maildirqmtp --demo",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=_Formatter,
        allow_abbrev=False,
    )
    parser.add_argument("arguments", nargs="*", metavar="DIR [PREFIX] SERVER")
    add = parser.add_argument
    for setting in settings.ROUTE:
        _add(parser, setting)
    add("--dry-run", action="store_true", help="list what would be sent, and send nothing")
    add("--watch", action="store_true", help="stay, and send each message as it arrives")
    add("--config", metavar="FILE", help="stay, with the routes that the file says")
    add("--check-config", action="store_true", help="show what the file comes to, and exit")
    add("--status", action="store_true", help="show what waits in DIR, or by the file, and why")
    for setting in settings.PROCESS:
        _add(parser, setting)
    add("--enqueue", metavar="DIR", help="put the message on standard input into DIR, and exit")
    add("--demo", action="store_true", help="show a whole run on messages made up for it")
    add("--version", action="version", version=f"maildirqmtp {__version__}")
    return parser


def _add(parser: argparse.ArgumentParser, setting: Setting) -> None:
    names = [*_SHORT.get(setting.key, ()), f"--{setting.key}"]
    if setting.both_ways:
        parser.add_argument(*names, action=argparse.BooleanOptionalAction, help=setting.help)
    elif setting.switch:
        parser.add_argument(*names, action="store_true", help=setting.help)
    elif setting.repeated:
        parser.add_argument(
            *names, metavar=setting.metavar, action="append", default=[], help=setting.help
        )
    else:
        parser.add_argument(*names, metavar=setting.metavar, help=setting.help)


def check_together(options: argparse.Namespace) -> None:
    """Refuse flags that mean nothing together, and say what to write. Raises `ConfigError`."""
    stays = {"watch": options.watch, "config": options.config is not None}
    stays |= {"status": options.status, "check-config": options.check_config}
    ends = {"demo": options.demo, "enqueue": options.enqueue is not None}
    ends["dry-run"] = options.dry_run
    first = [flag for flag, given in stays.items() if given]
    for flag in [flag for flag, given in ends.items() if given and first]:
        raise ConfigError(f"--{flag} does its work and exits; write it without --{first[0]}")
    if options.check_config and options.config is None:
        raise ConfigError("--check-config checks a file; write --config FILE --check-config")
    if options.check_config and options.status:
        raise ConfigError("--check-config and --status are two questions; write one of them")
    if options.watch and options.config is not None:
        raise ConfigError("--config watches all its routes; write it without --watch")
    if options.watch and options.status:
        raise ConfigError("--status shows and exits; write --status DIR, without --watch")
    if options.config is not None and options.arguments:
        raise ConfigError(
            f"--config: maildir and server stand in the file; {options.arguments[0]!r} is too much"
        )
    if options.status and options.config is None and len(options.arguments) != 1:
        raise ConfigError("--status needs DIR, without SERVER, or --config FILE")
    if not options.watch and options.config is None:
        for key in settings.WATCHING:
            if getattr(options, key.replace("-", "_")) is not None:
                raise ConfigError(f"--{key} is for those who stay; write it with --watch")


def make_route(options: argparse.Namespace) -> Route:
    """Return the route that the options ask for. Raises `ConfigError`."""
    arguments: list[str] = options.arguments
    if not 2 <= len(arguments) <= 3:
        raise ConfigError("DIR and SERVER, or DIR, PREFIX and SERVER are needed")
    values = {"bounce": len(arguments) == 3} | settings.given(options, settings.ROUTE)
    prefix = os.fsencode(arguments[1]) if len(arguments) == 3 else b""
    chosen = settings.make_route(os.fsencode(arguments[0]), prefix, arguments[-1], values)
    if found := settings.own_target(chosen):
        raise ConfigError(f"--{found[0]}: {found[1]}")
    return chosen


def make_config(options: argparse.Namespace) -> Config:
    """Return the configuration of `--watch`: one route, and no file. Raises `ConfigError`."""
    from maildirqmtp.config import make

    return make((make_route(options),), settings.given(options, settings.PROCESS))


def envelope(options: argparse.Namespace) -> tuple[bytes | None, tuple[bytes, ...]]:
    """Return the sender and the recipients that the options name. Raises `ConfigError`."""
    found = settings.given(options, (settings.SENDER, settings.RECIPIENT))
    return found.get("sender"), found.get("recipient", ())
