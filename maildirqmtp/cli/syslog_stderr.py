"""Standard error in syslog(3), for a program of inetd: there it is the client's connection, too.

A line of the log among the answers would end that, and what was accepted would be sent again.
"""

import contextlib
import io
import os
import stat
import sys
import syslog


class _SyslogStderr(io.TextIOBase):
    """A text stream whose lines go to syslog, without the name of the program before each."""

    def __init__(self, program: str) -> None:
        self._prefix = f"{program}: "
        syslog.openlog(program, syslog.LOG_PID, syslog.LOG_MAIL)

    def write(self, text: str) -> int:
        """Log each line of the text."""
        for line in text.splitlines():
            if line:
                syslog.syslog(syslog.LOG_NOTICE, line.removeprefix(self._prefix))
        return len(text)


def keep_from_client(program: str) -> None:
    """If standard output is a socket, and standard error the same one, log to syslog from here on.

    For a program whose standard output goes to a client.
    """
    try:
        is_shared = stat.S_ISSOCK(os.fstat(1).st_mode) and os.path.sameopenfile(1, 2)
    except OSError:  # one of them is closed
        return
    if is_shared:
        sys.stderr = _SyslogStderr(program)
        with contextlib.suppress(OSError):  # for what is not written by way of Python
            null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
            os.dup2(null, 2)
            os.close(null)
