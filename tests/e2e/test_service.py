"""The daemon as administrators meet it: HUP, --status, metrics, a forwarder that hangs."""

from __future__ import annotations

import json
import os
import signal
import threading
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.daemons import Running, deliver, empties, now_name, supervisor, watching
from tests.helpers import (
    ScriptedServer,
    answer_all,
    closed_port,
    importing_first,
    make_maildir,
    names,
    run,
    serving,
    wait_until,
)


class Stream:
    """Mail that goes on coming into some maildirs, until it is stopped."""

    def __init__(self, *maildirs: Path) -> None:
        self.sent: Counter[bytes] = Counter()
        self._maildirs = maildirs
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work)
        self._thread.start()

    def _work(self) -> None:
        number = 0
        while not self._stop.wait(0.002):
            for maildir in self._maildirs:
                number += 1
                text = b"%b %d\n" % (os.fsencode(maildir.name), number)
                deliver(maildir, now_name(number), text)
                self.sent[text] += 1

    def stop(self) -> None:
        """Let no more come."""
        self._stop.set()
        self._thread.join()


@contextmanager
def streaming(*maildirs: Path) -> Iterator[Stream]:
    """Have mail come, for the length of a with block at most."""
    stream = Stream(*maildirs)
    try:
        yield stream
    finally:
        stream.stop()


def texts(*servers: ScriptedServer) -> Counter[bytes]:
    """Return what servers got, and how often."""
    return Counter(package.text for server in servers for package in server.packages)


def table(maildir: Path, server: ScriptedServer, prefix: str = "") -> str:
    """Return a route as a configuration file has it."""
    return f'[[route]]\nmaildir = "{maildir}"\nserver = "{server.address}"\n{prefix}'


def more(server: ScriptedServer, count: int = 20) -> None:
    """Wait until a server has got so many more."""
    before = len(server.packages)
    wait_until(lambda: len(server.packages) >= before + count, "more mail")


class Reloads:
    """Has a daemon read its file again, and waits until it has."""

    def __init__(self, daemon: Running, path: Path) -> None:
        self._daemon = daemon
        self._path = path

    def __call__(self, content: str, said: str = "has been read again") -> None:
        before = self._daemon.log.count(said)
        self._path.write_text(content)
        self._daemon.send(signal.SIGHUP)
        self._daemon.wait_for(said, before + 1)


def test_hup_while_mail_flows(tmp_path: Path) -> None:
    """Unchanged, bad, changed, smaller, larger: nothing is lost, nothing goes twice."""
    a, b = make_maildir(tmp_path / "a"), make_maildir(tmp_path / "b")
    path = tmp_path / "config.toml"
    with serving(answer_all()) as to_a, serving(answer_all()) as to_b, serving(answer_all()) as new:
        both = table(a, to_a) + table(b, to_b)
        path.write_text(both)
        with watching("--config", path) as daemon, streaming(a, b) as stream:
            reload = Reloads(daemon, path)
            more(to_a)
            more(to_b)
            reload(both)
            more(to_b)
            assert (to_a.connections, to_b.connections) == (1, 1), "unchanged, and interrupted"
            reload(both.replace("[[route]]", "[[rout]]", 1), "going on as before")
            assert "did you mean route?" in daemon.log
            more(to_b)
            assert (to_a.connections, to_b.connections) == (1, 1), "refused, and interrupted"
            reload(table(a, to_a) + table(b, new))
            more(new)
            assert len(texts(to_b) & texts(new)) == 0
            reload(table(a, to_a))
            more(to_a)
            wait_until(lambda: len(names(b / "new")) > 20, "mail that waits for its route")
            reload(both)
            more(to_b)
            stream.stop()
            empties(a)
            empties(b)
            assert to_a.connections == 1, "the route that never changed was interrupted"
            assert texts(to_a, to_b, new) == stream.sent
            assert daemon.stop() == 0
            assert "in doubt" in daemon.log
            assert all(
                " 0 in doubt" in line for line in daemon.log.splitlines() if "in doubt" in line
            )


