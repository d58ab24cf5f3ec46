"""serialmail's form, with a prefix: read mail goes as well, and mail for others is counted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.e2e.daemons import watching
from tests.helpers import (
    add_message,
    answer_all,
    closed_port,
    make_maildir,
    names,
    run,
    serving,
    wait_until,
)


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """A maildir as a mail reader leaves it: new, read, trashed, a draft, and one for others."""
    path = make_maildir(tmp_path / "Maildir")
    add_message(path, "1.new", recipient=b"p-new@y")
    add_message(path, "2.read:2,RS", recipient=b"p-read@y", folder="cur")
    add_message(path, "3.plain", recipient=b"p-plain@y", folder="cur")
    add_message(path, "4.trash:2,ST", recipient=b"p-trash@y", folder="cur")
    add_message(path, "5.draft:2,D", recipient=b"p-draft@y", folder="cur")
    add_message(path, "6.other:2,S", recipient=b"other@y", folder="cur")
    return path


LEFT = ["4.trash:2,ST", "5.draft:2,D", "6.other:2,S"]


def test_the_classic_form_takes_read_mail_but_no_trash_and_no_drafts(mixed: Path) -> None:
    """serialmail scans both; nobody wants a half-written letter sent, or one thrown away."""
    with serving(answer_all()) as server:
        done = run("--json", mixed, "p-", server.address)
        sent = [recipient for package in server.packages for recipient in package.recipients]
    assert sorted(sent) == [b"new@y", b"plain@y", b"read@y"]
    assert (names(mixed / "new"), names(mixed / "cur")) == ([], LEFT)
    # Neither is ours: nothing is left to do.
    assert done.returncode == 0
    summary = json.loads(done.stdout.splitlines()[-1])
    assert (summary["event"], summary["others"], summary["left"]) == ("summary", 1, 0)
    assert ", 1 for others, " in done.stderr


@pytest.mark.parametrize(
    ("options", "prefix", "left"),
    [
        (["--no-cur"], ["p-"], ["2.read:2,RS", "3.plain", *LEFT]),
        ([], [], ["2.read:2,RS", "3.plain", *LEFT]),
        (["--cur"], [], LEFT[:2]),
    ],
)
def test_the_other_ways_to_say_it(
    mixed: Path, options: list[str], prefix: list[str], left: list[str]
) -> None:
    """The short form leaves an inbox to its reader, unless --cur says otherwise."""
    with serving(answer_all()) as server:
        done = run(*options, mixed, *prefix, server.address)
    assert done.returncode == 0, done.stderr
    assert names(mixed / "cur") == left


def test_a_route_with_a_prefix_takes_it_too(mixed: Path, tmp_path: Path) -> None:
    """And the daemon says at the start what it watches, and where mail goes."""
    file = tmp_path / "m.toml"
    with serving(answer_all()) as server:
        file.write_text(
            f'[[route]]\nmaildir = "{mixed}"\nserver = "{server.address}"\nprefix = "p-"\n'
        )
        with watching("--config", file) as daemon:
            daemon.wait_for(
                f"watching new and cur of {mixed} for recipients that begin with p-; "
                f"mail goes to {server.address}"
            )
            wait_until(lambda: names(mixed / "cur") == LEFT, "what is to stay, alone")
            assert daemon.stop() == 0
            assert ", 1 for others, " in daemon.log
        with watching("--watch", mixed, server.address) as daemon:
            daemon.wait_for(f"watching new of {mixed}; mail goes to {server.address}")
            assert daemon.stop() == 0


def test_a_mistyped_prefix_is_no_quiet_success(mixed: Path) -> None:
    """`0 accepted`, exit 0 and nothing else looks as if all had gone."""
    server = f"127.0.0.1:{closed_port()}"
    done = run(mixed, "P-", server)
    assert (done.returncode, done.stdout) == (0, "")
    assert "0 accepted" in done.stderr
    assert ", 4 for others, " in done.stderr
    done = run("--dry-run", mixed, "P-", server)
    assert done.stderr == ("maildirqmtp: 4 for others: no recipient begins with the prefix P-\n")
    empty = make_maildir(mixed / "empty")
    assert "others" not in run(empty, "P-", server).stderr


def test_what_a_failure_before_the_first_message_leaves_is_counted(mixed: Path) -> None:
    """A summary without it reads as if the maildir had been empty."""
    (mixed.parent / "sent").write_text("no maildir")
    server = f"127.0.0.1:{closed_port()}"
    done = run("--json", "--sent", mixed.parent / "sent", mixed, server)
    assert done.returncode == 111
    *_, trouble, summary = map(json.loads, done.stdout.splitlines())
    assert (trouble["event"], trouble["left"]) == ("trouble", 1)
    assert str(mixed.parent / "sent") in trouble["reason"]
    assert (summary["event"], summary["left"]) == ("summary", 1)
    assert ", 1 left, " in done.stderr
