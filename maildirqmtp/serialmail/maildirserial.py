"""The command line of `maildirserial`: a maildir to a client, message by message.

    maildirserial -b -t 1209600 DIR PREFIX tcpclient HOST 209 serialqmtp PREFIX

Exit codes are serialmail's: 0 nothing of ours is left, 111 something is, 100
wrong usage, of this program or of the client.
"""

from __future__ import annotations

import getopt
import os
import shlex
import signal
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from maildirqmtp.errors import ConfigError, LocalError
from maildirqmtp.exit_codes import EXIT_TEMPORARY, EXIT_USAGE
from maildirqmtp.forwarder.route import SENDMAIL, Route
from maildirqmtp.maildir.cleanup import clean
from maildirqmtp.maildir.maildir import Maildir
from maildirqmtp.serialmail.client_loop import ClientLoop
from maildirqmtp.serialmail.report import SerialmailReport
from maildirqmtp.settings.units import parse_seconds
from maildirqmtp.text import printable
from maildirqmtp.transport.endpoint import UcspiEndpoint
from maildirqmtp.transport.signals import signal_handlers

if TYPE_CHECKING:
    from collections.abc import Sequence

USAGE = "usage: maildirserial [ -b ] [ -t lifetime ] dir prefix client [ arg ... ]"


@dataclass(frozen=True, slots=True)
class Arguments:
    """What the command line says. `lifetime_s` is infinite where nothing ever gets too old."""

    maildir: bytes
    prefix: bytes
    client: tuple[bytes, ...]
    bounce: bool = False
    lifetime_s: float = float("inf")
    sendmail: tuple[bytes, ...] = SENDMAIL


def parse(words: Sequence[str]) -> Arguments:
    """Read the command line. Raises `ConfigError`."""
    bounce, lifetime_s = False, float("inf")
    sendmail: tuple[bytes, ...] = SENDMAIL
    try:
        # Options of the client are none of ours: this stops at the first word that is no option.
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
    if sys.stderr is None:  # closed by whoever started us
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    report = SerialmailReport(sys.stderr)
    try:
        options = parse(sys.argv[1:] if argv is None else argv)
    except ConfigError:
        sys.stderr.write(f"maildirserial: {USAGE}\n")
        return EXIT_USAGE
    try:
        os.chdir(options.maildir)
    except OSError as error:
        report.fatal(f"unable to chdir to {printable(options.maildir)}: {error.strerror}")
        return EXIT_TEMPORARY
    try:
        return _run(options, report)
    except (LocalError, OSError) as error:
        report.fatal(str(error))
        return EXIT_TEMPORARY


def _run(options: Arguments, report: SerialmailReport) -> int:
    # The directory that we are in and the client will be in, whatever becomes of its name.
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
        rounds = ClientLoop(route, maildir, options.client, report, time.monotonic, time.time)

        stop_signals = (signal.SIGTERM, signal.SIGINT)
        try:
            with signal_handlers(
                stop_signals, lambda *_: rounds.stop(), wakeup_fd=rounds.wake.write_fd
            ):
                code = rounds.run()
        finally:
            rounds.close()
        clean(maildir, time.time())
        return code


if __name__ == "__main__":
    sys.exit(main())
