"""A command that speaks QMTP on its standard input and output, as ssh does.

It runs in a process group of its own, without a shell. What it writes on its
standard error is read by a thread, whatever the connection is waiting for: a
command that has to wait for that to be read would never answer.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import select
import signal
import subprocess
import threading
import time
import weakref
from typing import TYPE_CHECKING

from maildirqmtp.errors import ConnectError, TransportError
from maildirqmtp.text import printable
from maildirqmtp.transport.descriptors import DescriptorTransport

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import IO

    from maildirqmtp.transport.endpoint import CommandEndpoint

#: Seconds that a command has to exit once its input and output are closed.
EXIT_GRACE_S = 3.0
#: Seconds more after SIGTERM; then comes SIGKILL.
TERM_S = 1.0
#: Seconds that all commands have to exit after SIGTERM, where we exit without waiting for them.
EXIT_S = 0.3
#: Seconds from the end of its output to its exit status.
STATUS_S = 1.0
#: Seconds that the log gets to take what is left of its standard error.
LOG_S = 1.0
#: Bytes of a line of standard error that are shown.
LINE_BYTES = 1_000
#: Lines of standard error that are shown, for each connection.
MAX_LINES = 1_000

#: Exit statuses of ssh (its own trouble, ssh(1)), and of a shell that cannot run a command
#: (POSIX 2.8.2): not those of a server that a message has brought down.
NEVER_CONNECTED = (126, 127, 255)

_LAST_BYTES = 64 << 10


#: Commands that have not been ended yet.
_running: weakref.WeakSet[CommandTransport] = weakref.WeakSet()


@atexit.register
def _end_all() -> None:
    """End what the process leaves behind, told to exit at once: ssh may hang for hours."""
    # Not those of the process that has forked us.
    left = [transport for transport in _running if transport.owner == os.getpid()]
    for transport in left:
        transport._kill(signal.SIGTERM)
    deadline = time.monotonic() + EXIT_S
    for transport in left:
        transport._exited(deadline - time.monotonic())
        transport._kill(signal.SIGKILL)


class CommandTransport(DescriptorTransport):
    """A command that is running; `log` gets the lines of its standard error."""

    close_waits = True

    def __init__(self, server: CommandEndpoint, log: Callable[[str], None]) -> None:
        self._command = server.command
        try:
            self._process = subprocess.Popen(
                server.words,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                start_new_session=True,
            )
        except ConnectError:
            raise
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or str(error)
            raise ConnectError(
                getattr(error, "errno", None), f"cannot start {self._command} for {server}: {why}"
            ) from error
        stdin, stdout, stderr = self._process.stdin, self._process.stdout, self._process.stderr
        assert stdin is not None
        assert stdout is not None
        assert stderr is not None
        self._pipes = (stdin, stdout)
        self.owner = os.getpid()
        _running.add(self)
        self._heard = False
        self._complaints: _Complaints | None = None
        self._exit_by: float | None = None
        super().__init__(stdout.fileno(), stdin.fileno(), str(server))
        try:
            self._complaints = _Complaints(stderr, self._command, log)
        except (OSError, RuntimeError) as error:  # no descriptor, no thread
            stderr.close()
            self.close()
            why = getattr(error, "strerror", None) or str(error)
            raise ConnectError(
                getattr(error, "errno", None), f"cannot start {self._command} for {server}: {why}"
            ) from error

    def receive(self, max_bytes: int) -> bytes | None:
        """See `Transport`. An exit status other than 0 is an error, not an end."""
        data = super().receive(max_bytes)
        if data:
            self._heard = True
        elif data is not None and (ended := self._ended(None)):
            raise ended
        return data

    def hang_up(self) -> None:
        """See `Transport`. Of several commands, none has to wait for the one before it."""
        self._hung_up()

    def _hung_up(self) -> float:
        """Close its input and output, if that was not done yet; return the seconds it has left."""
        now = time.monotonic()
        if self._exit_by is None:
            self._exit_by = now + EXIT_GRACE_S
            for pipe in self._pipes:
                pipe.close()
        return self._exit_by - now

    def close(self) -> None:
        """See `Transport`. Waits for the command's end, and sees to it."""
        if self._closed:
            return
        left_s = self._hung_up()
        self._closed = True
        try:
            if not self._exited(left_s):
                self._kill(signal.SIGTERM)
                self._exited(TERM_S)
        finally:
            _running.discard(self)
            # Also what it has left behind; its number is nobody else's before it is reaped.
            self._kill(signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):  # not ours to kill: sudo, say
                self._process.wait(TERM_S)
            if self._complaints is not None:
                self._complaints.close()

    def _kill(self, number: signal.Signals) -> None:
        with contextlib.suppress(OSError):
            os.killpg(self._process.pid, number)

    def _exited(self, within_s: float) -> bool:
        """Wait for the command's exit, without reaping it."""
        deadline = time.monotonic() + within_s
        pause_s = 0.001
        while self._look() is None:
            if time.monotonic() >= deadline:
                return False
            time.sleep(pause_s)
            pause_s = min(0.05, 2 * pause_s)
        return True

    def _look(self) -> tuple[int, int] | None:
        """Return how it ended and with what, None while it runs."""
        try:
            found = os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return os.CLD_EXITED, 0  # somebody ignores SIGCHLD: there is no telling
        return None if found is None else (found.si_code, found.si_status)

    def _ended(self, number: int | None) -> TransportError | None:
        """Return the error for how the command ended; None where it did in peace, or not yet."""
        if self._closed or not self._exited(STATUS_S):
            return None
        how, what = self._look() or (os.CLD_EXITED, 0)
        if how == os.CLD_EXITED and not what:
            return None
        verb = "exited with status" if how == os.CLD_EXITED else "was killed by signal"
        text = f"connection to {self.name} ended: {self._command} {verb} {what}"
        if how == os.CLD_EXITED and what in NEVER_CONNECTED and not self._heard:
            return ConnectError(number, text)
        return TransportError(number, text)

    def _broken(self, doing: str, error: OSError) -> TransportError:
        return self._ended(error.errno) or super()._broken(doing, error)


