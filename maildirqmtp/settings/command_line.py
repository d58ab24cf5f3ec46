"""The options of the command line: what it says, and what is made of that."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from maildirqmtp.errors import ConfigError
from maildirqmtp.settings import table
from maildirqmtp.settings.table import Options

if TYPE_CHECKING:
    from typing import Any

    from maildirqmtp.forwarder.route import Route
    from maildirqmtp.settings.config import Config
    from maildirqmtp.settings.types import Setting


def parse(words: list[str]) -> Options:
    """Read a command line; exits where it is wrong, or asks for help."""
    # By hand: argparse would not take what follows `--` as arguments among options.
    end = words.index("--") if "--" in words else len(words)
    options = plain(words[:end])
    if options is None:
        from maildirqmtp.settings.parser import make_parser

        parser = make_parser()
        for word in words[:end]:
            if word.startswith("--") and word.endswith("=--"):
                parser.error(f"{word}: -- ends the options, and is no value")
        options = parser.parse_intermixed_args(words[:end], Options())
    options.arguments += words[end + 1 :]
    return options


def plain(words: list[str]) -> Options | None:
    """Read a plain command line as argparse would; None: argparse is to read it.

    Plain are arguments, flags in full, and values that do not begin with `-`.
    To load argparse takes as long as all else that a run does which finds
    its maildir empty.
    """
    flags: dict[str, Setting] = dict(table.SHORT)
    found: dict[str, Any] = {"arguments": []}
    for setting in table.FLAGS:
        flags[f"--{setting.key}"] = setting
        found[setting.dest] = setting.unsaid()
    left = iter(words)
    for word in left:
        if not word.startswith("-") or word == "-":
            found["arguments"].append(word)
            continue
        flag, equals, value = word.partition("=")
        chosen = flags.get(flag)
        if chosen is None or (chosen.switch and equals) or value == "--":
            return None
        if not chosen.switch and not equals:
            value = next(left, "-")
            if value.startswith("-"):
                return None
        if chosen.repeated:
            found[chosen.dest].append(value)
        else:
            found[chosen.dest] = chosen.switch or value
    options = Options()
    vars(options).update(found)
    return options


def check_together(options: Options) -> None:
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
        for key in table.WATCHING:
            if getattr(options, key.replace("-", "_")) is not None:
                raise ConfigError(f"--{key} is for those who stay; write it with --watch")


def make_route(options: Options) -> Route:
    """Return the route that the options ask for. Raises `ConfigError`."""
    arguments: list[str] = options.arguments
    if not 2 <= len(arguments) <= 3:
        raise ConfigError("DIR and SERVER, or DIR, PREFIX and SERVER are needed")
    values = {"bounce": len(arguments) == 3} | table.given(options, table.ROUTE)
    prefix = os.fsencode(arguments[1]) if len(arguments) == 3 else b""
    chosen = table.make_route(os.fsencode(arguments[0]), prefix, arguments[-1], values)
    if found := table.own_target(chosen):
        raise ConfigError(f"--{found[0]}: {found[1]}")
    return chosen


def make_config(options: Options) -> Config:
    """Return the configuration of `--watch`: one route, and no file. Raises `ConfigError`."""
    from maildirqmtp.settings.config import make

    return make((make_route(options),), table.given(options, table.PROCESS))


def envelope(options: Options) -> tuple[bytes | None, tuple[bytes, ...]]:
    """Return the sender and the recipients that the options name. Raises `ConfigError`."""
    found = table.given(options, (table.SENDER, table.RECIPIENT))
    return found.get("sender"), found.get("recipient", ())
