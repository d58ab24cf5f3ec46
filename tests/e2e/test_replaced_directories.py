"""Directories of a maildir that are moved away, replaced or restored beside a run that has them."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.e2e.daemons import Running, deliver, empties, watching
from tests.helpers import (
    Package,
    ScriptedServer,
    add_message,
    add_sidecar,
    answer_all,
    by_recipient,
    command,
    names,
    run,
    serving,
    sidecar,
    wait_until,
)


def made_anew(path: Path) -> None:
    """Remove it while it is empty and make it again, as programs do that tidy up."""
    path.rmdir()
    path.mkdir()


def replaced(path: Path) -> None:
    """Move it away and put another there."""
    path.rename(path.with_name("old"))
    path.mkdir()


def restored(path: Path) -> None:
    """Put a copy of it there, as a backup does."""
    shutil.copytree(path, path.with_name("copy"))
    path.rename(path.with_name("old"))
    path.with_name("copy").rename(path)


def with_sidecar(maildir: Path, name: str) -> None:
    """Put in a message whose header names somebody else than its sidecar."""
    add_sidecar(maildir, name, "s@x", "sidecar@y")
    deliver(maildir, name)


def recipients(server: ScriptedServer) -> list[bytes]:
    """Return to whom it got messages, in order."""
    return [recipient for package in server.packages for recipient in package.recipients]


@contextmanager
def at_work(maildir: Path) -> Iterator[tuple[ScriptedServer, Running]]:
    """Run a daemon that has sent one message, with an empty directory of sidecars."""
    (maildir / "envelope").mkdir()
    with (
        serving(answer_all()) as server,
        watching("--watch", maildir, server.address) as daemon,
    ):
        deliver(maildir, "1.m")
        empties(maildir)
        yield server, daemon


@pytest.mark.parametrize("how", [made_anew, replaced, restored])
def test_sidecars_count_in_a_directory_that_was_replaced_beside_a_daemon(
    maildir: Path, how: Callable[[Path], None]
) -> None:
    """The mail went to whom its header names, and the sidecar stayed behind."""
    with at_work(maildir) as (server, daemon):
        how(maildir / "envelope")
        with_sidecar(maildir, "2.m")
        empties(maildir)
        assert recipients(server)[1:] == [b"sidecar@y"]
        assert daemon.stop() == 0
    assert names(maildir / "envelope") == []


def test_what_is_enqueued_goes_after_the_empty_directory_of_sidecars_was_removed(
    maildir: Path,
) -> None:
    """It waited in new/, held for want of an envelope, until the daemon was restarted."""
    with at_work(maildir) as (server, daemon):
        (maildir / "envelope").rmdir()
        who = ("--sender", "s@x", "--recipient", "sidecar@y")
        enqueue = [*command(), "--enqueue", os.fspath(maildir), *who]
        subprocess.run(enqueue, input=b"Subject: x\n\nhi\n", check=True, timeout=90)
        empties(maildir)
        assert recipients(server)[1:] == [b"sidecar@y"]
        assert daemon.stop() == 0


def test_nothing_goes_by_its_header_while_sidecars_cannot_be_looked_for(maildir: Path) -> None:
    """A link in the place of the directory is not followed; once it is gone, all goes on."""
    envelope = maildir / "envelope"
    envelope.mkdir()
    with (
        serving(answer_all()) as server,
        watching("--watch", maildir, server.address, "--rescan", "0.2") as daemon,
    ):
        deliver(maildir, "1.m")
        empties(maildir)
        envelope.rename(maildir / "elsewhere")
        envelope.symlink_to("elsewhere")
        with_sidecar(maildir, "2.m")
        daemon.wait_for("envelope: it is a symbolic link, which is not followed")
        assert len(server.packages) == 1
        envelope.unlink()
        (maildir / "elsewhere").rename(envelope)
        empties(maildir)
        assert recipients(server)[1:] == [b"sidecar@y"]
        assert daemon.stop() == 0


def amid(change: Callable[[], object]) -> Callable[[Package, bytes], bytes]:
    """Return a server's answers; before the first one something happens."""
    changes = [change]

    def answer(package: Package, recipient: bytes) -> bytes:
        while changes:
            changes.pop()()
        return by_recipient(package, recipient)

    return answer


@pytest.mark.parametrize("had_one", [False, True])
def test_sidecars_count_that_come_amid_a_run(maildir: Path, had_one: bool) -> None:
    """Also the first ones of a maildir: that of the message in flight, and that of a new one."""
    if had_one:
        (maildir / "envelope").mkdir()
    add_message(maildir, "1.m", recipient=b"k@y")

    def change() -> None:
        if had_one:
            replaced(maildir / "envelope")
        add_sidecar(maildir, "1.m", "s@x", "k1@y")
        add_sidecar(maildir, "2.m", "s@x", "k2@y")
        deliver(maildir, "2.m")

    with serving(answer_all(amid(change))) as server:
        assert run(maildir, server.address).returncode == 0
    assert recipients(server)[0] == b"k@y"
    assert sorted(recipients(server)[1:]) == [b"k1@y", b"k2@y"]
    assert names(maildir / "new") == names(maildir / "envelope") == []


@pytest.mark.parametrize("how", [replaced, restored])
def test_who_has_a_message_does_not_get_it_again_where_its_sidecar_was_moved(
    maildir: Path, how: Callable[[Path], None]
) -> None:
    """The sidecar of those still owed was written where nobody looks."""
    add_message(maildir, "1.m")
    add_sidecar(maildir, "1.m", "s@x", "k@y", "z@y")
    with serving(answer_all(amid(lambda: how(maildir / "envelope")))) as server:
        assert run(maildir, server.address).returncode == 111
        assert sidecar(maildir, "1.m")["recipients"] == ["z@y"]
        assert run(maildir, server.address).returncode == 111
    assert recipients(server) == [b"k@y", b"z@y", b"z@y"]


@pytest.mark.parametrize("part", ["new", "cur", ""])
def test_a_run_whose_maildir_is_replaced_says_that_mail_may_be_left(
    maildir: Path, part: str
) -> None:
    """Exit 0 told a script that all mail had gone, and the new directory was full of it."""
    add_message(maildir, "1.m", recipient=b"k1@y")

    def change() -> None:
        replaced(maildir / part)
        for name in ("tmp", "new", "cur"):
            (maildir / name).mkdir(exist_ok=True)
        add_message(maildir, "2.m", recipient=b"k2@y", folder="cur" if part == "cur" else "new")

    with serving(answer_all(amid(change))) as server:
        result = run("--cur", maildir, server.address)
        assert result.returncode == 111
        assert f"{maildir} was renamed, replaced or mounted over during this run" in result.stderr
        assert run("--cur", maildir, server.address).returncode == 0
    assert recipients(server) == [b"k1@y", b"k2@y"]


def test_a_run_whose_maildir_is_removed_says_so(maildir: Path) -> None:
    """Whatever was in it, this run cannot say that it has gone."""
    add_message(maildir, "1.m", recipient=b"k@y")
    with serving(answer_all(amid(lambda: shutil.rmtree(maildir)))) as server:
        result = run(maildir, server.address)
    wait_until(lambda: len(server.packages) == 1, "the message")
    assert result.returncode == 111
    assert "during this run" in result.stderr
    assert not os.path.lexists(maildir)
