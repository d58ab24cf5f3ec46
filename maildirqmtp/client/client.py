"""`QMTPClient`: send mail to a QMTP server from a program.

`BaseClient` has what the clients have in common: the options and the session.
"""

import logging
from collections.abc import Generator, Iterable, Iterator
from typing import Self

from maildirqmtp.client.package import Encoding, MailAddress, Message, Package
from maildirqmtp.client.session import ClientSession, NextStep
from maildirqmtp.errors import ConfigError, TransportError
from maildirqmtp.pipeline.timeouts import (
    CONNECT_TIMEOUT_S,
    FENCE_GRACE_S,
    MAX_SECONDS,
    RESPONSE_TIMEOUT_S,
    SESSION_S,
    WRITE_TIMEOUT_S,
    Timeouts,
)
from maildirqmtp.pipeline.window import WINDOW_BYTES, WINDOW_MESSAGES, Window
from maildirqmtp.results import SendResult
from maildirqmtp.transport.connect import connect
from maildirqmtp.transport.endpoint import Endpoint, check_tls, parse_endpoint, parse_port
from maildirqmtp.transport.readiness import ConnectionSelector
from maildirqmtp.transport.tls_options import Tls
from maildirqmtp.transport.transport import Transport

_log = logging.getLogger("maildirqmtp")


