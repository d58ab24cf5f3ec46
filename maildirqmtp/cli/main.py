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

from maildirqmtp.errors import ConfigError, EnvelopeError, FileChangedError, LocalError
from maildirqmtp.settings.command_line import (
    check_together,
    envelope,
    make_config,
    make_route,
    parse,
)
from maildirqmtp.text import printable

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import TextIO

    from maildirqmtp.forwarder.route import Route
    from maildirqmtp.settings.table import Options

EXIT_TEMPORARY = 111
EXIT_USAGE = 100


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    _mend_output()
    options = parse(list(sys.argv[1:] if argv is None else argv))
    try:
        check_together(options)
        if options.demo:
            if options.arguments:
                raise ConfigError("--demo takes no maildir and no server; it makes its own")
            from maildirqmtp.cli.demo import run

            code = run()
            return code if _flush_output() else EXIT_TEMPORARY
        if options.enqueue is not None:
            return _enqueue(options)
        if options.status:
            return _status(options)
        if options.watch or options.config is not None:
            return _stay(options)
        chosen = make_route(options)
        return _dry_run(chosen, options.json) if options.dry_run else _flush(chosen, options)
    except ConfigError as error:
        if options.config is None:
            from maildirqmtp.settings.parser import make_parser

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


def _enqueue(options: Options) -> int:
    if options.arguments:
        raise ConfigError("--enqueue takes no SERVER; the message waits for the next run")
    from maildirqmtp.submission.enqueue import enqueue

    return enqueue(os.fsencode(options.enqueue), *envelope(options))


def _stay(options: Options) -> int:
    """Watch one maildir, or the routes of a file; or show what the file comes to."""
    import signal

    # They would kill it, if a hook sends them before it listens; it looks around then anyway.
    for number in (signal.SIGALRM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    from maildirqmtp.settings import config

    def reload() -> config.Config:
        return config.read(options.config, options)

    chosen = make_config(options) if options.config is None else reload()
    if options.check_config:
        shown = config.effective(chosen)
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(encoding="utf-8")  # as TOML is, whatever the locale
        sys.stdout.write(shown)
        sys.stdout.flush()
        return 0
    from maildirqmtp.daemon.supervisor import run

    return run(chosen, None if options.config is None else reload)


def _status(options: Options) -> int:
    """Tell what waits in a maildir, or in those of a file."""
    from maildirqmtp.daemon.status import show, show_maildir

    if options.config is None:
        path = os.fsencode(options.arguments[0])
        return show_maildir(path, options.cur, options.json)
    from maildirqmtp.settings.config import read

    found = read(options.config, options)
    return show(found.routes, found.json)


def _dry_run(chosen: Route, as_json: bool) -> int:
    """List what would be sent on standard output; reasons for the rest on standard error."""
    from maildirqmtp.forwarder.queued_message import prepare
    from maildirqmtp.maildir.maildir import Maildir

    held = 0
    with Maildir(chosen.maildir) as maildir:
        for folder, name in maildir.scan(chosen.include_cur):
            try:
                queued = prepare(maildir, chosen, folder, name)
            except (EnvelopeError, FileChangedError, LocalError) as error:
                _complain(f"{printable(name)}: held: {error}")
                held += 1
                continue
            if queued is None:
                continue
            queued.message.close()
            shown = {
                "message": printable(name),
                "sender": printable(queued.sender),
                "recipients": [printable(r) for r in queued.recipients],
                "bytes": queued.length,
            }
            if as_json:
                import json

                print(json.dumps({"event": "would-send", **shown}))
            else:
                to = ", ".join(printable(r) for r in queued.recipients)
                print(f"{shown['message']}: <{shown['sender']}> to {to}, {queued.length} bytes")
    sys.stdout.flush()
    return EXIT_TEMPORARY if held else 0


def _flush(chosen: Route, options: Options) -> int:
    # A message makes no reference cycles, but enough objects to set the collector off all the
    # time, at an eighth of the whole run's cost; a full window stays below this many.
    gc.set_threshold(100_000, 20, 50)
    from maildirqmtp.forwarder.batch import flush
    from maildirqmtp.forwarder.report import Report

    verbosity = -1 if options.quiet else int(options.verbose)
    progress = None
    if verbosity == 0 and not options.json and sys.stderr.isatty():
        from maildirqmtp.forwarder.progress import make

        progress = make(sys.stderr)
    report = Report(sys.stderr, sys.stdout if options.json else None, verbosity, progress)
    return flush(chosen, report)
