"""The parser of the command line: usage, help, and what is wrong with a word.

Only imported for a command line that `options.plain` does not understand.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from maildirqmtp import __version__
from maildirqmtp.settings import table

if TYPE_CHECKING:
    from typing import NoReturn

    from maildirqmtp.settings.types import Setting

EXIT_USAGE = 100
_SHORT = {setting: flag for flag, setting in table.SHORT.items()}

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
    """Help of a fixed width, the same on every terminal."""

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
    for setting in table.FLAGS:
        _add(parser, setting)
    parser.add_argument("--version", action="version", version=f"maildirqmtp {__version__}")
    return parser


def _add(parser: argparse.ArgumentParser, setting: Setting) -> None:
    names = [f"--{setting.key}"]
    if setting in _SHORT:
        names.insert(0, _SHORT[setting])
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
