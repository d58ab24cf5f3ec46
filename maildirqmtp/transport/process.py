"""Commands: starting them, and ending them with all processes that they have started.

Only this module imports subprocess. No shell is ever involved.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import threading
import time
from typing import IO, TYPE_CHECKING

from maildirqmtp.descriptor_limit import give_back

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Seconds from SIGTERM to SIGKILL, and from SIGKILL until the command is given up.
TERM_S = 1.0

PIPE = subprocess.PIPE
DEVNULL = subprocess.DEVNULL

#: The most seconds between two checks whether a command has exited.
_LONGEST_PAUSE_S = 0.05

#: Process IDs of commands that are running, or have exited and are still to be reaped here.
own: set[int] = set()
#: Held while a command is started, and while children that are not in `own` are reaped.
starting = threading.Lock()


class Process:
    """A running command, in a process group of its own.

    So an interrupt from the terminal (^C) does not reach it, and it can be
    ended with all its children. `new_session` also takes the terminal from it. `close_fds` False
    leaves it the descriptors that this process has inherited; its own are not.
    Pipes are unbuffered files. Raises `OSError` if it cannot be started, with
    a `strerror` that can be shown.
    """

    def __init__(
        self,
        words: Sequence[str] | Sequence[bytes],
        *,
        stdin: int | IO[bytes] | None = None,
        stdout: int | IO[bytes] | None = None,
        stderr: int | IO[bytes] | None = None,
        new_session: bool = True,
        close_fds: bool = True,
    ) -> None:
        try:
            with starting:
                self._process = subprocess.Popen(
                    words,
                    stdin=stdin,
                    stdout=stdout,
                    stderr=stderr,
                    bufsize=0,
                    close_fds=close_fds,
                    start_new_session=new_session,
                    process_group=None if new_session else 0,
                )
                own.add(self.pid)
        except ValueError as error:  # a NUL in a word
            raise OSError(errno.EINVAL, str(error)) from error
        give_back(self.pid)

    @property
    def pid(self) -> int:
        """Its process ID, and its group's."""
        return self._process.pid

    @property
    def stdin(self) -> IO[bytes]:
        """Our end of the pipe to its standard input."""
        assert self._process.stdin is not None
        return self._process.stdin

    @property
    def stdout(self) -> IO[bytes]:
        """Our end of the pipe from its standard output."""
        assert self._process.stdout is not None
        return self._process.stdout

    @property
    def stderr(self) -> IO[bytes]:
        """Our end of the pipe from its standard error."""
        assert self._process.stderr is not None
        return self._process.stderr

    def exit_status(self) -> tuple[int, int] | None:
        """Return si_code and si_status of waitid(2), None while it runs. Does not reap it."""
        try:
            found = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return os.CLD_EXITED, 0  # SIGCHLD is ignored: the kernel reaps, and tells nothing
        return None if found is None else (found.si_code, found.si_status)

    def exits(self, within_s: float) -> bool:
        """Wait for it to exit, without reaping it; return whether it did within `within_s`."""
        deadline = time.monotonic() + within_s
        pause_s = 0.001
        while self.exit_status() is None:
            if time.monotonic() >= deadline:
                return False
            time.sleep(pause_s)
            pause_s = min(_LONGEST_PAUSE_S, 2 * pause_s)
        return True

    def reap(self) -> int:
        """Reap it after its exit; return its exit code, or less than 0 if a signal killed it.

        Raises `OSError` if nobody knows that code.
        """
        known = True
        try:
            os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        except ChildProcessError:
            known = False
        code = self._process.wait()
        own.discard(self.pid)
        if not known:  # subprocess makes 0 of it: a command that failed would count as done
            raise OSError(errno.ECHILD, "exit code unknown, because SIGCHLD is ignored")
        return code

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the whole group. Not after `reap`: its ID may have been reused."""
        with contextlib.suppress(OSError):
            os.killpg(self.pid, number)

    def end(self, grace_s: float) -> None:
        """End it with all that it has started: after `grace_s` by SIGTERM, then by SIGKILL.

        Does nothing after `reap`: then the processes that it has left running stay.
        """
        if self._process.returncode is not None:
            return
        try:
            if not self.exits(grace_s):
                self.signal(signal.SIGTERM)
                self.exits(TERM_S)
        finally:
            self.signal(signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):  # not ours to kill: sudo, say
                self._process.wait(TERM_S)
                own.discard(self.pid)
