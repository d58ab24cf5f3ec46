"""The command line of `maildirqmtp`.

Exit codes are serialmail's: 0 nothing of ours is left, 111 something is left or
failed, 100 wrong usage.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys

from maildirqmtp import __version__, route
from maildirqmtp.errors import ConfigError, EnvelopeError, FileChangedError, LocalError
from maildirqmtp.text import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn

EXIT_USAGE = 100
EXIT_TEMPORARY = 111

_DESCRIPTION = """\
Forward the messages of a maildir to a mail server over QMTP, and exit. Each is
sent to the envelope that its Return-Path and Delivered-To lines (or its
sidecar) say, and goes when the server has taken it. With PREFIX, only
recipients that begin with it, and without it.
"""
_EPILOG = """\
SERVER is NAME, NAME:PORT, [::1]:PORT or qmtp://NAME[:PORT].
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


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="maildirqmtp",
        usage="maildirqmtp [OPTION...] DIR [PREFIX] SERVER\n       maildirqmtp --demo",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=_Formatter,
        allow_abbrev=False,
    )
    parser.add_argument("arguments", nargs="*", metavar="DIR [PREFIX] SERVER")
    add = parser.add_argument
    add("--port", metavar="N", help="port, where SERVER has none (209)")
    add("--window", metavar="N[,SIZE]", help="most messages and bytes in flight (4096,32M)")
    add("--connect-timeout", metavar="TIME", help="for each address of the server (60s)")
    add("--write-timeout", metavar="TIME", help="without a byte taken by the server (73s)")
    add("--response-timeout", metavar="TIME", help="for the answer to a message (1h)")
    add("--lifetime", metavar="TIME", help="age at which a deferral counts as a failure (14d)")
    add("--sent", metavar="MAILDIR", help="move accepted messages there instead of removing them")
    add("--failed", metavar="MAILDIR", help="where failed messages go (DIR/.Failed)")
    add("--sender", metavar="ADDRESS", help="envelope sender, whatever the messages say")
    add(
        "--recipient",
        metavar="ADDRESS",
        action="append",
        default=[],
        help="envelope recipient, whatever the messages say; may be given again",
    )
    add("--cur", action="store_true", help="take messages from cur/ as well as from new/")
    add("--dry-run", action="store_true", help="list what would be sent, and send nothing")
    add("--json", action="store_true", help="write events to standard output, one object a line")
    add("-v", "--verbose", action="store_true", help="a line for each recipient")
    add("-q", "--quiet", action="store_true", help="errors only")
    add("--demo", action="store_true", help="show a whole run on messages made up for it")
    add("--version", action="version", version=f"maildirqmtp {__version__}")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    _mend_output()
    parser = _parser()
    words = list(sys.argv[1:] if argv is None else argv)
    # By hand: argparse would not take what follows `--` as arguments among options.
    end = words.index("--") if "--" in words else len(words)
    options = parser.parse_intermixed_args(words[:end])
    options.arguments += words[end + 1 :]
    try:
        if options.demo:
            if options.arguments:
                raise ConfigError("--demo takes no maildir and no server; it makes its own")
            from maildirqmtp.demo import run

            return run()
        chosen = _route(options)
        return _dry_run(chosen, options.json) if options.dry_run else _flush(chosen, options)
    except ConfigError as error:
        parser.error(str(error))
    except LocalError as error:
        print(f"maildirqmtp: {error}", file=sys.stderr)
        return EXIT_TEMPORARY
    except OSError as error:
        # Nobody to tell that they stopped reading us; a full disk is another matter.
        if not isinstance(error, BrokenPipeError):
            print(f"maildirqmtp: {error.strerror}", file=sys.stderr)
        return EXIT_TEMPORARY
    except KeyboardInterrupt:
        return EXIT_TEMPORARY
    finally:
        _flush_output()


