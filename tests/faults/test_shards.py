"""Several processes on one maildir, one of them killed amid it: every message once."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.e2e.daemons import deliver, empties, watching
from tests.helpers import (
    DEADLINE_S,
    Peer,
    add_message,
    answer_all,
    command,
    json_events,
    make_maildir,
    names,
    run,
    serving,
    wait_until,
)

WINDOW = 10


@pytest.fixture
def maildir(tmp_path: Path) -> Path:
    """An empty maildir."""
    return make_maildir(tmp_path / "Maildir")


def begin(maildir: Path, server: str, shard: str) -> subprocess.Popen[bytes]:
    """Start a batch of a shard."""
    arguments = ["-q", "--window", str(WINDOW), "--shard", shard, str(maildir), server]
    return subprocess.Popen([*command(), *arguments], stderr=subprocess.PIPE)


@pytest.mark.parametrize("total", [2, 4])
def test_every_message_goes_once_though_one_process_is_killed(maildir: Path, total: int) -> None:
    """Twice at most what that one had in flight; nothing of the others, and nothing is lost."""
    count = 400
    for number in range(count):
        add_message(maildir, f"1.{number:04}", b"%04d\n" % number)
    under_way, go_on = threading.Event(), threading.Event()

    def script(peer: Peer) -> None:
        while (package := peer.read_package()) is not None:
            if len(peer.server.packages) > count // 4 and not go_on.is_set():
                under_way.set()
                go_on.wait(DEADLINE_S)
            peer.respond(b"Kok" if package.recipients else b"Zno")

    with serving(script) as server:
        made = [begin(maildir, server.address, f"{k}/{total}") for k in range(total)]
        assert under_way.wait(DEADLINE_S)
        made[0].send_signal(signal.SIGKILL)
        made[0].communicate()
        go_on.set()
        made[0] = begin(maildir, server.address, f"0/{total}")
        for process in made:
            _, said = process.communicate(timeout=DEADLINE_S)
            assert process.returncode == 0, said
        came = Counter(package.text for package in server.packages)
    assert names(maildir / "new") == []
    assert set(came) == {b"%04d\n" % number for number in range(count)}
    assert came.total() - count <= WINDOW
    assert max(came.values()) <= 2


def test_daemons_of_two_shards_share_what_comes(maildir: Path) -> None:
    """Each message has one that takes it; none waits for the other one's rescan."""
    with (
        serving(answer_all()) as server,
        watching("--watch", "--shard", "0/2", maildir, server.address) as first,
        watching("--watch", "--shard", "1/2", maildir, server.address) as second,
    ):
        for daemon in (first, second):
            daemon.wait_for("watching new")
        for number in range(40):
            deliver(maildir, f"{int(time.time())}.{number}", b"%04d\n" % number)
        empties(maildir)
        for daemon in (first, second):
            daemon.wait_for("accepted")
        assert Counter(package.text for package in server.packages) == {
            b"%04d\n" % number: 1 for number in range(40)
        }
        assert first.stop() == second.stop() == 0


def test_runs_that_must_not_work_together_exit_111(maildir: Path) -> None:
    """An unsharded run, the same shard again, another number of shards."""
    add_message(maildir, "1.a")
    with (
        serving(answer_all()) as server,
        watching("--watch", "--shard", "0/2", maildir, server.address) as daemon,
    ):
        status = maildir / ".maildirqmtp-status-shard-0-2.json"
        wait_until(status.exists, "a daemon that has the lock")
        for wrong in ((), ("--shard", "0/2"), ("--shard", "1/3"), ("--shard", "0/3")):
            result = run(*wrong, maildir, server.address)
            assert result.returncode == 111, wrong
            assert "locked by process" in result.stderr or "in 2 shards" in result.stderr
        assert run("--shard", "1/2", maildir, server.address).returncode == 0
        assert daemon.stop() == 0
    assert names(maildir / "new") == []


def test_a_bounce_goes_once_whichever_shard_it_is_in(maildir: Path) -> None:
    """Put into the maildir by one shard, it may be a message of the other."""
    for number in range(30):
        add_message(maildir, f"1.{number:04}", b"%04d\n" % number)
    refuse = answer_all(lambda package, _: b"Dno such user" if package.sender else b"Kok")
    with serving(refuse) as server:
        for _ in range(2):
            for shard in ("0/2", "1/2"):
                bounce = ("--bounce", "--bounce-via", "server", "--shard", shard)
                run(*bounce, maildir, server.address)
        assert Counter(bool(package.sender) for package in server.packages) == {
            True: 30,
            False: 30,
        }
    assert names(maildir / "new") == []


def test_status_shows_the_shards(maildir: Path) -> None:
    """All of them, also one that has no process: its mail waits."""
    for number in range(20):
        add_message(maildir, f"1.{number:04}", b"%04d\n" % number)
    with (
        serving(answer_all(lambda *_: b"Zlater")) as server,
        watching("--watch", "--shard", "0/2", maildir, server.address) as daemon,
    ):
        wait_until(
            lambda: "later" in run("--status", maildir).stdout, "the daemon's status, with reasons"
        )
        result = run("--status", maildir)
        assert "shard 0/2: " in result.stdout
        assert f"process {daemon.process.pid}" in result.stdout
        assert "shard 1/2: " in result.stdout
        assert "no daemon" in result.stdout
        shown = json_events(run("--status", "--json", maildir).stdout)
        assert [one["shard"] for one in shown] == ["0/2", "1/2"]
        assert sum(len(one["waiting"]) for one in shown) == 20
        only = json_events(run("--status", "--json", "--shard", "1/2", maildir).stdout)
        assert [one["shard"] for one in only] == ["1/2"]
    assert not os.path.exists(maildir / ".maildirqmtp-status.json")


def test_a_dry_run_lists_the_shards_own(maildir: Path) -> None:
    """What a run would send."""
    for number in range(20):
        add_message(maildir, f"1.{number:04}")
    listed = [run("--dry-run", "--shard", f"{k}/3", maildir, "mx.example") for k in range(3)]
    lines = [line for result in listed for line in result.stdout.splitlines()]
    assert len(lines) == 20
    assert all(0 < len(result.stdout.splitlines()) < 20 for result in listed)


@pytest.mark.parametrize(
    "wrong", ["2/2", "-1/2", "1", "/", "", "a/b", "1/0", "0/1001", "1/2/3", "\u0660/\u0662"]
)
def test_a_shard_that_is_none_is_wrong_usage(maildir: Path, wrong: str) -> None:
    """Its messages would never go."""
    result = run(f"--shard={wrong}", maildir, "mx.example")
    assert result.returncode == 100
    assert "K/N as in 0/4" in result.stderr


def test_a_file_has_one_shard_for_a_maildir(maildir: Path, tmp_path: Path) -> None:
    """Two routes that lock one maildir differently would wait for each other for ever."""
    config = tmp_path / "m.toml"
    config.write_text(
        f"""[defaults]
server = "mx.example"
[[route]]
maildir = "{maildir}"
shard = "0/2"
[[route]]
maildir = "{maildir}"
prefix = "p-"
shard = "1/2"
"""
    )
    result = run("--config", config, "--check-config")
    assert result.returncode == 100
    assert "the routes of a maildir share one" in result.stderr
    config.write_text(config.read_text().replace('"1/2"', '"0/2"'))
    result = run("--config", config, "--check-config")
    assert result.returncode == 0
    assert result.stdout.count('shard = "0/2"') == 2
    assert run("--config", config, "--check-config", "--shard", "1/4").stdout.count('"1/4"') == 2
