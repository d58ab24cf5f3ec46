"""The command line of the receiver: `qmtpmaildir [options] DIR`, `--queue DIR` or `--deliver HOW`.

Exit codes: 0 stopped by SIGTERM, SIGINT or SIGHUP, or (with --stdio) the client is
done; 111 trouble with this machine or, with --stdio, a session that ended with
mail or responses lost; 100 wrong usage.
"""

import argparse
import contextlib
import os
import socket
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from maildirqmtp import __version__
from maildirqmtp.cli.handoff_options import add_handoff_options, connections, hand_off
from maildirqmtp.cli.once_options import add_once_options, once
from maildirqmtp.cli.receiver_options import (
    DEFAULT_LISTEN,
    add_relay_options,
    open_listeners,
    policy_of,
    require_permission,
    user_quota,
)
from maildirqmtp.cli.syslog_stderr import keep_from_client
from maildirqmtp.descriptor_limit import raise_limit
from maildirqmtp.errors import ConfigError, QMTPError
from maildirqmtp.exit_codes import EXIT_OK, EXIT_TEMPORARY, EXIT_USAGE
from maildirqmtp.qmtp.protocol import MAX_MESSAGE
from maildirqmtp.receiver.clients import Client, client_on_stdio
from maildirqmtp.receiver.destination import Destination
from maildirqmtp.receiver.maildir_destination import MaildirDestination
from maildirqmtp.receiver.policy import Log, Policy, Severity, ThrottledLog
from maildirqmtp.receiver.queue_destination import QueueDestination
from maildirqmtp.receiver.server import MAX_CONNECTIONS, THREADS, TIMEOUT_S, Server
from maildirqmtp.receiver.streams import SocketStream, StdioStream, Stream
from maildirqmtp.settings.parser import Parser, a_path
from maildirqmtp.settings.units import parse_seconds
from maildirqmtp.transport.signals import stop_signals


def main(argv: Sequence[str] | None = None) -> int:
    """Run the receiver; return the exit code."""
    words = sys.argv[1:] if argv is None else argv
    if "--stdio" in words:
        keep_from_client("qmtpmaildir")  # errors of usage as well
    log = stderr_log(Severity.NOTICE)
    try:
        options = make_parser().parse_args(words)
        return _run(options)
    except ConfigError as error:
        log(Severity.ERROR, str(error))
        return EXIT_USAGE
    except QMTPError as error:
        log(Severity.ERROR, str(error))
        return EXIT_TEMPORARY
    except KeyboardInterrupt:
        return EXIT_OK  # before the handlers were in place; nothing had begun


def _run(options: argparse.Namespace) -> int:
    if [options.dir, options.queue, options.deliver].count(None) != 2:
        raise ConfigError(
            "required: one of DIR, --queue DIR and --deliver HOW; try qmtpmaildir --help"
        )
    policy = policy_of(options)
    timeout_s = parse_seconds(options.timeout, "--timeout")
    if timeout_s <= 0:
        raise ConfigError(f"--timeout: more than nothing, not {options.timeout!r}")
    if options.stdio and options.listen is not None:
        raise ConfigError("--stdio and --listen: one or the other")
    per_client = options.max_per_client
    wrap = _tls_server(options)
    max_connections = _count(options.max_connections, "--max-connections")
    max_per_client = None if per_client is None else _count(per_client, "--max-per-client")
    threads = connections(options)
    raise_limit()
    with contextlib.ExitStack() as stack:
        client = _client_on_stdio(options, policy) if options.stdio else None
        listeners = [] if client else stack.enter_context(open_listeners(options))
        complain = partial(stderr_log(_severity(options)), Severity.ERROR)
        destination = once(options, partial(_destination, options, policy, complain), complain)
        server = Server(
            destination,
            listen=None,
            listeners=listeners,
            policy=policy,
            wrap=wrap,
            max_connections=max_connections,
            max_per_client=max_per_client,
            timeout_s=timeout_s,
            log=stderr_log(_severity(options)),
            threads=threads or THREADS,
        )
        stack.enter_context(server)
        stack.enter_context(stop_signals(lambda *_: server.stop(), server.wakeup_fd))
        if client is not None:
            return EXIT_OK if server.serve_stream(StdioStream(), client) else EXIT_TEMPORARY
        server.serve()
    return EXIT_OK


def _client_on_stdio(options: argparse.Namespace, policy: Policy) -> Client:
    _require_stdio()
    client = client_on_stdio()
    require_permission(options, policy, client)
    return client


