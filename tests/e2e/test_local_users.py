"""Other users of the machine: they stop no mail, get none, and have no file written for them."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.daemons import deliver, empties, watching
from tests.helpers import (
    Peer,
    add_message,
    answer_all,
    closed_port,
    make_maildir,
    names,
    probe,
    run,
    serving,
    snapshot,
    wait_until,
)
from tests.serial import client, maildirserial

STRANGER = 54_321
OWNER = 54_322

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="NEEDS ROOT: SKIPPED")


@pytest.fixture
def maildir(tmp_path: Path) -> Path:
    """A maildir with a message, in directories that everybody may go through."""
    for directory in (tmp_path, *tmp_path.parents[:3]):
        if directory.stat().st_uid == os.geteuid():
            directory.chmod(0o755)
    path = make_maildir(tmp_path / "Maildir")
    add_message(path, "1.m")
    return path


@pytest.fixture
def link(maildir: Path, tmp_path: Path) -> Path:
    """What a user has put in place of their own maildir: a link to that of another one."""
    for path in (maildir, *maildir.rglob("*")):
        os.chown(path, OWNER, OWNER)
    path = tmp_path / "link"
    path.symlink_to(maildir)
    os.lchown(path, STRANGER, STRANGER)
    return path


@root_only
def test_the_mail_of_another_user_is_not_forwarded(maildir: Path, link: Path) -> None:
    """Run by root for a stranger, it was sent to the stranger's server, and removed."""
    before = snapshot(maildir)
    with serving(answer_all()) as server:
        result = run(link, server.address)
        assert server.packages == []
    assert result.returncode == 111
    assert str(link) in result.stderr
    assert snapshot(maildir) == before


@root_only
def test_the_mail_of_another_user_is_given_to_no_client(maildir: Path, link: Path) -> None:
    """serialmail's way through an inbox, and it is the working directory of the client as well."""
    before = snapshot(maildir)
    code, said = maildirserial(link, "", *client("for name in names(): say(name, b'Kok')"))
    assert code == 111
    assert said.startswith(f"maildirserial: fatal: unable to chdir to {link}: ")
    assert snapshot(maildir) == before


@root_only
def test_no_status_is_written_where_a_strangers_link_leads(maildir: Path, link: Path) -> None:
    """It may be a folder that is read by a program of root's."""
    os.chown(maildir, 0, 0)
    before = set(names(maildir))
    with watching("--watch", link, f"127.0.0.1:{closed_port()}") as daemon:
        wait_until(
            lambda: "link" in daemon.log.replace(str(link), "") or set(names(maildir)) != before,
            "what it says of the link",
        )
        daemon.stop()
    assert set(names(maildir)) == before


@root_only
def test_a_stranger_who_may_read_a_maildir_cannot_stop_it(maildir: Path) -> None:
    """`flock -s DIR sleep infinity` kept all its mail back for as long as that ran."""
    assert shutil.which("flock")
    with subprocess.Popen(
        ["flock", "-s", maildir, "sh", "-c", "echo held; exec cat"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        user=STRANGER,
        group=STRANGER,
    ) as stranger:
        assert stranger.stdout is not None
        assert stranger.stdout.readline() == b"held\n"
        with serving(answer_all()) as server:
            result = run(maildir, server.address)
        assert stranger.stdin is not None
        stranger.stdin.close()
    assert result.returncode == 0, result.stderr
    assert names(maildir / "new") == []


# What is planted beside the metrics


@contextlib.contextmanager
def telling(maildir: Path, file: Path, plant: str) -> Iterator[None]:
    """Run a daemon with metrics in `file`; the shell's `plant` has its process as $$ first."""
    before = ("sh", "-c", f'{plant} && exec "$@"', str(file))
    server = f"127.0.0.1:{closed_port()}"
    with watching("--watch", maildir, server, f"--metrics-file={file}", prelude=before) as daemon:
        wait_until(file.exists, "the metrics")
        yield
        assert daemon.stop() == 0


def test_a_planted_fifo_neither_holds_up_a_daemon_nor_keeps_it_from_ending(
    maildir: Path, tmp_path: Path
) -> None:
    """Opened for writing, it waits for a reader for ever, whatever signals come."""
    file = tmp_path / "mail.prom"
    with telling(maildir, file, 'mkfifo "$0.$$.tmp"'):
        assert "maildirqmtp_queue_messages" in file.read_text()


def test_a_planted_link_has_nobodys_file_overwritten(maildir: Path, tmp_path: Path) -> None:
    """A hard link to any file of root's, where both are on one file system."""
    file, victim = tmp_path / "mail.prom", tmp_path / "victim"
    victim.write_bytes(b"precious\n")
    with telling(maildir, file, f'ln {victim} "$0.$$.tmp"'):
        assert victim.read_bytes() == b"precious\n"


def test_idle_clients_of_the_metrics_stop_no_mail(maildir: Path) -> None:
    """Any local user can connect: each was kept, until no descriptor was left for the server."""
    pytest.importorskip("prometheus_client")
    port = closed_port()
    few = ("sh", "-c", 'ulimit -n 40 && exec "$@"', "sh")
    listen = f"--metrics-listen=127.0.0.1:{port}"

    def one_message(peer: Peer) -> None:
        if package := peer.read_package():
            peer.respond(*[b"Kok"] * len(package.recipients))
        peer.finish()

    with (
        serving(one_message) as server,
        watching("--watch", maildir, server.address, listen, prelude=few) as daemon,
        contextlib.ExitStack() as stack,
    ):
        empties(maildir)
        wait_until(lambda: probe(port, "/metrics")[0] == 200, "the metrics")
        # Until it takes no more: those for which it has no place, or no descriptor, time out.
        with contextlib.suppress(TimeoutError):
            for _ in range(40):
                stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=1.5))
        # Each needs a connection, and that a descriptor.
        for number in range(2, 12):
            deliver(maildir, f"{number}.m")
            empties(maildir)
        assert daemon.stop() == 0


@pytest.mark.parametrize("lie", ["\x1b]0;owned\x07", float("nan"), float("inf")])
def test_a_forged_status_is_safe_to_print_and_json(maildir: Path, lie: object) -> None:
    """Root pipes it through `jq -r` to a terminal; and a reader that is strict refuses NaN."""
    with watching("--watch", maildir, f"127.0.0.1:{closed_port()}") as daemon:
        file = maildir / ".maildirqmtp-status.json"
        wait_until(file.exists, "its status")
        # It writes no other in between.
        daemon.send(signal.SIGSTOP)
        forged = json.loads(file.read_text()) | {"excuse": lie, "at": lie}
        file.write_text(json.dumps(forged))
        result = run("--status", "--json", maildir)
        daemon.send(signal.SIGCONT)
        assert daemon.stop() == 0
    (line,) = result.stdout.splitlines()
    found = json.loads(line, parse_constant=pytest.fail)
    assert found["daemon"]["pid"] == daemon.process.pid
    assert "\\u001b" not in line
