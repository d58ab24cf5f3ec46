"""A sendmail that hangs, as a laptop's does without a link: it keeps nobody, and loses nothing."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.daemons import watching
from tests.helpers import (
    DEADLINE_S,
    Peer,
    add_message,
    answer_all,
    command,
    make_maildir,
    make_older,
    names,
    run,
    runs,
    serving,
    start,
    wait_until,
)
from tests.serial import client

TERM, INT, HUP = signal.SIGTERM, signal.SIGINT, signal.SIGHUP


class HungMailer:
    """A sendmail that never comes back, and whatever it has started."""

    def __init__(self, home: Path) -> None:
        home.mkdir()
        self.command = os.fspath(home / "sendmail")
        self._pids = home / "pids"
        Path(self.command).write_text(
            f"#!/bin/sh\necho $$ >>{self._pids}.new\nsh -c 'echo $$ >>{self._pids}.new; "
            f"mv {self._pids}.new {self._pids}; exec sleep 1000'\nexit 0\n"
        )
        os.chmod(self.command, 0o755)

    @property
    def pids(self) -> list[int]:
        """The processes of its last run, none before all of them are there."""
        with contextlib.suppress(FileNotFoundError):
            return [int(pid) for pid in self._pids.read_text().split()]
        return []

    def wait_until_run(self) -> None:
        """Wait until it hangs."""
        wait_until(lambda: self.pids != [], "the mailer to be run")

    def check_gone(self) -> None:
        """Nothing of it is left running."""
        assert len(self.pids) == 2
        for pid in self.pids:
            wait_until(lambda pid=pid: not runs(pid), "the mailer to end")  # type: ignore[misc]

    def end(self) -> None:
        """Leave nothing behind, also where a test has failed."""
        for pid in self.pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@pytest.fixture
def mailer(tmp_path: Path) -> Iterator[HungMailer]:
    """One that has not been run."""
    made = HungMailer(tmp_path / "mailer")
    yield made
    made.end()


def refuse_first(peer: Peer) -> None:
    """Refuse the first of six messages, and take the others, all at the same time."""
    for _ in range(6):
        assert peer.read_package()
    peer.respond(b"Dno", *[b"Kok"] * 5)
    assert peer.read_package() is None


@pytest.fixture
def outgoing(tmp_path: Path) -> Path:
    """A message that is refused, and others that are taken, younger."""
    maildir = make_maildir(tmp_path / "outgoing")
    add_message(maildir, "1.bad", recipient=b"bad@y")
    for number in range(2, 7):
        add_message(maildir, f"{number}.ok", recipient=b"ok@y")
    return maildir


def check_sent_once(maildir: Path) -> None:
    """The next run sends the refused message, and nothing else."""
    with serving(answer_all()) as server:
        assert run(maildir, server.address).returncode == 0
    assert [package.recipients for package in server.packages] == [(b"bad@y",)]


# The first gives the mailer five seconds, the second none.
@pytest.mark.parametrize("numbers", [(TERM,), (TERM, INT)], ids=["once", "twice"])
def test_a_run_that_is_told_to_stop_ends(
    outgoing: Path, mailer: HungMailer, numbers: tuple[signal.Signals, ...]
) -> None:
    """And what the server has taken is not sent again by the next."""
    words = ["--bounce", "--sendmail", mailer.command, os.fspath(outgoing)]
    with serving(refuse_first) as server, start(*words, server.address) as process:
        mailer.wait_until_run()
        wait_until(lambda: names(outgoing / "new") == ["1.bad"], "what was accepted to go")
        for number in numbers:
            process.send_signal(number)
        _, stderr = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 111
    assert "sendmail was ended, for this was told to stop; it is tried again" in stderr
    mailer.check_gone()
    assert names(outgoing / "new") == ["1.bad"]
    check_sent_once(outgoing)


@pytest.mark.parametrize("numbers", [(TERM,), (TERM, TERM)], ids=["once", "twice"])
def test_a_daemon_that_is_told_to_stop_ends(
    outgoing: Path, mailer: HungMailer, numbers: tuple[signal.Signals, ...]
) -> None:
    """It leaves no sendmail behind; an exit code of 0, or 111 for a second signal."""
    words = ["--watch", "--bounce", "--sendmail", mailer.command, os.fspath(outgoing)]
    with serving(refuse_first) as server, watching(*words, server.address) as daemon:
        mailer.wait_until_run()
        wait_until(lambda: names(outgoing / "new") == ["1.bad"], "what was accepted to go")
        for number in numbers:
            daemon.send(number)
            daemon.wait_for("stopping; what is in flight")
        assert daemon.process.wait(DEADLINE_S) in (0, 111)
        assert "did not end in time" not in daemon.log
    mailer.check_gone()
    check_sent_once(outgoing)


def test_a_warning_that_hangs_does_not_outlive_its_run(tmp_path: Path, mailer: HungMailer) -> None:
    """The run ended at once, and the mailer went on in the background."""
    maildir = make_maildir(tmp_path / "late")
    add_message(maildir, "1.late")
    make_older(maildir / "new" / "1.late", 7_200)
    words = ["--warn-after", "1h", "--bounce", "--sendmail", mailer.command, os.fspath(maildir)]
    later = answer_all(lambda *_: b"Zlater")
    with serving(later) as server, start(*words, server.address) as process:
        mailer.wait_until_run()
        process.send_signal(TERM)
        process.send_signal(INT)
        _, stderr = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 111
    assert "no warning of a delay can be sent" in stderr
    mailer.check_gone()
    assert names(maildir / "new") == ["1.late"]


def test_maildirserial_that_is_told_to_stop_ends(tmp_path: Path, mailer: HungMailer) -> None:
    """As the other programs do, and the message stays."""
    maildir = make_maildir(tmp_path / "classic")
    add_message(maildir, "1.bad", recipient=b"p-bad@y")
    words = [*command("maildirserial"), "-b", "--sendmail", mailer.command, str(maildir), "p-"]
    no = client("for name in names(): say(name, b'D5.1.1 no')")
    with subprocess.Popen([*words, *no], stderr=subprocess.PIPE) as process:
        mailer.wait_until_run()
        process.send_signal(TERM)
        _, stderr = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 111, stderr
    mailer.check_gone()
    assert names(maildir / "new") == ["1.bad"]


@pytest.mark.parametrize("numbers", [(HUP,), (TERM, INT)], ids=["once", "twice"])
def test_qmtpq_bounce_that_is_told_to_stop_leaves_nothing_on_hold(
    tmp_path: Path, mailer: HungMailer, numbers: tuple[signal.Signals, ...]
) -> None:
    """As when the remote session ends: no administrator would know why the mail waits."""
    maildir = make_maildir(tmp_path / "waiting")
    add_message(maildir, "1.a")
    add_message(maildir, "2.b")
    words = ["bounce", "--yes", "--sendmail", mailer.command, str(maildir), "1.a", "2.b"]
    with subprocess.Popen(
        [*command("qmtpq"), *words],
        stderr=subprocess.PIPE,
        # Whoever has started us may ignore them.
        preexec_fn=lambda: [signal.signal(number, signal.SIG_DFL) for number in (TERM, INT, HUP)],
    ) as process:
        mailer.wait_until_run()
        for number in numbers:
            process.send_signal(number)
        _, stderr = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 111
    assert b"new/1.a: " in stderr
    assert b"sendmail was ended, for this was told to stop" in stderr
    assert b"the messages that are left stay as they are" in stderr
    mailer.check_gone()
    with serving(answer_all()) as server:
        assert run(maildir, server.address).returncode == 0
    assert len(server.packages) == 2
