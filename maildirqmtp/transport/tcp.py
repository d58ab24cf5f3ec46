"""Connecting by TCP: several addresses at the same time, and the first to answer is used.

RFC 8305 (Happy Eyeballs): the next address is tried when the one before has
failed, or has not answered for a moment. So an address that drops packets costs
a quarter of a second, and not the time-out.
"""

from __future__ import annotations

import errno
import os
import selectors
import socket
import time
from typing import TYPE_CHECKING

from maildirqmtp.descriptor_limit import reason
from maildirqmtp.errors import ConnectError, ConnectTimeout
from maildirqmtp.transport.addresses import (
    Address,
    look_up,
    next_after_s,
    note_useless,
    note_worked,
)
from maildirqmtp.transport.readiness import MAX_WAIT_S
from maildirqmtp.transport.sockets import SocketTransport

if TYPE_CHECKING:
    from collections.abc import Callable

    from maildirqmtp.transport.descriptor_pair import DescriptorPair
    from maildirqmtp.transport.endpoint import TcpEndpoint

    #: Makes a transport from a connected socket, within the seconds that are left.
    Wrap = Callable[[socket.socket, float], DescriptorPair]

#: Seconds without traffic before the first keepalive probe, seconds from one probe to the next,
#: and the number of unanswered probes after which the connection is broken.
KEEPALIVE_IDLE_S = 60
KEEPALIVE_INTERVAL_S = 15
KEEPALIVE_PROBES = 4
#: The least seconds that sent bytes may stay unacknowledged: as long as an idle peer may be silent.
UNACKNOWLEDGED_S = KEEPALIVE_IDLE_S + KEEPALIVE_PROBES * KEEPALIVE_INTERVAL_S


def connect_tcp(
    server: TcpEndpoint,
    timeout_s: float,
    write_timeout_s: float = 0.0,
    wrap: Wrap | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> DescriptorPair:
    """Connect to one of the server's addresses; each has `timeout_s` seconds.

    `write_timeout_s` is how long the server may take no bytes; the kernel must not
    give up earlier. `wrap` makes the transport; it may raise an `OSError` for an
    address that is of no use after all, and then the others are tried. Raises
    `ConnectError` if none is of use, `ConnectTimeout` if all timed out.
    """
    race = _Race(server, timeout_s, clock)
    try:
        while (won := race.run()) is not None:
            sock, address, began = won
            connected = clock()
            try:
                _set_options(sock, write_timeout_s)
                if wrap is None:
                    made: DescriptorPair = SocketTransport(sock, str(server))
                else:
                    made = wrap(sock, max(0.001, timeout_s - (connected - began)))
            except ConnectError:
                sock.close()
                raise
            except OSError as error:
                sock.close()
                race.stood_still(clock() - connected)
                race.failed(address, error)
            except BaseException:
                sock.close()
                raise
            else:
                note_worked(server, address, connected - began)
                made.address, made.addresses = address, race.addresses
                return made
    finally:
        race.close()
    raise race.error()


def _set_options(sock: socket.socket, write_timeout_s: float) -> None:
    # Packages are gathered here; the last ones must not wait for an acknowledgement.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # A router that has forgotten the connection must not hold a route for an hour.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_PROBES)
    # The kernel also counts a server that takes nothing, which is the write time-out's job.
    unacknowledged_s = min(max(UNACKNOWLEDGED_S, write_timeout_s + KEEPALIVE_IDLE_S), MAX_WAIT_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(unacknowledged_s * 1_000))


class _Race:
    """The attempts to connect that are under way, and the addresses still to be tried."""

    def __init__(self, server: TcpEndpoint, timeout_s: float, clock: Callable[[], float]) -> None:
        self._server = server
        self._timeout_s = timeout_s
        self._clock = clock
        self._waiting = look_up(server, clock())
        self.addresses = len(self._waiting)
        self._next_after_s = next_after_s(server)
        self._next_at = clock()
        self._reasons: list[str] = []
        self._last: OSError | None = None
        self._all_timed_out = True
        # poll(2) needs no descriptor of its own, of which there may be none left.
        self._selector = selectors.PollSelector()
        self._begun: dict[socket.socket, tuple[Address, float]] = {}

    def run(self) -> tuple[socket.socket, Address, float] | None:
        """Return the first socket that is connected, its address and when it was begun.

        The other attempts go on. None if all have failed.
        """
        while self._begun or self._waiting:
            if self._begun:
                # Before the clock is read: after a long stop of this process, one may be connected.
                for key, _ in self._selector.select(self._wait_s()):
                    sock = key.fileobj
                    assert isinstance(sock, socket.socket)
                    address, began = self._take(sock)
                    number = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                    if not number:
                        return sock, address, began
                    sock.close()
                    self.failed(address, OSError(number, os.strerror(number)))
                self._time_out(self._clock())
            now = self._clock()
            due = bool(self._waiting) and (now >= self._next_at or not self._begun)
            if due and (won := self._begin(self._waiting.pop(0), now)) is not None:
                return won
        return None

    def _wait_s(self) -> float:
        """Return the seconds until an attempt times out, or the next one is to begin."""
        due = min(began + self._timeout_s for _, began in self._begun.values())
        return max(0.0, (min(due, self._next_at) if self._waiting else due) - self._clock())

    def _begin(self, address: Address, now: float) -> tuple[socket.socket, Address, float] | None:
        """Begin to connect to an address; if that succeeds at once, return what `run` does."""
        self._next_at = now + self._next_after_s
        try:
            sock = socket.socket(address.family, socket.SOCK_STREAM)
        except ConnectError:  # from a signal handler: told to stop
            raise
        except OSError as error:
            self.failed(address, error)
            return None
        self._begun[sock] = address, now
        sock.setblocking(False)
        number = sock.connect_ex(address.sockaddr)
        if number == errno.EINPROGRESS:
            self._selector.register(sock, selectors.EVENT_WRITE)
            return None
        del self._begun[sock]
        if not number:
            return sock, address, now
        sock.close()
        self.failed(address, OSError(number, os.strerror(number)))
        return None

    def _take(self, sock: socket.socket) -> tuple[Address, float]:
        self._selector.unregister(sock)
        return self._begun.pop(sock)

    def _time_out(self, now: float) -> None:
        for sock, (address, began) in [*self._begun.items()]:
            if now - began >= self._timeout_s:
                self._take(sock)
                sock.close()
                self.failed(address, TimeoutError())

    def failed(self, address: Address, error: OSError) -> None:
        """Note why an address is of no use, and have the next one tried at once."""
        timed_out = isinstance(error, TimeoutError)
        self._all_timed_out = self._all_timed_out and timed_out
        why = f"no answer in {self._timeout_s:g} s" if timed_out else reason(error)
        self._reasons.append(f"{address.sockaddr[0]}: {why}")
        self._last = error
        self._next_at = self._clock()
        note_useless(address, self._next_at)

    def stood_still(self, seconds: float) -> None:
        """Do not count the time of another address's handshake, in which nothing was looked at."""
        for sock, (address, began) in self._begun.items():
            self._begun[sock] = address, began + seconds

    def error(self) -> ConnectError:
        """Return the error for when all addresses have failed."""
        reason = f"cannot connect to {self._server}: {'; '.join(self._reasons)}"
        kind = ConnectTimeout if self._all_timed_out else ConnectError
        error = kind(self._last.errno if self._last else None, reason)
        error.__cause__ = self._last
        return error

    def close(self) -> None:
        """Give up the addresses that have not answered."""
        for sock in self._begun:
            sock.close()
        self._begun.clear()
        self._selector.close()
