"""How the programs start and end: `maildirqmtp` (and `python -m maildirqmtp`) and the others."""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

# The values in `exit_codes`, which is not loaded yet.
_EXIT_TEMPORARY = 111
_EX_TEMPFAIL = 75


def _program(
    interrupted: int = _EXIT_TEMPORARY,
) -> Callable[[Callable[[], int]], Callable[[], NoReturn]]:
    """Turn a function that runs a command line and returns its exit code into a program.

    The program exits with `interrupted` if SIGINT comes while modules load.
    """

    def make(main: Callable[[], int]) -> Callable[[], NoReturn]:
        def program() -> NoReturn:
            _learn_exit_codes()
            _end_at_term()
            try:
                code = main()
            except KeyboardInterrupt:
                code = interrupted
            except SystemExit as stop:
                if not isinstance(stop.code, int):
                    raise
                code = stop.code
            _exit(code)

        return program

    return make


@_program()
def run() -> int:
    """Run the command line of this process, and exit with its code.

    A run that finds its maildir empty is little more than start-up and exit, so the
    garbage collector stays off while modules load (1.5 ms of 36).
    """
    # Imports allocate much and free nothing.
    gc.disable()
    from maildirqmtp.cli.main import main

    gc.freeze()
    gc.enable()
    return main()


@_program(_EX_TEMPFAIL)
def run_sendmail() -> int:
    """Run the command line of `qmtp-sendmail`, and exit with its code.

    Start-up is most of this run, too. The garbage collector stays off to the end, since
    one message makes no garbage (with the exit by `_exit`, 10 ms of 65).
    """
    gc.disable()
    from maildirqmtp.cli.qmtp_sendmail import main

    return main()


@_program()
def run_receiver() -> int:
    """Run the command line of `qmtpmaildir`, and exit with its code."""
    from maildirqmtp.cli.qmtpmaildir import main

    return main()


@_program()
def run_qmtpq() -> int:
    """Run the command line of `qmtpq`, and exit with its code."""
    from maildirqmtp.cli.qmtpq import main

    return main()


@_program()
def run_serialqmtp() -> int:
    """Run the command line of `serialqmtp`, and exit with its code."""
    from maildirqmtp.serialmail.serialqmtp import main

    return main()


@_program()
def run_maildirserial() -> int:
    """Run the command line of `maildirserial`, and exit with its code."""
    from maildirqmtp.serialmail.maildirserial import main

    return main()


def _learn_exit_codes() -> None:
    """Do not ignore SIGCHLD where the parent process does: nobody would learn an exit code.

    The commands that are run inherit this. `_signal`, because `signal` takes 0.4 ms to load.
    """
    import _signal  # type: ignore[import-not-found]

    if _signal.getsignal(_signal.SIGCHLD) == _signal.SIG_IGN:
        _signal.signal(_signal.SIGCHLD, _signal.SIG_DFL)


def _end_at_term() -> None:
    """As PID 1 of a container, let SIGTERM end this process until it has a handler of its own.

    For PID 1 the kernel ignores it without one (pid_namespaces(7)), and some seconds of loading
    are left where a container has a tenth of a processor: it would be killed amid its messages.
    """
    if os.getpid() == 1:
        import _signal

        _signal.signal(_signal.SIGTERM, lambda *_: os._exit(128 + _signal.SIGTERM))


def _exit(code: int) -> NoReturn:
    """End the process without the interpreter's own shutdown.

    That shutdown frees every object, 2 ms of 36 if the maildir is empty; and it
    ends the process by SIGABRT if a thread still runs and no descriptor is left
    (`pthread_exit` has to load a library then), or that thread is writing to standard
    error. Functions registered with `atexit` are called, because they end commands that
    still run. No thread is waited for: the code that began one has done so.
    """
    atexit._run_exitfuncs()  # noqa: SLF001 - there is no public way to it
    for stream in (sys.stdout, sys.stderr):
        # `main` has flushed all its output, and reported any failure of that.
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os._exit(code)


if __name__ == "__main__":
    run()
