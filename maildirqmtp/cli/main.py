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
    # Also for a command line that cannot be read to its end.
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
        # Nobody to tell that they stopped reading us; a full disk is another matter.
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
        return show_maildir(path, line.include_cur, bool(line.json), line.limit, line.shard)
    from maildirqmtp.settings.config import read

    found = read(line.config, line)
    return show(found.routes, found.json, line.limit)


def _flush(chosen: Route, line: CommandLine) -> int:
    # A message makes no reference cycles, but enough objects to set the collector off all the
    # time, at an eighth of the whole run's cost; a full window stays below this many.
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
