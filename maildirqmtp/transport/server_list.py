"""Server lists: servers in the order of preference, as a command line or a file has them.

    mx1.example.org,mx2.example.org          SERVER on a command line, or a text in a file
    ["mx1.example.org", "exec:ssh mx2 ..."]  an array in a file

`exec:` and `unix:` take the whole rest of a text, commas and all, so that a list with them can
only be an array.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from maildirqmtp.errors import ConfigError
from maildirqmtp.transport.endpoint import TcpEndpoint, UcspiEndpoint, parse_endpoint

if TYPE_CHECKING:
    from collections.abc import Sequence

    from maildirqmtp.transport.endpoint import Endpoint

_WHOLE_TEXT = ("unix:", "exec:")


def split_servers(text: str) -> tuple[str, ...]:
    """Return the text of each server of `SERVER,SERVER`, or the text of the only one.

    Raises `ConfigError` if one after the first begins with `unix:` or `exec:`.
    """
    if "," not in text or text.startswith(_WHOLE_TEXT):
        return (text,)
    servers = tuple(text.split(","))
    if any(server.startswith(_WHOLE_TEXT) for server in servers):
        raise ConfigError(
            f"server {text!r}: unix: and exec: take the whole rest of a text; a list with them is "
            f"an array in a configuration file: server = ['mx.example.org', 'unix:/run/qmtp']"
        )
    return servers


def parse_servers(texts: Sequence[str], default_port: int | None = None) -> tuple[Endpoint, ...]:
    """Parse each server of a list; `default_port` as for `parse_endpoint`.

    Raises `ConfigError` if the list is empty, a server cannot be parsed, is there twice or is `-`
    among others, or if mail would go by TLS at one time and readable by everybody at another: by
    TLS and by plain TCP, unless that is on loopback.
    """
    servers = tuple([parse_endpoint(text, default_port) for text in texts])
    if not servers:
        raise ConfigError("server: at least one is needed")
    if len(servers) > 1:
        _check_list(servers)
    return servers


def _check_list(servers: tuple[Endpoint, ...]) -> None:
    for number, server in enumerate(servers):
        if isinstance(server, UcspiEndpoint):
            raise ConfigError("server -: what tcpclient has opened is one server; not in a list")
        if server in servers[:number]:
            raise ConfigError(f"server {server}: it stands in the list twice")
    over_tls = [server for server in servers if isinstance(server, TcpEndpoint) and server.tls]
    plain = [
        server
        for server in servers
        if isinstance(server, TcpEndpoint) and not server.tls and not is_loopback(server.host)
    ]
    if over_tls and plain:
        raise ConfigError(
            f"server {plain[0]}: what {over_tls[0]} gets under TLS would go there in plain text; "
            f"write qmtps://{plain[0].host} for TLS"
        )


def is_loopback(host: str) -> bool:
    """Return whether a host is this machine by its name or address, without looking it up."""
    from ipaddress import ip_address

    name = host.lower().removesuffix(".")
    if name == "localhost" or name.endswith(".localhost"):  # RFC 6761, 6.3
        return True
    try:
        address = ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback
