"""Metrics for Prometheus: as a textfile, and with the extra `metrics` over HTTP."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from maildirqmtp.errors import ConfigError
from maildirqmtp.maildir.files import Folder, local_error, replace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from maildirqmtp.daemon.http_server import Reply, Request
    from maildirqmtp.daemon.snapshot import Snapshot

    #: Name, help, type, and the value of each route.
    Metric = tuple[str, str, str, list[tuple[dict[str, str], float]]]

#: Seconds for which the response made for one client is given to all others.
FRESH_S = 1.0
_OPENMETRICS = "application/openmetrics-text"

_COUNTERS = (
    ("accepted", "Recipients that the server has accepted."),
    ("deferred", "Attempts that the server, or a failing bounce, has deferred."),
    ("failed", "Recipients given up on, whose message is in the failed maildir."),
    ("bounced", "Recipients given up on, of which the sender was told."),
    ("in_doubt", "Recipients who may get a message twice."),
    ("bytes", "Bytes of messages that the server has accepted."),
)
#: Name, help, and how the value follows from a snapshot and the present time, seconds of the epoch.
_GAUGES: tuple[tuple[str, str, Callable[[Snapshot, float], float]], ...] = (
    ("queue_messages", "Messages that wait.", lambda s, _: s.messages),
    (
        "queue_oldest_timestamp_seconds",
        "When the oldest message that waits came; 0 where none waits.",
        lambda s, _: s.oldest_s,
    ),
    (
        "queue_oldest_age_seconds",
        "Age of the oldest message that waits, when this was written.",
        lambda s, now_s: max(0.0, now_s - s.oldest_s) if s.messages else 0.0,
    ),
    ("connected", "1 while there is a connection.", lambda s, _: s.state == "connected"),
    (
        "stuck",
        "1 while messages the server has taken cannot be removed, or the maildir is gone.",
        lambda s, _: s.state in ("stuck", "no maildir"),
    ),
    (
        "last_success_timestamp_seconds",
        "When the server last answered; 0 for not yet.",
        lambda s, _: s.answered_s,
    ),
)


def collect(
    snapshots: Iterable[Snapshot], wall_clock: Callable[[], float] = time.time
) -> list[Metric]:
    """Return the metrics of these routes; `wall_clock` is seconds of the epoch."""
    now_s = wall_clock()
    routes = [(_labels(snapshot, snapshot.answering), snapshot) for snapshot in snapshots]
    counted = [one for _, snapshot in routes for one in _counters(snapshot)]
    found: list[Metric] = [
        (
            f"maildirqmtp_{name}_total",
            about,
            "counter",
            [(labels, float(counters.get(name, 0))) for labels, counters in counted],
        )
        for name, about in _COUNTERS
    ]
    found += [
        (
            f"maildirqmtp_{name}",
            about,
            "gauge",
            [(labels, float(get(snapshot, now_s))) for labels, snapshot in routes],
        )
        for name, about, get in _GAUGES
    ]
    return found


def _counters(snapshot: Snapshot) -> list[tuple[dict[str, str], dict[str, int]]]:
    """Return the labels and counters of a route: one pair, or one for each of its servers."""
    servers = [str(server) for server in snapshot.route.servers]
    if len(servers) == 1:
        return [(_labels(snapshot, servers[0]), snapshot.counters)]
    return [(_labels(snapshot, name), snapshot.by_server.get(name, {})) for name in servers]


def _labels(snapshot: Snapshot, server: str) -> dict[str, str]:
    route = snapshot.route
    labels = {
        "maildir": route.maildir.decode("utf-8", "replace"),
        "prefix": route.prefix.decode("utf-8", "replace"),
        "server": server,
    }
    return labels | {"shard": str(route.shard)} if route.shard else labels


def render(metrics: Iterable[Metric]) -> str:
    """Return metrics in Prometheus' text format (version 0.0.4)."""
    lines = []
    for name, about, kind, values in metrics:
        lines += [f"# HELP {name} {about}", f"# TYPE {name} {kind}"]
        for labels, value in values:
            shown = ",".join(f'{key}="{_escape(text)}"' for key, text in labels.items())
            lines.append(f"{name}{{{shown}}} {value!r}")
    return "\n".join(lines) + "\n"


def _escape(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def write(path: bytes, snapshots: Iterable[Snapshot]) -> None:
    """Write the textfile; readers find the old or the new one, never a part.

    All users may read it, whatever the umask: node_exporter has to. Raises `LocalError` if it
    cannot be written.
    """
    directory, name = os.path.split(path)
    data = render(collect(snapshots)).encode()
    try:
        # O_PATH: files can be made even in a directory that may not be listed.
        fd = os.open(directory or b".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise local_error("write", path, error) from error
    try:
        replace(Folder(fd, directory), name, data, mode=0o644, durable=False)
    finally:
        os.close(fd)


def page(
    snapshots: Callable[[], Iterable[Snapshot]], clock: Callable[[], float] = time.monotonic
) -> Callable[[Request], Reply]:
    """Return the function that answers requests for the metrics, at `/metrics` and `/`.

    It collects them at most once in `FRESH_S` seconds for each format, however many clients ask.
    `clock` is monotonic seconds. Raises `ConfigError` if the extra `metrics` is not installed.
    """
    try:
        from prometheus_client import CollectorRegistry, Metric
        from prometheus_client.exposition import choose_encoder
    except ImportError:
        raise ConfigError(
            "--metrics-listen needs the extra `metrics`: pip install 'maildirqmtp[metrics]'"
        ) from None
    from maildirqmtp.daemon.http_server import NOT_FOUND, Reply

    class Collector:
        def collect(self) -> Iterator[Metric]:
            for name, about, kind, values in collect(snapshots()):
                metric = Metric(name.removesuffix("_total"), about, kind)
                for labels, value in values:
                    metric.add_sample(name, labels, value)
                yield metric

    registry = CollectorRegistry()
    registry.register(Collector())
    replies: dict[str, tuple[float, Reply]] = {}

    def reply(request: Request) -> Reply:
        if request.path not in ("/", "/metrics"):
            return NOT_FOUND
        # Not the client's own words: the encoder puts any version that they name into the type.
        is_open = _OPENMETRICS in request.fields.get("accept", "")
        encode, content_type = choose_encoder(f"{_OPENMETRICS}; version=1.0.0" if is_open else "")
        at_s, last = replies.get(content_type, (0.0, None))
        now_s = clock()
        if last is None or now_s - at_s >= FRESH_S:
            last = Reply(encode(registry), content_type)
            replies[content_type] = now_s, last
        return last

    return reply


def page_or_why_not(
    snapshots: Callable[[], Iterable[Snapshot]],
) -> Callable[[Request], Reply]:
    """Return what `page` returns; without the extra, a function that answers 404 and says so."""
    try:
        return page(snapshots)
    except ConfigError:
        from maildirqmtp.daemon.http_server import Reply

        missing = b"metrics need the extra: pip install 'maildirqmtp[metrics]'\n"
        return lambda request: Reply(missing, status="404 Not Found")
