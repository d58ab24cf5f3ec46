"""One shard's run touches no message of another one, also where it makes them itself."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from maildirqmtp.forwarder.forwarder import Forwarder
from maildirqmtp.forwarder.route import BounceMethod, BounceVia, Route
from maildirqmtp.maildir.maildir import Maildir
from maildirqmtp.maildir.shard import Shard
from maildirqmtp.transport.endpoint import TcpEndpoint
from tests.fakes import FakeServer
from tests.forwarder.test_forwarder import NOW, Run
from tests.helpers import Package


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """An empty maildir and a server that accepts."""
    return Run(monkeypatch, tmp_path / "Maildir")


def go(run: Run, shard: Shard) -> None:
    """Run a batch of a shard; bounces go back into the maildir."""
    route = Route(
        os.fsencode(run.path),
        TcpEndpoint("mail.example.org"),
        bounce=True,
        bounce_via=BounceVia(BounceMethod.SERVER),
        shard=shard,
    )
    with Maildir(os.fsencode(run.path), shard=shard) as maildir:
        forwarder = Forwarder(route, maildir, run.report, run.connect, run.clock, lambda: NOW)
        try:
            forwarder.run_batch(maildir.scan())
        finally:
            forwarder.close()


def test_bounces_that_are_in_another_shard_are_left_to_it(run: Run) -> None:
    """Both would send them: the sender is told twice of each failure."""
    run.add(40)

    def refuse(server: FakeServer, package: Package) -> None:
        server.respond(b"Dno such user" if package.sender else b"Kok")

    run.scripts = [refuse]
    first, second = Shard(0, 2), Shard(1, 2)
    go(run, first)
    left = [os.fsencode(name) for name in run.new]
    assert any(not name.endswith(b".a") for name in left), "no bounce was made for the other one"
    assert all(second.has(name) for name in left)
    go(run, second)
    assert all(first.has(os.fsencode(name)) for name in run.new)
    go(run, first)
    assert run.new == []
    sent = [package for server in run.servers for package in server.received]
    assert len(sent) == 80
