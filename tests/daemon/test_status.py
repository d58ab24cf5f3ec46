"""The daemon's status file: for its owner only, replaced as a whole, never through a link."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from maildirqmtp.daemon import status
from maildirqmtp.daemon.snapshot import Snapshot
from maildirqmtp.errors import LocalError
from maildirqmtp.forwarder.report import Counters
from maildirqmtp.forwarder.route import Route
from maildirqmtp.maildir.maildir import Maildir
from maildirqmtp.transport.endpoint import TcpEndpoint


def write(path: Path, state: str = "idle") -> None:
    """Write the status file of a route."""
    route = Route(os.fsencode(path), TcpEndpoint("mail.example.org"))
    status.write(Snapshot(route, state, Counters().as_dict()))


def the_file(path: Path) -> Path:
    """Return the path of the status file."""
    return path / ".maildirqmtp-status.json"


def test_the_file_is_for_its_owner_and_replaced_as_a_whole(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It names recipients' servers' answers; a reader finds the old or the new one."""
    write(path, "idle")
    assert the_file(path).stat().st_mode & 0o777 == 0o600
    rename = os.rename

    def watched(source: bytes, target: bytes, **folders: int) -> None:
        assert json.loads(the_file(path).read_text())["state"] == "idle"
        rename(source, target, **folders)

    monkeypatch.setattr(os, "rename", watched)
    write(path, "connected")
    assert json.loads(the_file(path).read_text())["state"] == "connected"
    assert len(list(path.glob(".maildirqmtp-status*"))) == 1


def test_it_is_never_written_through_a_link(path: Path, tmp_path: Path) -> None:
    """Whoever owns the maildir must not have root write into somebody else's file."""
    victim = tmp_path / "victim"
    victim.write_text("precious")
    the_file(path).symlink_to(victim)
    write(path)
    assert victim.read_text() == "precious"
    assert not the_file(path).is_symlink()


@pytest.mark.parametrize("forged", [None, 7, -1, True, [], {}, "a\nb@y", "\ud800", [1, "a\nb@y"]])
def test_forged_settings_are_none(path: Path, forged: object) -> None:
    """The maildir's owner writes the file, and root may tell senders by it."""
    with Maildir(os.fsencode(path)) as maildir:
        maildir.lock()
        content = dict.fromkeys(("sender", "default_sender", "recipients", "max_size"), forged)
        content |= {"version": 1, "pid": os.getpid(), "state": "idle", "prefix": "", "cur": forged}
        the_file(path).write_text(json.dumps(content))
        (found,) = status.settings_of(maildir, status.served(maildir)).values()
    assert found == {
        "include_cur": forged is True,
        "sender": None,
        "default_sender": None,
        "recipients": (),
        "max_bytes": 7 if forged == 7 else None,
    }


def test_what_cannot_be_written_is_said(path: Path) -> None:
    """With the path."""
    the_file(path).mkdir()
    with pytest.raises(LocalError, match=r"cannot write .*status\.json: "):
        write(path)
