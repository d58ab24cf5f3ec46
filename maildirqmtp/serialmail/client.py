"""A client of maildirserial: a command that is given names, and writes results.

It runs in a process group of its own, so that an interrupt from the terminal
does not reach it: what it has sent is to be answered first. Its standard error
is ours. Nothing here waits, but for `dismiss`.
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
#: Bytes of names under way to it, which cannot be taken back when we are told to stop.
_PIPE_BYTES = 4_096


class Client:
    """A client that is running, in this process's directory.

    `exit_fd` can be read once it has exited. Raises `LocalError` where it
    cannot be started.
    """

    def __init__(self, words: Sequence[bytes]) -> None:
        try:
            self._process = Process(words, stdin=PIPE, stdout=PIPE, new_session=False)
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
        self.exit_fd = os.pidfd_open(self._process.pid)

    @property
    def takes_names(self) -> bool:
        """True until one side has closed its input."""
        return not self._stdin.closed

    @property
    def gives_results(self) -> bool:
        """True until its output has ended."""
        return not self._stdout.closed

    def give(self, name: bytes) -> bool:
        """Give it a name, if there is room for all of it; say whether it has it now.

        Where it has closed its input, nothing more can be given.
        """
        try:
            # Whole or not at all: a pipe takes up to PIPE_BUF bytes so (pipe(7)).
            os.write(self.names_fd, name + b"\0")
        except BlockingIOError:
            return False
        except BrokenPipeError:
            self.close_names()
            return False
        return True

    def close_names(self) -> None:
        """That was the last name. Harmless twice."""
        self._stdin.close()

    def read(self) -> bytes:
        """Return what it has written; empty where that is nothing, now or for ever."""
        try:
            data = os.read(self.results_fd, _READ_BYTES)
        except BlockingIOError:
            return b""
        if not data:
            self._stdout.close()
        return data

    def reap(self) -> int:
        """After its exit: return its exit code, or less than 0 where a signal killed it."""
        return self._process.reap()

    def dismiss(self) -> None:
        """End it, whatever it is doing, with all that it has started. Harmless after `reap`."""
        self._stdin.close()
        self._stdout.close()
        try:
            self._process.end(CLIENT_EXIT_S)
        finally:
            if self.exit_fd >= 0:
                os.close(self.exit_fd)
                self.exit_fd = -1
