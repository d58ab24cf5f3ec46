"""mbsync renames messages to number them: none may lose its envelope, or be sent twice for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers import (
    Peer,
    add_message,
    add_sidecar,
    answer_all,
    make_maildir,
    names,
    run,
    serving,
    sidecar,
)


@pytest.fixture
def maildir(tmp_path: Path) -> Path:
    """An empty maildir of mbsync's, which keeps its state there."""
    path = make_maildir(tmp_path / "maildir")
    (path / ".uidvalidity").write_text("1700000000\n2\n")
    return path


@pytest.mark.parametrize("name", ["1.m,U=2", "1.m,S=40,W=42,U=2"])
@pytest.mark.parametrize("folder", ["new", "cur"])
def test_a_renamed_message_goes_to_whom_its_sidecar_says(
    maildir: Path, name: str, folder: str
) -> None:
    """Not to its header's recipient, who was never meant, or has it already."""
    add_message(maildir, name + (":2,S" if folder == "cur" else ""), b"\n", folder=folder)
    add_sidecar(maildir, "1.m", "s@x", "a@y")
    with serving(answer_all()) as server:
        assert run("--cur", maildir, server.address).returncode == 0
    (package,) = server.packages
    assert (package.sender, package.recipients) == (b"s@x", (b"a@y",))
    assert names(maildir / folder) == names(maildir / "envelope") == []


def test_who_is_done_stays_done_when_it_is_numbered_anew(maildir: Path) -> None:
    """mbsync does so where the server has a new UIDVALIDITY."""
    add_message(maildir, "1.m,U=2", b"\n")
    add_sidecar(maildir, "1.m", "s@x", "a@y", "later@y")
    answers = {b"a@y": b"Kok", b"later@y": b"Zbusy"}
    with serving(answer_all(lambda package, recipient: answers[recipient])) as server:
        assert run(maildir, server.address).returncode == 111
    assert sidecar(maildir, "1.m")["recipients"] == ["later@y"]
    (maildir / "new" / "1.m,U=2").rename(maildir / "new" / "1.m,U=3")
    with serving(answer_all()) as server:
        assert run(maildir, server.address).returncode == 0
    assert [package.recipients for package in server.packages] == [(b"later@y",)]
    assert names(maildir / "envelope") == []


@pytest.mark.parametrize("refused", [True, False])
def test_its_number_is_not_taken_to_another_maildir(
    maildir: Path, tmp_path: Path, refused: bool
) -> None:
    """There it is another message's; mbsync stops at a number that two messages have."""
    add_message(maildir, "1.m,S=40,U=2", b"\n")
    answer = b"Dno" if refused else b"Kok"
    with serving(answer_all(lambda package, recipient: answer)) as server:
        run("--sent", tmp_path / "sent", maildir, server.address)
    target = maildir / ".Failed" if refused else tmp_path / "sent"
    assert names(target / "new") == ["1.m,S=40"]
    if refused:
        assert sidecar(target, "1.m,S=40")["recipients"] == ["recipient@example.net"]


def renaming(move: Callable[[], object]) -> Callable[[Peer], None]:
    """Return a server's script: the message is renamed before it is answered."""

    def script(peer: Peer) -> None:
        assert peer.read_package() is not None
        move()
        peer.respond(b"Kok")
        while peer.read_package() is not None:
            peer.respond(b"Kok")

    return script


@pytest.mark.parametrize("to", ["new/1.m,U=2", "new/1.m,U=9", "cur/1.m,U=2:2,S"])
@pytest.mark.parametrize("before", ["1.m", "1.m,U=7"])
def test_a_message_that_is_renamed_while_it_is_sent_is_sent_once(
    maildir: Path, before: str, to: str
) -> None:
    """Its old name is gone, and under the new one the next run would send it again."""
    add_message(maildir, before, b"\n")
    add_sidecar(maildir, "1.m", "s@x", "a@y")
    move = renaming(lambda: (maildir / "new" / before).rename(maildir / to))
    with serving(move) as server:
        assert run("--cur", maildir, server.address).returncode == 0
        assert run("--cur", maildir, server.address).returncode == 0
    assert len(server.packages) == 1
    for folder in ("new", "cur", "envelope"):
        assert names(maildir / folder) == []
