"""Probes of a daemon that runs: a route that hangs, a maildir that goes, idle clients."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
from pathlib import Path

import pytest

from tests.e2e.daemons import deliver, empties, watching
from tests.helpers import (
    answer_all,
    closed_port,
    importing_first,
    make_maildir,
    names,
    probe,
    run,
    serving,
    wait_until,
)

#: A hung sendmail is killed after 300 s, and a route gets 360: not in a test.
IMPATIENT = """
import maildirqmtp.forwarder.forwarder as forwarder

forwarder.SLACK_S = forwarder.BOUNCE_SLACK_S = 0.3
"""
CLIENTS = 1_300


def becomes(port: int, path: str, status: int, *, said: str = "") -> None:
    """Wait until a probe is answered so."""
    seen: list[tuple[int, str]] = []

    def is_so() -> bool:
        seen.append(probe(port, path, 5.0))
        return seen[-1][0] == status and said in seen[-1][1]

    wait_until(is_so, f"{path} to say {status} {said!r}")


def listen_on(port: int) -> tuple[str, str]:
    """The options of a daemon that tells how it is, to everybody."""
    return "--health-listen", f"0.0.0.0:{port}"


def test_a_sendmail_that_hangs_is_told_by_livez(tmp_path: Path) -> None:
    """Of one route; the other one's mail goes on, and when it returns, so does the answer."""
    (tmp_path / "patch").mkdir()
    (tmp_path / "patch" / "sitecustomize.py").write_text(IMPATIENT)
    port, fifo, mailer = closed_port(), tmp_path / "fifo", tmp_path / "mailer"
    os.mkfifo(fifo)
    mailer.write_text(f"#!/bin/sh\ncat >/dev/null\ncat {fifo} >/dev/null\n")
    mailer.chmod(0o755)
    hangs, well = make_maildir(tmp_path / "hangs"), make_maildir(tmp_path / "well")
    refuse = answer_all(lambda package, to: b"Dno" if to == b"no@x.example" else b"Kok")
    with serving(refuse) as server:
        config = tmp_path / "m.toml"
        config.write_text(
            f'health-listen = "127.0.0.1:{port}"\n[defaults]\nserver = "{server.address}"\n'
            f'rescan = 0.2\nbounce = true\nsendmail = "{mailer}"\n'
            f'[[route]]\nmaildir = "{hangs}"\n[[route]]\nmaildir = "{well}"\n'
        )
        environment = importing_first(tmp_path / "patch")
        with watching("--config", config, environment=environment) as daemon:
            becomes(port, "/livez", 200)
            becomes(port, "/readyz", 200)
            (hangs / "tmp" / "1.a").write_bytes(
                b"Return-Path: <s@y.example>\nDelivered-To: no@x.example\nSubject: test\n\nHello\n"
            )
            os.rename(hangs / "tmp" / "1.a", hangs / "new" / "1.a")
            # The other one, too, may be late by 0.3 s on a machine that is busy.
            only = (503, f"{hangs}: does not turn\n")
            wait_until(lambda: probe(port, "/livez", 5.0) == only, "the one that hangs to be named")
            deliver(well, "1.b")
            empties(well)
            fifo.write_bytes(b"")
            becomes(port, "/livez", 200)
            empties(hangs)
            assert daemon.stop() == 0


def test_a_maildir_that_goes_away_makes_it_unready(maildir: Path) -> None:
    """And one that comes back, ready; it is alive all the time."""
    port = closed_port()
    with (
        serving(answer_all()) as server,
        watching("--watch", "--rescan", "0.2", *listen_on(port), maildir, server.address) as daemon,
    ):
        becomes(port, "/readyz", 200)
        os.rename(maildir, f"{maildir}.away")
        becomes(port, "/readyz", 503, said=f"{maildir}: no maildir")
        assert probe(port, "/livez")[0] != 503
        os.rename(f"{maildir}.away", maildir)
        becomes(port, "/readyz", 200)
        deliver(maildir, "1.a")
        empties(maildir)
        assert daemon.stop() == 0


def test_a_server_that_is_away_makes_it_neither_dead_nor_unready(maildir: Path) -> None:
    """An orchestrator that restarts it then makes of a bad link a crash loop."""
    port = closed_port()
    deliver(maildir, "1.a")
    with watching("--watch", *listen_on(port), maildir, f"127.0.0.1:{closed_port()}") as daemon:
        daemon.wait_for("next try in")
        becomes(port, "/livez", 200)
        becomes(port, "/readyz", 200)
        becomes(port, "/metrics", 200, said="maildirqmtp_queue_messages")
        assert daemon.stop() == 0


def test_idle_clients_do_not_hinder(maildir: Path) -> None:
    """Everybody can reach this address: neither mail nor probes wait for them for long."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = CLIENTS + 200
    if hard != resource.RLIM_INFINITY and hard < wanted:
        pytest.skip(f"NOT TESTED: no more than {hard} descriptors are allowed here")
    port = closed_port()
    with (
        contextlib.ExitStack() as stack,
        serving(answer_all()) as server,
        watching("--watch", *listen_on(port), maildir, server.address) as daemon,
    ):
        becomes(port, "/readyz", 200)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        for _ in range(CLIENTS):
            sock = stack.enter_context(socket.socket())
            sock.setblocking(False)
            sock.connect_ex(("127.0.0.1", port))
        deliver(maildir, "1.a")
        empties(maildir)
        becomes(port, "/livez", 200)
        assert daemon.stop() == 0


def test_an_address_that_is_taken_may_be_free_later(maildir: Path) -> None:
    """Not 100, after which the systemd units never start it again: no mail would go."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        where = f"127.0.0.1:{taken.getsockname()[1]}"
        for flag in ("--health-listen", "--metrics-listen"):
            result = run("--watch", flag, where, maildir, "mx.example")
            assert result.returncode == 111
            assert f"{flag}: cannot listen on {where}: Address already in use" in result.stderr
    assert names(maildir / "new") == []
