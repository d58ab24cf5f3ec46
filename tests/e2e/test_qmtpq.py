"""`qmtpq` beside a running daemon: it says what the daemon knows, and nothing goes wrong there."""

from __future__ import annotations

import json
import os
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.daemons import deliver, empties, watching
from tests.helpers import (
    DEADLINE_S,
    Package,
    Peer,
    add_message,
    add_sidecar,
    answer_all,
    by_recipient,
    closed_port,
    command,
    json_events,
    make_maildir,
    names,
    run,
    serving,
    wait_until,
)


def qmtpq(*words: str | Path, code: int = 0) -> str:
    """Run the installed command; return its standard output."""
    done = subprocess.run(
        [*command("qmtpq"), *map(str, words)],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=DEADLINE_S,
    )
    assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode == code, done.stderr
    return done.stdout


def listed(*words: str | Path) -> list[dict[str, Any]]:
    """Return the objects of `qmtpq list --json`."""
    return json_events(qmtpq("list", "--json", *words))


def arrive(maildir: Path, name: str, recipient: bytes) -> None:
    """Put a message into new/ as delivery agents do: a daemon holds one that is being written."""
    add_message(maildir, name, recipient=recipient, folder="tmp")
    os.rename(maildir / "tmp" / name, maildir / "new" / name)


def tried(maildir: Path) -> bool:
    """Say whether the daemon tells how often each message was tried."""
    found = listed(maildir, "--waiting")
    return bool(found) and all(one["tries"] for one in found)


def test_why_it_waits_and_having_it_tried(maildir: Path) -> None:
    """What an administrator does on the second day: look, mend, have it tried."""
    answers = {"now": b"Z450 mailbox is locked"}
    with (
        serving(answer_all(lambda _, to: answers["now"])) as server,
        watching("--watch", maildir, server.address) as daemon,
    ):
        deliver(maildir, "1.a")
        wait_until(lambda: tried(maildir), "the reason in the list")
        (one,) = listed(maildir)
        assert (one["tries"], one["reason"]) == (1, "450 mailbox is locked")
        assert "450 mailbox is locked" in qmtpq("show", maildir, "1.a")
        assert f"process {daemon.process.pid}" in qmtpq("list", maildir).splitlines()[0]
        assert "450 mailbox is locked" in qmtpq("list", "--summary", maildir)
        answers["now"] = b"Kok"
        assert qmtpq("flush", maildir) == f"the daemon of {maildir} tries all that waits\n"
        empties(maildir)
        assert daemon.stop() == 0


def test_a_link_that_is_down_is_said_without_a_daemon(maildir: Path) -> None:
    """By cron nobody sees what the run has said, and the messages themselves were not tried."""
    add_message(maildir, "1.a")
    address = f"127.0.0.1:{closed_port()}"
    assert run(maildir, address).returncode == 111
    line = f"{maildir}: 1 waiting; no daemon"
    for shown in (qmtpq("list", maildir), run("--status", maildir).stdout):
        assert shown.startswith(f"{line}; the last run: cannot connect to {address}: ")
    with serving(answer_all(lambda *_: b"Zlater")) as server:
        assert run(maildir, server.address).returncode == 111
    assert qmtpq("list", maildir).splitlines()[0] == line
    assert run("--status", maildir).stdout.splitlines()[0] == line


def test_what_was_refused_is_sent_again(maildir: Path) -> None:
    """To those who failed only, at once, and the failed maildir is empty afterwards."""
    refused = {b"d@y"}

    def answer(package: Package, recipient: bytes) -> bytes:
        return b"Dno such user" if recipient in refused else b"Kok"

    with (
        serving(answer_all(answer)) as server,
        watching("--watch", maildir, server.address) as daemon,
    ):
        deliver(maildir, "1.a", b"Subject: x\n\nbody\n")
        deliver(maildir, "2.b")
        empties(maildir)
        arrive(maildir, "3.c", b"d@y")
        wait_until(lambda: names(maildir / ".Failed" / "new") == ["3.c"], "the failed message")
        (one,) = listed(maildir, "--failed")
        assert (one["reason"], one["recipients"]) == ("no such user", ["d@y"])
        refused.clear()
        qmtpq("resend", maildir, "3.c")
        empties(maildir)
        wait_until(lambda: len(server.packages) == 4, "the fourth package")
        assert server.packages[-1].recipients == (b"d@y",)
        assert names(maildir / ".Failed" / "new") == []
        assert daemon.stop() == 0
    assert names(maildir / "envelope") == []


