"""Several servers: the installed command, where one of them is down, goes down, or is no server."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.certificates import Authority, Identity
from tests.e2e.daemons import Running, deliver, is_connecting, watching
from tests.e2e.test_watch_ways import no_connection
from tests.helpers import (
    Peer,
    Script,
    ScriptedServer,
    add_message,
    answer_all,
    blackhole,
    by_recipient,
    closed_port,
    command,
    json_events,
    make_maildir,
    names,
    run,
    serving,
    start,
    wait_until,
)
from tests.receiving import delivered, receiver

#: Seconds for which a server of no use goes behind the others, in daemons of these tests.
USELESS_S = 1.0
#: The program with a shorter memory for what was of no use; its arguments follow `command()`.
_PROGRAM = f"""
import sys
from maildirqmtp.cli.main import main
from maildirqmtp.forwarder import servers
servers.USELESS_S = {USELESS_S}
sys.exit(main(sys.argv[{1 + len(command())}:]))
"""
FORGETFUL = (sys.executable, "-c", _PROGRAM)


def fill(maildir: Path, count: int) -> set[bytes]:
    """Put messages into the maildir; return their texts."""
    texts = [b"Subject: %d\n\ntext\n" % number for number in range(count)]
    for number, text in enumerate(texts):
        add_message(maildir, f"{number:04}.m", text)
    return set(texts)


def texts_of(server: ScriptedServer) -> list[bytes]:
    """Return the texts of the packages that a server has had whole."""
    return [package.text for package in server.packages]


# What a server does that is of no use


def hangs_up(peer: Peer) -> None:
    """Close at once."""


def takes_one_and_hangs_up(peer: Peer) -> None:
    """Close instead of answering."""
    peer.read_package()


def never_answers(peer: Peer) -> None:
    """Read all, and say nothing."""
    while peer.read_package() is not None:
        pass


def speaks_smtp(peer: Peer) -> None:
    """Greet as a mail server of another protocol does."""
    peer.send(b"220 mx.example.org ESMTP\r\n")
    never_answers(peer)


def speaks_http(peer: Peer) -> None:
    """Answer as a web server does."""
    peer.socket.recv(100)
    peer.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")


BAD: list[Script] = [hangs_up, takes_one_and_hangs_up, never_answers, speaks_smtp, speaks_http]


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("count", [1, 50])
def test_the_mail_of_a_server_that_is_of_no_use_goes_to_the_next(
    maildir: Path, bad: Script, count: int
) -> None:
    """Found out only after connecting; and with a single message, too."""
    texts = fill(maildir, count)
    with serving(bad) as first, serving(answer_all()) as second:
        result = run(
            "--in-doubt-wait=0", "--response-timeout=3",
            maildir, f"{first.address},{second.address}",
        )  # fmt: skip
    assert sorted(texts_of(second)) == sorted(texts)
    assert names(maildir / "new") == []
    assert f"{count} accepted, 0 deferred, 0 failed, 0 held, " in result.stderr
    assert f"going on with {second.address}" in result.stderr
    assert result.returncode == 0


# Without those that may end the connection before anything is sent: then nothing is in doubt.
@pytest.mark.parametrize("bad", [takes_one_and_hangs_up, never_answers, speaks_http])
def test_what_is_in_doubt_is_left_and_the_rest_goes(maildir: Path, bad: Script) -> None:
    """No message that the first server had whole is sent to the second; and the run says so."""
    texts = fill(maildir, 30)
    with serving(bad) as first, serving(answer_all()) as second:
        servers = f"{first.address},{second.address}"
        result = run("--window=5", "--response-timeout=3", maildir, servers)
        left = names(maildir / "new")
        assert not set(texts_of(first)) & set(texts_of(second))
        assert len(texts_of(second)) == 30 - len(left) > 0
        assert result.returncode == 111
        assert f"before --in-doubt-wait is over ({len(left)} left)" in result.stderr
        assert "30 accepted" not in result.stderr
        # The next run knows of them, whatever the first server does then.
        first.stop_listening()
        again = run(maildir, servers)
        assert names(maildir / "new") == left
        assert again.returncode == 111
        # And once they have waited, they go.
        last = run("--in-doubt-wait=0.01", maildir, servers)
    assert last.returncode == 0
    assert set(texts_of(second)) == texts
    assert names(maildir / "new") == []


def test_one_of_two_receivers_stops_amid_the_run(maildir: Path, tmp_path: Path) -> None:
    """Every message arrives; none twice but what was in doubt, and that at one server only."""
    texts = fill(maildir, 300)

    def fifty(peer: Peer) -> None:
        for _ in range(50):
            if (package := peer.read_package()) is None:
                return
            peer.respond(*[b"Kok"] * len(package.recipients))
        peer.server.stop_listening()
        peer.finish()

    with serving(fifty, closed_port()) as first, receiver(tmp_path / "there") as (_, second):
        servers = f"{first.address},{second}"
        result = run("--window=20", maildir, servers)
        assert result.returncode == 111
        left = {(maildir / "new" / name).read_bytes() for name in names(maildir / "new")}
        there = delivered(tmp_path / "there")
        assert len(there) == len(set(there))
        assert 50 + len(there) + len(left) == 300
        assert len(there) > 0
        assert (
            set(there) | set(texts_of(first)[:50]) | {text.split(b"\n", 2)[2] for text in left}
            == texts
        )
        # The server that may have them is back: they go there.
        with serving(answer_all(), first.port) as back:
            assert run(maildir, servers).returncode == 0
            assert len(back.packages) == len(left)
    assert names(maildir / "new") == []


def test_the_first_is_not_there(maildir: Path) -> None:
    """Refused, an unknown name, a path without a socket: the run ends well."""
    for first in (f"127.0.0.1:{closed_port()}", "no-such-host.invalid"):
        fill(maildir, 3)
        with serving(answer_all()) as second:
            result = run("-q", maildir, f"{first},{second.address}")
            assert (result.returncode, len(second.packages)) == (0, 3)
            assert result.stderr == ""


def test_where_none_is_there_all_reasons_are_told(maildir: Path) -> None:
    """And nothing has happened."""
    fill(maildir, 3)
    ports = closed_port(), closed_port()
    result = run(maildir, ",".join(f"127.0.0.1:{port}" for port in ports))
    assert result.returncode == 111
    assert all(f"cannot connect to 127.0.0.1:{port}: " in result.stderr for port in ports)
    assert "(3 left)" in result.stderr
    assert len(names(maildir / "new")) == 3


def test_one_with_tls_whose_certificate_is_wrong(
    maildir: Path, tmp_path: Path, authority: Authority, identity: Identity, stranger: Authority
) -> None:
    """It is unreachable; the certificate of the next one is checked by the same authority."""
    fill(maildir, 5)
    wrong = stranger.issue("127.0.0.1")
    with contextlib.ExitStack() as stack:
        servers = []
        for name, shown in (("wrong", wrong), ("right", identity)):
            flags = ("--tls-cert", shown.cert, "--tls-key", shown.key)
            _, address = stack.enter_context(receiver(tmp_path / name, *flags))
            servers.append(f"qmtps://{address}")
        result = run("--tls-ca", authority.file, maildir, ",".join(servers))
    assert "certificate is not trusted" in result.stderr
    assert result.returncode == 0
    assert len(delivered(tmp_path / "right")) == 5
    assert names(tmp_path / "wrong" / "new") == []


def test_tls_falls_back_to_loopback_only(maildir: Path, authority: Authority) -> None:
    """A plain server elsewhere is wrong usage; one on loopback, a tunnel say, is not."""
    fill(maildir, 2)
    nobody = f"qmtps://127.0.0.1:{closed_port()}"
    assert run(maildir, f"{nobody},192.0.2.1").returncode == 100
    with serving(answer_all()) as second:
        flags = ("--tls-ca", authority.file)
        assert run(*flags, maildir, f"{nobody},{second.address}").returncode == 0
        assert len(second.packages) == 2


def test_term_ends_it_while_the_first_is_connected_to(maildir: Path) -> None:
    """The second is not tried after that."""
    fill(maildir, 1)
    with blackhole() as port, serving(answer_all()) as second:
        with start("-v", maildir, f"127.0.0.1:{port},{second.address}") as process:
            wait_until(lambda: is_connecting(process.pid), "the connection to be tried")
            process.send_signal(signal.SIGTERM)
            _, log = process.communicate(timeout=30)
        assert process.returncode == 111
        assert "told to stop while connecting" in log
        assert second.connections == 0


def test_json_and_bounces_name_the_server_that_answered(maildir: Path, tmp_path: Path) -> None:
    """Who looks for a message asks that server; a bounce that names the other one lies."""
    for number, who in enumerate((b"k@y", b"z@y", b"d@y")):
        add_message(maildir, f"{number}.m", recipient=who)
    bounces = make_maildir(tmp_path / "bounces")
    with serving(answer_all(by_recipient)) as second:
        name = f"localhost:{second.port}"
        result = run(
            "--json", "--bounce", f"--bounce-via=maildir:{bounces}",
            maildir, f"127.0.0.1:{closed_port()},{name}",
        )  # fmt: skip
    events = [e for e in json_events(result.stdout) if "recipient" in e]
    assert {e["event"]: e["server"] for e in events} == {
        "accepted": name, "deferred": name, "bounced": name,
    }  # fmt: skip
    (bounce,) = (bounces / "new").iterdir()
    assert b"Remote-MTA: dns; localhost\n" in bounce.read_bytes()


# A first address of a name that is dead


def test_a_name_whose_first_address_is_dead(maildir: Path, tmp_path: Path) -> None:
    """The second address is tried long before the first one's time is over."""
    if os.geteuid() != 0:
        pytest.skip("NOT TESTED: needs root, for a /etc/hosts of its own")
    hosts = tmp_path / "hosts"
    # 127.0.0.1 would come first, whatever the order here (RFC 6724, section 6, rule 9).
    hosts.write_text("127.0.0.2 two.example.org\n127.0.0.3 two.example.org\n")
    fill(maildir, 3)
    inside = ("unshare", "-m", "sh", "-c", f'mount --bind {hosts} /etc/hosts && exec "$@"', "sh")
    with blackhole("127.0.0.2") as port, serving(answer_all(), port, "127.0.0.3") as second:
        # Longer than the test may take.
        flags = ("--connect-timeout=1h", "-v")
        with watching(*flags, maildir, f"two.example.org:{port}", prelude=inside) as process:
            wait_until(lambda: process.process.poll() is not None, "the run to end")
            if "mount" in process.log or "unshare" in process.log:
                pytest.skip(f"NOT TESTED: {process.log}")
        assert process.process.returncode == 0
        assert len(second.packages) == 3