def test_hup_finishes_what_is_in_flight(tmp_path: Path) -> None:
    """A route that is removed while the server thinks: its answer is still carried out."""
    a, b = make_maildir(tmp_path / "a"), make_maildir(tmp_path / "b")
    path = tmp_path / "config.toml"
    go_on = threading.Event()

    def slow(package: object, recipient: bytes) -> bytes:
        go_on.wait(30)
        return b"Kok"

    with serving(answer_all(slow)) as to_a, serving(answer_all()) as to_b:
        path.write_text(table(a, to_a) + table(b, to_b))
        with watching("--config", path) as daemon:
            deliver(a, "1.x")
            wait_until(lambda: len(to_a.packages) == 1, "the message in flight")
            Reloads(daemon, path)(table(b, to_b))
            deliver(a, "2.x")
            go_on.set()
            wait_until(lambda: names(a / "new") == ["2.x"], "the answer carried out")
            deliver(b, "3.x")
            empties(b)
            assert daemon.stop() == 0
            assert len(to_a.packages) == 1


def test_a_route_keeps_its_message_from_the_other_only_while_it_has_it(tmp_path: Path) -> None:
    """Two prefixes, one message: the second part goes when the first is done, not at a rescan."""
    maildir = make_maildir(tmp_path / "Maildir")
    (maildir / "envelope").mkdir()
    path = tmp_path / "config.toml"
    with serving(answer_all()) as a, serving(answer_all()) as b:
        path.write_text(
            '[defaults]\nrescan = "1h"\n'
            + table(maildir, a, 'prefix = "a-"\n')
            + table(maildir, b, 'prefix = "b-"\n')
        )
        with watching("--config", path) as daemon:
            for number in range(60):
                (maildir / "envelope" / f"1.{number}.json").write_text(
                    '{"version": 1, "sender": "", "recipients": ["a-r@x", "b-r@x"]}'
                )
                deliver(maildir, f"1.{number}")
            empties(maildir)
            assert (len(a.packages), len(b.packages)) == (60, 60)
            assert daemon.stop() == 0


# Seeing what it does


def test_status_while_it_runs(maildir: Path) -> None:
    """What waits, how often it was tried, why in vain, when next; and who is at it."""
    with (
        serving(answer_all(lambda package, recipient: b"Zmailbox full")) as server,
        watching("--watch", maildir, server.address) as daemon,
    ):
        deliver(maildir, now_name(1), b"text\n")
        daemon.wait_for("mailbox full")

        def status() -> dict[str, Any]:
            result = run("--status", maildir, "--json")
            assert result.returncode == 111
            found: dict[str, Any] = json.loads(result.stdout)
            return found

        wait_until(lambda: '"tries": 1' in json.dumps(status()), "the daemon's word for it")
        found = status()
        (one,) = found["waiting"]
        assert one["reason"] == "mailbox full"
        assert one["next"] > 0
        assert found["daemon"]["pid"] == daemon.process.pid
        shown = run("--status", maildir).stdout
        assert f"1 waiting; process {daemon.process.pid}, connected, to {server.address}" in shown
        assert "mailbox full" in shown
        daemon.process.kill()
        daemon.process.wait()
        assert status()["daemon"] is None
        assert "no daemon" in run("--status", maildir).stdout


def test_status_of_a_daemon_with_a_prefix(maildir: Path) -> None:
    """In serialmail's form the maildir is known to everybody, the prefix to whom wrote the unit."""
    with (
        serving(answer_all(lambda package, recipient: b"Zmailbox full")) as server,
        watching("--watch", maildir, "p-", server.address) as daemon,
    ):
        (maildir / "new" / now_name(1)).write_bytes(b"Return-Path: <a@b>\nDelivered-To: p-c@d\n\n")
        daemon.wait_for("mailbox full")
        shown = run("--status", maildir).stdout
        assert f"{maildir} p-: 1 waiting; process {daemon.process.pid}, " in shown


