"""The command line of `serialqmtp`: under a UCSPI client, names on standard input.

    tcpclient HOST 209 serialqmtp PREFIX

Exit codes are serialmail's: 0 all that was sent is answered, 111 trouble, 100 wrong usage.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import time
from typing import TYPE_CHECKING

from maildirqmtp.errors import ConnectError
from maildirqmtp.exit_codes import EXIT_OK, EXIT_TEMPORARY, EXIT_USAGE
from maildirqmtp.serialmail.conversation import Conversation
from maildirqmtp.serialmail.help_text import show
from maildirqmtp.serialmail.recording import NOT_WRITTEN
from maildirqmtp.transport.descriptors import connect_ucspi

if TYPE_CHECKING:
    from collections.abc import Sequence


HELP = """\
usage: serialqmtp PREFIX

Run by a UCSPI client: tcpclient HOST 209 serialqmtp PREFIX < names > results
Sends the files named on standard input, each name ended by a NUL, over QMTP on
descriptors 6 and 7. A file begins with Return-Path and Delivered-To lines;
PREFIX is taken off the recipient, and files without it are skipped. For each
file sent, writes its name, a NUL, K, Z or D, a text and a line feed.
Exit codes: 0 all is answered, 111 trouble, 100 wrong usage. See serialqmtp(1).
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code. Arguments after PREFIX are ignored."""
    words = sys.argv[1:] if argv is None else argv
    if not words:
        _say("usage: serialqmtp prefix")
        return EXIT_USAGE
    if words[0] == "--help":
        return show(HELP, _say)
    _be_killed_quietly()
    why = _run(os.fsencode(words[0]))
    if why:
        _say(f"fatal: {why}")
        return EXIT_TEMPORARY
    return EXIT_OK


def _run(prefix: bytes) -> str:
    """Send the files; return the text of an error, or empty."""
    # Otherwise the next file that is opened would get the number of the missing one.
    if not _is_open(0):
        return "unable to read input"
    if not _is_open(1):
        return f"unable to write output: {os.strerror(errno.EBADF)}"
    try:
        transport = connect_ucspi()
    except ConnectError:
        return (
            f"{NOT_WRITTEN}: no connection on descriptors 6 and 7; run this under a UCSPI client, "
            f"as in: tcpclient HOST 209 serialqmtp PREFIX"
        )
    said_by = os.environb.get(b"TCPREMOTEIP", b"")
    try:
        return Conversation(transport, prefix, said_by, time.monotonic).run()
    except OSError as error:
        return f"unable to write output: {error.strerror}"


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def _be_killed_quietly() -> None:
    """Let an interrupt from the terminal kill the process without a traceback."""
    import signal

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def _say(text: str) -> None:
    with contextlib.suppress(OSError):
        if sys.stderr is not None:
            sys.stderr.write(f"serialqmtp: {text}\n")


if __name__ == "__main__":
    sys.exit(main())
