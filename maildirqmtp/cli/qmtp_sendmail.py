"""The command line of `qmtp-sendmail`: sendmail's, as mail programs and scripts use it.

Exit codes are those of sysexits(3). Other options of sendmail, Postfix or Exim are ignored if
ignoring them loses nothing.

    cron (Debian)     sendmail -i -FCronDaemon -B8BITMIME -oem USER
    cronie            sendmail -FCronDaemon -i -odi -oem -oi -t -f USER
    mutt, neomutt     sendmail -oem -oi [-f ADDRESS] [-N ... -R ...] -- ADDRESS...
    git send-email    sendmail -i [-f ADDRESS] ADDRESS...
    bsd-mailx         send-mail -i -t [-f ADDRESS]
    s-nail            sendmail -i [-F NAME] [-r ADDRESS] -- ADDRESS...
    PHP               sendmail -t -i [-fADDRESS]
    Emacs             sendmail [-f ADDRESS] -oi [-oem -odb] -t
    logwatch          sendmail -t
"""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING

from maildirqmtp import __version__
from maildirqmtp.cli.output import complain, flush_output, mend_output
from maildirqmtp.errors import ConfigError, EnvelopeError, QMTPError
from maildirqmtp.exit_codes import (
    EX_CONFIG,
    EX_DATAERR,
    EX_NOUSER,
    EX_TEMPFAIL,
    EX_USAGE,
    EXIT_OK,
)
from maildirqmtp.mail import addresses
from maildirqmtp.settings.parser import Parser
from maildirqmtp.text import printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from maildirqmtp.settings.submission import Submission
    from maildirqmtp.submission.sendmail import Request

_USAGE = "qmtp-sendmail [OPTION...] [ADDRESS...] < MESSAGE"
_EPILOG = """\
Other options of sendmail are ignored. Exit codes are those of sysexits(3): 0
the message is on disk, 64 wrong usage, 65 the message or an address in it is
wrong, 67 no such user, 69 refused, 75 try again later, 77 not allowed, 78 the
configuration is wrong.
"""

#: Ignored options that take a value.
_IGNORED_WITH_VALUE = ("A", "B", "C", "D", "e", "h", "L", "N", "p", "R", "V", "X")
#: Ignored options without a value.
_IGNORED = ("c", "G", "m", "n", "U", "v", "w", "x")
#: Modes of -b other than -bm, -bp and -bi, and why each is refused.
_MODES_REFUSED = {
    "s": "there is no SMTP on standard input; use -t, or give the recipients as arguments",
    "d": "it is no daemon; qmtpmaildir --queue is",
    "D": "it is no daemon; qmtpmaildir --queue is",
    "t": "there is no test mode",
    "v": "addresses cannot be verified before the mail server sees them",
}


class _Parser(Parser):
    unwritten = EX_TEMPFAIL


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    mend_output()
    name = os.path.basename(sys.argv[0])
    try:
        options = _parse(list(sys.argv[1:] if argv is None else argv), name)
        request = _request(options)
    except ConfigError as error:
        _tell(str(error))
        return EX_USAGE
    try:
        return _do(options, request)
    except QMTPError as error:
        _tell(str(error))
        return _exit_code(error)
    except BrokenPipeError:  # as with head(1): nobody reads the rest
        return EX_TEMPFAIL
    except OSError as error:
        _tell(error.strerror or str(error))
        return EX_TEMPFAIL
    except KeyboardInterrupt:
        return EX_TEMPFAIL
    finally:
        flush_output()


def _exit_code(error: QMTPError) -> int:
    from maildirqmtp.submission.local_names import NoSuchUser

    if isinstance(error, NoSuchUser):
        return EX_NOUSER
    if isinstance(error, EnvelopeError):
        return EX_DATAERR
    return EX_CONFIG if isinstance(error, ConfigError) else EX_TEMPFAIL


def _tell(text: str) -> None:
    complain("qmtp-sendmail", text)


def _do(options: argparse.Namespace, request: Request) -> int:
    if options.mode == "i":
        return EXIT_OK  # newaliases: the aliases are read each time
    from maildirqmtp.settings.submission import read

    settings = read(_tell)
    if options.mode == "p":
        from maildirqmtp.cli.queues import list_queues

        code = list_queues(_queues(settings), _tell)
        sys.stdout.flush()  # a full disk is an error, and no list
        return code
    if options.flush:
        from maildirqmtp.cli.queues import try_now

        return try_now(_queues(settings), _tell)
    from maildirqmtp.submission.message_input import standard_input
    from maildirqmtp.submission.sendmail import send

    return send(request, settings, standard_input(), _tell)