# Watch mode


def empties(maildir: Path) -> None:
    """Wait until all is sent."""
    wait_until(lambda: not names(maildir / "new"), "the maildir to be empty")


@pytest.fixture
def watched(maildir: Path) -> Callable[..., contextlib.AbstractContextManager[Running]]:
    """Start a daemon that forgets soon that a server was of no use."""

    def watch(servers: str, *flags: str) -> contextlib.AbstractContextManager[Running]:
        often = ("--rescan", "0.5", "--idle-timeout", "0.2")
        return watching("--watch", "-v", *often, *flags, maildir, servers, prelude=FORGETFUL)

    return watch


Watched = Callable[..., contextlib.AbstractContextManager[Running]]


def test_the_daemon_fails_over_and_comes_back(maildir: Path, watched: Watched) -> None:
    """The first server is down for a while; the second has the mail until it is back."""
    with serving(answer_all()) as first, serving(answer_all()) as second:
        port = first.port
        with watched(f"{first.address},{second.address}") as daemon:
            daemon.wait_for(f"mail goes to {first.address}, else {second.address}")
            deliver(maildir, "1.m", b"one\n")
            empties(maildir)
            assert texts_of(first) == [b"one\n"]
            daemon.wait_for(f"connected to {first.address}")
            first.close()
            deliver(maildir, "2.m", b"two\n")
            empties(maildir)
            assert texts_of(second) == [b"two\n"]
            with serving(answer_all(), port) as back:
                number = 3

                def came_back() -> bool:
                    nonlocal number
                    deliver(maildir, f"{number}.m", b"%d\n" % number)
                    number += 1
                    empties(maildir)
                    wait_until(lambda: no_connection(daemon.process.pid), "the idle end")
                    return bool(back.packages)

                wait_until(came_back, "mail to go to the first server again")
                assert len(back.packages) + len(second.packages) == number - 2
            assert "next try in" not in daemon.log
            assert daemon.stop() == 0


