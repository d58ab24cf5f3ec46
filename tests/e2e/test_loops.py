"""Mail loops: two machines that forward to each other must not do so for ever."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.helpers import (
    add_message,
    answer_all,
    command,
    make_maildir,
    names,
    run,
    serving,
    sidecar,
)

LOOP = b"Received: from a by b\n" * 100 + b"Subject: x\n\nhi\n"
NEARLY = b"Received: from a by b\n" * 99 + b"Subject: x\n\nReceived: in the text\n"


@pytest.fixture
def maildir(tmp_path: Path) -> Path:
    """A message in a loop, one that is not, and one behind them."""
    path = make_maildir(tmp_path / "maildir")
    add_message(path, "1.loop", LOOP)
    add_message(path, "2.nearly", NEARLY)
    add_message(path, "3.good", b"\n")
    return path


def test_a_message_in_a_loop_goes_to_the_failed_maildir(maildir: Path) -> None:
    """It is not sent once more, holds nothing up, and what is wrong is in its sidecar."""
    with serving(answer_all()) as server:
        assert run(maildir, server.address).returncode == 111
    assert [p.text for p in server.packages] == [NEARLY, b"\n"]
    assert names(maildir / "new") == []
    assert names(maildir / ".Failed" / "new") == ["1.loop"]
    (failure,) = sidecar(maildir / ".Failed", "1.loop")["failures"]
    assert failure["response"] == "Dmail loop: it has 100 Received lines (#5.4.6)"
    assert failure["recipient"] == "recipient@example.net"


@pytest.mark.parametrize("alone", [True, False])
def test_its_sender_is_told_where_bounces_are_sent(
    maildir: Path, tmp_path: Path, alone: bool
) -> None:
    """The server is not blamed, for it was not asked."""
    if alone:
        (maildir / "new" / "2.nearly").unlink()
        (maildir / "new" / "3.good").unlink()
    bounces = tmp_path / "bounces"
    with serving(answer_all()) as server:
        assert (
            run("--bounce", f"--bounce-via=maildir:{bounces}", maildir, server.address).returncode
            == 0
        )
    assert names(maildir / "new") == []
    (path,) = (bounces / "new").iterdir()
    text = path.read_bytes()
    assert b"Status: 5.4.6\n" in text
    assert b"mail loop: it has 100 Received lines" in text
    assert b"Remote-MTA" not in text


def test_its_bounce_goes_by_the_server_in_the_same_run(maildir: Path) -> None:
    """Left for the next run, exit code 0 would not be true."""
    (maildir / "new" / "2.nearly").unlink()
    (maildir / "new" / "3.good").unlink()
    with serving(answer_all()) as server:
        assert run("--bounce", "--bounce-via=server", maildir, server.address).returncode == 0
    (package,) = server.packages
    assert (package.sender, package.recipients) == (b"", (b"sender@example.org",))
    assert names(maildir / "new") == names(maildir / "envelope") == []


def test_the_receiver_refuses_a_message_in_a_loop(tmp_path: Path) -> None:
    """Two machines that both run it, and forward to each other, would keep it going too."""
    there = make_maildir(tmp_path / "there")
    packages = b"".join(
        b"%d:\n%b,3:s@x,6:3:r@y,," % (len(text) + 1, text) for text in (LOOP, NEARLY)
    )
    done = subprocess.run(
        [*command("qmtpmaildir"), "--stdio", there],
        input=packages,
        capture_output=True,
        timeout=60,
        check=False,
    )
    refused, taken = re.findall(rb"\d+:([KZD])([^,]*),", done.stdout)
    assert (refused[0], taken[0]) == (b"D", b"K")
    assert b"5.4.6" in refused[1]
    assert len(names(there / "new")) == 1