class _Complaints:
    """Reads a command's standard error in a thread, and passes it on line by line."""

    def __init__(self, stderr: IO[bytes], command: str, log: Callable[[str], None]) -> None:
        self._stderr = stderr
        self._fd = stderr.fileno()
        self._command = command
        self._log = log
        self._line = b""
        self._lines = 0
        self._stop_read, self._stop_write = os.pipe()
        # A daemon: one that waits for a log that nobody reads must not keep the process.
        self._thread = threading.Thread(target=self._run, name=f"stderr of {command}", daemon=True)
        try:
            self._thread.start()
        except RuntimeError:
            os.close(self._stop_write)
            os.close(self._stop_read)
            raise

    def close(self) -> None:
        """Pass on what is there, and end; what the command left running may still have it open."""
        os.close(self._stop_write)
        # The log may be waiting for us, or for somebody who does not read it.
        self._thread.join(LOG_S)

    def _run(self) -> None:
        try:
            self._listen()
        finally:
            os.close(self._stop_read)
            self._stderr.close()

    def _listen(self) -> None:
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        poll.register(self._stop_read, select.POLLIN)
        stopped = False
        while not stopped:
            ready = {fd for fd, _ in poll.poll()}
            stopped = self._stop_read in ready
            if stopped:
                os.set_blocking(self._fd, False)
            if stopped or self._fd in ready:
                data = self._read(_LAST_BYTES)
                if not data:
                    break
                self._take(data)
        self._take(b"\n")

    def _read(self, max_bytes: int) -> bytes:
        try:
            return os.read(self._fd, max_bytes)
        except BlockingIOError:
            return b""

    def _take(self, data: bytes) -> None:
        *lines, rest = (self._line + data).split(b"\n")
        self._line = rest[:LINE_BYTES]  # of a line without end, the rest is forgotten
        for line in lines:
            if shown := printable(line[:LINE_BYTES].strip()):
                self._say(shown)

    def _say(self, text: str) -> None:
        self._lines += 1
        if self._lines <= MAX_LINES:
            self._log(f"{self._command}: {text}")
        elif self._lines == MAX_LINES + 1:
            self._log(f"{self._command}: (it says more, which is not shown)")
