"""A command, such as ssh, that speaks QMTP on its standard input and output.

It runs in a process group of its own, without a shell. A thread reads its
standard error, whatever the connection is waiting for: a command that blocks
on writing there would never answer.
"""

from __future__ import annotations

import atexit
import fcntl
import os
import select
import signal
import struct
import threading
import time
import weakref
from termios import FIONREAD
from typing import TYPE_CHECKING

from maildirqmtp.descriptor_limit import reason
from maildirqmtp.errors import ConnectError, TransportError
from maildirqmtp.text import printable
from maildirqmtp.transport.descriptors import DescriptorTransport
from maildirqmtp.transport.process import PIPE, Process

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import IO

    from maildirqmtp.transport.endpoint import CommandEndpoint

#: Seconds that a command has to exit once its input and output are closed.
EXIT_GRACE_S = 3.0
#: Seconds that all commands have to exit after SIGTERM, when this process exits at once.
EXIT_S = 0.3
#: Seconds to wait for its exit status after the end of its output.
STATUS_S = 1.0
#: Seconds to wait until what is left of its standard error is in the log.
LOG_S = 1.0
#: Bytes of a line of standard error that are shown.
LINE_BYTES = 1_000
#: Lines of standard error that are shown, for each connection.
MAX_LINES = 1_000

#: Exit statuses of ssh for its own errors (ssh(1)), and of a shell that cannot run a command
#: (POSIX 2.8.2): a server that a message has brought down has others.
NEVER_CONNECTED = (126, 127, 255)

_LAST_BYTES = 64 << 10


#: Commands that have not been ended yet.
_running: weakref.WeakSet[CommandTransport] = weakref.WeakSet()


@atexit.register
def _end_all() -> None:
    """End the commands of a process that exits at once: ssh may hang for hours."""
    # Commands of the process that has forked this one are left alone.
    left = [transport for transport in _running if transport.owner == os.getpid()]
    for transport in left:
        transport.process.signal(signal.SIGTERM)
    deadline = time.monotonic() + EXIT_S
    for transport in left:
        transport.process.exits(deadline - time.monotonic())
        transport.process.signal(signal.SIGKILL)
    # Wait for their last output to be shown. And an interpreter that ends while a thread holds
    # the lock of its standard error aborts.
    deadline = time.monotonic() + LOG_S
    for transport in left:
        transport.wait_for_log(deadline - time.monotonic())


