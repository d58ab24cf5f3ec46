"""The command line of `qmtpq`: what waits in a maildir or has failed, and what to do about it.

Exit codes are those of `maildirqmtp`: 0 done, 111 something could not be read or done, 100
wrong usage.
"""

from __future__ import annotations

import argparse
import os
import sys
from functools import partial
from typing import TYPE_CHECKING

from maildirqmtp import __version__
from maildirqmtp.cli.output import complain, flush_output, mend_output
from maildirqmtp.cli.queue_selection import Selected, Selection
from maildirqmtp.daemon import listing
from maildirqmtp.daemon.entry_filter import EntryFilter
from maildirqmtp.descriptor_limit import raise_limit
from maildirqmtp.errors import ConfigError, LocalError
from maildirqmtp.exit_codes import EXIT_TEMPORARY, EXIT_USAGE
from maildirqmtp.mail import addresses
from maildirqmtp.settings import flags_and_keys
from maildirqmtp.settings.parser import Parser
from maildirqmtp.settings.types import AddressType, DurationType, NumberType, PathType

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, NoReturn

    from maildirqmtp.forwarder.route import Route

_USAGE = """\
qmtpq COMMAND [OPTION...] DIR [NAME...]
       qmtpq COMMAND [OPTION...] --config FILE [NAME...]"""
COMMANDS = {
    "list": "list what waits and what has failed, oldest first, and why",
    "summary": "list how many, and the oldest, by recipient domain and reason",
    "show": "show all that is known of messages, and their headers",
    "drop": "remove messages for good, telling nobody; asks, unless --yes is given",
    "bounce": "tell the senders now, and remove the messages; asks, as drop does",
    "resend": "put failed messages back into the queue, to those who failed",
    "hold": "have no forwarder send messages until they are released",
    "release": "let held messages go, and have the running daemon try them now",
    "retry": "have the running daemon try all that waits now, if NAME is there",
    "flush": "have the running daemon try all that waits now",
}
_EPILOG = """\
NAME is a message's file name, as list shows it; where that ends with +, it is
the beginning of the name. DIR is a maildir; with --config FILE it is those of
the routes in the file. TIME is in seconds, or as in 90s, 5m, 2h, 14d.

Exit codes: 0 done; 111 something could not be looked at or done; 100 wrong
usage.
"""
#: Messages that `list` shows on a terminal without --limit.
LIMIT = 100
_CHANGES_MESSAGES = ("drop", "bounce", "resend", "hold", "release")
#: Commands that cannot be undone, and so ask first.
_ASKS = ("drop", "bounce")
#: The settings of a route that say how bounces go.
_BOUNCES = [
    setting
    for setting in flags_and_keys.ROUTE
    if setting.field in ("bounce_via", "sendmail", "hostname")
]
#: Commands that take no NAME.
WITHOUT_NAMES = ("summary", "flush")
#: Commands that leave failed messages alone.
_ABOUT_WAITING = ("hold", "release", "retry", "flush")


class _Parser(Parser):
    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_USAGE, f"qmtpq: {message}; try qmtpq --help\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    mend_output()
    words = list(sys.argv[1:] if argv is None else argv)
    changes = False
    try:
        options = read_command_line(words)
        changes = options.command in _CHANGES_MESSAGES
        code = _do(options, _selection(options))
        sys.stdout.flush()  # a full disk is an error, and no list
        return code
    except ConfigError as error:
        complain("qmtpq", f"{error}; try qmtpq --help")
        return EXIT_USAGE
    except LocalError as error:
        complain("qmtpq", str(error))
        return EXIT_TEMPORARY
    except BrokenPipeError as error:  # as with head(1): nobody reads the rest
        if changes:
            complain(
                "qmtpq", f"standard output: {error.strerror}; messages may be left as they were"
            )
        return EXIT_TEMPORARY
    except OSError as error:
        complain("qmtpq", f"standard output: {error.strerror}")
        return EXIT_TEMPORARY
    except KeyboardInterrupt:
        return EXIT_TEMPORARY
    finally:
        flush_output()


# The command line


