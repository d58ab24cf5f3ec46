"""Links and servers that are slow, silent, half dead or not the right ones."""

from __future__ import annotations

import os
import ssl
import subprocess
import threading
from pathlib import Path

import pytest

from tests.certificates import Identity, over_tls
from tests.e2e.daemons import watching
from tests.helpers import (
    Package,
    Peer,
    ScriptedServer,
    add_message,
    add_sidecar,
    answer_all,
    command,
    json_events,
    names,
    run,
    serving,
    wait_until,
)


def fill(maildir: Path, count: int) -> None:
    """Put so many messages into the maildir."""
    for number in range(count):
        add_message(maildir, f"{number:03}.m", b"Subject: %d\n\n" % number)


def test_a_server_that_answers_steadily_is_not_given_up(maildir: Path) -> None:
    """The time-out of each message ran from its queueing: all behind the first ones came twice."""
    count = 100
    fill(maildir, count)
    pause = threading.Event()

    def slowly(package: Package, recipient: bytes) -> bytes:
        pause.wait(0.05)  # the pace of a server with a scanner, in small
        return b"Kok"

    with serving(answer_all(slowly)) as server:
        result = run("--json", "--response-timeout=2", maildir, server.address)
        assert len(server.packages) == count
    assert result.returncode == 0
    assert not [event for event in json_events(result.stdout) if event["event"] == "in-doubt"]


def test_one_message_that_hangs_the_server_does_not_stop_the_others(maildir: Path) -> None:
    """Each run ended at it, so that nothing behind it was ever sent."""
    fill(maildir, 20)
    stuck = threading.Event()

    def script(peer: Peer) -> None:
        while package := peer.read_package():
            if package.text == b"Subject: 0\n\n":
                stuck.wait(60)
                return
            peer.respond(b"Kok")

    with serving(script) as server:
        result = run("--response-timeout=0.5", maildir, server.address)
        stuck.set()
    assert names(maildir / "new") == ["000.m"]
    assert result.returncode == 111


def test_who_answers_once_per_package_is_known_to_the_next_run(maildir: Path) -> None:
    """mailfront: each run took ten seconds to find out, and sent all but one recipient twice."""

    def once(peer: Peer) -> None:
        while peer.read_package():
            peer.respond(b"Kok")

    add_message(maildir, "1.m", b"\n")
    add_sidecar(maildir, "1.m", "s@x", "a@y", "b@y")
    with serving(once) as server:
        assert run(maildir, server.address).returncode == 0
        before = len(server.packages)
        add_message(maildir, "2.m", b"\n")
        add_sidecar(maildir, "2.m", "s@x", "a@y", "b@y")
        result = run("--json", maildir, server.address)
        sent = [package.recipients for package in server.packages[before:]]
    assert result.returncode == 0
    assert sorted(sent) == [(b"a@y",), (b"b@y",)]
    assert not [event for event in json_events(result.stdout) if event["event"] == "in-doubt"]


@pytest.mark.parametrize(
    ("what", "hint"),
    [
        ("ssh", "did the command run, and does it speak QMTP"),
        ("TLS", "does it speak QMTP? if it speaks TLS, write qmtps:// before its name"),
    ],
)
def test_a_server_that_never_spoke_is_told_as_that_and_once(
    maildir: Path, identity: Identity, what: str, hint: str
) -> None:
    """`may have been taken, and will then come twice` is no help with a wrong port."""
    add_message(maildir, "1.m")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(identity.cert, identity.key)
    with serving(over_tls(context, lambda peer: None)) as server:
        # An ssh that does not get through reads nothing; the pipe takes what fits into it.
        ssh_fails = "exec:sh -c 'sleep 0.2; exit 255'"
        result = run(maildir, ssh_fails if what == "ssh" else server.address)
    assert result.returncode == 111
    assert result.stderr.count(hint) == 1
    assert "come twice" not in result.stderr
    assert names(maildir / "new") == ["1.m"]


def timers_of(port: int) -> list[str]:
    """Say which timer is on at each connection to a port of 127.0.0.1: 02 is that of keepalive.

    Documentation/networking/proc_net_tcp.rst in Linux.
    """
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return [row[5].partition(":")[0] for row in rows if row[2] == f"0100007F:{port:04X}"]


def test_a_router_that_forgot_the_connection_does_not_hold_a_route(maildir: Path) -> None:
    """Without keepalive the end of a dead connection is noticed after the response time-out."""
    add_message(maildir, "1.m")
    asked = threading.Event()
    answer = threading.Event()

    def script(peer: Peer) -> None:
        if peer.read_package():
            asked.set()
            answer.wait(60)
            peer.respond(b"Kok")
            peer.finish()

    with (
        serving(script) as server,
        watching("--watch", maildir, server.address) as daemon,
    ):
        wait_until(asked.is_set, "the message to be in flight")
        # Until the kernel has the acknowledgement of what was sent, it has another timer.
        wait_until(lambda: timers_of(server.port) == ["02"], "keepalive on the connection")
        answer.set()
        wait_until(lambda: names(maildir / "new") == [], "it to go")
        assert daemon.stop() == 0


def test_of_two_addresses_the_one_that_hangs_up_keeps_no_mail_back(
    maildir: Path, tmp_path: Path
) -> None:
    """Each run went to the first one again and again, with a good one beside it."""
    if os.geteuid() != 0:
        pytest.skip("NOT TESTED: needs root, for a /etc/hosts of its own")
    hosts = tmp_path / "hosts"
    # 127.0.0.1 would come first, whatever the order here (RFC 6724, section 6, rule 9).
    hosts.write_text("127.0.0.2 two.example.org\n127.0.0.3 two.example.org\n")
    fill(maildir, 3)
    inside = ["unshare", "-m", "sh", "-c", f'mount --bind {hosts} /etc/hosts && exec "$@"', "sh"]
    broken = ScriptedServer(lambda peer: None, host="127.0.0.2")
    good = ScriptedServer(answer_all(), listen_on=broken.port, host="127.0.0.3")
    try:
        words = [*inside, *command(), str(maildir), f"two.example.org:{good.port}"]
        result = subprocess.run(words, capture_output=True, text=True, timeout=90, check=False)
    finally:
        good.close()
        broken.close()
    if "mount" in result.stderr or "unshare" in result.stderr:
        pytest.skip(f"NOT TESTED: {result.stderr}")
    assert broken.connections > 0
    assert (result.returncode, len(good.packages)) == (0, 3), result.stderr