def _mend_output() -> None:
    """Make both streams fit to be written to: not closed, and not choking on an address."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by whoever started us
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _flush_output() -> None:
    """Flush standard output; where nobody reads it any more, let the rest go quietly."""
    try:
        sys.stdout.flush()
    except OSError:
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, sys.stdout.fileno())
        os.close(devnull)


def _route(options: argparse.Namespace) -> route.Route:
    arguments: list[str] = options.arguments
    if not 2 <= len(arguments) <= 3:
        raise ConfigError("DIR and SERVER, or DIR, PREFIX and SERVER are needed")
    port = route.QMTP_PORT if options.port is None else route.parse_port(options.port, "--port")
    messages, window_bytes = route.WINDOW_MESSAGES, route.WINDOW_BYTES
    if options.window is not None:
        messages, window_bytes = route.parse_window(options.window, "--window")
    sender = None if options.sender is None else _address(options.sender, "sender")
    recipients = tuple(_address(text, "recipient") for text in options.recipient)
    chosen = route.Route(
        maildir=os.fsencode(arguments[0]),
        prefix=os.fsencode(arguments[1]) if len(arguments) == 3 else b"",
        server=route.parse_server(arguments[-1], port),
        sender=sender,
        recipients=recipients,
        include_cur=options.cur,
        sent=None if options.sent is None else os.fsencode(options.sent),
        failed=None if options.failed is None else os.fsencode(options.failed),
        lifetime_s=_seconds(options, "lifetime", route.LIFETIME_S),
        window_messages=messages,
        window_bytes=window_bytes,
        connect_timeout_s=_seconds(options, "connect_timeout", route.CONNECT_TIMEOUT_S, above=0),
        write_timeout_s=_seconds(options, "write_timeout", route.WRITE_TIMEOUT_S, above=0),
        response_timeout_s=_seconds(options, "response_timeout", route.RESPONSE_TIMEOUT_S, above=0),
    )
    _check_targets(chosen)
    return chosen


def _seconds(options: argparse.Namespace, name: str, default: float, above: float = -1.0) -> float:
    text = getattr(options, name)
    if text is None:
        return default
    flag = "--" + name.replace("_", "-")
    seconds = route.parse_seconds(text, flag)
    if seconds <= above:
        raise ConfigError(f"{flag}: more than {above:g} seconds are needed, not {text!r}")
    return seconds


def _address(text: str, what: str) -> bytes:
    from maildirqmtp.protocol import check_address

    address = os.fsencode(text)
    reason = check_address(address, what)
    if reason is None and what == "recipient" and not address:
        reason = "a recipient must not be empty"
    if reason is not None:
        raise ConfigError(f"--{what}: {reason}")
    return address


def _check_targets(chosen: route.Route) -> None:
    """Refuse to move messages from a maildir into itself."""
    for flag, path in (("--sent", chosen.sent), ("--failed", chosen.failed)):
        if path is not None and os.path.realpath(path) == os.path.realpath(chosen.maildir):
            raise ConfigError(f"{flag}: {printable(path)} is the maildir that is forwarded")


def _dry_run(chosen: route.Route, as_json: bool) -> int:
    """List what would be sent on standard output; reasons for the rest on standard error."""
    from maildirqmtp.delivery import prepare
    from maildirqmtp.maildir import Maildir

    held = 0
    with Maildir(chosen.maildir) as maildir:
        for folder, name in maildir.scan(chosen.include_cur):
            try:
                delivery = prepare(maildir, chosen, folder, name)
            except (EnvelopeError, FileChangedError, LocalError) as error:
                print(f"maildirqmtp: {printable(name)}: held: {error}", file=sys.stderr)
                held += 1
                continue
            if delivery is None:
                continue
            delivery.message.close()
            shown = {
                "message": printable(name),
                "sender": printable(delivery.sender),
                "recipients": [printable(r) for r in delivery.recipients],
                "bytes": delivery.length,
            }
            if as_json:
                import json

                print(json.dumps({"event": "would-send", **shown}))
            else:
                to = ", ".join(printable(r) for r in delivery.recipients)
                print(f"{shown['message']}: <{shown['sender']}> to {to}, {delivery.length} bytes")
    sys.stdout.flush()
    return EXIT_TEMPORARY if held else 0


def _flush(chosen: route.Route, options: argparse.Namespace) -> int:
    # A message makes no reference cycles, but enough objects to set the collector off all the
    # time, at an eighth of the whole run's cost; a full window stays below this many.
    gc.set_threshold(100_000, 20, 50)
    from maildirqmtp.batch import flush
    from maildirqmtp.report import Report

    verbosity = -1 if options.quiet else int(options.verbose)
    progress = None
    if verbosity == 0 and not options.json and sys.stderr.isatty():
        from maildirqmtp.progress import make

        progress = make(sys.stderr)
    report = Report(sys.stderr, sys.stdout if options.json else None, verbosity, progress)
    return flush(chosen, report)
