"""Every way to the server that is not plain TCP: Unix sockets, commands, under tcpclient.

Whatever the way does, each message is taken by the server or still here.
"""

from __future__ import annotations

import os
import shlex
import shutil
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from maildirqmtp.cli.main import main
from tests.e2e.conftest import Run
from tests.helpers import (
    add_message,
    answer_all,
    closed_port,
    command,
    have_mailfront,
    mailfront,
    make_maildir,
    names,
    queuedir_messages,
    run,
    runs,
    serving,
    snapshot,
    wait_until,
)
from tests.receiving import delivered, receiver

RECEIVER = shlex.join(command("qmtpmaildir"))
under_tcpclient = pytest.mark.skipif(
    not shutil.which("tcpclient"),
    reason="NOT TESTED: - under tcpclient; apt-get install --no-install-recommends ucspi-tcp",
)


def fill(maildir: Path, count: int) -> list[bytes]:
    """Put messages into a new maildir; two of them are large enough to be streamed."""
    make_maildir(maildir)
    texts = []
    for number in range(count):
        text = b"Subject: %d\n\ntext\n" % number + b"x" * (2_000_000 if number in (3, 700) else 0)
        add_message(maildir, f"{1_700_000_000 + number}.m.host", text)
        texts.append(text)
    return sorted(texts)