class CommandTransport(DescriptorTransport):
    """A running command; `log` gets the lines of its standard error.

    Raises `ConnectError` if it cannot be started.
    """

    close_waits = True

    def __init__(self, server: CommandEndpoint, log: Callable[[str], None]) -> None:
        self._command = server.command
        #: Seconds to wait for its exit status once its output has ended.
        self.status_s = STATUS_S
        try:
            self.process = Process(server.words, stdin=PIPE, stdout=PIPE, stderr=PIPE)
        except ConnectError:  # from a signal handler: told to stop
            raise
        except OSError as error:
            raise _not_started(server, error) from error
        process = self.process
        self._pipes = (process.stdin, process.stdout)
        self._heard = False
        self._stderr: _StderrReader | None = None
        self._exit_by: float | None = None
        self._unread = 0
        super().__init__(process.stdout.fileno(), process.stdin.fileno(), str(server))
        _running.add(self)
        try:
            self._stderr = _StderrReader(process.stderr, self._command, log)
        except (OSError, RuntimeError) as error:  # no descriptor, no thread
            process.stderr.close()
            self.close()
            raise _not_started(server, error) from error

    def receive(self, max_bytes: int) -> bytes | None:
        """See `Transport`. An exit status other than 0 is an error, not an end."""
        data = super().receive(max_bytes)
        if data:
            self._heard = True
        elif data is not None and (ended := self._ended(None)):
            raise ended
        return data

    def hang_up(self) -> None:
        """See `Transport`. Closes the pipes, so that several commands exit at the same time."""
        self._hung_up()

    def _hung_up(self) -> float:
        """Close its input and output, if still open; return the seconds it has left to exit."""
        now = time.monotonic()
        if self._exit_by is None:
            self._exit_by = now + EXIT_GRACE_S
            self._unread = self._count_unread()
            self._forget_descriptors()
            for pipe in self._pipes:
                pipe.close()
        return self._exit_by - now

    def close(self) -> None:
        """See `Transport`. Waits for the command to exit, and ends it if it does not.

        A process that was forked only closes its descriptors: the command is not its own.
        """
        if self._closed:
            return
        left_s = self._hung_up()
        self._closed = True
        if self.owner != os.getpid():
            if self._stderr is not None:
                self._stderr.abandon()
            return
        try:
            self.process.end(left_s)
        finally:
            _running.discard(self)
            if self._stderr is not None:
                self._stderr.close()

    def wait_for_log(self, within_s: float) -> None:
        """Wait until what the command has written on its standard error is passed on."""
        if self._stderr is not None:
            self._stderr.wait(within_s)

    @property
    def bytes_unread(self) -> int:
        """See `Transport`. An ssh that cannot reach its host leaves all of them in the pipe."""
        return self._unread if self._exit_by is not None else self._count_unread()

    def _count_unread(self) -> int:
        """Return the bytes left in the pipe if no process has its other end open any more, or 0."""
        poll = select.poll()
        poll.register(self.write_fd, 0)
        if not any(events & select.POLLERR for _, events in poll.poll(0)):
            return 0
        (count,) = struct.unpack("@i", fcntl.ioctl(self.write_fd, FIONREAD, bytes(4)))
        return int(count)

    def _ended(self, number: int | None) -> TransportError | None:
        """Return the error for how the command ended; None if it exited with 0, or not yet."""
        if self._closed or not self.process.exits(self.status_s):
            return None
        how, what = self.process.exit_status() or (os.CLD_EXITED, 0)
        if how == os.CLD_EXITED and not what:
            return None
        verb = "exited with status" if how == os.CLD_EXITED else "was killed by signal"
        text = f"connection to {self.name} ended: {self._command} {verb} {what}"
        if how == os.CLD_EXITED and what in NEVER_CONNECTED and not self._heard:
            return ConnectError(number, text)
        return TransportError(number, text)

    def _broken(self, doing: str, error: OSError) -> TransportError:
        return self._ended(error.errno) or super()._broken(doing, error)


def _not_started(server: CommandEndpoint, error: Exception) -> ConnectError:
    why = reason(error) if isinstance(error, OSError) else str(error)
    text = f"cannot start {server.command} for {server}: {why}"
    return ConnectError(getattr(error, "errno", None), text)


class _StderrReader:
    """Reads a command's standard error in a thread, and passes it on line by line."""

    def __init__(self, stderr: IO[bytes], command: str, log: Callable[[str], None]) -> None:
        self._stderr = stderr
        self._fd = stderr.fileno()
        self._command = command
        self._log = log
        self._line = b""
        self._lines = 0
        self._stop_read, self._stop_write = os.pipe()
        # A daemon thread: if it waits for a log that nobody reads, the process must still exit.
        self._thread = threading.Thread(target=self._run, name=f"stderr of {command}", daemon=True)
        try:
            self._thread.start()
        except RuntimeError:
            os.close(self._stop_write)
            os.close(self._stop_read)
            raise

    def close(self) -> None:
        """Pass on what is there, and end, even if processes left running have the pipe open."""
        os.close(self._stop_write)
        # Not for ever: the log may be waiting for this thread, or for a reader that does not read.
        self.wait(LOG_S)

    def abandon(self) -> None:
        """Close the descriptors in a process that was forked, which has no such thread."""
        os.close(self._stop_write)
        os.close(self._stop_read)
        self._stderr.close()

    def wait(self, within_s: float) -> None:
        """Wait for the thread to end, as it does once no process has the pipe open any more."""
        self._thread.join(max(0.0, within_s))

    def _run(self) -> None:
        try:
            self._read_all()
        finally:
            os.close(self._stop_read)
            self._stderr.close()

    def _read_all(self) -> None:
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
                self._show(shown)

    def _show(self, text: str) -> None:
        self._lines += 1
        if self._lines <= MAX_LINES:
            self._log(f"{self._command}: {text}")
        elif self._lines == MAX_LINES + 1:
            self._log(f"{self._command}: (it says more, which is not shown)")
