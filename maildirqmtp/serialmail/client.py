"""A client of maildirserial: a command that reads names, and writes results.

It runs in a process group of its own, so that an interrupt from the terminal
does not reach it: what it has sent must be answered first. It inherits our
standard error. Nothing here waits, except `dismiss`.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from typing import TYPE_CHECKING

from maildirqmtp.errors import LocalError
from maildirqmtp.text import printable
from maildirqmtp.transport.process import PIPE, Process

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Seconds that a client has to exit once its input and output are closed, before SIGTERM.
CLIENT_EXIT_S = 3.0
_READ_BYTES = 64 << 10
#: Bytes of names in the pipe to it, which cannot be taken back when maildirserial has to stop.
_PIPE_BYTES = 4_096


class Client:
    """A running client, in this process's working directory.

    `exit_fd` can be read once it has exited. Raises `LocalError` if it cannot
    be started.
    """

    def __init__(self, words: Sequence[bytes]) -> None:
        try:
            self._process = Process(
                words, stdin=PIPE, stdout=PIPE, new_session=False, close_fds=False
            )
        except OSError as error:
            raise LocalError(f"unable to run {printable(words[0])}: {error.strerror}") from error
        stdin, stdout = self._process.stdin, self._process.stdout
        self._stdin, self._stdout = stdin, stdout
        self.names_fd = stdin.fileno()
        self.results_fd = stdout.fileno()
        for fd in (self.names_fd, self.results_fd):
            os.set_blocking(fd, False)
        with contextlib.suppress(OSError):
            fcntl.fcntl(self.names_fd, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        try:
            self.exit_fd = os.pidfd_open(self._process.pid)
        except OSError as error:
            stdin.close()
            stdout.close()
            self._process.end(0)
            raise LocalError(f"unable to run {printable(words[0])}: {error.strerror}") from error

    @property
    def takes_names(self) -> bool:
        """True until one side has closed its input."""
        return not self._stdin.closed

    @property
    def gives_results(self) -> bool:
        """True until its output has ended."""
        return not self._stdout.closed

    def give(self, name: bytes) -> bool:
        """Write a name to it, if there is room for all of it; return whether it was written.

        If the client has closed its input, no more names can be written.
        """
        try:
            # A pipe takes up to PIPE_BUF bytes whole or not at all (pipe(7)).
            os.write(self.names_fd, name + b"\0")
        except BlockingIOError:
            return False
        except BrokenPipeError:
            self.close_names()
            return False
        return True

    def close_names(self) -> None:
        """Close its input, after the last name. Idempotent."""
        self._stdin.close()

    def read(self) -> bytes:
        """Return what it has written; empty if that is nothing yet, or its output has ended."""
        try:
            data = os.read(self.results_fd, _READ_BYTES)
        except BlockingIOError:
            return b""
        if not data:
            self._stdout.close()
        return data

    def reap(self) -> int:
        """Reap it after its exit; return its exit code, or less than 0 if a signal killed it."""
        return self._process.reap()

    def dismiss(self) -> None:
        """End it with all that it has started; after `reap`, only close its descriptors."""
        self._stdin.close()
        self._stdout.close()
        try:
            self._process.end(CLIENT_EXIT_S)
        finally:
            if self.exit_fd >= 0:
                os.close(self.exit_fd)
                self.exit_fd = -1