@pytest.mark.parametrize("bad", BAD)
def test_the_daemon_and_a_server_that_is_of_no_use(
    maildir: Path, watched: Watched, bad: Script
) -> None:
    """Mail by mail, all of it arrives at the second, without back-off."""
    with serving(bad) as first, serving(answer_all()) as second:
        flags = ("--in-doubt-wait=0", "--response-timeout=2")
        with watched(f"{first.address},{second.address}", *flags) as daemon:
            for number in range(4):
                deliver(maildir, f"{number}.m", b"%d\n" % number)
                empties(maildir)
            assert sorted(texts_of(second)) == [b"%d\n" % number for number in range(4)]
            assert "next try in" not in daemon.log
            assert daemon.stop() == 0


def test_the_daemon_has_what_is_in_doubt_wait(maildir: Path, watched: Watched) -> None:
    """The others go to the second server at once, and this one after them."""
    with (
        serving(takes_one_and_hangs_up) as first,
        serving(answer_all()) as second,
        watched(f"{first.address},{second.address}", "--in-doubt-wait=10s") as daemon,
    ):
        deliver(maildir, "1.m", b"one\n")
        daemon.wait_for("in-doubt: not answered")
        first.stop_listening()
        for number in range(2, 6):
            deliver(maildir, f"{number}.m", b"%d\n" % number)
        wait_until(lambda: names(maildir / "new") == ["1.m"], "the others to go")
        empties(maildir)
        assert texts_of(second)[-1] == b"one\n"
        assert daemon.stop() == 0


