"""`--sent` and the failed maildir, while an administrator moves, empties or removes them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.daemons import deliver, empties, watching
from tests.helpers import Peer, add_message, answer_all, make_maildir, names, run, serving


def _remove(target: Path) -> None:
    shutil.rmtree(target)


def _empty(target: Path) -> None:
    for part in target.iterdir():
        shutil.rmtree(part)


def _move(target: Path) -> None:
    target.rename(f"{target}.old")


def _replace(target: Path) -> None:
    _move(target)
    make_maildir(target)


WAYS = [_remove, _empty, _move, _replace]


@pytest.mark.parametrize("answer", [b"Kok", b"Dno"])
@pytest.mark.parametrize("way", WAYS)
def test_mail_is_kept_where_the_log_says(
    maildir: Path, tmp_path: Path, way: Callable[[Path], None], answer: bytes
) -> None:
    """Beside a daemon: in a directory that was moved away nobody looks for it."""
    sent = tmp_path / "sent"
    target = sent if answer == b"Kok" else maildir / ".Failed"
    flags = ("--watch", "--rescan", "1", "--sent", sent)
    with (
        serving(answer_all(lambda *_: answer)) as server,
        watching(*flags, maildir, server.address) as daemon,
    ):
        deliver(maildir, "1.a")
        empties(maildir)
        way(target)
        deliver(maildir, "2.a")
        empties(maildir)
        assert names(target / "new") == ["2.a"]
        assert daemon.stop() == 0
        assert f"{target} was renamed, removed or replaced" in daemon.log
    assert len(server.packages) == 2, "each is sent once"


def test_an_archive_that_is_removed_amid_a_run_has_all_that_comes_then(
    maildir: Path, tmp_path: Path
) -> None:
    """The server has these messages: it must not get them again because of it."""
    sent = make_maildir(tmp_path / "sent")
    for number in range(5):
        add_message(maildir, f"{number}.a")

    def script(peer: Peer) -> None:
        while peer.read_package():
            if sent.exists() and not names(sent / "new"):
                shutil.rmtree(sent)
            peer.respond(b"Kok")

    with serving(script) as server:
        result = run("--sent", sent, maildir, server.address)
    assert result.returncode == 0
    assert len(server.packages) == 5
    assert names(maildir / "new") == []
    assert "4.a" in names(sent / "new")


def test_an_archive_without_a_place_stops_the_taking(maildir: Path, tmp_path: Path) -> None:
    """What the server has is not sent again, and goes where it belongs once there is a place."""
    box = tmp_path / "box"
    sent = make_maildir(box / "sent")
    flags = ("--watch", "--rescan", "1", "--sent", sent)
    with (
        serving(answer_all()) as server,
        watching(*flags, maildir, server.address) as daemon,
    ):
        deliver(maildir, "1.a")
        empties(maildir)
        shutil.rmtree(box)
        deliver(maildir, "2.a")
        daemon.wait_for("nothing more is taken from this maildir")
        # It looks now and then whether files can be made and removed there.
        assert [n for n in names(maildir / "new") if not n.startswith(".")] == ["2.a"]
        make_maildir(sent)
        empties(maildir)
        assert names(sent / "new") == ["2.a"]
        daemon.wait_for("can be changed again")
        assert daemon.stop() == 0, "nothing is left undone"
    assert len(server.packages) == 2


@pytest.mark.parametrize("answer", [b"Kok", b"Dno", b"Zlater"])
@pytest.mark.parametrize("flags", [(), ("--bounce",), ("--sent", "sent")])
def test_a_message_that_its_user_removes_in_flight_is_no_failure(
    maildir: Path, tmp_path: Path, answer: bytes, flags: tuple[str, ...]
) -> None:
    """Nothing is left of it: a run by cron must not write to its user of one that is held."""
    add_message(maildir, "1.a")

    def script(peer: Peer) -> None:
        while peer.read_package():
            (maildir / "new" / "1.a").unlink()
            peer.respond(answer)

    options = tuple(str(tmp_path / f) if f == "sent" else f for f in flags)
    with serving(script) as server:
        result = run(*options, "--sendmail", "/bin/false", maildir, server.address)
    assert result.returncode == 0, result.stderr
    assert "0 deferred, 0 failed, 0 held" in result.stderr
    if answer != b"Kok":
        assert "1.a was removed while it was being sent" in result.stderr
        assert f"neither tried again nor bounced: {answer[1:].decode()}" in result.stderr