def tcpclient(server: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run `maildirqmtp` under tcpclient."""
    host, _, port = server.rpartition(":")
    result = subprocess.run(
        ["tcpclient", "-RHl0", host, port, *command(), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert "Traceback" not in result.stderr, result.stderr
    return result


# A thousand messages


def test_a_thousand_messages_to_a_unix_socket(tmp_path: Path) -> None:
    """Both ends of `unix:`."""
    texts = fill(tmp_path / "here", 1_000)
    path = tmp_path / "socket"
    with receiver(tmp_path / "there", "--listen", f"unix:{path}") as (_, server):
        assert server == f"unix:{path}"
        assert path.stat().st_mode & 0o777 == 0o600
        result = run(tmp_path / "here", server)
    assert result.stderr.startswith("maildirqmtp: 1000 accepted, 0 deferred, 0 failed, 0 held, 0 ")
    assert result.returncode == 0
    assert names(tmp_path / "here" / "new") == []
    assert delivered(tmp_path / "there") == texts
    assert not path.exists()


def test_a_thousand_messages_to_a_command(tmp_path: Path) -> None:
    """With a blank in a path, which is no end of a word."""
    texts = fill(tmp_path / "here", 1_000)
    there = tmp_path / "over there"
    result = run(tmp_path / "here", f"exec:{RECEIVER} --stdio {shlex.quote(str(there))}")
    assert result.stderr.startswith("maildirqmtp: 1000 accepted, 0 deferred, 0 failed, 0 held, 0 ")
    assert result.returncode == 0
    assert names(tmp_path / "here" / "new") == []
    assert delivered(there) == texts


@under_tcpclient
def test_a_thousand_messages_under_tcpclient(tmp_path: Path) -> None:
    """As serialmail's maildirqmtp was run; the messages name the server that it tells of."""
    texts = fill(tmp_path / "here", 1_000)
    with receiver(tmp_path / "there") as (_, server):
        result = tcpclient(server, "-v", tmp_path / "here", "-")
    assert f"maildirqmtp: connected to {server}\n" in result.stderr
    assert "maildirqmtp: 1000 accepted, 0 deferred, 0 failed, 0 held, 0 " in result.stderr
    assert result.returncode == 0
    assert names(tmp_path / "here" / "new") == []
    assert delivered(tmp_path / "there") == texts


@under_tcpclient
@pytest.mark.skipif(not have_mailfront(), reason="NOT TESTED: mailfront is not installed")
def test_the_classic_line_of_serialmail(tmp_path: Path) -> None:
    """`tcpclient HOST 209 maildirqmtp DIR PREFIX -` against a server that is not ours."""
    maildir = make_maildir(tmp_path / "here")
    for number in range(20):
        add_message(maildir, f"{number}.m", b"%d\n" % number, recipient=b"alias-ppp-r@y")
    with mailfront(tmp_path / "queue") as server:
        result = tcpclient(server, maildir, "alias-ppp-", "-")
    assert result.returncode == 0
    assert Counter(queuedir_messages(tmp_path / "queue")) == Counter(
        (b"sender@example.org", (b"r@y",), b"%d\n" % number) for number in range(20)
    )


# ssh, as README and administration.md have it


def test_over_ssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`exec:ssh mx qmtpmaildir --stdio Maildir`: ssh's words become one line for a shell."""
    texts = fill(tmp_path / "here", 10)
    stand_in(tmp_path, 'test "$1" = mx || exit 255; shift; cd "$HOME"; exec sh -c "$*"')
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    monkeypatch.setenv("HOME", str(tmp_path))
    result = run(tmp_path / "here", f"exec:ssh mx {RECEIVER} --stdio Maildir")
    assert result.returncode == 0, result.stderr
    assert delivered(tmp_path / "Maildir") == texts


def test_ssh_that_does_not_get_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it says is in our log, and how it ended; nothing has happened to any message."""
    fill(tmp_path / "here", 10)
    stand_in(tmp_path, r"printf 'ssh: connect to host mx port 22: No \033[1mroute\n' >&2; exit 255")
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    before = snapshot(tmp_path / "here")
    result = run(tmp_path / "here", "exec:ssh mx qmtpmaildir --stdio Maildir")
    assert result.returncode == 111
    assert "maildirqmtp: ssh: ssh: connect to host mx port 22: No ?[1mroute\n" in result.stderr
    assert (
        "ended: ssh exited with status 255; what is left stays as it is (10 left)\n"
        in result.stderr
    )
    assert result.stderr.count("No ?[1mroute") == 1
    assert snapshot(tmp_path / "here") == before


def stand_in(path: Path, script: str) -> None:
    """Make an `ssh` that is a shell script."""
    (path / "bin").mkdir()
    (path / "bin" / "ssh").write_text(f"#!/bin/sh\n{script}\n")
    (path / "bin" / "ssh").chmod(0o755)


# Trouble

#: Commands that take nothing, and what is said of each.
USELESS = {
    "not there": ("/nonexistent/ssh mx", "cannot start ssh for exec:/nonexistent/ssh mx: No such"),
    "not a program": ("/etc/passwd", "cannot start passwd for exec:/etc/passwd: Permission denied"),
    "fails": ("false", "ended: false exited with status 1"),
    "exits in peace": ("true", "true"),
    "is killed": ("sh -c 'kill -9 $$'", "ended: sh was killed by signal 9"),
    "reads a little": ("head -c 10", "head -c 10"),
    "reads and fails": ("sh -c 'head -c 50 >/dev/null; exit 7'", "sh exited with status 7"),
    "hangs": ("sleep 1000", "sleep 1000 did not answer in 0.3 s"),
    "reads and hangs": ("sh -c 'cat >/dev/null'", "did not answer in 0.3 s"),
    "closes its output": ("sh -c 'exec >&-; exec sleep 1000'", "closed the connection"),
    "greets": ("sh -c 'echo 220 mx ESMTP; exec sleep 1000'", "exec:sh"),
    "is an echo": ("cat", "exec:cat"),
    "prints for ever": ("yes", "exec:yes"),
    "prints nothing useful": ("cat /dev/zero", "exec:cat"),
    "has other answers": ("sh -c 'echo -n 3:Xok,; exec sleep 1000'", "exec:sh"),
    "complains for ever": ("sh -c 'yes no >&2'", "(it says more, which is not shown)"),
}


@pytest.mark.parametrize("what", USELESS)
def test_a_useless_command_loses_nothing(tmp_path: Path, what: str, run_quickly: Run) -> None:
    """Nothing bounces, however old it is, and nothing is taken for accepted."""
    maildir = tmp_path / "here"
    fill(maildir, 3)
    before = snapshot(maildir)
    words, says = USELESS[what]
    limits = ["--response-timeout=0.3", "--write-timeout=0.3", "--lifetime=0"]
    bounces = ["--bounce", f"--bounce-via=maildir:{tmp_path}/bounces"]
    result = run_quickly(*limits, *bounces, maildir, f"exec:{words}")
    assert result.returncode == 111
    assert says in result.stderr
    assert "maildirqmtp: 0 accepted, " in result.stderr
    assert " 0 failed, 0 held, " in result.stderr
    assert snapshot(maildir) == before
    assert names(tmp_path / "bounces") == []


def test_a_command_that_breaks_off_again_and_again(tmp_path: Path) -> None:
    """Each time after a few packages: all arrive in the end, and only what was in doubt twice."""
    maildir, there = tmp_path / "here", tmp_path / "there"
    make_maildir(maildir)
    texts = [b"Subject: %d\n\n%b\n" % (number, b"x" * 200) for number in range(100)]
    for number, text in enumerate(texts):
        add_message(maildir, f"{number:03}.m", text)
    some = (
        "import os; left = 5000\n"
        "while left: data = os.read(0, left); os.write(1, data); left -= len(data) or left"
    )
    broken = f"{sys.executable} -c {shlex.quote(some)} | {RECEIVER} --stdio {there}"
    result = run("--window=20", maildir, f"exec:sh -c {shlex.quote(broken)}")
    assert result.returncode == 0, result.stderr
    assert "sh exited with status 111" in result.stderr
    assert names(maildir / "new") == []
    assert set(delivered(there)) == set(texts)


def test_the_command_and_all_it_started_are_gone_after_the_run(tmp_path: Path) -> None:
    """Five minutes later cron would start the next ones."""
    make_maildir(tmp_path / "here")
    add_message(tmp_path / "here", "1.m")
    script = f"echo $$ > {tmp_path}/pids; sleep 1000 & echo $! >> {tmp_path}/pids; wait"
    run("--response-timeout=0.3", tmp_path / "here", f"exec:sh -c {shlex.quote(script)}")
    pids = (tmp_path / "pids").read_text().split()
    assert len(pids) == 2
    wait_until(lambda: not any(runs(int(pid)) for pid in pids), "its processes to end")


def test_a_unix_socket_where_nobody_listens(tmp_path: Path) -> None:
    """The server is down, or the path is wrong; nothing has happened to any message."""
    fill(tmp_path / "here", 3)
    before = snapshot(tmp_path / "here")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "left"))
    for path, why in (("left", "Connection refused"), ("none", "No such file or directory")):
        result = run(tmp_path / "here", f"unix:{tmp_path}/{path}")
        assert result.returncode == 111
        assert f"cannot connect to unix:{tmp_path}/{path}: {why}" in result.stderr
    assert snapshot(tmp_path / "here") == before


def test_of_two_addresses_one_hangs_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of two load balancers is broken; all mail goes by the other, in the same run."""
    fill(tmp_path / "here", 4)
    real = socket.getaddrinfo
    with serving(lambda peer: None) as broken, serving(answer_all()) as good:
        found = [
            real("127.0.0.1", port, type=socket.SOCK_STREAM)[0] for port in (broken.port, good.port)
        ]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
        assert main(["-q", str(tmp_path / "here"), "twofold.example"]) == 0
        assert (broken.connections, good.connections) == (1, 1)
    assert names(tmp_path / "here" / "new") == []


def test_without_tcpclient_a_dash_says_what_to_write(tmp_path: Path) -> None:
    """The maildir and pipes of ours get the numbers 6 and 7; nothing is written to them."""
    fill(tmp_path / "here", 3)
    before = snapshot(tmp_path / "here")
    result = run(tmp_path / "here", "-")
    assert result.returncode == 111
    assert "as in: tcpclient HOST 209 maildirqmtp DIR -" in result.stderr
    assert snapshot(tmp_path / "here") == before


@under_tcpclient
def test_under_tcpclient_there_is_one_connection(tmp_path: Path) -> None:
    """When it is over the run is; the rest waits for the next."""
    fill(tmp_path / "here", 10)
    answered: list[bytes] = []

    def ten(package: object, recipient: bytes) -> bytes:
        answered.append(recipient)
        if len(answered) == 5:
            raise ConnectionAbortedError
        return b"Kok"

    script = answer_all(ten)
    with serving(lambda peer: swallow(lambda: script(peer))) as server:
        result = tcpclient(server.address, "--window=1", tmp_path / "here", "-")
        assert server.connections == 1
    assert result.returncode == 111
    assert f"the connection to {server.address} is used up" in result.stderr
    assert "maildirqmtp: 4 accepted, 0 deferred, 0 failed, 0 held, 1 in doubt" in result.stderr
    assert len(names(tmp_path / "here" / "new")) == 6


def swallow(script: Callable[[], None]) -> None:
    """Let a script that breaks off just end."""
    try:
        script()
    except ConnectionAbortedError:
        return


@under_tcpclient
def test_a_host_that_tcpclient_cannot_reach(tmp_path: Path) -> None:
    """We are not even started then; its own exit code, and the mail, stay."""
    fill(tmp_path / "here", 1)
    before = snapshot(tmp_path / "here")
    assert tcpclient(f"127.0.0.1:{closed_port()}", tmp_path / "here", "-").returncode == 111
    assert snapshot(tmp_path / "here") == before