def make_parser() -> argparse.ArgumentParser:
    """Return the parser: a wrong value makes it raise `ConfigError`, other wrong usage exit 100."""
    commands = "\n".join(f"  {name:<8}{text}" for name, text in COMMANDS.items())
    parser = _Parser(
        prog="qmtpq",
        usage=_USAGE,
        description=f"Look at the queue of a maildir, and change it.\n\n{commands}",
        epilog=_EPILOG,
        formatter_class=partial(argparse.RawDescriptionHelpFormatter, width=78),
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("command", choices=COMMANDS, metavar="COMMAND", help=argparse.SUPPRESS)
    add("arguments", nargs="*", metavar="DIR [NAME...]", help=argparse.SUPPRESS)
    path = partial(PathType().parse, where="--failed-maildir")
    older = partial(DurationType().parse, where="--older")
    limit = partial(NumberType().parse, where="--limit")
    recipient = partial(AddressType("recipient").parse, where="--recipient")
    add("--config", metavar="FILE", help="the maildirs of the routes in a file of maildirqmtp's")
    add("--failed-maildir", type=path, metavar="MAILDIR", help="not DIR/.Failed, but this one")
    add("--cur", action="store_true", help="look at what is in cur/, too")
    add("--to", metavar="ADDRESS", help="only messages to ADDRESS, or to @DOMAIN")
    add("--from", dest="sender", metavar="ADDRESS", help="only from ADDRESS or @DOMAIN; '' is <>")
    add("--older", type=older, metavar="TIME", help="only those that came TIME ago or earlier")
    add("--why", metavar="TEXT", help="only those with TEXT in their reason")
    for state, what in (
        (listing.WAITING, "wait to be sent"),
        (listing.HELD, "cannot be sent as they are, or are on hold"),
        (listing.FAILED, "were refused"),
    ):
        choose: dict[str, Any] = {"dest": "state", "action": "append_const", "const": state}
        add(f"--{state}", **choose, help=f"only those that {what}")
    add("--all", action="store_true", help="change all messages, in place of names and filters")
    add("--limit", type=limit, metavar="N", help=f"list so many ({LIMIT} on a terminal)")
    add("--summary", action="store_true", help="list counts by recipient domain and reason")
    add("--names", action="store_true", help="list names only, one a line, as shells complete them")
    add("--json", action="store_true", help="one JSON object a line")
    add("--recipient", type=recipient, metavar="ADDRESS", action="append", default=[],
        help="resend to ADDRESS instead; may be repeated")  # fmt: skip
    for setting in _BOUNCES:
        read: dict[str, Any] = {"dest": setting.field, "type": setting.from_flag}
        read |= {"metavar": setting.type.metavar, "help": f"bounce: {setting.described}"}
        add(setting.flag, **read)
    add("--yes", action="store_true", help="drop or bounce without asking")
    add("--version", action="version", version=f"qmtpq {__version__}")
    return parser


def read_command_line(words: list[str]) -> argparse.Namespace:
    """Read a command line; options and names may be mixed.

    Raises `ConfigError` if a value is wrong, or if options do not fit together or the command.
    """
    parser = make_parser()
    end = words.index("--") if "--" in words else len(words)
    options = parser.parse_intermixed_args(words[:end])
    options.arguments += words[end + 1 :]
    command = options.command
    for flag, given, commands in (
        ("--limit", options.limit is not None, ("list",)),
        ("--summary", options.summary, ("list",)),
        ("--names", options.names, ("list",)),
        ("--recipient", options.recipient, ("resend",)),
        ("--yes", options.yes, _ASKS),
        *((s.flag, getattr(options, s.field) is not None, ("bounce",)) for s in _BOUNCES),
        ("--all", options.all, _CHANGES_MESSAGES),
    ):
        if given and command not in commands:
            raise ConfigError(f"{flag} only makes sense with {' or '.join(commands)}")
    if command in _ASKS and options.json and not options.yes:
        raise ConfigError(f"{command} --json asks nobody; write --yes as well")
    if options.names and (options.summary or options.json):
        raise ConfigError("--names lists names only; write it without --summary and --json")
    if options.summary and options.limit is not None:
        raise ConfigError("--summary counts all messages; write it without --limit")
    if options.config is not None and options.failed_maildir is not None:
        raise ConfigError("--failed-maildir stands in the file; write DIR instead of --config FILE")
    if options.config is None and not options.arguments:
        raise ConfigError("DIR or --config FILE is needed")
    if options.why is not None and not options.why.strip():  # $UNSET in a script
        raise ConfigError("--why: a text is needed; every reason has an empty one")
    return options


def _selection(options: argparse.Namespace) -> Selection:
    """Return the maildirs and messages that the command line selects.

    Raises `ConfigError` if a filter or the file is wrong, or if the command needs another choice.
    """
    states = set(options.state or ())
    if len(states) > 1:
        raise ConfigError(f"--{' and --'.join(sorted(states))} leave nothing; write one of them")
    wanted = EntryFilter(
        _pattern(options.to, "recipient", "--to"),
        _pattern(options.sender, "sender", "--from"),
        options.older,
        options.why,
        *states,
    )
    names = list(map(os.fsencode, options.arguments))
    routes: tuple[Route, ...] = ()
    if options.config is None:
        path = flags_and_keys.MAILDIR.type.parse(os.fsdecode(names.pop(0)), "DIR")
        places = listing.places_of(path, options.failed_maildir, options.cur)
    else:
        from maildirqmtp.settings import command_line, config

        raise_limit()  # each maildir of the file stays open
        routes = config.read(
            options.config, command_line.parse(["--config", options.config])
        ).routes
        places = listing.places_of_routes(
            r._replace(include_cur=r.include_cur or options.cur) for r in routes
        )
    selection = Selection(tuple(places), tuple(names), wanted, routes)
    _check_scope(options, selection)
    return selection


def _check_scope(options: argparse.Namespace, selection: Selection) -> None:
    """Raise `ConfigError` if names, filters or --all are missing, or do not fit the command."""
    command, state, asks = options.command, selection.filter.state, selection.filter.asks
    if command == "show" and not selection.names:
        raise ConfigError("show needs the NAME of a message; list shows them all")
    if options.all and (selection.names or asks):
        raise ConfigError("--all means all messages; write it without names and without filters")
    if command in _CHANGES_MESSAGES and not (selection.names or asks or options.all):
        raise ConfigError(f"{command} needs NAME..., --to, --from, --older, --why or --all")
    if command == "resend" and state not in (None, listing.FAILED):
        raise ConfigError(f"resend is about failed messages; write it without --{state}")
    if command in ("hold", "release") and state == listing.FAILED:
        raise ConfigError(f"{command} is about messages that wait; write it without --failed")
    if (command == "summary" or options.summary) and selection.names:
        raise ConfigError("a summary counts all messages; choose some by --to, --from and the like")
    if command in ("retry", "flush") and (asks or state is not None):
        raise ConfigError(f"{command} has the daemon try all that waits; write it without filters")
    if command == "flush" and selection.names:
        raise ConfigError("flush takes only DIR; write retry DIR NAME")


def _pattern(text: str | None, what: str, flag: str) -> bytes | None:
    """Read an address, or @DOMAIN. Raises `ConfigError` if the text is neither.

    Any address that an envelope may hold, not only one that new mail may be sent to.
    """
    if text is None:
        return None
    try:
        (written,) = addresses.split(os.fsencode(text or "<>"))
    except ValueError:
        raise ConfigError(f"{flag}: {text!r} is not one address") from None
    if not written and what == "recipient":
        raise ConfigError(f"{flag}: a {what} must not be empty")
    return addresses.raw_sender(written) if what == "sender" else addresses.unquote(written)


# The commands


def _do(options: argparse.Namespace, selection: Selection) -> int:
    meant = selection.of_places(_failed_ones(options.command, selection))
    with Selected(meant, partial(complain, "qmtpq")) as selected:
        if options.command in ("list", "show", "summary"):
            return _look(options, selected, bool(selection.names))
        from maildirqmtp.cli import queue_changes

        if options.command == "drop":
            return queue_changes.drop(selected, options.yes, options.json)
        if options.command == "bounce":
            from maildirqmtp.cli.queue_bounce import bounce

            given = {s.field: getattr(options, s.field) for s in _BOUNCES}
            given = {field: value for field, value in given.items() if value is not None}
            return bounce(selected, given, options.yes, options.json)
        if options.command == "resend":
            return queue_changes.resend(selected, tuple(options.recipient), options.json)
        change = {"hold": queue_changes.hold, "release": queue_changes.release}
        return change.get(options.command, queue_changes.retry)(selected, options.json)


def _failed_ones(command: str, selection: Selection) -> bool | None:
    """Return whether a command is about failed maildirs (True), the others (False) or both."""
    state = selection.filter.state
    if command == "resend":
        return True
    if command in _ABOUT_WAITING:
        return False
    if state is not None:
        return state == listing.FAILED
    # Names are looked for in both, and `chosen` refuses one that is in both. Without names, drop
    # and bounce take failed messages only with --failed.
    return False if command in _ASKS and not selection.names else None


def _look(options: argparse.Namespace, selected: Selected, by_name: bool) -> int:
    from maildirqmtp.cli import queue_list

    if options.command == "show":
        return queue_list.show(selected, options.json)
    if options.summary or options.command == "summary":
        return queue_list.summarise(selected, options.json)
    if options.names:
        return queue_list.list_names(selected, by_name, options.limit)
    limit = options.limit
    if limit is None and not options.json and sys.stdout.isatty():
        limit = LIMIT
    return queue_list.list_messages(selected, by_name, limit, options.json)


if __name__ == "__main__":
    sys.exit(main())
