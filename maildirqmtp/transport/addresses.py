"""The addresses of a host: looked up, and put in the order in which they are tried.

    1. the address that worked last, so that a dead one costs nothing at each reconnect
    2. the others: IPv6 and IPv4 in turn, else as the system orders them (RFC 8305, 4)
    3. those that were of no use within the last 5 minutes, the one longest ago first

All threads of the process share what is remembered.
"""

# No postponed annotations; see `forwarder.route`.
import socket
from itertools import zip_longest
from typing import Any, NamedTuple

from maildirqmtp.errors import ConnectError
from maildirqmtp.transport.endpoint import TcpEndpoint

#: Seconds for which an address that was of no use goes behind the others.
USELESS_S = 300.0
#: The least and the most seconds from one address to the next (RFC 8305, 8); in between, this
#: multiple of the last connect time: a satellite link needs over half a second each time.
NEXT_AFTER_S = 0.25
MAX_NEXT_AFTER_S = 2.0
NEXT_AFTER_CONNECT_TIMES = 1.5

#: Hosts and addresses remembered; a program may have talked to any number of them.
_MAX_REMEMBERED = 1_000


class Address(NamedTuple):
    """An address as socket(2) and connect(2) take it."""

    family: int
    sockaddr: tuple[Any, ...]


#: What is known of a host and port: the address that last worked, and the seconds that took.
_worked: dict[tuple[str, int], tuple[Address, float]] = {}
#: The clock's time at which an address was last found to be of no use.
_useless: dict[Address, float] = {}


def look_up(server: TcpEndpoint, now: float) -> list[Address]:
    """Return the server's addresses in the order in which they are to be tried.

    Raises `ConnectError` if the host is not found.
    """
    # As bytes if that will do: for a str, Python loads its tables of Unicode host names.
    host = server.host.encode() if server.host.isascii() else server.host
    try:
        found = socket.getaddrinfo(host, server.port, type=socket.SOCK_STREAM)
    except ConnectError:  # from a signal handler: told to stop
        raise
    except (OSError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise ConnectError(
            getattr(error, "errno", None), f"cannot find the host {server.host}: {why}"
        ) from error
    addresses = _in_turn([Address(family, sockaddr) for family, _, _, _, sockaddr in found])
    worked, _ = _worked.get((server.host, server.port), (None, 0.0))

    def rank(address: Address) -> tuple[float, bool]:
        since = _useless.get(address)
        is_useless = since is not None and now - since < USELESS_S
        return (since if since is not None and is_useless else float("-inf"), address != worked)

    return sorted(addresses, key=rank)


def _in_turn(addresses: list[Address]) -> list[Address]:
    """Return each address once, the families in turn, beginning with that of the first."""
    families: dict[int, dict[Address, None]] = {}
    for address in addresses:
        families.setdefault(address.family, {})[address] = None
    rounds = zip_longest(*families.values())
    return [address for each in rounds for address in each if address is not None]


def next_after_s(server: TcpEndpoint) -> float:
    """Return the seconds that an address has to itself before the next one is tried as well."""
    _, took_s = _worked.get((server.host, server.port), (None, 0.0))
    return min(MAX_NEXT_AFTER_S, max(NEXT_AFTER_S, NEXT_AFTER_CONNECT_TIMES * took_s))


def note_worked(server: TcpEndpoint, address: Address, took_s: float) -> None:
    """Remember an address that was connected to, and the seconds that it took."""
    if len(_worked) >= _MAX_REMEMBERED:
        _worked.clear()
    _worked[server.host, server.port] = (address, took_s)


def note_useless(address: Address, now: float) -> None:
    """Remember an address that cannot be connected to, or whose connection was of no use."""
    if len(_useless) >= _MAX_REMEMBERED:
        _useless.clear()
    _useless[address] = now


def forget() -> None:
    """Forget everything, as a new process would."""
    _worked.clear()
    _useless.clear()
