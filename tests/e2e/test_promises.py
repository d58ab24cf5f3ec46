"""What the documents say of numbers, lines and differences is what the programs do."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.documents import DOCUMENTS, rows
from tests.helpers import add_message, answer_all, make_maildir, make_older, names, run, serving

NUMBERS = {"two": 2, "three": 3, "four": 4}


@pytest.fixture(scope="module")
def told() -> str:
    """All documents, as one line without the line breaks of their text."""
    return " ".join(" ".join(path.read_text().split()) for path in DOCUMENTS)


@pytest.fixture(scope="module")
def compared() -> dict[str, list[str]]:
    """The rows of all tables by their first cell: what serialmail does, and what is done here."""
    tables = [row for path in DOCUMENTS for row in rows(path.read_text())]
    return {what: rest for what, *rest in tables if len(rest) == 2}


def test_a_server_that_hangs_up_is_called_as_often_as_is_said(maildir: Path, told: str) -> None:
    """Whoever waits for a run to end, and reads a log of more connections, looks for another."""
    (number,) = set(re.findall(r"(\w+) (?:such )?connections in a row without", told))
    for message in range(12):
        add_message(maildir, f"{message:02}.m")
    with serving(lambda peer: peer.finish()) as server:
        # One message at a time: a connection that narrows the window does not count.
        assert run("--window=1", maildir, server.address).returncode == 111
        assert server.connections == NUMBERS[number.lower()]


def test_lines_of_what_was_accepted_are_where_they_are_said_to_be(
    maildir: Path, compared: dict[str, list[str]]
) -> None:
    """A script that counts them would find nothing."""
    add_message(maildir, "1.m")
    add_message(maildir, "2.m")
    with serving(answer_all()) as server:
        quiet = run(maildir, server.address)
        add_message(maildir, "3.m")
        verbose = run("-v", maildir, server.address)
    assert len(quiet.stderr.splitlines()) == 1
    assert "3.m: recipient@example.net: accepted" in verbose.stderr
    theirs, ours = compared["results"]
    assert theirs == "a line for each message"
    assert "a line for each recipient not accepted (`-v`: for every one) and a summary" in ours


def test_serialmail_is_not_said_to_leave_fresh_mail(compared: dict[str, list[str]]) -> None:
    """It scans again until nothing is left; so do we, see `test_arrivals.py`."""
    theirs, ours = compared["fresh mail"]
    assert "sent by the current run" in theirs
    assert ours.startswith("the same, or at once by a daemon")


def test_the_first_deferral_of_an_old_message_is_said_to_give_a_day(
    compared: dict[str, list[str]],
) -> None:
    """Else nobody expects a message of three weeks to be there; see `test_outcomes.py`."""
    what, default = compared["`--lifetime TIME`"]
    assert "not within a day of the first" in what
    assert default == "14d"


def test_old_dot_files_in_tmp_go_as_is_said(maildir: Path, told: str) -> None:
    """serialmail leaves them; some delivery agents write into files of such names."""
    for name in (".old", ".young"):
        (maildir / "tmp" / name).write_bytes(b"x")
    make_older(maildir / "tmp" / ".old", 40 * 3_600)
    with serving(answer_all()) as server:
        add_message(maildir, "1.m")
        assert run(maildir, server.address).returncode == 0
    assert names(maildir / "tmp") == [".young"]
    assert "for 36 hours are removed (maildir(5)), with those whose names" in told


def _without_tmp(path: Path, server: str) -> int:
    (path / "tmp").rmdir()
    return run(path, "p-", server).returncode


def _fourth(path: Path, server: str) -> int:
    return run(path, "p-", server, "more").returncode


def _dash(path: Path, server: str) -> int:
    return run(path, "-p-", server).returncode


def _only_prefix(path: Path, server: str) -> int:
    (path / "new" / "1.m").unlink()
    add_message(path, "1.m", recipient=b"p-")
    return run(path, "p-", server).returncode


def _brackets(path: Path, server: str) -> int:
    (path / "new" / "1.m").unlink()
    add_message(path, "1.m", recipient=b"<p-r@y>")
    return run(path, "p-", server).returncode


@pytest.mark.parametrize(
    ("what", "here", "code", "tried"),
    [
        ("a recipient that is just PREFIX", "(111)", 111, _only_prefix),
        ("`Delivered-To: <x>`", "the recipient is `x`", 0, _brackets),
        ("a maildir without `tmp/`", "111", 111, _without_tmp),
        ("DIR or PREFIX that begins with `-`, for `maildirqmtp`", "after `--`", 100, _dash),
        ("a fourth argument of `maildirqmtp`", "wrong usage (100)", 100, _fourth),
        # `test_serialmail.py` tries these, and `test_bounces.py` who gets a bounce.
        (
            "descriptors 6 and 7 of `serialqmtp`",
            "sockets or pipes, checked at the start",
            None,
            None,
        ),
        ("bounces", "goes to the postmaster as a double bounce", None, None),
    ],
)
def test_what_serialmail_does_otherwise_is_told(
    tmp_path: Path,
    compared: dict[str, list[str]],
    what: str,
    here: str,
    code: int | None,
    tried: Callable[[Path, str], int] | None,
) -> None:
    """A script that was written for it would fail, and nobody know why."""
    assert what in compared, "no row of the table of differences"
    assert here in " | ".join(compared[what])
    if tried is not None:
        path = make_maildir(tmp_path / "M")
        add_message(path, "1.m", recipient=b"p-r@y")
        with serving(answer_all()) as server:
            assert tried(path, server.address) == code
