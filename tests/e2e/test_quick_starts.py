"""README's quick starts do what they say, with real programs: what a newcomer copies first."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.documents import README, blocks, section
from tests.e2e.daemons import watching
from tests.helpers import add_message, closed_port, command, make_maildir, names, wait_until
from tests.receiving import delivered, receiver

CRON = section("Quick start: from cron, or when a link comes up")
SYSTEMD = section("Quick start: a daemon under systemd")
SSH = section("Quick start: over ssh")
BIN = Path(command()[0]).parent
#: What sshd does for the only command of a key: the client's words are not looked at.
SSH_STAND_IN = """#!/bin/sh
cd "$HOME" && exec {command}
"""

pytestmark = pytest.mark.skipif(
    not (BIN / "maildirqmtp").exists(), reason="NOT TESTED: the programs are not installed"
)


def commands(text: str) -> str:
    """Return the commands of the first block for a shell."""
    (block, *_) = [b for b in blocks("console", path=README) if b.text in text]
    return "\n".join(re.findall(r"(?m)^\$ (.*)$", block.text))


def shell(script: str, home: Path) -> subprocess.CompletedProcess[str]:
    """Run commands in a home, with the programs of this installation; the first failure ends it."""
    return subprocess.run(
        ["bash", "-ec", script],
        env=os.environ | {"HOME": str(home), "PATH": f"{home}/bin:{BIN}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=100,
    )


def test_from_cron(tmp_path: Path) -> None:
    """A maildir is made, a message is put in and shown, and is at the server after the run."""
    with receiver(tmp_path / "there") as (_, server):
        done = shell(commands(CRON).replace("mail.example.org", server), tmp_path)
        assert done.returncode == 0, done.stderr
        crontab = re.findall(r"`\S+ \* \* \* \* /usr/local/bin/(maildirqmtp [^`]*)`", CRON)
        assert len(crontab) == 1
        again = shell(crontab[0].replace("mail.example.org", server), tmp_path)
    assert (again.returncode, again.stdout + again.stderr) == (0, "")
    assert "you@example.net" in done.stdout
    assert delivered(tmp_path / "there") == [b"Subject: hello\n\nThe text.\n"]
    assert names(tmp_path / "Outgoing" / "new") == []


def test_a_daemon(tmp_path: Path) -> None:
    """By the second server of its file, where the first one is down."""
    (block,) = [b for b in blocks("toml", path=README) if b.text in SYSTEMD]
    outgoing = make_maildir(tmp_path / "Outgoing")
    with receiver(tmp_path / "there") as (_, server):
        down = f"127.0.0.1:{closed_port()}"
        text = block.text.replace("mx1.example.org", down).replace("mx2.example.org", server)
        assert text.count("127.0.0.1") == 2
        (tmp_path / "ann.toml").write_text(text)
        home = {"HOME": str(tmp_path)}
        with watching("--config", tmp_path / "ann.toml", environment=home) as daemon:
            add_message(outgoing, "1.a", b"Subject: x\n\nHi\n")
            wait_until(lambda: names(outgoing / "new") == [], "the message to be sent")
            assert daemon.stop() == 0
    assert delivered(tmp_path / "there") == [b"Subject: x\n\nHi\n"]


def test_over_ssh(tmp_path: Path) -> None:
    """The key's command is the receiver, and no other word of the client's has a say."""
    (forced,) = re.findall(r'(?m)^restrict,command="([^"]+)" ', SSH)
    add_message(make_maildir(tmp_path / "Outgoing"), "1.a", b"Subject: x\n\nHi\n")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "ssh").write_text(SSH_STAND_IN.format(command=forced))
    (tmp_path / "bin" / "ssh").chmod(0o755)
    done = shell(commands(SSH), tmp_path)
    assert done.returncode == 0, done.stderr
    assert delivered(tmp_path / "Maildir") == [b"Subject: x\n\nHi\n"]
