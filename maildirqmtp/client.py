"""`QMTPClient`: send mail to a QMTP server from a program.

`BaseClient` has what the clients have in common: the options and the courier.
"""

import logging
from collections.abc import Generator, Iterable, Iterator
from typing import Self

from maildirqmtp.address import Address as ServerAddress
from maildirqmtp.address import Tls, check_tls, parse_port, parse_server
from maildirqmtp.courier import Courier, Need
from maildirqmtp.errors import ConfigError, TransportError
from maildirqmtp.package import Address, Encoding, Message, Package
from maildirqmtp.pipeline import Limits
from maildirqmtp.results import SendResult
from maildirqmtp.route import (
    CONNECT_TIMEOUT_S,
    GRACE_S,
    MAX_SECONDS,
    RESPONSE_TIMEOUT_S,
    SESSION_S,
    WINDOW_BYTES,
    WINDOW_MESSAGES,
    WRITE_TIMEOUT_S,
)
from maildirqmtp.transport import Transport, connect
from maildirqmtp.waiting import Waiter
from maildirqmtp.window import Window

_log = logging.getLogger("maildirqmtp")


class BaseClient:
    """The options of a client, which are described at `QMTPClient`."""

    def __init__(
        self,
        server: str,
        *,
        port: int | None = None,
        defer_connect: bool = False,
        connect_timeout: float = CONNECT_TIMEOUT_S,
        write_timeout: float = WRITE_TIMEOUT_S,
        response_timeout: float = RESPONSE_TIMEOUT_S,
        grace_time: float = GRACE_S,
        session_limit: float = SESSION_S,
        tls: Tls | None = None,
        window: int | tuple[int, int] = (WINDOW_MESSAGES, WINDOW_BYTES),
    ) -> None:
        times = (connect_timeout, write_timeout, response_timeout, grace_time, session_limit)
        if not all(isinstance(seconds, (int, float)) and seconds > 0 for seconds in times):
            raise ConfigError("a time-out or limit of a client is a number of seconds above 0")
        if tls is not None and not isinstance(tls, Tls):
            raise ConfigError("tls is a Tls, as in tls=Tls(ca=PATH), or None: qmtps:// is enough")
        pair = (window, WINDOW_BYTES) if isinstance(window, int) else window
        is_pair = isinstance(pair, tuple) and len(pair) == 2
        if not is_pair or not all(isinstance(n, int) and n > 0 for n in pair):
            raise ConfigError(
                "a window is a number of packages, or a pair of that and a number of bytes, "
                "each at least 1"
            )
        self._tls = tls
        self._server = server
        self._port = port
        self._address = self._parse(server, port)
        self._connected_to = self._address
        self._defer_connect = defer_connect
        self._connect_timeout_s = float(connect_timeout)
        limits = Limits(*[min(seconds, MAX_SECONDS) for seconds in times[1:]])
        self._courier = Courier(Window(*pair), limits)
        self._begin()

    def _begin(self) -> None:
        """Do what a new client does at once."""

    @property
    def server(self) -> str:
        """The server; one that is set counts from the next `connect` on. Raises `ConfigError`."""
        return self._server

    @server.setter
    def server(self, server: str) -> None:
        self._address = self._parse(server, self._port)
        self._server = server

    @property
    def port(self) -> int | None:
        """The port where `server` has none; None is 209, or 6209 with TLS. Set as `server` is."""
        return self._port

    @port.setter
    def port(self, port: int | None) -> None:
        self._address = self._parse(self._server, port)
        self._port = port

    @property
    def connected(self) -> bool:
        """Whether there is a connection; one that the server has closed meanwhile is none."""
        return self._courier.is_alive()

    def disconnect(self) -> None:
        """Close the connection; harmless without one. The next `send` makes a new one."""
        self._courier.disconnect()

    def _parse(self, server: str, port: int | None) -> ServerAddress:
        address = parse_server(server, None if port is None else parse_port(str(port)))
        check_tls(address, self._tls)
        return address

    def _must_connect(self) -> bool:
        """Say whether `connect` has to do anything; closes what is of no use any more."""
        if self._courier.is_alive() and self._connected_to == self._address:
            return False
        self._courier.disconnect()
        return True

    def _dial(self, address: ServerAddress) -> Transport:
        """Connect, and wait for it. Raises `ConnectError`."""
        return connect(address, self._connect_timeout_s, self._tls, _log.warning)

    def _use(self, transport: Transport, address: ServerAddress) -> None:
        if address != self._connected_to:
            self._courier.forget_manners()
            self._connected_to = address
        self._courier.connected(transport)


