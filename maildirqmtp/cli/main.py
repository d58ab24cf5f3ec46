"""The command line of `maildirqmtp`.

Exit codes are serialmail's: 0 if no mail of the route is left, 111 if some is left or
failed, 100 for wrong usage.
"""

from __future__ import annotations

import errno
import gc
import sys
from typing import TYPE_CHECKING

from maildirqmtp.cli.output import complain, flush_output, mend_output
from maildirqmtp.errors import ConfigError, EnvelopeError, LocalError
from maildirqmtp.exit_codes import EXIT_OK, EXIT_USAGE, QMAIL, SYSEXITS
from maildirqmtp.settings import flags_and_keys
from maildirqmtp.settings.command_line import (
    CommandLine,
    check_together,
    envelope,
    make_route,
    parse,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from maildirqmtp.forwarder.route import Route


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    mend_output()
    words = list(sys.argv[1:] if argv is None else argv)
    # Looked for before parsing: it also applies to a command line that cannot be parsed.
    codes = SYSEXITS if "--sysexits" in words else QMAIL
    line: CommandLine | None = None
    try:
        line = parse(words)
        check_together(line)
        return _do(line)
    except SystemExit as stop:
        raise SystemExit(codes.usage if stop.code == EXIT_USAGE else stop.code) from None
    except ConfigError as error:
        if line is None or line.config is None:
            _complain(f"{error}; try maildirqmtp --help")
            raise SystemExit(codes.usage) from None
        _complain(str(error))
        return codes.usage
    except EnvelopeError as error:
        _complain(str(error))
        return codes.data
    except LocalError as error:
        _complain(str(error))
        return codes.temporary
    except OSError as error:
        # A reader of our output that has gone needs no message; a full disk does.
        if not isinstance(error, BrokenPipeError):
            ours = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
            _complain(f"{'standard output: ' if ours else ''}{error.strerror}")
        return codes.temporary
    except KeyboardInterrupt:
        return codes.temporary
    finally:
        flush_output()


def _do(line: CommandLine) -> int:
    if line.demo:
        if line.arguments:
            raise ConfigError("--demo takes no maildir and no server; it makes its own")
        from maildirqmtp.cli.demo import run

        code = run()
        sys.stdout.flush()
        return code
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


def _complain(text: str) -> None:
    complain("maildirqmtp", text)


def _enqueue(path: str, line: CommandLine) -> int:
    if line.arguments:
        raise ConfigError("--enqueue takes no SERVER; the message waits for the next run")
    from maildirqmtp.submission.enqueue import enqueue

    return enqueue(flags_and_keys.MAILDIR.type.parse(path, "--enqueue"), *envelope(line))


def _stay(line: CommandLine) -> int:
    """Watch one maildir, or the routes of a file; with --check-config, print the settings."""
    import signal

    # A hook may send these before the handlers are set, which would kill the process. Ignoring
    # them loses nothing: the first scan is still to come.
    for number in (signal.SIGALRM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    from maildirqmtp.settings import config

    path = line.config

    def reload() -> config.Config:
        assert path is not None
        return config.read(path, line)

    chosen = config.from_command_line(line) if path is None else reload()
    if line.check_config:
        from maildirqmtp.cli import check_config

        check_config.show(chosen)
        return EXIT_OK
    from maildirqmtp.daemon.supervisor import run

    return run(chosen, None if path is None else reload)


def _status(line: CommandLine) -> int:
    """Print what waits in a maildir, or in the maildirs of a configuration file."""
    from maildirqmtp.cli.status import show, show_maildir

    if line.config is None:
        given = line.values(flags_and_keys.ROUTE)
        path = flags_and_keys.MAILDIR.type.parse(line.arguments[0], "DIR")
        return show_maildir(path, given, bool(line.json), line.limit)
    from maildirqmtp.settings.config import read

    found = read(line.config, line)
    return show(found.routes, found.json, line.limit)


def _flush(chosen: Route, line: CommandLine) -> int:
    # Messages make no reference cycles, but so many objects that the garbage collector would
    # take an eighth of the run; a full window stays below this many.
    gc.set_threshold(100_000, 20, 50)
    from maildirqmtp.forwarder.batch import flush
    from maildirqmtp.forwarder.report import Report

    verbosity = flags_and_keys.verbosity(line.values(flags_and_keys.PROCESS))
    progress, log = None, sys.stderr
    if verbosity == 0 and not line.json and sys.stderr.isatty():
        from maildirqmtp.forwarder.progress import log_of, make

        progress = make(sys.stderr)
        log = log_of(progress, sys.stderr)
    report = Report(log, sys.stdout if line.json else None, verbosity, progress)
    return flush(chosen, report)
