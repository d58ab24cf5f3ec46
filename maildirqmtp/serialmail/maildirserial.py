"""The command line of `maildirserial`: a maildir to a client, message by message.

    maildirserial -b -t 1209600 DIR PREFIX tcpclient HOST 209 serialqmtp PREFIX

Exit codes are serialmail's: 0 no message for PREFIX is left, 111 some are, 100
wrong usage, of this program or of the client.
"""

from __future__ import annotations

import getopt
import os
import shlex
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from maildirqmtp.errors import ConfigError, LocalError
from maildirqmtp.exit_codes import EXIT_TEMPORARY, EXIT_USAGE
from maildirqmtp.forwarder.route import SENDMAIL, Route
from maildirqmtp.maildir.cleanup import clean
from maildirqmtp.maildir.directories import open_directory
from maildirqmtp.maildir.maildir import Maildir
from maildirqmtp.serialmail.client_loop import ClientLoop
from maildirqmtp.serialmail.help_text import show
from maildirqmtp.serialmail.report import SerialmailReport
from maildirqmtp.settings.units import parse_seconds
from maildirqmtp.text import printable
from maildirqmtp.transport.endpoint import UcspiEndpoint
from maildirqmtp.transport.signals import stop_signals

if TYPE_CHECKING:
    from collections.abc import Sequence

USAGE = "usage: maildirserial [ -b ] [ -t lifetime ] dir prefix client [ arg ... ]"
HELP = """\
usage: maildirserial [OPTION...] DIR PREFIX CLIENT [ARG...]

Runs CLIENT in the maildir DIR, writes it the names of the messages whose
recipient begins with PREFIX, and acts on its results.
  -b                  bounce what has failed to its sender
  -t LIFETIME         age at which a deferral is a failure, as in 1209600 or 14d
  --sendmail COMMAND  what takes bounces (/usr/sbin/sendmail)
Exit codes: 0 nothing is left, 111 something is, 100 wrong usage.
See maildirserial(1).
"""


@dataclass(frozen=True, slots=True)
class Arguments:
    """The parsed command line; `lifetime_s` is infinite without -t."""

    maildir: bytes
    prefix: bytes
    client: tuple[bytes, ...]
    bounce: bool = False
    lifetime_s: float = float("inf")
    sendmail: tuple[bytes, ...] = SENDMAIL


def parse(words: Sequence[str]) -> Arguments:
    """Parse the command line. Raises `ConfigError` if an option is wrong or an argument missing."""
    bounce, lifetime_s = False, float("inf")
    sendmail: tuple[bytes, ...] = SENDMAIL
    try:
        # getopt, and not argparse, because it stops at DIR: the client's options, and a `--`
        # among them, are passed on as they are.
        options, arguments = getopt.getopt(list(words), "bt:", ["sendmail="])
        for option, value in options:
            if option == "-b":
                bounce = True
            elif option == "-t":
                lifetime_s = parse_seconds(value)
            else:
                sendmail = tuple(map(os.fsencode, shlex.split(value)))
    except (getopt.GetoptError, ValueError) as error:
        raise ConfigError(str(error)) from error
    if len(arguments) < 3 or not sendmail:
        raise ConfigError("too few arguments")
    maildir, prefix, *client = map(os.fsencode, arguments)
    return Arguments(maildir, prefix, tuple(client), bounce, lifetime_s, sendmail)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    if sys.stderr is None:  # descriptor 2 was closed
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    report = SerialmailReport(sys.stderr)
    words = sys.argv[1:] if argv is None else argv
    if words[:1] == ["--help"]:
        return show(HELP, report.fatal)
    try:
        options = parse(words)
    except ConfigError:
        sys.stderr.write(f"maildirserial: {USAGE}\n")
        return EXIT_USAGE
    try:
        _enter(options.maildir)
    except OSError as error:
        report.fatal(f"unable to chdir to {printable(options.maildir)}: {error.strerror}")
        return EXIT_TEMPORARY
    try:
        return _run(options, report)
    except (LocalError, OSError) as error:
        report.fatal(str(error))
        return EXIT_TEMPORARY


def _enter(path: bytes) -> None:
    """Make a maildir the working directory, like `os.chdir`, with root's care about links."""
    fd = open_directory(path)
    try:
        os.fchdir(fd)
    finally:
        os.close(fd)


def _run(options: Arguments, report: SerialmailReport) -> int:
    # The working directory, which is the client's as well, even if DIR is renamed meanwhile.
    with Maildir(os.getcwdb()) as maildir:
        maildir.lock()
        route = Route(
            maildir.path,
            UcspiEndpoint(),
            prefix=options.prefix,
            include_cur=True,
            bounce=options.bounce,
            lifetime_s=options.lifetime_s,
            sendmail=options.sendmail,
        )
        loop = ClientLoop(route, maildir, options.client, report, time.monotonic, time.time)

        try:
            with stop_signals(lambda *_: loop.stop(), loop.wake.write_fd):
                code = loop.run()
        finally:
            loop.close()
        clean(maildir, time.time())
        return code


if __name__ == "__main__":
    sys.exit(main())