def test_the_daemon_takes_it_back_to_the_server_that_may_have_it(
    maildir: Path, watched: Watched
) -> None:
    """It is tried at intervals while messages wait for it."""
    port = closed_port()
    with (
        serving(takes_one_and_hangs_up, port) as first,
        serving(answer_all()) as second,
        watched(f"{first.address},{second.address}", "--in-doubt-wait=60s") as daemon,
    ):
        deliver(maildir, "1.m", b"one\n")
        daemon.wait_for("in-doubt: not answered")
        first.close()
        with serving(answer_all(), port) as back:
            empties(maildir)
            assert texts_of(back) == [b"one\n"]
        assert second.packages == []
        assert daemon.stop() == 0


@pytest.mark.parametrize(
    "first",
    [
        "exec:false",
        "exec:/nowhere/at/all",
        "exec:sh -c 'exit 255'",
        "exec:sh -c 'sleep 0.2; exit 1'",
        "unix:/nowhere/at/all",
    ],
)
def test_a_command_that_fails_leaves_nothing_in_doubt(
    maildir: Path, tmp_path: Path, first: str
) -> None:
    """What it has not read is not in doubt: all goes to the next server at once."""
    fill(maildir, 5)
    with serving(answer_all()) as second:
        file = tmp_path / "m.toml"
        file.write_text(
            f"[[route]]\nmaildir = {json.dumps(str(maildir))}\n"
            f"server = [{json.dumps(first)}, {json.dumps(second.address)}]\n"
        )
        with watching("--config", file, "-v") as daemon:
            empties(maildir)
            daemon.wait_for(f"connected to {second.address}")
            assert daemon.stop() == 0
            assert "0 in doubt" in daemon.log
        assert len(second.packages) == 5


def test_a_command_that_has_read_a_message_and_fails(maildir: Path, tmp_path: Path) -> None:
    """ssh may have passed it on before the connection broke: that one waits."""
    fill(maildir, 1)
    with serving(answer_all()) as second:
        file = tmp_path / "m.toml"
        first = "exec:sh -c 'dd bs=65536 count=1 of=/dev/null 2>/dev/null; exit 255'"
        file.write_text(
            f"[[route]]\nmaildir = {json.dumps(str(maildir))}\n"
            f"server = [{json.dumps(first)}, {json.dumps(second.address)}]\n"
        )
        with watching("--config", file, "-v") as daemon:
            daemon.wait_for("in-doubt: not answered")
            deliver(maildir, "2.m", b"two\n")
            wait_until(lambda: names(maildir / "new") == ["0000.m"], "the other one to go")
            assert texts_of(second) == [b"two\n"]
            daemon.stop()


def test_a_server_that_reads_nothing_is_not_the_end(maildir: Path) -> None:
    """It takes connections into its backlog, and nobody ever looks at them."""
    fill(maildir, 3)
    with socket.create_server(("127.0.0.1", 0)) as listener, serving(answer_all()) as second:
        first = f"127.0.0.1:{listener.getsockname()[1]}"
        flags = ("--response-timeout=2", "--in-doubt-wait=0")
        assert run(*flags, maildir, f"{first},{second.address}").returncode == 0
        assert len(second.packages) == 3