class QMTPClient(BaseClient):
    """A connection to a QMTP server, and what is sent over it.

        with QMTPClient("mail.example.org") as client:
            result = client.send("me@example.org", ["you@example.net"], b"Subject: hi\\n\\nHi\\n")

    `server` is SERVER of the command line: `name`, `name:port`, `[::1]:port`,
    `qmtp://name`, `qmtps://name` (TLS), `unix:PATH`, `exec:COMMAND`, or `-` for
    descriptors 6 and 7 of a UCSPI client. It connects at once, unless `defer_connect`; and,
    whenever there is no connection (any more), at the next `send`.

    Seconds: `connect_timeout` (60) for each address of the server;
    `write_timeout` (73) without a byte taken by the server; `response_timeout`
    (3,600) for the answers to a package, from its last byte on; `session_limit`
    (3,000), after which a connection is replaced between two packages, as a
    session lasts an hour at most (qmtp.txt, section 2); `grace_time` (10) for
    the other responses of the first package with several recipients, after its
    first response: a server that has not sent them then answers once per
    package, and is asked for each recipient with a package of its own.

    `window` is the most packages in flight at once (4,096), or a pair of that
    and the most bytes (32 MiB); the last package begun may exceed the bytes.
    `tls` says how to know a `qmtps://` server, and is for those only; None: by
    the certificate authorities of this system.

    Not for several threads at once, and for one `send` or `send_many` at a time.
    Every package and response is logged at DEBUG to the logger `maildirqmtp`;
    texts of messages never. What a command writes on its standard error goes to
    the same logger at WARNING.

    Raises `ConnectError` (from the constructor too), `ConfigError` for options
    that make no sense.
    """

    _waiter: Waiter | None = None

    def _begin(self) -> None:
        if not self._defer_connect:
            self.connect()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.disconnect()

    def __del__(self) -> None:
        # A constructor that raised has left no courier.
        if hasattr(self, "_courier"):
            self.disconnect()

    def connect(self) -> None:
        """Connect, where there is no connection to the present `server` and `port`.

        Raises `ConnectError`, also `ConnectTimeout`.
        """
        if self._must_connect():
            address = self._address
            self._use(self._dial(address), address)

    def reconnect(self) -> None:
        """Close the connection, if any, and connect anew. Raises `ConnectError`."""
        self.disconnect()
        self.connect()

    def disconnect(self) -> None:
        """Close the connection; harmless without one. The next `send` makes a new one."""
        super().disconnect()
        self._forget_waiter()

    def send(
        self,
        sender: Address,
        recipients: Address | Iterable[Address],
        message: Message,
        *,
        encoding: Encoding = "unix",
    ) -> SendResult:
        """Send one message and wait for all answers. The arguments are those of `Package`.

        A refusal is an answer, and in the result. Raises `PackageError`
        (a `ValueError`) and what `open` does, before anything is sent;
        `TransportError` (an `OSError`) or `ProtocolError` where the connection
        broke, `FileChangedError` where a file changed meanwhile: then the
        package was not completed, and the server has thrown it away. The
        `result` of these has what was answered, and says who is in doubt; the
        connection is closed.
        """
        package = Package(sender, recipients, message, encoding=encoding)
        (result,) = self.send_many((package,))
        return result

    def send_many(self, packages: Iterable[Package]) -> Generator[SendResult, None, None]:
        """Send many packages, without waiting for the answer to one before the next.

        Returns an iterator of their results, in order. Lazy on both sides:
        packages are taken while the window has room, and only while a result is
        waited for. While a package is waited for, nothing is sent or read.

        Raises as `send` does, after the results of all packages that were
        taken: those without an answer are in them, deferred. What is left in
        `packages` was not sent. What `packages` itself raises, or opening the
        files of one of them, comes after the results of what was before it.
        Leaving the loop early closes the connection; then what was taken is in
        doubt.
        """
        courier = self._courier
        source = iter(packages)
        courier.begin()
        try:
            while (need := courier.need()) is not Need.NOTHING:
                if need is Need.PACKAGE:
                    self._take(source)
                elif need is Need.RESULT:
                    yield courier.result()
                elif need is Need.CONNECTION:
                    self._open()
                else:
                    self._turn(courier.wait_s() if need is Need.WAIT else 0.0)
            if courier.error is not None:
                raise courier.error
        finally:
            courier.end()
            if courier.transport is None:
                self._forget_waiter()

    def _take(self, source: Iterator[Package]) -> None:
        try:
            self._courier.take(next(source))
        except StopIteration:
            self._courier.no_more()
        except Exception as error:
            self._courier.stop(error)

    def _open(self) -> None:
        try:
            self.connect()
        except TransportError as error:
            self._courier.fail(error)

    def _turn(self, timeout_s: float | None) -> None:
        courier = self._courier
        transport = courier.transport
        assert transport is not None
        try:
            if self._waiter is None or self._waiter.transport is not transport:
                self._forget_waiter()
                self._waiter = Waiter(transport)
            ready = self._waiter.wait(courier.wants_read, courier.wants_write, timeout_s)
        except OSError as error:
            courier.disconnect()
            courier.fail(TransportError(error.errno, f"cannot wait for {transport.name}: {error}"))
        else:
            courier.turn(*ready)

    def _forget_waiter(self) -> None:
        if self._waiter is not None:
            self._waiter.close()
            self._waiter = None
