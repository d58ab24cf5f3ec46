"""The command line of `maildirqmtp`.

Exit codes are serialmail's: 0 nothing of ours is left, 111 something is left or
failed, 100 wrong usage.
"""

from __future__ import annotations

import errno
import gc
import io
import os
import sys
from typing import TYPE_CHECKING

from maildirqmtp.errors import ConfigError, EnvelopeError, LocalError
from maildirqmtp.exit_codes import EXIT_OK, EXIT_TEMPORARY, EXIT_USAGE
from maildirqmtp.settings import flags_and_keys
from maildirqmtp.settings.command_line import (
    CommandLine,
    check_together,
    envelope,
    make_parser,
    make_route,
    parse,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import TextIO

    from maildirqmtp.forwarder.route import Route


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    _mend_output()
    line: CommandLine | None = None
    try:
        line = parse(list(sys.argv[1:] if argv is None else argv))
        check_together(line)
        return _do(line)
    except ConfigError as error:
        if line is None or line.config is None:
            make_parser().error(str(error))
        _complain(str(error))
        return EXIT_USAGE
    except EnvelopeError as error:
        _complain(str(error))
        return EXIT_USAGE
    except LocalError as error:
        _complain(str(error))
        return EXIT_TEMPORARY
    except OSError as error:
        # Nobody to tell that they stopped reading us; a full disk is another matter.
        if not isinstance(error, BrokenPipeError):
            ours = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
            _complain(f"{'standard output: ' if ours else ''}{error.strerror}")
        return EXIT_TEMPORARY
    except KeyboardInterrupt:
        return EXIT_TEMPORARY
    finally:
        _flush_output()


def _do(line: CommandLine) -> int:
    if line.demo:
        if line.arguments:
            raise ConfigError("--demo takes no maildir and no server; it makes its own")
        from maildirqmtp.cli.demo import run

        code = run()
        return code if _flush_output() else EXIT_TEMPORARY
    if line.enqueue is not None:
        return _enqueue(line.enqueue, line)
    if line.status:
        return _status(line)
    if line.watch or line.config is not None:
        return _stay(line)
    route = make_route(line)
    if line.dry_run:
        from maildirqmtp.cli.dry_run import dry_run

        return dry_run(route, bool(line.json), _complain)
    return _flush(route, line)


def _mend_output() -> None:
    """Make both streams fit to be written to: not closed, and not choking on an address."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by whoever started us
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _complain(text: str) -> None:
    """Say it on standard error; where nobody can be told, the exit code tells that it was so."""
    try:
        print(f"maildirqmtp: {text}", file=sys.stderr, flush=True)
    except OSError:
        _silence(sys.stderr)


def _flush_output() -> bool:
    """Flush standard output; where it takes nothing any more, let the rest go, and return False."""
    try:
        sys.stdout.flush()
    except OSError:
        _silence(sys.stdout)
        return False
    return True


def _silence(stream: TextIO) -> None:
    """Let what is left in a stream's buffer go where nothing is written, and no error is made."""
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, stream.fileno())
    os.close(devnull)


def _enqueue(path: str, line: CommandLine) -> int:
    if line.arguments:
        raise ConfigError("--enqueue takes no SERVER; the message waits for the next run")
    from maildirqmtp.submission.enqueue import enqueue

    return enqueue(os.fsencode(path), *envelope(line))


def _stay(line: CommandLine) -> int:
    """Watch one maildir, or the routes of a file; or show what the file comes to."""
    import signal

    # They would kill it, if a hook sends them before it listens; it looks around then anyway.
    for number in (signal.SIGALRM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    from maildirqmtp.settings import config

    path = line.config

    def reload() -> config.Config:
        assert path is not None
        return config.read(path, line)

    chosen = config.from_command_line(line) if path is None else reload()
    if line.check_config:
        shown = config.effective(chosen)
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(encoding="utf-8")  # as TOML is, whatever the locale
        sys.stdout.write(shown)
        sys.stdout.flush()
        return EXIT_OK
    from maildirqmtp.daemon.supervisor import run

    return run(chosen, None if path is None else reload)


def _status(line: CommandLine) -> int:
    """Tell what waits in a maildir, or in those of a file."""
    from maildirqmtp.cli.status import show, show_maildir

    if line.config is None:
        path = os.fsencode(line.arguments[0])
        return show_maildir(path, line.include_cur, bool(line.json), line.shard)
    from maildirqmtp.settings.config import read

    found = read(line.config, line)
    return show(found.routes, found.json)


def _flush(chosen: Route, line: CommandLine) -> int:
    # A message makes no reference cycles, but enough objects to set the collector off all the
    # time, at an eighth of the whole run's cost; a full window stays below this many.
    gc.set_threshold(100_000, 20, 50)
    from maildirqmtp.forwarder.batch import flush
    from maildirqmtp.forwarder.report import Report

    verbosity = flags_and_keys.verbosity(line.values(flags_and_keys.PROCESS))
    progress = None
    if verbosity == 0 and not line.json and sys.stderr.isatty():
        from maildirqmtp.forwarder.progress import make

        progress = make(sys.stderr)
    report = Report(sys.stderr, sys.stdout if line.json else None, verbosity, progress)
    return flush(chosen, report)