class BaseClient:
    """The options and the session of a client; see `QMTPClient` for the options."""

    def __init__(
        self,
        server: str,
        *,
        port: int | None = None,
        defer_connect: bool = False,
        connect_timeout: float = CONNECT_TIMEOUT_S,
        write_timeout: float = WRITE_TIMEOUT_S,
        response_timeout: float = RESPONSE_TIMEOUT_S,
        grace_time: float = FENCE_GRACE_S,
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
        self._write_timeout_s = float(write_timeout)
        timeouts = Timeouts(*[min(seconds, MAX_SECONDS) for seconds in times[1:]])
        self._session = ClientSession(Window(*pair), timeouts)
        self._begin()

    def _begin(self) -> None:
        """Do what a new client does at once."""

    @property
    def server(self) -> str:
        """The server; setting it counts from the next `connect` on.

        Raises `ConfigError` if the new value is not a server, or does not go with `tls`.
        """
        return self._server

    @server.setter
    def server(self, server: str) -> None:
        self._address = self._parse(server, self._port)
        self._server = server

    @property
    def port(self) -> int | None:
        """The port if `server` has none; None is 209, or 6209 with TLS. Set as `server` is."""
        return self._port

    @port.setter
    def port(self, port: int | None) -> None:
        self._address = self._parse(self._server, port)
        self._port = port

    @property
    def connected(self) -> bool:
        """Whether there is a connection; one that the server has closed does not count."""
        return self._session.is_alive()

    def disconnect(self) -> None:
        """Close the connection; harmless without one. The next `send` makes a new one."""
        self._session.disconnect()

    def _parse(self, server: str, port: int | None) -> Endpoint:
        address = parse_endpoint(server, None if port is None else parse_port(str(port)))
        check_tls(address, self._tls)
        return address

    def _must_connect(self) -> bool:
        """Return whether `connect` has to connect; if so, close a connection of no more use."""
        if self._session.is_alive() and self._connected_to == self._address:
            return False
        self.disconnect()  # the client's own: a task may be waiting for that connection
        return True

    def _dial(self, address: Endpoint) -> Transport:
        """Connect, and wait for it. Raises `ConnectError` if no address can be reached."""
        return connect(
            address, self._connect_timeout_s, self._tls, _log.warning, self._write_timeout_s
        )

    def _use(self, transport: Transport, address: Endpoint) -> None:
        if address != self._connected_to:
            self._session.forget_capabilities()
            self._connected_to = address
        self._session.connected(transport)


class QMTPClient(BaseClient):
    """A connection to a QMTP server, and what is sent over it.

        with QMTPClient("mail.example.org") as client:
            result = client.send("me@example.org", ["you@example.net"], b"Subject: hi\\n\\nHi\\n")

    `server` is SERVER of the command line: `name`, `name:port`, `[::1]:port`,
    `qmtp://name`, `qmtps://name` (TLS), `unix:PATH`, `exec:COMMAND`, or `-` for
    descriptors 6 and 7 of a UCSPI client. It connects at once, unless `defer_connect`,
    and at the next `send` whenever there is no connection (any more).

    Seconds: `connect_timeout` (60) for each address of the server;
    `write_timeout` (73) without a byte taken by the server; `response_timeout`
    (3,600) without an answer, from the last one or from the last byte of the package
    whose answer is due; `session_limit`
    (3,000), after which a connection is replaced between two packages, as a
    session lasts an hour at most (qmtp.txt, section 2); `grace_time` (10) for
    the other responses of the first package with several recipients, after its
    first response: a server that has not sent them by then counts as one that answers
    once per package, and is sent a package for each recipient.

    `window` is the most packages in flight at once (4,096), or a pair of that
    and the most bytes (32 MiB); the last package begun may exceed the bytes.
    `tls` says how to verify a `qmtps://` server, and is an error with any other;
    None means the certificate authorities of this system.

    Use it in one thread at a time, for one `send` or `send_many` at a time. Every
    package and response is logged at DEBUG to the logger `maildirqmtp`; texts of
    messages never are. What a command writes on its standard error goes to the same
    logger at WARNING.

    Raises `ConnectError` if it cannot connect (the constructor as well), `ConfigError`
    for options that make no sense, `RuntimeError` for a second `send` at a time.
    """

    _selector: ConnectionSelector | None = None

    def _begin(self) -> None:
        if not self._defer_connect:
            self.connect()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.disconnect()

    def __del__(self) -> None:
        # A constructor that raised has made no session.
        if hasattr(self, "_session"):
            self.disconnect()

    def connect(self) -> None:
        """Connect, if there is no connection to the present `server` and `port`.

        Raises `ConnectError` if that fails, `ConnectTimeout` if every address timed out.
        """
        if self._must_connect():
            address = self._address
            self._use(self._dial(address), address)

    def reconnect(self) -> None:
        """Close the connection, if any, and connect anew. Raises as `connect` does."""
        self.disconnect()
        self.connect()

    def disconnect(self) -> None:
        """Close the connection; harmless without one. The next `send` makes a new one."""
        super().disconnect()
        self._close_selector()

    def send(
        self,
        sender: MailAddress,
        recipients: MailAddress | Iterable[MailAddress],
        message: Message,
        *,
        encoding: Encoding = "unix",
    ) -> SendResult:
        """Send one message and wait for all answers. The arguments are those of `Package`.

        A refusal is an answer, and in the result. Before anything is sent, raises
        `PackageError` (a `ValueError`) if no server takes such a package, and what
        `open` raises. Raises `TransportError` (an `OSError`) or `ProtocolError` if the
        connection broke, `FileChangedError` if a file changed meanwhile: then the
        package was not completed, and the server has thrown it away. The `result` of
        these three has what was answered, and says who is in doubt; the connection is
        closed.
        """
        package = Package(sender, recipients, message, encoding=encoding)
        (result,) = self.send_many((package,))
        return result

    def send_many(self, packages: Iterable[Package]) -> Generator[SendResult, None, None]:
        """Send many packages, without waiting for the answer to one before the next.

        Return an iterator of their results, in order. It is lazy on both sides:
        packages are taken while the window has room, and only while the caller waits
        for a result. While `packages` is waited for, nothing is sent or read.

        Raises as `send` does, after the results of all packages that were taken:
        recipients without an answer are in them, deferred. What is left in `packages`
        was not sent. An exception from `packages` itself, or from opening the files of
        a package, is raised after the results of the packages before it. Leaving the
        loop early with packages in flight closes the connection; these packages are
        then in doubt.
        """
        session = self._session
        source = iter(packages)
        session.begin()
        try:
            while (step := session.next_step()) is not NextStep.NOTHING:
                if step is NextStep.PACKAGE:
                    self._take(source)
                elif step is NextStep.RESULT:
                    yield session.result()
                elif step is NextStep.CONNECTION:
                    self._open()
                else:
                    self._turn(session.wait_s() if step is NextStep.WAIT else 0.0)
            if session.error is not None:
                raise session.error
        finally:
            session.end()
            if session.transport is None:
                self._close_selector()

    def _take(self, source: Iterator[Package]) -> None:
        try:
            try:
                package = next(source)
            except StopIteration:
                self._session.no_more()
            else:  # a file of the package that raises StopIteration is no end of the source
                self._session.take(package)
        except Exception as error:
            self._session.stop(error)

    def _open(self) -> None:
        try:
            self.connect()
        except TransportError as error:
            self._session.fail(error)

    def _turn(self, timeout_s: float | None) -> None:
        session = self._session
        transport = session.transport
        assert transport is not None
        try:
            if self._selector is None or self._selector.transport is not transport:
                self._close_selector()
                self._selector = ConnectionSelector(transport)
            ready = self._selector.wait(session.wants_read, session.wants_write, timeout_s)
        except OSError as error:
            session.disconnect()
            session.fail(TransportError(error.errno, f"cannot wait for {transport.name}: {error}"))
        else:
            session.turn(*ready)

    def _close_selector(self) -> None:
        if self._selector is not None:
            self._selector.close()
            self._selector = None
