"""Several connections of one route, for servers whose answers take long."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest

from tests.e2e.conftest import Run
from tests.helpers import (
    Package,
    Peer,
    add_message,
    add_sidecar,
    answer_all,
    make_maildir,
    names,
    run,
    serving,
)


@pytest.fixture
def maildir(path: Path) -> Path:
    """200 messages."""
    for number in range(200):
        add_message(path, f"1.{number:03}", b"%03d\n" % number)
    return path


def test_eight_connections_work_at_the_same_time(maildir: Path) -> None:
    """A server that thinks about each message thinks about eight at once."""
    together = threading.Barrier(8)
    first = threading.Event()
    paths: dict[int, list[bytes]] = {}

    def script(peer: Peer) -> None:
        own = paths.setdefault(id(peer), [])
        while (package := peer.read_package()) is not None:
            own.append(package.text)
            if first.is_set() and len(own) == 2:
                together.wait(30)  # nobody goes on unless all eight have a message
            first.set()
            peer.respond(b"Kok")

    with serving(script) as server:
        result = run("--connections", "8", maildir, server.address)
        assert result.returncode == 0, result.stderr
        assert server.connections == 8
        assert len(server.packages) == 200
        assert {p.text for p in server.packages} == {b"%03d\n" % n for n in range(200)}
        assert all(own == sorted(own) for own in paths.values()), "order within a connection"
        # The first one has 64 of them before the server has proven to be one.
        assert max(map(len, paths.values())) <= 64 + 2 * min(map(len, paths.values()))
    assert names(maildir / "new") == []


def test_few_messages_need_few_connections(tmp_path: Path) -> None:
    """One message is no reason to call eight times."""
    maildir = make_maildir(tmp_path / "Maildir")
    add_message(maildir, "1.x")
    with serving(answer_all()) as server:
        assert run("--connections", "8", maildir, server.address).returncode == 0
        assert server.connections == 1


def test_connections_that_die_one_by_one(maildir: Path) -> None:
    """Each leaves its messages to the others; none is lost, none but those in doubt goes twice."""
    lock = threading.Lock()
    accepted: list[bytes] = []

    def dying(peer: Peer) -> None:
        number = peer.server.connections
        for _ in range(5 + number):
            package = peer.read_package()
            if package is None:
                return
            with lock:
                accepted.append(package.text)
            peer.respond(b"Kok")

    with serving(dying) as server:
        result = run("--connections", "4", maildir, server.address)
    assert result.returncode == 0, result.stderr
    assert sorted(set(accepted)) == [b"%03d\n" % number for number in range(200)]
    assert names(maildir / "new") == []


def test_a_server_that_takes_no_second_connection(maildir: Path) -> None:
    """What there is goes on; the refusal is said once."""

    def only_one(peer: Peer) -> None:
        if peer.server.connections == 1:
            peer.server.stop_listening()
        answer_all()(peer)

    with serving(only_one) as server:
        result = run("--connections", "3", maildir, server.address)
        assert len(server.packages) == 200
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("going on with 1 connection") == 1


def test_a_name_that_stands_for_several_servers(tmp_path: Path, run_quickly: Run) -> None:
    """The others answer once per package: their refusals are of the messages they refused."""
    maildir = make_maildir(tmp_path / "Maildir")
    for number in range(40):
        add_message(maildir, f"1.{number:02}", b"%02d\n" % number)
        two = number % 3 == 0
        who = [f"a{number}@y", f"b{number}@y"] if two else [f"{'d' * (number % 5 == 0)}x{number}@y"]
        add_sidecar(maildir, f"1.{number:02}", "s@x", *who)
    taken: set[bytes] = set()

    def script(peer: Peer) -> None:
        each = peer.server.connections == 1
        while (package := peer.read_package()) is not None:
            good = [recipient for recipient in package.recipients if recipient[:1] != b"d"]
            taken.update(good)
            answer = b"Kok" if good else b"Dno"
            peer.respond(*[answer] * (len(package.recipients) if each else 1))

    with serving(script) as server:
        result = run_quickly("--json", "--connections", "3", maildir, server.address)
        assert server.connections >= 3
    told = [json.loads(line) for line in result.stdout.splitlines()]
    accepted = {one["recipient"] for one in told if one["event"] == "accepted"}
    assert accepted <= {os.fsdecode(recipient) for recipient in taken}
    assert len(accepted) == 14 * 2 + 26 - 5
    failed = {one["recipient"] for one in told if one["event"] == "failed"}
    assert failed == {f"dx{number}@y" for number in (5, 10, 20, 25, 35)}
    assert names(maildir / "new") == []


@pytest.mark.parametrize("answers_each", [True, False])
def test_several_recipients_over_several_connections(
    tmp_path: Path, answers_each: bool, run_quickly: Run
) -> None:
    """The fence holds on each of them: no answer is taken for another's."""
    maildir = make_maildir(tmp_path / "Maildir")
    for number in range(30):
        add_message(maildir, f"1.{number:02}", b"%02d\n" % number)
        add_sidecar(
            maildir, f"1.{number:02}", "s@x", f"k{number}@y", f"z{number}@y", f"m{number}@y"
        )
    taken: list[tuple[bytes, bytes]] = []
    lock = threading.Lock()

    def say(package: Package) -> list[bytes]:
        said = [b"Zlater" if r.startswith(b"z") else b"Kok" for r in package.recipients]
        with lock:
            for recipient, answer in zip(package.recipients, said, strict=True):
                if answer[:1] == b"K" and (answers_each or len(said) == 1):
                    taken.append((package.text, recipient))
        return said if answers_each or len(said) == 1 else [b"Znot like that"]

    def script(peer: Peer) -> None:
        while (package := peer.read_package()) is not None:
            peer.respond(*say(package))

    with serving(script) as server:
        result = run_quickly("--connections", "3", maildir, server.address)
    assert result.returncode == 111
    wanted = {
        (b"%02d\n" % number, b"%b%d@y" % (letter, number))
        for number in range(30)
        for letter in (b"k", b"m")
    }
    assert set(taken) == wanted
    if answers_each:
        assert len(taken) == len(wanted)
    assert len(names(maildir / "new")) == 30
    assert len(names(maildir / "envelope")) == 30
