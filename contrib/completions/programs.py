"""What the completions know of each program, read from the parser of its command line."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from maildirqmtp.cli import qmtp_sendmail, qmtpmaildir, qmtpq
from maildirqmtp.settings import command_line
from maildirqmtp.settings.flags_and_keys import PROCESS, ROUTE, Setting

FILES, DIRECTORIES, WORDS, OTHER = "files", "directories", "words", "other"

#: What a value is, by what stands for it in the help.
_KINDS = {"FILE": FILES, "DIR": DIRECTORIES, "MAILDIR": DIRECTORIES}
#: The beginnings of values that are words.
_WORDS = {
    "--bounce-via": ("sendmail", "server", "maildir:"),
    "--deliver": ("lmtp:unix:", "lmtp:", "smtp:", "exec:"),
    "--tls-pin": ("sha256:",),
    "-b": ("p", "m", "i"),
}
#: Values that name a program.
_PROGRAMS = ("--sendmail",)
_SETTINGS = {setting.field: setting for setting in (*ROUTE, *PROCESS)}


@dataclass(frozen=True, slots=True)
class Option:
    """An option: its names, its help in one line, and what its value is, None where it has none."""

    names: tuple[str, ...]
    help: str
    kind: str | None = None
    metavar: str = ""
    words: tuple[str, ...] = ()
    repeats: bool = False


@dataclass(frozen=True, slots=True)
class Program:
    """A program: its options, and whether its arguments begin with a directory.

    `commands` are those of `qmtpq` with their help; its arguments are COMMAND, DIR and NAME,
    and `without_names` are the commands that take no NAME.
    """

    name: str
    options: tuple[Option, ...]
    takes_directory: bool = True
    commands: tuple[tuple[str, str], ...] = ()
    without_names: tuple[str, ...] = ()


def programs() -> tuple[Program, ...]:
    """Return the programs that have completions."""
    return (
        Program("maildirqmtp", _options(command_line.make_parser(), _SETTINGS)),
        Program("qmtpmaildir", _options(qmtpmaildir.make_parser())),
        Program("qmtp-sendmail", _options(qmtp_sendmail.make_parser()), takes_directory=False),
        Program(
            "qmtpq",
            _options(qmtpq.make_parser()),
            commands=tuple(qmtpq.COMMANDS.items()),
            without_names=qmtpq.WITHOUT_NAMES,
        ),
    )


def _options(
    parser: argparse.ArgumentParser, settings: Mapping[str, Setting[Any]] | None = None
) -> tuple[Option, ...]:
    actions = parser._actions  # noqa: SLF001 (argparse has no other way to list them)
    found = [
        _option(action, (settings or {}).get(action.dest))
        for action in actions
        if action.option_strings and action.help is not argparse.SUPPRESS
    ]
    return tuple(sorted(found, key=lambda option: option.names[-1].lstrip("-").lower()))


def _option(action: argparse.Action, setting: Setting[Any] | None) -> Option:
    names = tuple(action.option_strings)
    text = action.help if setting is None else setting.described
    text = re.sub(r"\s+", " ", (text or "") % {"prog": "", "default": action.default})
    if action.nargs == 0:
        return Option(names, text)
    metavar = str(action.metavar or action.dest.upper())
    words = next((_WORDS[name] for name in names if name in _WORDS), ())
    kind = WORDS if words else _KINDS.get(metavar, OTHER)
    if set(names) & set(_PROGRAMS):
        kind = FILES
    repeats = type(action).__name__ in ("_AppendAction", "_ExtendAction")
    return Option(names, text, kind, metavar, words, repeats)