def _queues(settings: Submission) -> list[bytes]:
    """Return the maildirs that this user's mail may wait in.

    The machine's queue is left out if the user has a maildir of their own, the settings
    do not name another queue, and the user may not read it.
    """
    from maildirqmtp.settings.submission import QUEUE

    own = settings.maildir
    found = [own] if own is not None and os.path.lexists(own) else []
    if own is None or settings.queue != QUEUE or os.access(QUEUE, os.R_OK | os.X_OK):
        found.insert(0, settings.queue)
    return found


def _parse(words: list[str], program: str) -> argparse.Namespace:
    """Read the command line.

    Options and addresses may be mixed, as most systems' getopt(3) allows; words after `--`
    are addresses. -q and -d take only an attached value. Raises `ConfigError` if an option
    is unknown or lacks its value, or if the mode of -b is refused.
    """
    end = words.index("--") if "--" in words else len(words)
    own = [word for word in words[:end] if not word.startswith(("-q", "-d"))]
    parser = make_parser()
    options = parser.parse_intermixed_args(own)
    options.addresses += words[end + 1 :]
    # -q with an interval asks for a daemon that keeps trying; there is one, so it is a plain -q.
    options.flush = options.flush or any(word.startswith("-q") for word in words[:end])
    options.mode = {"mailq": "p", "newaliases": "i"}.get(program, options.mode)
    if options.mode not in ("m", "p", "i"):
        why = _MODES_REFUSED.get(options.mode, "there is no such mode")
        raise ConfigError(f"-b{options.mode}: {why}")
    return options


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line; wrong usage makes it raise `ConfigError`."""
    parser = _Parser(
        prog="qmtp-sendmail",
        usage=_USAGE,
        description="Send a message, or look at the queue, with sendmail's command line.",
        epilog=_EPILOG,
        # With a width given, argparse does not import shutil in every run to find it.
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, width=78),
        allow_abbrev=False,
        add_help=False,  # -h is another option
    )
    add = parser.add_argument
    add("addresses", nargs="*", metavar="ADDRESS", help="a recipient")
    add("-t", dest="from_header", action="store_true", help="recipients from To, Cc and Bcc, too")
    add("-f", "-r", dest="sender", metavar="ADDRESS", help="envelope sender; '' for none")
    add("-F", dest="full_name", metavar="NAME", help="the sender's name, where From is missing")
    add("-i", dest="dots", action="store_true", help="a lone dot does not end the message; -oi")
    add("-b", dest="mode", metavar="MODE", default="m", help="-bp: list the queue; -bm: send")
    add("-I", dest="mode", action="store_const", const="i", help=argparse.SUPPRESS)
    add("-q", dest="flush", action="store_true", help="try to send what waits now")
    add("-o", dest="options", metavar="OPTION", action="append", default=[], help="-oi is -i")
    add("-O", dest="named", metavar="X", action="append", default=[], help=argparse.SUPPRESS)
    for letter in _IGNORED_WITH_VALUE:
        add(f"-{letter}", dest="ignored", metavar="X", help=argparse.SUPPRESS)
    for letter in _IGNORED:
        add(f"-{letter}", dest="ignored", action="store_true", help=argparse.SUPPRESS)
    add("--help", action="help", help="show this, and exit")
    add("--version", action="version", version=f"qmtp-sendmail {__version__}")
    return parser


def _request(options: argparse.Namespace) -> Request:
    """Return what the command line asks for.

    Raises `ConfigError` if an address is wrong, or if there is to be no recipient.
    """
    from maildirqmtp.submission.sendmail import Request

    sender = None if options.sender is None else _address(options.sender, "sender")
    recipients = tuple(_address(text, "recipient") for text in options.addresses)
    sends = options.mode == "m" and not options.flush
    if sends and not recipients and not options.from_header:
        raise ConfigError("recipients are needed, as arguments or with -t in the header")
    named = [text.lower().replace(" ", "") for text in options.named]
    keeps_dots = options.dots or any(text.startswith("i") for text in options.options)
    keeps_dots = keeps_dots or "ignoredots" in named or "ignoredots=true" in named
    return Request(sender, options.full_name, recipients, options.from_header, not keeps_dots)


def _address(text: str, what: str) -> bytes:
    raw = os.fsencode(text)
    try:
        found = addresses.parse(raw, what)
    except ValueError as error:
        raise ConfigError(f"{what}: {error}") from None
    if found.startswith(b"-"):
        raise ConfigError(f"{what}: {printable(raw)!r} begins with -, as an option does")
    return found


if __name__ == "__main__":
    sys.exit(main())
