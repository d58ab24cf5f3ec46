"""A large message on a link that is cut before it is through: the small ones go all the same."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from tests.e2e.daemons import deliver, watching
from tests.faults.proxy import proxied
from tests.helpers import (
    Package,
    Peer,
    add_message,
    answer_all,
    json_events,
    names,
    random_text,
    run,
    serving,
    wait_until,
)

#: Bytes after which the link is cut; less than the large message, and more than the small ones.
CUT = 200_000
#: More than the kernel takes ahead of the reader (tcp_wmem and tcp_rmem: 4 and 6 MB, or more).
LARGE = 48 << 20


def texts(packages: list[Package]) -> list[bytes]:
    """Return the first bytes of the packages that a server got whole."""
    return [package.text[:5] for package in packages]


@pytest.mark.parametrize("reset", [False, True], ids=["fin", "rst"])
@pytest.mark.parametrize("place", ["first", "amid", "last"])
def test_small_ones_go_in_the_first_run_and_the_large_one_is_tried_once_a_run(
    maildir: Path, place: str, reset: bool
) -> None:
    """In front of them it kept them back in every run, and went again and again for nothing."""
    now = int(time.time())
    came = now - {"first": 100, "amid": 25, "last": 0}[place]
    add_message(maildir, f"{came}.large", b"x" * LARGE)
    for number in range(40):
        add_message(maildir, f"{now - 50 + number}.small", b"s%04d\n" % number)
    with (
        serving(answer_all()) as server,
        proxied(server.port, CUT, True, reset, True, every_time=True) as proxy,
    ):
        for attempts in (1, 2):
            result = run("--json", maildir, f"127.0.0.1:{proxy.port}")
            assert result.returncode == 111
            assert names(maildir / "new") == [
                name for name in names(maildir / "new") if name.endswith(".large")
            ]
            events = json_events(result.stdout)
            tried = [e for e in events if e["event"] == "deferred"]
            assert len(tried) == 1, "once a run"
            assert "the connection broke after" in tried[0]["text"]
            assert not [e for e in events if e["event"] == "in-doubt" and "small" in e["message"]]
            assert sum(e["event"] == "connected" for e in events) == 1
            assert texts(server.packages) == [b"s%04d" % number for number in range(40)], attempts
        status = run("--status", maildir)
        assert f"of {LARGE} bytes" in status.stdout
    # The link is better now.
    with serving(answer_all()) as server:
        assert run(maildir, server.address).returncode == 0
        assert [len(package.text) for package in server.packages] == [LARGE]
    assert run("--status", maildir).returncode == 0


def test_the_daemon_sends_small_ones_past_a_large_one_that_is_cut(maildir: Path) -> None:
    """And says in --status how far that got, and when it is tried again."""
    add_message(maildir, "1.large", b"x" * LARGE)
    for number in range(5):
        add_message(maildir, f"2.{number}", b"s%04d\n" % number)
    with (
        serving(answer_all()) as server,
        proxied(server.port, CUT, True, False, True, every_time=True) as proxy,
        watching("--watch", maildir, f"127.0.0.1:{proxy.port}") as daemon,
    ):
        daemon.wait_for("the connection broke after")
        deliver(maildir, f"{int(time.time())}.late", b"late \n")
        wait_until(lambda: names(maildir / "new") == ["1.large"], "the small ones to go")
        assert texts(server.packages) == [*[b"s%04d" % n for n in range(5)], b"late "]
        wait_until(lambda: "broke after" in run("--status", maildir).stdout, "its reason")
        assert daemon.log.count("the connection broke after") == 1, "it waits on the schedule"
        assert daemon.stop() == 0


@pytest.mark.parametrize("alone", [False, True], ids=["amid-others", "alone-at-first"])
@pytest.mark.parametrize("watch", [False, True], ids=["batch", "watch"])
def test_with_two_connections_small_ones_pass_it_while_it_goes(
    maildir: Path, watch: bool, alone: bool
) -> None:
    """A message of minutes has a connection of its own."""
    passed = threading.Event()

    def script(peer: Peer) -> None:
        while (package := peer.read_package()) is not None:
            if len(package.text) > CUT:
                deliver(maildir, f"{int(time.time())}.late", b"late \n")
                assert passed.wait(60), "the small one waits for the large one"
            elif package.text == b"late \n":
                passed.set()
            peer.respond(b"Kok")

    add_message(maildir, "1.large", random_text(2 << 20))
    if not alone:
        add_message(maildir, "2.a", b"small\n")
    with serving(script) as server:
        if watch:
            with watching("--watch", "--connections", "2", maildir, server.address) as daemon:
                wait_until(lambda: names(maildir / "new") == [], "all to go")
                assert daemon.stop() == 0
        else:
            assert run("--connections", "2", maildir, server.address).returncode == 0
    assert names(maildir / "new") == []


def test_max_size_holds_what_is_larger(maildir: Path) -> None:
    """Also in --dry-run, with the way out; --status names no daemon and no attempt."""
    add_message(maildir, "1.large", b"x" * 400_000)
    add_message(maildir, "2.a", b"small\n")
    dry = run("--dry-run", "--max-size", "300k", maildir, "nowhere.example")
    assert dry.returncode == 111
    assert "1.large: held: 400000 bytes are more than --max-size allows" in dry.stderr
    assert "2.a" in dry.stdout
    with serving(answer_all()) as server:
        result = run("--max-size", "300k", maildir, server.address)
        assert result.returncode == 111
        assert "more than --max-size allows (307200)" in result.stderr
        assert names(maildir / "new") == ["1.large"]
        assert run("--max-size", "400k", maildir, server.address).returncode == 0


def test_a_state_file_of_others_does_no_harm(maildir: Path) -> None:
    """Somebody edits it; the large message goes all the same."""
    add_message(maildir, "1.large", b"x" * 400_000)
    for broken in ("[]", '{"1.large": 3}', '{"1.large": {"at": 1, "sent": -1, "of": 2}}', "{}"):
        (maildir / ".maildirqmtp-state.json").write_text(f'{{"version": 1, "broken": {broken}}}')
        with serving(lambda peer: None) as server:
            assert run(maildir, server.address).returncode == 111
    assert os.path.exists(maildir / "new" / "1.large")
    with serving(answer_all()) as server:
        assert run(maildir, server.address).returncode == 0
