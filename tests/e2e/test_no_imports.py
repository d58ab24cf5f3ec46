"""A daemon that can import nothing any more: out of descriptors, or upgraded below itself."""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.daemons import now_name, watching
from tests.helpers import (
    answer_all,
    by_recipient,
    command,
    importing_first,
    make_maildir,
    names,
    serving,
    wait_until,
)

#: What Python runs before the program: in a route's thread no import finds its file.
REFUSES = """
import errno, os, sys, threading

class Refusing:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if threading.current_thread() is not threading.main_thread():
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), name)

sys.meta_path.insert(0, Refusing)
"""

#: The same: no file of the package is there any more, as amid an upgrade.
UPGRADED = """
import os, sys

class Refusing:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if os.path.exists({!r}):
            raise ImportError(name)

sys.meta_path.insert(0, Refusing)
"""


@pytest.fixture
def refusing(tmp_path: Path) -> dict[str, str]:
    """Make the environment of a program in whose threads no import succeeds."""
    (tmp_path / "sitecustomize.py").write_text(REFUSES)
    return importing_first(tmp_path)


def deliver_to(maildir: Path, *recipients: str) -> None:
    """Put a message for each of them into new/."""
    for number, recipient in enumerate(recipients):
        message = maildir / "tmp" / now_name(number)
        message.write_text(f"Return-Path: <s@x>\nDelivered-To: {recipient}@y\n\nHi\n")
        message.rename(maildir / "new" / message.name)


@pytest.mark.parametrize("via", ["maildir", "server", "sendmail"])
def test_a_route_imports_nothing(
    maildir: Path, tmp_path: Path, refusing: dict[str, str], via: str
) -> None:
    """Else it ends with a traceback when a message is sent, deferred, refused or bounced."""
    how = f"maildir:{make_maildir(tmp_path / 'bounces')}" if via == "maildir" else via
    more = ("--warn-after=1s", "--keep-failed=1d", f"--metrics-file={tmp_path / 'metrics'}")
    make_maildir(maildir / ".Failed")
    flags = ("-v", "--json", "--bounce", "--bounce-via", how, "--sendmail", "/bin/true", *more)
    with (
        serving(answer_all(by_recipient)) as server,
        watching("--watch", *flags, maildir, server.address, environment=refusing) as daemon,
    ):
        deliver_to(maildir, "k", "z", "d")
        wait_until(lambda: len(names(maildir / "new")) == 1, "one that waits")
        wait_until((maildir / ".maildirqmtp-status.json").exists, "the status file")
        daemon.wait_for("d@y: bounced")
        wait_until((maildir / ".Failed" / ".maildirqmtp-clock").exists, "a look at what has failed")
        assert daemon.stop() == 0, daemon.log


def test_a_command_as_server_imports_nothing(
    maildir: Path, tmp_path: Path, refusing: dict[str, str]
) -> None:
    """Else the first message after the limit is reached is never sent."""
    there = tmp_path / "there"
    relay = "exec:" + shlex.join([*command("qmtpmaildir"), "--stdio", str(there)])
    with watching("--watch", maildir, relay, environment=refusing) as daemon:
        deliver_to(maildir, "k", "z")
        wait_until(lambda: names(maildir / "new") == [], "an empty new/")
        assert daemon.stop() == 0, daemon.log
    assert len(names(there / "new")) == 2


def test_hup_imports_nothing(
    maildir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After an upgrade of the package, the first server list ended the daemon with a traceback."""
    upgraded = tmp_path / "upgraded"
    (tmp_path / "sitecustomize.py").write_text(UPGRADED.format(str(upgraded)))
    config = tmp_path / "config.toml"
    route = f"[[route]]\nmaildir = '{maildir}'\nserver = "
    config.write_text(f"{route}'127.0.0.1:1'\n")
    with watching("--config", config, environment=importing_first(tmp_path)) as daemon:
        wait_until((maildir / ".maildirqmtp-status.json").exists, "the status file")
        upgraded.touch()
        config.write_text(f"{route}'127.0.0.1:1'\nmail-dir = 'x'\n")
        daemon.send(signal.SIGHUP)
        daemon.wait_for("unknown key 'mail-dir'")
        config.write_text(f"{route}['127.0.0.1:1', '127.0.0.1:2']\n")
        daemon.send(signal.SIGHUP)
        daemon.wait_for("the configuration has been read again")
        assert daemon.stop() == 0, daemon.log


def test_no_descriptor_is_left_at_the_end() -> None:
    """Python's own end would be SIGABRT here: pthread_exit has to load a library."""
    program = """
import os, resource, sys, threading, time
from maildirqmtp.__main__ import _exit

def turn():
    while True:
        time.sleep(0.0001)

threading.Thread(target=turn, daemon=True).start()
resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))
try:
    while True:
        os.dup(0)
except OSError:
    try:
        _exit(3)
    finally:
        os.write(2, b"Python's own end has begun")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (3, "")
