"""What Prometheus reads: the same numbers by file and over HTTP, whatever names routes have."""

from __future__ import annotations

import os
import socket
import stat
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maildirqmtp.daemon import metrics
from maildirqmtp.daemon.http_server import HttpServer, Reply, Request
from maildirqmtp.daemon.snapshot import Snapshot
from maildirqmtp.errors import ConfigError, LocalError
from maildirqmtp.forwarder.report import Counters
from maildirqmtp.forwarder.route import Route
from maildirqmtp.transport.endpoint import TcpEndpoint
from tests.fakes import FakeClock
from tests.helpers import closed_port

SERVER = TcpEndpoint("mail.example.org")


NOW_S = 160.0


def snapshot(maildir: bytes = b"/M", prefix: bytes = b"", **values: object) -> Snapshot:
    """Return a snapshot of a route."""
    counters = Counters()
    counters.accepted, counters.bytes, counters.in_doubt = 3, 4_000, 1
    state = str(values.pop("state", "idle"))
    route = Route(maildir, SERVER, prefix=prefix)
    return Snapshot(route, state, counters.as_dict(), **values)  # type: ignore[arg-type]


def values(text: str) -> dict[str, float]:
    """Read text of one route, as Prometheus does: name and value."""
    from prometheus_client.parser import text_string_to_metric_families

    return {
        sample.name: sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def rendered(*snapshots: Snapshot, now_s: float = NOW_S) -> str:
    """Return the text of these routes."""
    return metrics.render(metrics.collect(snapshots, lambda: now_s))


def test_what_is_told_of_a_route() -> None:
    """An alert rule hangs on each of these names."""
    text = rendered(snapshot(state="connected", messages=2, oldest_s=100.0, at_s=130.0))
    assert values(text) == {
        "maildirqmtp_accepted_total": 3.0,
        "maildirqmtp_deferred_total": 0.0,
        "maildirqmtp_failed_total": 0.0,
        "maildirqmtp_bounced_total": 0.0,
        "maildirqmtp_in_doubt_total": 1.0,
        "maildirqmtp_bytes_total": 4000.0,
        "maildirqmtp_queue_messages": 2.0,
        "maildirqmtp_queue_oldest_timestamp_seconds": 100.0,
        "maildirqmtp_queue_oldest_age_seconds": 60.0,
        "maildirqmtp_connected": 1.0,
        "maildirqmtp_stuck": 0.0,
        "maildirqmtp_last_success_timestamp_seconds": 0.0,
    }


@pytest.mark.parametrize(
    ("state", "connected", "stuck"),
    [
        ("idle", 0, 0),
        ("connected", 1, 0),
        ("backing off", 0, 0),
        ("stuck", 0, 1),
        ("no maildir", 0, 1),
    ],
)
def test_states(state: str, connected: int, stuck: int) -> None:
    """A daemon that needs help is told from one whose server is down."""
    found = values(rendered(snapshot(state=state)))
    assert found["maildirqmtp_connected"] == connected
    assert found["maildirqmtp_stuck"] == stuck


def test_the_age_of_nothing_is_nothing() -> None:
    """Not that of 1970, which sets off the alarm; nor a negative one."""
    age = "maildirqmtp_queue_oldest_age_seconds"
    assert values(rendered(snapshot()))[age] == 0.0
    assert values(rendered(snapshot(messages=1, oldest_s=NOW_S + 4)))[age] == 0.0


def test_the_age_grows_while_nothing_happens() -> None:
    """Deferred mail: for hours it was as old as at the last attempt."""
    waiting = snapshot(messages=1, oldest_s=100.0, at_s=101.0)
    for now_s in (160.0, 5_000.0):
        found = values(rendered(waiting, now_s=now_s))
        assert found["maildirqmtp_queue_oldest_age_seconds"] == now_s - 100.0


@given(st.binary(max_size=20), st.binary(max_size=20))
def test_any_name_is_escaped(maildir: bytes, prefix: bytes) -> None:
    """One directory with a quote, and Prometheus throws the whole file away."""
    from prometheus_client.parser import text_string_to_metric_families

    text = rendered(snapshot(b"/" + maildir, prefix))
    for family in text_string_to_metric_families(text):
        assert family.type in ("counter", "gauge")
        assert family.documentation
        (sample,) = family.samples
        assert sample.labels == {
            "maildir": (b"/" + maildir).decode("utf-8", "replace"),
            "prefix": prefix.decode("utf-8", "replace"),
            "server": "mail.example.org:209",
        }


def test_each_name_stands_once_however_many_routes() -> None:
    """The format's rule: a second TYPE line for a name makes the text invalid."""
    text = rendered(snapshot(b"/a"), snapshot(b"/b", b'quote"backslash\\newline\n'))
    assert text.count("# TYPE maildirqmtp_accepted_total counter\n") == 1
    assert (
        'maildirqmtp_accepted_total{maildir="/b",prefix="quote\\"backslash\\\\newline\\n",'
        'server="mail.example.org:209"} 3.0\n' in text
    )
    assert text.endswith("\n")


def test_without_a_route_there_is_still_a_text() -> None:
    """All routes may be stopping."""
    assert values(rendered()) == {}


# The textfile


def test_the_file_is_replaced_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """node_exporter finds the old or the new one, never half of it; and may read it."""
    path = tmp_path / "mail.prom"
    mask = os.umask(0o077)
    try:
        metrics.write(os.fsencode(path), [snapshot()])
    finally:
        os.umask(mask)
    first = path.read_text()
    assert first == rendered(snapshot())
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    rename = os.rename

    def watched(source: bytes, target: bytes, **folders: int) -> None:
        assert path.read_text() == first
        rename(source, target, **folders)

    monkeypatch.setattr(os, "rename", watched)
    metrics.write(os.fsencode(path), [snapshot(state="connected")])
    assert path.read_text() == rendered(snapshot(state="connected"))
    assert os.listdir(tmp_path) == ["mail.prom"]


def plant_fifo(path: Path, victim: Path) -> None:
    """Plant what a writer waits for until somebody reads."""
    os.mkfifo(path)


@pytest.mark.parametrize(
    "plant",
    [
        plant_fifo,
        lambda path, victim: path.hardlink_to(victim),
        lambda path, victim: path.symlink_to(victim),
        lambda path, victim: path.mkdir(),
        lambda path, victim: path.write_text("from a crash"),
    ],
    ids=["fifo", "hard link", "link", "directory", "file"],
)
def test_what_is_planted_under_a_name_we_may_use_does_no_harm(
    tmp_path: Path, plant: Callable[[Path, Path], object]
) -> None:
    """A FIFO kept a daemon from ending; by a hard link it truncated somebody's file."""
    victim = tmp_path / "victim"
    victim.write_text("precious")
    path = tmp_path / "mail.prom"
    for name in (f"mail.prom.{os.getpid()}.tmp", f"mail.prom.{os.getpid()}", "mail.prom.tmp"):
        plant(tmp_path / name, victim)
    metrics.write(os.fsencode(path), [snapshot()])
    assert path.read_text() == rendered(snapshot())
    assert victim.read_text() == "precious"


@pytest.mark.parametrize("as_link", [True, False])
def test_a_link_in_its_place_is_replaced_not_written_through(tmp_path: Path, as_link: bool) -> None:
    """Whoever can write there must not have us write elsewhere."""
    victim = tmp_path / "victim"
    victim.write_text("precious")
    path = tmp_path / "mail.prom"
    if as_link:
        path.symlink_to(victim)
    else:
        path.hardlink_to(victim)
    metrics.write(os.fsencode(path), [snapshot()])
    assert victim.read_text() == "precious"
    assert not path.is_symlink()
    assert path.read_text() == rendered(snapshot())


def test_where_it_cannot_be_written_that_is_said(tmp_path: Path) -> None:
    """With the path, and why."""
    path = os.fsencode(tmp_path / "none" / "mail.prom")
    with pytest.raises(LocalError, match=r"none/mail\.prom: No such file"):
        metrics.write(path, [snapshot()])


# Over HTTP


def serve(port: int, reply: Callable[[Request], Reply]) -> Callable[[], None]:
    """Serve; return what ends that."""
    server = HttpServer(("127.0.0.1", port), reply)
    server.start()
    return server.stop


def fetch(port: int) -> str:
    """Fetch the metrics, as Prometheus does."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as response:
        text: str = response.read().decode()
        return text


def test_over_http_it_is_the_same(clock: FakeClock) -> None:
    """As it is at that moment; when it is stopped, the port is free again."""
    to_come_s = 4e9  # of no age, whatever the clock says
    port, shown = closed_port(), [snapshot(b'/q"', state="stuck", messages=7, oldest_s=to_come_s)]
    stop = serve(port, metrics.page(lambda: shown, clock))
    try:
        assert values(fetch(port)) == values(rendered(*shown))
        shown[0] = snapshot(b'/q"', messages=8)
        clock.advance(1.0)
        assert values(fetch(port))["maildirqmtp_queue_messages"] == 8.0
    finally:
        stop()
    with socket.create_server(("127.0.0.1", port)):
        pass


def test_many_scrapes_are_one_piece_of_work(clock: FakeClock) -> None:
    """With a thousand routes each costs a tenth of a second of the processor."""
    asked: list[float] = []

    def snapshots() -> list[Snapshot]:
        asked.append(clock())
        return [snapshot()]

    port = closed_port()
    stop = serve(port, metrics.page(snapshots, clock))
    try:
        assert len({fetch(port) for _ in range(20)}) == 1
        assert len(asked) == 1
        clock.advance(1.0)
        fetch(port)
        assert len(asked) == 2
    finally:
        stop()


def test_a_client_that_asks_for_any_version_costs_no_more(clock: FakeClock) -> None:
    """A page was kept for each version ever named: whoever may connect could fill the memory."""
    asked: list[float] = []

    def snapshots() -> list[Snapshot]:
        asked.append(clock())
        return [snapshot()]

    reply = metrics.page(snapshots, clock)
    accepted = [f"application/openmetrics-text; version=1.0.{n}" for n in range(20)]
    pages = {reply(Request("/metrics", {"accept": accept})) for accept in accepted}
    assert [page.content_type.partition("; ")[0] for page in pages] == [
        "application/openmetrics-text"
    ]
    assert len(asked) == 1


def test_openmetrics_where_prometheus_prefers_it() -> None:
    """As the client library of Prometheus serves it; anything else is not found."""
    port = closed_port()
    stop = serve(port, metrics.page(lambda: [snapshot()]))
    try:
        accept = {"Accept": "application/openmetrics-text;version=1.0.0,text/plain;q=0.5"}
        url = f"http://127.0.0.1:{port}"
        with urllib.request.urlopen(urllib.request.Request(f"{url}/", headers=accept)) as response:
            assert response.headers["Content-Type"].startswith("application/openmetrics-text")
            assert response.read().endswith(b"# EOF\n")
        # A program that reads plain text only, within the same second.
        with urllib.request.urlopen(f"{url}/") as response:
            assert response.headers["Content-Type"].startswith("text/plain")
            assert b"# EOF" not in response.read()
        with pytest.raises(urllib.error.HTTPError, match="404") as answer:
            urllib.request.urlopen(f"{url}/favicon.ico")
        answer.value.close()
    finally:
        stop()


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not a traceback."""
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(ConfigError, match=r"pip install 'maildirqmtp\[metrics\]'"):
        metrics.page(list)
