"""Connecting to a server, by whatever transport its endpoint asks for.

Only the modules of that transport are imported: a run over plain TCP loads
neither ssl nor subprocess.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from maildirqmtp.transport.endpoint import CommandEndpoint, TcpEndpoint, UnixEndpoint, check_tls
from maildirqmtp.transport.readiness import MAX_WAIT_S
from maildirqmtp.transport.sockets import connect_unix

if TYPE_CHECKING:
    from collections.abc import Callable

    from maildirqmtp.transport.endpoint import Endpoint
    from maildirqmtp.transport.tls_options import Tls
    from maildirqmtp.transport.transport import Transport


def _to_stderr(line: str) -> None:
    """Write a line of a command to our log; in one piece, because it comes from a thread."""
    stream = sys.stderr
    if stream is None:
        return
    try:
        stream.write(f"maildirqmtp: {line}\n")
        stream.flush()
    except (OSError, ValueError):  # nobody reads it, or it is closed
        return


def connect(
    server: Endpoint,
    timeout_s: float,
    tls: Tls | None = None,
    log: Callable[[str], None] = _to_stderr,
    write_timeout_s: float = 0.0,
) -> Transport:
    """Connect to the server; each of its addresses gets `timeout_s` seconds.

    `tls` says how to verify a server at `qmtps://`; None: by the certificate
    authorities of this system. `log` gets the lines that a command writes on
    its standard error, in a thread of its own. `write_timeout_s` is how long the
    server may take no bytes: TCP's own limit, two minutes, is raised to allow it.

    Raises `ConnectError` if no address can be connected to, `ConnectTimeout` if
    every one timed out, and `ConfigError` for `tls` with a plain-text server. If
    a signal handler raises a `ConnectError`, no other address is tried.
    """
    check_tls(server, tls)
    return connector(server, tls, log)(min(timeout_s, MAX_WAIT_S), write_timeout_s)


def connector(
    server: Endpoint, tls: Tls | None = None, log: Callable[[str], None] = _to_stderr
) -> Callable[[float, float], Transport]:
    """Import the transport; return what connects, given connect and write time-outs in seconds."""
    if isinstance(server, TcpEndpoint) and server.tls:
        from maildirqmtp.transport.tls import connect_tls

        return lambda connect_s, write_s: connect_tls(server, connect_s, write_s, tls)
    if isinstance(server, TcpEndpoint):
        from maildirqmtp.transport.tcp import connect_tcp

        return lambda connect_s, write_s: connect_tcp(server, connect_s, write_s)
    if isinstance(server, UnixEndpoint):
        return lambda connect_s, _: connect_unix(server, connect_s)
    if isinstance(server, CommandEndpoint):
        from maildirqmtp.transport.command import CommandTransport

        return lambda *_: CommandTransport(server, log)
    from maildirqmtp.transport.descriptors import connect_ucspi

    return lambda *_: connect_ucspi()
