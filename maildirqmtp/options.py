"""The options of the command line: the parser, and a route made of what it found."""

from __future__ import annotations

import argparse
import os

from maildirqmtp import __version__, route
from maildirqmtp.errors import ConfigError
from maildirqmtp.text import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

EXIT_USAGE = 100

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


def make_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="maildirqmtp",
        usage="maildirqmtp [OPTION...] DIR [PREFIX] SERVER\n"
        "       maildirqmtp --enqueue DIR --sender ADDRESS --recipient ADDRESS... < MESSAGE\n"
        "       maildirqmtp --demo",
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
    add(
        "--bounce",
        action=argparse.BooleanOptionalAction,
        help="tell senders of failures, or not (with PREFIX: yes; else: no)",
    )
    add("--max-bounces", metavar="N", help="bounces in one run (100); then to the failed maildir")
    add("--bounce-via", metavar="HOW", help="sendmail, server or maildir:DIR (sendmail)")
    add("--sendmail", metavar="COMMAND", help="run as COMMAND -i -f '' -- SENDER")
    add("--cur", action="store_true", help="take messages from cur/ as well as from new/")
    add("--dry-run", action="store_true", help="list what would be sent, and send nothing")
    add("--json", action="store_true", help="write events to standard output, one object a line")
    add("-v", "--verbose", action="store_true", help="a line for each recipient")
    add("-q", "--quiet", action="store_true", help="errors only")
    add("--enqueue", metavar="DIR", help="put the message on standard input into DIR, and exit")
    add("--demo", action="store_true", help="show a whole run on messages made up for it")
    add("--version", action="version", version=f"maildirqmtp {__version__}")
    return parser


def make_route(options: argparse.Namespace) -> route.Route:
    """Return the route that the options ask for. Raises `ConfigError`."""
    arguments: list[str] = options.arguments
    if not 2 <= len(arguments) <= 3:
        raise ConfigError("DIR and SERVER, or DIR, PREFIX and SERVER are needed")
    port = route.QMTP_PORT if options.port is None else route.parse_port(options.port, "--port")
    messages, window_bytes = route.WINDOW_MESSAGES, route.WINDOW_BYTES
    if options.window is not None:
        messages, window_bytes = route.parse_window(options.window, "--window")
    sender, recipients = envelope(options)
    chosen = route.Route(
        maildir=os.fsencode(arguments[0]),
        prefix=os.fsencode(arguments[1]) if len(arguments) == 3 else b"",
        server=route.parse_server(arguments[-1], port),
        sender=sender,
        recipients=recipients,
        bounce=len(arguments) == 3 if options.bounce is None else options.bounce,
        bounce_via=_bounce_via(options.bounce_via),
        sendmail=_sendmail(options.sendmail),
        max_bounces=_count(options.max_bounces, "--max-bounces", route.MAX_BOUNCES),
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


def envelope(options: argparse.Namespace) -> tuple[bytes | None, tuple[bytes, ...]]:
    """Return the sender and the recipients that the options name. Raises `ConfigError`."""
    sender = None if options.sender is None else _address(options.sender, "sender")
    return sender, tuple(_address(text, "recipient") for text in options.recipient)


def _bounce_via(text: str | None) -> str:
    if text is None:
        return "sendmail"
    where, colon, path = text.partition(":")
    if text not in ("sendmail", "server") and not (where == "maildir" and colon and path):
        raise ConfigError(f"--bounce-via: sendmail, server or maildir:DIR, not {text!r}")
    return text


def _sendmail(text: str | None) -> tuple[bytes, ...]:
    if text is None:
        return route.SENDMAIL
    import shlex

    try:
        words = tuple(os.fsencode(word) for word in shlex.split(text))
    except ValueError as error:
        raise ConfigError(f"--sendmail: {text!r}: {error}") from None
    if not words:
        raise ConfigError("--sendmail: a command is needed")
    return words


def _count(text: str | None, where: str, default: int) -> int:
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) <= 9):
        raise ConfigError(f"{where}: a number is needed, not {text!r}")
    return int(text)


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
    via, _, bounces = chosen.bounce_via.partition(":")
    for flag, path in (
        ("--sent", chosen.sent),
        ("--failed", chosen.failed),
        ("--bounce-via", os.fsencode(bounces) if via == "maildir" else None),
    ):
        if path is not None and os.path.realpath(path) == os.path.realpath(chosen.maildir):
            raise ConfigError(f"{flag}: {printable(path)} is the maildir that is forwarded")