def test_status_of_a_configuration(tmp_path: Path) -> None:
    """All its routes, with what each of them takes from the file."""
    a, b = make_maildir(tmp_path / "a"), make_maildir(tmp_path / "b")
    path = tmp_path / "config.toml"
    path.write_text(
        f'[[route]]\nmaildir = "{a}"\nserver = "127.0.0.1:{closed_port()}"\nsender = "s@x"\n'
        f'recipient = ["r@y"]\n[[route]]\nmaildir = "{b}"\nserver = "127.0.0.1:{closed_port()}"\n'
    )
    (a / "new" / "1.x").write_bytes(b"no envelope of its own\n")
    result = run("--status", "--config", path, "--json")
    first, second = map(json.loads, result.stdout.splitlines())
    assert [one["recipients"] for one in first["waiting"]] == [["r@y"]]
    assert first["waiting"][0]["reason"] == ""
    assert second["waiting"] == []
    assert result.returncode == 111


def test_metrics_by_file_and_over_http(maildir: Path, tmp_path: Path) -> None:
    """The same numbers; they follow what happens, and the port is told to nobody outside."""
    pytest.importorskip("prometheus_client")
    port, path = closed_port(), tmp_path / "mail.prom"
    wanted = "maildirqmtp_accepted_total{"
    given = ("--metrics-listen", f"127.0.0.1:{port}", "--metrics-file", path)
    with (
        serving(answer_all()) as server,
        watching("--watch", maildir, server.address, *given) as daemon,
    ):
        deliver(maildir, "1.x")
        deliver(maildir, "2.x")
        empties(maildir)

        def line(text: str) -> list[str]:
            return [line for line in text.splitlines() if line.startswith(wanted)]

        def over_http() -> list[str]:
            url = f"http://127.0.0.1:{port}/metrics"
            with urllib.request.urlopen(url, timeout=30) as response:
                return line(response.read().decode())

        labels = f'maildir="{maildir}",prefix="",server="{server.address}"'
        accepted = [f"{wanted}{labels}}} 2.0"]
        wait_until(lambda: over_http() == accepted, "the metrics over HTTP")
        wait_until(lambda: line(path.read_text()) == accepted, "the metrics' file")
        assert daemon.stop() == 0


# An forwarder that hangs

BLOCKING = """
import os
import threading
import maildirqmtp.forwarder.forwarder as forwarder
import maildirqmtp.forwarder.outbox as outbox

forwarder.SLACK_S = 0.3
prepare = outbox.prepare

def blocking(*arguments):
    while os.path.exists(os.environ["BLOCK"]):
        threading.Event().wait(0.01)
    return prepare(*arguments)

outbox.prepare = blocking
"""


def test_the_watchdog_is_silent_while_the_engine_hangs(maildir: Path, tmp_path: Path) -> None:
    """systemd starts it again then; one that only looks alive would never be."""
    (tmp_path / "blocking").mkdir()
    (tmp_path / "blocking" / "sitecustomize.py").write_text(BLOCKING)
    block, notify = tmp_path / "block", str(tmp_path / "notify")
    environment = {
        "NOTIFY_SOCKET": notify,
        "WATCHDOG_USEC": "100000",
        **importing_first(tmp_path / "blocking"),
        "BLOCK": str(block),
    }
    with (
        serving(answer_all()) as server,
        supervisor(notify) as systemd,
        watching(
            "--watch", maildir, server.address, "--rescan", "0.2", environment=environment
        ) as daemon,
    ):
        deliver(maildir, "1.x")
        empties(maildir)
        systemd.wait_for("WATCHDOG=1", 3)
        block.touch()
        deliver(maildir, "2.x")
        seen: list[int] = []

        def silent() -> bool:
            # 200 looks, 5 ms and more apart: twenty of its intervals.
            seen.append(systemd.said.count("WATCHDOG=1"))
            return len(seen) > 200 and seen[-200] == seen[-1]

        wait_until(silent, "silence")
        assert names(maildir / "new") == ["2.x"]
        block.unlink()
        systemd.wait_for("WATCHDOG=1", seen[-1] + 3)
        empties(maildir)
        assert daemon.stop() == 0