def _destination(
    options: argparse.Namespace, policy: Policy, complain: Callable[[str], None]
) -> Destination[Any]:
    """Return the destination of the mail.

    Raises `ConfigError` if an option does not fit the destination, and `LocalError` if the
    maildir, the queue or the directory for temporary files cannot be opened.
    """
    quota = user_quota(options)
    if options.deliver is not None:
        return hand_off(options, complain)
    if options.queue is not None:
        return QueueDestination(os.fsencode(options.queue), quota, renames=options.once is not None)
    return MaildirDestination(os.fsencode(options.dir), policy.max_size, options.once is not None)


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line; wrong usage makes it raise `ConfigError`."""
    parser = Parser(
        prog="qmtpmaildir",
        description="Receive mail over QMTP into a maildir, into the queue of a relay, or for "
        "another mail server.",
        epilog="Exit codes: 0 stopped or client done, 111 trouble, 100 wrong usage.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "dir", metavar="DIR", nargs="?", type=a_path, help="the maildir; made if it is missing"
    )
    parser.add_argument(
        "--queue",
        metavar="DIR",
        type=a_path,
        help="put mail into the queue of maildirqmtp instead: one file for all recipients, with "
        "its envelope beside it; made if it is missing",
    )
    _add_network_options(parser)
    add_handoff_options(parser)
    add_once_options(parser)
    add_relay_options(parser)
    _add_limits(parser)
    _add_tls_options(parser)
    add = parser.add_argument
    add("-v", "--verbose", action="store_true", help="log accepted messages too")
    add("-q", "--quiet", action="store_true", help="log nothing but errors")
    add("--version", action="version", version=f"%(prog)s {__version__}")
    return parser


def _add_network_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--listen",
        metavar="HOST:PORT",
        action="append",
        help=f"where to listen (default {DEFAULT_LISTEN}); or unix:PATH; may be repeated; not "
        "with the sockets of systemd",
    )
    add(
        "--stdio",
        action="store_true",
        help="serve one client on standard input and output, as under ssh, tcpserver or inetd",
    )


def _add_limits(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--max-size",
        metavar="SIZE",
        default=str(MAX_MESSAGE),
        help="refuse larger messages, as in 64k 32M 1G (default %(default)s bytes)",
    )
    add(
        "--min-free",
        metavar="SIZE",
        default="0",
        help="defer all mail while the file system has less space left (default %(default)s)",
    )
    add(
        "--max-connections",
        metavar="N",
        default=str(MAX_CONNECTIONS),
        help="clients at once; others wait (default %(default)s)",
    )
    add(
        "--max-per-client",
        metavar="N",
        help="connections at once of one IP address, or IPv6 /64; more are closed "
        "(default half of --max-connections)",
    )
    add(
        "--timeout",
        metavar="TIME",
        default=f"{TIMEOUT_S:.0f}",
        help="drop a client idle for so long, as in 90s 5m (default %(default)s seconds)",
    )


def _add_tls_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--tls-cert",
        metavar="FILE",
        type=a_path,
        help="speak TLS only, with this certificate (PEM)",
    )
    add("--tls-key", metavar="FILE", type=a_path, help="its key, if it is not in the same file")
    add(
        "--tls-client-ca",
        metavar="FILE",
        type=a_path,
        help="accept only clients with a certificate of this authority (PEM)",
    )
    add(
        "--tls-client-name",
        metavar="NAME",
        action="append",
        default=[],
        help="of these only clients with this name in their certificate, as subjectAltName or "
        "common name; may be repeated",
    )


def _tls_server(options: argparse.Namespace) -> Callable[[socket.socket], Stream]:
    """Return the function that makes a stream of a socket: plain text, or TLS.

    Raises `ConfigError` if the TLS options do not fit together.
    """
    if options.tls_cert is None:
        for flag in ("tls_key", "tls_client_ca", "tls_client_name"):
            if getattr(options, flag):
                raise ConfigError(f"--{flag.replace('_', '-')}: for TLS, --tls-cert is needed")
        return SocketStream
    if options.stdio or any(text.startswith("unix:") for text in options.listen or ()):
        raise ConfigError("--tls-cert: TLS is for TCP; with --stdio, let sslserver or ssh do it")
    if options.tls_client_name and options.tls_client_ca is None:
        raise ConfigError("--tls-client-name: names prove nothing without --tls-client-ca")
    from maildirqmtp.receiver.tls import TlsServer

    throttled = ThrottledLog(stderr_log(_severity(options)), time.monotonic)
    return TlsServer(
        options.tls_cert,
        options.tls_key,
        options.tls_client_ca,
        options.tls_client_name,
        partial(throttled, Severity.ERROR),
    ).wrap


def _count(text: str, where: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 6 and int(text) > 0):
        raise ConfigError(f"{where}: a number from 1 on, not {text!r}")
    return int(text)


def _severity(options: argparse.Namespace) -> Severity:
    if options.quiet:
        return Severity.ERROR
    return Severity.INFO if options.verbose else Severity.NOTICE


def _require_stdio() -> None:
    """Raise `ConfigError` if stdin or stdout is closed: another file would get the descriptor."""
    for fd, name in ((0, "input"), (1, "output")):
        try:
            os.fstat(fd)
        except OSError:
            raise ConfigError(f"--stdio: standard {name} is closed") from None


def stderr_log(limit: Severity) -> Log:
    """Return a log that writes to standard error the lines that matter at least as `limit` does."""

    def log(severity: Severity, text: str) -> None:
        if severity <= limit and sys.stderr is not None:
            # A full disk, or a log reader that has gone, must not stop the mail.
            with contextlib.suppress(OSError, ValueError):
                print(f"qmtpmaildir: {text}", file=sys.stderr, flush=True)

    return log


if __name__ == "__main__":
    sys.exit(main())