def test_dropped_while_it_is_in_flight(maildir: Path) -> None:
    """The daemon finds it gone, whatever the server says, and goes on; nothing comes back."""
    answer = threading.Event()

    def script(peer: Peer) -> None:
        while (package := peer.read_package()) is not None:
            answer.wait(DEADLINE_S)
            peer.respond(*(by_recipient(package, r) for r in package.recipients))

    for number, letter in enumerate((b"k", b"z", b"d"), 1):
        add_message(maildir, f"{number}.a", recipient=letter + b"@x")
    with (
        serving(script) as server,
        watching("--watch", maildir, server.address) as daemon,
    ):
        wait_until(lambda: len(server.packages) >= 1, "a package")
        qmtpq("drop", "--yes", maildir, "--all")
        answer.set()
        arrive(maildir, "4.b", b"k@y")
        wait_until(lambda: server.packages[-1].recipients == (b"k@y",), "the next package")
        empties(maildir)
        assert listed(maildir) == []
        assert daemon.stop() == 0


def test_many_administrators_at_once(maildir: Path) -> None:
    """Each failed message is sent again once, and none is lost, whoever comes first."""
    failed = make_maildir(maildir / ".Failed")
    (failed / "envelope").mkdir()
    count = 30
    for number in range(count):
        add_message(failed, f"{1000 + number}.a")
        content = {"version": 1, "sender": "s@x", "recipients": [f"u{number}@y"]}
        (failed / "envelope" / f"{1000 + number}.a.json").write_text(json.dumps(content))

    def resend(_: int) -> int:
        words = [*command("qmtpq"), "resend", str(maildir), "--all"]
        return subprocess.run(words, capture_output=True, timeout=DEADLINE_S).returncode

    with (
        serving(answer_all()) as server,
        watching("--watch", maildir, server.address) as daemon,
    ):
        with ThreadPoolExecutor(4) as pool:
            codes = list(pool.map(resend, range(4)))
        assert set(codes) <= {0, 111}
        assert 0 in codes
        empties(maildir)
        wait_until(lambda: len(server.packages) >= count, "all packages")
        assert daemon.stop() == 0
    found = sorted(r for package in server.packages for r in package.recipients)
    assert found == sorted(f"u{number}@y".encode() for number in range(count))
    assert names(failed / "new") == names(failed / "envelope") == []


# Hold and release


def test_a_held_message_is_not_sent_by_a_batch(maildir: Path) -> None:
    """Exit code 111: something is left. Released, it goes."""
    add_message(maildir, "1.a")
    add_message(maildir, "2.b", recipient=b"other@y")
    qmtpq("hold", maildir, "1.a")
    (one,) = listed(maildir, "--held")
    assert (one["message"], one["state"]) == ("1.a", "held")
    assert "an administrator holds it" in one["reason"]
    assert "held: an administrator holds it" in run("--status", maildir).stdout
    foretold = run("--dry-run", maildir, "127.0.0.1:1")
    assert foretold.returncode == 111
    assert "1.a: held: an administrator holds it" in foretold.stderr
    assert foretold.stdout.startswith("2.b: <")
    with serving(answer_all()) as server:
        done = run(maildir, server.address)
        assert done.returncode == 111
        assert "1.a: held: an administrator holds it" in done.stderr
        assert names(maildir / "new") == ["1.a"]
        assert qmtpq("release", maildir, "1.a") == f"released {maildir}/new/1.a\n"
        assert run(maildir, server.address).returncode == 0
    assert [p.recipients for p in server.packages] == [(b"other@y",), (b"recipient@example.net",)]


@pytest.mark.parametrize("several", [False, True], ids=["small", "with a sidecar"])
def test_a_running_daemon_holds_and_releases_at_once(maildir: Path, several: bool) -> None:
    """Whether the message goes by the short way or by the long one."""
    answers = {"now": b"Zlater"}
    with (
        serving(answer_all(lambda _, to: answers["now"])) as server,
        watching("--watch", maildir, server.address) as daemon,
    ):
        add_message(maildir, "1.a", folder="tmp")
        if several:
            add_sidecar(maildir, "1.a", "s@x", "a@y", "b@y")
        os.rename(maildir / "tmp" / "1.a", maildir / "new" / "1.a")
        wait_until(lambda: tried(maildir), "the first try")
        qmtpq("hold", maildir, "1.a")
        answers["now"] = b"Kok"
        count = len(server.packages)
        qmtpq("flush", maildir)
        arrive(maildir, "2.b", b"fresh@y")
        wait_until(lambda: names(maildir / "new") == ["1.a"], "the other message to go")
        wait_until(lambda: "1.a: held: an administrator" in daemon.log, "the hold in the log")
        assert all(b"fresh@y" in p.recipients for p in server.packages[count:])
        qmtpq("release", maildir, "1.a")
        empties(maildir)
        assert daemon.stop() == 0
    assert listed(maildir) == []


