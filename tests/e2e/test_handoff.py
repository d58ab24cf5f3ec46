"""The installed receiver in front of another mail server, or of a command."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from maildirqmtp.qmtp.protocol import ResponseReader, package_head, package_tail
from tests.helpers import (
    DEADLINE_S,
    add_message,
    add_sidecar,
    closed_port,
    command,
    ignoring_sigchld,
    make_maildir,
    sidecar,
    wait_until,
)
from tests.scripted_smtp import scripted_server

TEXT = b"Subject: x\n\n.dots\n"


@contextlib.contextmanager
def receiving(*words: str) -> Iterator[str]:
    """Run the receiver; where it listens. It has to end well."""
    listen = [*command("qmtpmaildir"), "--listen", "127.0.0.1:0", *words]
    with subprocess.Popen(listen, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        try:
            match = re.fullmatch(rb"qmtpmaildir: listening on (.+)\n", process.stderr.readline())
            assert match is not None
            yield match[1].decode()
        finally:
            process.terminate()
            process.stderr.read()
            assert process.wait(DEADLINE_S) == 0


def forward(maildir: Path, server: str) -> int:
    """Flush a maildir; the exit code."""
    words = [*command(), "--no-bounce", "-q", str(maildir), server]
    return subprocess.run(words, timeout=DEADLINE_S, check=False).returncode


def message(maildir: Path, *recipients: str) -> None:
    make_maildir(maildir)
    add_sidecar(maildir, "1.x", "s@example.org", *recipients)
    add_message(maildir, "1.x", TEXT, None, None)


def test_lmtp(tmp_path: Path) -> None:
    """Each recipient has their own answer, and the sender keeps what is still owed."""
    script = {
        "RCPT": [b"250 ok\r\n", b"550 5.1.1 no such user\r\n", b"250 ok\r\n"],
        "text": [b"250 2.0.0 saved\r\n", b"452 4.2.2 mailbox full\r\n"],
    }
    path, maildir = tmp_path / "lmtp", tmp_path / "out"
    message(maildir, "ann@x.org", "nobody@x.org", "full@x.org")
    with (
        scripted_server(script, lmtp=True, path=path) as server,
        receiving("--deliver", f"lmtp:unix:{path}") as where,
    ):
        assert forward(maildir, where) == 111
    (text,) = server.texts
    assert text.startswith(b"Received: from [127.0.0.1] by ")
    assert text.endswith(b"\r\nSubject: x\r\n\r\n..dots\r\n")
    assert sidecar(maildir, "1.x")["recipients"] == ["full@x.org"]
    (failure,) = sidecar(maildir / ".Failed", "1.x")["failures"]
    assert failure["recipient"] == "nobody@x.org"
    assert failure["response"].startswith("D550 5.1.1 no such user")


def test_smtp_and_a_server_that_is_down(tmp_path: Path) -> None:
    """Its mail waits at the sender, and goes once the server is there."""
    maildir = tmp_path / "out"
    message(maildir, "ann@x.org", "bob@x.org")
    port = closed_port()
    with receiving("--deliver", f"smtp:127.0.0.1:{port}") as where:
        assert forward(maildir, where) == 111
        assert sidecar(maildir, "1.x")["recipients"] == ["ann@x.org", "bob@x.org"]
    with (
        scripted_server(port=port) as server,
        receiving("--deliver", f"smtp:127.0.0.1:{port}") as where,
    ):
        assert forward(maildir, where) == 0
        assert len(server.texts) == 1


def test_a_command(tmp_path: Path) -> None:
    """It gets the text as it came, and says who may have it."""
    program = tmp_path / "deliver"
    program.write_text(
        f"#!{sys.executable}\nimport sys\nto = sys.argv[1].partition('@')[0]\n"
        f"open({str(tmp_path)!r} + '/' + to, 'w').write(sys.stdin.read())\n"
        "sys.exit({'nobody': 67, 'later': 75}.get(to, 0))\n"
    )
    program.chmod(0o755)
    maildir = tmp_path / "out"
    message(maildir, "ann@x.org", "nobody@x.org", "later@x.org")
    with receiving("--deliver", f"exec:{program} {{recipient}}") as where:
        assert forward(maildir, where) == 111
    assert (tmp_path / "ann").read_bytes().endswith(b"\nSubject: x\n\n.dots\n")
    assert sidecar(maildir, "1.x")["recipients"] == ["later@x.org"]
    (failure,) = sidecar(maildir / ".Failed", "1.x")["failures"]
    assert "exit code 67" in failure["response"]


def test_a_receiver_that_is_killed_leaves_no_half_message(tmp_path: Path) -> None:
    """Its command went on with what it had of the text, and delivered that as the whole."""
    program, size = tmp_path / "deliver", tmp_path / "size"
    program.write_text(
        f"#!{sys.executable}\nimport os, sys, time\nfrom pathlib import Path\n"
        f"home = Path({str(tmp_path)!r})\n(home / 'begun').touch()\n"
        "while not (home / 'go').exists(): time.sleep(0.01)\n"
        "(home / 'part').write_text(str(len(sys.stdin.buffer.read())))\n"
        "(home / 'part').rename(home / 'size')\n"
    )
    program.chmod(0o755)
    words = [*command("qmtpmaildir"), "--stdio", "--relay", "--deliver"]
    package = package_head(1_000_000) + bytes(1_000_000) + package_tail(b"s@x", (b"ann@x",))
    with subprocess.Popen(
        [*words, f"exec:{program} {{recipient}}"], stdin=subprocess.PIPE
    ) as receiver:
        assert receiver.stdin is not None
        receiver.stdin.write(package)
        receiver.stdin.flush()
        wait_until((tmp_path / "begun").exists, "the command")
        receiver.kill()
    (tmp_path / "go").touch()
    wait_until(size.exists, "what the command has read")
    assert int(size.read_text()) > 1_000_000


def test_a_command_is_heard_where_the_parent_ignores_sigchld(tmp_path: Path) -> None:
    """The exit code was taken for 0: K was said for mail that the command had refused or lost."""
    words = [*command("qmtpmaildir"), "--stdio", "--relay", "--deliver"]
    how = "exec:sh -c 'cat > /dev/null; case $0 in later*) exit 75; esac' {recipient}"
    package = package_head(3) + b"hi\n" + package_tail(b"s@x", (b"later@x", b"ann@x"))
    done = subprocess.run(
        ignoring_sigchld([*words, how]),
        input=package,
        capture_output=True,
        timeout=DEADLINE_S,
        check=False,
    )
    reader = ResponseReader()
    reader.feed(done.stdout)
    assert [str(reader.next()) for _ in range(2)] == [
        "Z451 sh: exit code 75 (#4.3.0)",
        "Kok, sh has it",
    ]
    assert done.returncode == 0


def test_once_over_a_restart(tmp_path: Path) -> None:
    """What the memory has is sent again after the receiver was started anew."""
    memory = ["--once", "1d", "--once-file", str(tmp_path / "once")]
    with scripted_server(lmtp=True) as server:
        for name in ("a", "b"):
            message(tmp_path / name, "ann@x.org", *(["bob@x.org"] if name == "b" else []))
            how = f"lmtp:127.0.0.1:{server.port}"
            with receiving("--deliver", how, *memory) as where:
                assert forward(tmp_path / name, where) == 0
        told = [c.commands for c in server.conversations]
    assert [c for commands in told for c in commands if c.startswith(b"RCPT")] == [
        b"RCPT TO:<ann@x.org>",
        b"RCPT TO:<bob@x.org>",
    ]


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--deliver", "lmtp:unix:/x", "maildir"], "one of DIR, --queue DIR and --deliver HOW"),
        (["--deliver", "lmtp:unix:/x", "--queue", "q"], "one of DIR"),
        (["--deliver", "mx.example.org"], "--deliver 'mx.example.org': write lmtp:HOST:PORT"),
        (["--deliver", "exec:cat"], "does not learn whom the mail is for"),
        (["--deliver-connections", "3", "maildir"], "only with --deliver"),
        (["--deliver-plain", "maildir"], "only with --deliver"),
        (["--deliver", "smtp:x", "--deliver-connections", "0"], "--deliver-connections: from 1"),
        (["--deliver", "exec:x {recipient}", "--deliver-plain"], "only for smtp: and lmtp:"),
        (["--deliver-ca", "ca.pem", "maildir"], "only with --deliver"),
        (["--deliver", "exec:x {recipient}", "--deliver-ca", "x"], "only for smtp: and lmtp:"),
        (["--deliver", "lmtp:unix:/x", "--deliver-ca", "x"], "a Unix socket needs none"),
        (["--deliver", "smtp:x", "--deliver-ca", "x", "--deliver-plain"], "one or the other"),
        (["--deliver", "smtp:x", "--deliver-ca", "none"], "cannot use the certificate authority"),
        (["--deliver", "smtp:x", "--once", "1d"], "--once-file"),
        (["--once-file", "x", "maildir"], "only with --once"),
        (["--once", "0", "maildir"], "--once: more than nothing"),
        (["--once", "x", "maildir"], "--once"),
        (["--once", "1d", "--stdio", "maildir"], "not with --stdio"),
        (["--deliver", "smtp:x", "--stdio"], "--relay"),
        (["--deliver", "smtp:x", "--listen", "0.0.0.0:0"], "--domain"),
    ],
)
def test_wrong_usage(tmp_path: Path, words: list[str], complaint: str) -> None:
    """Exit code 100, and a word about what to write instead; nobody relays by accident."""
    listen = [] if "--listen" in words or "--stdio" in words else ["--listen", "127.0.0.1:0"]
    done = subprocess.run(
        [*command("qmtpmaildir"), *listen, *words],
        cwd=tmp_path,
        stdin=subprocess.PIPE,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert done.returncode == 100, done.stderr
    assert complaint in done.stderr
