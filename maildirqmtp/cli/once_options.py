"""Options of `qmtpmaildir` about mail that is sent again: `--once TIME`, `--once-file FILE`."""

import argparse
import os
import time
from collections.abc import Callable
from typing import Any

from maildirqmtp.errors import ConfigError
from maildirqmtp.receiver.destination import Destination
from maildirqmtp.settings.parser import a_path
from maildirqmtp.settings.units import parse_seconds

#: File name of the database in a maildir or a queue.
_FILE = ".maildirqmtp-once.sqlite3"


def add_once_options(parser: argparse.ArgumentParser) -> None:
    """Add `--once` and `--once-file`."""
    add = parser.add_argument
    add(
        "--once",
        metavar="TIME",
        help="deliver what is sent again within so long once only, as in 14d: the same text from "
        "the same sender to the same recipient",
    )
    add(
        "--once-file",
        metavar="FILE",
        type=a_path,
        help=f"where to remember it (default {_FILE} in DIR; needed with --deliver)",
    )


def once(
    options: argparse.Namespace,
    make: Callable[[], Destination[Any]],
    complain: Callable[[str], None],
) -> Destination[Any]:
    """Return the destination that `make` makes, wrapped in an `OnceDestination` with `--once`.

    Raises `ConfigError` if the options do not fit together, and `LocalError` if the maildir or
    the database cannot be opened.
    """
    if options.once is None:
        if options.once_file is not None:
            raise ConfigError("--once-file: only with --once")
        return make()
    keep_s = parse_seconds(options.once, "--once")
    if keep_s <= 0:
        raise ConfigError(f"--once: more than nothing, not {options.once!r}")
    if options.stdio:
        raise ConfigError("--once: one receiver has to see all clients; not with --stdio")
    from maildirqmtp.maildir import writing
    from maildirqmtp.receiver.once.destination import OnceDestination
    from maildirqmtp.receiver.once.memory import Memory

    path = options.queue if options.dir is None else options.dir
    if path is not None:
        writing.create(os.fsencode(path))
    memory = Memory(_file(options, path), keep_s, time.time)
    try:
        memory.recover(None if path is None else os.fsencode(path))  # before `make` cleans tmp/
        return OnceDestination(make(), memory, stages=path is not None, complain=complain)
    except BaseException:
        memory.close()
        raise


def _file(options: argparse.Namespace, path: str | None) -> str:
    if options.once_file is not None:
        return str(options.once_file)
    if path is None:
        raise ConfigError("--once: with --deliver, say with --once-file where to remember")
    if os.geteuid() == 0 and os.stat(path).st_uid != 0:
        raise ConfigError(
            "--once: as root, name a file of root's directories with --once-file; a user could "
            "put a link in place of one in DIR"
        )
    return os.path.join(path, _FILE)