def test_a_dropped_message_is_held_no_more(maildir: Path) -> None:
    """A state file of holds of what is gone would be full one day."""
    add_message(maildir, "1.a")
    qmtpq("hold", maildir, "--all")
    qmtpq("drop", "--yes", maildir, "--held", "--all")
    assert names(maildir / "new") == []
    assert "held" not in json.loads((maildir / ".maildirqmtp-state.json").read_text())


@pytest.mark.parametrize("several", [False, True], ids=["small", "with a sidecar"])
def test_a_hold_counts_on_a_connection_that_is_busy(maildir: Path, several: bool) -> None:
    """What is not on its way yet is not sent any more."""
    for number in range(5):
        add_message(maildir, f"{number + 1}.a", recipient=b"r%d@y" % (number + 1))
        if several:
            add_sidecar(maildir, f"{number + 1}.a", "s@x", f"r{number + 1}@y", "other@y")

    def script(peer: Peer) -> None:
        while (package := peer.read_package()) is not None:
            if len(peer.server.packages) == 1:
                qmtpq("hold", maildir, "--all")
            peer.respond(*(b"Kok" for _ in package.recipients))

    with serving(script) as server:
        assert run("--window", "1", maildir, server.address).returncode == 111
    assert len(server.packages) == 1
    assert names(maildir / "new") == [f"{number}.a" for number in (2, 3, 4, 5)]


def test_what_was_said_before_is_known_after_a_restart(maildir: Path) -> None:
    """And after runs by cron: the reason, when, and how often it was tried."""
    arrive(maildir, "1.a", b"later@y")
    with serving(answer_all(lambda _, to: b"Zgreylisted (#4.7.1)")) as server:
        for _ in range(2):
            assert run(maildir, server.address, "--no-cur").returncode == 111
    [one] = listed(maildir)
    assert (one["tries"], one["reason"]) == (2, "greylisted (#4.7.1)")
    assert [attempt["text"] for attempt in one["attempts"]] == ["greylisted (#4.7.1)"] * 2
    with (
        serving(answer_all(lambda _, to: b"Zmailbox full")) as server,
        watching("--watch", maildir, server.address) as daemon,
    ):
        daemon.wait_for("mailbox full")
        assert daemon.stop() == 0
    # A daemon that knows nothing yet, for its server cannot be reached.
    with watching("--watch", maildir, "127.0.0.1:1") as daemon:
        daemon.wait_for("next try in")
        [told] = json_events(run("--status", "--json", maildir).stdout)[0]["waiting"]
        shown = qmtpq("show", maildir, "1.a")
    assert (told["tries"], told["reason"]) == (3, "mailbox full")
    assert [attempt["text"] for attempt in told["attempts"]] == [
        "mailbox full", "greylisted (#4.7.1)", "greylisted (#4.7.1)"
    ]  # fmt: skip
    assert shown.count("\ntried:     ") == 3
    assert "\nwhy:       mailbox full\n" in shown


def test_a_second_daemon_that_was_turned_away_takes_nothing_from_the_first(maildir: Path) -> None:
    """Its end said "no daemon" of the one that ran; resent mail went without the route's prefix."""
    make_maildir(maildir / ".Failed")
    arrive(maildir / ".Failed", "1.a", b"p-old@y")
    arrive(maildir, "2.a", b"p-wait@y")
    words = ("--watch", maildir, "p-", f"127.0.0.1:{closed_port()}")
    with watching(*words) as daemon:
        daemon.wait_for("next try in")
        before = run("--status", maildir).stdout
        assert f"process {daemon.process.pid}, backing off" in before
        with watching(*words) as second:
            second.wait_for(f"locked by process {daemon.process.pid}")
            assert second.stop() == 0
        assert f"process {daemon.process.pid}, backing off" in run("--status", maildir).stdout
        assert qmtpq("flush", maildir) == f"the daemon of {maildir} tries all that waits\n"
        qmtpq("resend", maildir, "1.a", "--recipient", "new@y")
        assert {one["recipients"][0] for one in listed(maildir, "--waiting")} == {
            "p-wait@y",
            "p-new@y",
        }
