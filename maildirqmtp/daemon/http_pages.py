"""What a daemon serves over HTTP, and where: metrics and health. SIGHUP may change it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from maildirqmtp.errors import ConfigError, LocalError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from maildirqmtp.daemon.health import Health
    from maildirqmtp.daemon.http_server import HttpServer, Reply, Request
    from maildirqmtp.daemon.snapshot import Snapshot
    from maildirqmtp.settings.config import Config

    #: A flag, and its address (host and port).
    Listen = tuple[str, tuple[str, int]]


class HttpPages:
    """The servers of `--metrics-listen` and `--health-listen`.

    `snapshots` and `health` are called in the servers' threads, to answer requests, and so is
    `complain` where that fails.
    """

    def __init__(
        self,
        snapshots: Callable[[], Iterable[Snapshot]],
        health: Callable[[], Health],
        complain: Callable[[str], None],
    ) -> None:
        self._complain = complain
        self._snapshots = snapshots
        self._health = health
        self._running: dict[Listen, HttpServer] = {}

    def apply(self, config: Config) -> None:
        """Serve what the configuration asks for.

        Raises `LocalError` if an address cannot be listened on, which may pass, and `ConfigError`
        if the extra `metrics` is missing; then the servers from before run again.
        """
        addresses = {
            "--metrics-listen": config.metrics_listen,
            "--health-listen": config.health_listen,
        }
        wanted = {(flag, address) for flag, address in addresses.items() if address is not None}
        before = set(self._running)
        try:
            self._change(wanted)
        except (ConfigError, LocalError):
            self._change(before)
            raise

    def stop(self) -> None:
        """Stop serving."""
        self._change(set())

    def _change(self, wanted: set[Listen]) -> None:
        # Stop the old ones first: a new server may take the address of an old one.
        for listen in set(self._running) - wanted:
            self._running.pop(listen).stop()
        for listen in sorted(wanted - set(self._running)):
            self._running[listen] = self._started(*listen)

    def _started(self, flag: str, address: tuple[str, int]) -> HttpServer:
        from maildirqmtp.daemon.http_server import HttpServer

        try:
            server = HttpServer(address, self._reply(flag), complain=self._complain)
            server.start()
        except LocalError as error:
            raise LocalError(f"{flag}: {error}") from None
        return server

    def _reply(self, flag: str) -> Callable[[Request], Reply]:
        from maildirqmtp.daemon import health, metrics

        if flag == "--metrics-listen":
            return metrics.page(self._snapshots)
        return health.pages(self._health, metrics.page_or_why_not(self._snapshots))
