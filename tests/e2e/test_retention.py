"""Mail that was kept for long enough goes: by runs, by the daemon, by several of them at once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.daemons import deliver, empties, watching
from tests.helpers import (
    add_message,
    add_sidecar,
    answer_all,
    by_recipient,
    command,
    importing_first,
    make_maildir,
    names,
    run,
    serving,
    sidecar,
    wait_until,
)

#: What Python runs before the program: the time of day is that of some days later, and, where it
#: is told to, the program is killed when it has removed messages and before their sidecars go.
LATER = """
import os, signal, time

now, fsync = time.time, os.fsync
time.time = lambda: now() + 86_400 * float(os.environ["DAYS"])

def killed(fd):
    if os.environ.get("KILL") and os.readlink(f"/proc/self/fd/{fd}").endswith(".Failed/new"):
        os.kill(os.getpid(), signal.SIGKILL)
    fsync(fd)

os.fsync = killed
"""


@pytest.fixture
def later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """For programs that run as many days later as DAYS says; two."""
    (tmp_path / "later").mkdir()
    (tmp_path / "later" / "sitecustomize.py").write_text(LATER)
    for name, value in importing_first(tmp_path / "later").items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("DAYS", "2")
    return monkeypatch


def test_sent_mail_goes_with_a_later_run(maildir: Path, tmp_path: Path) -> None:
    """In true time; what is sent by that run stays for its second."""
    sent = tmp_path / "sent"
    options = ("--sent", sent, "--keep-sent=1s", maildir)
    add_message(maildir, "1.a")
    with serving(answer_all()) as server:
        assert run(*options, server.address).returncode == 0
        assert names(sent / "new") == ["1.a"]

        def is_gone() -> bool:
            result = run(*options, server.address)
            assert result.returncode == 0
            if names(sent / "new"):
                return False
            assert f"maildirqmtp: keep-sent: 1 removed from {sent}" in result.stderr
            return True

        wait_until(is_gone, "a run that removes it")


def test_sent_mail_goes_while_a_daemon_runs(maildir: Path, tmp_path: Path) -> None:
    """Without anything else to wake it, and beside mail that comes."""
    sent = tmp_path / "sent"
    with (
        serving(answer_all()) as server,
        watching("--watch", "--sent", sent, "--keep-sent=1s", maildir, server.address) as daemon,
    ):
        for number in range(3):
            deliver(maildir, f"{number}.a")
            empties(maildir)
        wait_until(lambda: names(sent / "new") == [], f"an empty {sent}/new")
        deliver(maildir, "4.a")
        empties(maildir)
        wait_until(lambda: len(server.packages) == 4, "the fourth")
        assert daemon.stop() == 0, daemon.log
        removed = [line for line in daemon.log.splitlines() if "keep-sent: " in line]
        assert removed
        assert all(line.endswith(f" removed from {sent}") for line in removed)


def test_failed_mail_goes_by_the_time_of_the_configuration_file(
    maildir: Path, tmp_path: Path, later: pytest.MonkeyPatch
) -> None:
    """With its sidecar; what failed since, and what somebody has flagged, stays with theirs."""
    file = tmp_path / "routes.toml"
    failed = maildir / ".Failed"
    with serving(answer_all(by_recipient)) as server:
        later.setenv("DAYS", "0")
        for name in ("1.a", "2.b", "3.c"):
            add_message(maildir, name, recipient=b"d@y")
        assert run("--no-bounce", maildir, server.address).returncode == 111
        (failed / "new" / "2.b").rename(failed / "cur" / "2.b:2,FS")
        later.setenv("DAYS", "2")
        file.write_text(
            f'[defaults]\nserver = "{server.address}"\nkeep-failed = "1d"\n'
            f'[[route]]\nmaildir = "{maildir}"\n'
        )
        with watching("--config", file) as daemon:
            daemon.wait_for(f"keep-failed: 2 removed from {failed}")
            add_message(maildir, "4.d", recipient=b"d@y", folder="tmp")
            (maildir / "tmp" / "4.d").rename(maildir / "new" / "4.d")
            wait_until(lambda: names(failed / "new") == ["4.d"], "the failed message")
            assert daemon.stop() == 0, daemon.log
    assert (names(failed / "new"), names(failed / "cur")) == (["4.d"], ["2.b:2,FS"])
    assert names(failed / "envelope") == ["2.b.json", "4.d.json"]


def test_killed_between_messages_and_sidecars(
    maildir: Path, tmp_path: Path, later: pytest.MonkeyPatch
) -> None:
    """What is left has its sidecar: sent again, it goes to whom that names. The next run cleans."""
    failed = make_maildir(maildir / ".Failed")
    for name in ("1.a", "2.b:2,F"):
        add_message(failed, name, folder="cur", recipient=b"wrong@y")
        add_sidecar(failed, name.partition(":")[0], "s@x", "right@y")
    later.setenv("KILL", "1")
    with serving(answer_all()) as server:
        options = ("--keep-failed=1d", maildir, server.address)
        killed = run(*options)
        assert killed.returncode == -signal.SIGKILL
        assert (names(failed / "cur"), names(failed / "envelope")) == (
            ["2.b:2,F"],
            ["1.a.json", "2.b.json"],
        )
        later.delenv("KILL")
        assert run(*options).returncode == 0
        assert names(failed / "envelope") == ["2.b.json"]
        assert sidecar(failed, "2.b")["recipients"] == ["right@y"]
        resend = [*command("qmtpq"), "resend", str(maildir), "--all"]
        subprocess.run(resend, check=True, capture_output=True)
        assert run(*options).returncode == 0
    assert [package.recipients for package in server.packages] == [(b"right@y",)]
    assert names(failed / "cur") == names(failed / "envelope") == []


def test_several_at_once_remove_each_message_once(
    tmp_path: Path, later: pytest.MonkeyPatch
) -> None:
    """Routes of different maildirs may share one for what has failed."""
    failed = make_maildir(tmp_path / "failed")
    for number in range(500):
        add_message(failed, f"1.{number}")
        add_sidecar(failed, f"1.{number}", "s@x", "r@y")
    processes = []
    for number in range(4):
        box = make_maildir(tmp_path / f"M{number}")
        options = ["--json", f"--failed={failed}", "--keep-failed=1d", str(box), "127.0.0.1:1"]
        processes.append(
            subprocess.Popen(
                [*command(), *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
        )
    removed = 0
    for process in processes:
        data, log = process.communicate(timeout=60)
        assert process.returncode == 0, log
        assert "Traceback" not in log
        events = [json.loads(line) for line in data.splitlines()]
        removed += sum(e["messages"] for e in events if e["event"] == "expired")
        assert not [e for e in events if e["event"] == "warning"]
    assert removed == 500
    assert names(failed / "new") == []
    wait_until(lambda: _cleaned(failed, options), "a look that finds the last sidecars")


def _cleaned(failed: Path, options: list[str]) -> bool:
    """Look once more, as one does six hours later; say whether no sidecar is left."""
    (failed / ".maildirqmtp-clock").unlink(missing_ok=True)
    assert run(*options).returncode == 0
    return names(failed / "envelope") == []


def test_a_run_without_it_loads_nothing_for_it(maildir: Path, tmp_path: Path) -> None:
    """cron finds most maildirs empty, and that should cost next to nothing."""
    program = [sys.executable, "-X", "importtime", "-m", "maildirqmtp"]
    options = ["--sent", str(tmp_path / "sent"), str(maildir), "127.0.0.1:1"]
    loaded = subprocess.run([*program, *options], capture_output=True, text=True, check=True).stderr
    assert "maildirqmtp.maildir.cleanup" in loaded
    for module in ("forwarder.retention", "maildir.expiry", "maildir.trusted_clock"):
        assert f"maildirqmtp.{module}" not in loaded
    asked = subprocess.run(
        [*program, "--keep-sent=30d", *options], capture_output=True, text=True, check=True
    ).stderr
    assert "maildirqmtp.forwarder.retention" in asked
    assert not os.path.lexists(tmp_path / "sent")
